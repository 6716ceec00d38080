"""The loss of a batch with its terms, and their averages over an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gridrun.errors import ConfigError

COLUMNS = ("epoch", "lr", "time_s")  # of metrics.csv beside metrics
Terms = dict[str, Tensor]


def as_terms(found: Any) -> Terms:
    """What a plug-in objective returns, as `loss` and its terms.

    Raises:
        ConfigError: If it is something else, or a term takes another column's name.
    """
    terms = {"loss": found} if isinstance(found, Tensor) else found
    if not isinstance(terms, Mapping) or "loss" not in terms:
        what = type(found).__name__
        raise ConfigError(f"train_loop: expected a loss, or terms with it; got {what}")
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.numel() != 1:
            raise ConfigError(f"train_loop: {name} is no tensor of one number")
        if name in COLUMNS or str(name).startswith(("val_", "test_")):
            raise ConfigError(f"train_loop: the name {name!r} is taken; choose another")
    return {str(name): term.reshape(()) for name, term in terms.items()}


class EpochTotals:
    """Averages of the training loss and its terms, weighted by samples."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n_samples = 0

    def add(self, terms: Terms, n_samples: int) -> None:
        """Take in a step."""
        for name, term in terms.items():
            total = self._sums.get(name)
            weighted = term.double() * n_samples
            self._sums[name] = weighted if total is None else total + weighted
        self._n_samples += n_samples

    def means(self) -> dict[str, float]:
        """The averages so far."""
        return {n: float(t.item()) / self._n_samples for n, t in self._sums.items()}
