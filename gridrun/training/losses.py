"""Losses of predictions; each is a mean over samples and units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RATE_FLOOR = 1e-8


def poisson_nll(prediction: Tensor, target: Tensor, *, log_rate: bool) -> Tensor:
    """Poisson negative log likelihood without the term that only targets enter.

    Args:
        prediction: (B, U) rates ≥ 0, or log rates.
        target: (B, U), in the unit of the rates.
        log_rate: Whether `prediction` is a log rate.

    Returns:
        Scalar mean of rate − target · ln rate.
    """
    if log_rate:
        return (prediction.exp() - target * prediction).mean()
    return (prediction - target * (prediction + RATE_FLOOR).log()).mean()


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Scalar mean of (prediction − target)², both (B, U)."""
    return (prediction - target).square().mean()


def l1_of_outputs(z: Tensor) -> Tensor:
    """Batch mean of the sum over units of |z|, for z (B, U)."""
    return z.abs().sum(1).mean()


def class_loss(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of logits (B, U) against labels (B,), by name of the loss.

    MSELoss compares with one-hot targets; PoissonNLLLoss takes logits as log rates of
    one-hot counts.
    """
    if name == "CrossEntropyLoss":
        return F.cross_entropy(logits, labels)
    one_hot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    if name == "MSELoss":
        return mean_squared_error(logits, one_hot)
    return poisson_nll(logits, one_hot, log_rate=True)


def is_finite(loss: Tensor) -> bool:
    """Whether a scalar loss is neither NaN nor infinite."""
    return bool(torch.isfinite(loss.detach()).item())
