"""Batch normalisation of the retina models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class AbsBatchNorm1d(nn.BatchNorm1d):
    """Batch norm of (B, N) whose scale is |weight|, so that signs are kept."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, same shape."""
        return _abs_batch_norm(self, x)


class AbsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of (B, C, H, W), per channel, whose scale is |weight|."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, same shape."""
        return _abs_batch_norm(self, x)


def _abs_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    norm._check_input_dim(x)
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    if norm.training:
        norm.num_batches_tracked.add_(1)
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight.abs(),
        norm.bias,
        norm.training,
        norm.momentum,
        norm.eps,
    )


class FlatBatchNorm(nn.Module):
    """One-dimensional batch norm of every unit of a (C, H, W) map.

    Args:
        norm: A batch norm over C·H·W features.
    """

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W), same shape."""
        normalised: Tensor = self.norm(x.flatten(1))
        return normalised.view_as(x)
