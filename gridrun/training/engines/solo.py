"""Gradients run by run; what the other engines derive from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gridrun.training.cohort import Diverged, LiveRun
from gridrun.training.data import Batch
from gridrun.training.losses import is_finite
from gridrun.training.terms import Terms

if TYPE_CHECKING:
    from gridrun.training.trainer import Trainer


class Engine:
    """Runs compute loss and gradient one after the other.

    Args:
        trainer: Of their cohort.
    """

    needs_gpu: ClassVar[bool] = False

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @classmethod
    def try_out(cls, trainer: Trainer, run: LiveRun, batch: Batch) -> None:
        """Try on a batch what the engine asks of a run's objective.

        Raises:
            ConfigError: If it cannot be had.
        """

    def prepare(self, runs: Sequence[LiveRun], batch: Batch) -> None:
        """Take in who trains on a batch, before the first of them does."""

    def backward(self, run: LiveRun, batch: Batch) -> Terms:
        """Set the gradients of a run's parameters; returns the loss and its terms.

        Raises:
            Diverged: If the loss is not finite.
        """
        batch, x = fed(self.trainer, run, batch)
        with run.autocast():
            terms = self.trainer.objective(run, batch, x)
        refuse_infinite(terms)
        run.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        return terms


def fed(trainer: Trainer, run: LiveRun, batch: Batch) -> tuple[Batch, Any]:
    """A batch as a run trains on it, and what its model, now training, takes of it."""
    if not run.model.training:
        run.model.train()
    batch = trainer.augmented(run, batch.to(run.dtype))
    with run.autocast():
        return batch, trainer.inputs(run, batch)


def refuse_infinite(terms: Terms) -> None:
    """Refuse a loss that is no number.

    Raises:
        Diverged: If it is NaN or infinite.
    """
    if not is_finite(terms["loss"]):
        raise Diverged(f"training loss became {terms['loss'].item()}")
