"""The model of the stub library: next to nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class Stub(nn.Module):
    """Logits linear in the pixels.

    Args:
        img_shape: (C, H, W) of an image.
        n_units: Number of classes.
    """

    def __init__(self, img_shape: Sequence[int], n_units: int) -> None:
        super().__init__()
        self.logits = nn.Linear(math.prod(img_shape), n_units)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, U) of images x (B, C, H, W)."""
        logits: Tensor = self.logits(x.flatten(1))
        return logits
