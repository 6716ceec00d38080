"""Evaluators: what they are given, what is refused before they run, how they fail."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gridrun import load_sweep, run_sweep
from gridrun.analysis.run import EvaluatorError, Run
from gridrun.cli import main
from gridrun.errors import CheckpointError, ConfigError

PLUGINS = Path(__file__).parents[1] / "plugins"
BASE: dict[str, Any] = {
    "exp_name": "sweep",
    "model_type": "Classifier",
    "model_args": {"width": 4},
    "dataset": "Points",
    "lossfxn": "CrossEntropyLoss",
    "batch_size": 16,
    "n_epochs": 3,
    "lr": 0.01,
    "seed": 3,
    "executor": "serial",
}
SOURCE = """
def told(run, split, epoch, **args):
    return {"split": split, "epoch": epoch, **args}


def counted(run, split, epoch, n=1):
    return {"n": n}


def placed(run, split, epoch, device="own"):
    return {"device": device}


def needing(run, split, epoch, device):
    return {"device": device}


def raising(run, split, epoch):
    def inner():
        return int("no number")

    return {"n": inner()}


def failing(run, split, epoch):
    assert False


def ending(run, split, epoch):
    raise SystemExit(3)


def loading(run, split, epoch):
    return {"n": len(run.checkpoint(77))}


def same(run, split, epoch, is_saved=0):
    return {"n": is_saved}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder."""
    root = tmp_path_factory.mktemp("recorded")
    sweep = run_sweep(BASE, plugins=str(PLUGINS), save_root=str(root), quiet=True)
    (run,) = sweep.runs()
    path: Path = run.folder.path
    return path


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of evaluators."""
    path = tmp_path_factory.mktemp("own")
    (path / "evaluators.py").write_text(SOURCE, encoding="utf-8")
    return path


@pytest.fixture
def run(folder: Path, plugins: Path) -> Run:
    """The run, which may use them."""
    return Run(folder, plugins)


def files(folder: Path) -> set[Path]:
    """Every file of the sweep and beside it."""
    return {path for path in folder.parents[1].rglob("*") if path.is_file()}


# --- split and epoch ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split": "../../x"}, "split: expected one of train, val, test"),
        ({"split": "tset"}, "split: expected one of train, val, test"),
        ({"epoch": "../../x"}, "epoch: expected best, last, pruned or a number"),
        ({"epoch": True}, "epoch: expected best"),
        ({"epoch": None}, "epoch: expected best"),
        ({"epoch": 1.0}, "epoch: expected best"),
        ({"epoch": 77}, r"epoch: 77 is not kept; kept: \d"),
    ],
)
def test_splits_and_epochs_that_are_none_are_refused(
    run: Run, given: dict[str, Any], message: str
) -> None:
    """Before anything is computed or written."""
    before = files(run.folder.path)
    with pytest.raises(ConfigError, match=message):
        run.evaluate_by("told", is_saved=True, **given)
    assert files(run.folder.path) == before


@pytest.mark.parametrize(
    "options",
    [
        ["--split", "../../x"],
        ["--checkpoint", "../../x"],
        ["--checkpoint", "77"],
        ["--checkpoint", "9" * 5000],
    ],
)
def test_the_command_refuses_them(
    folder: Path, plugins: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2."""
    before = files(folder)
    given = ["--evaluator", "told", "--plugins", str(plugins)]
    assert main(["evaluate", str(folder), *given, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith(("error: split: expected", "error: epoch: "))
    assert files(folder) == before


def test_every_split_and_kept_epoch_is_taken(run: Run) -> None:
    """Numbers of numpy are numbers."""
    kept = run.epochs()
    for split in ("train", "val", "test"):
        for epoch in ("best", "last", "pruned", *kept, np.int64(kept[0])):
            found = run.evaluate_by("told", split, epoch, is_saved=True)  # type: ignore[arg-type]
            assert found == {"split": split, "epoch": epoch}
            path = run.folder.path / "analysis" / "told" / f"{split}_{epoch}.json"
            assert json.loads(path.read_text(encoding="utf-8"))["checkpoint"] == epoch
            path.unlink()


# --- arguments ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["split", "epoch", "evaluator", "is_saved", "self"])
@pytest.mark.parametrize("evaluator", ["told", "same"])
def test_arguments_with_names_of_ours_are_refused(
    folder: Path,
    plugins: Path,
    name: str,
    evaluator: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a message, also where the evaluator has such a parameter."""
    given = ["--evaluator", evaluator, "--plugins", str(plugins)]
    assert main(["evaluate", str(folder), f"{name}=1", *given]) == 2
    said = capsys.readouterr().err
    assert f"{evaluator}: {name} is no argument of an evaluator" in said


def test_self_is_refused_in_python_too(run: Run) -> None:
    """The other names are parameters there."""
    with pytest.raises(ConfigError, match="self is no argument"):
        run.evaluate_by("told", self=1)
    assert run.evaluate_by("counted", "val", n=3) == {"n": 3}
    assert run.evaluate_by(evaluator="counted", split="val", n=3) == {"n": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "n: nan is not a finite number"),
        ([1, math.inf], "n: inf is not a finite number"),
        ((1, math.nan), "n: cannot be recorded"),
        ({1, 2}, "n: cannot be recorded"),
        (np.ones(2), "n: cannot be recorded"),
        ("\ud800", "n: .* holds half a character"),
    ],
)
def test_arguments_that_cannot_be_recorded_are_refused(
    run: Run, value: Any, message: str
) -> None:
    """Before the evaluator runs, saved or not."""
    for is_saved in (False, True):
        with pytest.raises(ConfigError, match=f"evaluator: raising: {message}"):
            run.evaluate_by("raising", is_saved=is_saved, n=value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n=NaN"], "command line: n: nan is not a finite number"),
        (['n={"a": 1, "a": 2}'], "command line: n: stands twice"),
        (["n=1", "n=2"], "command line: n: stands twice"),
    ],
)
def test_the_command_refuses_such_arguments(
    folder: Path,
    plugins: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 2, with the name."""
    given = ["--evaluator", "counted", "--plugins", str(plugins)]
    assert main(["evaluate", str(folder), *arguments, *given]) == 2
    assert message in capsys.readouterr().err


# --- errors of evaluators -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message", "line"),
    [
        ("raising", "ValueError: invalid literal .* 'no number'", "int("),
        ("failing", "AssertionError", "assert False"),
        ("ending", "SystemExit: 3", "raise SystemExit"),
    ],
)
def test_an_evaluator_that_raises_is_told_with_the_line(
    run: Run,
    plugins: Path,
    name: str,
    message: str,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As an error of ours, with its cause; exit 1."""
    number = next(n for n, text in enumerate(SOURCE.split("\n"), 1) if line in text)
    place = rf"\(.*evaluators\.py, line {number}\)"
    match = f"^evaluator {name} fails: {message} {place}$"
    with pytest.raises(EvaluatorError, match=match) as caught:
        run.evaluate_by(name)
    assert type(caught.value.__cause__).__name__ == message.partition(":")[0]
    given = ["--evaluator", name, "--plugins", str(plugins)]
    assert main(["evaluate", str(run.folder.path), *given]) == 1
    assert f"error: evaluator {name} fails: " in capsys.readouterr().err


def test_errors_of_ours_are_left_as_they_are(run: Run) -> None:
    """They say all that is needed."""
    with pytest.raises(CheckpointError, match="77"):
        run.evaluate_by("loading")


# --- devices ------------------------------------------------------------------------


def test_an_evaluator_gets_the_device_if_it_takes_one(run: Run) -> None:
    """auto leaves a default; without one it is the device that auto stands for."""
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    assert run.evaluate_by("placed") == {"device": "own"}
    assert run.evaluate_by("placed", device="cpu") == {"device": "cpu"}
    assert run.evaluate_by("needing") == {"device": auto}
    assert run.evaluate_by("told", device="cpu")["device"] == "cpu"
    assert "device" not in run.evaluate_by("told")


@pytest.mark.parametrize(
    ("evaluator", "device", "message"),
    [
        ("counted", "cpu", "counted: has no parameter 'device'"),
        ("counted", "nonsense", "device: expected auto, cpu, .*'nonsense'"),
        ("placed", "nonsense", "device: expected auto, cpu, .*'nonsense'"),
        ("placed", "cuda:99", "device: cuda:99 is not there"),
        (None, "nonsense", "device: expected auto, cpu, .*'nonsense'"),
    ],
)
def test_other_devices_are_refused(
    folder: Path,
    plugins: Path,
    evaluator: str | None,
    device: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 2, with and without an evaluator."""
    import re

    given = ["--device", device, "--plugins", str(plugins)]
    given += ["--evaluator", evaluator] if evaluator else []
    assert main(["evaluate", str(folder), *given]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_command_passes_the_device(
    folder: Path, plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And records it; as an argument it is refused."""
    given = ["--evaluator", "placed", "--plugins", str(plugins)]
    assert main(["evaluate", str(folder), *given, "--device", "cpu"]) == 0
    path = folder / "analysis" / "placed" / "test_best.json"
    assert json.loads(path.read_text(encoding="utf-8"))["args"] == {"device": "cpu"}
    assert main(["evaluate", str(folder), "device=cpu", *given]) == 2
    assert "give --device" in capsys.readouterr().err


# --- folders of plug-ins ------------------------------------------------------------


def test_without_plugins_it_is_said_what_to_pass(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the folder that the run's record names."""
    assert main(["evaluate", str(folder), "--evaluator", "extremes"]) == 2
    said = capsys.readouterr().err
    assert "extremes is a plug-in: pass --plugins FOLDER" in said
    assert f"the run's record names {PLUGINS}" in said


def test_a_folder_of_plugins_that_is_not_there_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, with and without an evaluator, and in Python."""
    absent = tmp_path / "absent"
    for more in (["--evaluator", "extremes"], []):
        given = [str(folder), "--plugins", str(absent), *more]
        assert main(["evaluate", *given]) == 2
        assert f"plugins: no folder {absent}" in capsys.readouterr().err
    sweep = load_sweep(folder.parent, plugins=absent)
    with pytest.raises(ConfigError, match="plugins: no folder"):
        sweep.runs()[0].evaluate_by("extremes")
