"""Runs while they are being trained side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from gridrun.claims import Claim, renewing
from gridrun.config import Hyperparams, suggest
from gridrun.durable import read_record, remove_temporaries, write_json, writing
from gridrun.errors import CheckpointError, ConfigError, StoreError
from gridrun.run import RunState
from gridrun.store import RunFolder
from gridrun.tracking.watchers import Watchers
from gridrun.training import checkpoint as checkpoints
from gridrun.training.batch_log import BatchLog
from gridrun.training.extras import Extras
from gridrun.training.schedules import make_optimizer, make_scheduler
from gridrun.training.seeding import RunRandom, seeded_globals

logger = logging.getLogger(__name__)


class Diverged(Exception):
    """The training loss is no longer finite."""


class CohortTooLarge(BaseException):
    """The runs of a cohort do not fit in memory together."""


class Interrupted(BaseException):
    """Training was asked to stop; the epoch under way is dropped."""


@dataclasses.dataclass
class Progress:
    """What a run remembers of its epochs.

    Args:
        best_value: Best value of the monitored metric.
        best_epoch: Its epoch; of equals the earlier. 0: none yet.
        mark: Value that early stopping measures improvement from.
        n_worse: Epochs in a row without improvement.
        extra: What a library's trainer remembers, as plain data.
    """

    best_value: float | None = None
    best_epoch: int = 0
    mark: float | None = None
    n_worse: int = 0
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def update(
        self, value: float, epoch: int, mode: str, min_delta: float = 0.0
    ) -> None:
        """Take in an epoch's value of the monitored metric.

        Args:
            value: The metric.
            epoch: Its epoch.
            mode: What is better, `max` or `min`.
            min_delta: What an improvement must exceed to count for early stopping.
        """

        def gain(before: float | None) -> float:
            if before is None:
                return math.inf
            return value - before if mode == "max" else before - value

        if gain(self.best_value) > 0:
            self.best_value, self.best_epoch = value, epoch
        if gain(self.mark) > min_delta:
            self.mark, self.n_worse = value, 0
        else:
            self.n_worse += 1


class LiveRun:
    """A run with its model, optimizer, generators and folder.

    Args:
        hyps: The complete configuration.
        claim: The right to train it, held; given up when the run ends.
        folder: Where it is recorded.
        device: Where it trains.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(
        self,
        hyps: Hyperparams,
        claim: Claim,
        folder: RunFolder,
        device: torch.device,
    ) -> None:
        assert hyps.seed is not None
        self.hyps = hyps
        self.claim = claim
        self.folder = folder
        self.device = device
        self.seed = hyps.seed
        self.record = folder.read()  # nobody else writes it while the claim is held
        self.number: int = self.record["number"]
        self.random = RunRandom(hyps.seed, device)
        self.progress = Progress()
        self.epoch = 0
        self.metrics: dict[str, float] = {}
        self.batch_log = BatchLog(hyps)
        self.extras = Extras()
        self.watchers = Watchers()
        self.evaluations: list[dict[str, float]] = []
        self.time_s = 0.0
        self.state = RunState.RUNNING
        self._log: TextIO | None = None

    @property
    def is_trained(self) -> bool:
        """Whether no further epoch is due."""
        patience = self.hyps.early_stop_patience
        stopped = patience is not None and self.progress.n_worse >= patience
        return stopped or self.epoch >= self.hyps.n_epochs

    @property
    def lr(self) -> float:
        """The present learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        is_double = self.hyps.precision == "float64"
        return torch.float64 if is_double else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Where forward pass and loss are computed, in the run's precision."""
        enabled = self.hyps.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside as this run's."""
        started = time.perf_counter()
        yield
        self.time_s += time.perf_counter() - started

    def begin_attempt(self, circumstances: Mapping[str, Any]) -> None:
        """Note that this process trains the run from here on.

        Args:
            circumstances: What can change bits, or tells where the attempt runs.
        """
        first_epoch = (self.folder.read_index()["last"] or 0) + 1
        start = {"started": now(), "first_epoch": first_epoch}
        self.note(
            state=RunState.RUNNING.value,
            attempts=[*self.record["attempts"], start | dict(circumstances)],
            error=None,
        )
        given = self.hyps.model_dump(mode="json")
        if self._recorded_hyperparams() != given:
            write_json(self.folder.hyperparams, given)
        with writing(self.folder.failure):
            self.folder.failure.unlink(missing_ok=True)

    def _recorded_hyperparams(self) -> dict[str, Any] | None:
        try:
            return read_record(self.folder.hyperparams)
        except StoreError:  # damaged: written anew
            return None

    def end_attempt(
        self,
        state: RunState,
        error: str | None = None,
        test: Mapping[str, float] | None = None,
    ) -> None:
        """Record how the attempt ended."""
        self.state = state
        *earlier, attempt = self.record["attempts"]
        end = {"ended": now(), "state": state.value, "last_epoch": self.epoch}
        self.note(
            state=state.value,
            attempts=[*earlier, attempt | end],
            error=error,
            best_epoch=self.progress.best_epoch or None,
            test={
                name: value if math.isfinite(value) else None
                for name, value in (test or {}).items()
            },
        )
        self.write_record()
        self.watchers.tell("on_run_end", self, state, dict(test or {}))
        if self.watchers.errors:
            self.note(tracker_errors=self.watchers.errors)
            self.write_record()
        reason = f": {error}" if error else ""
        self.log(f"{state.value} after epoch {self.epoch}{reason}")
        self._close()

    def abandon(self) -> None:
        """Write nothing more: the run is another's."""
        self.state = RunState.INTERRUPTED
        self._close()

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
        self.claim.release()

    def note(self, **facts: Any) -> None:
        """Set entries of run.json, which `write_record` writes."""
        self.record |= facts

    def write_record(self) -> None:
        """Write run.json, on disk when this returns.

        Raises:
            ClaimLost: If the run is another host's by now.
        """
        self.claim.check()
        write_json(self.folder.record, self.record)

    def log(self, text: str) -> None:
        """Add a line to the run's log.txt."""
        with writing(self.folder.log):
            if self._log is None:
                self._log = self.folder.log.open("a", encoding="utf-8", buffering=1)
            self._log.write(f"{now()} {text}\n")

    def build(self, make_model: Callable[[], nn.Module]) -> None:
        """Make model, optimizer and scheduler from the run's own seed.

        Args:
            make_model: Function without arguments that returns the model.
        """
        self.model = self.initial_model(make_model).train()
        self.random.attach(self.model)
        self.optimizer = make_optimizer(self.hyps, self.model.parameters())
        self.scheduler = make_scheduler(self.hyps, self.optimizer)

    def initial_model(self, make_model: Callable[[], nn.Module]) -> nn.Module:
        """A model as it is before the first epoch; always the same."""
        with seeded_globals(self.seed, "init"):
            model = make_model().to(self.device, self.dtype)
        if self.hyps.init_weights_path is not None:
            path = Path(self.hyps.init_weights_path)
            model.load_state_dict(checkpoints.read_weights(path))
        return model

    def evaluation_steps(self, n_steps: int) -> frozenset[int]:
        """Steps of an epoch after which `log_frequency` wants an evaluation.

        The last comes at the epoch's end in any case.
        """
        n = self.hyps.log_frequency
        return frozenset(n_steps * i // n for i in range(1, n))

    def add_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Take in a row of evaluations.csv, which `log_frequency` above 1 asks for."""
        if self.hyps.log_frequency > 1:
            found = {f"val_{name}": value for name, value in scores.items()}
            self.evaluations.append({"epoch": self.epoch + 1, "step": step, **found})

    def write_rows(self, row: Mapping[str, float | int]) -> None:
        """Add an epoch to the run's tables, on disk when this returns.

        Args:
            row: Of metrics.csv.

        Raises:
            ClaimLost: If the run is another host's by now.
        """
        self.claim.check()
        if batches := self.batch_log.take(self.epoch):
            self.folder.batches.append(batches)
        if self.evaluations:
            self.folder.evaluations.append(self.evaluations)
            self.evaluations = []
        self.folder.epochs.append([row])

    def end_epoch(self, metrics: Mapping[str, float]) -> None:
        """Step scheduler, best epoch and early stopping by an epoch's metrics."""
        name, mode = self.hyps.monitor_mode()
        if name not in metrics:
            text = f"no metric {name!r}{suggest(name, metrics)}"
            raise ConfigError(f"monitor: {text}")
        value = metrics[name]
        self.metrics = dict(metrics)
        min_delta = self.hyps.early_stop_min_delta
        self.progress.update(value, self.epoch, mode, min_delta)
        scheduler: Any = self.scheduler
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(value)
        elif scheduler is not None:
            scheduler.step()

    def checkpoint(self, norm_stats: Any, labels: Any) -> dict[str, Any]:
        """Everything that resuming needs."""
        scheduler, extras = self.scheduler, self.extras.state()
        return {
            **({"plugins": extras} if extras else {}),
            "schema_version": checkpoints.CHECKPOINT_VERSION,
            "epoch": self.epoch,
            "model_state_dict": self.model.state_dict(),
            "optim_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": scheduler.state_dict() if scheduler else None,
            "rng": self.random.state(),
            "hyps": self.hyps.model_dump(mode="json"),
            "metrics": self.metrics,
            "norm_stats": norm_stats,
            "data": labels,
            "progress": dict(vars(self.progress)),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(state["model_state_dict"])
        self.optimizer.load_state_dict(state["optim_state_dict"])
        if self.scheduler is not None:
            template = self.scheduler.state_dict()
            saved = state["scheduler_state_dict"]
            self.scheduler.load_state_dict(
                {k: checkpoints.like(v, template.get(k)) for k, v in saved.items()}
            )
        self.random.load_state(state["rng"])
        self.extras.load_state(state.get("plugins", {}))
        self.progress = Progress(**state["progress"])
        self.epoch = state["epoch"]
        self.metrics = state["metrics"]

    def resume(self) -> None:
        """Continue from the last checkpoint that is whole, else from the start."""
        index = self.folder.read_index()
        saved = sorted((f["epoch"] for f in index["files"].values()), reverse=True)
        for epoch in saved:
            try:
                content = self.folder.read_checkpoint(epoch)
                path = self.folder.checkpoint_path(epoch)
                state = checkpoints.from_bytes(content, path, "cpu")
                self._check_best(state, saved)
            except (CheckpointError, StoreError) as error:
                logger.warning("run %d: %s; going back further", self.number, error)
                continue
            self.restore(state)
            break
        self.folder.forget_after(self.epoch, self.progress.best_epoch)
        self.folder.cut_tables(self.epoch)

    def _check_best(self, state: Mapping[str, Any], saved: list[int]) -> None:
        """The best epoch so far must be whole too, or its score would be lost."""
        best = state["progress"]["best_epoch"]
        if best != state["epoch"]:
            self.folder.read_checkpoint(best)


@contextlib.contextmanager
def claimed(folders: list[RunFolder]) -> Iterator[list[tuple[RunFolder, Claim]]]:
    """Claim runs; yields those that no other live process holds, with their claims."""
    claims: list[tuple[RunFolder, Claim]] = []
    try:
        for folder in folders:
            claim = Claim(folder.claim)
            if not claim.acquire():
                continue
            claims.append((folder, claim))
            remove_temporaries(folder.path)
            remove_temporaries(folder.checkpoints)
        with renewing([claim for _, claim in claims]):
            yield claims
    finally:
        for _, claim in claims:
            claim.release()


def describe_failure(error: BaseException) -> tuple[str, str]:
    """One line for people, and the whole traceback."""
    text = str(error).strip().splitlines()
    line = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    return line, "".join(traceback.format_exception(error))


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
