"""A run's objective as a function that torch can capture or map."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import Spectrum, Tape
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch
from gridrun.training.engines.solo import fed
from gridrun.training.seeding import kept_globals
from gridrun.training.terms import Terms

if TYPE_CHECKING:
    from gridrun.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Feed:
    """What an objective is computed from, beside parameters and buffers.

    Args:
        tensors: What the model takes (of maps, or of their spectrum), the targets and,
            if the objective looks at them, the batch's own inputs.
        size: (H, W) of the maps, if the model takes their spectrum.
        dtype: Of the inputs.
    """

    tensors: tuple[Tensor, ...]
    size: tuple[int, int] | None
    dtype: torch.dtype

    @classmethod
    def of(cls, trainer: Trainer, run: LiveRun, batch: Batch) -> Feed:
        """A run's own, augmented and distorted."""
        batch, x = fed(trainer, run, batch)
        own = (batch.inputs,) if trainer.reads_inputs else ()
        size = x.size if isinstance(x, Spectrum) else None
        values = x.values if isinstance(x, Spectrum) else x
        return cls((values, batch.targets, *own), size, run.dtype)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the tensors."""
        return tuple(tuple(one.shape) for one in self.tensors)

    def with_tensors(self, tensors: Iterable[Tensor]) -> Feed:
        """The same of other tensors of these shapes."""
        return dataclasses.replace(self, tensors=tuple(tensors))


class Buffers:
    """Where a model's buffers are, which it may assign anew instead of changing them.

    Args:
        model: Its buffers' present places are what is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (module, name, buffer)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def keep(self) -> None:
        """Bring what has been assigned back to the places."""
        for module, name, buffer in self._places:
            assigned = module._buffers[name]
            if assigned is not None and assigned is not buffer:
                buffer.copy_(assigned.detach())
                module._buffers[name] = buffer


class Objective(nn.Module):
    """A run's training loss and its terms as a function of a feed.

    Args:
        trainer: Computes it.
        run: Whose model, a part of this module, is used.
    """

    def __init__(self, trainer: Trainer, run: LiveRun) -> None:
        super().__init__()
        self.model = run.model
        self._compute = functools.partial(trainer.objective, run)
        self._autocast = run.autocast

    def forward(self, feed: Feed) -> Terms:
        """The terms, `loss` among them."""
        values, targets, *own = feed.tensors
        batch = Batch(own[0] if own else _no_inputs, targets, feed.dtype)
        x = values if feed.size is None else Spectrum(values, feed.size)
        buffers = Buffers(self.model)
        with self._autocast():
            terms = self._compute(batch, x)
        buffers.keep()
        return terms


def _no_inputs() -> Tensor:
    raise AssertionError("only trainers whose `reads_inputs` is true have them")


class Rehearsal:
    """A copy of a run's model on which steps are tried; the run does not notice.

    Args:
        trainer: Of the run.
        run: To copy.
    """

    def __init__(self, trainer: Trainer, run: LiveRun) -> None:
        if hasattr(run.extras.objective, "state_dict"):
            text = f"{run.hyps.engine}: {run.hyps.train_loop} keeps a state of its own"
            raise ConfigError(f"engine: {text}; use solo")
        self.run = copy.copy(run)
        with kept_globals():
            self.run.model = trainer.copied_model(run).train()
        self.objective = Objective(trainer, self.run)
        self._tapes: dict[Any, Tape] = {}

    def tape(self, feed: Feed) -> Tape:
        """What the random layers draw for feeds of this shape."""
        if feed.shapes not in self._tapes:
            tape = self._tapes[feed.shapes] = Tape()
            with tape.attached(self.run.model):
                self.compute(feed)
        return self._tapes[feed.shapes]

    def compute(self, feed: Feed) -> None:
        """Go through a step, and leave nothing of it."""
        with kept_globals():
            self.objective(feed)["loss"].backward()
        self.run.model.zero_grad()
