"""Activation functions with parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ParametricSoftplus(nn.Module):
    """|a|·softplus(b·x) with a and b of each unit's own.

    McIntosh et al. (2016), "Deep learning models of the retinal response to natural
    scenes".

    Args:
        n_units: Size of the last dimension.
    """

    def __init__(self, n_units: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((n_units,), 0.2))
        self.b = nn.Parameter(torch.full((n_units,), 5.0))

    def forward(self, x: Tensor) -> Tensor:
        """Values ≥ 0 for x (..., n_units), same shape."""
        return self.a.abs() * F.softplus(self.b * x)
