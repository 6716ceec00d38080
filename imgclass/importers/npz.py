"""NumPy archives: x_train, y_train, x_test, y_test, or images, labels."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from gridrun.errors import ConfigError, DataError
from imgclass.importers.image_set import (
    SPLITS,
    ImageSet,
    check_fits_memory,
    default_augment,
    split_by_share,
)

Layout = Literal["NHWC", "NCHW"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
CHANNEL_AXIS: Final[dict[Layout, int]] = {"NHWC": 3, "NCHW": 1}
SPLIT_NAMES: Final = ("x_train", "y_train", "x_test", "y_test")
WHOLE_NAMES: Final = ("images", "labels")
Arrays = Mapping[str, npt.NDArray[Any]]


def read_npz(
    path: Path, *, test_p: float | None = None, layout: Layout | None = None
) -> ImageSet:
    """Read an archive; nothing in it is ever unpickled.

    Images are uint8, (N, H, W) for grey, (N, C, H, W) or (N, H, W, C). Labels are
    integers, (N,) or (N, 1), 0 ... K-1; classes are named by their numbers.

    Args:
        path: The `.npz`, with x_train, y_train, x_test, y_test, or images, labels.
        test_p: Share of the test images of an archive without a split, 0 < p < 1.
        layout: Where the channels are, if the shapes do not tell.

    Raises:
        ConfigError: An option is missing, or does not fit the archive.
        DataError: The file is damaged or holds something else.
    """
    arrays = _load(path)
    names = SPLIT_NAMES if "x_train" in arrays else WHOLE_NAMES
    is_split = names == SPLIT_NAMES
    if is_split and test_p is not None:
        raise ConfigError(f"--test-p: {path} is split already, into train and test")
    if not is_split and test_p is None:
        raise ConfigError(
            f"--test-p: {path} holds images and labels without a split; give the "
            "share of test images, say --test-p 0.1"
        )
    parts = {name: arrays[name] for name in names}
    problems = _type_problems(parts)
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])
    images = _channels_second(path, parts, [*names[::2]], layout)
    labels = {name: _one_dimensional(parts[name]) for name in names[1::2]}
    if is_split:
        by_split = dict(zip(SPLITS, images.values(), strict=True))
        labels_by_split = dict(zip(SPLITS, labels.values(), strict=True))
    else:
        everything, every_label = images["images"], labels["labels"]
        if len(everything) != len(every_label):
            raise DataError(
                f"{path}: {len(every_label):,} labels for {len(everything):,} images"
            )
        assert test_p is not None
        chosen = split_by_share(every_label, test_p)
        by_split = {split: everything[chosen[split]] for split in SPLITS}
        labels_by_split = {split: every_label[chosen[split]] for split in SPLITS}
    n_classes = _count_classes(path, labels)
    return ImageSet(
        by_split,
        labels_by_split,
        [str(number) for number in range(n_classes)],
        source=f"NumPy archive {path.name}",
        augment=default_augment(by_split["train"].shape[1]),
    )


def _load(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of one of the two sets of names."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz")
    try:
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: not an .npz, which is a zip file of arrays")
        with zipfile.ZipFile(path) as archive:
            check_fits_memory(path, sum(one.file_size for one in archive.infolist()))
        with np.load(path, allow_pickle=False) as file:
            names = SPLIT_NAMES if set(SPLIT_NAMES) & set(file.files) else WHOLE_NAMES
            missing = [name for name in names if name not in file.files]
            if missing:
                raise DataError(
                    f"{path}: no {', '.join(missing)}; found "
                    f"{', '.join(file.files) or 'nothing'}; expected "
                    f"{', '.join(SPLIT_NAMES)}, or {', '.join(WHOLE_NAMES)}"
                )
            loaded = {name: file[name] for name in names}
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        SyntaxError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path}: could not be read ({error}); expected an .npz of numeric arrays"
        ) from error
    odd = [name for name, part in loaded.items() if not isinstance(part, np.ndarray)]
    if odd:
        raise DataError(f"{path}: {', '.join(odd)}: not arrays in NumPy's format")
    return loaded


def _type_problems(parts: Arrays) -> list[str]:
    """What is wrong with types and numbers of axes."""
    problems = []
    for name, part in parts.items():
        found = f"found {part.dtype} {part.shape}"
        if name[0] in "xi":
            if part.dtype != np.uint8:
                fix = (
                    "(255 * x).round().astype('uint8') if they are 0 to 1"
                    if part.dtype.kind == "f"
                    else "x.astype('uint8') if they are 0 to 255"
                )
                problems.append(f"{name}: expected uint8; {found}; convert: {fix}")
            elif part.ndim not in (3, 4):
                problems.append(
                    f"{name}: expected (N, H, W), (N, C, H, W) or (N, H, W, C); {found}"
                )
        elif part.dtype.kind not in "iu" or _one_dimensional(part).ndim != 1:
            problems.append(f"{name}: expected integers (N,); {found}")
    return problems


def _count_classes(path: Path, labels: Arrays) -> int:
    """The highest label and one."""
    highest = max(int(some.max(initial=0)) for some in labels.values())
    n_labels = sum(map(len, labels.values()))
    # Before there is a name for each: one odd label could fill the memory.
    if highest >= n_labels:
        raise DataError(
            f"{path}: a label of {highest}, with {n_labels:,} labels in all; expected "
            "0 ... K-1, each with images"
        )
    return highest + 1


def _one_dimensional(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels (N, 1), as Keras gives them, as (N,)."""
    is_column = labels.ndim == 2 and labels.shape[1] == 1
    labels = labels[:, 0] if is_column else labels
    # A label above any int64 is out of range all the same.
    if labels.dtype == np.uint64:
        labels = labels.clip(max=np.iinfo(np.int64).max)
    return labels.astype(np.int64) if labels.dtype.kind in "iu" else labels


def _channels_second(
    path: Path, parts: Arrays, names: Sequence[str], layout: Layout | None
) -> dict[str, npt.NDArray[Any]]:
    """The images as (N, C, H, W)."""
    shapes = {name: parts[name].shape for name in names}
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if all(len(shape) == 3 for shape in shapes.values()):
        if layout is not None:
            raise ConfigError(f"--layout: {path} has no channel axis: {found}")
        return {name: parts[name][:, None] for name in names}
    if any(len(shape) == 3 for shape in shapes.values()):
        raise DataError(f"{path}: expected the same axes everywhere; found {found}")
    possible = [
        one
        for one, axis in CHANNEL_AXIS.items()
        if all(shape[axis] in (1, 3) for shape in shapes.values())
    ]
    if layout is None and len(possible) > 1:
        raise ConfigError(
            f"--layout: {path}: either axis could be the channels: {found}; give "
            "--layout NHWC or --layout NCHW"
        )
    if not possible or layout not in (None, *possible):
        wanted = f"{layout}, so " if layout and possible else ""
        raise DataError(
            f"{path}: expected {wanted}1 or 3 channels, (N, C, H, W) or (N, H, W, C); "
            f"found {found}"
        )
    is_last = (layout or possible[0]) == "NHWC"
    return {
        name: parts[name].transpose(0, 3, 1, 2) if is_last else parts[name]
        for name in names
    }
