"""Write an image set under its name complete or not at all, and compare with one."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from gridrun.errors import DataError
from gridrun.hdf5 import new_file
from imgclass.importers.image_set import (
    SPLITS,
    Images,
    ImageSet,
    SharedImages,
    image_problems,
)

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
BATCH_BYTES = 2**24
# Named, because the default moves with the HDF5 version; every HDF5 since 1.8
# (2008) reads the result.
HDF5_FORMAT = ("earliest", "v108")
Extra = npt.NDArray[Any] | Sequence[str]


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
    from imgclass.augment import augmentation_problems  # loads torch

    problems = image_problems(images, labels, class_names)
    if not problems:
        problems = augmentation_problems(augment, images["train"].shape[1])
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])
    image_set = ImageSet(
        {split: images[split] for split in SPLITS},
        {split: labels[split] for split in SPLITS},
        class_names,
        source=source,
        licence=licence,
        citation=citation,
        augment=augment,
        compress=compress,
    )
    save(path, image_set, force=True)


def save(
    path: Path, image_set: ImageSet, *, force: bool = False, progress: bool = False
) -> bool:
    """Check an image set and write it, unless the same is there already.

    Args:
        path: The `images.h5` to write; missing folders are made.
        image_set: What to write.
        force: Replace a file that is there, whatever it holds.
        progress: Show a progress bar on standard error.

    Returns:
        Whether the file was written; False if it holds the same already.

    Raises:
        DataError: With every problem found, or what is different in the file that is
            there, or why the file cannot be written.
    """
    problems = image_problems(image_set.images, image_set.labels, image_set.class_names)
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])
    if not force and path.exists():
        if difference := _difference(path, image_set, progress):
            raise DataError(
                f"{path}: exists and {difference}; give another --name, or --force to "
                "replace it"
            )
        return False
    shared = SharedImages()
    try:
        _write_atomically(path, image_set, shared, progress)
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error}") from error
    if shared.n:
        logger.warning("%s: %d test images are also in train", path, shared.n)
    return True


def _texts(image_set: ImageSet) -> dict[str, str]:
    """The attributes of the file."""
    return {
        "source": image_set.source,
        "licence": image_set.licence,
        "citation": image_set.citation,
        "augment": json.dumps(list(image_set.augment)),
        **image_set.attributes,
    }


def _small_parts(image_set: ImageSet) -> dict[str, Extra]:
    """The data sets other than images and labels, by path."""
    return {"class_names": list(image_set.class_names), **image_set.extras}


def _write_atomically(
    path: Path, image_set: ImageSet, shared: SharedImages, progress: bool
) -> None:
    """Write the whole file or none."""
    with new_file(path, libver=HDF5_FORMAT) as file:
        _fill(file, image_set, shared, progress)


def _fill(file: Any, image_set: ImageSet, shared: SharedImages, progress: bool) -> None:
    """Put everything into an open HDF5 file, always in the same order."""
    with _bar("writing", image_set, progress) as bar:
        for split in SPLITS:
            images, labels = image_set.images[split], image_set.labels[split]
            written = file.create_dataset(
                f"{split}/images",
                images.shape,
                images.dtype,
                track_times=False,
                **_compression(images, image_set.compress),
            )
            for batch in _batches(images):
                levels = images[batch]
                written[batch] = levels
                shared.add(split, levels)
                bar.update(len(levels))
            file.create_dataset(
                f"{split}/labels",
                data=labels,
                track_times=False,
                **_compression(labels, image_set.compress),
            )
    for name, content in _small_parts(image_set).items():
        is_array = isinstance(content, np.ndarray)
        file.create_dataset(
            name,
            data=content if is_array else list(content),
            dtype=None if is_array else h5py.string_dtype("utf-8"),
            track_times=False,
        )
    for name, text in _texts(image_set).items():
        file.attrs[name] = text


def _bar(text: str, image_set: ImageSet, progress: bool) -> tqdm[NoReturn]:
    n_images = sum(map(len, image_set.images.values()))
    return tqdm(total=n_images, desc=text, unit=" images", disable=not progress)


def _compression(array: Any, compress: bool) -> dict[str, Any]:
    """Return HDF5 options: gzip, in chunks of whole samples of about 1 MiB."""
    if not compress:
        return {}
    return {
        "chunks": (min(_n_per(CHUNK_BYTES, array), len(array)), *array.shape[1:]),
        "compression": "gzip",
        "compression_opts": 9,
    }


def _n_per(n_bytes: int, array: Any) -> int:
    """How many samples fit in so many bytes, at least one."""
    sample: int = math.prod(array.shape[1:]) * array.dtype.itemsize
    return max(1, n_bytes // sample)


def _batches(images: Images) -> Iterator[slice]:
    """Slices of about 16 MiB, each of whole chunks, that cover the images."""
    n_per_chunk = _n_per(CHUNK_BYTES, images)
    n = n_per_chunk * max(1, _n_per(BATCH_BYTES, images) // n_per_chunk)
    for start in range(0, len(images), n):
        yield slice(start, min(start + n, len(images)))


def _difference(path: Path, image_set: ImageSet, progress: bool) -> str | None:
    """What keeps an existing file from being the one asked for; None if nothing."""
    try:
        with h5py.File(path, "r") as file:
            return _small_difference(file, image_set) or _image_difference(
                file, image_set, progress
            )
    except OSError as error:
        return f"is not a readable HDF5 file ({error})"


def _small_difference(file: Any, image_set: ImageSet) -> str | None:
    """Compare all but the images' levels: names, shapes, labels, texts."""
    for name, text in _texts(image_set).items():
        if file.attrs.get(name) != text:
            return f"differs in the attribute {name}"
    arrays: dict[str, Extra] = dict(_small_parts(image_set))
    for split in SPLITS:
        arrays[f"{split}/labels"] = image_set.labels[split]
    expected = {*arrays, *(f"{split}/images" for split in SPLITS)}
    found: set[str] = set()
    file.visititems(
        lambda name, item: found.add(name) if isinstance(item, h5py.Dataset) else None
    )
    if found != expected:
        return f"differs: {', '.join(sorted(found ^ expected))} in one of the two only"
    for split in SPLITS:
        there, asked = file[f"{split}/images"], image_set.images[split]
        if there.shape != asked.shape or there.dtype != asked.dtype:
            return (
                f"differs: {split}/images is {there.dtype} {there.shape}, asked "
                f"{asked.dtype} {asked.shape}"
            )
    for name, content in arrays.items():
        if not _holds(file[name], content):
            return f"differs in {name}"
    return None


def _holds(stored: Any, content: Extra) -> bool:
    """Whether a stored data set has this content."""
    if isinstance(content, np.ndarray):
        return stored.dtype == content.dtype and np.array_equal(stored[:], content)
    return h5py.check_string_dtype(stored.dtype) is not None and list(
        stored.asstr()[:]
    ) == list(content)


def _image_difference(file: Any, image_set: ImageSet, progress: bool) -> str | None:
    """Compare the images, a batch at a time; their shapes are equal."""
    with _bar("comparing", image_set, progress) as bar:
        for split in SPLITS:
            images = image_set.images[split]
            for batch in _batches(images):
                if not np.array_equal(file[f"{split}/images"][batch], images[batch]):
                    return f"differs in {split}/images"
                bar.update(batch.stop - batch.start)
    return None
