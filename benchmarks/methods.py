"""`python -m benchmarks.methods`: direct against Fourier, and what the rule takes.

The numbers of `gridrun.nn.fourier.faster_method` are fitted to this table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.measure import median, one_thread, timed_s
from gridrun.machine import keep_freed_memory
from gridrun.nn import Spectrum, ValidConv2d, fourier_conv2d

BATCH = 64
N_ROUNDS = 4
# input and output channels, side of the maps, side of the kernel, whether of data
SHAPES = [
    *((40, 8, 50, side, True) for side in (15, 11, 7, 5, 3)),
    *((8, 8, 36, side, False) for side in (11, 7, 5, 3)),
    *((40, 16, 20, side, True) for side in (9, 5)),
    *((16, 16, 12, side, False) for side in (7, 5, 12)),
    *((32, 32, 30, side, False) for side in (9, 5, 3)),
    (40, 8, 100, 21, True),
    (8, 60, 26, 11, False),
    (16, 16, 16, 9, False),
    (1, 8, 20, 9, True),
]


def main() -> None:
    """Measure and print."""
    keep_freed_memory()
    print("| inputs → outputs, maps, kernel | direct, ms | Fourier, ms | rule |")
    print("|---|---|---|---|")
    with one_thread():
        for shape in SHAPES:
            print(row(*shape))


def row(cin: int, cout: int, side: int, ksize: int, from_data: bool) -> str:
    """A forward and a backward pass by each method."""
    maps = torch.randn(BATCH, cin, side, side, requires_grad=not from_data)
    x = Spectrum.of(maps) if from_data else maps
    layer = ValidConv2d(cin, cout, ksize, size=(side, side), from_data=from_data)
    change = torch.randn(BATCH, cout, side - ksize + 1, side - ksize + 1)

    def direct() -> None:
        F.conv2d(maps, layer.weight, layer.bias).backward(change)  # type: ignore[no-untyped-call]

    def fourier() -> None:
        fourier_conv2d(x, layer.weight, layer.bias).backward(change)  # type: ignore[no-untyped-call]

    times = []
    for method in (direct, fourier):
        method()
        times.append(1e3 * median([timed_s(method) for _ in range(N_ROUNDS)]))
    name = f"{cin} → {cout}, {side}×{side}, {ksize}×{ksize}"
    source = ", data" if from_data else ""
    return (
        f"| {name}{source} | {times[0]:.1f} | {times[1]:.1f} | {layer.chosen_method} |"
    )


if __name__ == "__main__":
    main()
