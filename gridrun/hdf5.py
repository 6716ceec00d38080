"""Data sets in HDF5 files: found, opened, checked, and mapped into memory."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gridrun.config import data_root, suggest
from gridrun.durable import sha256_of_file
from gridrun.errors import DataError
from gridrun.machine import available_memory

logger = logging.getLogger(__name__)
CHUNK_BYTES = 2**24
SMALL_BYTES = 2**26  # not worth a file in the cache


def data_folder(
    given_root: str | None, dataset: str, holds: str, key: str = "dataset"
) -> Path:
    """The folder of a data set.

    Args:
        given_root: The key `data_root`.
        dataset: The key `dataset`.
        holds: Pattern of the files that make a folder a data set.
        key: That names it, for errors.

    Raises:
        DataError: If it is absent, with what is there.
    """
    root, said_by = data_root(given_root)
    if not Path(root).is_dir():
        raise DataError(
            f"data_root: no folder {root} (from {said_by}); give data_root, or set "
            "GRIDRUN_DATA"
        )
    folder = Path(root) / dataset
    if not folder.is_dir():
        there = sorted({path.parent.name for path in Path(root).glob(f"*/{holds}")})
        raise DataError(
            f"{key}: no {dataset!r} in {root} ({said_by}){suggest(dataset, there)}"
        )
    return folder


def open_file(path: Path) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        DataError: If it is none, or damaged.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file: {error}") from error


@contextlib.contextmanager
def new_file(path: Path, **options: Any) -> Iterator[Any]:
    """A new HDF5 file, which takes its name only when the block has succeeded.

    Args:
        path: Its final name; missing folders are made, and removed on failure.
        **options: Of `h5py.File`.
    """
    is_new_folder = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in sorted(path.parent.glob(f".{path.name}.*.partial")):
        logger.warning(
            "%s: left by a command that was killed; delete it unless one runs now",
            leftover,
        )
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with h5py.File(partial, "x", **options) as file:
            yield file
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        if is_new_folder and not any(path.parent.iterdir()):
            path.parent.rmdir()
        raise


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong inside with a damaged file is a `DataError` that names it."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, MemoryError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def find_array(file: Any, name: str, n_dimensions: int, kinds: str = "iuf") -> Any:
    """The array at an absolute name, or what is wrong, as text.

    Args:
        file: An open file.
        name: `/a/b/c`.
        n_dimensions: That it must have.
        kinds: Allowed kinds of numpy types.
    """
    node, seen = file, ""
    for part in name.strip("/").split("/"):
        if not isinstance(node, h5py.Group) or part not in node:
            there = [str(one) for one in node] if isinstance(node, h5py.Group) else []
            return (
                f"{name} is missing: {seen or '/'} has no {part!r}"
                f"{suggest(part, there)}"
            )
        node, seen = node[part], f"{seen}/{part}"
    if not isinstance(node, h5py.Dataset):
        return f"{name} is a group, not a data set"
    if node.shape is None or node.ndim != n_dimensions:
        return f"{name} has shape {node.shape}; {n_dimensions} dimensions expected"
    dtype = type_of(node)
    if dtype is None or dtype.kind not in kinds:
        words = {"f": "numbers", "O": "text"}
        wanted = next((words[k] for k in words if k in kinds), "integers")
        return f"{name} holds {dtype or 'values of unknown type'}; {wanted} expected"
    return _not_stored(name, node) or node


def members(file: Any, name: str) -> list[str]:
    """Names in a group; none if there is no such group."""
    node = file.get(name)
    return [str(one) for one in node] if isinstance(node, h5py.Group) else []


def type_of(data: Any) -> np.dtype[Any] | None:
    """The type of an array's values; None if numpy has none like it."""
    try:
        found: np.dtype[Any] = data.dtype
    except TypeError:
        return None
    return found


def _not_stored(name: str, data: Any) -> str:
    """What keeps an array from being wholly in its file, as text; else nothing.

    HDF5 gives zeros for what was never written, however much the file declares, and
    for absent sources of virtual arrays; one that is its own source ends the process.
    """
    if data.is_virtual:
        return f"{name} is virtual; copy its values into the file"
    if data.external or not data.size:
        return ""
    if data.chunks is None:
        stored, n_bytes = data.id.get_storage_size(), data.size * data.dtype.itemsize
        if stored >= n_bytes:
            return ""
        return f"{name} has shape {data.shape}, but {stored:,} of {n_bytes:,} bytes"
    wanted = math.prod(-(-n // m) for n, m in zip(data.shape, data.chunks, strict=True))
    written = data.id.get_num_chunks()
    if written >= wanted:
        return ""
    return (
        f"{name} has shape {data.shape}, but {written:,} of its {wanted:,} chunks were "
        "written"
    )


def chunks(data: Any) -> Iterator[tuple[int, Any]]:
    """Parts of an array along its first axis, each with its first index."""
    row_bytes = max(int(np.prod(data.shape[1:])) * data.dtype.itemsize, 1)
    step = max(CHUNK_BYTES // row_bytes, 1)
    if getattr(data, "chunks", None):
        step = max(step // data.chunks[0], 1) * data.chunks[0]
    for first in range(0, len(data), step):
        yield first, values_of(data, slice(first, first + step))


def values_of(data: Any, part: slice = slice(None)) -> Any:
    """Values of an array; an error of reading names it."""
    try:
        return data[part]
    except OSError as error:
        raise OSError(f"{data.name}: {error}") from error


def mapped_array(path: Path, name: str, dtype: Any, cache: Path) -> NDArray[Any]:
    """An array of a file, read-only in effect, in memory that processes share.

    A contiguous array of that type is mapped where it lies. Small others are read;
    large ones are written once, decompressed, as `<cache>/<hash>.npy` and mapped.

    Args:
        path: The file.
        name: The array.
        dtype: Type wanted.
        cache: Folder beside the data; the user's cache folder stands in for it.

    Raises:
        DataError: If the file cannot be read.
    """
    wanted = np.dtype(dtype)
    with reading(path), open_file(path) as file:
        data = file[name]
        offset = data.id.get_offset()
        end = (offset or 0) + data.size * data.dtype.itemsize
        fits = not data.external and end <= path.stat().st_size
        if offset is not None and data.dtype == wanted and fits and data.size:
            return np.memmap(path, wanted, "c", offset, data.shape)
        if data.size * wanted.itemsize > SMALL_BYTES:
            identity = f"{sha256_of_file(path)}:{name}:{wanted.str}"
            stem = hashlib.sha256(identity.encode()).hexdigest()
            for folder in (cache, user_cache()):
                try:
                    made = _decompressed(data, wanted, folder / f"{stem}.npy")
                    mapped: NDArray[Any] = np.load(made, mmap_mode="c")
                    return mapped
                except (OSError, ValueError) as error:
                    logger.debug("%s: %s", folder, error)
            logger.warning(
                "%s: no room to keep %s decompressed in %s; each worker reads its own",
                path,
                name,
                cache,
            )
        n_bytes = data.size * wanted.itemsize
        if n_bytes > available_memory():
            raise DataError(
                f"{path}: {name} is compressed, and its {n_bytes:,} bytes fit neither "
                f"in memory nor in {cache} or {user_cache()}; make room, or set "
                "XDG_CACHE_HOME"
            )
        array = np.empty(data.shape, wanted)
        for first, part in chunks(data):
            array[first : first + len(part)] = part
        return array


def cache_folder(data_set: Path) -> Path:
    """Where decompressed arrays of a data set are kept: beside it, in the data root."""
    return data_set.parent / ".cache"


def user_cache() -> Path:
    """The user's folder for what can be made again."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "gridrun"


def _sound_chunks(data: Any) -> Iterator[tuple[int, Any]]:
    """Its chunks; damage is a `DataError`, as an `OSError` is the cache's."""
    with reading(Path(data.file.filename)):
        yield from chunks(data)


def _decompressed(data: Any, dtype: np.dtype[Any], target: Path) -> Path:
    """Write an array as .npy, unless that is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                header = {"descr": dtype.str, "fortran_order": False}
                np.lib.format.write_array_header_1_0(
                    file, header | {"shape": data.shape}
                )
                for _, part in _sound_chunks(data):
                    file.write(np.ascontiguousarray(part, dtype).tobytes())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return target
