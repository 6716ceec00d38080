"""Bring public image sets into the one file that training reads, `images.h5`.

Each kind is a function `import_<kind>(path, ...)` in three steps: read the source
into uint8 arrays (N, C, H, W) and integer labels (N,), decide what is train and
test, and hand both to `write_images`, the only place that checks and writes. The
layout of the file:

    /train/images, /test/images   uint8 (N, C, H, W), grey or colour levels 0-255
    /train/labels, /test/labels   integer (N,), 0 ... K-1
    /class_names                  UTF-8 (K,)
    attributes                    source, licence, citation; augment (JSON list)
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from gridrun.errors import ConfigError, DataError
from imgclass.augment import augmentation_problems

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
CHUNK_BYTES = 2**20
# Named, because the default moves with the HDF5 version; every HDF5 since 1.8
# (2008) reads the result.
HDF5_FORMAT = ("earliest", "v108")

DIGITS_N_TEST = 359
DIGITS_SPLIT_SEED = 0
DIGITS_LEVEL_STEP = 15  # levels 0-16 become 0-240
DIGITS_SOURCE = (
    "UCI Machine Learning Repository, Optical Recognition of Handwritten Digits, "
    "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits; "
    "its test file, as distributed with scikit-learn (load_digits)"
)
DIGITS_LICENCE = (
    "Creative Commons Attribution 4.0 International (CC BY 4.0), "
    "https://creativecommons.org/licenses/by/4.0/legalcode"
)
DIGITS_CITATION = (
    "Alpaydin, E. & Kaynak, C. (1998). Optical Recognition of Handwritten Digits "
    "[Dataset]. UCI Machine Learning Repository. https://doi.org/10.24432/C50P49"
)


def import_digits(path: Path, *, scale: int = 1) -> None:
    """Write the UCI optical digits as in scikit-learn: 1,797 grey images, 8×8.

    Levels 0-16 are stored ×15. The split is stratified and always the same: 1,438
    train, 359 test.

    Args:
        path: The `images.h5` to write.
        scale: Side of the square that each pixel becomes; 2 gives 16×16 images.

    Raises:
        ConfigError: `scale` is below 1.
        DataError: scikit-learn is missing, or the file cannot be written.
    """
    if scale < 1:
        raise ConfigError(f"scale: {scale} is not possible; give 1 or more")
    images, labels = _read_digits()
    images = np.repeat(np.repeat(images, scale, axis=2), scale, axis=3)
    train, test = split_stratified(labels, DIGITS_N_TEST, seed=DIGITS_SPLIT_SEED)
    write_images(
        path,
        {"train": images[train], "test": images[test]},
        {"train": labels[train], "test": labels[test]},
        [str(digit) for digit in range(10)],
        source=DIGITS_SOURCE,
        licence=DIGITS_LICENCE,
        citation=DIGITS_CITATION,
        augment=["rotate"],
        compress=True,
    )


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


def write_images(
    path: Path,
    images: Mapping[str, npt.NDArray[Any]],
    labels: Mapping[str, npt.NDArray[Any]],
    class_names: Sequence[str],
    *,
    source: str,
    licence: str,
    citation: str,
    augment: Sequence[str],
    compress: bool = False,
) -> None:
    """Check an image set and write it; equal input and versions give equal bytes.

    The file appears under its name complete or not at all; one that was there is
    replaced. Images that train and test share are counted in a warning.

    Args:
        path: The `images.h5` to write; missing folders are made.
        images: `train` and `test`, each uint8 (N, C, H, W), levels 0-255.
        labels: `train` and `test`, each integer (N,), 0 ... K-1.
        class_names: One name per class, K in all.
        source: Where the images are from.
        licence: Under which terms.
        citation: What to cite.
        augment: What `"augment": "auto"` means for this set.
        compress: Store in gzip chunks: smaller, but a batch of scattered images
            is slow to read, so only for sets that fit in memory.

    Raises:
        DataError: With every problem found, or why the file cannot be written.
    """
    problems = image_problems(images, labels, class_names)
    if not problems:
        problems = augmentation_problems(augment, images["train"].shape[1])
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])
    n_shared = count_shared_images(images["train"], images["test"])
    if n_shared:
        logger.warning("%s: %d test images are also in train", path, n_shared)
    attributes = {
        "source": source,
        "licence": licence,
        "citation": citation,
        "augment": json.dumps(list(augment)),
    }
    try:
        _write_atomically(path, images, labels, class_names, attributes, compress)
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error}") from error


def image_problems(
    images: Mapping[str, npt.NDArray[Any]],
    labels: Mapping[str, npt.NDArray[Any]],
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
    for what, arrays in (("images", images), ("labels", labels)):
        if set(arrays) != set(SPLITS):
            found = ", ".join(arrays) or "none"
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
    known = {_fingerprint(image) for image in train}
    return sum(_fingerprint(image) in known for image in test)


def _read_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return images (1797, 1, 8, 8) of levels 0, 15 ... 240 and labels (1797,)."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise DataError(
            "data import digits: needs scikit-learn, which is not installed; "
            "`pip install scikit-learn`, or use the digits and digits16 in data/"
        ) from error
    digits = datasets.load_digits()
    levels = np.asarray(digits.images)[:, None]
    images = (levels * DIGITS_LEVEL_STEP).astype(np.uint8)
    return images, np.asarray(digits.target).astype(np.int64)


def _fingerprint(image: npt.NDArray[np.uint8]) -> bytes:
    """Return 16 bytes that stand for an image, so that large sets fit in memory."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _shares(counts: npt.NDArray[np.intp], n_total: int) -> npt.NDArray[np.intp]:
    """Divide n_total in proportion to counts (K,), by largest remainder."""
    shares, remainders = np.divmod(counts * n_total, counts.sum())
    n_left = n_total - shares.sum()
    shares[np.argsort(-remainders, kind="stable")[:n_left]] += 1
    return shares


def _array_problems(split: str, images: npt.NDArray[Any]) -> list[str]:
    """Check type and shape of one split's images."""
    shape = images.shape
    if images.dtype != np.uint8 or images.ndim != 4:
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
    """Check that the class names are distinct and not empty."""
    if not class_names:
        return ["class_names: none given"]
    doubled = sorted({name for name in class_names if class_names.count(name) > 1})
    problems = [f"class_names: '{name}' more than once" for name in doubled]
    if "" in class_names:
        problems.append("class_names: a name is empty")
    return problems


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


def _write_atomically(
    path: Path,
    images: Mapping[str, npt.NDArray[Any]],
    labels: Mapping[str, npt.NDArray[Any]],
    class_names: Sequence[str],
    attributes: Mapping[str, str],
    compress: bool,
) -> None:
    """Write under a temporary name in the same folder, flush, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with h5py.File(temporary, "x", libver=HDF5_FORMAT) as file:
            _fill(file, images, labels, class_names, attributes, compress)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _fill(
    file: Any,
    images: Mapping[str, npt.NDArray[Any]],
    labels: Mapping[str, npt.NDArray[Any]],
    class_names: Sequence[str],
    attributes: Mapping[str, str],
    compress: bool,
) -> None:
    """Put everything into an open HDF5 file, always in the same order."""
    for split in SPLITS:
        for name, array in (("images", images[split]), ("labels", labels[split])):
            options = _compression(array) if compress else {}
            file.create_dataset(
                f"{split}/{name}", data=array, track_times=False, **options
            )
    file.create_dataset(
        "class_names",
        data=list(class_names),
        dtype=h5py.string_dtype("utf-8"),
        track_times=False,
    )
    for name, text in attributes.items():
        file.attrs[name] = text


def _compression(array: npt.NDArray[Any]) -> dict[str, Any]:
    """Return HDF5 options: gzip, in chunks of whole samples of about 1 MiB."""
    n_samples = max(1, CHUNK_BYTES // array[0].nbytes)
    return {
        "chunks": (min(n_samples, len(array)), *array.shape[1:]),
        "compression": "gzip",
        "compression_opts": 9,
    }


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
