"""Losses of predictions; each is a mean over samples and units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridrun import plugin_files
from gridrun.config.keys import class_name
from gridrun.errors import ConfigError

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
    classes = torch.arange(logits.shape[1], device=labels.device)
    one_hot = (labels[:, None] == classes).to(logits.dtype)
    if name == "MSELoss":
        return mean_squared_error(logits, one_hot)
    return poisson_nll(logits, one_hot, log_rate=True)


def is_of_torch(name: str) -> bool:
    """Whether torch.nn has a loss of that name."""
    return name.endswith("Loss") and hasattr(nn, name)


def make_loss(entry: Any, plugins: str | None) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of predictions and targets: of torch.nn, or a plug-in.

    Args:
        entry: Name or `{"class", "args"}`.
        plugins: Folder of the plug-ins.

    Raises:
        ConfigError: If there is none, or it refuses the arguments.
    """
    name = class_name(entry)
    if not is_of_torch(name):
        made: Callable[[Tensor, Tensor], Tensor] = plugin_files.make(
            "lossfxn", entry, plugins, filter(is_of_torch, vars(nn))
        )
        if isinstance(made, nn.Module) and any(True for _ in made.parameters()):
            text = f"{name} has parameters, which nothing trains"
            raise ConfigError(f"lossfxn: {text}; make them part of the model")
        return made
    plugin_files.refuse_clash("lossfxn", name, plugins)
    args = plugin_files.args_of("lossfxn", entry)
    loss: Callable[[Tensor, Tensor], Tensor] = plugin_files.construct(
        "lossfxn", getattr(nn, name), args
    )
    return loss


def is_finite(loss: Tensor) -> bool:
    """Whether a scalar loss is neither NaN nor infinite."""
    return bool(torch.isfinite(loss.detach()).item())
