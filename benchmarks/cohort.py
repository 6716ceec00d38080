"""Runs of ours in this process, trained step by step as a cohort's are."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gridrun.plugins import library_of
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch
from gridrun.training.models import build_model
from gridrun.training.terms import EpochTotals
from gridrun.training.trainer import Trainer

CPU = torch.device("cpu")


class NoFolder:
    """Stands for a run folder where nothing is to be recorded."""

    def read(self) -> dict[str, Any]:
        """A record of run 0."""
        return {"number": 0}


@dataclasses.dataclass
class Ours:
    """A trainer with one run that is ready for its first step.

    Args:
        trainer: It holds the data.
        run: With model, optimizer and generators.
    """

    trainer: Trainer
    run: LiveRun

    @classmethod
    def of(cls, hyps: Any, data: Any = None) -> Ours:
        """Build a run of complete settings; opens its data unless given."""
        library = library_of(hyps.model_type)
        assert library is not None
        kind = library.load_trainer()
        data = kind.open_data(hyps, CPU) if data is None else data
        nowhere: Any = NoFolder()
        run = LiveRun(hyps, nowhere, nowhere, CPU)
        trainer = kind(library, [run], data)
        run.build(lambda: build_model(library, hyps, data.info))
        trainer.prepare_model(run.model, data)
        return cls(trainer, run)

    def batch(self, indices: Tensor) -> Batch:
        """What all runs of a cohort share: windows read, normalised, transformed.

        A batch makes these when first asked, which is done here.
        """
        batch = self.trainer.data.train.batch(indices)
        self.run.model.train()
        self.trainer.inputs(self.run, batch.to(self.run.dtype))
        return batch

    def step(self, batch: Batch) -> Tensor:
        """What each run does with a batch; returns the loss."""
        with self.run.random.active(), self.run.timed():
            terms = self.trainer.train_step(self.run, batch)
            EpochTotals().add(terms, len(batch))
        return terms["loss"]

    @contextmanager
    def profiled(self) -> Iterator[dict[str, float]]:
        """Inside, seconds of forward, backward and optimizer of the last step."""
        found: dict[str, float] = {}
        model, optimizer = self.run.model, self.run.optimizer
        backward = torch.Tensor.backward
        originals: Mapping[str, Callable[..., Any]] = {
            "forward": model.forward,
            "optimizer": optimizer.step,
            "backward": backward,
        }

        def timed(part: str) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                started = time.perf_counter()
                result = originals[part](*args, **options)
                found[part] = time.perf_counter() - started
                return result

            return call

        setattr(model, "forward", timed("forward"))  # noqa: B010 - mypy: a method
        setattr(optimizer, "step", timed("optimizer"))  # noqa: B010
        setattr(torch.Tensor, "backward", timed("backward"))  # noqa: B010
        try:
            yield found
        finally:
            del model.forward, optimizer.step
            setattr(torch.Tensor, "backward", backward)  # noqa: B010
