"""Diagnostics of a run at their times, of a copy of its model; failures are told."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gridrun import plugin_files
from gridrun.claims import ClaimLost
from gridrun.config import Hyperparams
from gridrun.diagnostics import (
    DIAGNOSTICS,
    Context,
    Schedule,
    diagnostic_problems,
    load_diagnostic,
    save_result,
)
from gridrun.errors import ConfigError, StorageError
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch
from gridrun.training.seeding import generator, kept_globals

if TYPE_CHECKING:
    from gridrun.training.trainer import Trainer

logger = logging.getLogger(__name__)
MOST_SAMPLES = 128


def schedule_problems(hyps: Hyperparams) -> list[str]:
    """What is wrong with the key `diagnostics`."""
    problems = []
    for entry in hyps.diagnostics:
        try:
            problems += diagnostic_problems(entry, _plugins_of(hyps, entry))
        except ConfigError as error:
            problems += [text.removeprefix("diagnostics: ") for text in error.problems]
    names = [_name(entry) for entry in hyps.diagnostics]
    twice = sorted({name for name in names if names.count(name) > 1})
    return problems + [f"{name} stands twice" for name in twice]


def _name(entry: Any) -> str:
    return str(entry.get("name", "")) if isinstance(entry, Mapping) else str(entry)


def _plugins_of(hyps: Hyperparams, entry: Any) -> dict[str, Any]:
    """The entry's own function, where a plug-in defines it."""
    name = _name(entry)
    if name in DIAGNOSTICS or plugin_files.find(name, hyps.plugins) is None:
        return {}
    return {name: plugin_files.load("diagnostics", name, hyps.plugins)}


class Diagnosis:
    """The diagnostics of one run.

    Args:
        trainer: Whose run it is.
        run: The run.
    """

    def __init__(self, trainer: Trainer, run: LiveRun) -> None:
        self.trainer = trainer
        self.run = run
        self.schedules = [Schedule.of(entry) for entry in run.hyps.diagnostics]
        self.errors: dict[str, str] = {}
        self._batch: Batch | None = None

    def at_epoch(self, epoch: int) -> None:
        """Those that are due after an epoch."""
        for schedule in self.schedules:
            if schedule.is_due(epoch):
                self._diagnose(schedule, epoch)

    def at_end(self, epoch: int) -> None:
        """Those that are due once, of the weights of the tested epoch."""
        for schedule in self.schedules:
            if schedule.at == "run_end":
                self._diagnose(schedule, epoch)

    def _diagnose(self, schedule: Schedule, epoch: int) -> None:
        if schedule.name in self.errors:
            return
        run, name = self.run, schedule.name
        started = time.perf_counter()
        try:
            with kept_globals():
                found = self._found(schedule, epoch)
            seconds = time.perf_counter() - started
            result = dict(found) | {"time_s": round(seconds, 4)}
            run.claim.check()
            save_result(run.folder.path / "diagnostics", name, epoch, result)
        except (ClaimLost, StorageError):
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told, and harmless
            self.errors[name] = f"{type(error).__name__}: {error}"
            text = f"diagnostic {name} fails and is left out: {self.errors[name]}"
            logger.warning("run %d: %s", run.number, text)
            run.log(text)
            run.note(diagnostic_errors=self.errors)
            return
        total = run.record.get("diagnostics_s", 0.0) + seconds
        run.note(diagnostics_s=round(total, 3))
        run.watchers.tell("on_diagnostic", run, name, epoch, result)

    def _found(self, schedule: Schedule, epoch: int) -> Mapping[str, Any]:
        run, trainer = self.run, self.trainer
        entry = dataclasses.asdict(schedule)
        function = load_diagnostic(schedule.name, _plugins_of(run.hyps, entry))
        stored = self._stored_batch().to(run.dtype)
        model = trainer.copied_model(run)

        def loss(model: nn.Module) -> Tensor:
            own, run.model = run.model, model
            try:
                with torch.enable_grad(), run.autocast():
                    return trainer.evaluate(run, stored)["loss"] / len(stored)
            finally:
                run.model = own

        own, run.model = run.model, model
        try:
            batch = trainer.plain_batch(run, stored)
        finally:
            run.model = own
        context = Context(
            epoch=epoch,
            hyps=run.hyps,
            loss=loss,
            predict=lambda x: trainer.predicted(run, model, x),
            generator=generator(run.seed, f"diagnostics:{schedule.name}:{epoch}"),
        )
        found: Mapping[str, Any] = function(model, batch, context, **schedule.args)
        return found

    def _stored_batch(self) -> Batch:
        """Seeded validation samples, the same at every time."""
        if self._batch is None:
            split = self.trainer.data.val
            random = generator(self.run.hyps.split_seed or 0, "diagnostics")
            chosen = torch.randperm(len(split), generator=random)[:MOST_SAMPLES]
            self._batch = split.batch(chosen.sort().values)
        return self._batch
