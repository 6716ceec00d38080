"""A loss, an objective, a normaliser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Quartic:
    """Mean fourth power of the error.

    Args:
        scale: Of the error.
    """

    metrics: ClassVar = {"largest_error": lambda z, y: float((z - y).abs().max())}

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """A scalar."""
        return (self.scale * (predictions - targets)).pow(4).mean()


def with_weights(model: nn.Module, inputs: Any, targets: Tensor) -> dict[str, Tensor]:
    """Squared error, or of classes cross-entropy, plus the size of the weights."""
    z = model(inputs)
    whole = not targets.is_floating_point()
    error = nn.functional.cross_entropy(z, targets) if whole else (z - targets).square()
    size = torch.stack([one.square().sum() for one in model.parameters()]).sum()
    term = 0.01 * size
    return {"loss": error.mean() + term, "weights_term": term}


class Halving:
    """Divides by twice the largest magnitude."""

    def fit(self, inputs: Tensor) -> None:
        """Of training inputs."""
        self.size = 2 * float(inputs.abs().max())

    def stats(self) -> dict[str, float]:
        """As plain data."""
        return {"size": self.size}

    def load(self, stats: Mapping[str, float]) -> None:
        """From plain data."""
        self.size = stats["size"]

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised."""
        return x / self.size

    def inverse(self, y: Tensor, inputs: Tensor) -> Tensor:
        """As before."""
        return y * self.size
