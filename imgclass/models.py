"""Image classifiers: every public class here is a `model_type`.

Input (B, C, H, W), normalised. Output (B, U): logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import Dropout, LinearStackedConv2d, ShakeShake, valid_map


class _Conv(NamedTuple):
    """One convolution of a plain network."""

    chans: int
    ksize: int = 3
    stride: int = 1
    padding: int = 1


def channels_last(x: Tensor) -> Tensor:
    """The same images, on a CPU with channels innermost: convolutions are 1.2× faster.

    The layers keep the order of their input.
    """
    if x.device.type != "cpu":
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _convolution(cin: int, conv: _Conv, stacked: bool, n_shakes: int) -> nn.Module:
    """A convolution, or a stack, or a Shake-Shake mean of such."""

    def make() -> nn.Module:
        kind = LinearStackedConv2d if stacked and conv.ksize > 3 else nn.Conv2d
        return kind(
            cin, conv.chans, conv.ksize, stride=conv.stride, padding=conv.padding
        )

    return make() if n_shakes == 1 else ShakeShake(make, n_shakes)


def _block(
    cin: int,
    conv: _Conv,
    bnorm: bool,
    bn_moment: float,
    n_shakes: int,
    stacked: bool = False,
) -> nn.Sequential:
    """conv → batch norm → ReLU."""
    layers = [_convolution(cin, conv, stacked, n_shakes)]
    if bnorm:
        layers.append(nn.BatchNorm2d(conv.chans, momentum=bn_moment))
    layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _checked_map(
    name: str, index: int, side: tuple[int, int], conv: _Conv
) -> tuple[int, int]:
    height, width = valid_map(side, conv.ksize, conv.stride, conv.padding)
    if min(height, width) < 1:
        raise ConfigError(
            f"img_shape: {name}'s convolution {index} has a kernel of "
            f"{conv.ksize}×{conv.ksize} on a map of {side[0]}×{side[1]} (padding "
            f"{conv.padding}); use larger images or smaller kernels"
        )
    return height, width


class _PlainNetwork(nn.Module):
    """Convolution blocks, global average pool, linear."""

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        convs: Sequence[_Conv],
        width: int | None,
        bnorm: bool,
        bn_moment: float,
        n_shakes: int,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        cin, side = img_shape[0], (img_shape[1], img_shape[2])
        for i, conv in enumerate(convs):
            conv = conv._replace(chans=width or conv.chans)
            side = _checked_map(type(self).__name__, i, side, conv)
            blocks.append(_block(cin, conv, bnorm, bn_moment, n_shakes))
            cin = conv.chans
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.logits = nn.Linear(cin, n_units)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, U) of images x (B, C, H, W)."""
        pooled: Tensor = self.pool(self.blocks(channels_last(x)))
        logits: Tensor = self.logits(pooled.flatten(1))
        return logits


class Tiny10(_PlainNetwork):
    """Tiny-10: eight small convolutions.

    Source: Kornblith et al. 2019, ICML, Table E.1.

    Args:
        img_shape: (C, H, W); sides ≥ 9.
        n_units: Number of classes.
        width: Channels of every convolution; None: 16 to 64 as published.
        bnorm: Batch norm after every convolution.
        bn_moment: Share of the batch in the running statistics.
        n_shakes: Shake-Shake branches of every convolution.
    """

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        width: int | None,
        bnorm: bool,
        bn_moment: float,
        n_shakes: int,
    ) -> None:
        convs = [_Conv(16), _Conv(16), _Conv(32, stride=2), _Conv(32), _Conv(32)]
        convs += [_Conv(64, stride=2), _Conv(64, padding=0), _Conv(64, 1, padding=0)]
        super().__init__(img_shape, n_units, convs, width, bnorm, bn_moment, n_shakes)


class PlainN(_PlainNetwork):
    """Plain-(8n+2): 8n convolutions without short cuts.

    Source: Kornblith et al. 2019, ICML, Table E.2.

    Args:
        img_shape: (C, H, W); sides ≥ 9.
        n_units: Number of classes.
        plain_n: n, ≥ 1.
        width: Channels of every convolution; None: 96 and 192 as published.
        bnorm: Batch norm after every convolution.
        bn_moment: Share of the batch in the running statistics.
        n_shakes: Shake-Shake branches of every convolution.
    """

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        plain_n: int,
        width: int | None,
        bnorm: bool,
        bn_moment: float,
        n_shakes: int,
    ) -> None:
        n = plain_n
        convs = [_Conv(96)] * (3 * n - 1) + [_Conv(96, stride=2)]
        convs += [_Conv(192)] * (3 * n - 1) + [_Conv(192, stride=2)]
        convs += [_Conv(192)] * (n - 1) + [_Conv(192, padding=0)]
        convs += [_Conv(192, 1, padding=0)] * n
        super().__init__(img_shape, n_units, convs, width, bnorm, bn_moment, n_shakes)


class AlexNet(nn.Module):
    """Five convolutions with pooling, two hidden linear layers, logits.

    Source: Krizhevsky et al. 2012, NeurIPS 25; widths of Krizhevsky 2014,
    arXiv:1404.5997, as in torchvision.

    Args:
        img_shape: (C, H, W); sides ≥ 7.
        n_units: Number of classes.
        mid_dims: Width of the hidden linear layers.
        drop_ps: Dropout before each hidden linear layer.
        stackconvs: Kernels larger than 3 as linear stacks of 3×3.
        locrespnorm: Local response norm after the first two ReLUs.
        bnorm: Batch norm after every convolution and hidden linear layer.
        bn_moment: Share of the batch in the running statistics.
        n_shakes: Shake-Shake branches of every convolution.

    Raises:
        ConfigError: If the image is too small.
    """

    POOLED = 6

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        mid_dims: int,
        drop_ps: Sequence[float],
        stackconvs: bool,
        locrespnorm: bool,
        bnorm: bool,
        bn_moment: float,
        n_shakes: int,
    ) -> None:
        super().__init__()
        if len(drop_ps) != 2:
            raise ConfigError(f"drop_ps: AlexNet has 2 places, got {len(drop_ps)}")
        convs = [_Conv(64, 11, 4, 2), _Conv(192, 5, 1, 2)]
        convs += [_Conv(384), _Conv(256), _Conv(256)]
        layers: list[nn.Module] = []
        cin, side = img_shape[0], (img_shape[1], img_shape[2])
        for i, conv in enumerate(convs):
            side = _checked_map("AlexNet", i, side, conv)
            layers.append(_block(cin, conv, bnorm, bn_moment, n_shakes, stackconvs))
            if locrespnorm and i < 2:
                # the paper's alpha 1e-4; torch divides by the 5 channels
                layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
            if i in (0, 1, 4) and min(side) >= 3:
                layers.append(nn.MaxPool2d(3, 2))
                side = valid_map(side, 3, 2)
            cin = conv.chans
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(self.POOLED)
        n_features = cin * self.POOLED**2
        hidden: list[nn.Module] = []
        for drop_p in drop_ps:
            hidden += [Dropout(drop_p), nn.Linear(n_features, mid_dims)]
            if bnorm:
                hidden.append(nn.BatchNorm1d(mid_dims, momentum=bn_moment))
            hidden.append(nn.ReLU())
            n_features = mid_dims
        self.hidden = nn.Sequential(*hidden)
        self.logits = nn.Linear(n_features, n_units)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, U) of images x (B, C, H, W)."""
        features = self.pool(self.blocks(channels_last(x))).flatten(1)
        logits: Tensor = self.logits(self.hidden(features))
        return logits


class SmallNet(nn.Module):
    """Free convolutions, one hidden linear layer, logits.

    Args:
        img_shape: (C, H, W).
        n_units: Number of classes.
        chans: Channels of each convolution.
        ksizes: Kernel side of each.
        strides: Stride of each.
        paddings: Zero padding of each.
        mid_dims: Width of the hidden linear layer.
        drop_ps: Dropout after each convolution and after the hidden linear layer.
        stackconvs: Kernels larger than 3 as linear stacks of 3×3.
        bnorm: Batch norm after every convolution.
        bn_moment: Share of the batch in the running statistics.
        n_shakes: Shake-Shake branches of every convolution.

    Raises:
        ConfigError: If a kernel does not fit its map.
    """

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        chans: Sequence[int],
        ksizes: Sequence[int],
        strides: Sequence[int],
        paddings: Sequence[int],
        mid_dims: int,
        drop_ps: Sequence[float],
        stackconvs: bool,
        bnorm: bool,
        bn_moment: float,
        n_shakes: int,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        cin, side = img_shape[0], (img_shape[1], img_shape[2])
        lengths = [len(one) for one in (chans, ksizes, strides, paddings, drop_ps[1:])]
        if len(set(lengths)) > 1:
            raise ConfigError(
                f"chans: SmallNet has chans, ksizes, strides, paddings and drop_ps of "
                f"{len(chans)}, {len(ksizes)}, {len(strides)}, {len(paddings)} and "
                f"{len(drop_ps)} values; drop_ps has one more than the others"
            )
        layers = zip(chans, ksizes, strides, paddings, drop_ps[:-1], strict=True)
        for i, (*sizes, drop_p) in enumerate(layers):
            conv = _Conv(*sizes)
            side = _checked_map("SmallNet", i, side, conv)
            block = _block(cin, conv, bnorm, bn_moment, n_shakes, stackconvs)
            blocks += [block, Dropout(drop_p)]
            cin = conv.chans
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(cin * side[0] * side[1], mid_dims)
        self.activation = nn.LeakyReLU(0.01)
        self.dropout = Dropout(drop_ps[-1])
        self.logits = nn.Linear(mid_dims, n_units)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, U) of images x (B, C, H, W)."""
        hidden = self.hidden(self.blocks(channels_last(x)).flatten(1))
        logits: Tensor = self.logits(self.dropout(self.activation(hidden)))
        return logits
