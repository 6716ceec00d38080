"""Random layers; each draws from a generator that belongs to one run and one use."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class RandomModule(nn.Module):
    """A layer that draws random numbers in training.

    `generator` is set by the trainer to the run's own for `random_use`; None draws
    from torch's global one.
    """

    random_use: ClassVar[str]
    generator: torch.Generator | None = None


class GaussianNoise(RandomModule):
    """Adds noise of an absolute standard deviation in training.

    Args:
        std: Standard deviation, ≥ 0, in units of the activations. 0 draws nothing.
    """

    random_use = "noise"

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        """Return x with noise (training) or x itself (evaluation), same shape."""
        if not self.training or self.std == 0:
            return x
        noise = torch.empty_like(x).normal_(0.0, self.std, generator=self.generator)
        return noise.add_(x)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class Dropout(RandomModule):
    """Zeroes single values in training and scales the rest by 1/(1 - p).

    Args:
        p: Probability of zero, in [0, 1). 0 draws nothing.
    """

    random_use = "dropout"

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return x with dropout (training) or x itself (evaluation), same shape."""
        if not self.training or self.p == 0:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)
        return x * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
