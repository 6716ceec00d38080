"""Shake-Shake regularisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gridrun.nn.noise import RandomModule


class ShakeShake(RandomModule):
    """A randomly weighted mean of branches; the plain mean in evaluation.

    In training every image has its own weights, uniform on the simplex, and other,
    independent weights of the same law share out the gradient. Gastaldi (2017),
    "Shake-Shake regularization": shake, shake, image; for any number of branches.

    Args:
        make_branch: Makes one branch; called n times.
        n: Number of branches, ≥ 2.
    """

    random_use = "shakes"

    def __init__(self, make_branch: Callable[[], nn.Module], n: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(make_branch() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the branches' outputs for x (B, ...)."""
        outputs = torch.stack([branch(x) for branch in self.branches])
        if not self.training:
            return outputs.mean(0)
        forward, backward = self._weights(outputs), self._weights(outputs)
        mixed: Tensor = _Mix.apply(  # type: ignore[no-untyped-call]
            outputs, forward, backward
        )
        return mixed

    def _weights(self, outputs: Tensor) -> Tensor:
        """(n, B, 1, ...): uniform on the simplex for each image."""
        shape = (*outputs.shape[:2], *(1 for _ in outputs.shape[2:]))
        draws = self.drawn(outputs.new_empty(shape))
        return draws / draws.sum(0)

    def draw(self, like: Tensor) -> Tensor:
        """Exponential numbers."""
        return torch.empty_like(like).exponential_(generator=self.generator)


class _Mix(torch.autograd.Function):
    """Sum of outputs by one set of weights, whose gradient uses another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(outputs: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        return (outputs * forward).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weights,) = ctx.saved_tensors
        return weights * gradient, None, None
