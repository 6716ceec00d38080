"""Files that are whole or not there, whatever kills their writer; no torch."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun.errors import StorageError, StoreError

TEMPORARY = ".tmp"
NO_STORAGE = frozenset(  # errors that the next file will meet too
    getattr(errno, name)
    for name in ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EPERM", "ESTALE"]
    if hasattr(errno, name)
)
MAX_SINGLE_SYNCS = 50  # a sync of the file system waits for other writers too


def temporary(path: Path) -> Path:
    """The name under which a file is written before it is renamed."""
    return path.with_name(f".{path.name}{TEMPORARY}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, name the file and the cause where something cannot be written.

    Args:
        path: What is written, or the folder of what is.

    Raises:
        StorageError: If the disk is full or fails, or writing is not allowed.
        OSError: Otherwise; as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_STORAGE:
            raise
        raise StorageError(
            f"{error.filename or path}: cannot be written: "
            f"{error.strerror or error}; what was finished is kept: make room or "
            "access there, then give the same command again"
        ) from error


def write_durably(path: Path, content: bytes | str, time_ns: int | None = None) -> None:
    """Replace a file as a whole: after a crash it is the old one or the new one.

    Args:
        path: The file.
        content: All of it.
        time_ns: The time of change that it shall bear; None: now.
    """
    replace_file(path, content, time_ns)
    sync_folder(path.parent)


def replace_file(path: Path, content: bytes | str, time_ns: int | None = None) -> None:
    """The same; on disk once the folder is synced."""
    data = content.encode() if isinstance(content, str) else content
    halfway = temporary(path)
    with writing(path):
        with halfway.open("wb", buffering=0) as file:
            _write_all(file, data)
            if time_ns is not None:
                os.utime(file.fileno(), ns=(time_ns, time_ns))
            os.fsync(file.fileno())
        halfway.replace(path)


def file_system_time_ns(folder: Path) -> int:
    """The present time on the clock that stamps files in a folder."""
    with (
        writing(folder),
        tempfile.TemporaryFile(prefix=".", suffix=TEMPORARY, dir=folder) as file,
    ):
        return os.fstat(file.fileno()).st_mtime_ns


def _write_all(file: io.FileIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take it in parts."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def sync_folder(path: Path) -> None:
    """Make names in a folder survive a crash of the machine."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a crash."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_files(paths: Sequence[Path]) -> None:
    """The same for many files of one file system; for very many in one call."""
    if len(paths) <= MAX_SINGLE_SYNCS or not hasattr(_c_library(), "syncfs"):
        for path in paths:
            sync_file(path)
        return
    with writing(paths[0].parent):
        descriptor = os.open(paths[0], os.O_RDONLY)
        try:
            if _c_library().syncfs(descriptor) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(descriptor)


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def json_text(data: Mapping[str, Any]) -> str:
    """Strict JSON, an entry a line; ten times faster than `json` indents it."""
    lines = [f"  {_encode(name)}: {_encode(value)}" for name, value in data.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON durably."""
    write_durably(path, json_text(data))


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object of ours.

    Raises:
        StoreError: If it is absent or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise StoreError(f"{path}: not an object")
    return data


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed writer left in a folder; only under its lock or claim."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if not (path.name.startswith(".") and path.name.endswith(TEMPORARY)):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
