"""Large convolutions as linear stacks of small ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from gridrun.errors import ConfigError
from gridrun.nn.fourier import (
    EitherMethod,
    Method,
    Spectrum,
    ValidConv2d,
    fourier_conv2d,
)
from gridrun.nn.noise import Dropout


def valid_map(
    side: tuple[int, int], ksize: int, stride: int = 1, padding: int = 0
) -> tuple[int, int]:
    """Height and width of a convolution's output; may be < 1."""
    height, width = ((n + 2 * padding - ksize) // stride + 1 for n in side)
    return height, width


def sub_kernels(ksize: int) -> list[int]:
    """Kernel sides of the stack that equals one kernel of side `ksize`."""
    if ksize <= 3:
        return [ksize]
    if ksize % 2:
        return [3] * ((ksize - 1) // 2)
    return [3] * ((ksize - 2) // 2) + [2]


class LinearStackedConv2d(EitherMethod):
    """A linear stack of small convolutions that equals one large convolution.

    All padding is on the first sub-convolution and all stride on the last, so that
    without dropout the stack equals `collapse()` at every position.

    Args:
        cin: Input channels.
        cout: Output channels, also of every inner map.
        ksize: Side of the large kernel, ≥ 1.
        stride: Of the whole.
        padding: Zeros on each side, of the whole.
        bias: Of the last sub-convolution.
        drop_p: Dropout between sub-convolutions.
        inner_bias: Biases of the others.
        size: (H, W) of the maps that it is made for.
        from_data: Whether the maps are data.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        ksize: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        drop_p: float = 0.0,
        inner_bias: bool = False,
        size: tuple[int, int] | None = None,
        from_data: bool = False,
    ) -> None:
        super().__init__()
        if inner_bias and padding:
            raise ConfigError(
                "LinearStackedConv2d: inner_bias with padding is no convolution"
            )
        sides = sub_kernels(ksize)
        last = len(sides) - 1
        self.convs = nn.ModuleList(
            nn.Conv2d(
                cin if i == 0 else cout,
                cout,
                side,
                stride=stride if i == last else 1,
                padding=padding if i == 0 else 0,
                bias=bias if i == last else inner_bias,
            )
            for i, side in enumerate(sides)
        )
        self.dropout = Dropout(drop_p)
        self.stride = stride
        self.padding = padding
        self.size = size
        self.from_data = from_data

    @property
    def chosen_method(self) -> Method:
        """Direct where the stack is not one valid convolution."""
        drops = self.training and self.dropout.p > 0 and len(self.convs) > 1
        is_valid = self.stride == 1 and self.padding == 0
        return super().chosen_method if is_valid and not drops else "direct"

    def macs(self, size: tuple[int, int]) -> int:
        total = 0
        for conv in self._parts():
            side = conv.weight.shape[-1]
            size = (size[0] - side + 1, size[1] - side + 1)
            total += conv.weight[0].numel() * size[0] * size[1]
        return total

    def chans(self) -> tuple[int, int]:
        first = self._parts()[0]
        return first.in_channels, first.out_channels

    def _parts(self) -> list[nn.Conv2d]:
        return [conv for conv in self.convs if isinstance(conv, nn.Conv2d)]

    def forward(self, x: Tensor | Spectrum) -> Tensor:
        """Convolve x (B, cin, H, W), or its spectrum, to (B, cout, H', W')."""
        if self.chosen_method == "fourier":
            device = self._parts()[0].weight.device.type
            with torch.autocast(device, enabled=False):
                return fourier_conv2d(x, *self.composed())
        assert isinstance(x, Tensor)
        y = x
        for i, conv in enumerate(self.convs):
            y = conv(y if i == 0 else self.dropout(y))
        return y

    def composed(self) -> tuple[Tensor, Tensor | None]:
        """Kernel (cout, cin, k, k) and bias of the whole, differentiable."""
        first, *others = self._parts()
        kernel, bias = first.weight, first.bias
        for conv in others:
            if bias is not None:
                bias = torch.einsum("oikl,i->o", conv.weight, bias)
            if conv.bias is not None:
                bias = conv.bias if bias is None else bias + conv.bias
            kernel = compose_kernels(kernel, conv.weight)
        return kernel, bias

    def collapse(self) -> nn.Conv2d:
        """One convolution with the same function as this stack in evaluation."""
        kernel, bias = self.composed()
        cout, cin, ksize, _ = kernel.shape
        place: Any = {
            "bias": bias is not None,
            "dtype": kernel.dtype,
            "device": kernel.device,
        }
        kind: type[nn.Conv2d] = nn.Conv2d
        if self.stride == 1 and self.padding == 0:
            kind = ValidConv2d
            place |= {"size": self.size, "from_data": self.from_data}
        else:
            place |= {"stride": self.stride, "padding": self.padding}
        whole: nn.Conv2d = skip_init(kind, cin, cout, ksize, **place)  # type: ignore[no-untyped-call]
        if isinstance(whole, ValidConv2d):
            whole.method = self.method
        with torch.no_grad():
            whole.weight.copy_(kernel)
            if bias is not None and whole.bias is not None:
                whole.bias.copy_(bias)
        return whole


def collapse_stacks(module: nn.Module) -> None:
    """Replace every stack below a module, in place, by its one convolution."""
    for name, child in module.named_children():
        if isinstance(child, LinearStackedConv2d):
            setattr(module, name, child.collapse())
        else:
            collapse_stacks(child)


def compose_kernels(first: Tensor, second: Tensor) -> Tensor:
    """The kernel of two convolutions, one after the other.

    Args:
        first: (M, I, a, a), applied first.
        second: (O, M, b, b).

    Returns:
        (O, I, a + b - 1, a + b - 1), differentiable in both.
    """
    b = second.shape[-1]
    flipped = second.flip(-1, -2)
    composed = F.conv2d(first.transpose(0, 1), flipped, padding=b - 1)
    return composed.transpose(0, 1)
