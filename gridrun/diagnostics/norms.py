"""Sizes of weights and of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gridrun.diagnostics.context import Context, Found, Samples


def weight_norms(model: nn.Module, batch: Samples, context: Context) -> Found:
    """L2 norm of each parameter by its name, and of all together (`total`)."""
    return _norms(dict(model.named_parameters()))


def gradient_norms(model: nn.Module, batch: Samples, context: Context) -> Found:
    """L2 norm of the loss' gradient for each trainable parameter, and `total`.

    The model is in eval mode: batch norm uses its running statistics, and nothing is
    dropped.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        context.loss(model),
        list(trainable.values()),
        allow_unused=True,
        materialize_grads=True,
    )
    return _norms(dict(zip(trainable, gradients, strict=True)))


def _norms(tensors: Mapping[str, Tensor]) -> Found:
    found = {name: float(x.detach().double().norm()) for name, x in tensors.items()}
    return {**found, "total": math.hypot(*found.values())}
