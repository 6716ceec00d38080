"""A folder of pictures, {train,test}/<class>/*.{png,jpg,jpeg,bmp}."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from gridrun.errors import ConfigError, DataError
from imgclass.importers.image_set import (
    SPLITS,
    ImageSet,
    Split,
    default_augment,
    is_storable,
    split_by_share,
)
from imgclass.importers.pictures import (
    Corrupt,
    Form,
    Unusable,
    inspect_picture,
    read_picture,
    strict_pillow,
)

logger = logging.getLogger(__name__)

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
N_AT_ONCE: Final = 256  # pictures whose result is waited for together
MAX_SIZES_LISTED: Final = 5
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One picture file.

    Args:
        path: Where it is.
        split: The folder that it is in.
        label: Index of its class.
    """

    path: Path
    split: Split
    label: int


@dataclasses.dataclass(frozen=True)
class Facts:
    """What looking at a picture has shown.

    Args:
        size: (Height, width) in pixels; None if it could not be decoded.
        is_grey: Whether it has no colour channels.
        corrupt: Why it could not be decoded.
        unusable: Why it cannot be used at all.
    """

    size: tuple[int, int] | None = None
    is_grey: bool = True
    corrupt: str | None = None
    unusable: str | None = None


def read_folder(
    folder: Path,
    *,
    side: int | None = None,
    n_channels: int | None = None,
    test_p: float | None = None,
    skip_corrupt: bool = False,
    progress: bool = False,
) -> ImageSet:
    """Look at every picture of a folder; the images are decoded as they are asked for.

    Classes are the folders in train, sorted by name. Links are followed. Pictures are
    turned upright as their EXIF data say; transparency is ignored; grey is the luma of
    ITU-R 601. Hidden files, and files with other suffixes (any case), are left out,
    the latter with a warning.

    Args:
        folder: It has train/<class>/ and, unless `test_p` is given, test/<class>/.
        side: Shorter side to this, bilinear, then the central square, in pixels.
        n_channels: 1 or 3; None: 1 if all are grey, else 3.
        test_p: Share of the test images where there is no folder test; the split is
            stratified and always the same.
        skip_corrupt: Leave corrupt pictures out, list them in the attribute `skipped`
            and warn; else they are an error.
        progress: Show a progress bar on standard error.

    Raises:
        ConfigError: An option is missing, or does not fit the folder.
        DataError: With every corrupt picture, or every other problem.
    """
    entries, class_names = _list(folder, test_p)
    facts = [*_inspect([entry.path for entry in entries], progress)]
    looked_at = list(zip(entries, facts, strict=True))
    corrupt = {one.path: fact.corrupt for one, fact in looked_at if fact.corrupt}
    if problems := _problems(folder, looked_at, skip_corrupt):
        raise DataError(problems)
    for path, why in corrupt.items():
        logger.warning("%s: left out, corrupt: %s", path, why)
    kept = [(one, fact) for one, fact in looked_at if fact.size is not None]
    if not kept:
        raise DataError(f"{folder}: no picture could be decoded; expected some")
    height, width = _common_size(folder, [fact for _, fact in kept], side)
    n_channels = n_channels or (1 if all(fact.is_grey for _, fact in kept) else 3)
    form = Form(n_channels, side)
    by_split = _divide([entry for entry, _ in kept], test_p)
    return ImageSet(
        {
            split: PictureArray(
                [entry.path for entry in by_split[split]], form, height, width
            )
            for split in SPLITS
        },
        {
            split: np.array([entry.label for entry in by_split[split]], np.int64)
            for split in SPLITS
        },
        class_names,
        source=f"picture files of the folder {folder.resolve().name}",
        augment=default_augment(n_channels),
        extras={
            f"{split}/paths": [_relative(one.path, folder) for one in by_split[split]]
            for split in SPLITS
        },
        attributes=_skipped(folder, corrupt),
    )


def _problems(
    folder: Path, looked_at: Sequence[tuple[Entry, Facts]], skip_corrupt: bool
) -> list[str]:
    """What forbids to read the pictures, a line each."""
    problems = [
        f"{one.path}: {fact.unusable}" for one, fact in looked_at if fact.unusable
    ]
    corrupt = [(one.path, fact.corrupt) for one, fact in looked_at if fact.corrupt]
    if skip_corrupt or not corrupt:
        return problems
    return [
        *problems,
        *(f"{path}: corrupt: {why}" for path, why in corrupt),
        f"{folder}: {len(corrupt):,} corrupt of {len(looked_at):,} pictures; "
        "mend them, or leave them out with --skip-corrupt",
    ]


def _skipped(folder: Path, corrupt: Mapping[Path, str]) -> dict[str, str]:
    """The attribute that lists pictures left out; none if there are none."""
    if not corrupt:
        return {}
    reasons = {_relative(path, folder): why for path, why in corrupt.items()}
    return {"skipped": json.dumps(reasons, ensure_ascii=False)}


class PictureArray:
    """Pictures as an array (N, C, H, W) that decodes what is asked of it.

    Args:
        paths: N files.
        form: What each becomes.
        height: Of the result.
        width: Of the result.
    """

    dtype: Final = np.dtype(np.uint8)

    def __init__(
        self, paths: Sequence[Path], form: Form, height: int, width: int
    ) -> None:
        self._paths, self._form = paths, form
        self.shape = (len(paths), form.n_channels, height, width)

    def __len__(self) -> int:
        """N."""
        return len(self._paths)

    def __getitem__(self, index: slice, /) -> npt.NDArray[Any]:
        """Decode some pictures, (n, C, H, W).

        Raises:
            DataError: One is no longer what it was when it was looked at.
        """
        paths = self._paths[index]
        images = np.empty((len(paths), *self.shape[1:]), np.uint8)
        for position, levels in enumerate(_map(self._read, paths)):
            images[position] = levels
        return images

    def _read(self, path: Path) -> npt.NDArray[np.uint8]:
        try:
            levels = read_picture(path, self._form)
        except (Corrupt, Unusable) as error:
            raise DataError(f"{path}: changed during the import: {error}") from error
        if levels.shape != self.shape[1:]:
            raise DataError(
                f"{path}: changed during the import: {levels.shape}, was "
                f"{self.shape[1:]}"
            )
        return levels


# --- the tree -----------------------------------------------------------------------


def _list(folder: Path, test_p: float | None) -> tuple[list[Entry], list[str]]:
    """Every picture, sorted by split, class and name, and the classes."""
    try:
        splits = [split for split in SPLITS if (folder / split).is_dir()]
        _check_splits(folder, splits, test_p)
        classes = {split: _names_of_folders(folder / split) for split in splits}
        class_names = classes["train"]
        extra = sorted({*classes.get("test", [])} - {*class_names})
        if extra:
            raise DataError(
                f"{folder / 'test'}: classes that train does not have: "
                f"{', '.join(extra)}; train has {', '.join(class_names) or 'none'}"
            )
        left_out: Counter[str] = Counter()
        entries = [
            Entry(path, split, class_names.index(name))
            for split in splits
            for name in classes[split]
            for path in _pictures(folder / split / name, left_out)
        ]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error
    if not class_names:
        raise DataError(
            f"{folder / 'train'}: no class folders; expected train/<class>/*.png, say"
        )
    odd = [entry.path for entry in entries if not is_storable(str(entry.path))]
    if odd:
        raise DataError([f"{path!a}: the name is not UTF-8; rename it" for path in odd])
    if left_out:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(left_out.items()))
        logger.warning("%s: left out: %s", folder, kinds)
    return entries, class_names


def _check_splits(folder: Path, splits: Sequence[Split], test_p: float | None) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if "train" not in splits:
        found = ", ".join(_names_of_folders(folder)[:10]) or "no folders"
        raise DataError(
            f"{folder}: no folder train; found {found}; expected "
            "{train,test}/<class>/*.{png,jpg,jpeg,bmp}"
        )
    if "test" in splits and test_p is not None:
        raise ConfigError(f"--test-p: {folder} has a folder test already")
    if "test" not in splits and test_p is None:
        raise ConfigError(
            f"--test-p: {folder} has no folder test; give the share of images to "
            "test with, say --test-p 0.1"
        )


def _names_of_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as found:
        return sorted(
            one.name for one in found if one.is_dir() and not one.name.startswith(".")
        )


def _pictures(folder: Path, left_out: Counter[str]) -> list[Path]:
    """The pictures in the folder of a class by name; what else there is is counted."""
    pictures = []
    with os.scandir(folder) as found:
        for one in found:
            if one.name.startswith("."):
                continue
            suffix = Path(one.name).suffix.lower()
            if one.is_dir():
                left_out["folders in class folders"] += 1
            elif suffix in SUFFIXES:
                pictures.append(folder / one.name)
            else:
                left_out[f"{suffix or 'without suffix'}"] += 1
    return sorted(pictures)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


# --- the pictures -------------------------------------------------------------------


def _inspect(paths: Sequence[Path], progress: bool) -> Iterator[Facts]:
    """Decode every picture once."""
    yield from tqdm(
        _map(_look, paths),
        total=len(paths),
        desc="checking",
        unit=" images",
        disable=not progress,
    )


def _look(path: Path) -> Facts:
    try:
        size, is_grey = inspect_picture(path)
    except Corrupt as error:
        return Facts(corrupt=str(error))
    except Unusable as error:
        return Facts(unusable=str(error))
    return Facts(size, is_grey)


def _map(function: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """Results in order; Pillow decodes outside the interpreter lock, so in threads."""
    n_threads = len(os.sched_getaffinity(0))
    with strict_pillow(), ThreadPoolExecutor(n_threads) as pool:
        for start in range(0, len(paths), N_AT_ONCE):
            yield from pool.map(function, paths[start : start + N_AT_ONCE])


def _common_size(
    folder: Path, facts: Sequence[Facts], side: int | None
) -> tuple[int, int]:
    """Height and width of the result."""
    if side is not None:
        return side, side
    sizes = Counter(fact.size for fact in facts if fact.size is not None)
    if len(sizes) > 1:
        listed = ", ".join(
            f"{height} × {width} ({n:,})"
            for (height, width), n in sizes.most_common(MAX_SIZES_LISTED)
        )
        more = len(sizes) - MAX_SIZES_LISTED
        raise DataError(
            f"{folder}: pictures of {len(sizes):,} sizes, height × width: {listed}"
            f"{f' and {more:,} more' if more > 0 else ''}; expected one, or --side S "
            "to make them squares of S pixels"
        )
    return next(iter(sizes))


def _divide(
    entries: Sequence[Entry], test_p: float | None
) -> dict[Split, Sequence[Entry]]:
    """Entries by split: as the folders say, or by share."""
    if test_p is None:
        return {
            split: [entry for entry in entries if entry.split == split]
            for split in SPLITS
        }
    labels = np.array([entry.label for entry in entries], np.int64)
    return {
        split: [entries[index] for index in indices]
        for split, indices in split_by_share(labels, test_p).items()
    }
