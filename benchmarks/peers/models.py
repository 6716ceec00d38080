"""The models as plain PyTorch: layers of torch.nn, the mathematics of the project's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-3


class GaussianNoise(nn.Module):
    """Adds noise in training.

    Args:
        std: Its standard deviation.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        if not self.training or self.std == 0:
            return x
        return x + self.std * torch.randn_like(x)


class AbsBatchNorm1d(nn.BatchNorm1d):
    """Batch norm whose scale is |weight|."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x (B, N)."""
        return abs_batch_norm(self, x)


class AbsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose scale is |weight|."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x (B, C, H, W)."""
        return abs_batch_norm(self, x)


def abs_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm of x by the module's statistics, with |weight| as scale."""
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight.abs(),
        norm.bias,
        norm.training,
        norm.momentum or 0.0,
        norm.eps,
    )


def stacked_convolution(
    cin: int, cout: int, ksize: int, bias: bool, drop_p: float
) -> nn.Sequential:
    """A linear stack of 3×3 convolutions with the field of one of `ksize` (odd)."""
    n = (ksize - 1) // 2
    layers: list[nn.Module] = []
    for i in range(n):
        if i and drop_p:
            layers.append(nn.Dropout(drop_p))
        is_last = i == n - 1
        layers.append(
            nn.Conv2d(cin if i == 0 else cout, cout, 3, bias=bias and is_last)
        )
    return nn.Sequential(*layers)


class RetinaCNN(nn.Module):
    """Two or more hidden blocks and a ganglion layer, dense or convolutional.

    Args:
        settings: Complete hyperparameters.
        n_cells: Outputs.
        centers: Row and column of each cell, for `convgc`.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        n_cells: int,
        centers: Sequence[Sequence[int]] | None,
    ) -> None:
        super().__init__()
        is_abs = settings["model_type"] != "BNCNN"
        norm1d = AbsBatchNorm1d if is_abs else nn.BatchNorm1d
        norm2d = AbsBatchNorm2d if is_abs else nn.BatchNorm2d
        momentum = settings["bn_moment"]
        cin, height, width = settings["img_shape"]
        blocks: list[nn.Module] = []
        for cout, ksize in zip(settings["chans"], settings["ksizes"], strict=False):
            height, width = height - ksize + 1, width - ksize + 1
            bias = settings["bias"]
            if settings["stackconvs"]:
                drop_p = settings["drop_p"]
                blocks.append(stacked_convolution(cin, cout, ksize, bias, drop_p))
            else:
                blocks.append(nn.Conv2d(cin, cout, ksize, bias=bias))
            if settings["bnorm_d"] == 2:
                blocks.append(norm2d(cout, NORM_EPS, momentum))
            else:
                flat = norm1d(cout * height * width, NORM_EPS, momentum)
                shape = (cout, height, width)
                blocks += [nn.Flatten(), flat, nn.Unflatten(1, shape)]
            blocks += [GaussianNoise(settings["noise"]), nn.ReLU()]
            cin = cout
        self.hidden = nn.Sequential(*blocks)
        self.places: list[tuple[int, int]] | None = None
        if settings["convgc"]:
            assert centers is not None
            self.places = places(centers, settings["ksizes"], settings["img_shape"])
            kernel = settings["ksizes"][-1]
            self.ganglion: nn.Module = nn.Conv2d(cin, n_cells, kernel, bias=False)
        else:
            features = cin * height * width
            linear = nn.Linear(features, n_cells, bias=False)
            self.ganglion = nn.Sequential(nn.Flatten(), linear)
        self.norm = norm1d(n_cells, NORM_EPS, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Rates (B, U) of windows x (B, C, H, W)."""
        raw: Tensor = self.ganglion(self.hidden(x))
        if self.places is not None:
            rows, columns = zip(*self.places, strict=True)
            raw = raw[:, list(range(len(rows))), list(rows), list(columns)]
        return F.softplus(self.norm(raw))


def places(
    centers: Sequence[Sequence[int]], ksizes: Sequence[int], img_shape: Sequence[int]
) -> list[tuple[int, int]]:
    """Where in the last map the unit is whose field is centred on each cell."""
    field = 1 + sum(ksize - 1 for ksize in ksizes)

    def place(at: int, size: int) -> int:
        return min(max(at - (field - 1) // 2, 0), size - field)

    return [(place(r, img_shape[1]), place(c, img_shape[2])) for r, c in centers]


def plain_convolutions(settings: Mapping[str, Any]) -> list[tuple[int, int, int, int]]:
    """(channels, kernel, stride, padding) of Tiny10's or PlainN's convolutions.

    Source: Kornblith et al. 2019, ICML, Tables E.1 and E.2.
    """
    if settings["model_type"] == "Tiny10":
        convs = [(16, 3, 1, 1)] * 2 + [(32, 3, 2, 1)] + [(32, 3, 1, 1)] * 2
        convs += [(64, 3, 2, 1), (64, 3, 1, 0), (64, 1, 1, 0)]
    else:
        n = settings["plain_n"]
        convs = [(96, 3, 1, 1)] * (3 * n - 1) + [(96, 3, 2, 1)]
        convs += [(192, 3, 1, 1)] * (3 * n - 1) + [(192, 3, 2, 1)]
        convs += [(192, 3, 1, 1)] * (n - 1) + [(192, 3, 1, 0)] + [(192, 1, 1, 0)] * n
    width = settings["width"]
    return [(width or chans, *rest) for chans, *rest in convs]  # type: ignore[misc]


def image_network(settings: Mapping[str, Any], n_classes: int) -> nn.Sequential:
    """Tiny10, PlainN or SmallNet (without dropout and stacks) as one nn.Sequential."""
    cin, side, _ = settings["img_shape"]
    is_small = settings["model_type"] == "SmallNet"
    if is_small:
        names = ("chans", "ksizes", "strides", "paddings")
        convs = list(zip(*(settings[name] for name in names), strict=True))
    else:
        convs = plain_convolutions(settings)
    layers: list[nn.Module] = []
    for cout, ksize, stride, padding in convs:
        layers.append(nn.Conv2d(cin, cout, ksize, stride, padding))
        if settings["bnorm"]:
            layers.append(nn.BatchNorm2d(cout, momentum=settings["bn_moment"]))
        layers.append(nn.ReLU())
        cin, side = cout, (side + 2 * padding - ksize) // stride + 1
    if not is_small:
        pool = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(cin, n_classes))
    hidden = settings["mid_dims"]
    layers += [nn.Flatten(), nn.Linear(cin * side**2, hidden), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers, nn.Linear(hidden, n_classes))


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give a model the parameters of another with the same ones in the same order."""
    pairs = zip(source.parameters(), target.parameters(), strict=True)
    with torch.no_grad():
        for given, taken in pairs:
            assert given.shape == taken.shape
            taken.copy_(given)
