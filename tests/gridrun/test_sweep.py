"""Numbers, seeds and folders of a sweep, on the shipped digits."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest
from strategies import BREAKING

from gridrun.errors import ConfigError, StoreError
from gridrun.plan import Numbering, Plan, plan_sweep, settle
from gridrun.planner import Job
from gridrun.request import read_request
from gridrun.run import RunState
from gridrun.store import SweepFolder
from gridrun.sweep import run_sweep
from gridrun.training.job import train_job

BASE = {
    "exp_name": "s",
    "seed": 5,
    "model_type": "SmallNet",
    "img_shape": [1, 8, 8],
    "chans": [2],
    "ksizes": [3],
    "mid_dims": 4,
    "data_root": str(Path(__file__).parents[2] / "data"),
    "dataset": "digits",
    "batch_size": 500,
    "n_epochs": 1,
    "lr": 0.01,
}


def planned(root: Path, ranges: Any = None, **changes: Any) -> Plan:
    base = {name: v for name, v in {**BASE, **changes}.items() if v is not ...}
    return plan_sweep(read_request(base, ranges, (), {"save_root": str(root)}))


def settled(root: Path, ranges: Any = None, **changes: Any) -> Numbering:
    return settle(planned(root, ranges, **changes))


def numbers(numbering: Numbering) -> list[int]:
    return [run.number for run in numbering.runs]


def by_lr(numbering: Numbering) -> dict[float, list[int]]:
    found: dict[float, list[int]] = {}
    for run in numbering.runs:
        found.setdefault(run.spec.hyps.lr, []).append(run.number)
    return found


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "s").glob("s_*"))


def test_numbers_follow_the_grid(tmp_path: Path) -> None:
    """Runs are numbered in grid order, repeats innermost."""
    numbering = settled(tmp_path, {"lr": [0.1, 0.2]}, n_repeats=2)
    assert by_lr(numbering) == {0.1: [0, 1], 0.2: [2, 3]}
    assert [run.spec.hyps.seed for run in numbering.runs] == [5, 6, 5, 6]


def test_known_runs_keep_their_numbers(tmp_path: Path) -> None:
    """A grid that grows gives new runs new numbers and old runs their own."""
    settled(tmp_path, {"lr": [0.1, 0.2]})
    numbering = settled(tmp_path, {"lr": [0.05, 0.2, 0.1]})
    assert by_lr(numbering) == {0.05: [2], 0.2: [1], 0.1: [0]}


def test_numbers_are_never_reused(tmp_path: Path) -> None:
    """A deleted folder's number is not given to another run."""
    numbering = settled(tmp_path, {"lr": [0.1, 0.2]})
    for path in numbering.runs[1].folder.path.iterdir():
        path.unlink()
    numbering.runs[1].folder.path.rmdir()
    assert by_lr(settled(tmp_path, {"lr": [0.3]})) == {0.3: [2]}


def test_starting_exp_num_numbers_the_first_new_run(tmp_path: Path) -> None:
    """New runs count on from starting_exp_num."""
    assert numbers(settled(tmp_path, {"lr": [0.1, 0.2]}, starting_exp_num=7)) == [7, 8]


def test_starting_exp_num_never_overwrites(tmp_path: Path) -> None:
    """A number that another run holds is refused and nothing changes."""
    settled(tmp_path, {"lr": [0.1, 0.2]})
    before = folders(tmp_path)
    with pytest.raises(StoreError, match="starting_exp_num: run 1"):
        settled(tmp_path, {"lr": [0.3]}, starting_exp_num=1)
    assert folders(tmp_path) == before


def test_a_request_that_is_not_approved_writes_nothing(tmp_path: Path) -> None:
    """A refusal under the lock leaves the sweep as it was."""
    settled(tmp_path, {"lr": [0.1]})
    before = (tmp_path / "s" / "sweep.json").read_bytes()

    def refuse(numbering: Numbering) -> None:
        raise ConfigError("refused")

    with pytest.raises(ConfigError, match="refused"):
        settle(planned(tmp_path, {"lr": [0.2]}), refuse)
    assert (tmp_path / "s" / "sweep.json").read_bytes() == before
    assert folders(tmp_path) == ["s_0_lr0.1"]


def test_two_first_requests_at_once_are_numbered_one_after_the_other(
    tmp_path: Path,
) -> None:
    """Who comes second to the lock numbers after what the first has settled."""
    one, other = (planned(tmp_path, {"lr": [lr]}) for lr in (0.1, 0.2))
    lock = SweepFolder.locked

    def settle_other_first(folder: SweepFolder) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SweepFolder, "locked", lock)
            settle(other)
        return lock(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SweepFolder, "locked", settle_other_first)
        assert numbers(settle(one)) == [1]
    assert folders(tmp_path) == ["s_0_lr0.2", "s_1_lr0.1"]


def test_skipped_runs_keep_their_numbers(tmp_path: Path) -> None:
    """skip_nums leaves folders out without renumbering; later they are made."""
    ranges = {"lr": [0.1, 0.2, 0.3]}
    assert numbers(settled(tmp_path, ranges, skip_nums=[1])) == [0, 2]
    assert folders(tmp_path) == ["s_0_lr0.1", "s_2_lr0.3"]
    assert by_lr(settled(tmp_path, ranges)) == {0.1: [0], 0.2: [1], 0.3: [2]}


def test_skip_nums_outside_the_sweep_is_refused(tmp_path: Path) -> None:
    """A number that no run of the request has is an error, nothing written."""
    with pytest.raises(ConfigError, match=r"skip_nums: \[9\]"):
        settled(tmp_path, {"lr": [0.1]}, skip_nums=[9])
    assert not list(tmp_path.iterdir())


def test_a_request_killed_halfway_finds_its_numbers(tmp_path: Path) -> None:
    """Folders that a killed request did not make get the numbers it had settled."""
    ranges = {"lr": [0.1, 0.2, 0.3]}
    numbering = settled(tmp_path, ranges)
    for run in numbering.runs[1:]:
        for path in run.folder.path.iterdir():
            path.unlink()
        run.folder.path.rmdir()
    (tmp_path / "s" / ".s_1_lr0.2.tmp").mkdir()
    assert by_lr(settled(tmp_path, ranges)) == {0.1: [0], 0.2: [1], 0.3: [2]}
    assert folders(tmp_path) == ["s_0_lr0.1", "s_1_lr0.2", "s_2_lr0.3"]
    assert not list((tmp_path / "s").glob(".*"))


def test_a_clock_seed_is_drawn_once(tmp_path: Path) -> None:
    """Without a seed the sweep draws one, records it and uses it again."""
    first = settled(tmp_path, seed=...)
    again = settled(tmp_path, {"lr": [0.01, 0.02]}, seed=...)
    base_seed = SweepFolder(tmp_path / "s").read()["base_seed"]
    assert first.runs[0].spec.hyps.seed == base_seed
    assert {run.spec.hyps.seed for run in again.runs} == {base_seed}
    assert again.runs[0].number == first.runs[0].number


def test_clock_seeds_of_two_sweeps_differ(tmp_path: Path) -> None:
    """Two sweeps started one after the other have different seeds."""
    seeds = [settled(tmp_path / n, seed=...).runs[0].spec.hyps.seed for n in "ab"]
    assert seeds[0] != seeds[1]


def test_every_run_records_every_key(tmp_path: Path) -> None:
    """hyperparams.json of a run holds all keys of its library, final."""
    (run,) = settled(tmp_path).runs
    recorded = json.loads(run.folder.hyperparams.read_text())
    assert set(recorded) == set(type(run.spec.hyps).model_fields)
    assert recorded["seed"] == recorded["split_seed"] == 5
    assert recorded["library"] == "imgclass"
    assert recorded["paddings"] == [0]


def test_requests_are_recorded_once(tmp_path: Path) -> None:
    """The same request again adds an invocation, another one a request."""
    for ranges in ({"lr": [0.1]}, {"lr": [0.1]}, {"lr": [0.2]}):
        settled(tmp_path, ranges)
    requests = SweepFolder(tmp_path / "s").read()["requests"]
    assert [len(one["invocations"]) for one in requests] == [2, 1]
    assert requests[0]["ranges"] == {"lr": [0.1]}


@pytest.mark.parametrize("name", ["test", "a_b", "a_1_b", "x.y"])
def test_no_experiment_name_is_special(tmp_path: Path, name: str) -> None:
    """Underscores, dots and the name test number runs like any other name."""
    for expected in ([0, 1], [0, 1]):
        numbering = settled(tmp_path, {"lr": [0.1, 0.2]}, exp_name=name)
        assert numbers(numbering) == expected
    assert len(list((tmp_path / name).glob("*/run.json"))) == 2


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    """A user's own folder of that name is left alone."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        planned(tmp_path)


def states(root: Path) -> Sequence[RunState]:
    return [folder.state() for _, folder in SweepFolder(root / "s").runs()]


def serial(root: Path, ranges: Any = None, **changes: Any) -> None:
    options = changes.pop("options", {})
    run_sweep(
        {**BASE, **changes},
        ranges,
        save_root=str(root),
        executor="serial",
        quiet=True,
        **options,
    )


def test_an_option_that_never_changes_results_applies_later(tmp_path: Path) -> None:
    """save_every_epoch of a later request holds for runs begun by an earlier one."""
    numbering = settled(tmp_path, n_epochs=2)
    serial(tmp_path, n_epochs=2, save_every_epoch=True)
    kept = numbering.runs[0].folder.checkpoints.glob("epoch_*.pt")
    assert sorted(path.name for path in kept) == ["epoch_0001.pt", "epoch_0002.pt"]
    assert json.loads(numbering.runs[0].folder.hyperparams.read_text())[
        "save_every_epoch"
    ]


def test_failed_runs_are_tried_again_only_when_asked(tmp_path: Path) -> None:
    """A failed run stays failed until retry_failed, which trains it anew."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "breaking.py").write_text(BREAKING)
    broken = {"model_type": "Breaking", "model_args": {"breaks": True}}
    broken["plugins"] = str(tmp_path / "plugins")
    serial(tmp_path, **broken)
    assert states(tmp_path) == [RunState.FAILED]
    (_, folder) = next(SweepFolder(tmp_path / "s").runs())
    serial(tmp_path, **broken)
    assert len(folder.read()["attempts"]) == 1
    serial(tmp_path, **broken, options={"retry_failed": True})
    assert len(folder.read()["attempts"]) == 2
    assert states(tmp_path) == [RunState.FAILED]


def test_changed_data_are_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A finished run stays, with a warning, when its data file has other content."""
    source = Path(str(BASE["data_root"])) / "digits" / "images.h5"
    (tmp_path / "digits").mkdir()
    copy = tmp_path / "digits" / "images.h5"
    copy.write_bytes(source.read_bytes())
    serial(tmp_path, data_root=str(tmp_path))
    copy.write_bytes(source.read_bytes() + b"\0")
    serial(tmp_path, data_root=str(tmp_path))
    assert "has other content" in caplog.text
    assert states(tmp_path) == [RunState.DONE]


def test_data_that_changed_between_sweeps_are_read_anew(tmp_path: Path) -> None:
    """One process trains on a file's present content, not on what it had opened."""
    source = Path(str(BASE["data_root"])) / "digits" / "images.h5"
    (tmp_path / "digits").mkdir()
    copy = tmp_path / "digits" / "images.h5"
    copy.write_bytes(source.read_bytes())
    losses = []
    for name in "ab":
        serial(tmp_path, exp_name=name, data_root=str(tmp_path))
        ((_, folder),) = SweepFolder(tmp_path / name).runs()
        losses.append(folder.epochs.read()[0]["val_loss"])
        with h5py.File(copy, "r+") as file:
            file["train/labels"][:] = file["train/labels"][:][::-1]
    assert losses[0] != losses[1]


def test_a_run_of_one_epoch_makes_few_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json twice, metrics, checkpoint and index once; and their folders."""
    settled(tmp_path)
    files: list[str] = []
    n_syncs = 0
    replace, fsync = os.replace, os.fsync

    def spy_replace(halfway: Path, path: Path) -> None:
        files.append(path.name)
        replace(halfway, path)

    def spy_fsync(descriptor: int) -> None:
        nonlocal n_syncs
        n_syncs += 1
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", spy_replace)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    (run,) = settled(tmp_path).runs
    files.clear()
    n_syncs = 0
    hyps = run.spec.hyps.model_dump(mode="json")
    path = str(run.folder.path)
    train_job(Job("imgclass", (path,), (hyps,), threads=1, device="cpu"))
    assert files == ["run.json", "epoch_0001.pt", "index.json", "run.json"]
    assert n_syncs == 10  # these, run.json's folder twice, the checkpoints' once,
    # metrics.csv, two new names
    assert run.folder.state() is RunState.DONE


def test_a_run_that_cannot_write_its_log_fails_once(tmp_path: Path) -> None:
    """A file that cannot be written ends the run; nothing is tried for ever."""
    (run,) = settled(tmp_path).runs
    run.folder.log.mkdir()
    serial(tmp_path)
    assert states(tmp_path) == [RunState.FAILED]
    assert len(run.folder.read()["attempts"]) == 1


def test_a_renamed_sweep_is_still_read(tmp_path: Path) -> None:
    """Moving a sweep's folder loses no run."""
    settled(tmp_path, {"lr": [0.1, 0.2]})
    (tmp_path / "s").rename(tmp_path / "moved")
    assert [number for number, _ in SweepFolder(tmp_path / "moved").runs()] == [0, 1]


def test_a_save_root_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file in the way of the sweep's folder is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="save_root"):
        settled(tmp_path / "file")
