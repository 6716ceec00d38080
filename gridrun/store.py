"""Every path and every write of a sweep folder; no torch.

Files are written to a temporary name in their folder, flushed and renamed, so a kill
leaves the old file or the new one. Run folders are the truth; tables are derived.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import io
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun.claims import claim_holder
from gridrun.durable import (
    json_text,
    read_record,
    remove_temporaries,
    replace_file,
    sync_files,
    sync_folder,
    temporary,
    write_json,
    writing,
)
from gridrun.epoch_table import EpochTable
from gridrun.errors import CheckpointError, StoreError
from gridrun.run import RunSpec, RunState

logger = logging.getLogger(__name__)
SCHEMA_VERSION = 1


# --- a run's folder ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths and writes of one run; all writes but `create` need its claim."""

    path: Path

    @functools.cached_property
    def hyperparams(self) -> Path:
        return self.path / "hyperparams.json"

    @functools.cached_property
    def record(self) -> Path:
        return self.path / "run.json"

    @functools.cached_property
    def model_text(self) -> Path:
        return self.path / "model.txt"

    @functools.cached_property
    def claim(self) -> Path:
        return self.path / "claim"

    @functools.cached_property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @functools.cached_property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @functools.cached_property
    def index(self) -> Path:
        return self.checkpoints / "index.json"

    @functools.cached_property
    def log(self) -> Path:
        return self.path / "log.txt"

    @functools.cached_property
    def failure(self) -> Path:
        return self.path / "failure.txt"

    def read(self) -> dict[str, Any]:
        """The content of run.json."""
        return read_record(self.record)

    def update(self, **changes: Any) -> dict[str, Any]:
        """Change some entries of run.json; returns all of it."""
        record = self.read() | changes
        write_json(self.record, record)
        return record

    def state(self, record: Mapping[str, Any] | None = None) -> RunState:
        """The run's state; recorded as running but unclaimed means interrupted."""
        state = RunState((record or self.read())["state"])
        if state is RunState.RUNNING and claim_holder(self.claim) is None:
            return RunState.INTERRUPTED
        return state

    # tables: append-only, cut back to the checkpointed epoch on resuming

    @functools.cached_property
    def epochs(self) -> EpochTable:
        return EpochTable(self.metrics)

    @functools.cached_property
    def evaluations(self) -> EpochTable:
        return EpochTable(self.path / "evaluations.csv")

    @functools.cached_property
    def batches(self) -> EpochTable:
        return EpochTable(self.path / "batches.csv")

    def cut_tables(self, epoch: int) -> None:
        """Drop rows after an epoch."""
        for table in (self.epochs, self.evaluations, self.batches):
            table.cut(epoch)

    # checkpoints: a file an epoch, index.json says which are last and best

    def checkpoint_path(self, epoch: int) -> Path:
        return self.checkpoints / f"epoch_{epoch:04d}.pt"

    def read_index(self) -> dict[str, Any]:
        """`last`, `best` (epochs or None) and `files` (name -> epoch, sha256).

        Found from the checkpoints themselves where index.json is damaged.
        """
        if not self.index.exists():
            return {"last": None, "best": None, "files": {}}
        try:
            index = read_record(self.index)
            if _is_sound(index):
                return index
            reason: object = f"{self.index}: damaged"
        except StoreError as error:
            reason = error
        index = self._found_index()
        if index["files"]:
            logger.warning("%s; the whole checkpoints beside it are used", reason)
        return index

    def _found_index(self) -> dict[str, Any]:
        files: dict[str, Any] = {}
        for path in sorted(self.checkpoints.glob("epoch_*.pt")):
            content = path.read_bytes()
            with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError):
                if zipfile.ZipFile(io.BytesIO(content)).testzip() is None:
                    epoch = int(path.stem.removeprefix("epoch_"))
                    digest = hashlib.sha256(content).hexdigest()
                    files[path.name] = {"epoch": epoch, "sha256": digest}
        epochs = [file["epoch"] for file in files.values()]
        best = None
        with contextlib.suppress(StoreError):
            best = self.read().get("best_epoch")
        return {
            "last": max(epochs, default=None),
            "best": best if best in epochs else None,
            "files": files,
        }

    def save_checkpoint(
        self, content: bytes, epoch: int, best: int, keep_all: bool
    ) -> None:
        """Write an epoch's checkpoint; older ones go once the index names it.

        Args:
            content: The file's bytes.
            epoch: From 1.
            best: The best epoch so far.
            keep_all: Keep every epoch; else the last two, and the best as of each, so
                that a damaged last one can be gone back from.
        """
        if not self.checkpoints.exists():
            with writing(self.checkpoints):
                self.checkpoints.mkdir()
            sync_folder(self.path)
        path = self.checkpoint_path(epoch)
        replace_file(path, content)  # the index' write syncs the folder for both
        index = self.read_index()
        files = index["files"]
        digest = hashlib.sha256(content).hexdigest()
        files[path.name] = {"epoch": epoch, "sha256": digest}
        keep = None if keep_all else {epoch, epoch - 1, best, index["best"]}
        self._write_index(files, last=epoch, best=best, keep=keep)

    def forget_after(self, epoch: int, best: int) -> None:
        """Drop checkpoints after an epoch, which is then the last; 0: all."""
        files = self.read_index()["files"]
        kept = {n: f for n, f in files.items() if f["epoch"] <= epoch}
        if self.checkpoints.exists():
            self._write_index(kept, last=epoch or None, best=best or None, keep=None)

    def keep_final(self, keep_all: bool) -> None:
        """At the end of a run, keep only the last and the best epoch."""
        if not self.index.exists():
            return
        index = self.read_index()
        keep = {index["last"], index["best"]}
        if not keep_all and any(
            f["epoch"] not in keep for f in index["files"].values()
        ):
            self._write_index(index["files"], index["last"], index["best"], keep)

    def _write_index(
        self,
        files: dict[str, Any],
        last: int | None,
        best: int | None,
        keep: set[int] | None,
    ) -> None:
        if keep is not None:
            files = {n: f for n, f in files.items() if f["epoch"] in keep}
        files = dict(sorted(files.items(), key=lambda item: item[1]["epoch"]))
        write_json(self.index, {"last": last, "best": best, "files": files})
        with writing(self.checkpoints):
            for path in self.checkpoints.iterdir():
                if path.match("epoch_*.pt") and path.name not in files:
                    path.unlink()

    def write_text(self, path: Path, text: str) -> None:
        """Write one of the folder's files that nothing depends on."""
        with writing(path):
            path.write_text(text, encoding="utf-8")

    def read_checkpoint(self, epoch: int) -> bytes:
        """The bytes of an epoch's checkpoint, checked against their SHA-256.

        Raises:
            CheckpointError: If it is not kept, absent or damaged.
        """
        path = self.checkpoint_path(epoch)
        files = self.read_index()["files"]
        if path.name not in files:
            kept = ", ".join(str(f["epoch"]) for f in files.values()) or "none"
            raise CheckpointError(
                f"{self.path}: epoch {epoch} is not saved; saved epochs: {kept}"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        if hashlib.sha256(content).hexdigest() != files[path.name]["sha256"]:
            raise CheckpointError(f"{path}: damaged (its SHA-256 differs)")
        return content


def _is_sound(index: Mapping[str, Any]) -> bool:
    """Whether an index of checkpoints has all that it must have."""
    files = index.get("files")
    epochs = [index.get("last", ""), index.get("best", "")]
    if not isinstance(files, dict) or any(
        one is not None and type(one) is not int for one in epochs
    ):
        return False
    return all(
        isinstance(file, dict)
        and type(file.get("epoch")) is int
        and isinstance(file.get("sha256"), str)
        and name == f"epoch_{file['epoch']:04d}.pt"
        for name, file in files.items()
    )


# --- a sweep's folder -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SweepFolder:
    """Paths and writes of one sweep."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "sweep.json"

    @property
    def results(self) -> Path:
        return self.path / "results.csv"

    @property
    def summary(self) -> Path:
        return self.path / "summary.csv"

    @property
    def submissions(self) -> Path:
        return self.path / "submissions"

    def exists(self) -> bool:
        """Whether a sweep has been started here."""
        return self.record.exists()

    def read(self) -> dict[str, Any]:
        """The content of sweep.json.

        Raises:
            StoreError: If there is no sweep here, or its record is damaged.
        """
        if not self.record.exists():
            raise StoreError(f"{self.path}: no sweep here (it has no sweep.json)")
        return read_record(self.record)

    def runs(self) -> Iterator[tuple[int, RunFolder]]:
        """Run folders with their numbers, in the order of the numbers."""
        name = self.path.name
        with contextlib.suppress(StoreError):  # the folder may have been renamed
            name = str(self.read().get("exp_name", name))
        prefix = f"{name}_"
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.startswith(prefix) or not entry.is_dir():
                    continue
                number = entry.name.removeprefix(prefix).partition("_")[0]
                if number.isdecimal():
                    found.append((int(number), RunFolder(Path(entry.path))))
        return iter(sorted(found, key=lambda item: item[0]))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep's lock (of the folder itself: no file appears)."""
        descriptor = self._locked_descriptor()
        try:
            remove_temporaries(self.path)
            yield
        finally:
            os.close(descriptor)

    def _locked_descriptor(self) -> int:
        with writing(self.path):
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBADF:
                    raise
                # NFS locks only what is open for writing, which a folder cannot be
                path = self.path / ".lock"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def create_run(self, number: int, spec: RunSpec) -> RunFolder:
        """Make one run's folder; see `create_runs`."""
        return self.create_runs({number: spec})[number]

    def create_runs(self, specs: Mapping[int, RunSpec]) -> dict[int, RunFolder]:
        """Make run folders, each whole or not at all; their state is pending.

        Args:
            specs: Number -> run. All are on disk before the first gets its name.
        """
        folders = {
            number: RunFolder(self.path / spec.folder_name(number))
            for number, spec in specs.items()
        }
        halfway = {n: RunFolder(temporary(f.path)) for n, f in folders.items()}
        for number, spec in specs.items():
            _fill_folder(halfway[number], number, spec)
        sync_files(
            [p for f in halfway.values() for p in (f.hyperparams, f.record, f.path)]
        )
        with writing(self.path):
            for number, folder in folders.items():
                halfway[number].path.rename(folder.path)
        sync_folder(self.path)
        return folders


def pending_record(number: int, spec: RunSpec) -> dict[str, Any]:
    """run.json of a run before its first attempt."""
    return {
        "schema_version": SCHEMA_VERSION,
        "number": number,
        "state": RunState.PENDING.value,
        "repeat": spec.repeat,
        "axes": dict(spec.axes),
        "point": spec.point,
        "attempts": [],
    }


def _fill_folder(folder: RunFolder, number: int, spec: RunSpec) -> None:
    """Make the folder of a pending run, not yet durably."""
    with writing(folder.path):
        if folder.path.exists():
            shutil.rmtree(folder.path)
        folder.path.mkdir()
    record = pending_record(number, spec)
    hyps = spec.hyps.model_dump(mode="json")
    for path, data in ((folder.hyperparams, hyps), (folder.record, record)):
        folder.write_text(path, json_text(data))


def assign_numbers(
    specs: Sequence[RunSpec],
    known: Mapping[str, int],
    taken: set[int],
    first: int,
) -> list[int]:
    """Numbers of a request's runs: known runs keep theirs, new ones count on.

    Args:
        specs: Runs in grid order.
        known: Identity -> number of every run that has one.
        taken: Numbers held by runs, of this request or not.
        first: Number of the first new run.

    Raises:
        StoreError: If a new run's number is already another run's.
    """
    numbers = []
    following = first
    for spec in specs:
        number = known.get(spec.identity)
        if number is None:
            number, following = following, following + 1
            if number in taken:
                raise StoreError(
                    f"starting_exp_num: run {number} is already there and is "
                    "another run; choose a free number or leave the key out"
                )
        numbers.append(number)
    return numbers
