"""Sweep folders: durable files, claims, metrics, checkpoints, run folders, numbers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import IMAGES, completed

from gridrun import durable, store
from gridrun.claims import Claim
from gridrun.durable import (
    read_record,
    remove_temporaries,
    sha256_of_file,
    write_durably,
    write_json,
)
from gridrun.errors import CheckpointError, StorageError, StoreError
from gridrun.plan import plan_sweep, settle
from gridrun.request import read_request
from gridrun.run import RunSpec, RunState, make_spec
from gridrun.store import (
    RunFolder,
    SweepFolder,
    assign_numbers,
)


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden names included."""
    return sorted(path.name for path in folder.iterdir())


def spec_of(**given: Any) -> RunSpec:
    """A run of a small configuration."""
    hyps = completed(IMAGES, **given)
    assert hyps.seed is not None
    return make_spec(hyps, given, 0, hyps.seed, ())


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that runs some code; it can be talked to."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


# --- durable files ----------------------------------------------------------------


@pytest.mark.parametrize("content", ["näme\n", b"\x00\xff", ""])
def test_a_written_file_holds_the_content_alone(
    tmp_path: Path, content: bytes | str
) -> None:
    """Text and bytes arrive, and nothing else is left in the folder."""
    write_durably(tmp_path / "file", content)
    expected = content.encode() if isinstance(content, str) else content
    assert (tmp_path / "file").read_bytes() == expected
    assert names(tmp_path) == ["file"]


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    """A shorter content leaves nothing of the longer one."""
    path = tmp_path / "file"
    write_durably(path, "a long content")
    write_durably(path, "short")
    assert path.read_text() == "short"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A full disk or a stop before the rename loses the new content only."""
    path = tmp_path / "file"
    write_durably(path, "old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(StorageError, match=rf"{path}: .*No space left"):
            write_durably(path, "new")
    assert path.read_text() == "old"
    write_durably(path, "newer")
    assert (path.read_text(), names(tmp_path)) == ("newer", ["file"])


def test_content_is_on_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, then rename, then folder: no crash of the machine leaves an empty file."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve()
        steps.append("folder" if is_folder else "file")
        fsync(descriptor)

    def spy_replace(*arguments: Any) -> None:
        steps.append("rename")
        replace(*arguments)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_durably(tmp_path / "x", "content")
    assert steps == ["file", "rename", "folder"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """kill -9 before the rename leaves the old file and something to clear away."""
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import os, pathlib, sys; from gridrun.durable import write_durably\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "write_durably(pathlib.Path(sys.argv[1]), 'new' * 10**6)"
    )
    with run_python(code, path) as process:
        assert process.wait() == -signal.SIGKILL
    assert path.read_text() == "old"
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["file"]


def test_temporaries_alone_are_removed(tmp_path: Path) -> None:
    """What a killed writer left goes; other hidden files stay."""
    for name in (".a.tmp", ".git", "b.tmp", "file"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.tmp" / "inner").mkdir(parents=True)
    remove_temporaries(tmp_path)
    assert names(tmp_path) == [".git", "b.tmp", "file"]


def test_records_come_back_as_written(tmp_path: Path) -> None:
    """Save, then load, is the identity."""
    record = {"b": [1, 0.1, None, True, "ä"], "a": {"c": {}}}
    write_json(tmp_path / "x", record)
    assert read_record(tmp_path / "x") == record


def test_records_are_strict_json(tmp_path: Path) -> None:
    """NaN is refused before the old record is touched."""
    write_json(tmp_path / "x", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x", {"a": float("nan")})
    assert read_record(tmp_path / "x") == {"a": 1}


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"[]", b"\xff"])
def test_a_damaged_record_is_told_by_its_path(
    tmp_path: Path, content: bytes | None
) -> None:
    """Absent, cut or foreign content is an error for people."""
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"run\.json: "):
        read_record(path)


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    """The published digest of `abc`."""
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")


# --- states -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder with a record that says running."""
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    write_json(made.record, {"state": "running", "number": 3})
    return made


def test_running_without_a_claim_is_interrupted(folder: RunFolder) -> None:
    """A run whose process died is recorded as running, but is not."""
    assert folder.state() is RunState.INTERRUPTED


def test_running_with_a_live_claim_is_running(folder: RunFolder) -> None:
    """A run that somebody trains is left alone."""
    claim = Claim(folder.claim)
    assert claim.acquire()
    assert folder.state() is RunState.RUNNING
    claim.release()


@pytest.mark.parametrize("state", [s for s in RunState if s is not RunState.RUNNING])
def test_other_states_are_as_recorded(folder: RunFolder, state: RunState) -> None:
    """Only running needs a living process."""
    folder.update(state=state.value)
    assert folder.state() is state


def test_an_update_keeps_the_other_entries(folder: RunFolder) -> None:
    """run.json is changed entry by entry."""
    changed = folder.update(state="done", error=None)
    assert changed == folder.read() == {"state": "done", "number": 3, "error": None}


# --- metrics ----------------------------------------------------------------------


def fill_metrics(folder: RunFolder, n_epochs: int) -> None:
    """Append a row for each epoch."""
    for epoch in range(1, n_epochs + 1):
        folder.epochs.append([{"epoch": epoch, "loss": 1 / epoch}])


def epochs(folder: RunFolder) -> list[float]:
    """The epochs of metrics.csv."""
    return [row["epoch"] for row in folder.epochs.read()]


def test_without_metrics_there_are_no_rows(folder: RunFolder) -> None:
    """A run before its first epoch can be read."""
    folder.cut_tables(0)
    assert folder.epochs.read() == []


def test_each_epoch_is_one_row_under_one_header(folder: RunFolder) -> None:
    """metrics.csv is plain CSV."""
    fill_metrics(folder, 2)
    assert folder.metrics.read_text() == "epoch,loss\n1,1.0\n2,0.5\n"


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_metrics_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    """What is appended is what is read, infinities included."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    rows = [{"epoch": i, "loss": value} for i, value in enumerate(values, 1)]
    for row in rows:
        folder.epochs.append([row])
    assert folder.epochs.read() == rows


@pytest.mark.parametrize("torn", ["3", "3,0.33", "3,0.33,0.3"])
def test_a_torn_last_line_is_not_read_and_is_cut(folder: RunFolder, torn: str) -> None:
    """A kill while appending loses that epoch only, and the next row starts afresh."""
    fill_metrics(folder, 2)
    with folder.metrics.open("a") as file:
        file.write(torn)
    assert epochs(folder) == [1, 2]
    folder.cut_tables(2)
    folder.epochs.append([{"epoch": 3, "loss": 9.0}])
    assert epochs(folder) == [1, 2, 3]
    assert folder.epochs.read()[-1]["loss"] == 9.0


def test_cutting_after_the_last_row_drops_a_torn_line(folder: RunFolder) -> None:
    """Whatever epoch is asked for, what is left is whole."""
    fill_metrics(folder, 2)
    whole = folder.metrics.read_text()
    folder.metrics.write_text(whole + "3,0.3")
    folder.cut_tables(3)
    assert folder.metrics.read_text() == whole


def test_a_torn_header_is_cut(folder: RunFolder) -> None:
    """A kill in the first epoch leaves nothing that could spoil the second attempt."""
    folder.metrics.write_text("epoch,lo")
    assert folder.epochs.read() == []
    folder.cut_tables(0)
    fill_metrics(folder, 1)
    assert epochs(folder) == [1]


@pytest.mark.parametrize("epoch", range(5))
def test_metrics_are_cut_after_an_epoch(folder: RunFolder, epoch: int) -> None:
    """Resuming from a checkpoint drops the rows after it, and keeps those before."""
    fill_metrics(folder, 3)
    folder.cut_tables(epoch)
    assert epochs(folder) == [1, 2, 3][:epoch]
    assert folder.metrics.exists() == (epoch > 0)


# --- checkpoints ------------------------------------------------------------------


def save(folder: RunFolder, best: list[int], keep_all: bool = False) -> None:
    """Save one checkpoint for each entry: the best epoch at that time."""
    for epoch, best_epoch in enumerate(best, 1):
        content = f"weights {epoch}".encode()
        folder.save_checkpoint(content, epoch, best_epoch, keep_all)


def saved(folder: RunFolder) -> list[int]:
    """Epochs whose file is on disk; they must be those of the index."""
    files = [int(path.stem[-4:]) for path in folder.checkpoints.glob("*.pt")]
    assert sorted(files) == [f["epoch"] for f in folder.read_index()["files"].values()]
    return sorted(files)


def test_without_checkpoints_the_index_is_empty(folder: RunFolder) -> None:
    """A run before its first epoch can be asked."""
    folder.keep_final(keep_all=False)
    assert folder.read_index() == {"last": None, "best": None, "files": {}}


@pytest.mark.parametrize(
    ("best", "kept"),
    [
        ([1], [1]),
        ([1, 1], [1, 2]),
        ([1, 1, 1, 1], [1, 3, 4]),
        ([1, 2, 2, 2, 2], [2, 4, 5]),
        ([1, 2, 3, 4], [3, 4]),
    ],
)
def test_while_training_the_last_two_and_the_best_are_kept(
    folder: RunFolder, best: list[int], kept: list[int]
) -> None:
    """Resuming can fall back by one epoch, and the best is never lost."""
    save(folder, best)
    assert saved(folder) == kept
    index = folder.read_index()
    assert (index["last"], index["best"]) == (len(best), best[-1])


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_the_best_and_the_last_two_are_always_there(
    tmp_path_factory: pytest.TempPathFactory, improves: list[bool]
) -> None:
    """After every epoch these exist, and the best as of the last but one."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    best = 1
    for epoch, is_better in enumerate(improves, 1):
        before, best = best, epoch if is_better else best
        folder.save_checkpoint(b"x", epoch, best, keep_all=False)
        assert saved(folder) == sorted({before, best, max(epoch - 1, 1), epoch})


@pytest.mark.parametrize(
    ("best", "kept"), [([1, 2, 2, 2, 2], [2, 5]), ([1, 2, 3], [3])]
)
def test_at_the_end_the_last_and_the_best_are_kept(
    folder: RunFolder, best: list[int], kept: list[int]
) -> None:
    """One file where they coincide."""
    save(folder, best)
    folder.keep_final(keep_all=False)
    assert saved(folder) == kept


def test_an_index_that_stays_is_not_written_again(folder: RunFolder) -> None:
    """The end of a run whose checkpoints are all kept touches no file."""
    save(folder, [1, 1])
    before = folder.index.stat().st_ino
    folder.keep_final(keep_all=False)
    assert folder.index.stat().st_ino == before


def test_all_are_kept_if_asked(folder: RunFolder) -> None:
    """save_every_epoch keeps the file of each epoch, to the end."""
    save(folder, [1, 1, 1, 1], keep_all=True)
    folder.keep_final(keep_all=True)
    assert saved(folder) == [1, 2, 3, 4]


def test_a_checkpoint_comes_back_as_saved(folder: RunFolder) -> None:
    """Its file is named by the epoch."""
    save(folder, [1])
    assert folder.checkpoint_path(1).name == "epoch_0001.pt"
    assert folder.read_checkpoint(1) == b"weights 1"


def test_a_damaged_checkpoint_is_refused(folder: RunFolder) -> None:
    """One flipped bit is found by the recorded SHA-256."""
    save(folder, [1, 1])
    folder.checkpoint_path(2).write_bytes(b"weights 3")
    with pytest.raises(CheckpointError, match=r"epoch_0002\.pt: damaged"):
        folder.read_checkpoint(2)
    assert folder.read_checkpoint(1) == b"weights 1"


def test_a_vanished_checkpoint_is_refused(folder: RunFolder) -> None:
    """A deleted file is told by its path."""
    save(folder, [1])
    folder.checkpoint_path(1).unlink()
    with pytest.raises(CheckpointError, match=r"epoch_0001\.pt: cannot be read"):
        folder.read_checkpoint(1)


def test_an_epoch_that_is_not_kept_lists_those_that_are(folder: RunFolder) -> None:
    """The error says what can be loaded instead."""
    save(folder, [1, 1, 1, 1])
    with pytest.raises(CheckpointError, match=r"epoch 2 .* saved epochs: 1, 3, 4"):
        folder.read_checkpoint(2)


def test_a_kill_before_the_index_leaves_the_earlier_checkpoint(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older files go only when the index no longer names them."""
    save(folder, [1, 2])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.save_checkpoint(b"x", 3, 3, keep_all=False)
    assert folder.read_index()["last"] == 2
    assert folder.read_checkpoint(1) == b"weights 1"
    assert folder.read_checkpoint(2) == b"weights 2"


@pytest.mark.parametrize(
    ("epoch", "best", "kept"), [(3, 2, [1, 2, 3]), (1, 1, [1]), (0, 0, [])]
)
def test_later_checkpoints_are_forgotten(
    folder: RunFolder, epoch: int, best: int, kept: list[int]
) -> None:
    """A run that goes back further has no files from its future."""
    save(folder, [1, 2, 2, 2], keep_all=True)
    folder.forget_after(epoch, best)
    assert saved(folder) == kept
    index = folder.read_index()
    assert (index["last"], index["best"]) == (epoch or None, best or None)


# --- sweep folders ----------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    """A sweep's folder with a record and no runs."""
    made = SweepFolder(tmp_path / "sweep")
    made.path.mkdir()
    write_json(made.record, {"exp_name": "sweep", "requests": []})
    return made


def numbers(sweep: SweepFolder) -> list[int]:
    """The numbers of the runs that are found."""
    return [number for number, _ in sweep.runs()]


def test_a_folder_without_a_record_is_no_sweep(tmp_path: Path) -> None:
    """The error names the folder."""
    assert not SweepFolder(tmp_path).exists()
    with pytest.raises(StoreError, match="no sweep here"):
        SweepFolder(tmp_path).read()


def test_runs_come_in_the_order_of_their_numbers(sweep: SweepFolder) -> None:
    """10 comes after 9."""
    for number in (10, 9, 0):
        sweep.create_run(number, spec_of())
    assert numbers(sweep) == [0, 9, 10]


def test_a_name_with_underscores_and_digits_is_read(tmp_path: Path) -> None:
    """The number is what follows the whole name of the experiment."""
    sweep = SweepFolder(tmp_path / "a_1")
    sweep.path.mkdir()
    sweep.create_run(7, spec_of(exp_name="a_1", lr=0.5))
    assert numbers(sweep) == [7]


def test_other_entries_are_no_runs(sweep: SweepFolder) -> None:
    """Tables, notes and half-made folders are passed over."""
    for name in (
        "sweep_notes",
        "sweep",
        "other_1",
        ".sweep_2.tmp",
        "sweep_²",
        "sweep_",
    ):
        (sweep.path / name).mkdir()
    (sweep.path / "sweep_3").touch()
    assert numbers(sweep) == []


def test_runs_are_found_from_inside_the_folder(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` is the sweep it stands for."""
    sweep.create_run(0, spec_of())
    monkeypatch.chdir(sweep.path)
    assert numbers(SweepFolder(Path())) == [0]


def test_runs_are_found_in_a_renamed_folder(sweep: SweepFolder, tmp_path: Path) -> None:
    """A sweep that was moved to another name can be read."""
    sweep.create_run(0, spec_of())
    sweep.path.rename(tmp_path / "kept")
    assert numbers(SweepFolder(tmp_path / "kept")) == [0]


def test_a_new_run_holds_its_configuration_and_is_pending(sweep: SweepFolder) -> None:
    """Enough to train this run alone, and to find its place in the grid."""
    spec = spec_of(lr=0.5)
    folder = sweep.create_run(4, spec)
    assert folder.path.name == "sweep_4_lr0.5"
    assert read_record(folder.hyperparams) == spec.hyps.model_dump(mode="json")
    expected = {"number": 4, "state": "pending", "repeat": 0, "axes": {"lr": 0.5}}
    assert expected.items() <= folder.read().items()
    assert folder.read()["point"] == spec.point
    assert folder.state() is RunState.PENDING


def test_a_run_folder_appears_whole_or_not_at_all(sweep: SweepFolder) -> None:
    """kill -9 at the last moment leaves no run folder; the next try makes it."""
    code = (
        "import os, pathlib, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parents[1])]}\n"
        "from strategies import completed\n"
        "from gridrun.run import make_spec\n"
        "from gridrun.store import SweepFolder\n"
        "os.rename = lambda *_: os.kill(os.getpid(), 9)\n"
        "spec = make_spec(completed(), {}, 0, 5, ())\n"
        "SweepFolder(pathlib.Path(sys.argv[1])).create_run(0, spec)"
    )
    with run_python(code, sweep.path) as process:
        assert process.wait() == -signal.SIGKILL
    assert numbers(sweep) == []
    assert len(names(sweep.path)) == 2  # the record, and what was left half-made
    with sweep.locked():
        sweep.create_run(0, spec_of())
    assert names(sweep.path) == ["sweep.json", "sweep_0"]


@pytest.mark.parametrize("limit", [0, 50])
def test_run_folders_are_on_disk_before_they_get_their_names(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Every file and folder is synced, singly or as a file system, then all renamed."""
    steps: list[str] = []
    fsync, rename, library = os.fsync, os.rename, durable._c_library()

    def spy_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        steps.append(str(path.relative_to(sweep.path)))
        fsync(descriptor)

    def spy_rename(*names: Any) -> None:
        steps.append("rename")
        rename(*names)

    class Library:
        @staticmethod
        def syncfs(descriptor: int) -> int:
            steps.append("everything")
            return int(library.syncfs(descriptor))

    monkeypatch.setattr(durable, "MAX_SINGLE_SYNCS", limit)
    monkeypatch.setattr(durable, "_c_library", Library)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    made = sweep.create_runs({n: spec_of(lr=0.1 * n) for n in (1, 2)})
    halfway = [f".{folder.path.name}.tmp" for folder in made.values()]
    inside = ("/hyperparams.json", "/run.json", "")
    singly = [f"{folder}{name}" for folder in halfway for name in inside]
    assert steps[:-3] == (singly if limit else ["everything"])
    assert steps[-3:] == ["rename", "rename", "."]
    assert numbers(sweep) == [1, 2]


def test_a_sync_that_fails_is_an_error(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that may not be on disk get no name."""

    class Library:
        @staticmethod
        def syncfs(descriptor: int) -> int:
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(durable, "MAX_SINGLE_SYNCS", 0)
    monkeypatch.setattr(durable, "_c_library", Library)
    with pytest.raises(StorageError, match="Input/output"):
        sweep.create_run(0, spec_of())
    assert numbers(sweep) == []


def test_the_lock_of_a_sweep_on_nfs(
    sweep: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a folder cannot be locked a hidden file is, and it excludes as well."""
    flock = fcntl.flock

    def of_nfs(descriptor: int, operation: int) -> None:
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_RDWR:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with sweep.locked():
        descriptor = os.open(sweep.path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_the_lock_of_a_sweep_is_exclusive_and_leaves_no_file(
    sweep: SweepFolder,
) -> None:
    """Requests and numbers are settled by one process at a time."""
    descriptor = os.open(sweep.path, os.O_RDONLY)
    try:
        with sweep.locked(), pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
    assert names(sweep.path) == ["sweep.json"]


def test_the_lock_is_given_up_after_an_error(sweep: SweepFolder) -> None:
    """A refused request does not block the sweep."""
    with pytest.raises(StoreError), sweep.locked():
        raise StoreError("refused")
    with sweep.locked():
        assert sweep.exists()


# --- numbers ----------------------------------------------------------------------


def test_new_runs_are_numbered_in_grid_order() -> None:
    """Counting starts where it is told to."""
    specs = [spec_of(lr=lr) for lr in (0.3, 0.1, 0.2)]
    assert assign_numbers(specs, {}, set(), 5) == [5, 6, 7]


def test_known_runs_keep_their_numbers() -> None:
    """New runs between them count on."""
    specs = [spec_of(lr=lr) for lr in (0.1, 0.2, 0.3)]
    known = {specs[1].identity: 2}
    assert assign_numbers(specs, known, {2}, 3) == [3, 2, 4]


@pytest.mark.parametrize(("taken", "first"), [({4}, 4), ({5}, 4)])
def test_a_number_of_another_run_is_refused(taken: set[int], first: int) -> None:
    """Nothing is overwritten where starting_exp_num is too small."""
    specs = [spec_of(lr=lr) for lr in (0.1, 0.2)]
    with pytest.raises(StoreError, match=f"starting_exp_num: run {max(taken)} "):
        assign_numbers(specs, {}, taken, first)


@given(st.lists(st.integers(0, 8), max_size=8, unique=True), st.integers(0, 20))
def test_numbers_are_never_shared(known_runs: list[int], first: int) -> None:
    """Each run has one number and each number one run, or the request is refused."""
    specs = [spec_of(seed=seed) for seed in range(9)]
    known = {specs[i].identity: 2 * i for i in known_runs}
    try:
        assigned = assign_numbers(specs, known, set(known.values()), first)
    except StoreError:
        assert first <= max(known.values())
        return
    assert len(set(assigned)) == len(specs)
    assert [assigned[i] for i in known_runs] == [2 * i for i in known_runs]


@pytest.fixture
def settle_lrs(image_set: Path, tmp_path: Path) -> Callable[..., list[int]]:
    """Function that asks for learning rates and gives their runs' numbers."""
    root = {"data_root": str(image_set), "save_root": str(tmp_path)}
    base = {**IMAGES, **root, "dataset": "set", "img_shape": [1, 6, 6]}

    def ask(*lrs: float, **given: Any) -> list[int]:
        request = read_request({**base, **given}, {"lr": list(lrs)})
        return [run.number for run in settle(plan_sweep(request)).runs]

    return ask


def test_numbers_stay_over_requests(settle_lrs: Callable[..., list[int]]) -> None:
    """Asking again, or for more, renumbers nothing."""
    assert settle_lrs(0.1, 0.2) == [0, 1]
    assert settle_lrs(0.3, 0.2, 0.4) == [2, 1, 3]
    assert settle_lrs(0.1, 0.2) == [0, 1]


def test_the_number_of_a_deleted_run_is_not_given_to_another(
    settle_lrs: Callable[..., list[int]], tmp_path: Path
) -> None:
    """Deleting a folder frees the run to be made again, not its number."""
    settle_lrs(0.1, 0.2)
    shutil.rmtree(tmp_path / "sweep" / "sweep_1_lr0.2")
    assert settle_lrs(0.3) == [2]
    assert settle_lrs(0.2) == [1]
    assert numbers(SweepFolder(tmp_path / "sweep")) == [0, 1, 2]


def test_a_starting_number_holds_for_new_runs(
    settle_lrs: Callable[..., list[int]],
) -> None:
    """Numbers between stay free; a number of another run is refused."""
    assert settle_lrs(0.1, starting_exp_num=10) == [10]
    assert settle_lrs(0.1, 0.2) == [10, 11]
    with pytest.raises(StoreError, match="starting_exp_num"):
        settle_lrs(0.3, starting_exp_num=11)


def test_all_requests_are_recorded(
    settle_lrs: Callable[..., list[int]], tmp_path: Path
) -> None:
    """sweep.json holds each request once, with every time it was made."""
    for lrs in ([0.1], [0.2], [0.1]):
        settle_lrs(*lrs)
    requests = SweepFolder(tmp_path / "sweep").read()["requests"]
    assert [request["ranges"] for request in requests] == [{"lr": [0.1]}, {"lr": [0.2]}]
    assert [len(request["invocations"]) for request in requests] == [2, 1]
