"""What training does to numbers, against calculations by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from strategies import OF_SET
from torch import Tensor

from gridrun.cli import main
from gridrun.store import RunFolder
from gridrun.sweep import Run, Sweep, run_sweep
from gridrun.training.event import Event
from imgclass.trainer import ImageTrainer
from torchdeepretina.trainer import RetinaTrainer

Floats = NDArray[np.float64]
Train = Callable[..., list[RunFolder]]
STILL: dict[str, Any] = {"optimizer": "SGD", "lr": 1e-300, "n_epochs": 1}
# one linear layer, so that gradients can be written down
LN: dict[str, Any] = {
    "model_type": "LN",
    "precision": "float64",
    "optimizer": "SGD",
    "n_epochs": 1,
    "batch_size": 1000,
    "cells": "all",
}
SMALL_NET: dict[str, Any] = {"bnorm": False, "precision": "float64", "augment": []}
N_LAGS = 4
# of 131 windows: the last 13 validate, 7 lie too near them
N_TRAIN, N_VAL = 111, 13


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here pulls the plug, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# --- a hand-made metric -----------------------------------------------------------


@pytest.fixture
def follow(
    monkeypatch: pytest.MonkeyPatch, image_set: Path, image_hyps: Any, train: Train
) -> Callable[..., list[RunFolder]]:
    """Function (curves, *keys) that trains a cohort whose validation is made up.

    Run i has val_acc and val_loss `curves[i][k]` in epoch k + 1.
    """

    def run(curves: Sequence[Sequence[float]], *keys: Mapping[str, Any]) -> Any:
        hyps = [
            image_hyps(image_set, batch_size=100, **{"n_epochs": len(curves[0]), **one})
            for one in keys
        ]

        def measure(self: Any, run: Any, split: Any, found: Any) -> dict[str, float]:
            if split is self.data.test:
                return {"loss": 0.0, "acc": 0.0}
            value = curves[run.number % len(curves)][run.epoch]
            return {"loss": value, "acc": value}

        monkeypatch.setattr(ImageTrainer, "measure", measure)
        return train(hyps)

    return run


def epochs(folder: RunFolder) -> list[int]:
    return [int(row["epoch"]) for row in folder.epochs.read()]


def rates(folder: RunFolder) -> list[float]:
    return [row["lr"] for row in folder.epochs.read()]


# --- schedules --------------------------------------------------------------------

FLAT = [1.0] * 35
SCHEDULES = [
    ("StepLR", {"step_size": 4}, [0.1 * 0.1 ** (k // 4) for k in range(35)]),
    (
        "StepLR",
        {"step_size": 3, "gamma": 0.5},
        [0.1 / 2 ** (k // 3) for k in range(35)],
    ),
    (
        "MultiStepLR",
        None,
        [0.1] * 10 + [0.01] * 10 + [0.001] * 10 + [0.0001] * 5,
    ),
    (
        "CosineAnnealingLR",
        None,
        [0.1 * (1 + math.cos(math.pi * k / 35)) / 2 for k in range(35)],
    ),
    ("ExponentialLR", {"gamma": 0.9}, [0.1 * 0.9**k for k in range(35)]),
    # nine epochs that are no better than the first: half the rate after the ninth
    ("ReduceLROnPlateau", None, [0.1] * 10 + [0.05] * 9 + [0.025] * 9 + [0.0125] * 7),
    (None, None, [0.1] * 35),
]


@pytest.mark.parametrize(("name", "args", "expected"), SCHEDULES)
def test_the_logged_rate_follows_the_formula(
    follow: Any, name: str | None, args: Any, expected: list[float]
) -> None:
    """Each epoch's row has the rate that the epoch was trained with."""
    keys = {"lr": 0.1, "scheduler": name}
    if args is not None:
        keys["scheduler_args"] = args
    (folder,) = follow([FLAT], keys)
    assert epochs(folder) == list(range(1, 36))
    assert rates(folder) == pytest.approx(expected, rel=1e-9)


UP = [float(k) for k in range(1, 7)]
PLATEAUS = [
    ("val_loss", UP[::-1], 1, [1, 1, 1, 1, 1, 1]),
    ("val_loss", UP, 1, [1, 1, 1, 0.5, 0.5, 0.25]),
    ("val_acc", UP, 1, [1, 1, 1, 1, 1, 1]),
    ("val_acc", UP[::-1], 1, [1, 1, 1, 0.5, 0.5, 0.25]),
    ("val_loss:max", UP, 0, [1, 1, 1, 1, 1, 1]),
    ("val_acc:min", UP, 0, [1, 1, 0.5, 0.25, 0.125, 0.0625]),
    ("val_loss", [3, 4, 2, 5, 5, 1], 0, [1, 1, 0.5, 0.5, 0.25, 0.125]),
]


@pytest.mark.parametrize(("monitor", "curve", "patience", "factors"), PLATEAUS)
def test_a_plateau_is_what_the_monitor_calls_one(
    follow: Any,
    monitor: str,
    curve: list[float],
    patience: int,
    factors: list[float],
) -> None:
    """Accuracies are to rise and losses to fall, unless the monitor says otherwise."""
    keys = {
        "lr": 0.1,
        "monitor": monitor,
        "scheduler": "ReduceLROnPlateau",
        "scheduler_args": {"factor": 0.5, "patience": patience},
    }
    (folder,) = follow([curve], keys)
    assert rates(folder) == pytest.approx([0.1 * factor for factor in factors])


# --- epochs, the best of them, and early stopping ---------------------------------


@pytest.mark.parametrize("n_epochs", [1, 2, 7])
@pytest.mark.parametrize("library", ["retina", "images"])
def test_n_epochs_is_the_number_of_rows(
    train: Train,
    recording: Path,
    image_set: Path,
    retina_hyps: Any,
    image_hyps: Any,
    library: str,
    n_epochs: int,
) -> None:
    """Exactly so many passes are made, recorded and kept."""
    root, hyps = {
        "retina": (recording, retina_hyps),
        "images": (image_set, image_hyps),
    }[library]
    (folder,) = train([hyps(root, n_epochs=n_epochs, save_every_epoch=True)])
    assert epochs(folder) == list(range(1, n_epochs + 1))
    assert len(list(folder.checkpoints.glob("epoch_*.pt"))) == n_epochs


STOPS = [
    # monitor, patience, min_delta, curve, epochs trained
    ("val_loss", 2, 0.0, [5, 4, 4, 4, 1, 1], 4),
    ("val_loss", 2, 0.0, [5, 4, 6, 3, 7, 8, 1], 6),
    ("val_loss", 1, 0.0, [5, 5, 1], 2),
    ("val_loss", 1, 0.0, [5, 4, 3, 2], 4),
    ("val_acc", 2, 0.0, [1, 2, 2, 1, 9], 4),
    ("val_acc:min", 1, 0.0, [1, 2, 0], 2),
    # each step is too small, but three together are not: counted from the last mark
    ("val_loss", 3, 1.0, [5, 4.6, 4.2, 3.8, 3.4, 3.0, 2.6], 7),
    ("val_loss", 2, 1.0, [5, 4.6, 4.2, 3.8, 3.4], 3),
    # an improvement must exceed the least one
    ("val_loss", 1, 1.0, [5, 4, 1], 2),
    ("val_loss", 1, 0.999, [5, 4, 3], 3),
    ("val_acc", 1, 1.0, [1, 2, 9], 2),
    ("val_acc", 1, 0.5, [1, 2, 3], 3),
]


@pytest.mark.parametrize(("monitor", "patience", "delta", "curve", "n"), STOPS)
def test_early_stopping_by_hand(
    follow: Any, monitor: str, patience: int, delta: float, curve: Any, n: int
) -> None:
    """A run ends after `patience` epochs in a row that do not improve enough."""
    keys = {
        "monitor": monitor,
        "early_stop_patience": patience,
        "early_stop_min_delta": delta,
    }
    (folder,) = follow([[float(value) for value in curve]], keys)
    assert epochs(folder) == list(range(1, n + 1))
    assert folder.read()["state"] == "done"


def test_early_stopping_counts_each_run_of_a_cohort(follow: Any) -> None:
    """Runs with their own curve and patience stop each at its own epoch, twice over."""
    curves = [[1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 5, 5, 1], [6.0, 5, 4, 3, 2, 1]]
    keys = [{"early_stop_patience": 1}, {"early_stop_patience": 2}]
    for _ in range(2):
        folders = follow(curves, *keys, {"early_stop_patience": 1})
        assert [len(epochs(folder)) for folder in folders] == [2, 5, 6]


BESTS = [
    ("val_loss", [3, 1, 2, 1, 5], 2),
    ("val_acc", [3, 1, 2, 5, 5], 4),
    ("val_loss:max", [3, 1, 2, 5, 5], 4),
    ("val_acc:min", [3, 1, 2, 1, 5], 2),
    ("val_loss", [2, 2, 2], 1),
]


@pytest.mark.parametrize(("monitor", "curve", "best"), BESTS)
def test_the_best_epoch_by_hand(
    follow: Any, monitor: str, curve: Any, best: int
) -> None:
    """The least loss or the largest accuracy; of equals the earlier."""
    (folder,) = follow([[float(value) for value in curve]], {"monitor": monitor})
    assert folder.read()["best_epoch"] == best
    assert folder.read_index()["best"] == best


@pytest.mark.parametrize(
    ("monitor", "least"), [("loss", True), ("loss:min", True), ("loss:max", False)]
)
def test_the_training_loss_may_be_monitored(
    follow: Any, monitor: str, least: bool
) -> None:
    """With loss the best epoch is that of the least training loss."""
    (folder,) = follow([[1.0, 2.0, 3.0]], {"monitor": monitor})
    losses = [row["loss"] for row in folder.epochs.read()]
    wanted = min(losses) if least else max(losses)
    assert folder.read()["best_epoch"] == 1 + losses.index(wanted)


def test_another_metric_is_monitored_by_name(
    train: Train, recording: Path, retina_hyps: Any
) -> None:
    """A term of the loss is followed where it is named with a direction."""
    keys = {"l1": 0.1, "n_epochs": 4, "monitor": "l1_term:max"}
    (folder,) = train([retina_hyps(recording, **keys)])
    terms = [row["l1_term"] for row in folder.epochs.read()]
    assert folder.read()["best_epoch"] == 1 + terms.index(max(terms))


# --- one step by hand -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Linear:
    """Weights (U, D) and biases (U,) of an LN model."""

    weight: Floats
    bias: Floats

    @classmethod
    def of(cls, folder: RunFolder, last_state: Any) -> Linear:
        state = last_state(folder)["model_state_dict"]
        (weight,) = (v for k, v in state.items() if k.endswith("weight"))
        (bias,) = (v for k, v in state.items() if k.endswith("bias"))
        return cls(weight.numpy().reshape(len(bias), -1), bias.numpy())

    def less(self, other: Linear) -> Floats:
        """The difference as one vector."""
        parts = [self.weight - other.weight, self.bias - other.bias]
        return np.concatenate([part.ravel() for part in parts])


@pytest.fixture(scope="module")
def windows(recording: Path) -> dict[str, tuple[Floats, Floats]]:
    """Inputs (N, D) and targets (N, U) of train and val, from the file by a loop."""
    with h5py.File(recording / "rec" / "movie.h5") as file:
        frames = file["train/stimulus"][:].astype(np.float64)
        rates = file["train/response/firing_rate_10ms"][:].astype(np.float32)
    last_train = N_TRAIN + N_LAGS - 1  # frames that some training window uses
    shown = frames[:last_train]
    scaled = (frames - shown.mean()) / (shown.std() + 1e-7)
    starts = {"train": range(N_TRAIN), "val": range(131 - N_VAL, 131)}
    found = {}
    for split, firsts in starts.items():
        x = np.stack([scaled[i : i + N_LAGS].ravel() for i in firsts])
        y = np.stack([rates[:, i + N_LAGS] for i in firsts])
        # inputs are normalised in float32
        found[split] = (x.astype(np.float32).astype(np.float64), y.astype(np.float64))
    return found


def sigmoid(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-x))
    return found


def gradient(
    model: Linear, x: Floats, y: Floats, kind: str = "poisson", l1: float = 0.0
) -> Floats:
    """Of the mean loss over samples and units, plus the l1 term; as one vector."""
    raw = x @ model.weight.T + model.bias
    z = raw if kind == "log" else np.log1p(np.exp(raw))
    slope = 1.0 if kind == "log" else sigmoid(raw)
    by_z = {
        "poisson": 1 - y / (z + 1e-8),
        "log": np.exp(z) - y,
        "mse": 2 * (z - y),
    }[kind] / y.size
    by_raw = (by_z + l1 * np.sign(z) / len(y)) * slope
    return np.concatenate([(by_raw.T @ x).ravel(), by_raw.sum(0)])


@pytest.fixture
def step(
    train: Train, recording: Path, retina_hyps: Any, last_state: Any
) -> Callable[..., tuple[Linear, Linear]]:
    """Function (**keys) that gives an LN model before and after one SGD step."""

    def run(**keys: Any) -> tuple[Linear, Linear]:
        given = [
            retina_hyps(recording, **{**LN, "gc_bias": True, **keys, "lr": lr})
            for lr in (1e-300, keys.get("lr", 0.01))
        ]
        return tuple(Linear.of(one, last_state) for one in train(given))  # type: ignore[return-value]

    return run


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("poisson", {}),
    ("mse", {"lossfxn": "MSELoss"}),
    ("log", {"log_poisson": True, "softplus": False}),
]


@pytest.mark.parametrize(("kind", "keys"), KINDS)
@pytest.mark.parametrize("l1", [0.0, 0.3])
def test_an_sgd_step_by_hand(
    step: Any, windows: Any, kind: str, keys: dict[str, Any], l1: float
) -> None:
    """The step is minus the rate times the gradient of loss and l1 term."""
    before, after = step(**keys, l1=l1)
    expected = -0.01 * gradient(before, *windows["train"], kind, l1)
    np.testing.assert_allclose(after.less(before), expected, rtol=1e-6, atol=1e-9)


def test_l2_adds_the_weights_to_the_gradient(step: Any, windows: Any) -> None:
    """Coupled weight decay: all parameters shrink by lr · l2, biases too."""
    before, after = step(l2=0.5)
    zero = Linear(np.zeros_like(before.weight), np.zeros_like(before.bias))
    slope = gradient(before, *windows["train"]) + 0.5 * before.less(zero)
    np.testing.assert_allclose(after.less(before), -0.01 * slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("clip", [1e-3, 0.1])
def test_grad_clip_bounds_the_step(step: Any, windows: Any, clip: float) -> None:
    """A longer gradient is cut to the length, its direction kept."""
    before, after = step(grad_clip=clip)
    slope = gradient(before, *windows["train"])
    assert np.linalg.norm(slope) > clip
    moved = after.less(before)
    assert np.linalg.norm(moved) == pytest.approx(0.01 * clip, rel=1e-4)
    np.testing.assert_allclose(
        moved, -0.01 * clip * slope / np.linalg.norm(slope), rtol=1e-4, atol=1e-10
    )


def test_grad_clip_leaves_short_gradients(step: Any) -> None:
    """A bound that is not reached changes nothing, bit for bit."""
    (_, free), (_, bounded) = step(), step(grad_clip=1e6)
    assert not free.less(bounded).any()


# --- losses by hand ---------------------------------------------------------------


def softmax_loss(logits: Floats, labels: Any) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-log_p[np.arange(len(labels)), labels].mean())


def image_loss(name: str, logits: Floats, labels: Any) -> float:
    one_hot = np.eye(logits.shape[1])[labels]
    if name == "CrossEntropyLoss":
        return softmax_loss(logits, labels)
    if name == "MSELoss":
        return float(((logits - one_hot) ** 2).mean())
    return float((np.exp(logits) - one_hot * logits).mean())


def retina_loss(name: str, rates: Floats, targets: Floats) -> float:
    if name == "MSELoss":
        return float(((rates - targets) ** 2).mean())
    return float((rates - targets * np.log(rates + 1e-8)).mean())


@pytest.fixture
def measured(
    train: Train, recording: Path, image_set: Path, retina_hyps: Any, image_hyps: Any
) -> Callable[..., tuple[Run, dict[str, float]]]:
    """Function (library, **keys) that gives a run and its metrics, test included."""

    def run(library: str, **keys: Any) -> tuple[Run, dict[str, float]]:
        if library == "retina":
            usual = {"noise": 0.0, "bnorm": False, "precision": "float64", **STILL}
            hyps = retina_hyps(recording, **{**usual, **keys})
        else:
            hyps = image_hyps(image_set, **{**SMALL_NET, **STILL, **keys})
        (folder,) = train([hyps])
        record = folder.read()
        assert record["error"] is None
        return Run(folder.path), folder.epochs.read()[-1] | record["test"]

    return run


def loss_by_hand(run: Run, split: str, epoch: Any = "best") -> float:
    """The loss of a run's predictions."""
    found = run.predict(split, epoch)
    name = run.hyps.lossfxn
    if run.library.name == "imgclass":
        return image_loss(name, found.logits.astype(np.float64), found.labels)
    rates, targets = (one.astype(np.float64) for one in (found.rates, found.targets))
    return retina_loss(name, rates, targets)


LOSSES = [
    ("retina", {}),
    ("retina", {"lossfxn": "MSELoss"}),
    ("retina", {"log_poisson": True}),
    ("retina", {"log_poisson": True, "softplus": False}),
    ("retina", {"output_scale": "std"}),
    ("retina", {"output_scale": "std", "log_poisson": True}),
    ("images", {}),
    ("images", {"lossfxn": "MSELoss"}),
    ("images", {"lossfxn": "PoissonNLLLoss"}),
]


@pytest.mark.parametrize(("library", "keys"), LOSSES)
def test_logged_losses_are_those_of_the_predictions(
    measured: Any, library: str, keys: dict[str, Any]
) -> None:
    """In train, val and test; in training over batches of which the last is smaller."""
    run, metrics = measured(library, **keys, batch_size=25)
    for name, split in (("loss", "train"), ("val_loss", "val"), ("test_loss", "test")):
        expected = loss_by_hand(run, split)
        assert metrics[name] == pytest.approx(expected, rel=2e-6), split


@pytest.mark.parametrize("library", ["retina", "images"])
def test_evaluation_depends_on_neither_batch_size_nor_l1(
    measured: Any, library: str
) -> None:
    """With equal weights val and test metrics are equal bit for bit."""
    found = [
        measured(library, batch_size=size, l1=l1)[1]
        for size, l1 in ((7, 0.0), (32, 0.0), (32, 5.0))
    ]
    names = [name for name in found[0] if name.startswith(("val_", "test_"))]
    assert len(names) >= 4
    for other in found[1:]:
        assert {n: other[n] for n in names} == {n: found[0][n] for n in names}
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-12)
    assert found[2]["loss"] > found[1]["loss"]


@pytest.mark.parametrize("batch_size", [16, 50])
def test_the_l1_term_is_the_mean_sum_of_outputs(measured: Any, batch_size: int) -> None:
    """It is l1 · mean over samples of Σ|z|, whatever the batch size."""
    run, metrics = measured("retina", l1=0.7, batch_size=batch_size)
    rates = run.predict("train").rates.astype(np.float64)
    expected = 0.7 * np.abs(rates).sum(1).mean()
    assert metrics["l1_term"] == pytest.approx(expected, rel=1e-6)
    alone = loss_by_hand(run, "train")
    assert metrics["loss"] == pytest.approx(alone + expected, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "batch_size", "n_steps"), [(33, 16, 2), (34, 16, 3), (32, 16, 2), (17, 16, 1)]
)
@pytest.mark.parametrize("library", ["retina", "images"])
def test_a_single_left_over_joins_the_batch_before(
    train: Train,
    recording: Path,
    image_set: Path,
    retina_hyps: Any,
    image_hyps: Any,
    library: str,
    n: int,
    batch_size: int,
    n_steps: int,
) -> None:
    """Batch norm, which a batch of one would break, is trained with every sample."""
    root, make = {
        "retina": (recording, retina_hyps),
        "images": (image_set, image_hyps),
    }[library]
    hyps = make(root, batch_size=batch_size, train_set_size=n, n_epochs=1)
    events: list[Event] = []
    (folder,) = train([hyps], report=events.append)
    assert folder.read()["state"] == "done"
    steps = [event.step for event in events if event.kind == "step"]
    assert steps == list(range(1, n_steps + 1))


@pytest.mark.parametrize(
    ("library", "trainer"), [("retina", RetinaTrainer), ("images", ImageTrainer)]
)
def test_the_test_split_is_scored_once_with_the_best_weights(
    measured: Any, monkeypatch: pytest.MonkeyPatch, library: str, trainer: Any
) -> None:
    """After the last epoch, and not with the last epoch's weights."""
    measure = trainer.measure
    scored: list[int] = []

    def measure_and_note(self: Any, run: Any, split: Any, found: Any) -> Any:
        if split is self.data.test:
            scored.append(run.epoch)
        return measure(self, run, split, found)

    monkeypatch.setattr(trainer, "measure", measure_and_note)
    keys = {"lr": 0.01, "n_epochs": 3, "optimizer": "Adam", "monitor": "loss:max"}
    run, metrics = measured(library, **keys)
    assert scored == [3]
    assert run.record["best_epoch"] == 1
    expected = loss_by_hand(run, "test", "best")
    assert metrics["test_loss"] == pytest.approx(expected, rel=2e-6)
    assert loss_by_hand(run, "test", "last") != pytest.approx(expected, rel=1e-4)


# --- precision --------------------------------------------------------------------


@pytest.mark.parametrize("library", ["retina", "images"])
def test_bfloat16_keeps_weights_in_float32(measured: Any, library: str) -> None:
    """Weights and optimizer stay float32; the losses are near those of float32."""
    keys = {"lr": 0.01, "optimizer": "Adam", "n_epochs": 2}
    found = [
        measured(library, **keys, precision=name) for name in ("float32", "bfloat16")
    ]
    states = [run.checkpoint("last") for run, _ in found]
    for state in states:
        tensors = [*state["model_state_dict"].values()]
        for slots in state["optim_state_dict"]["state"].values():
            tensors += [value for value in slots.values() if torch.is_tensor(value)]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
    weights = [
        torch.cat([one.flatten() for one in state["model_state_dict"].values()])
        for state in states
    ]
    assert not torch.equal(*weights)
    for name in ("loss", "val_loss", "test_loss"):
        assert found[1][1][name] == pytest.approx(found[0][1][name], rel=0.05)


@pytest.mark.parametrize("library", ["retina", "images"])
def test_float64_is_float64_throughout(measured: Any, library: str) -> None:
    """State dict, reloaded model and predictions; losses to float64 by hand."""
    keys = {"lr": 0.01, "optimizer": "Adam", "n_epochs": 2}
    run, metrics = measured(library, **keys)
    saved = run.checkpoint("best")["model_state_dict"]
    model = run.load_model("best")
    assert {t.dtype for t in saved.values() if t.is_floating_point()} == {torch.float64}
    loaded = model.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert all(loaded[name].dtype == saved[name].dtype for name in saved)
    expected = loss_by_hand(run, "test")
    assert metrics["test_loss"] == pytest.approx(expected, rel=1e-6)


# --- a part of the samples --------------------------------------------------------


@pytest.mark.parametrize("library", ["retina", "images"])
def test_set_sizes_take_the_first_samples(measured: Any, library: str) -> None:
    """The first n of each side of the same split, in the order of the file."""
    whole, _ = measured(library)
    part, metrics = measured(library, train_set_size=20, val_set_size=5)
    name = "targets" if library == "retina" else "labels"
    for split, n in (("train", 20), ("val", 5), ("test", None)):
        all_of, some = (getattr(run.predict(split), name) for run in (whole, part))
        np.testing.assert_array_equal(some, all_of[:n])
    assert metrics["val_loss"] == pytest.approx(loss_by_hand(part, "val"), rel=1e-6)


# --- normalisation ----------------------------------------------------------------


def normalised(kind: str, x: Floats, training: Floats) -> Floats:
    """x (N, C, H, W) by statistics of other samples of that shape."""
    if kind == "none":
        return x
    if kind == "per_sample":
        return x - x.mean((1, 2, 3), keepdims=True)
    axes = (0, 2, 3) if kind == "per_channel" else (0, 1, 2, 3)
    mean = training.mean(axes, keepdims=True)
    std = training.std(axes, keepdims=True)
    found: Floats = (x - mean) / (std + 1e-7)
    return found


@pytest.fixture(scope="module")
def coloured(
    tmp_path_factory: pytest.TempPathFactory, write_images: Callable[..., Any]
) -> tuple[Path, Floats]:
    """A data root with images of three unequal channels; its levels from 0 to 1."""
    root = tmp_path_factory.mktemp("coloured")
    path = root / "set" / "images.h5"
    images = write_images(path, shape=(3, 6, 6))["train/images"]
    images = (images // np.array([1, 2, 5])[:, None, None]).astype(np.uint8)
    write_images(path, shape=(3, 6, 6), changes={"train/images": images})
    return root, images / 255


KINDS_OF_NORM = ["none", "global", "per_channel", "per_sample"]


@pytest.mark.parametrize("kind", KINDS_OF_NORM)
def test_images_are_normalised_by_training_images(
    measured: Any, coloured: tuple[Path, Floats], kind: str
) -> None:
    """The model's outputs are those of inputs normalised by hand."""
    root, levels = coloured
    keys = {"img_shape": [3, 6, 6], "shuffle": False, "data_root": str(root)}
    run, metrics = measured("images", **keys, normalizer=kind)
    x = normalised(kind, levels[59:], levels[:59])
    with torch.no_grad():
        expected = run.load_model()(torch.from_numpy(x)).numpy()
    found = run.predict("val")
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-6)
    loss = softmax_loss(expected, found.labels)
    assert metrics["val_loss"] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS_OF_NORM)
def test_windows_are_normalised_by_training_windows(
    measured: Any, recording: Path, kind: str
) -> None:
    """As for images; global counts each frame once, per_channel each window's."""
    run, metrics = measured("retina", normalizer=kind)
    with h5py.File(recording / "rec" / "movie.h5") as file:
        frames = file["train/stimulus"][:].astype(np.float64)
    windows = np.stack([frames[i : i + N_LAGS] for i in range(131)])
    training = windows[:N_TRAIN]
    if kind == "global":
        training = frames[: N_TRAIN + N_LAGS - 1][:, None]
    x = normalised(kind, windows[-N_VAL:], training)
    model: Any = run.load_model()
    with torch.no_grad():
        expected = model.link(model(torch.from_numpy(x))).numpy()
    found = run.predict("val")
    np.testing.assert_allclose(found.rates, expected, rtol=1e-4, atol=1e-5)
    loss = retina_loss("PoissonNLLLoss", expected, found.targets.astype(np.float64))
    assert metrics["val_loss"] == pytest.approx(loss, rel=1e-5)


# --- warm start -------------------------------------------------------------------

WARM: dict[str, Any] = {
    "exp_name": "warm",
    **OF_SET,
    "batch_size": 16,
    "n_epochs": 1,
    "lr": 1e-30,
    "optimizer": "SGD",
    "bnorm": False,
    "seed": 5,
    "executor": "serial",
}


def bits(weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """A state dict as comparable values."""
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


def last_bits(run: Run) -> dict[str, bytes]:
    return bits(run.checkpoint("last")["model_state_dict"])


@dataclasses.dataclass(frozen=True)
class Warm:
    """Where sweeps start from a file of weights."""

    root: Path
    data: Path

    @property
    def weights(self) -> Path:
        return self.root / "weights.pt"

    def keys(self, **given: Any) -> dict[str, Any]:
        return {**WARM, "data_root": str(self.data), **given}

    def run(self, name: str, **given: Any) -> Sweep:
        """Train in a folder of that name."""
        keys = self.keys(save_root=str(self.root / name), **given)
        return run_sweep(keys, quiet=True)

    def command(self, ranges: Any = None, **given: Any) -> int:
        """The exit code of a command that would write to `new`."""
        path = self.root / "hyperparams.json"
        path.write_text(json.dumps(self.keys(**given)))
        arguments = ["run", str(path)]
        if ranges is not None:
            (self.root / "ranges.json").write_text(json.dumps(ranges))
            arguments.append(str(self.root / "ranges.json"))
        return main([*arguments, "--quiet", "--save-root", str(self.root / "new")])


@pytest.fixture
def warm(tmp_path: Path, image_set: Path) -> Warm:
    """A folder with `weights.pt`, the checkpoint of a run with another seed."""
    found = Warm(tmp_path, image_set)
    (run,) = found.run("before", seed=99).runs()
    shutil.copy(run.folder.checkpoint_path(1), found.weights)
    return found


def test_training_starts_from_the_weights_of_the_file(warm: Warm) -> None:
    """With a rate that moves nothing the weights end as they are in the file."""
    (cold,) = warm.run("cold").runs()
    (run,) = warm.run("a", init_weights_path=str(warm.weights)).runs()
    content = torch.load(warm.weights, weights_only=True)
    assert last_bits(run) == bits(content["model_state_dict"])
    assert last_bits(run) != last_bits(cold)


def test_the_sweep_keeps_the_file_under_its_hash(warm: Warm) -> None:
    """<sweep>/init_weights/<sha256>.pt, which the run's own file names."""
    sweep = warm.run("a", init_weights_path=str(warm.weights))
    digest = hashlib.sha256(warm.weights.read_bytes()).hexdigest()
    kept = sweep.folder.path / "init_weights" / f"{digest}.pt"
    assert kept.read_bytes() == warm.weights.read_bytes()
    (run,) = sweep.runs()
    assert run.hyps.init_weights_path == str(kept)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_warm_run_is_known_by_content_not_by_path(warm: Warm) -> None:
    """The same bytes elsewhere are the same run; other bytes are another."""
    copy = warm.root / "copy.pt"
    shutil.copy(warm.weights, copy)
    for path in (warm.weights, copy):
        sweep = warm.run("a", init_weights_path=str(path))
        assert [len(run.record["attempts"]) for run in sweep.runs()] == [1]
    content = torch.load(copy, weights_only=True)
    for tensor in content["model_state_dict"].values():
        tensor.mul_(2)
    torch.save(content, copy)
    sweep = warm.run("a", init_weights_path=str(copy))
    assert [run.number for run in sweep.runs()] == [0, 1]
    first, second = sweep.runs()
    assert last_bits(second) == bits(content["model_state_dict"])
    assert last_bits(first) != last_bits(second)
    assert len(list((sweep.folder.path / "init_weights").iterdir())) == 2


def test_a_warm_run_trains_again_without_the_first_file(warm: Warm) -> None:
    """Its own hyperparams.json needs only what the sweep keeps."""
    keys = {"init_weights_path": str(warm.weights), "lr": 0.1, "n_epochs": 2}
    (run,) = warm.run("a", **keys).runs()
    warm.weights.unlink()
    own = str(run.folder.hyperparams)
    assert main(["run", own, "--quiet"]) == 0  # the same run: nothing to do
    assert len(Run(run.folder.path).record["attempts"]) == 1
    assert main(["run", own, "--quiet", "--save-root", str(warm.root / "b")]) == 0
    (again,) = Sweep(warm.root / "b" / "warm").runs()
    assert last_bits(again) == last_bits(run)
    assert Path(str(again.hyps.init_weights_path)).is_relative_to(warm.root / "b")


def test_weights_may_be_swept(warm: Warm) -> None:
    """Cold and warm are two grid points; two paths of equal bytes are refused."""
    copy = warm.root / "copy.pt"
    shutil.copy(warm.weights, copy)
    paths = [None, str(warm.weights)]
    assert warm.command({"init_weights_path": paths}) == 0
    runs = Sweep(warm.root / "new" / "warm").runs()
    assert len({str(last_bits(run)) for run in runs}) == 2
    shutil.rmtree(warm.root / "new")
    assert warm.command({"init_weights_path": [str(warm.weights), str(copy)]}) == 2
    assert not (warm.root / "new").exists()


def spoil(kind: str, path: Path) -> dict[str, Any]:
    """Make a file of weights unusable; the keys to use it with."""
    content = torch.load(path, weights_only=True)
    weights = content["model_state_dict"]
    if kind == "absent":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "no checkpoint":
        torch.save({"weights": weights}, path)
    elif kind == "no weights":
        torch.save({"model_state_dict": [1, 2]}, path)
    elif kind == "a number":
        torch.save({"model_state_dict": {**weights, next(iter(weights)): 3}}, path)
    elif kind == "a missing one":
        del weights[next(iter(weights))]
        torch.save(content, path)
    elif kind == "one too many":
        torch.save({"model_state_dict": {**weights, "more": torch.ones(1)}}, path)
    return {"chans": [4]} if kind == "another shape" else {}


SPOILT = [
    "absent",
    "truncated",
    "no checkpoint",
    "no weights",
    "a number",
    "a missing one",
    "one too many",
    "another shape",
]


@pytest.mark.parametrize("is_swept", [False, True])
@pytest.mark.parametrize("kind", SPOILT)
def test_unusable_weights_are_refused(
    warm: Warm, capsys: pytest.CaptureFixture[str], kind: str, is_swept: bool
) -> None:
    """Exit code 2 with the key and the file, nothing written; swept with good ones."""
    good, bad = warm.weights, warm.root / "bad.pt"
    shutil.copy(good, bad)
    keys = spoil(kind, bad)
    if is_swept:
        code = warm.command({"init_weights_path": [None, str(bad)]}, **keys)
    else:
        code = warm.command(init_weights_path=str(bad), **keys)
    assert code == 2
    told = capsys.readouterr().err
    assert "init_weights_path" in told
    assert "bad.pt" in told
    assert "Traceback" not in told
    assert not (warm.root / "new").exists()
