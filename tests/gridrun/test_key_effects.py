"""Every key outside the models: two short sweeps that differ in it alone."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from strategies import OF_MOVIE, OF_SWEEP
from torch import Tensor

import gridrun.readers as reading_ahead
import gridrun.sweep as sweeps
import gridrun.training.job as training_job
from gridrun import claims
from gridrun.config import Hyperparams, key, keys_of
from gridrun.errors import ConfigError, DataError
from gridrun.executors.fork_server import ForkServer
from gridrun.plugins import libraries
from gridrun.sweep import Run, Sweep, load_sweep, run_sweep
from imgclass.trainer import ImageTrainer

RETINA, IMAGES, GENERAL = "torchdeepretina", "imgclass", "general"
FILES = (RETINA, IMAGES)
PLUGINS = {"plugins": str(Path(__file__).parents[1] / "plugins")}
BASE: dict[str, dict[str, Any]] = {
    RETINA: dict(OF_SWEEP) | dict(OF_MOVIE) | {"batch_size": 32},
    IMAGES: dict(OF_SWEEP)
    | {
        "model_type": "SmallNet",
        "dataset": "set",
        "img_shape": [3, 8, 8],
        "chans": [3],
        "ksizes": [3],
        "mid_dims": 5,
        "batch_size": 16,
    },
    GENERAL: dict(OF_SWEEP)
    | PLUGINS
    | {
        "model_type": "Denoiser",
        "dataset": "Waves",
        "lossfxn": "MSELoss",
        "batch_size": 8,
    },
}

# --- what a sweep shows -----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A sweep after training, and what was started for it.

    Args:
        sweep: As trained.
        jobs: Number of runs and the device of each job trained in this process.
        n_readers: Processes that read batches ahead.
        n_workers: Worker processes.
    """

    sweep: Sweep
    jobs: tuple[tuple[int, str], ...]
    n_readers: int
    n_workers: int

    @property
    def runs(self) -> list[Run]:
        return self.sweep.runs()

    @functools.cached_property
    def weights(self) -> list[dict[str, Tensor]]:
        """The last state dict of each run."""
        return [run.checkpoint("last")["model_state_dict"] for run in self.runs]

    def column(self, name: str) -> list[float]:
        """A column of the first run's epochs."""
        return [row[name] for row in self.runs[0].folder.epochs.read()]

    @property
    def attempt(self) -> dict[str, Any]:
        """The first run's attempt."""
        (found,) = self.runs[0].record["attempts"]
        return dict(found)


def equal_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts agree bit for bit."""
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].numpy().tobytes())
        == (other[name].dtype, other[name].numpy().tobytes())
        for name in one
    )


def names(outcome: Outcome) -> list[str]:
    return [run.folder.path.name for run in outcome.runs]


def seeds(outcome: Outcome) -> list[int | None]:
    return [run.hyps.seed for run in outcome.runs]


def files(outcome: Outcome) -> list[int]:
    """Epochs whose file is there."""
    found = outcome.runs[0].folder.path.rglob("epoch_*.pt")
    return sorted(int(path.stem[-4:]) for path in found)


def best_epoch(outcome: Outcome) -> int:
    return int(outcome.runs[0].record["best_epoch"])


def n_samples(outcome: Outcome) -> tuple[int, int]:
    """Training and validation samples."""
    (run, *_) = outcome.runs
    found = run.library.load_trainer().inspect_data(run.hyps).n_samples
    return found["train"], found["val"]


def n_steps(outcome: Outcome) -> int:
    """Updates as Adam counts them."""
    return int(
        outcome.runs[0].checkpoint("last")["optim_state_dict"]["state"][0]["step"]
    )


def opened(outcome: Outcome) -> Any:
    """The run's training windows."""
    (run,) = outcome.runs
    data = run.library.load_trainer().open_data(run.hyps, torch.device("cpu"))
    return data.train


def stored_as(outcome: Outcome) -> torch.dtype:
    """Type of the stimulus in memory."""
    found: torch.dtype = opened(outcome).stimulus.dtype
    return found


def keeps_transforms(outcome: Outcome) -> bool:
    """Whether the transforms of all frames are kept."""
    return opened(outcome).spectra.kept is not None


def cells(outcome: Outcome) -> list[int]:
    found: list[int] = outcome.runs[0].checkpoint("last")["data"]["cells"]
    return found


def types(outcome: Outcome) -> set[torch.dtype]:
    """Floating types of the weights."""
    found = {tensor.dtype for tensor in outcome.weights[0].values()}
    return {dtype for dtype in found if dtype.is_floating_point}


def n_rows(outcome: Outcome) -> int:
    return len(outcome.column("epoch"))


def columns(outcome: Outcome) -> int:
    """Number of columns in the epoch table."""
    return len(outcome.runs[0].folder.epochs.read()[0])


def logged(outcome: Outcome) -> list[str]:
    """Columns of the table of batches."""
    return list(next(iter(outcome.runs[0].folder.batches.read()), {}))


def n_layers_logged(outcome: Outcome) -> int:
    """Layers whose gradients are in it, up to two."""
    names = [name for name in logged(outcome) if name.startswith("grad_norm.")]
    return min(len(names), 2)


def n_evaluations(outcome: Outcome) -> int:
    return len(outcome.runs[0].folder.evaluations.read())


def rates(outcome: Outcome) -> list[float]:
    return outcome.column("lr")


def job_sizes(outcome: Outcome) -> list[int]:
    return [size for size, _ in outcome.jobs]


# --- effects ----------------------------------------------------------------------


def examples(outcome: Outcome) -> dict[str, Any]:
    """What examples.h5 holds."""
    path = outcome.runs[0].folder.path / "examples.h5"
    if not path.exists():
        return {}
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


def n_predicted(outcome: Outcome) -> int:
    """Predictions kept of both epochs."""
    return sum(map(len, examples(outcome).get("prediction", [])))


def has_picture(outcome: Outcome) -> bool:
    return (outcome.runs[0].folder.path / "examples.png").exists()


def n_written(outcome: Outcome) -> int:
    """Lines in the run's diary, the tracker among the plug-ins."""
    path = outcome.runs[0].folder.path / "diary.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


Effect = Callable[[Outcome, Outcome], None]


def other_examples(one: Outcome, other: Outcome) -> None:
    """Another sample is predicted."""
    targets = [examples(outcome)["target"] for outcome in (one, other)]
    assert targets[0].shape == targets[1].shape
    assert not np.array_equal(*targets)


def diagnosed(one: Outcome, other: Outcome) -> None:
    """The diagnostic was computed in both epochs, and its cost recorded."""
    for epoch in (1, 2):
        folder = other.runs[0].folder.path / "diagnostics"
        found = json.loads((folder / f"loudest_000{epoch}.json").read_text())
        assert set(found) == {"largest", "time_s"}
    assert other.runs[0].record["diagnostics_s"] > 0
    assert "diagnostics_s" not in one.runs[0].record


def dw(one: Outcome, other: Outcome) -> None:
    """The weights of the first runs differ."""
    assert not equal_bits(one.weights[0], other.weights[0])


def same_w(one: Outcome, other: Outcome) -> None:
    """Every run of both ends bit for bit the same."""
    for pair in zip(one.weights, other.weights, strict=True):
        assert equal_bits(*pair)


def methods(outcome: Outcome) -> list[str]:
    """How the run's convolutions are computed."""
    return list(outcome.runs[0].record["convolutions"].values())


def rounding_only(one: Outcome, other: Outcome) -> None:
    """Losses agree to rounding, weights not to the bit."""
    assert not equal_bits(one.weights[0], other.weights[0])
    assert one.column("loss") == pytest.approx(other.column("loss"), rel=1e-4)


def other_data(one: Outcome, other: Outcome) -> None:
    """Other weights, from a file of another hash."""
    dw(one, other)
    hashes = [outcome.runs[0].record["data_sha256"] for outcome in (one, other)]
    assert set(hashes[0].values()).isdisjoint(hashes[1].values())


def other_validation_only(one: Outcome, other: Outcome) -> None:
    """Training is the same bit for bit, validation is not."""
    same_w(one, other)
    assert one.column("loss") == other.column("loss")
    assert one.column("val_loss") != other.column("val_loss")


def other_split_only(one: Outcome, other: Outcome) -> None:
    """Weights that do not move are the same, what is measured on them is not."""
    same_w(one, other)
    assert one.column("loss") != other.column("loss")
    assert one.column("val_loss") != other.column("val_loss")


def other_training_only(one: Outcome, other: Outcome) -> None:
    """Weights that do not move see other training inputs, validation the same."""
    same_w(one, other)
    assert one.column("loss") != other.column("loss")
    assert one.column("val_loss") == other.column("val_loss")


def smaller_norm(one: Outcome, other: Outcome) -> None:
    """The trainable weights are smaller."""
    norms = []
    for outcome in (one, other):
        parameters = outcome.runs[0].load_model("last").parameters()
        flat = torch.cat([one.detach().flatten() for one in parameters])
        norms.append(float(flat.norm()))
    assert norms[1] < norms[0]


def repeats_differ(one: Outcome, other: Outcome) -> None:
    """The first repeat is the single run; no two repeats have equal weights."""
    a, b, c = other.weights
    assert equal_bits(one.weights[0], a)
    assert not any(equal_bits(*pair) for pair in ((a, b), (a, c), (b, c)))


def second_is_first(one: Outcome, other: Outcome) -> None:
    """Repeat 1 of a seed is repeat 0 of the next seed."""
    assert equal_bits(one.weights[1], other.weights[0])


def given_seeds(one: Outcome, other: Outcome) -> None:
    """The runs have those seeds, all the split of the first."""
    assert seeds(other) == [9, 4]
    assert {run.hyps.split_seed for run in other.runs} == {9}


def moved(one: Outcome, other: Outcome) -> None:
    """The sweep lies in another folder."""
    assert one.sweep.folder.path.parent != other.sweep.folder.path.parent
    assert other.sweep.folder.path.parent.name == "another"


def its_own_library(one: Outcome, other: Outcome) -> None:
    """What is recorded for null, given, is the same run."""
    same_w(one, other)
    for outcome in (one, other):
        assert outcome.runs[0].hyps.library == outcome.runs[0].library.name


def changed(observe: Callable[[Outcome], Any], before: Any, after: Any) -> Effect:
    """An observable has one value before and another after."""
    assert before != after

    def effect(one: Outcome, other: Outcome) -> None:
        assert observe(one) == before
        assert observe(other) == after

    return effect


# --- the table --------------------------------------------------------------------


class Row(NamedTuple):
    """One change of one key.

    Args:
        value: The new value.
        effects: What must hold of the outcomes before and after; a text: the change
            is refused with it.
        context: What else differs from the base, before and after; `...`: left out.
        only: The library, or several; None: all.
        ranges: What is swept before and after.
    """

    value: Any
    effects: tuple[Effect, ...] | str
    context: Mapping[str, Any] = {}
    only: str | tuple[str, ...] | None = None
    ranges: Mapping[str, Any] = {}


STILL = {"optimizer": "SGD", "lr": 1e-30, "bnorm": False}
FALLING = {"n_epochs": 3, "monitor": "loss"}
RISING = {"n_epochs": 3, "monitor": "loss:max"}
MAPS = {"model_type": "RetinotopicModel", "ksizes": [5, 2], "rand_onehot": True}
RETINOTOPIC = MAPS | {"train_loop": "retinotopic_loop"}
DECAY = {"scheduler": "ExponentialLR", "scheduler_args": {"gamma": 0.9}}
TWO = {"executor": "process", "n_repeats": 2, "n_epochs": 1}
RETINA_START = {"split_seed": 5, "init_weights_path": "weights/torchdeepretina.pt"}
IMAGE_START = {"split_seed": 5, "init_weights_path": "weights/imgclass.pt"}
TOGETHER = "given together with"

SWEEP: dict[str, list[Row]] = {
    "exp_name": [
        Row("a_b", (changed(names, ["sweep_0"], ["a_b_0"]), same_w)),
        Row("test", (changed(names, ["sweep_0"], ["test_0"]), same_w)),
    ],
    "n_repeats": [
        Row(3, (changed(seeds, [5], [5, 6, 7]), repeats_differ)),
    ],
    "seed": [
        Row(6, (dw,), {"split_seed": 5}),
        Row(6, (second_is_first,), {"split_seed": 5, "n_repeats": 2}),
        Row(6, (dw,), STILL | {"split_seed": 5}, FILES),  # the initial weights
        Row(6, (dw,), RETINA_START | {"noise": 0.0}, only=RETINA),  # the order
        Row(6, (dw,), RETINA_START | {"shuffle": False}, only=RETINA),  # the noise
        Row(6, (dw,), IMAGE_START | {"augment": []}, only=IMAGES),  # the order
        Row(6, (dw,), IMAGE_START | {"shuffle": False}, only=IMAGES),  # flips
    ],
    "split_seed": [
        Row(6, (dw,), only=IMAGES),
        Row(6, (other_split_only,), STILL, only=IMAGES),
        Row(6, (same_w,), {"shuffle": False}, only=IMAGES),
        Row(6, (dw,), {"shuffle": False, "bootstrap": 1}, only=IMAGES),
        Row(6, (same_w,), only=RETINA),
        Row(6, (dw,), {"bootstrap": 1}, only=RETINA),
        Row(6, (dw,), only=GENERAL),
        Row(6, (same_w,), {"val_set": "OtherWaves"}, only=GENERAL),
    ],
    "save_every_epoch": [
        Row(True, (changed(files, [1, 3], [1, 2, 3]), same_w), RISING),
    ],
    "starting_exp_num": [
        Row(7, (changed(names, ["sweep_0"], ["sweep_7"]), same_w)),
    ],
    "skip_nums": [
        Row(
            [1],
            (
                changed(
                    names, ["sweep_0", "sweep_1", "sweep_2"], ["sweep_0", "sweep_2"]
                ),
            ),
            {"n_repeats": 3, "n_epochs": 1},
        ),
        Row([3], "skip_nums", {"n_repeats": 3}),
    ],
}
DATA: dict[str, list[Row]] = {
    "data_root": [
        Row("elsewhere", (same_w,), only=FILES),
        Row("turned", (other_data,), only=FILES),  # other files of the same names
        Row("absent", "absent", only=FILES),
    ],
    "dataset": [
        Row("other", (other_data,), only=FILES),
        Row("OtherWaves", (other_data,), only=GENERAL),
        Row("Waves2", "dataset: unknown 'Waves2'", only=GENERAL),
    ],
    "stim_type": [Row("other", (other_data,))],
    "cells": [
        Row([0, 2], (changed(cells, [0, 1, 2], [0, 2]), dw)),
        Row([2, 0, 1], (changed(cells, [0, 1, 2], [2, 0, 1]), dw)),
    ],
    "response_type": [Row("binned", (dw,)), Row("firing_rate_5ms", (dw,))],
    # 135 frames: 131 windows, 13 to validate, 7 too near them
    "target_offset": [Row(0, (changed(n_samples, (111, 13), (113, 13)), dw))],
    "n_skip_frames": [Row(5, (changed(n_samples, (111, 13), (106, 13)), dw))],
    "stim_storage": [
        Row("float32", (changed(stored_as, torch.uint8, torch.float32), same_w)),
        Row("float16", (changed(stored_as, torch.uint8, torch.float16), same_w)),
        Row(
            "uint8",
            (changed(stored_as, torch.float32, torch.uint8), same_w),
            {"stim_storage": "float32"},
        ),
    ],
    "shuffle": [Row(False, (dw,))],
    "val_p": [
        Row(0.3, (changed(n_samples, (111, 13), (85, 39)), dw), only=RETINA),
        Row(0.3, (changed(n_samples, (59, 7), (46, 20)), dw), only=IMAGES),
        Row(0.3, (changed(n_samples, (36, 4), (28, 12)), dw), only=GENERAL),
    ],
    "val_loc": [
        Row("middle", (dw,), only=RETINA),
        Row("beginning", (dw,), only=RETINA),
        Row("middle", (dw,), {"shuffle": False}, only=(IMAGES, GENERAL)),
        Row("beginning", (dw,), {"shuffle": False}, only=(IMAGES, GENERAL)),
        Row("middle", (same_w,), only=(IMAGES, GENERAL)),
    ],
    "n_workers": [
        Row(2, (changed(lambda outcome: outcome.n_readers, 0, 2), same_w), only=FILES),
    ],
    "augment": [
        Row([], (dw,)),
        Row([], (other_training_only,), STILL),
        Row(["flip"], (same_w,)),  # what the file says
        *[
            Row([name], (dw,), {"augment": []})
            for name in ("flip", "crop", "jitter", "rotate")
        ],
    ],
    "normalizer": [
        Row("none", (dw,), only=FILES),
        Row("per_sample", (dw,)),
        Row("per_channel", (dw,), only=(RETINA, GENERAL)),
        Row("global", (dw,), only=(IMAGES, GENERAL)),
        Row({"class": "Halving"}, (dw,), PLUGINS),
        Row("Halving", (dw,), PLUGINS),
        Row("Halves", "normalizer: unknown 'Halves'", PLUGINS),
        Row("globl", "normalizer: unknown 'globl' .did you mean 'global'"),
    ],
}
TRAINING: dict[str, list[Row]] = {
    "train_loop": [
        Row(
            "retinotopic_loop",
            (changed(columns, 6, 8), dw),
            MAPS,
            only=RETINA,
        ),
        Row("retinotopic_loop", "train_loop", only=IMAGES),
        Row("with_weights", (changed(columns, 6, 7), dw), PLUGINS),
    ],
    "lossfxn": [
        Row("MSELoss", (dw,), only=FILES),
        Row("L1Loss", (dw,), only=GENERAL),
        Row({"class": "SmoothL1Loss", "args": {"beta": 0.1}}, (dw,), only=GENERAL),
        Row(
            {"class": "Quartic", "args": {"scale": 0.5}},
            (changed(columns, 6, 7), dw),
            only=GENERAL,
        ),
        Row({"class": "L1Loss", "args": {"b": 1}}, "no argument 'b'", only=GENERAL),
        Row("PoissonNLLLoss", (dw,), only=IMAGES),
        Row("CrossEntropyLoss", "lossfxn", only=RETINA),
    ],
    "log_poisson": [Row(True, (dw,))],
    "batch_size": [
        Row(16, (changed(n_steps, 8, 14), dw), only=RETINA),
        Row(8, (changed(n_steps, 8, 16), dw), only=IMAGES),
        Row(12, (changed(n_steps, 10, 6), dw), only=GENERAL),
    ],
    "n_epochs": [Row(3, (changed(n_rows, 2, 3), dw))],
    "lr": [Row(0.02, (changed(rates, [0.01] * 2, [0.02] * 2), dw))],
    "l2": [Row(1.0, (dw, smaller_norm), only=FILES), Row(1.0, (dw,), only=GENERAL)],
    "l1": [Row(0.1, (changed(columns, 6, 7), dw))],
    "optimizer": [Row("SGD", (dw,)), Row("AdamW", (dw,), {"l2": 0.5})],
    "optimizer_args": [Row({"eps": 0.5}, (dw,)), Row({"amsgrad": True}, (dw,))],
    "scheduler": [
        Row(
            "CosineAnnealingLR",
            (changed(rates, [0.01, 0.01], pytest.approx([0.01, 0.005])), dw),
        )
    ],
    "scheduler_args": [
        Row(
            {"gamma": 0.5},
            (
                changed(
                    rates, pytest.approx([0.01, 0.009]), pytest.approx([0.01, 0.005])
                ),
                dw,
            ),
            DECAY,
        )
    ],
    "monitor": [Row("loss:max", (changed(best_epoch, 3, 1), same_w), FALLING)],
    "early_stop_patience": [Row(1, (changed(n_rows, 3, 2),), RISING)],
    "semantic_scale": [Row(0.0, (dw,), RETINOTOPIC)],
    "semantic_l1": [Row(1.0, (dw,), RETINOTOPIC)],
}
RUNNER: dict[str, list[Row]] = {
    "library": [
        Row(RETINA, (its_own_library,), only=RETINA),
        Row(IMAGES, (its_own_library,), only=IMAGES),
        Row(IMAGES, "a sweep has one library", only=RETINA),
        Row(RETINA, "a sweep has one library", only=IMAGES),
        Row(GENERAL, (its_own_library,), only=GENERAL),
    ],
    "seeds": [
        Row([9, 4], (given_seeds, dw), {"seed": ...}),
        Row([9, 4], TOGETHER),
    ],
    "bootstrap": [
        Row(2, (changed(seeds, [5], [5, 6]), dw)),
        Row(2, TOGETHER, {"n_repeats": 2}),
        Row(2, TOGETHER, {"seed": ..., "seeds": [1]}),
        Row(2, TOGETHER, {"bootstrap_index": 1}),
    ],
    "bootstrap_index": [
        Row(0, (dw,)),
        Row(1, (dw,), {"bootstrap_index": 0}),
    ],
    "init_weights_path": [
        Row("weights/torchdeepretina.pt", (dw,), only=RETINA),
        Row("weights/imgclass.pt", (dw,), only=IMAGES),
        Row("weights/general.pt", (dw,), only=GENERAL),
        Row("weights/absent.pt", "no file"),
    ],
    "precision": [
        Row("bfloat16", (dw,)),
        Row("float64", (changed(types, {torch.float32}, {torch.float64}), dw)),
    ],
    "grad_clip": [Row(1e-3, (dw,))],
    "log_loss": [
        Row(True, (same_w, changed(logged, [], ["epoch", "step", "loss"]))),
    ],
    "log_grad": [
        Row(True, (same_w, changed(n_layers_logged, 0, 2))),
    ],
    "log_frequency": [
        Row(2, (same_w, changed(n_evaluations, 0, 4))),
        Row(1000, "1000 evaluations, but an epoch has"),
    ],
    "early_stop_min_delta": [
        Row(1e6, (changed(n_rows, 3, 2),), FALLING | {"early_stop_patience": 1}),
        Row(1e6, "needs early_stop_patience"),
    ],
    "train_set_size": [
        Row(40, (changed(n_samples, (111, 13), (40, 13)), dw), only=RETINA),
        Row(40, (changed(n_samples, (59, 7), (40, 7)), dw), only=IMAGES),
        Row(20, (changed(n_samples, (36, 4), (20, 4)), dw), only=GENERAL),
        Row(200, "train_set_size"),
        Row(1, "train_set_size", only=FILES),
        Row(1, (dw,), {"bnorm": False}, only=FILES),
    ],
    "val_set_size": [
        Row(5, (changed(n_samples, (111, 13), (111, 5)),), only=RETINA),
        Row(5, (changed(n_samples, (59, 7), (59, 5)),), only=IMAGES),
        Row(5, (other_validation_only,), only=FILES),
        Row(2, (changed(n_samples, (36, 4), (36, 2)),), only=GENERAL),
        Row(2, (other_validation_only,), only=GENERAL),
        Row(200, "val_set_size"),
    ],
    "save_root": [Row("another", (moved, same_w), only=IMAGES)],
    "executor": [
        Row(
            "process",
            (changed(lambda outcome: outcome.n_workers, 0, 1), same_w),
            TWO | {"executor": "serial"},
            only=RETINA,
        )
    ],
    "executor_args": [
        Row({"partition": "a"}, (same_w,)),
        Row({"partiton": "a"}, "did you mean 'partition'", {"executor": "slurm"}),
        Row({"num_cpus": "a"}, "num_cpus: expected a number", {"executor": "ray"}),
    ],
    "workers": [
        Row(
            2,
            (changed(lambda outcome: outcome.n_workers, 1, 2), same_w),
            TWO,
            only=RETINA,
        ),
        Row(0, "workers"),
    ],
    "cohort_size": [
        Row(1, (changed(job_sizes, [2], [1, 1]), same_w), ranges={"lr": [0.01, 0.02]}),
        Row(0, "cohort_size"),
    ],
    "threads": [Row(2, (changed(lambda outcome: outcome.attempt["threads"], 1, 2),))],
    "device": [
        Row("cpu", (changed(lambda outcome: outcome.jobs[0][1], "auto", "cpu"),)),
        Row("cuda:99", "cuda:99 is not there"),
    ],
    "engine": [Row("solo", (same_w,)), Row("graph", "engine: graph is for GPUs")],
    "conv_method": [
        Row(
            "direct",
            (changed(methods, ["fourier"], ["direct"]), rounding_only),
            only=RETINA,
        ),
        Row("fourier", (same_w,), only=RETINA),
        Row("direct", (same_w,), only=IMAGES),
        Row("fourier", "conv_method: .* LN has no layer", {"model_type": "LN"}, RETINA),
        Row("fourier", "conv_method: .* dropout", {"drop_p": 0.1}, RETINA),
        Row("fourier", "conv_method: .* SmallNet has no layer", only=IMAGES),
    ],
    "spectra_cache_mib": [
        Row(
            0,
            (changed(keeps_transforms, True, False), same_w),
            {"conv_method": "fourier"},
            RETINA,
        ),
        Row(-1, "spectra_cache_mib"),
        Row(5, "spectra_cache_mib", only=IMAGES),
    ],
}
OPTIONS: dict[str, list[Row]] = {
    "model_args": [
        Row({"factor": 2.0}, (dw,), PLUGINS | {"model_type": "LouderLN"}, RETINA),
        Row({"scale": 2.0}, (dw,), PLUGINS | {"model_type": "FlatImages"}, IMAGES),
        Row({"width": 3}, (dw,), only=GENERAL),
        Row({"width": "x"}, "model_args: Denoiser cannot be made", only=GENERAL),
        Row({"wdth": 3}, "did you mean 'width'", only=GENERAL),
        Row({"chans": [3]}, "model_args: chans is a key", only=IMAGES),
        Row({"scale": 2.0}, "model_args: .* no argument 'scale'", only=FILES),
    ],
    "dataset_args": [
        Row({"n": 30}, (other_data,), only=GENERAL),
        Row({"m": 30}, "dataset_args: Waves has no argument 'm'", only=GENERAL),
        Row({"n": 30}, "dataset_args", only=FILES),
    ],
    "val_set": [
        Row("rec/other", (changed(n_samples, (111, 13), (131, 131)), dw), only=RETINA),
        Row("other", (changed(n_samples, (59, 7), (66, 66)), dw), only=IMAGES),
        Row("OtherWaves", (changed(n_samples, (36, 4), (40, 14)), dw), only=GENERAL),
        Row("absent/movie", "val_set: no 'absent'", only=RETINA),
        Row("rec/absent", "val_set: no absent.h5", only=RETINA),
        Row("rec", "val_set: expected dataset/stim_type", only=RETINA),
        Row("absent", "val_set: no 'absent'", only=IMAGES),
        Row("Points", "val_set: samples are", only=GENERAL),
        Row("absent", "val_set: unknown 'absent'", only=GENERAL),
    ],
    "distorter": [
        Row({"class": "gaussian", "args": {"std": 0.5}}, (dw,)),
        Row({"class": "dropout", "args": {"p": 0.5}}, (dw,)),
        Row({"class": "jitter", "args": {"pixels": 2}}, (dw,)),
        Row({"class": "Silence", "args": {"share": 0.5}}, (dw,), PLUGINS),
        Row("gaussian", "distorter_args: Gaussian needs the argument 'std'"),
        Row("gausian", "distorter: unknown 'gausian'"),
    ],
    "distorter_args": [
        Row(
            {"std": 0.9},
            (dw,),
            {"distorter": "gaussian", "distorter_args": {"std": 0.1}},
        ),
        Row({"std": -1.0}, "std: expected a number ≥ 0", {"distorter": "gaussian"}),
        Row({"p": 2}, "p: expected a number from 0 to 1", {"distorter": "dropout"}),
        Row({"pixels": 0.5}, "pixels: expected an integer", {"distorter": "jitter"}),
        Row({"std": 1.0}, "distorter_args: needs a distorter"),
    ],
    "augmenters": [
        Row(["mirrored"], (dw,), PLUGINS),
        Row([{"class": "Louder", "args": {"most": 3.0}}], (dw,), PLUGINS),
        Row([{"class": "Louder", "args": {"least": 3.0}}], "no argument", PLUGINS),
        Row(["Quieter"], "augmenters: unknown 'Quieter'", PLUGINS),
        Row(["rotate"], (dw,), {"augment": []}, IMAGES),
        Row(["flip"], "augment \\[\\] is needed", only=IMAGES),
    ],
    "use_preset": [
        Row(True, (dw,), only=GENERAL),
        Row(
            True,
            "use_preset: Waves stores no inputs",
            {"dataset_args": {"is_stored": False}},
            GENERAL,
        ),
        Row(True, "pair data", only=FILES),
    ],
    "loss_space": [
        Row("original", (dw,), {"normalizer": "global"}, GENERAL),
        Row("original", "needs a normalizer", only=GENERAL),
        Row("original", "pair data", only=FILES),
    ],
    "eval_space": [
        Row("original", (other_validation_only,), {"normalizer": "global"}, GENERAL),
        Row("original", "needs a normalizer", only=GENERAL),
        Row("original", "pair data", only=FILES),
    ],
    "val_example_indices": [
        Row([2, 0], (changed(n_predicted, 0, 4), same_w)),
        Row([900], "val_example_indices: .* are not there"),
        Row([1, 1], "val_example_indices: expected distinct"),
    ],
    "val_example_subset": [
        Row("slow", (other_examples, same_w), {"val_example_indices": [1]}, GENERAL),
        Row("test", "val_example_subset: this data set has no subset", only=FILES),
    ],
    "show_plots": [
        Row(
            True,
            (changed(has_picture, False, True), same_w),
            {"val_example_indices": [0, 1]},
        ),
        Row(True, "show_plots: needs val_example_indices"),
    ],
    "trackers": [
        Row(["Diary"], (changed(n_written, 0, 14), same_w), PLUGINS, GENERAL),
        Row(["Dairy"], "trackers: unknown 'Dairy'", PLUGINS),
        Row(["Diary", "Diary"], "trackers: one stands twice", PLUGINS),
    ],
    "tracker_args": [
        Row(
            {"Diary": {"fails_at": 1}},
            (changed(n_written, 14, 6), same_w),
            PLUGINS | {"trackers": ["Diary"]},
            GENERAL,
        ),
        Row({"Diary": {}}, "tracker_args: Diary is not in trackers"),
        Row({"Diary": {"fails": 1}}, "no argument", PLUGINS | {"trackers": ["Diary"]}),
    ],
    "diagnostics": [
        Row([{"name": "loudest", "every": 1}], (diagnosed, same_w), PLUGINS),
        Row([{"name": "broken", "every": 1}], (same_w,), PLUGINS),
        Row(["loudness"], "diagnostics: .*unknown", PLUGINS),
        Row(["hessian", "hessian"], "diagnostics: hessian stands twice"),
    ],
    "plugins": [
        Row(PLUGINS["plugins"], (same_w,), only=FILES),
        Row("absent", "plugins: no folder"),
    ],
}
EFFECTS = OPTIONS | SWEEP | DATA | TRAINING | RUNNER
OWN_TESTS = {
    "max_attempts": "test_max_attempts_counts_dead_workers",
    "hang_timeout_s": "test_hang_timeout_s_kills_a_silent_worker",
    "claim_timeout_s": "test_claim_timeout_s_frees_the_runs_of_a_silent_host",
    "verbose": "test_verbose_tells_every_epoch",
}


def rows_of(library: str, name: str) -> list[Row]:
    """The rows of a key that hold for a library."""

    def holds(row: Row) -> bool:
        return row.only is None or library in row.only

    return [row for row in EFFECTS.get(name, ()) if holds(row)]


def is_tested(library: str, schema: type[Hyperparams], name: str) -> bool:
    """Whether a key has the tests that it needs.

    Keys that act on a run, in each library; what never changes results, in one.
    """
    facts = keys_of(schema)[name]
    if facts.group in ("model", "pruning"):
        return True
    if facts.identity == "yes":
        return bool(rows_of(library, name))
    return bool(EFFECTS.get(name)) or OWN_TESTS.get(name) in globals()


ROWS = [
    pytest.param(library, name, row, id=f"{library}-{name}-{i}")
    for library in BASE
    for name in libraries()[library].schema.model_fields
    for i, row in enumerate(rows_of(library, name))
]


@pytest.mark.parametrize("library", BASE)
def test_every_key_outside_the_models_has_an_effect_test(library: str) -> None:
    """A key that can be given changes something below, or is one of a model."""
    schema = libraries()[library].schema
    untested = [n for n in schema.model_fields if not is_tested(library, schema, n)]
    assert not untested, f"{library}: add rows to EFFECTS for {untested}"


def test_the_tables_name_no_other_keys() -> None:
    """Every row's key is in a schema."""
    known = {name for one in libraries().values() for name in one.schema.model_fields}
    assert set(EFFECTS) | set(OWN_TESTS) <= known


def test_a_new_key_would_be_missed() -> None:
    """The check above fails for a key that is added to a schema alone."""
    schema = libraries()[IMAGES].schema

    class More(schema):  # type: ignore[misc, valid-type]
        colour: str = key("red", "of the images", group="data")

    assert not is_tested(IMAGES, More, "colour")


# --- training ---------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def places(
    tmp_path_factory: pytest.TempPathFactory,
    write_recording: Callable[..., Any],
    write_images: Callable[..., Any],
) -> Iterator[Path]:
    """A working directory with data, twice, and a file of weights per library."""
    root = tmp_path_factory.mktemp("effects")
    data = root / "data"
    arrays = write_recording(data / "rec" / "movie.h5")
    lit = {"train/stimulus": arrays["train/stimulus"][::-1].copy()}
    write_recording(data / "rec" / "other.h5", changes=lit)
    write_recording(data / "other" / "movie.h5", changes=lit)
    pictures = write_images(
        data / "set" / "images.h5", shape=(3, 8, 8), augment='["flip"]'
    )
    turned = {"train/images": pictures["train/images"][::-1].copy()}
    write_images(
        data / "other" / "images.h5",
        shape=(3, 8, 8),
        augment='["flip"]',
        changes=turned,
    )
    shutil.copytree(data, root / "elsewhere")
    for name in ("rec", "set"):
        shutil.copytree(data / "other", root / "turned" / name)
    (root / "weights").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for library, base in BASE.items():
            keys = {**base, "save_root": f"warm/{library}", "seed": 77}
            (run,) = run_sweep(keys, quiet=True).runs()
            path = run.folder.checkpoint_path(2)
            shutil.copy(path, root / "weights" / f"{library}.pt")
        yield root


class Swept:
    """Trains each configuration once, in a folder of its own."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.jobs: list[tuple[int, str]] = []
        self.children: list[str] = []
        train_job = training_job.train_job
        start_child = reading_ahead.start_child
        start_worker = ForkServer.start_worker

        def train_and_note(job: Any, *arguments: Any) -> None:
            self.jobs.append((len(job.folders), job.device))
            train_job(job, *arguments)

        def start_and_note(module: str, threads: int) -> Any:
            self.children.append(module)
            return start_child(module, threads)

        def fork_and_note(server: ForkServer, threads: int) -> Any:
            self.children.append("worker")
            return start_worker(server, threads)

        patch.setattr(os, "fsync", lambda descriptor: None)  # for speed
        patch.setattr(training_job, "train_job", train_and_note)
        patch.setattr(ForkServer, "start_worker", fork_and_note)
        patch.setattr(reading_ahead, "start_child", start_and_note)

    def __call__(self, keys: Mapping[str, Any], ranges: Mapping[str, Any]) -> Outcome:
        name = json.dumps([keys, ranges])
        if name not in self.outcomes:
            self.jobs.clear()
            self.children.clear()
            where = {"save_root": f"runs/{len(self.outcomes)}"}
            sweep = run_sweep({**where, **keys}, ranges or None, quiet=True)
            states = [run.record["error"] for run in sweep.runs()]
            assert not any(states), states
            self.outcomes[name] = Outcome(
                sweep,
                tuple(self.jobs),
                self.children.count("gridrun.readers"),
                self.children.count("worker"),
            )
        return self.outcomes[name]


@pytest.fixture(scope="module")
def swept(places: Path) -> Iterator[Swept]:
    """Function (keys, ranges) that trains a sweep once and gives its outcome."""
    with pytest.MonkeyPatch.context() as patch:
        yield Swept(patch)


def keys_before(library: str, row: Row) -> dict[str, Any]:
    given = {**BASE[library], **row.context}
    return {name: value for name, value in given.items() if value is not ...}


@pytest.mark.parametrize(("library", "name", "row"), ROWS)
def test_a_key_has_its_effect(
    swept: Swept, places: Path, library: str, name: str, row: Row
) -> None:
    """Two sweeps that differ in one key differ in what the reference says of it."""
    before = keys_before(library, row)
    after = {**before, name: row.value}
    if isinstance(row.effects, str):
        with pytest.raises((ConfigError, DataError), match=row.effects):
            run_sweep({**after, "save_root": "refused"}, quiet=True)
        assert not (places / "refused").exists()
        return
    outcomes = swept(before, row.ranges), swept(after, row.ranges)
    for effect in row.effects:
        effect(*outcomes)


@pytest.mark.parametrize("library", BASE)
def test_a_sweep_again_elsewhere_is_the_same(swept: Swept, library: str) -> None:
    """Without a change nothing changes, so the effects above are the keys' own."""
    again = run_sweep({**BASE[library], "save_root": f"again/{library}"}, quiet=True)
    weights = again.runs()[0].checkpoint("last")["model_state_dict"]
    assert equal_bits(swept(BASE[library], {}).weights[0], weights)


# --- in one process, one after the other ------------------------------------------

OF_DATA = {*DATA, "train_set_size", "val_set_size", "bootstrap_index", "split_seed"}
SWEPT_DATA = [
    pytest.param(library, name, row, id=f"{library}-{name}-{i}")
    for library in BASE
    for name, facts in keys_of(libraries()[library].schema).items()
    if name in OF_DATA and facts.sweepable
    for i, row in enumerate(rows_of(library, name))
    if not isinstance(row.effects, str) and row.effects != (same_w,)
]


@pytest.mark.parametrize(("library", "name", "row"), SWEPT_DATA)
def test_runs_on_other_data_are_not_confused(
    swept: Swept, library: str, name: str, row: Row
) -> None:
    """Both values of a key of the data in one sweep are the two sweeps of one run."""
    before = keys_before(library, row)
    alone = [swept(before, {}), swept({**before, name: row.value}, {})]
    values = [getattr(alone[0].runs[0].hyps, name), row.value]
    given = {key: value for key, value in before.items() if key != name}
    together = swept(given, {name: values})
    for one, run, weights in zip(alone, together.runs, together.weights, strict=True):
        assert equal_bits(one.weights[0], weights)
        rows = [found.folder.epochs.read() for found in (one.runs[0], run)]
        assert [row["val_loss"] for row in rows[0]] == [
            row["val_loss"] for row in rows[1]
        ]


def test_centres_from_white_noise_are_found_for_some_runs_of_a_sweep(
    swept: Swept, places: Path, write_recording: Callable[..., Any]
) -> None:
    """A model that needs cells' places gets them beside one that does not."""
    for name in ("movie", "whitenoise"):
        write_recording(places / "data" / "blind" / f"{name}.h5", centers=False)
    keys = {**BASE[RETINA], "dataset": "blind", "ksizes": [5, 2]}
    together = swept(keys, {"convgc": [False, True]})
    alone = swept({**keys, "convgc": True}, {})
    assert equal_bits(together.weights[1], alone.weights[0])


# --- workers that die -------------------------------------------------------------

FAKE_WORKER = """
import sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send(None)
connection.recv()
time.sleep(float(sys.argv[2]))
sys.exit(3)
"""


def failed_sweep(
    root: Path, patch: pytest.MonkeyPatch, sleep_s: float, **options: Any
) -> tuple[int, str]:
    """Train with workers that die after a job; the number started, the run's error."""
    started: list[Any] = []

    def start_fake(server: ForkServer, threads: int) -> Any:
        connection, other = Pipe()
        arguments = [FAKE_WORKER, str(other.fileno()), str(sleep_s)]
        process = subprocess.Popen(
            [sys.executable, "-c", *arguments], pass_fds=[other.fileno()]
        )
        other.close()
        started.append(connection)
        return process, connection

    patch.setattr(ForkServer, "start_worker", start_fake)
    keys = {**BASE[IMAGES], "executor": "process", "save_root": str(root), **options}
    run_sweep(keys, quiet=True)
    assert all(isinstance(one, Connection) for one in started)
    (run,) = load_sweep(root / "sweep").runs()
    return len(started), str(run.record["error"])


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_max_attempts_counts_dead_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_attempts: int
) -> None:
    """A run whose workers die is tried so often, then failed."""
    n_started, error = failed_sweep(
        tmp_path, monkeypatch, 0.0, max_attempts=max_attempts
    )
    assert n_started == max_attempts
    assert f"died {max_attempts} times" in error
    assert "exit code 3" in error


@pytest.mark.parametrize(
    ("timeout_s", "how"),
    [(0.2, "silent for hang_timeout_s"), (60.0, "exit code")],
)
def test_hang_timeout_s_kills_a_silent_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float, how: str
) -> None:
    """A worker that says nothing for longer is killed, one that does not is left."""
    options = {"max_attempts": 1, "hang_timeout_s": timeout_s}
    _, error = failed_sweep(tmp_path, monkeypatch, 1.5, **options)
    assert how in error


@pytest.mark.parametrize("timeout_s", [10.0, 40.0])
def test_claim_timeout_s_frees_the_runs_of_a_silent_host(
    places: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    """Another host's claim is waited for so long, on a clock that runs fast here."""
    given = {**BASE[IMAGES], "save_root": str(places / f"silent-{timeout_s}")}
    (run,) = run_sweep(given, quiet=True).runs()
    record = run.folder.read()
    run.folder.update(state="running", attempts=record["attempts"])
    owner = {"host": "elsewhere", "pid": 7, "renewals": 1}
    run.folder.claim.write_text(json.dumps(owner), encoding="utf-8")
    looks: list[float] = []

    def fast() -> float:
        looks.append(60 * time.monotonic())
        return looks[-1]

    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=fast))
    monkeypatch.setattr(sweeps, "SECONDS_BETWEEN_LOOKS", 0.01)
    (again,) = run_sweep(given, quiet=True, claim_timeout_s=timeout_s).runs()
    assert again.record["state"] == "done"
    assert len(again.record["attempts"]) == 2
    assert timeout_s <= looks[-1] - looks[0] < timeout_s + 20


@pytest.mark.parametrize("is_verbose", [False, True])
def test_verbose_tells_every_epoch(
    places: Path, capsys: pytest.CaptureFixture[str], is_verbose: bool
) -> None:
    """A line each, with the metrics."""
    given = {**BASE[IMAGES], "save_root": str(places / f"verbose-{is_verbose}")}
    run_sweep(given, verbose=is_verbose)
    lines = [one for one in capsys.readouterr().err.splitlines() if "epoch" in one]
    told = [
        one for one in lines if one.startswith(("run 0, epoch 1,", "run 0, epoch 2,"))
    ]
    assert len(told) == (2 if is_verbose else 0)
    assert all("val_loss" in one for one in told)


# --- memory -----------------------------------------------------------------------


def test_a_cohort_that_does_not_fit_goes_on_in_halves(
    swept: Swept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of a cohort out of memory continue in smaller ones, to the same bits."""
    ranges = {"lr": [0.01, 0.02, 0.03, 0.04, 0.05]}
    expected = swept(BASE[IMAGES], ranges)
    step, n_live, n_steps = ImageTrainer.train_step, [], [0]

    def limited(self: Any, run: Any, batch: Any) -> Any:
        n_steps[0] += 1
        if len(self.live()) > 2 and n_steps[0] > 23:  # in the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        n_live.append(len(self.live()))
        return step(self, run, batch)

    monkeypatch.setattr(ImageTrainer, "train_step", limited)
    given = {**BASE[IMAGES], "save_root": "halves"}
    found = run_sweep(given, ranges, quiet=True)
    assert set(n_live) == {5, 2, 1}
    for one, run in zip(expected.weights, found.runs(), strict=True):
        assert equal_bits(one, run.checkpoint("last")["model_state_dict"])
        assert run.record["state"] == "done"


def test_a_run_that_does_not_fit_alone_fails(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing left to split."""

    def fail(self: Any, run: Any, batch: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(ImageTrainer, "train_step", fail)
    given = {**BASE[IMAGES], "save_root": str(places / "none")}
    found = run_sweep(given, {"lr": [0.01, 0.02]}, quiet=True)
    for run in found.runs():
        assert run.record["state"] == "failed"
        assert "can't allocate memory" in run.record["error"]
