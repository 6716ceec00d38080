"""An image set before it is written, what can be wrong with it, and how it is split."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from gridrun.errors import ConfigError, DataError

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
SPLIT_SEED = 0
NOT_STATED = "not stated by the source"


class Images(Protocol):
    """An array (N, C, H, W), or anything that gives slices of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: slice, /) -> npt.NDArray[Any]:
        """Some images, (n, C, H, W)."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Everything that goes into one `images.h5`.

    Args:
        images: `train` and `test`, each uint8 (N, C, H, W), levels 0-255.
        labels: `train` and `test`, each integer (N,), 0 ... K-1.
        class_names: One name per class, K in all.
        source: Where the images are from.
        licence: Under which terms.
        citation: What to cite.
        augment: What `"augment": "auto"` means for this set.
        extras: Further data sets by path: arrays, or texts.
        attributes: Further attributes.
        compress: Store in gzip chunks: smaller, but a batch of scattered images
            is slow to read, so only for sets that fit in memory.
    """

    images: Mapping[Split, Images]
    labels: Mapping[Split, npt.NDArray[Any]]
    class_names: Sequence[str]
    source: str
    augment: Sequence[str]
    licence: str = NOT_STATED
    citation: str = NOT_STATED
    extras: Mapping[str, npt.NDArray[Any] | Sequence[str]] = dataclasses.field(
        default_factory=dict
    )
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compress: bool = False


def default_augment(n_channels: int) -> list[str]:
    """What `auto` means: grey images are only rotated, as digits may not be mirrored.

    Args:
        n_channels: 1 or 3.
    """
    return ["flip", "jitter", "rotate"] if n_channels == 3 else ["rotate"]


def split_stratified(
    labels: npt.NDArray[np.integer[Any]], n_test: int, *, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Choose test samples so that every class has its share of them.

    The classes' numbers of test samples are in proportion to their sizes, rounded
    by largest remainder (of equals the lower label), so they add up to `n_test`.

    Args:
        labels: Class of each sample, shape (N,).
        n_test: Test samples in all, 0 ... N.
        seed: Seed of the generator that this split alone uses.

    Returns:
        Indices of the train and of the test samples, each increasing.
    """
    classes, counts = np.unique(labels, return_counts=True)
    # Uniform keys and a sort, because NumPy may change how it shuffles.
    keys = np.random.default_rng(seed).random(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for label, n in zip(classes, _shares(counts, n_test), strict=True):
        members = np.flatnonzero(labels == label)
        is_test[members[np.argsort(keys[members])[:n]]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def split_by_share(
    labels: npt.NDArray[np.integer[Any]], test_p: float
) -> dict[Split, npt.NDArray[np.intp]]:
    """Divide samples into train and test as `--test-p` asks, always the same way.

    Args:
        labels: Class of each sample, shape (N,).
        test_p: Share of the test samples, 0 < p < 1; they are round(p·N).

    Raises:
        ConfigError: A split would be empty.
    """
    n_test = round(test_p * len(labels))
    if not 0 < n_test < len(labels):
        raise ConfigError(
            f"--test-p: {test_p} of {len(labels)} images are {n_test} for test; both "
            "train and test need some"
        )
    train, test = split_stratified(labels, n_test, seed=SPLIT_SEED)
    return {"train": train, "test": test}


def image_problems(
    images: Mapping[str, Images] | Mapping[Split, Images],
    labels: Mapping[str, npt.NDArray[Any]] | Mapping[Split, npt.NDArray[Any]],
    class_names: Sequence[str],
) -> list[str]:
    """Say all that is wrong with an image set; empty if nothing is.

    Args:
        images: `train` and `test`, each meant to be uint8 (N, C, H, W).
        labels: `train` and `test`, each meant to be integer (N,), 0 ... K-1.
        class_names: K names.

    Returns:
        One line per problem, with split, index and the fix where there is one.
    """
    problems = []
    for what, splits in (("images", [*images]), ("labels", [*labels])):
        if set(splits) != set(SPLITS):
            found = ", ".join(splits) or "none"
            problems.append(f"{what}: expected the splits train, test; found {found}")
    if problems:
        return problems
    for split in SPLITS:
        problems += _array_problems(split, images[split])
        problems += _label_problems(split, labels[split], len(class_names))
        if images[split].shape[:1] != labels[split].shape[:1]:
            problems.append(
                f"{split}: as many labels as images expected; found images "
                f"{images[split].shape} and labels {labels[split].shape}"
            )
    if images["train"].shape[1:] != images["test"].shape[1:]:
        problems.append(
            f"train images are {images['train'].shape[1:]}, test images "
            f"{images['test'].shape[1:]}; (C, H, W) must be equal"
        )
    problems += _name_problems(class_names)
    return problems or _empty_class_problems(labels["train"], class_names)


def count_shared_images(
    train: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8]
) -> int:
    """Count the test images that are also, pixel for pixel, training images.

    Args:
        train: Shape (N, C, H, W).
        test: Shape (M, C, H, W).

    Returns:
        0 ... M.
    """
    shared = SharedImages()
    shared.add("train", train)
    shared.add("test", test)
    return shared.n


class SharedImages:
    """Counts, batch by batch, test images that are also in train; train comes first."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self.n = 0

    def add(self, split: Split, images: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Take note of images (n, C, H, W) of one split."""
        # 16 bytes stand for an image, so that large sets fit in memory.
        marks = [
            hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            for image in images
        ]
        if split == "train":
            self._known.update(marks)
        else:
            self.n += sum(mark in self._known for mark in marks)


def check_fits_memory(path: Path, n_bytes: int) -> None:
    """Refuse a file that says that it unpacks to more than this machine's memory.

    Raises:
        DataError: It does.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > memory:
        raise DataError(
            f"{path}: holds {n_bytes / 1e9:,.1f} GB when unpacked; expected no more "
            f"than the {memory / 1e9:,.1f} GB of memory here"
        )


def _shares(counts: npt.NDArray[np.intp], n_total: int) -> npt.NDArray[np.intp]:
    """Divide n_total in proportion to counts (K,), by largest remainder."""
    shares, remainders = np.divmod(counts * n_total, counts.sum())
    n_left = n_total - shares.sum()
    shares[np.argsort(-remainders, kind="stable")[:n_left]] += 1
    return shares


def _array_problems(split: str, images: Images) -> list[str]:
    """Check type and shape of one split's images."""
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4:
        return [
            f"{split}/images: expected uint8 (N, C, H, W); found {images.dtype} {shape}"
        ]
    if shape[1] not in (1, 3):
        fix = "; channels are last, move them: images.transpose(0, 3, 1, 2)"
        return [
            f"{split}/images: expected 1 or 3 channels in (N, C, H, W); found {shape}"
            + (fix if shape[3] in (1, 3) else "")
        ]
    if 0 in shape:
        return [f"{split}/images: no images or no pixels: {shape}"]
    return []


def _label_problems(split: str, labels: npt.NDArray[Any], n_classes: int) -> list[str]:
    """Check type, shape and range of one split's labels."""
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        return [
            f"{split}/labels: expected integers (N,); found {labels.dtype} "
            f"{labels.shape}"
        ]
    outside = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(outside):
        first = outside[0]
        return [
            f"{split}/labels: {len(outside)} outside 0 ... {n_classes - 1}, the first "
            f"is {labels[first]} at index {first}"
        ]
    return []


def _name_problems(class_names: Sequence[str]) -> list[str]:
    """Check that the class names are distinct, not empty and can be stored."""
    if not class_names:
        return ["class_names: none given"]
    doubled = sorted({name for name in class_names if class_names.count(name) > 1})
    problems = [f"class_names: '{name}' more than once" for name in doubled]
    if "" in class_names:
        problems.append("class_names: a name is empty")
    return problems + [
        f"class_names: {name!a} cannot be stored as UTF-8; rename it"
        for name in class_names
        if not is_storable(name)
    ]


def is_storable(text: str) -> bool:
    """Whether a text, perhaps a file's name in another encoding, can be kept."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _empty_class_problems(
    labels: npt.NDArray[Any], class_names: Sequence[str]
) -> list[str]:
    """List the classes that training would never see."""
    present = set(labels.tolist())
    return [
        f"train/labels: class {index} ('{name}') has no training images"
        for index, name in enumerate(class_names)
        if index not in present
    ]
