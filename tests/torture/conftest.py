"""Small sweeps to be killed, starved and damaged, and what they must come to.

`make torture` sets TORTURE=full; without it the numbers are a hundredth, for CI.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from strategies import OF_SET
from torture.nursery import Ended, Nursery, build_shim
from torture.oracle import assert_same, contents

IMAGES: dict[str, Any] = {
    "exp_name": "sweep",
    "n_repeats": 2,
    "seed": 5,
    "split_seed": 5,
    **OF_SET,
    "drop_ps": [0.2, 0.2],
    "batch_size": 8,
    "n_epochs": 3,
    "cohort_size": 3,
    "scheduler": "ReduceLROnPlateau",
    "log_loss": True,
    "log_frequency": 2,
    "val_example_indices": [2, 0],
    "diagnostics": [{"name": "weight_norms", "every": 2}],
    "distorter": "gaussian",
    "distorter_args": {"std": 0.1},
    "executor": "serial",
}
RETINA: dict[str, Any] = {
    "exp_name": "sweep",
    "n_repeats": 2,
    "seed": 5,
    "model_type": "VaryModel",
    "dataset": "rec",
    "stim_type": "movie",
    "img_shape": [4, 8, 8],
    "chans": [3, 3],
    "ksizes": [5, 4],
    "noise": 0.1,
    "batch_size": 32,
    "n_epochs": 2,
    "prune": True,
    "prune_intvl": 1,
    "executor": "serial",
}
RANGES = {"lr": [0.01, 0.02]}
IS_FULL = os.environ.get("TORTURE") == "full"


def count(full: int, quick: int) -> int:
    """How many trials: of the whole battery, or of CI's part."""
    return full if IS_FULL else quick


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A request, and what its sweep comes to when nothing happens to it.

    Args:
        name: Of the scenario.
        files: hyperparams.json and hyperranges.json.
        finished: The sweep, trained without interruption.
        expected: Its contents.
        n_calls: Changes of files that training it makes.
        seconds: Training it takes.
        nursery: Where its commands run.
    """

    name: str
    files: tuple[Path, Path]
    finished: Path
    expected: dict[str, Any]
    n_calls: int
    seconds: float
    nursery: Nursery

    def run(self, root: Path, *more: object, **options: Any) -> Ended:
        """Give the command, with sweeps below a folder."""
        arguments = ("run", *self.files, "--save-root", root, "--quiet", *more)
        return self.nursery.run(*arguments, root=root, **options)

    def finish(self, root: Path) -> None:
        """Give the command until it is done, which takes one; compare."""
        ended = self.run(root)
        assert ended.code == 0, ended.errors
        assert_same(root / "sweep", self.expected)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where commands run."""
    shim = build_shim(tmp_path_factory.mktemp("shim"))
    found = Nursery(shim)
    yield found
    found.close()


@pytest.fixture(scope="session")
def scenarios(
    tmp_path_factory: pytest.TempPathFactory,
    nursery: Nursery,
    write_images: Callable[..., Any],
    write_recording: Callable[..., Any],
) -> dict[str, Scenario]:
    """A sweep of each library."""
    root = tmp_path_factory.mktemp("torture")
    write_images(root / "data" / "set" / "images.h5")
    write_recording(root / "data" / "rec" / "movie.h5")
    found = {}
    for name, keys in (("images", IMAGES), ("retina", RETINA)):
        files = (root / f"{name}.json", root / "ranges.json")
        given = {**keys, "data_root": str(root / "data")}
        files[0].write_text(json.dumps(given), encoding="utf-8")
        files[1].write_text(json.dumps(RANGES), encoding="utf-8")
        scenario = Scenario(name, files, root / name / "sweep", {}, 0, 0.0, nursery)
        ended = scenario.run(root / name)
        assert ended.code == 0, ended.errors
        found[name] = dataclasses.replace(
            scenario,
            expected=contents(root / name / "sweep"),
            n_calls=ended.n_calls,
            seconds=ended.seconds,
        )
    return found


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for sweeps, removed at once: there are thousands."""
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path, ignore_errors=True)


def random_of(*name: object) -> random.Random:
    """Random numbers that a failed trial can be repeated with."""
    return random.Random(repr(name))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How often each test of the battery passed."""
    if not IS_FULL:
        return
    tally: dict[str, dict[str, int]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            name = report.nodeid.partition("[")[0]
            if "torture" in name and (report.when == "call" or outcome != "passed"):
                counts = tally.setdefault(name.rpartition("/")[2], {})
                counts[outcome] = counts.get(outcome, 0) + 1
    for name, counts in sorted(tally.items()):
        text = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        terminalreporter.write_line(f"{name:75}{text}")
