"""Trains a cohort: fit -> run_epoch -> train_step, validate, test."""

from __future__ import annotations

import abc
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gridrun.claims import ClaimLost
from gridrun.config import Hyperparams
from gridrun.errors import ConfigError, StorageError
from gridrun.machine import available_memory
from gridrun.nn import chosen_methods
from gridrun.plugins import Library
from gridrun.readers import Readers
from gridrun.run import RunState
from gridrun.tracking.watchers import Watchers
from gridrun.training import checkpoint as checkpoints
from gridrun.training import trials
from gridrun.training.cohort import (
    CohortTooLarge,
    Diverged,
    Interrupted,
    LiveRun,
    describe_failure,
)
from gridrun.training.data import (
    Batch,
    Data,
    DataInfo,
    Split,
    batches,
    in_batches,
    in_order,
    n_batches,
)
from gridrun.training.diagnose import Diagnosis
from gridrun.training.engines import ENGINES, Engine, chosen_engine, fed
from gridrun.training.event import Event
from gridrun.training.examples import Examples
from gridrun.training.extras import Change, Extras
from gridrun.training.models import build_model, describe_model, n_parameters
from gridrun.training.seeding import epoch_order, kept_globals
from gridrun.training.terms import EpochTotals, Terms, as_terms

logger = logging.getLogger(__name__)
EVAL_BATCH_SIZE = 128


class Trainer(abc.ABC):
    """Trains the runs of a cohort over one stream of batches.

    A library derives its own: how data are opened and a model is built, what is
    measured, and the named loops, each the objective of one batch and of what the
    model takes of it, x. A run's result does not depend on the others of its cohort.

    Args:
        library: Names the models.
        runs: Runs that share data, split, batch size and batch order.
        data: Their data, on their device.
        report: Called with an `Event` at each step, epoch and end.
        should_stop: Asked before each step; True interrupts.
    """

    loops: ClassVar[Mapping[str, Callable[[Any, LiveRun, Batch, Any], Terms]]] = {}
    augmenters: ClassVar[Mapping[str, Change]] = {}
    reads_inputs: ClassVar[bool] = False  # whether loops look at them beside x

    def __init__(
        self,
        library: Library,
        runs: Sequence[LiveRun],
        data: Data,
        report: Callable[[Event], None] = lambda event: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.library = library
        self.runs = list(runs)
        self.data = data
        self.report = report
        self.should_stop = should_stop
        self.engine = Engine(self)
        self.readers: Readers | None = None
        self.diagnoses: dict[int, Diagnosis] = {}
        self.examples: dict[int, Examples] = {}

    # what a library defines

    @staticmethod
    @abc.abstractmethod
    def inspect_data(hyps: Hyperparams) -> DataInfo:
        """Facts about the data, found without reading samples.

        Raises:
            DataError: With every problem of the files.
        """

    @staticmethod
    def notices(hyps: Hyperparams, info: DataInfo) -> Sequence[str]:
        """What a user should know of these data under these settings."""
        fits = info.n_bytes < available_memory() / 2
        if not hyps.n_workers or not fits:
            return info.notices
        text = "n_workers: the data fit in memory, where 0 is faster"
        return [*info.notices, text]

    @classmethod
    def try_out(cls, library: Library, hyps: Hyperparams, info: DataInfo) -> None:
        """Find out before anything starts whether what the keys name fits the data.

        What is not the library's own is tried on a few samples, without an update.

        Raises:
            ConfigError: With the key first.
        """
        trials.try_out(cls, library, hyps, info)

    @staticmethod
    def trial(hyps: Hyperparams, info: DataInfo, n: int) -> tuple[Any, Batch] | None:
        """What a trainer needs of data, and n samples like those; None: no trial."""
        return None

    def try_batch(self, run: LiveRun, batch: Batch) -> None:
        """Compute what training and evaluation compute for a batch."""
        batch, x = fed(self, run, batch)
        terms = as_terms(self.objective(run, batch, x))
        if not terms["loss"].requires_grad:
            raise ConfigError("train_loop: the loss does not depend on the parameters")
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        run.model.eval()
        with torch.no_grad():
            self.evaluate(run, batch)

    @staticmethod
    @abc.abstractmethod
    def open_data(hyps: Hyperparams, device: torch.device) -> Data:
        """Read data onto a device."""

    @staticmethod
    def prepare_model(model: nn.Module, data: Data) -> None:
        """Set what a model takes from the training data, beside its parameters."""

    def inputs(self, run: LiveRun, batch: Batch) -> Any:
        """A batch's inputs as the run's model takes them; random in training only."""
        return batch.inputs

    def plain_batch(self, run: LiveRun, batch: Batch) -> Batch:
        """Inputs as the model takes them and targets in its unit, as plain tensors."""
        return Batch(self.inputs(run, batch), batch.targets, batch.dtype)

    def predicted(self, run: LiveRun, model: nn.Module, inputs: Tensor) -> Tensor:
        """A model's predictions in the unit of the targets; of classes, logits."""
        found: Tensor = model(inputs)
        return found

    def shown(self, run: LiveRun, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, predictions and targets as people look at them."""
        run.model.eval()
        inputs = self.plain_batch(run, batch).inputs
        predictions = self.predicted(run, run.model, inputs)
        return batch.inputs, predictions, batch.targets

    def copied_model(self, run: LiveRun) -> nn.Module:
        """A run's model in eval mode, which shares nothing with it."""
        model = build_model(self.library, run.hyps, self.data.info)
        model.to(run.device, run.dtype)
        model.load_state_dict(run.model.state_dict())
        return model.eval()

    @staticmethod
    @abc.abstractmethod
    def predict(model: nn.Module, hyps: Hyperparams, split: str) -> Any:
        """Predictions of a loaded model on train, val or test."""

    @abc.abstractmethod
    def evaluate(self, run: LiveRun, batch: Batch) -> Terms:
        """What a batch of a split adds to its metrics, the model being in eval mode."""

    @abc.abstractmethod
    def measure(
        self, run: LiveRun, split: Split, found: Sequence[Terms]
    ) -> dict[str, float]:
        """`loss` (criterion alone), `acc` and further metrics over a whole split.

        Args:
            run: The run.
            split: What was evaluated.
            found: Of its batches, in order, what `evaluate` returned.
        """

    # the ladder

    def fit(self) -> None:
        """Train every run to its end; failures are recorded, the others go on."""
        with kept_globals():
            for run in self.runs:
                with self.guarded(run):
                    self.start(run)
            hyps = self.runs[0].hyps
            self.engine = ENGINES[chosen_engine(hyps, self.runs[0].device)](self)
            with self.reading_ahead():
                while runs := self.due():
                    self.run_epoch(runs)
            self.finish(self.live())

    @contextlib.contextmanager
    def reading_ahead(self) -> Iterator[None]:
        """Inside, `n_workers` processes read training batches ahead."""
        n_workers = self.runs[0].hyps.n_workers
        rows = self.data.train.rows if n_workers else None
        if rows is None:
            yield
            return
        self.readers = Readers(rows, n_workers)
        try:
            yield
        finally:
            self.readers.close()
            self.readers = None

    def live(self) -> list[LiveRun]:
        """Runs that have not ended."""
        return [run for run in self.runs if run.state is RunState.RUNNING]

    def due(self) -> list[LiveRun]:
        """The runs whose next epoch is the earliest, after finishing trained ones."""
        self.finish([run for run in self.live() if self.is_finished(run)])
        live = self.live()
        earliest = min((run.epoch for run in live), default=0)
        return [run for run in live if run.epoch == earliest]

    def is_finished(self, run: LiveRun) -> bool:
        """Whether no further epoch is due."""
        return run.is_trained

    def begin_epoch(self, run: LiveRun) -> None:
        """Called before the first step of each epoch."""

    def close_epoch(self, run: LiveRun, found: dict[str, float]) -> None:
        """Take in an epoch's metrics; its checkpoint follows.

        Raises:
            Diverged: If a loss is not finite.
        """
        for name in ("loss", "val_loss"):
            if not math.isfinite(found[name]):
                raise Diverged(f"{name} became {found[name]} in epoch {run.epoch}")
        run.end_epoch(found)

    def tested_epoch(self, run: LiveRun) -> int:
        """The epoch whose weights are scored on the test split."""
        return run.progress.best_epoch

    def start(self, run: LiveRun) -> None:
        """Build the run, or continue it from its last checkpoint."""
        run.extras = Extras.of(run.hyps, self.augmenters)
        run.build(lambda: build_model(self.library, run.hyps, self.data.info))
        self.prepare_model(run.model, self.data)
        run.folder.write_text(run.folder.model_text, describe_model(run.model))
        run.resume()
        facts = {"parameters": n_parameters(run.model)}
        run.note(**facts, convolutions=chosen_methods(run.model))
        run.log(f"training from epoch {run.epoch + 1} on {run.device}")
        self.diagnoses[run.number] = Diagnosis(self, run)
        self.examples[run.number] = Examples(self, run)
        run.watchers = Watchers.of(run.hyps)
        if run.watchers.callbacks:
            run.watchers.tell("on_run_start", run, run.folder.epochs.read())
        self.report(Event("start", run.number, run.epoch))

    def run_epoch(self, runs: Sequence[LiveRun]) -> None:
        """One pass over the training samples, then validation, for each run."""
        first = runs[0]
        n_samples = len(self.data.train)
        epoch = first.epoch + 1
        n_steps = n_batches(n_samples, first.hyps.batch_size)
        order = torch.arange(n_samples)
        if first.hyps.shuffle:
            order = epoch_order(first.seed, epoch, n_samples)
        by_number = {run.number: run for run in runs}
        totals = {number: EpochTotals() for number in by_number}
        for run in runs:
            run.time_s = 0.0
            with self.guarded(run), run.timed():
                self.begin_epoch(run)
        shared_s = 0.0
        orders = batches(order, first.hyps.batch_size)
        ready = in_batches(self.data.train, orders, self.readers)
        for step in range(1, n_steps + 1):
            if self.should_stop():
                raise Interrupted
            started = time.perf_counter()
            batch = next(ready)
            shared_s += time.perf_counter() - started
            self.engine.prepare(self._running(runs), batch)
            for run in self._running(runs):
                with self.guarded(run), run.timed():
                    terms = self.train_step(run, batch)
                    totals[run.number].add(terms, len(batch))
                    run.watchers.tell("on_step_end", run, step, terms)
            self.report(Event("step", first.number, epoch, step, n_steps, len(runs)))
            due = [run for run in runs if step in run.evaluation_steps(n_steps)]
            if due:
                for number, scores in self.evaluated(due, self.data.val).items():
                    by_number[number].add_evaluation(step, scores)
                    self.keep_examples(by_number[number], epoch, step)
        validation = self.evaluated(runs, self.data.val)
        for run in self._running(runs):
            run.add_evaluation(n_steps, validation[run.number])
            self.keep_examples(run, epoch, n_steps)
        for run in self._running(runs):
            run.time_s += shared_s / len(runs)
            metrics = totals[run.number].means()
            found = validation[run.number]
            metrics |= {f"val_{name}": value for name, value in found.items()}
            with self.guarded(run):
                self.end_epoch(run, epoch, metrics)

    def keep_examples(self, run: LiveRun, epoch: int, step: int) -> None:
        """Add to the run's examples, if it is to keep some."""
        if not self.examples[run.number].indices:
            return
        with run.random.evaluating(), self.guarded(run):
            self.examples[run.number].add(epoch, step)

    def train_step(self, run: LiveRun, batch: Batch) -> Terms:
        """One optimizer update; returns the loss and its terms.

        Raises:
            Diverged: If the loss is not finite.
        """
        terms = self.engine.backward(run, batch)
        run.batch_log.add(terms["loss"], run.model)
        if run.hyps.grad_clip is not None:
            nn.utils.clip_grad_norm_(run.model.parameters(), run.hyps.grad_clip)
        run.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    @staticmethod
    def augmented(run: LiveRun, batch: Batch) -> Batch:
        """A training batch after the run's augmenters; the same if it has none."""
        if not run.extras.augmenters:
            return batch
        inputs, targets = batch.inputs, batch.targets
        for augmenter in run.extras.augmenters:
            random = run.random.generators["augmentation"]
            inputs, targets = augmenter(inputs, targets, random)
        return Batch(inputs, targets, batch.dtype, seed=batch.seed)

    @staticmethod
    def distorted(run: LiveRun, inputs: Tensor) -> Tensor:
        """Normalised inputs after the run's distorter; in training only."""
        if run.extras.distorter is None or not run.model.training:
            return inputs
        return run.extras.distorter(inputs, run.random.generators["distortion"])

    def objective(self, run: LiveRun, batch: Batch, x: Any) -> Terms:
        """What the run minimises for a batch, `loss`, and its terms.

        Args:
            run: The run.
            batch: Samples.
            x: What the model takes of them.
        """
        if run.extras.objective is None:
            return self.loops[run.hyps.train_loop](self, run, batch, x)
        return as_terms(run.extras.objective(run.model, x, batch.targets))

    def end_epoch(self, run: LiveRun, epoch: int, metrics: dict[str, float]) -> None:
        """Record the epoch and save its checkpoint."""
        lr = run.lr
        run.epoch = epoch
        self.close_epoch(run, metrics)
        row = {"epoch": epoch, "lr": lr, **metrics, "time_s": round(run.time_s, 3)}
        run.write_rows(row)
        self.diagnoses[run.number].at_epoch(epoch)
        state = run.checkpoint(self.data.norm_stats, self.data.info.labels)
        run.folder.save_checkpoint(
            checkpoints.to_bytes(state),
            epoch,
            run.progress.best_epoch,
            run.hyps.save_every_epoch,
        )
        run.log(", ".join(f"{name} {value:.6g}" for name, value in row.items()))
        run.watchers.tell("on_epoch_end", run, row)
        self.report(Event("epoch", run.number, epoch, metrics=metrics))

    def evaluated(
        self, runs: Sequence[LiveRun], split: Split
    ) -> dict[int, dict[str, float]]:
        """Metrics of a whole split, by the number of each run that can be evaluated."""
        found: dict[int, list[Terms]] = {run.number: [] for run in runs}
        metrics = {}
        with contextlib.ExitStack() as stack:
            for run in self._running(runs):
                stack.enter_context(run.random.evaluating())
            for batch in in_order(split, EVAL_BATCH_SIZE):
                for run in self._running(runs):
                    with self.guarded(run), run.timed(), torch.no_grad():
                        if run.model.training:
                            run.model.eval()
                        with run.autocast():
                            terms = self.evaluate(run, batch.to(run.dtype))
                        found[run.number].append(terms)
            for run in self._running(runs):
                with self.guarded(run), run.timed(), torch.no_grad():
                    metrics[run.number] = self.measure(run, split, found[run.number])
        return metrics

    def finish(self, runs: Sequence[LiveRun]) -> None:
        """Score the test split once, each run in its chosen epoch; record the end."""
        for run in runs:
            with self.guarded(run):
                self._load(run, self.tested_epoch(run))
        found = self.evaluated(runs, self.data.test)
        for run in self._running(runs):
            with self.guarded(run):
                test = {f"test_{name}": v for name, v in found[run.number].items()}
                self.diagnoses[run.number].at_end(self.tested_epoch(run))
                self._end(run, RunState.DONE, test=test)

    @staticmethod
    def _load(run: LiveRun, epoch: int) -> None:
        if epoch == run.epoch:  # the model is as it was saved
            return
        content = run.folder.read_checkpoint(epoch)
        state = checkpoints.from_bytes(content, run.folder.checkpoint_path(epoch))
        run.model.load_state_dict(state["model_state_dict"])

    @staticmethod
    def _running(runs: Sequence[LiveRun]) -> list[LiveRun]:
        return [run for run in runs if run.state is RunState.RUNNING]

    @contextlib.contextmanager
    def guarded(self, run: LiveRun) -> Iterator[None]:
        """A run's turn: its random numbers; its failure ends it and no other."""
        try:
            with run.random.active():
                yield
        except Diverged as error:
            self._end(run, RunState.DIVERGED, error=str(error))
        except ClaimLost as error:
            logger.warning("run %d: %s", run.number, error)
            run.abandon()
            self.report(Event("end", run.number, run.epoch, state=run.state.value))
        except StorageError:
            raise
        except (Exception, SystemExit) as error:  # the latter of a model, say
            if is_out_of_memory(error) and len(self.live()) > 1:
                raise CohortTooLarge from error
            line, text = describe_failure(error)
            run.folder.write_text(run.folder.failure, text)
            self._end(run, RunState.FAILED, error=line)

    def _end(
        self,
        run: LiveRun,
        state: RunState,
        error: str | None = None,
        test: Mapping[str, float] | None = None,
    ) -> None:
        run.claim.check()
        run.folder.keep_final(run.hyps.save_every_epoch)
        run.end_attempt(state, error, test)
        final = dict(test or {}) | {"error": error}
        self.report(
            Event("end", run.number, run.epoch, state=state.value, metrics=final)
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was asked for that the device or the machine does not have.

    A capture that runs out of it ends with an error of its own.
    """
    kinds = (MemoryError, torch.OutOfMemoryError)
    found = (error, error.__context__)
    return any(isinstance(e, kinds) or "can't allocate memory" in str(e) for e in found)
