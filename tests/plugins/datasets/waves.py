"""Small data sets: pairs to denoise, and points of classes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor


def correlation(predictions: Tensor, targets: Tensor) -> float:
    """Pearson r of all values."""
    x, y = predictions.flatten().double(), targets.flatten().double()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-12))


class Waves:
    """Pairs: sums of two sines, and what another model made of their noisy versions.

    Args:
        n: Training samples.
        length: Of each wave.
        is_stored: Whether inputs are stored beside the targets.
        seed: Of all numbers.
    """

    PAIRS = True
    metrics: ClassVar = {"acc": correlation}

    def __init__(
        self, n: int = 40, length: int = 12, is_stored: bool = True, seed: int = 0
    ) -> None:
        self.n, self.length, self.is_stored, self.seed = n, length, is_stored, seed

    def _part(self, n: int, use: int, slowest: float = 1.0) -> tuple[Any, Any]:
        random = np.random.default_rng((self.seed, use))
        at = np.linspace(0, 2 * np.pi, self.length)
        rates = slowest + random.random((n, 2, 1))
        waves = 3 + np.sin(rates * at).sum(1)[:, None]
        guesses = waves + 0.3 * random.normal(size=waves.shape)
        stored = guesses.astype(np.float32) if self.is_stored else None
        return stored, waves.astype(np.float32)

    def splits(self) -> dict[str, tuple[Any, Any]]:
        """train and test."""
        return {"train": self._part(self.n, 0), "test": self._part(10, 1)}

    def subsets(self) -> dict[str, tuple[Any, Any]]:
        """Waves that are slower than those of training."""
        return {"slow": self._part(6, 2, slowest=0.2)}


class OtherWaves(Waves):
    """The same from other numbers."""

    def __init__(self, n: int = 14, length: int = 12, is_stored: bool = True) -> None:
        super().__init__(n, length, is_stored, seed=7)


class Points:
    """Points of the plane in three classes.

    Args:
        n: Training samples.
        spread: Standard deviation around each class's place.
        data_root: Not needed; given because the constructor has it.
    """

    def __init__(
        self, n: int = 60, spread: float = 0.5, data_root: str | None = None
    ) -> None:
        self.n, self.spread, self.data_root = n, spread, data_root

    def splits(self) -> dict[str, tuple[Any, Any]]:
        """train and test."""
        random = np.random.default_rng(1)
        places = np.array([[0.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        found = {}
        for name, n in (("train", self.n), ("test", 15)):
            classes = np.arange(n) % 3
            noise = self.spread * random.normal(size=(n, 2))
            found[name] = ((places[classes] + noise).astype(np.float32), classes)
        return found
