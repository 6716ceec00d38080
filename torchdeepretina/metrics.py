"""What is measured of predicted firing rates."""

from __future__ import annotations

import torch
from torch import Tensor


def pearson_per_cell(rates: Tensor, targets: Tensor) -> Tensor:
    """Pearson correlation over time of each cell, in float64.

    Args:
        rates: (N, U) predictions.
        targets: (N, U) recorded responses.

    Returns:
        (U,) in [-1, 1]; 0 where either is constant.
    """
    x = rates.double() - rates.double().mean(0)
    y = targets.double() - targets.double().mean(0)
    scale = (x.square().sum(0) * y.square().sum(0)).sqrt()
    is_constant = (rates == rates[0]).all(0) | (targets == targets[0]).all(0)
    is_constant |= scale == 0
    r = (x * y).sum(0) / torch.where(is_constant, torch.ones_like(scale), scale)
    return torch.where(is_constant, torch.zeros_like(r), r).clamp(-1, 1)
