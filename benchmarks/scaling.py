"""How time grows with workers, runs, cells and frames; data's share; memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.cohort import Ours
from benchmarks.grids import our_command
from benchmarks.measure import Setting, median, one_thread, run_command
from benchmarks.scenarios import (
    DENSE,
    QUICK_DENSE,
    Grid,
    completed,
    noise_recording,
    retina_data,
)
from benchmarks.step import COHORT, our_parts
from benchmarks.table import Row
from gridrun.training.data import batches

GROUP = "Growth"


def rows(setting: Setting) -> Iterator[Row]:
    """The rows of this group, as they are measured."""
    side = 20 if setting.is_quick else 50
    keys = retina_data(setting.folder, 400 if setting.is_quick else 3000, side, 9)
    values = DENSE | (QUICK_DENSE if setting.is_quick else {}) | keys
    with one_thread():
        yield from growth(values, setting)
    yield workers(values, setting)
    yield memory(setting)


def growth(values: Mapping[str, Any], setting: Setting) -> Iterator[Row]:
    """Time of steps and epochs when runs, cells or frames double."""
    setting.note("scaling: data share, runs, cells, frames")
    n_rounds = 2 if setting.is_quick else 7
    parts = step_parts(values, n_rounds)
    cohort_s = parts["shared"] + COHORT * parts["step"]
    share = 100 * parts["shared"] / cohort_s
    alone = 100 * parts["shared"] / (parts["shared"] + parts["step"])
    shares = {"cohort": COHORT, "alone_percent": alone}
    yield Row(GROUP, "data share of a step", share, "%", "<=", 5, shares)
    doubled = (parts["shared"] + 2 * COHORT * parts["step"]) / cohort_s
    yield Row(GROUP, "time for twice the runs", doubled, "×")
    few, many = (dict(values) | {"cells": list(range(n))} for n in (4, 8))
    one, two = (step_parts(keys, n_rounds) for keys in (few, many))
    ratio = (two["shared"] + two["step"]) / (one["shared"] + one["step"])
    yield Row(GROUP, "time for twice the cells", ratio, "×", details={"cells": [4, 8]})
    n_train = len(Ours.of(completed(values)).trainer.data.train)
    n_half = min(n_train // 2, 2 * values["batch_size"])
    once, twice = (epoch_s(values, n) for n in (n_half, 2 * n_half))
    details = {"frames": [n_half, 2 * n_half]}
    yield Row(GROUP, "time for twice the frames", twice / once, "×", details=details)


def step_parts(values: Mapping[str, Any], n_rounds: int) -> dict[str, float]:
    """Median seconds of the parts of a step."""
    ours = Ours.of(completed(values))
    n_samples = len(ours.trainer.data.train)
    found = [
        our_parts(ours, torch.randperm(n_samples)[: values["batch_size"]])
        for _ in range(n_rounds + 1)
    ][1:]
    return {name: median([one[name] for one in found]) for name in found[0]}


def epoch_s(values: Mapping[str, Any], n_samples: int) -> float:
    """Seconds of the steps of an epoch over so many samples, the first one apart."""
    ours = Ours.of(completed({**values, "train_set_size": n_samples}))
    batch_size = values["batch_size"]
    our_parts(ours, torch.arange(min(batch_size, n_samples)))
    started = time.perf_counter()
    for order in batches(torch.randperm(n_samples), batch_size):
        ours.step(ours.batch(order))
    return time.perf_counter() - started


def workers(values: Mapping[str, Any], setting: Setting) -> Row:
    """The same command with one worker and with two, interleaved."""
    rates = [0.001 * (i + 1) for i in range(2 if setting.is_quick else 8)]
    n_epochs = 1 if setting.is_quick else 3
    grid = Grid("workers", {**values, "n_epochs": n_epochs}, {"lr": rates})
    times: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(1 if setting.is_quick else 2):
        for n_workers, found in times.items():
            setting.note(f"scaling: {n_workers} worker(s)")
            root = setting.folder / f"workers-{time.time_ns()}"
            finished, _ = our_command(grid, root, "--workers", n_workers)
            found.append(finished.wall_s)
    one, two = min(times["1"]), min(times["2"])
    details = {"runs": len(rates), "one_s": one, "two_s": two}
    name = "2 workers against 1, start-up included"
    return Row(GROUP, name, one / two, "×", ">=", 1.8, details)


def memory(setting: Setting) -> Row:
    """Growth of a process that opens a recording and reads all of it."""
    setting.note("scaling: memory for a recording")
    n_frames, side = (20_000, 20) if setting.is_quick else (100_000, 50)
    keys = noise_recording(setting.folder, n_frames, side)
    values = DENSE | keys | {"img_shape": [40, side, side], "ksizes": [3, 3]}
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(values)]
    grown_mib = float(run_command(command).checked().stdout)
    raw_mib = (n_frames + 400) * side**2 / 2**20
    details = {"stimulus_mib": raw_mib, "grown_mib": grown_mib}
    name = "memory for a recording, of the raw stimulus"
    return Row(GROUP, name, grown_mib / raw_mib, "×", "<=", 1.2, details)
