"""Convolutions by Fourier transform, exact to rounding; and when they are faster.

A valid convolution of H×W maps needs a circular transform of that size only: what
wraps around is what is cropped. At each frequency it is one small matrix product
over samples and channels (Mathieu, Henaff and LeCun 2014, ICLR).
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Method = Literal["direct", "fourier"]


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Maps (B, C, H, W) as a layer's input by their transform; it has no gradient.

    Args:
        values: (F, B, C) complex, as `transformed` gives them.
        size: (H, W) of the maps.
    """

    values: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, maps: Tensor) -> Spectrum:
        """Of maps (B, C, H, W)."""
        size = (maps.shape[-2], maps.shape[-1])
        with torch.no_grad():
            return cls(transformed(maps, padded(size)), size)

    @classmethod
    def of_rows(cls, rows: Tensor, n_chans: int, size: tuple[int, int]) -> Spectrum:
        """Of transformed maps, (B·C, F) as `flat_transform` gives them."""
        values = rows.t().contiguous().view(rows.shape[1], -1, n_chans)
        return cls(values, size)

    def __len__(self) -> int:
        return self.values.shape[1]


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """The circular size for maps: the next with no prime factor beyond 7."""
    return _fast(size[0]), _fast(size[1])


def _fast(n: int) -> int:
    rest = n
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    return n if rest == 1 else _fast(n + 1)


def flat_transform(maps: Tensor) -> Tensor:
    """Each map's own transform, (N, H, W) real to (N, F) complex.

    A map's bits do not depend on the others.
    """
    size = padded((maps.shape[-2], maps.shape[-1]))
    found: Tensor = torch.fft.rfft2(maps, s=size)
    return found.flatten(1)


def transformed(
    maps: Tensor, circle: tuple[int, int], conjugate: bool = False
) -> Tensor:
    """(M, N, h, w) real to (F, M, N) complex, by a transform of size `circle`."""
    found: Tensor = torch.fft.rfft2(maps, s=circle)
    found = found.conj() if conjugate else found
    return found.flatten(2).permute(2, 0, 1).contiguous()


def inverted(values: Tensor, circle: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    """(F, M, N) complex back to the first rows and columns of real (M, N, h, w)."""
    rows = values.flatten(1).t().contiguous().view(-1, circle[0], circle[1] // 2 + 1)
    half = torch.fft.ifft(rows, dim=1)[:, : crop[0]]
    found: Tensor = torch.fft.irfft(half, n=circle[1])[..., : crop[1]]
    return found.unflatten(0, values.shape[1:])  # type: ignore[no-untyped-call,no-any-return]


class _ValidConvolution(torch.autograd.Function):
    """Maps or their spectrum, weight (O, C, k, k) and bias (O,) to (B, O, h, w)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        maps: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        spectrum: Tensor | None,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        circle = padded(size)
        own = weight.new_empty(0)
        if spectrum is None:
            assert maps is not None
            spectrum = own = transformed(maps, circle)
        height, width = (
            n - side + 1 for n, side in zip(size, weight.shape[2:], strict=True)
        )
        factors = transformed(weight, circle, conjugate=True).transpose(1, 2)
        found = inverted(torch.bmm(spectrum, factors), circle, (height, width))
        found = found.contiguous() if bias is None else found + bias[:, None, None]
        return found, own

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        maps, weight, _, spectrum, ctx.size = inputs
        own = output[1]
        ctx.mark_non_differentiable(own)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(maps, weight, own if spectrum is None else spectrum)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        gradient, _ = gradients
        if gradient is None:
            return None, None, None, None, None
        maps, weight, spectrum = ctx.saved_tensors
        circle = padded(ctx.size)
        if torch.is_grad_enabled() and maps is not None:  # to be differentiated again
            spectrum = transformed(maps, circle)
        of_maps = of_weight = of_bias = None
        changes = transformed(gradient, circle, conjugate=True)
        if ctx.needs_input_grad[0]:
            factors = transformed(weight, circle, conjugate=True)
            of_maps = inverted(torch.bmm(changes, factors).conj(), circle, ctx.size)
        if ctx.needs_input_grad[1]:
            product = torch.bmm(changes.transpose(1, 2), spectrum)
            sides = (weight.shape[2], weight.shape[3])
            of_weight = inverted(product, circle, sides).contiguous()
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_maps, of_weight, of_bias, None, None


def fourier_conv2d(
    x: Tensor | Spectrum, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """What `F.conv2d` gives without padding and strides, in the weights' type.

    Args:
        x: (B, C, H, W), or its spectrum.
        weight: (O, C, k, k).
        bias: (O,).

    Returns:
        (B, O, H - k + 1, W - k + 1).
    """
    with torch.autocast(weight.device.type, enabled=False):
        maps, values, size = None, None, (0, 0)
        if isinstance(x, Spectrum):
            values, size = x.values, x.size
        else:
            maps, size = x.to(weight.dtype), (x.shape[-2], x.shape[-1])
        found: tuple[Tensor, Tensor] = _ValidConvolution.apply(  # type: ignore[no-untyped-call]
            maps, weight, bias, values, size
        )
    return found[0]


# --- which method, and layers that have the choice ----------------------------------


def faster_method(
    macs: int,
    chans: tuple[int, int],
    size: tuple[int, int],
    from_data: bool,
    device: str = "cpu",
) -> Method:
    """The method that a fixed rule takes, by shape and kind of device alone.

    The numbers are fitted to measured steps, forward and backward, of one core with
    vectors of 16 numbers: `benchmarks/README.md`. They hold within a factor of 1.5.

    Args:
        macs: Multiplications of the direct method per sample and output channel.
        chans: Input and output channels.
        size: (H, W) of the input maps.
        from_data: Whether the maps are data: no gradient, and their transform shared.
        device: Type of the device; elsewhere than on a CPU it is direct.
    """
    if device != "cpu":
        return "direct"
    cin, cout = chans
    height, width = padded(size)
    direct = macs * 16 * -(-cout // 16)
    transforms = 157 * cout if from_data else 106 * (cin + cout)
    fourier = height * width * (transforms + 8 * cin * cout)
    return "fourier" if fourier < direct else "direct"


class EitherMethod(nn.Module, abc.ABC):
    """A layer of stride 1 without padding whose convolution has two methods.

    `method` is auto, direct or fourier, as the key `conv_method`; `size` (H, W) of
    the maps it is made for; `from_data` as of `faster_method`. Without a size, auto
    is direct.
    """

    method: str = "auto"
    size: tuple[int, int] | None = None
    from_data: bool = False

    @abc.abstractmethod
    def macs(self, size: tuple[int, int]) -> int:
        """Multiplications of the direct method per sample and output channel."""

    @abc.abstractmethod
    def chans(self) -> tuple[int, int]:
        """Input and output channels."""

    @property
    def chosen_method(self) -> Method:
        """The method in use; it depends on shapes and device only."""
        if self.method == "fourier":
            return "fourier"
        if self.method == "direct" or self.size is None:
            return "direct"
        device = next(self.parameters()).device.type
        macs = self.macs(self.size)
        return faster_method(macs, self.chans(), self.size, self.from_data, device)

    def extra_repr(self) -> str:
        base: str = super().extra_repr()
        return f"{base}, {self.chosen_method}" if base else self.chosen_method


class ValidConv2d(EitherMethod, nn.Conv2d):
    """`nn.Conv2d` of stride 1 without padding, computed by either method.

    Args:
        cin, cout: Channels.
        ksize: Side of the kernel.
        bias: Whether it has one.
        size: (H, W) of the maps that it is made for.
        from_data: Whether the maps are data.
        dtype, device: Of the parameters.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        ksize: int,
        bias: bool = True,
        size: tuple[int, int] | None = None,
        from_data: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(cin, cout, ksize, bias=bias, dtype=dtype, device=device)
        self.size = size
        self.from_data = from_data

    def macs(self, size: tuple[int, int]) -> int:
        height, width = (
            n - side + 1 for n, side in zip(size, self.kernel_size, strict=True)
        )
        return self.in_channels * self.weight[0, 0].numel() * height * width

    def chans(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels

    def forward(self, x: Tensor | Spectrum) -> Tensor:
        """Convolve x (B, cin, H, W), or its spectrum, to (B, cout, H', W')."""
        if self.chosen_method == "fourier":
            return fourier_conv2d(x, self.weight, self.bias)
        assert isinstance(x, Tensor)
        return F.conv2d(x, self.weight, self.bias)


def set_method(model: nn.Module, method: str) -> None:
    """Give all layers that have the choice the value of the key `conv_method`."""
    for module in model.modules():
        if isinstance(module, EitherMethod):
            module.method = method


def chosen_methods(model: nn.Module) -> dict[str, Method]:
    """The method of each layer that has the choice, by its name."""
    return {
        name: module.chosen_method
        for name, module in model.named_modules()
        if isinstance(module, EitherMethod)
    }
