"""Distorters and augmenters."""

from __future__ import annotations

import torch
from torch import Tensor


def _draws(shape: list[int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


class Silence:
    """Sets whole samples to 0.

    Args:
        share: Of the samples.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs (B, ...), some of them 0."""
        shape = [len(inputs), *[1] * (inputs.ndim - 1)]
        return inputs * (_draws(shape, generator) >= self.share)


class Louder:
    """Multiplies inputs and targets together by a random factor.

    Args:
        most: Factors are between 1 and this.
    """

    def __init__(self, most: float = 2.0) -> None:
        self.most = most

    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Both (B, ...)."""
        shape = [len(inputs), *[1] * (inputs.ndim - 1)]
        factors = 1 + (self.most - 1) * _draws(shape, generator)
        is_pair = targets.shape == inputs.shape
        return inputs * factors, targets * factors if is_pair else targets


def mirrored(
    inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs, and targets of their shape, turned round along the last axis."""
    is_pair = targets.shape == inputs.shape
    return inputs.flip(-1), targets.flip(-1) if is_pair else targets
