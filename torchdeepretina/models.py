"""Models of the retina: every public class here is a `model_type`.

Input (B, C, H, W): C normalised frames of history, oldest first. Output (B, U): z, of
which `link` makes rates. Hidden blocks are `layers.0`, `layers.1`, ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import (
    AbsBatchNorm1d,
    AbsBatchNorm2d,
    FlatBatchNorm,
    GaussianNoise,
    GrabUnits,
    LinearStackedConv2d,
    valid_map,
)

NORM_EPS = 1e-3


class _RetinaModel(nn.Module):
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


class _HiddenBlock(nn.Module):
    """conv → batch norm → noise → ReLU."""

    def __init__(self, conv: nn.Module, norm: nn.Module | None, noise: float) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm if norm is not None else nn.Identity()
        self.noise = GaussianNoise(noise)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.noise(self.norm(self.conv(x)))
        return y.relu()


def _hidden_blocks(
    img_shape: Sequence[int],
    chans: Sequence[int],
    ksizes: Sequence[int],
    conv: Callable[[int, int, int], nn.Module],
    norm: Callable[[int, int, int], nn.Module | None],
    noise: float,
) -> tuple[nn.ModuleList, tuple[int, int, int]]:
    """The hidden layers and the shape of the last map."""
    shape = (img_shape[0], img_shape[1], img_shape[2])
    blocks = nn.ModuleList()
    for i, (n_chans, ksize) in enumerate(zip(chans, ksizes, strict=False)):
        height, width = _checked_map(f"layers.{i}", shape, ksize)
        block = _HiddenBlock(
            conv(shape[0], n_chans, ksize), norm(n_chans, height, width), noise
        )
        blocks.append(block)
        shape = (n_chans, height, width)
    return blocks, shape


def _checked_map(
    layer: str, shape: tuple[int, int, int], ksize: int
) -> tuple[int, int]:
    height, width = valid_map(shape[1:], ksize)
    if min(height, width) < 1:
        raise ConfigError(
            f"ksizes: {layer} has a kernel of {ksize}×{ksize} on a map of "
            f"{shape[1]}×{shape[2]}; use smaller kernels or fewer layers"
        )
    return height, width


class VaryModel(_RetinaModel):
    """Convolutional model with any number of layers (stacked convolutions).

    Args:
        img_shape: (C, H, W) of one sample.
        n_units: Number of cells.
        n_layers: Layers with the ganglion layer, one more than `chans`.
        chans: Channels of the hidden layers.
        ksizes: Kernel sides; the last one is the ganglion layer's, with convgc.
        bnorm: Batch norm after every linear map.
        bnorm_d: 1, per unit, or 2, per channel, in hidden layers.
        bn_moment: Share of the batch in the running statistics.
        bias: Biases of the hidden convolutions.
        gc_bias: Bias of the ganglion layer.
        softplus: Softplus on the output.
        output_scale: See `_RetinaModel`.
        noise: Standard deviation before each hidden ReLU, in training.
        stackconvs: Hidden convolutions as linear stacks of 3×3.
        drop_p: Dropout inside the stacks.
        convgc: Ganglion layer is a convolution read at each cell's centre.
        lossfxn: Name of the loss.
        log_poisson: Whether z is a log rate.
        centers: Row and column of each cell; needed with convgc.

    Raises:
        ConfigError: If a kernel does not fit its map, or centres are missing.
    """

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        n_layers: int,
        chans: Sequence[int],
        ksizes: Sequence[int],
        bnorm: bool,
        bnorm_d: int,
        bn_moment: float,
        bias: bool,
        gc_bias: bool,
        softplus: bool,
        output_scale: str,
        noise: float,
        stackconvs: bool,
        drop_p: float,
        convgc: bool,
        lossfxn: str,
        log_poisson: bool,
        centers: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(n_units, softplus, output_scale, lossfxn, log_poisson)
        if n_layers != len(chans) + 1:
            raise ConfigError(
                f"n_layers: {n_layers} for {len(chans)} hidden layers in chans"
            )

        def conv(cin: int, cout: int, ksize: int) -> nn.Module:
            if stackconvs:
                return LinearStackedConv2d(cin, cout, ksize, bias=bias, drop_p=drop_p)
            return nn.Conv2d(cin, cout, ksize, bias=bias)

        def norm(channels: int, height: int, width: int) -> nn.Module | None:
            if not bnorm:
                return None
            if bnorm_d == 2:
                return AbsBatchNorm2d(channels, NORM_EPS, bn_moment)
            features = channels * height * width
            return FlatBatchNorm(AbsBatchNorm1d(features, NORM_EPS, bn_moment))

        self.layers, shape = _hidden_blocks(img_shape, chans, ksizes, conv, norm, noise)
        if convgc:
            _checked_map("the ganglion layer", shape, ksizes[n_layers - 1])
            self.ganglion: nn.Module = _convolutional_ganglion(
                shape[0], n_units, ksizes[:n_layers], gc_bias, centers, img_shape
            )
        else:
            features = shape[0] * shape[1] * shape[2]
            self.ganglion = nn.Sequential(
                nn.Flatten(), nn.Linear(features, n_units, bias=gc_bias)
            )
        self.norm: nn.Module = (
            AbsBatchNorm1d(n_units, NORM_EPS, bn_moment) if bnorm else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return z (B, U) for windows x (B, C, H, W)."""
        for block in self.layers:
            x = block(x)
        return self.activation(self.norm(self.ganglion(x)))


def _convolutional_ganglion(
    cin: int,
    n_units: int,
    ksizes: Sequence[int],
    bias: bool,
    centers: Sequence[tuple[int, int]] | None,
    img_shape: Sequence[int],
) -> nn.Module:
    if centers is None:
        raise ConfigError(
            "convgc: the data hold no centres of the cells; add /centers to the "
            "recording or use convgc false"
        )
    return nn.Sequential(
        nn.Conv2d(cin, n_units, ksizes[-1], bias=bias),
        GrabUnits(centers, ksizes, img_shape),
    )
