"""The IDX files of MNIST, Fashion-MNIST and their kin, packed or not."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from gridrun.errors import DataError
from imgclass.importers.image_set import (
    SPLITS,
    ImageSet,
    Split,
    check_fits_memory,
    default_augment,
)

IMAGES_MAGIC: Final = 2051  # unsigned bytes, 3 dimensions
LABELS_MAGIC: Final = 2049  # unsigned bytes, 1 dimension
GZIP_MAGIC: Final = b"\x1f\x8b"
PREFIXES: Final[dict[Split, str]] = {"train": "train", "test": "t10k"}
PIECE_BYTES: Final = 2**20
Readable = gzip.GzipFile | io.BufferedReader


def read_idx(folder: Path) -> ImageSet:
    """Read the four IDX files of a folder; classes are named by their numbers.

    The files are {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, also with a
    dot for the hyphen before idx; unpacked, else with .gz.

    Args:
        folder: Where the files are.

    Returns:
        Grey images (N, 1, H, W) and labels as stored.

    Raises:
        DataError: A file is absent, damaged, or none of these.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one of IDX files")
    paths = {
        (split, part): _find(folder, f"{PREFIXES[split]}-{part}", ending)
        for split in SPLITS
        for part, ending in (("images", "idx3-ubyte"), ("labels", "idx1-ubyte"))
    }
    missing = [
        f"{folder}: no {PREFIXES[split]}-{part}-idx{3 if part == 'images' else 1}"
        "-ubyte[.gz]"
        for (split, part), path in paths.items()
        if path is None
    ]
    if missing:
        raise DataError(missing)
    arrays = {
        key: _read(path, IMAGES_MAGIC if key[1] == "images" else LABELS_MAGIC)
        for key, path in paths.items()
        if path is not None
    }
    problems = [
        f"{paths[split, 'labels']}: {len(labels):,} labels for the {len(images):,} "
        f"images of {paths[split, 'images']}"
        for split in SPLITS
        if len(images := arrays[split, "images"])
        != len(labels := arrays[split, "labels"])
    ]
    if problems:
        raise DataError(problems)
    n_classes = 1 + max(int(arrays[split, "labels"].max(initial=0)) for split in SPLITS)
    return ImageSet(
        {split: arrays[split, "images"][:, None] for split in SPLITS},
        {split: arrays[split, "labels"].astype(np.int64) for split in SPLITS},
        [str(number) for number in range(n_classes)],
        source=f"IDX files of the folder {folder.resolve().name}",
        augment=default_augment(1),
    )


def _find(folder: Path, name: str, ending: str) -> Path | None:
    """The file in one of its spellings, unpacked before packed."""
    for suffix in ("", ".gz"):
        for mark in ("-", "."):
            path = folder / f"{name}{mark}{ending}{suffix}"
            if path.is_file():
                return path
    return None


def _read(path: Path, magic: int) -> npt.NDArray[np.uint8]:
    """One file: big-endian magic number and sizes, then bytes, no more and no less."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _read_shape(path, file, magic)
            n_bytes = math.prod(shape)
            check_fits_memory(path, n_bytes)
            content = _read_at_most(file, n_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: truncated or damaged ({error}); expected a complete gzip file"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error})") from error
    if len(content) != n_bytes:
        found = "more" if len(content) > n_bytes else f"{len(content):,}"
        raise DataError(
            f"{path}: expected {n_bytes:,} bytes after the header, "
            f"{' × '.join(f'{size:,}' for size in shape)}; found {found}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_shape(path: Path, file: Readable, magic: int) -> tuple[int, ...]:
    """The sizes in the header, whose magic number must be the one expected."""
    n_sizes = magic % 256
    header = file.read(4 * (1 + n_sizes))
    if header.startswith(GZIP_MAGIC):
        raise DataError(f"{path}: packed with gzip; expected a name with .gz then")
    found = int.from_bytes(header[:4], "big")
    if len(header) >= 4 and found != magic:
        raise DataError(
            f"{path}: magic number {found}; expected {magic}, "
            f"{'images' if magic == IMAGES_MAGIC else 'labels'} in unsigned bytes"
        )
    if len(header) < 4 * (1 + n_sizes):
        raise DataError(
            f"{path}: {len(header)} bytes; expected a header of {4 * (1 + n_sizes)}"
        )
    return tuple(int(size) for size in np.frombuffer(header, ">u4")[1:])


def _read_at_most(file: Readable, n_bytes: int) -> bytearray:
    """Read in pieces: memory grows with what is there, not with what is claimed."""
    content = bytearray()
    while len(content) < n_bytes:
        piece = file.read(min(PIECE_BYTES, n_bytes - len(content)))
        if not piece:
            break
        content += piece
    return content
