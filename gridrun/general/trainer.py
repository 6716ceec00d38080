"""Training of plug-in models on plug-in data sets."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from inspect import signature
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gridrun.config import Hyperparams, data_root
from gridrun.errors import ConfigError
from gridrun.general import datas
from gridrun.general.data_sets import DataSet, read_set
from gridrun.general.hyperparams import GeneralHyperparams
from gridrun.plugin_files import load
from gridrun.plugins import libraries
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch, Data, DataInfo, Split, in_order
from gridrun.training.extras import Extras
from gridrun.training.losses import l1_of_outputs, make_loss
from gridrun.training.normalise import load_normaliser
from gridrun.training.seeding import seeded_globals
from gridrun.training.terms import Terms, as_terms
from gridrun.training.trainer import EVAL_BATCH_SIZE, Trainer


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's predictions beside the targets.

    Args:
        predictions: (N, ...); of pair data in the unit of the targets.
        targets: (N, ...).
        split: train, val or test.
    """

    predictions: NDArray[Any]
    targets: NDArray[Any]
    split: str


class GeneralTrainer(Trainer):
    """Trains a user's own models: predictions against targets."""

    @staticmethod
    def inspect_data(hyps: Hyperparams) -> DataInfo:
        """Facts about the data set that the keys name."""
        return datas.inspect_data(cast(GeneralHyperparams, hyps))

    @staticmethod
    def open_data(hyps: Hyperparams, device: torch.device) -> Data:
        """Read the data set that the keys name."""
        return datas.open_data(cast(GeneralHyperparams, hyps), device)

    @staticmethod
    def notices(hyps: Hyperparams, info: DataInfo) -> Sequence[str]:
        """Adds a data_root that the data set does not take."""
        is_given = hyps.data_root not in (None, data_root(None)[0])
        kind = load("dataset", hyps.dataset, hyps.plugins)
        if not is_given or "data_root" in signature(kind).parameters:
            return info.notices
        text = f"data_root: {hyps.dataset} does not take it"
        return [*info.notices, f"{text}; give what it takes as dataset_args"]

    @staticmethod
    def trial(hyps: Hyperparams, info: DataInfo, n: int) -> tuple[Data, Batch]:
        """The first training samples."""
        own = {"train_set_size": None, "val_set_size": None, "bootstrap_index": None}
        few = cast(GeneralHyperparams, hyps.model_copy(update=own))
        data = datas.open_data(few, torch.device("cpu"), most=n)
        return data, data.train.batch(torch.arange(len(data.train)))

    def try_batch(self, run: LiveRun, batch: Batch) -> None:
        """Adds the metrics."""
        super().try_batch(run, batch)
        with torch.no_grad():
            found = self.evaluate(run, batch)
            self.measure(run, self.data.train, [found])

    @functools.cached_property
    def dataset(self) -> DataSet:
        """The data set as read."""
        return read_set(self._hyps(self.runs[0]))

    @functools.cached_property
    def normalise(self) -> Any:
        """Normalises inputs, and targets of pair data."""
        return load_normaliser(self.data.norm_stats, self.runs[0].hyps.plugins)

    @staticmethod
    def _hyps(run: LiveRun) -> GeneralHyperparams:
        return cast(GeneralHyperparams, run.hyps)

    def inputs(self, run: LiveRun, batch: Batch) -> Tensor:
        """Inputs normalised; distorted in training.

        Of pair data whose targets are the inputs, distorted in evaluation too, always
        by the same numbers.
        """
        x: Tensor = self.normalise(batch.inputs)
        is_made = self.dataset.is_pairs and not run.hyps.use_preset
        distorter = run.extras.distorter
        if run.model.training or not is_made or distorter is None:
            return self.distorted(run, x)
        assert batch.seed is not None
        return distorter(x, torch.Generator(x.device).manual_seed(batch.seed))

    def in_space(
        self, run: LiveRun, batch: Batch, z: Tensor, space: str
    ) -> tuple[Tensor, Tensor]:
        """Predictions and targets as a loss or metric takes them.

        Args:
            run: The run.
            batch: With targets as they are stored.
            z: Predictions, normalised if the data are pairs.
            space: `default` or `original`.
        """
        if not self.dataset.is_pairs:
            return z, batch.targets
        if space == "original":
            return self.original(z, batch.inputs), batch.targets
        if self.data.norm_stats["normalizer"] == "per_sample":  # the inputs' means
            shift = batch.inputs - self.normalise(batch.inputs)
            return z, batch.targets - shift
        return z, self.normalise(batch.targets)

    def original(self, z: Tensor, inputs: Tensor) -> Tensor:
        """Normalised predictions of pair data in the unit of the targets."""
        found: Tensor = self.normalise.inverse(z, inputs)
        return found

    def criterion(self, run: LiveRun) -> Any:
        """The loss that the key names, made once, from the run's seed alone."""
        return self._parts(run)[0]

    def _parts(self, run: LiveRun) -> tuple[Any, dict[str, Any]]:
        """The run's loss and its metrics."""
        hyps = self._hyps(run)
        if run.number not in self._made:
            with seeded_globals(hyps.seed or 0, "loss"):
                loss = make_loss(hyps.lossfxn, hyps.plugins)
                functions = datas.metrics_of(hyps, self.dataset)
            self._made[run.number] = (loss, functions)
        return self._made[run.number]

    @functools.cached_property
    def _made(self) -> dict[int, tuple[Any, dict[str, Any]]]:
        return {}

    def train_objective(self, run: LiveRun, batch: Batch, x: Tensor) -> Terms:
        """Loss of predictions plus the l1 term."""
        z = run.model(x)
        pair = self.in_space(run, batch, z, run.hyps.loss_space)
        loss = self.criterion(run)(*pair)
        if not run.hyps.l1:
            return {"loss": loss}
        penalty = run.hyps.l1 * l1_of_outputs(z.flatten(1))
        return {"loss": loss + penalty, "l1_term": penalty}

    loops: ClassVar = {"train_loop": train_objective}
    reads_inputs = True

    def objective(self, run: LiveRun, batch: Batch, x: Tensor) -> Terms:
        """Adds: a plug-in gets inputs and targets as they are normalised."""
        if run.extras.objective is None:
            return super().objective(run, batch, x)
        _, targets = self.in_space(run, batch, batch.targets, "default")
        return as_terms(run.extras.objective(run.model, x, targets))

    def plain_batch(self, run: LiveRun, batch: Batch) -> Batch:
        """Inputs, and of pair data targets, as they are normalised."""
        _, targets = self.in_space(run, batch, batch.targets, "default")
        return Batch(self.inputs(run, batch), targets, batch.dtype)

    def shown(self, run: LiveRun, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, predictions and targets; of pair data in the targets' unit."""
        if not self.dataset.is_pairs:
            return super().shown(run, batch)
        run.model.eval()
        x = self.inputs(run, batch)
        seen = [self.original(one, batch.inputs) for one in (x, run.model(x))]
        return seen[0], seen[1], batch.targets

    def evaluate(self, run: LiveRun, batch: Batch) -> Terms:
        """Loss times samples, predictions and targets."""
        z = run.model(self.inputs(run, batch))
        z, targets = self.in_space(run, batch, z, run.hyps.eval_space)
        loss = self.criterion(run)(z, targets)
        return {
            "loss": loss.double() * len(batch),
            "predictions": z,
            "targets": targets,
        }

    def measure(
        self, run: LiveRun, split: Split, found: Sequence[Terms]
    ) -> dict[str, float]:
        """Loss and what the data set and the loss measure on the whole split."""
        scores = {"loss": sum(float(part["loss"]) for part in found) / len(split)}
        _, functions = self._parts(run)
        if functions:
            predictions = torch.cat([part["predictions"] for part in found])
            targets = torch.cat([part["targets"] for part in found])
            for name, function in functions.items():
                scores[name] = float(function(predictions, targets))
        return scores

    @staticmethod
    def predict(model: nn.Module, hyps: Hyperparams, split: str) -> Predictions:
        """Predictions of a split; of a bootstrap replicate, each sample once.

        Args:
            model: In eval mode, on the CPU.
            hyps: Name the data set.
            split: train, val or test.

        Raises:
            ConfigError: For another split.
            DataError: If the data set is not there as it was.
        """
        if split not in ("train", "val", "test"):
            raise ConfigError(f"split: expected train, val or test, got {split!r}")
        whole = hyps.model_copy(update={"bootstrap_index": None})
        data = GeneralTrainer.open_data(whole, torch.device("cpu"))
        extras = Extras.of(hyps, {})
        run = cast(LiveRun, SimpleNamespace(model=model, hyps=hyps, extras=extras))
        trainer = GeneralTrainer(libraries()["general"], [run], data)
        dtype = next(model.parameters()).dtype
        predictions, targets = [], []
        with torch.no_grad():
            for given in in_order(getattr(data, split), EVAL_BATCH_SIZE):
                batch = given.to(dtype)
                z = model(trainer.inputs(run, batch))
                if trainer.dataset.is_pairs:
                    z = trainer.original(z, batch.inputs)
                predictions.append(z)
                targets.append(batch.targets)
        found = [torch.cat(parts).numpy() for parts in (predictions, targets)]
        return Predictions(found[0], found[1], split)
