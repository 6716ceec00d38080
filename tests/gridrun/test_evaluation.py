"""Scores of recorded runs, again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from strategies import OF_MOVIE, OF_SET

from gridrun.cli import main
from gridrun.errors import CheckpointError, ConfigError
from gridrun.sweep import Run, load_sweep, run_sweep

COMMON: Mapping[str, Any] = {"exp_name": "sweep", "lr": 0.01, "seed": 3, "n_epochs": 3}
IMAGES: Mapping[str, Any] = {
    **OF_SET,
    "batch_size": 16,
    "augment": ["flip"],
}
RETINA: Mapping[str, Any] = {**OF_MOVIE, "batch_size": 32, "output_scale": "std"}
OPTIONS: dict[str, Any] = {"quiet": True, "executor": "serial"}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, recording: Path, image_set: Path
) -> dict[str, Run]:
    """A finished run of each library, and of other precisions."""
    root = tmp_path_factory.mktemp("evaluated")
    found = {}
    for name, given, data_root in (
        ("images", IMAGES, image_set),
        ("retina", RETINA, recording),
        ("bfloat16", {**IMAGES, "precision": "bfloat16"}, image_set),
        ("float64", {**RETINA, "precision": "float64"}, recording),
    ):
        keys = {**COMMON, **given, "data_root": str(data_root)}
        save_root = str(root / name)
        (found[name],) = run_sweep(keys, save_root=save_root, **OPTIONS).runs()
    return found


@pytest.mark.parametrize("name", ["images", "retina", "bfloat16", "float64"])
def test_the_recorded_test_scores_come_out_to_the_bit(
    runs: dict[str, Run], name: str
) -> None:
    """Those of the best epoch."""
    assert runs[name].record["test"]
    assert runs[name].evaluate() == runs[name].record["test"]


@pytest.mark.parametrize("name", ["images", "retina", "bfloat16", "float64"])
def test_validation_scores_are_those_of_the_epoch(
    runs: dict[str, Run], name: str
) -> None:
    """As metrics.csv has them, for the last epoch as for the best."""
    run = runs[name]
    rows = run.metrics().set_index("epoch")
    for epoch in {*run.epochs()}:
        found = run.evaluate("val", epoch)
        for metric, value in found.items():
            assert value == rows.loc[epoch, metric], metric


def test_training_samples_are_scored_unaugmented(runs: dict[str, Run]) -> None:
    """The same at every call."""
    first = runs["images"].evaluate("train")
    assert first == runs["images"].evaluate("train")
    assert math.isfinite(first["train_loss"])


def test_the_command_prints_and_writes_them(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the run, and nothing else changes."""
    run = runs["images"]
    folder = run.folder.path
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert main(["evaluate", str(folder), "--checkpoint", "last"]) == 0
    path = folder / "evaluation_test_last.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["epoch"] == 3
    assert written["metrics"] == run.evaluate("test", "last")
    said = capsys.readouterr().out
    assert all(name in said for name in written["metrics"])
    path.unlink()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_without_a_run_it_is_the_newest_finished_one(
    runs: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the sweep that hyperparams.json in the working directory names."""
    monkeypatch.chdir(tmp_path)
    hyps = json.loads(runs["images"].folder.hyperparams.read_text(encoding="utf-8"))
    given = {**COMMON, **IMAGES, "data_root": hyps["data_root"]}
    Path("hyperparams.json").write_text(json.dumps(given), encoding="utf-8")
    assert main(["evaluate"]) == 2
    assert "no sweep here" in capsys.readouterr().err
    run_sweep(given, {"lr": [0.1, 0.2]}, **OPTIONS)
    newest = load_sweep("sweep").run(1).folder
    record = newest.read()
    record["attempts"][-1]["ended"] = "2999-01-01T00:00:00+00:00"
    newest.update(attempts=record["attempts"])
    assert main(["evaluate"]) == 0
    assert newest.path.name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"split": "tset"}, ConfigError),
        ({"epoch": 77}, CheckpointError),
        ({"epoch": "worst"}, ConfigError),
        ({"epoch": "pruned"}, ConfigError),
        ({"device": "cuda:9"}, ConfigError),
    ],
)
def test_what_is_not_there_is_told(
    runs: dict[str, Run], options: dict[str, Any], error: type[Exception]
) -> None:
    """And not guessed."""
    with pytest.raises(error, match=str(next(iter(options.values())))):
        runs["images"].evaluate(**options)


def test_a_folder_that_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, with the folder."""
    assert main(["evaluate", str(tmp_path)]) == 2
    assert f"{tmp_path}: no run here" in capsys.readouterr().err
