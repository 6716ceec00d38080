"""Models of the retina: every public class here is a `model_type`.

Input (B, C, H, W): C normalised frames of history, oldest first. Output (B, U): z, of
which `link` makes rates. Hidden blocks are `layers.0`, `layers.1`, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import (
    AbsBatchNorm1d,
    AbsBatchNorm2d,
    GrabUnits,
    OneHot,
    ParametricSoftplus,
    Spectrum,
)
from torchdeepretina.blocks import (
    NORM_EPS,
    HiddenLayers,
    Norms,
    RetinaModel,
    check_n_hidden,
    check_n_layers,
    flat_linear,
    ganglion_map,
    grab_units,
)


class _GanglionModel(RetinaModel):
    """Hidden blocks and a ganglion layer, dense or read from a map.

    Args: as of `VaryModel`, without n_layers.
    """

    n_hidden: ClassVar[int | None] = None
    must_stack: ClassVar[bool] = False
    norms: ClassVar[Norms] = (AbsBatchNorm1d, AbsBatchNorm2d)
    grab: GrabUnits | None

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
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
        check_n_hidden(self, self.n_hidden, chans)
        if self.must_stack and not stackconvs:
            name = type(self).__name__
            raise ConfigError(f"stackconvs: {name} is stacked; BNCNN is not")
        self.layers = HiddenLayers(
            img_shape,
            chans,
            ksizes,
            bias,
            noise,
            bnorm,
            bnorm_d,
            bn_moment,
            stackconvs,
            drop_p,
            self.norms,
        )
        shape = self.layers.map_shape
        self.ganglion: nn.Module
        if convgc:
            self.ganglion, _ = ganglion_map(shape, n_units, ksizes, len(chans), gc_bias)
            self.grab = grab_units(centers, ksizes, img_shape)
        else:
            self.ganglion = flat_linear(shape, n_units, gc_bias)
            self.grab = None
        self.norm: nn.Module = (
            self.norms[0](n_units, NORM_EPS, bn_moment) if bnorm else nn.Identity()
        )

    def forward(self, x: Tensor | Spectrum) -> Tensor:
        """Return z (B, U) for windows x (B, C, H, W), or their spectrum."""
        hidden = self.layers(x)
        if self.grab is None:
            raw = self.ganglion(hidden)
        else:
            raw = self.grab.convolved(hidden, cast(nn.Conv2d, self.ganglion))
        return self.activation(self.norm(raw))

    def tiled_forward(self, x: Tensor | Spectrum) -> Tensor:
        """z of every unit at every position, (B, U, H', W'); needs convgc."""
        if self.grab is None:
            return super().tiled_forward(x)
        raw: Tensor = self.ganglion(self.layers(x))
        return self.activation(self.norm(raw.flatten(2)).view_as(raw))


class BNCNN(_GanglionModel):
    """Two hidden layers and a ganglion layer, with ordinary batch norm.

    Source: Maheswaranathan et al. 2023, Neuron 111 (17); its `bn_cnn`.

    Args: as of `VaryModel`, without n_layers; two `chans`.
    """

    n_hidden = 2
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)


class LinearStackedBNCNN(_GanglionModel):
    """BNCNN with stacked convolutions and norms whose scale keeps its sign.

    Source: Maheswaranathan et al. 2023, Neuron 111 (17).

    Args: as of `VaryModel`, without n_layers; two `chans`, `stackconvs` true.
    """

    n_hidden = 2
    must_stack = True


class VaryModel(_GanglionModel):
    """Hidden layers of any number and a ganglion layer; stacked unless told otherwise.

    Source: Maheswaranathan et al. 2023, Neuron 111 (17).

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
        output_scale: `std`: rates are multiplied by the buffer of that name.
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
        check_n_layers(n_layers, chans)
        super().__init__(
            img_shape,
            n_units,
            chans,
            ksizes,
            bnorm,
            bnorm_d,
            bn_moment,
            bias,
            gc_bias,
            softplus,
            output_scale,
            noise,
            stackconvs,
            drop_p,
            convgc,
            lossfxn,
            log_poisson,
            centers,
        )


class RetinotopicModel(RetinaModel):
    """Hidden layers as `VaryModel`, and a map of every cell, read by one-hot weights.

    Source: Maheswaranathan et al. 2023, Neuron 111 (17), with the semantic loss of
    Xu et al. 2018, ICML.

    Args: as of `VaryModel`, without convgc and centers; the ganglion layer is a
        convolution with the last of `ksizes`, whose softplus acts on the map; and
        rand_onehot: One-hot weights start at random in (0, 1), else equal.
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
        rand_onehot: bool,
        lossfxn: str,
        log_poisson: bool,
    ) -> None:
        super().__init__(n_units, softplus, output_scale, lossfxn, log_poisson)
        check_n_layers(n_layers, chans)
        self.layers = HiddenLayers(
            img_shape,
            chans,
            ksizes,
            bias,
            noise,
            bnorm,
            bnorm_d,
            bn_moment,
            stackconvs,
            drop_p,
        )
        shape = self.layers.map_shape
        self.ganglion, size = ganglion_map(shape, n_units, ksizes, len(chans), gc_bias)
        self.norm: nn.Module = (
            AbsBatchNorm2d(n_units, NORM_EPS, bn_moment) if bnorm else nn.Identity()
        )
        self.onehot = OneHot(n_units, *size, rand_onehot)

    def forward(self, x: Tensor | Spectrum) -> Tensor:
        """Return z (B, U) for windows x (B, C, H, W), or their spectrum."""
        z: Tensor = self.onehot(self.tiled_forward(x))
        return z

    def tiled_forward(self, x: Tensor | Spectrum) -> Tensor:
        """z of every unit at every position, (B, U, H', W')."""
        return self.activation(self.norm(self.ganglion(self.layers(x))))


class LN(RetinaModel):
    """Linear-nonlinear model: one linear filter for each cell, then softplus.

    Source: Chichilnisky 2001, Network 12.

    Args: as of `VaryModel`.
    """

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        gc_bias: bool,
        softplus: bool,
        output_scale: str,
        lossfxn: str,
        log_poisson: bool,
    ) -> None:
        super().__init__(n_units, softplus, output_scale, lossfxn, log_poisson)
        shape = (img_shape[0], img_shape[1], img_shape[2])
        self.ganglion = flat_linear(shape, n_units, gc_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return z (B, U) for windows x (B, C, H, W)."""
        return self.activation(self.ganglion(x))


class McIntosh2016(RetinaModel):
    """Two hidden layers, dense ganglion layer, parametric softplus; no batch norm.

    Source: McIntosh et al. 2016, NeurIPS 29.

    Args: as of `VaryModel`; two `chans`.
    """

    INIT_STD = 0.05

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        chans: Sequence[int],
        ksizes: Sequence[int],
        bias: bool,
        gc_bias: bool,
        output_scale: str,
        noise: float,
        lossfxn: str,
        log_poisson: bool,
    ) -> None:
        super().__init__(n_units, True, output_scale, lossfxn, log_poisson)
        check_n_hidden(self, 2, chans)
        self.layers = HiddenLayers(img_shape, chans, ksizes, bias, noise)
        self.ganglion = flat_linear(self.layers.map_shape, n_units, gc_bias)
        self.nonlinearity = ParametricSoftplus(n_units)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, 0.0, self.INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def activation(self, raw: Tensor) -> Tensor:
        """The parametric softplus of each cell."""
        z: Tensor = self.nonlinearity(raw)
        return z

    def forward(self, x: Tensor | Spectrum) -> Tensor:
        """Return z (B, U) for windows x (B, C, H, W), or their spectrum."""
        return self.activation(self.ganglion(self.layers(x)))
