"""Training: what an epoch records, when runs stop, and that company changes nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gridrun.claims import Claim
from gridrun.config import Hyperparams
from gridrun.effects import check_effects, make_specs
from gridrun.planner import cohort_key
from gridrun.request import read_request
from gridrun.run import RunState
from gridrun.store import RunFolder
from gridrun.training.cohort import Interrupted, LiveRun
from gridrun.training.data import Batch, Data, DataInfo, Split, batches, n_batches
from gridrun.training.event import Event
from gridrun.training.seeding import generator as seeded_generator
from gridrun.training.terms import Terms
from gridrun.training.trainer import Trainer
from torchdeepretina import LIBRARY as RETINA_LIBRARY
from torchdeepretina.trainer import RetinaTrainer

CPU = torch.device("cpu")
SAME_PARTS = ("model_state_dict", "optim_state_dict", "rng", "progress", "metrics")

# --- a trainer without a library --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples in memory; records the indices that were asked for."""

    inputs: Tensor
    asked: list[list[int]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> Batch:
        self.asked.append(indices.tolist())
        return Batch(self.inputs[indices], self.inputs[indices].sum((1, 2, 3)))


class Linear(nn.Module):
    """One weight per value, and dropout that draws from torch's global generator."""

    def __init__(self, n_units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, n_units)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x.flatten(1)))[:, 0]


class RaisesInStep5(Linear):
    """Raises in its fifth training step, after drawing from every generator."""

    n_steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_steps += self.training
        if self.n_steps == 5:
            random.random()
            np.random.random()
            raise KeyError("step five")
        return super().forward(x)


class NanInStep5(Linear):
    """Returns NaN in its fifth training step."""

    n_steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_steps += self.training
        return super().forward(x) * (math.nan if self.n_steps == 5 else 1)


class UnbuildableModel(Linear):
    """Raises when built."""

    def __init__(self, n_units: int) -> None:
        raise RuntimeError("no such model today")


class ToyLibrary:
    """The part of a library that a trainer asks for."""

    name = "toy"
    schema = Hyperparams
    models: ClassVar = {
        one.__name__: one
        for one in (Linear, RaisesInStep5, NanInStep5, UnbuildableModel)
    }

    def model(self, name: str, plugins: str | None = None) -> Any:
        return self.models[name]


class ToyTrainer(Trainer):
    """Least squares; validation losses may be given in advance.

    `curve[k]` is then the validation loss of epoch k + 1, or its accuracy where that
    is monitored (the loss then stays 1).
    """

    curve: Sequence[float] | None = None

    @staticmethod
    def inspect_data(hyps: Hyperparams) -> DataInfo:
        raise NotImplementedError

    @staticmethod
    def open_data(hyps: Hyperparams, device: torch.device) -> Data:
        raise NotImplementedError

    @staticmethod
    def predict(model: nn.Module, hyps: Hyperparams, split: str) -> Any:
        raise NotImplementedError

    def least_squares(self, run: LiveRun, batch: Batch, x: Tensor) -> Terms:
        loss = (run.model(x) - batch.targets).square().mean()
        return {"loss": loss, "l1": 2 * loss} if run.hyps.l1 else {"loss": loss}

    loops: ClassVar = {"train_loop": least_squares}

    def evaluate(self, run: LiveRun, batch: Batch) -> Terms:
        loss = (run.model(batch.inputs) - batch.targets).square().mean()
        return {"loss": loss * len(batch)}

    def measure(
        self, run: LiveRun, split: Split, found: Sequence[Terms]
    ) -> dict[str, float]:
        if split is self.data.test:
            return {"loss": float(run.model.linear.weight.detach().sum()), "acc": 0.0}
        if self.curve is not None:
            value = self.curve[run.epoch]
            is_accuracy = run.hyps.monitor == "val_acc"
            return {"loss": 1.0 if is_accuracy else value, "acc": value}
        loss = sum(float(part["loss"]) for part in found) / len(split)
        return {"loss": loss, "acc": 0.0}


def samples(n: int, seed: int) -> Samples:
    """n samples of shape (1, 2, 2), equal at every call."""
    generator = torch.Generator().manual_seed(seed)
    return Samples(torch.rand(n, 1, 2, 2, generator=generator))


def toy_hyps(**given: Any) -> Hyperparams:
    """A configuration of the toy library."""
    values: dict[str, Any] = {
        "exp_name": "toy",
        "model_type": "Linear",
        "dataset": "none",
        "lossfxn": "MSELoss",
        "batch_size": 4,
        "n_epochs": 3,
        "lr": 0.01,
        "seed": 1,
        "split_seed": 1,
    }
    return Hyperparams.model_validate(values | given)


@dataclasses.dataclass
class Trained:
    """A cohort after training."""

    trainer: ToyTrainer
    runs: list[LiveRun]
    events: list[Event]
    states: list[dict[str, Any]]

    def rows(self, run: int = 0) -> list[dict[str, float]]:
        return self.runs[run].folder.epochs.read()

    def record(self, run: int = 0) -> dict[str, Any]:
        return self.runs[run].folder.read()


@pytest.fixture
def fit(make_folder: Callable[[Any], RunFolder]) -> Callable[..., Trained]:
    """Function that trains toy runs as one cohort."""

    def train_toys(
        *hyps: Hyperparams, curve: Sequence[float] | None = None, n: int = 18
    ) -> Trained:
        info = DataInfo(1, {"n_units": 1}, {}, ())
        data = Data(samples(n, 1), samples(5, 2), samples(5, 3), info, {})
        runs = []
        for one in hyps:
            folder = make_folder(one)
            claim = Claim(folder.claim)
            assert claim.acquire()
            run = LiveRun(one, claim, folder, CPU)
            run.begin_attempt({})
            runs.append(run)
        events: list[Event] = []
        library: Any = ToyLibrary()
        trainer = ToyTrainer(library, runs, data, events.append)
        trainer.curve = curve
        trainer.fit()
        states = [run.checkpoint({}, {}) for run in runs if hasattr(run, "model")]
        return Trained(trainer, runs, events, states)

    return train_toys


# --- batches ----------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(1, 50))
def test_batches_hold_every_sample_once_in_order(n: int, size: int) -> None:
    """The batches of an order, one after the other, are that order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    found = [index for batch in batches(order, size) for index in batch.tolist()]
    assert found == order.tolist()


@given(st.integers(0, 200), st.integers(1, 50))
def test_n_batches_counts_batches(n: int, size: int) -> None:
    """The number of steps told beforehand is the number of batches."""
    assert n_batches(n, size) == len(list(batches(torch.arange(n), size)))


@given(st.integers(2, 200), st.integers(2, 50))
def test_no_batch_is_a_single_left_over(n: int, size: int) -> None:
    """All batches are full but the last, which has 2 to size + 1 samples."""
    *full, last = [len(batch) for batch in batches(torch.arange(n), size)]
    assert set(full) <= {size}
    assert 2 <= last <= size + 1


def test_a_single_left_over_joins_the_batch_before() -> None:
    """Nine samples in fours are a four and a five."""
    assert [len(batch) for batch in batches(torch.arange(9), 4)] == [4, 5]


def test_a_small_last_batch_is_kept() -> None:
    """Ten samples in fours are two fours and a two."""
    assert [len(batch) for batch in batches(torch.arange(10), 4)] == [4, 4, 2]


def test_batches_of_one_are_all_of_one() -> None:
    """With batch size 1 no sample is left over."""
    assert [len(batch) for batch in batches(torch.arange(4), 1)] == [1, 1, 1, 1]


# --- epochs -----------------------------------------------------------------------


@pytest.mark.parametrize("n_epochs", [1, 2, 5])
def test_exactly_n_epochs_are_trained(
    fit: Callable[..., Trained], n_epochs: int
) -> None:
    """The table has one row an epoch, from 1 to n_epochs."""
    trained = fit(toy_hyps(n_epochs=n_epochs))
    assert [row["epoch"] for row in trained.rows()] == list(range(1, n_epochs + 1))


def test_each_epoch_trains_every_sample_once(fit: Callable[..., Trained]) -> None:
    """The samples asked for in an epoch are all training samples, in a new order."""
    trained = fit(toy_hyps(n_epochs=3), n=18)
    asked: Any = trained.trainer.data.train
    epochs = [
        list(itertools.chain(*asked.asked[first : first + 5])) for first in (0, 5, 10)
    ]
    assert len(asked.asked) == 15
    assert all(sorted(epoch) == list(range(18)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_shuffle_false_keeps_file_order(fit: Callable[..., Trained]) -> None:
    """Without shuffle every epoch goes through the samples in order."""
    asked: Any = fit(toy_hyps(shuffle=False, n_epochs=2)).trainer.data.train
    assert list(itertools.chain(*asked.asked)) == [*range(18), *range(18)]


def test_batch_order_depends_on_the_seed_alone(fit: Callable[..., Trained]) -> None:
    """Equal seeds give equal batches whatever else differs, other seeds others."""
    first: Any = fit(toy_hyps()).trainer.data.train
    equal: Any = fit(toy_hyps(lr=0.5, optimizer="SGD")).trainer.data.train
    other: Any = fit(toy_hyps(seed=2)).trainer.data.train
    assert first.asked == equal.asked
    assert first.asked != other.asked


def test_training_loss_is_weighted_by_samples(fit: Callable[..., Trained]) -> None:
    """With weights that barely move, the epoch's loss is the mean over samples."""
    # 9 samples in fours: batches of 4 and 5, so a mean of batch means would differ
    hyps = toy_hyps(n_epochs=1, lr=1e-12, optimizer="SGD", l1=1.0, shuffle=False)
    trained = fit(hyps, n=9)
    model = trained.runs[0].model
    assert isinstance(model, Linear)
    by_batch = []
    with torch.no_grad():
        trained.runs[0].random = type(trained.runs[0].random)(1, CPU)
        inputs = samples(9, 1).inputs
        for part in (inputs[:4], inputs[4:]):
            with trained.runs[0].random.active():
                model.train()
                error = model(part) - part.sum((1, 2, 3))
            by_batch.append(error.double().square())
    expected = float(torch.cat(by_batch).mean())
    row = trained.rows()[0]
    assert row["loss"] == pytest.approx(expected, rel=1e-6)
    assert row["l1"] == pytest.approx(2 * expected, rel=1e-6)
    assert abs(float(by_batch[0].mean() + by_batch[1].mean()) / 2 - expected) > 1e-3


def test_test_split_is_scored_on_the_best_epoch(fit: Callable[..., Trained]) -> None:
    """The test metric is computed with the weights of the best epoch, not the last."""
    hyps = toy_hyps(n_epochs=4, save_every_epoch=True)
    trained = fit(hyps, curve=[3.0, 1.0, 2.0, 2.5])
    weights = {
        epoch: torch.load(
            trained.runs[0].folder.checkpoint_path(epoch), weights_only=True
        )["model_state_dict"]["linear.weight"].sum()
        for epoch in (2, 4)
    }
    assert trained.record()["test"]["test_loss"] == float(weights[2])
    assert weights[2] != weights[4]


def test_last_and_best_checkpoints_are_kept(fit: Callable[..., Trained]) -> None:
    """At the end the files of the last and of the best epoch are left."""
    trained = fit(toy_hyps(n_epochs=5), curve=[3.0, 1.0, 2.0, 2.5, 2.0])
    names = {path.name for path in trained.runs[0].folder.checkpoints.glob("*.pt")}
    assert names == {"epoch_0002.pt", "epoch_0005.pt"}


def test_save_every_epoch_keeps_all_and_changes_nothing(
    fit: Callable[..., Trained], same: Callable[[Any, Any], bool]
) -> None:
    """All n_epochs files are left, and the weights are those of a run without."""
    usual, all_kept = (fit(toy_hyps(save_every_epoch=keep)) for keep in (False, True))
    assert len(list(all_kept.runs[0].folder.checkpoints.glob("*.pt"))) == 3
    parts = ("model_state_dict", "optim_state_dict", "rng")
    assert all(same(usual.states[0][part], all_kept.states[0][part]) for part in parts)


def test_metrics_hold_the_rate_that_the_epoch_was_trained_with(
    fit: Callable[..., Trained],
) -> None:
    """Column lr is the rate before the scheduler's step at the epoch's end."""
    args = {"step_size": 2, "gamma": 0.1}
    hyps = toy_hyps(n_epochs=5, lr=0.1, scheduler="StepLR", scheduler_args=args)
    found = [row["lr"] for row in fit(hyps).rows()]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


# --- best epoch and early stopping ------------------------------------------------

CURVES = [
    # monitor, patience, curve, last epoch, best epoch
    ("val_loss", 2, [5, 4, 6, 7, 1, 1, 1], 4, 2),
    ("val_loss", 3, [5, 4, 6, 7, 3, 9, 9, 9, 0], 8, 5),
    ("val_loss", 1, [5, 5, 1, 1, 1, 1], 2, 1),
    ("val_loss", 2, [3, 2, 2, 2, 1], 4, 2),
    ("val_acc", 2, [1, 3, 2, 3, 9], 4, 2),
    ("val_acc", 2, [1, 2, 3, 4, 5], 5, 5),
    ("val_loss:max", 1, [1, 2, 1, 9], 3, 2),
    ("val_loss", None, [3, 1, 1, 2, 3], 5, 2),
]


@pytest.mark.parametrize(("monitor", "patience", "curve", "last", "best"), CURVES)
def test_early_stopping_and_best_epoch_agree_with_hand(
    fit: Callable[..., Trained],
    monitor: str,
    patience: int | None,
    curve: list[float],
    last: int,
    best: int,
) -> None:
    """A run stops after `patience` epochs in a row that do not beat the best."""
    hyps = toy_hyps(n_epochs=len(curve), monitor=monitor, early_stop_patience=patience)
    trained = fit(hyps, curve=[float(value) for value in curve])
    assert [row["epoch"] for row in trained.rows()] == list(range(1, last + 1))
    assert trained.record()["best_epoch"] == best
    assert trained.record()["state"] == "done"


def test_ties_keep_the_earlier_epoch(fit: Callable[..., Trained]) -> None:
    """Of equally good epochs the first is best."""
    trained = fit(toy_hyps(n_epochs=4), curve=[2.0, 1.0, 1.0, 1.0])
    assert trained.record()["best_epoch"] == 2


def test_early_stopping_is_counted_per_run(fit: Callable[..., Trained]) -> None:
    """A run that stops early leaves the others of its cohort to go on."""
    stops = toy_hyps(n_epochs=6, early_stop_patience=1)
    trained = fit(stops, toy_hyps(n_epochs=6), curve=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert [len(trained.rows(0)), len(trained.rows(1))] == [2, 6]


def test_plateau_scheduler_follows_the_monitor(fit: Callable[..., Trained]) -> None:
    """With val_acc as monitor a rising curve is no plateau, a flat one is."""
    for curve, expected in (
        ([1.0, 2.0, 3.0, 4.0], [0.1, 0.1, 0.1, 0.1]),
        ([1.0, 1.0, 1.0, 1.0], [0.1, 0.1, 0.05, 0.025]),
    ):
        hyps = toy_hyps(
            n_epochs=4,
            lr=0.1,
            monitor="val_acc",
            scheduler="ReduceLROnPlateau",
            scheduler_args={"factor": 0.5, "patience": 0},
        )
        found = [row["lr"] for row in fit(hyps, curve=curve).rows()]
        assert found == pytest.approx(expected)


# --- failures ---------------------------------------------------------------------

COMPANIONS = ["RaisesInStep5", "NanInStep5", "UnbuildableModel"]


@pytest.mark.parametrize("bad", COMPANIONS)
def test_a_failing_run_leaves_the_others_as_alone(
    fit: Callable[..., Trained], same: Callable[[Any, Any], bool], bad: str
) -> None:
    """Runs beside one that fails end bit for bit as trained alone."""
    alone = [fit(toy_hyps(lr=lr)) for lr in (0.01, 0.1)]
    company = fit(toy_hyps(lr=0.01), toy_hyps(model_type=bad), toy_hyps(lr=0.1))
    others = [company.states[0], company.states[-1]]
    for one, other in zip(alone, others, strict=True):
        for part in SAME_PARTS:
            assert same(one.states[0][part], other[part]), part
    assert [company.record(run)["state"] for run in (0, 2)] == ["done", "done"]


@pytest.mark.parametrize("bad", ["RaisesInStep5", "UnbuildableModel"])
def test_a_run_that_raises_is_recorded_as_failed(
    fit: Callable[..., Trained], bad: str
) -> None:
    """The record has the error's line, failure.txt the traceback to its place."""
    trained = fit(toy_hyps(model_type=bad), toy_hyps())
    line = {
        "RaisesInStep5": "KeyError: 'step five'",
        "UnbuildableModel": "ConfigError: model_args: UnbuildableModel cannot be made "
        "of n_units 1: "
        "RuntimeError: no such model today",
    }[bad]
    text = trained.runs[0].folder.failure.read_text()
    assert trained.record()["state"] == "failed"
    assert trained.record()["error"] == line
    assert text.startswith("Traceback")
    assert "test_trainer.py" in text
    assert line in text


def test_a_failure_counts_epochs_that_were_whole(fit: Callable[..., Trained]) -> None:
    """A run that raises in its first epoch has no rows and no best epoch."""
    trained = fit(toy_hyps(model_type="RaisesInStep5"), n=40)
    assert trained.rows() == []
    assert trained.record()["best_epoch"] is None
    assert trained.record()["attempts"][-1]["last_epoch"] == 0


def test_a_nan_loss_is_recorded_as_diverged(fit: Callable[..., Trained]) -> None:
    """A training loss of NaN ends the run as diverged, and the message says so."""
    trained = fit(toy_hyps(model_type="NanInStep5"))
    assert trained.record()["state"] == "diverged"
    assert "nan" in trained.record()["error"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_infinite_validation_loss_is_recorded_as_diverged(
    fit: Callable[..., Trained], value: float
) -> None:
    """A validation loss that is not finite ends the run after the epochs before it."""
    trained = fit(toy_hyps(n_epochs=4), curve=[1.0, 0.5, value, 0.1])
    assert trained.record()["state"] == "diverged"
    assert "val_loss" in trained.record()["error"]
    assert [row["epoch"] for row in trained.rows()] == [1, 2]


def test_events_tell_start_steps_epochs_and_end(fit: Callable[..., Trained]) -> None:
    """A run is told of as start, its steps and epochs, and its end with the state."""
    kinds = [event.kind for event in fit(toy_hyps(n_epochs=2)).events]
    assert kinds == ["start", *(["step"] * 5 + ["epoch"]) * 2, "end"]


# --- independence, with the real libraries ----------------------------------------


def differing(same: Any, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Parts of two checkpoints that do not agree bit for bit."""
    return [part for part in SAME_PARTS if not same(one[part], other[part])]


@pytest.fixture(params=["retina", "images"])
def grid(
    request: pytest.FixtureRequest,
    recording: Path,
    image_set: Path,
    retina_hyps: Callable[..., Any],
    image_hyps: Callable[..., Any],
) -> list[Any]:
    """Three runs of one cohort, for each library, with every random layer on."""
    if request.param == "retina":
        keys: list[dict[str, Any]] = [
            {"noise": 0.2, "drop_p": 0.1, "l1": 0.01, "output_scale": "std"},
            {"noise": 0.0, "chans": [2], "scheduler": "CosineAnnealingLR"},
            {"noise": 0.1, "lossfxn": "MSELoss", "optimizer": "SGD", "lr": 1e-4},
        ]
        return [retina_hyps(recording, **one) for one in keys]
    keys = [
        {"drop_ps": [0.1, 0.2]},
        {"chans": [4], "scheduler": "ReduceLROnPlateau"},
        {"lossfxn": "MSELoss", "optimizer": "AdamW", "l2": 0.1},
    ]
    return [image_hyps(image_set, **one) for one in keys]


def test_a_run_does_not_depend_on_its_company(
    grid: list[Any], train: Any, last_state: Any, same: Any
) -> None:
    """Alone, beside others and in reverse order a run ends bit for bit the same."""
    assert len({cohort_key(one) for one in grid}) == 1
    together = train(grid)
    reverse = train(grid[::-1])[::-1]
    for one, other, hyps in zip(together, reverse, grid, strict=True):
        (alone,) = train([hyps])
        assert not differing(same, last_state(alone), last_state(one))
        assert not differing(same, last_state(alone), last_state(other))
        assert alone.read()["test"] == one.read()["test"]


def stop_after(n_steps: int) -> Callable[[], bool]:
    """A function that says stop when asked for the n_steps + 1st time."""
    asked = itertools.count()
    return lambda: next(asked) >= n_steps


@pytest.fixture
def train_until(train: Any, make_folder: Any) -> Callable[..., list[RunFolder]]:
    """Function that trains a new cohort and stops it after some steps."""

    def run(hyps: Sequence[Any], n_steps: int) -> list[RunFolder]:
        folders = [make_folder(one) for one in hyps]
        with pytest.raises(Interrupted):
            train(hyps, folders=folders, should_stop=stop_after(n_steps))
        return folders

    return run


# three epochs of 4 steps, both libraries: in, between and at the ends of epochs
@pytest.mark.parametrize("n_steps", [0, 2, 4, 7, 11])
def test_interrupted_and_resumed_is_uninterrupted(
    grid: list[Any],
    train: Any,
    train_until: Any,
    last_state: Any,
    same: Any,
    n_steps: int,
) -> None:
    """A cohort stopped after any step and started again ends as if never stopped."""
    whole = train(grid)
    halves = train_until(grid, n_steps)
    assert all(one.read()["state"] == "interrupted" for one in halves)
    train(grid, folders=halves)
    for one, other in zip(whole, halves, strict=True):
        assert not differing(same, last_state(one), last_state(other))
        assert one.read()["test"] == other.read()["test"]
        without_time = [
            [{k: v for k, v in row.items() if k != "time_s"} for row in rows]
            for rows in (one.epochs.read(), other.epochs.read())
        ]
        assert without_time[0] == without_time[1]


def test_a_run_may_be_resumed_in_other_company(
    grid: list[Any], train: Any, train_until: Any, last_state: Any, same: Any
) -> None:
    """A run that has an epoch already ends the same beside runs that have none."""
    alone = [train([one])[0] for one in grid]
    (first,) = train_until(grid[:1], 6)
    others = train_until(grid[1:], 0)
    together = train(grid, folders=[first, *others])
    for one, other in zip(alone, together, strict=True):
        assert not differing(same, last_state(one), last_state(other))


@pytest.mark.parametrize("damage", ["changed", "truncated", "removed"])
def test_a_damaged_last_checkpoint_falls_back_one_epoch(
    grid: list[Any],
    train: Any,
    train_until: Any,
    last_state: Any,
    same: Any,
    damage: str,
) -> None:
    """With the last file damaged a run goes on from the epoch before, to equal ends."""
    (whole,) = train(grid[:1])
    (half,) = train_until(grid[:1], 9)  # two whole epochs
    path = half.checkpoint_path(2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content if damage == "changed" else content[:-100])
    started: list[Event] = []
    train(grid[:1], folders=[half], report=started.append)
    assert [event.epoch for event in started if event.kind == "start"] == [1]
    assert [row["epoch"] for row in half.epochs.read()] == [1, 2, 3]
    assert not differing(same, last_state(whole), last_state(half))


def test_a_damaged_best_checkpoint_starts_over(
    grid: list[Any], train: Any, train_until: Any, last_state: Any, same: Any
) -> None:
    """Without the best epoch's file its score would be lost, so it is trained again."""
    hyps = [grid[0].model_copy(update={"monitor": "val_loss:max"})]
    (whole,) = train(hyps)
    (half,) = train_until(hyps, 9)
    best = last_state(half)["progress"]["best_epoch"]
    half.checkpoint_path(best).write_bytes(b"nothing")
    started: list[Event] = []
    train(hyps, folders=[half], report=started.append)
    assert [event.epoch for event in started if event.kind == "start"] == [best - 1]
    assert whole.read()["best_epoch"] == half.read()["best_epoch"]
    assert whole.read()["test"] == half.read()["test"]


def test_a_run_trains_again_from_its_own_file(
    grid: list[Any], train: Any, last_state: Any, same: Any
) -> None:
    """The hyperparams.json of a run folder gives that run again, bit for bit."""
    folders = train(grid)
    for folder in folders:
        request = read_request(folder.hyperparams)
        points = request.points()
        (spec,) = make_specs(request, points, check_effects(request, points), 99)
        (again,) = train([spec.hyps])
        assert not differing(same, last_state(folder), last_state(again))


def test_training_leaves_the_global_generators_alone(
    grid: list[Any], train: Any
) -> None:
    """Numbers drawn by python, numpy and torch go on as if nothing was trained."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist())
    torch_before = torch.get_rng_state()
    train(grid)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(torch_before, torch.get_rng_state())


def test_the_global_generators_do_not_enter(
    grid: list[Any], train: Any, last_state: Any, same: Any
) -> None:
    """A run ends the same whatever was drawn before it in the process."""
    torch.manual_seed(1)
    (one,) = train(grid[:1])
    torch.manual_seed(2)
    random.seed(2)
    (other,) = train(grid[:1])
    assert not differing(same, last_state(one), last_state(other))


def test_other_seeds_give_other_runs(
    grid: list[Any], train: Any, last_state: Any, same: Any
) -> None:
    """The seed enters the weights."""
    other = grid[0].model_copy(update={"seed": 6})
    states = [
        last_state(train([one])[0])["model_state_dict"] for one in (grid[0], other)
    ]
    assert not same(*states)


def test_a_run_done_is_not_trained_again(grid: list[Any], train: Any) -> None:
    """Asking for a run that is done starts nothing."""
    folders = train(grid)
    events: list[Event] = []
    train(grid, folders=folders, report=events.append)
    assert events == []


def test_a_run_claimed_by_another_is_left_to_it(
    grid: list[Any], train: Any, make_folder: Any
) -> None:
    """Of a cohort only the runs that nobody else holds are trained."""
    folders = [make_folder(one) for one in grid]
    claim = Claim(folders[1].claim)
    assert claim.acquire()
    train(grid, folders=folders)
    claim.release()
    assert [folder.read()["state"] for folder in folders] == ["done", "pending", "done"]


# --- one use of random numbers does not move another ------------------------------


@dataclasses.dataclass
class Recorded:
    """A retina run: weights before training, batches, generators after."""

    initial: dict[str, Tensor]
    asked: list[list[int]]
    generators: dict[str, Tensor]
    final: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Recorder:
    """A split that writes down which samples are asked for."""

    split: Any
    asked: list[list[int]]

    def __len__(self) -> int:
        return len(self.split)

    @property
    def targets(self) -> Tensor:
        return self.split.targets

    def batch(self, indices: Tensor) -> Batch:
        self.asked.append(indices.tolist())
        return self.split.batch(indices)


@pytest.fixture
def record(
    recording: Path, retina_hyps: Any, make_folder: Any
) -> Callable[..., Recorded]:
    """Function that trains a retina run of some keys and records it."""

    def train_recorded(**keys: Any) -> Recorded:
        hyps = retina_hyps(recording, **keys)
        folder = make_folder(hyps)
        claim = Claim(folder.claim)
        assert claim.acquire()
        run = LiveRun(hyps, claim, folder, CPU)
        run.begin_attempt({})
        data = RetinaTrainer.open_data(hyps, CPU)
        asked: list[list[int]] = []
        recorded = dataclasses.replace(data, train=Recorder(data.train, asked))
        initial: dict[str, Tensor] = {}

        def keep(event: Event) -> None:
            if event.kind == "start":
                state = run.model.state_dict()
                initial.update({name: t.clone() for name, t in state.items()})

        RetinaTrainer(RETINA_LIBRARY, [run], recorded, keep).fit()
        assert run.state is RunState.DONE
        generators = {use: g.get_state() for use, g in run.random.generators.items()}
        return Recorded(initial, asked, generators, run.model.state_dict())

    return train_recorded


@pytest.mark.parametrize("keys", [{"noise": 0.3}, {"drop_p": 0.2}])
def test_noise_and_dropout_leave_weights_and_order_alone(
    record: Callable[..., Recorded], same: Any, keys: dict[str, Any]
) -> None:
    """Switched on, they change neither initial weights nor batches, only results."""
    off = record(noise=0.0, drop_p=0.0)
    on = record(**{"noise": 0.0, "drop_p": 0.0, **keys})
    assert same(off.initial, on.initial)
    assert off.asked == on.asked
    assert not same(off.final, on.final)


def test_dropout_leaves_the_noise_alone(record: Callable[..., Recorded]) -> None:
    """The noise generator ends in the same state with and without dropout."""
    without, with_dropout = record(noise=0.1), record(noise=0.1, drop_p=0.3)
    assert torch.equal(without.generators["noise"], with_dropout.generators["noise"])
    assert not torch.equal(
        without.generators["dropout"], with_dropout.generators["dropout"]
    )


def test_evaluation_draws_nothing(record: Callable[..., Recorded]) -> None:
    """Noise is drawn for training windows only: as many numbers as they have units."""
    shown = record(noise=0.1, n_epochs=1)
    generator = seeded_generator(5, "noise")
    for indices in shown.asked:
        torch.empty(len(indices), 3, 4, 4).normal_(0.0, 0.1, generator=generator)
    assert torch.equal(generator.get_state(), shown.generators["noise"])


# --- terms ------------------------------------------------------------------------


def test_val_loss_is_the_criterion_alone(
    record: Callable[..., Recorded], train: Any, recording: Path, retina_hyps: Any
) -> None:
    """With a tiny step, l1 adds to the training loss and not to the validation's."""
    keys: dict[str, Any] = {"lr": 1e-12, "optimizer": "SGD", "noise": 0.0}
    keys |= {"bnorm": False, "n_epochs": 1}
    plain, penalised = (
        train([retina_hyps(recording, l1=l1, **keys)])[0].epochs.read()[0]
        for l1 in (0.0, 2.0)
    )
    assert penalised["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-6)
    term = penalised["l1_term"]
    assert term > 0
    assert penalised["loss"] == pytest.approx(plain["loss"] + term, rel=1e-5)
