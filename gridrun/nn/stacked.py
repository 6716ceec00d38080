"""Large convolutions as linear stacks of small ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from gridrun.errors import ConfigError
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


class LinearStackedConv2d(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (B, cin, H, W) to (B, cout, H', W')."""
        for i, conv in enumerate(self.convs):
            x = conv(x if i == 0 else self.dropout(x))
        return x

    def collapse(self) -> nn.Conv2d:
        """One convolution with the same function as this stack in evaluation."""
        first = self.convs[0]
        assert isinstance(first, nn.Conv2d)
        kernel, bias = first.weight, first.bias
        for conv in list(self.convs)[1:]:
            assert isinstance(conv, nn.Conv2d)
            if bias is not None:
                bias = torch.einsum("oikl,i->o", conv.weight, bias)
            if conv.bias is not None:
                bias = conv.bias if bias is None else bias + conv.bias
            kernel = compose_kernels(kernel, conv.weight)
        whole: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d,
            kernel.shape[1],
            kernel.shape[0],
            kernel.shape[-1],
            stride=self.stride,
            padding=self.padding,
            bias=bias is not None,
            dtype=kernel.dtype,
            device=kernel.device,
        )
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
