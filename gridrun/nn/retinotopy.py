"""Layers that read a map of units at places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridrun.errors import ConfigError


def central_place(center: int, size: int, field: int) -> tuple[int, bool]:
    """The output index whose receptive field is centred on a pixel.

    Args:
        center: Pixel along one axis, from 0.
        size: Pixels of the image along it.
        field: Side of the receptive field of the map's units.

    Returns:
        The index, or the nearest at the border; and whether it is exact.
    """
    exact = center - (field - 1) // 2
    place = min(max(exact, 0), size - field)
    return place, place == exact


def field_side(ksizes: Sequence[int]) -> int:
    """Side of the receptive field of valid, stride 1 convolutions."""
    return 1 + sum(side - 1 for side in ksizes)


class GrabUnits(nn.Module):
    """Reads channel u of a map at the place of unit u.

    The place is the output position whose receptive field is centred on the unit's
    centre, or the nearest one at the border.

    Args:
        centers: Row and column of each unit in the image, pixels from 0.
        ksizes: Kernel sides of the valid, stride 1 convolutions below the map.
        img_shape: (C, H, W) of the image.

    Raises:
        ConfigError: If a centre lies outside the image.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        centers: Sequence[tuple[int, int]],
        ksizes: Sequence[int],
        img_shape: Sequence[int],
    ) -> None:
        super().__init__()
        field = field_side(ksizes)
        places = []
        for unit, center in enumerate(centers):
            for at, size in zip(center, img_shape[1:], strict=True):
                if not 0 <= at < size:
                    raise ConfigError(
                        f"centers: unit {unit} at {tuple(center)} lies outside the "
                        f"image of {img_shape[1]}×{img_shape[2]} pixels"
                    )
            places.append(
                [
                    central_place(at, size, field)[0]
                    for at, size in zip(center, img_shape[1:], strict=True)
                ]
            )
        rows, columns = torch.tensor(places, dtype=torch.long).T
        self.register_buffer("rows", rows.contiguous(), persistent=False)
        self.register_buffer("columns", columns.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Read (B, U, H, W) at the units' places: (B, U)."""
        units = torch.arange(x.shape[1], device=x.device)
        return x[:, units, self.rows, self.columns]

    def convolved(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """The same of `conv(x)`, without the map's other places.

        Each unit's kernel is laid at its place in a map of zeros: one matrix product.

        Args:
            x: (B, C, H, W).
            conv: Stride 1, no padding, U outputs.
        """
        n_units, n_chans, side, _ = conv.weight.shape
        width = x.shape[-1]
        steps = torch.arange(side, device=x.device)
        rows = self.rows[:, None, None] + steps[:, None]
        places = (rows * width + self.columns[:, None, None] + steps).flatten(1)
        laid = conv.weight.new_zeros(n_units, n_chans, x[0, 0].numel()).scatter(
            2, places[:, None].expand(-1, n_chans, -1), conv.weight.flatten(2)
        )
        return F.linear(x.flatten(1), laid.flatten(1), conv.bias)


class OneHot(nn.Module):
    """Each unit's mean over its map, by learned probabilities of the positions.

    With the semantic loss they become one-hot: the unit's place.

    Args:
        n_units: Channels of the map.
        height, width: Sides of the map.
        rand_onehot: Weights uniform in (0, 1), else all equal.
    """

    def __init__(self, n_units: int, height: int, width: int, rand_onehot: bool):
        super().__init__()
        self.shape = (height, width)
        n_places = height * width
        weight = torch.full((n_units, n_places), 1 / n_places)
        self.weight = nn.Parameter(torch.rand_like(weight) if rand_onehot else weight)

    def probabilities(self) -> Tensor:
        """Probability of each position, (U, H·W); rows sum to 1."""
        sizes = self.weight.abs() + 1e-7
        return sizes / sizes.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """Means of (B, U, H, W) over positions: (B, U)."""
        return (x.flatten(2) * self.probabilities()).sum(-1)


def semantic_loss(probabilities: Tensor) -> Tensor:
    """How far each row is from exactly one true position, summed over rows.

    -ln Σ_i p_i Π_{j≠i} (1 - p_j). Xu et al. (2018), "A semantic loss function for
    deep learning with symbolic knowledge".

    Args:
        probabilities: (U, L), in [0, 1].
    """
    p = probabilities.clamp(1e-12, 1 - 1e-6)
    none_true = torch.log1p(-p)
    log_odds = p.log() - none_true
    return -(none_true.sum(1) + log_odds.logsumexp(1)).sum()
