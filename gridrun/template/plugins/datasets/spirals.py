"""Data sets. Any file in this folder may hold some; they are chosen by class name."""

from typing import Any, ClassVar

import numpy as np
from torch import Tensor


def accuracy(predictions: Tensor, targets: Tensor) -> float:
    """Share of samples whose largest logit is that of their class."""
    return float((predictions.argmax(1) == targets).float().mean())


class Spirals:
    """Points on two spirals that wind round each other; the classes are the spirals.

    Args:
        n_samples: Of the training split. This and `noise` are `dataset_args`.
        noise: Standard deviation of the points around their spiral.
    """

    metrics: ClassVar = {"acc": accuracy}  # val_acc and test_acc

    def __init__(self, n_samples: int = 300, noise: float = 0.1) -> None:
        self.n_samples = n_samples
        self.noise = noise

    def splits(self) -> dict[str, tuple[Any, Any]]:
        """Inputs (N, 2) and classes (N,) of train and test; validation is cut off."""
        random = np.random.default_rng(0)
        found = {}
        for name, n in (("train", self.n_samples), ("test", 100)):
            classes = np.arange(n) % 2
            turns = random.uniform(0.25, 1.25, n)
            angles = 2 * np.pi * turns + np.pi * classes
            points = turns[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
            points += self.noise * random.normal(size=points.shape)
            found[name] = (points.astype(np.float32), classes)
        return found
