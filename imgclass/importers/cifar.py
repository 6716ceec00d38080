"""The official python archives of CIFAR-10 and CIFAR-100, packed or unpacked."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import logging
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from gridrun.errors import DataError
from imgclass.importers.image_set import (
    SPLITS,
    ImageSet,
    Split,
    default_augment,
)
from imgclass.importers.unpickle import unpickle

logger = logging.getLogger(__name__)

SIDE: Final = 32
ROW_BYTES: Final = 3 * SIDE**2
MAX_FILE_BYTES: Final = 2**28  # the largest of the official ones has 155 MB
MAX_ARCHIVE_BYTES: Final = 2**29  # unpacked; the official ones have 186 MB
MAX_MEMBERS: Final = 1000
CITATION: Final = (
    "Krizhevsky, A. (2009). Learning Multiple Layers of Features from Tiny Images. "
    "Technical report, University of Toronto"
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is in one of the two archives.

    Args:
        folder: Where the files are in the archive.
        md5: Of the packed archive.
        batches: Files with images, by split.
        meta: File with the class names.
        labels: Key of the labels.
        names: Key of the class names.
        coarse: Keys of the coarse labels and of their names, if there are any.
    """

    folder: str
    md5: str
    batches: Mapping[Split, Sequence[str]]
    meta: str
    labels: str
    names: str
    coarse: tuple[str, str] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """All files that are read."""
        return (*self.batches["train"], *self.batches["test"], self.meta)


CifarKind = Literal["cifar10", "cifar100"]
VARIANTS: Final[dict[CifarKind, Variant]] = {
    "cifar10": Variant(
        "cifar-10-batches-py",
        "c58f30108f718f92721af3b95e74349a",
        {
            "train": [f"data_batch_{number}" for number in range(1, 6)],
            "test": ["test_batch"],
        },
        "batches.meta",
        "labels",
        "label_names",
    ),
    "cifar100": Variant(
        "cifar-100-python",
        "eb9058c3a382ffc7106e4002c42a8d85",
        {"train": ["train"], "test": ["test"]},
        "meta",
        "fine_labels",
        "fine_label_names",
        ("coarse_labels", "coarse_label_names"),
    ),
}


def read_cifar(path: Path, kind: CifarKind) -> ImageSet:
    """Read CIFAR-10 or CIFAR-100 (fine labels; the coarse ones are kept beside).

    Args:
        path: The `.tar.gz`, which is read in place, or the folder that it unpacks to,
            or the folder around that.
        kind: Which of the two.

    Returns:
        Images (N, 3, 32, 32); the official train and test splits.

    Raises:
        DataError: A file is absent, damaged or holds anything but data; nothing in
            it is run.
    """
    variant = VARIANTS[kind]
    values = {
        name: unpickle(content, where)
        for name, where, content in _contents(path, variant)
    }
    missing = [name for name in variant.files if name not in values]
    if missing:
        raise DataError(
            f"{path}: no {', '.join(missing)}; expected the official {kind} python "
            f"archive with {variant.folder}/{missing[0]}"
        )
    where = f"{path}: {variant.meta}"
    class_names = _names(where, values[variant.meta], variant.names)
    images = {split: _levels(path, variant, values, split) for split in SPLITS}
    labels = {
        split: _labels(path, variant, values, split, variant.labels) for split in SPLITS
    }
    return ImageSet(
        images,
        labels,
        class_names,
        source=f"{kind.upper()[:5]}-{kind[5:]}, "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        citation=CITATION,
        augment=default_augment(3),
        extras=_coarse(path, variant, values),
    )


def _coarse(
    path: Path, variant: Variant, values: Mapping[str, Any]
) -> dict[str, npt.NDArray[Any] | Sequence[str]]:
    """The coarse labels and their names, as further data sets."""
    if variant.coarse is None:
        return {}
    key, names_key = variant.coarse
    names = _names(f"{path}: {variant.meta}", values[variant.meta], names_key)
    found: dict[str, npt.NDArray[Any] | Sequence[str]] = {"coarse_class_names": names}
    for split in SPLITS:
        labels = _labels(path, variant, values, split, key)
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise DataError(
                f"{path}: {split}: {key} of {labels.min()} to {labels.max()}; expected "
                f"0 to {len(names) - 1}"
            )
        found[f"{split}/coarse_labels"] = labels
    return found


# --- values -----------------------------------------------------------------------


def _member(where: str, value: Any, key: str) -> Any:
    """A member of a batch."""
    if not isinstance(value, dict) or key not in value:
        found = ", ".join(map(str, value)) if isinstance(value, dict) else "no dict"
        raise DataError(f"{where}: no {key}; found {found}")
    return value[key]


def _names(where: str, value: Any, key: str) -> list[str]:
    names = _member(where, value, key)
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise DataError(f"{where}: {key}: expected a list of names")
    return names


def _levels(
    path: Path, variant: Variant, values: Mapping[str, Any], split: Split
) -> npt.NDArray[np.uint8]:
    """The images of a split, (N, 3, 32, 32): a row is a red, a green, a blue plane."""
    rows = []
    for name in variant.batches[split]:
        levels = _member(f"{path}: {name}", values[name], "data")
        if (
            not isinstance(levels, np.ndarray)
            or levels.dtype != np.uint8
            or levels.shape[1:] != (ROW_BYTES,)
        ):
            found = (
                f"{levels.dtype} {levels.shape}"
                if isinstance(levels, np.ndarray)
                else type(levels).__name__
            )
            raise DataError(
                f"{path}: {name}: data: expected uint8 (N, {ROW_BYTES}); found {found}"
            )
        rows.append(levels)
    return np.concatenate(rows).reshape(-1, 3, SIDE, SIDE)


def _labels(
    path: Path, variant: Variant, values: Mapping[str, Any], split: Split, key: str
) -> npt.NDArray[np.int64]:
    """Some labels of a split, as many in each batch as there are images."""
    labels: list[int] = []
    for name in variant.batches[split]:
        where = f"{path}: {name}"
        found = _member(where, values[name], key)
        n_images = len(_member(where, values[name], "data"))
        found = found.tolist() if isinstance(found, np.ndarray) else found
        if not isinstance(found, list) or not all(map(_is_label, found)):
            raise DataError(f"{where}: {key}: expected a list of integers ≥ 0")
        if len(found) != n_images:
            raise DataError(
                f"{where}: {key}: {len(found):,} for {n_images:,} images in data"
            )
        labels += map(int, found)
    return np.array(labels, np.int64)


def _is_label(value: object) -> bool:
    return isinstance(value, int | np.integer) and 0 <= int(value) < 2**31


# --- files ------------------------------------------------------------------------


def _contents(path: Path, variant: Variant) -> Iterator[tuple[str, str, bytes]]:
    """Name, place and content of each file that is needed and there."""
    try:
        if path.is_dir():
            yield from _folder_contents(path, variant)
        else:
            yield from _archive_contents(path, variant)
    except (
        EOFError,
        LookupError,
        ValueError,
        zlib.error,
        gzip.BadGzipFile,
        tarfile.TarError,
    ) as error:
        raise DataError(
            f"{path}: truncated or damaged ({error}); expected the .tar.gz of the "
            "official python archive, or its unpacked folder"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror})") from error


def _folder_contents(path: Path, variant: Variant) -> Iterator[tuple[str, str, bytes]]:
    inner = path / variant.folder
    folder = inner if inner.is_dir() else path
    for name in variant.files:
        file = folder / name
        if file.is_file():
            if file.stat().st_size > MAX_FILE_BYTES:
                raise DataError(_too_large(str(file), file.stat().st_size))
            yield name, str(file), file.read_bytes()


def _archive_contents(path: Path, variant: Variant) -> Iterator[tuple[str, str, bytes]]:
    """Read the members that are needed, in place; all others are passed over."""
    with path.open("rb") as file:
        _compare_checksum(path, file, variant)
        file.seek(0)
        with (
            gzip.GzipFile(fileobj=file) as unpacked,
            tarfile.open(fileobj=_Limited(unpacked, path), mode="r|") as archive,
        ):
            seen: set[str] = set()
            for n_members, member in enumerate(archive):
                if n_members >= MAX_MEMBERS:
                    raise DataError(f"{path}: more than {MAX_MEMBERS:,} members")
                folder, _, name = str(PurePosixPath(member.name)).rpartition("/")
                is_needed = folder == variant.folder and name in variant.files
                if not is_needed or not member.isreg() or member.issparse():
                    continue
                where = f"{path}: {name}"
                if name in seen:
                    raise DataError(f"{where}: twice in the archive")
                if member.size > MAX_FILE_BYTES:
                    raise DataError(_too_large(where, member.size))
                seen.add(name)
                content = archive.extractfile(member)
                assert content is not None
                yield name, where, content.read()


def _compare_checksum(path: Path, file: io.BufferedReader, variant: Variant) -> None:
    found = hashlib.file_digest(
        file, lambda: hashlib.md5(usedforsecurity=False)
    ).hexdigest()
    if found != variant.md5:
        logger.warning(
            "%s: MD5 is %s; the official archive has %s", path, found, variant.md5
        )


def _too_large(where: str, n_bytes: int) -> str:
    return (
        f"{where}: {n_bytes / 1e6:,.0f} MB; expected at most "
        f"{MAX_FILE_BYTES / 1e6:,.0f} MB"
    )


class _Limited(io.RawIOBase):
    """A stream that refuses to unpack without end."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self._stream, self._path = stream, path
        self._n_left = MAX_ARCHIVE_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, which must be given."""
        assert size >= 0
        content = self._stream.read(size)
        self._n_left -= len(content)
        if self._n_left < 0:
            raise DataError(
                f"{self._path}: unpacks to more than {MAX_ARCHIVE_BYTES / 1e6:,.0f} "
                "MB, which the official archive does not"
            )
        return content
