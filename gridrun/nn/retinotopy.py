"""Layers that read a map of units at places."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gridrun.errors import ConfigError

logger = logging.getLogger(__name__)


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
        field = 1 + sum(side - 1 for side in ksizes)
        places = []
        for unit, center in enumerate(centers):
            place = []
            for at, size in zip(center, img_shape[1:], strict=True):
                if not 0 <= at < size:
                    raise ConfigError(
                        f"centers: unit {unit} at {tuple(center)} lies outside the "
                        f"image of {img_shape[1]}×{img_shape[2]} pixels"
                    )
                exact = at - (field - 1) // 2
                place.append(min(max(exact, 0), size - field))
                if place[-1] != exact:
                    logger.info(
                        "unit %d: no receptive field is centred on %s; the nearest "
                        "is read",
                        unit,
                        tuple(center),
                    )
            places.append(place)
        rows, columns = torch.tensor(places, dtype=torch.long).T
        self.register_buffer("rows", rows.contiguous(), persistent=False)
        self.register_buffer("columns", columns.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Read (B, U, H, W) at the units' places: (B, U)."""
        units = torch.arange(x.shape[1], device=x.device)
        return x[:, units, self.rows, self.columns]
