"""The parts of retina models: output rule, hidden layers, ganglion layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import (
    AbsBatchNorm1d,
    AbsBatchNorm2d,
    EitherMethod,
    FlatBatchNorm,
    GaussianNoise,
    GrabUnits,
    LinearStackedConv2d,
    Spectrum,
    ValidConv2d,
    valid_map,
)

NORM_EPS = 1e-3


class RetinaModel(nn.Module):
    """The output rule of all retina models.

    Args:
        n_units: Number of cells U.
        softplus: Whether z = softplus(raw).
        output_scale: `std`: rates are multiplied by the buffer of the same name.
        lossfxn: Name of the loss.
        log_poisson: Whether z is a log rate; with PoissonNLLLoss only.
    """

    output_scale: Tensor

    def __init__(
        self,
        n_units: int,
        softplus: bool,
        output_scale: str,
        lossfxn: str,
        log_poisson: bool,
    ) -> None:
        super().__init__()
        self.softplus = softplus
        self.scales_output = output_scale == "std"
        self.is_log_rate = lossfxn == "PoissonNLLLoss" and log_poisson
        self.register_buffer("output_scale", torch.ones(n_units))

    @property
    def takes_spectrum(self) -> bool:
        """Whether `forward` can start from the transform of its input."""
        layers = getattr(self, "layers", None)
        return isinstance(layers, HiddenLayers) and layers.takes_spectrum

    def activation(self, raw: Tensor) -> Tensor:
        """The model's z of its last linear map."""
        return F.softplus(raw) if self.softplus else raw

    def scaled(self, z: Tensor) -> Tensor:
        """What the loss is computed on: rates, or log rates; (B, U)."""
        if self.is_log_rate:
            return z + self.output_scale.log()
        return z * self.output_scale

    def link(self, z: Tensor) -> Tensor:
        """Rates in the unit of the targets, (B, U)."""
        scaled = self.scaled(z)
        return scaled.exp() if self.is_log_rate else scaled

    def tiled_forward(self, x: Tensor | Spectrum) -> Tensor:
        """z of every unit at every position, (B, U, H', W').

        Raises:
            ConfigError: If the units of this model have no map.
        """
        raise ConfigError(
            f"tiled_forward: {type(self).__name__} has one output per cell here, no "
            "map; it needs convgc true or a RetinotopicModel"
        )


class HiddenBlock(nn.Module):
    """conv → batch norm → noise → ReLU → mask.

    Args:
        conv: Convolution or stack with `n_chans` outputs.
        norm: Batch norm, or None.
        noise: Standard deviation.
        n_chans: Channels; `mask` (C,) is 1, or 0 for pruned ones.
    """

    mask: Tensor

    def __init__(
        self, conv: nn.Module, norm: nn.Module | None, noise: float, n_chans: int
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm if norm is not None else nn.Identity()
        self.noise = GaussianNoise(noise)
        self.n_chans = n_chans
        self.register_buffer("mask", torch.ones(n_chans))

    def close(self, channel: int) -> None:
        """Let a channel emit 0 from here on."""
        self.mask[channel] = 0.0

    def forward(self, x: Tensor | Spectrum) -> Tensor:
        y: Tensor = self.noise(self.norm(self.conv(x)))
        return y.relu() * self.mask[:, None, None]


Norms = tuple[type[nn.BatchNorm1d], type[nn.BatchNorm2d]]


class HiddenLayers(nn.Sequential):
    """Hidden blocks one after the other, each conv → batch norm → noise → ReLU.

    Args: as of `VaryModel`, and
        norms: Classes of batch norm, per unit and per channel.
    """

    map_shape: tuple[int, int, int]

    def __init__(
        self,
        img_shape: Sequence[int],
        chans: Sequence[int],
        ksizes: Sequence[int],
        bias: bool,
        noise: float,
        bnorm: bool = False,
        bnorm_d: int = 1,
        bn_moment: float = 0.0,
        stackconvs: bool = False,
        drop_p: float = 0.0,
        norms: Norms = (AbsBatchNorm1d, AbsBatchNorm2d),
    ) -> None:
        super().__init__()
        norm1d, norm2d = norms
        if len(ksizes) not in (len(chans), len(chans) + 1):
            raise ConfigError(
                f"ksizes: {len(ksizes)} kernel sizes for {len(chans)} hidden layers"
            )
        shape = (img_shape[0], img_shape[1], img_shape[2])
        for i, (cout, ksize) in enumerate(zip(chans, ksizes, strict=False)):
            height, width = checked_map(f"layers.{i}", shape, ksize)
            conv: EitherMethod
            place: Any = {"bias": bias, "size": shape[1:], "from_data": i == 0}
            if stackconvs:
                conv = LinearStackedConv2d(
                    shape[0], cout, ksize, drop_p=drop_p, **place
                )
            else:
                conv = ValidConv2d(shape[0], cout, ksize, **place)
            norm: nn.Module | None = None
            if bnorm and bnorm_d == 2:
                norm = norm2d(cout, NORM_EPS, bn_moment)
            elif bnorm:
                norm = FlatBatchNorm(norm1d(cout * height * width, NORM_EPS, bn_moment))
            self.append(HiddenBlock(conv, norm, noise, cout))
            shape = (cout, height, width)
        self.map_shape = shape

    @property
    def takes_spectrum(self) -> bool:
        """Whether the first block can start from its input's transform."""
        first = self[0].conv if len(self) else None
        return isinstance(first, EitherMethod) and first.chosen_method == "fourier"


def checked_map(layer: str, shape: tuple[int, int, int], ksize: int) -> tuple[int, int]:
    height, width = valid_map(shape[1:], ksize)
    if min(height, width) < 1:
        raise ConfigError(
            f"ksizes: {layer} has a kernel of {ksize}×{ksize} on a map of "
            f"{shape[1]}×{shape[2]}; use smaller kernels or fewer layers"
        )
    return height, width


def ganglion_map(
    map_shape: tuple[int, int, int],
    n_units: int,
    ksizes: Sequence[int],
    n_hidden: int,
    bias: bool,
) -> tuple[ValidConv2d, tuple[int, int]]:
    """The ganglion layer as a convolution, and the size of its map."""
    if len(ksizes) != n_hidden + 1:
        raise ConfigError(
            f"ksizes: {len(ksizes)} kernel sizes for {n_hidden} hidden layers and the "
            "ganglion layer"
        )
    size = checked_map("the ganglion layer", map_shape, ksizes[-1])
    maps = (map_shape[1], map_shape[2])
    return ValidConv2d(map_shape[0], n_units, ksizes[-1], bias, maps), size


def flat_linear(
    map_shape: tuple[int, int, int], n_units: int, bias: bool
) -> nn.Sequential:
    features = map_shape[0] * map_shape[1] * map_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(features, n_units, bias=bias))


def grab_units(
    centers: Sequence[tuple[int, int]] | None,
    ksizes: Sequence[int],
    img_shape: Sequence[int],
) -> GrabUnits:
    if centers is None:
        raise ConfigError(
            "convgc: the data hold no centres of the cells; add /centers to the "
            "recording or use convgc false"
        )
    return GrabUnits(centers, ksizes, img_shape)


def check_n_layers(n_layers: int, chans: Sequence[int]) -> None:
    if n_layers != len(chans) + 1:
        raise ConfigError(
            f"n_layers: {n_layers} for {len(chans)} hidden layers in chans"
        )


def check_n_hidden(
    model: nn.Module, n_hidden: int | None, chans: Sequence[int]
) -> None:
    if n_hidden not in (None, len(chans)):
        raise ConfigError(
            f"chans: {type(model).__name__} has {n_hidden} hidden layers, got "
            f"{len(chans)}; VaryModel has any number"
        )
