"""Image sets: one HDF5 file to splits of uint8 images in memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gridrun.config import shown
from gridrun.config.keys import NORMALIZERS
from gridrun.errors import DataError
from gridrun.hdf5 import (
    cache_folder,
    data_folder,
    find_array,
    open_file,
    reading,
    values_of,
)
from gridrun.readers import Rows
from gridrun.training.data import (
    Batch,
    Data,
    DataInfo,
    bootstrapped,
    size_problems,
)
from gridrun.training.normalise import (
    Normaliser,
    OwnNormaliser,
    evenly_spaced,
)
from gridrun.training.seeding import random_subset
from imgclass.augment import augmentation_problems
from imgclass.hyperparams import ImageHyperparams

FILE_NAME = "images.h5"
MAX_LEVEL = 255
STATISTICS_IMAGES = 4096
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Images:
    """Some images of a file with their labels; a `Split`.

    Args:
        images: (M, C, H, W) uint8, all of the file, on the device or mapped.
        places: (N,) int64, which of them, on the same device.
        labels: (N,) int64, on the device.
        rows: Where the images lie.
    """

    images: Tensor
    places: Tensor
    labels: Tensor
    rows: Rows

    def __len__(self) -> int:
        return len(self.labels)

    def starts(self, indices: Tensor) -> Tensor:
        """Number of each image in the file, (B,)."""
        return self.places[indices.to(self.places.device)]

    def batch(self, indices: Tensor, inputs: Tensor | None = None) -> Batch:
        """Images scaled to [0, 1], not yet normalised, and labels."""
        if inputs is None:
            inputs = self.images[self.starts(indices)]
        scaled = inputs.to(self.labels.device).float() / MAX_LEVEL
        return Batch(scaled, self.labels[indices.to(self.labels.device)])

    def on(self, device: torch.device) -> Images:
        """The same images, stored on a device."""
        images, places = self.images.to(device), self.places.to(device)
        return dataclasses.replace(self, images=images, places=places)

    def take(self, indices: Tensor) -> Images:
        """The images at those indices."""
        return dataclasses.replace(
            self,
            places=self.starts(indices),
            labels=self.labels[indices.to(self.labels.device)],
        )


def images_path(hyps: ImageHyperparams, key: str = "dataset") -> Path:
    """The file that the keys name; `val_set` may name another.

    Raises:
        DataError: If a folder or the file is absent, with what is there.
    """
    folder = data_folder(hyps.data_root, getattr(hyps, key), FILE_NAME, key)
    path = folder / FILE_NAME
    if not path.is_file():
        there = ", ".join(sorted(one.name for one in folder.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{key}: no {FILE_NAME} in {folder}, which holds {there}; "
            "`gridrun data import` makes one"
        )
    return path


def split_sizes(n_samples: int, val_p: float) -> tuple[int, int]:
    """Training and validation samples, at least one each where there are two."""
    n_val = min(max(round(val_p * n_samples), 1), n_samples - 1)
    return n_samples - n_val, n_val


def split_indices(hyps: ImageHyperparams, n_samples: int) -> tuple[Tensor, Tensor]:
    """Training and validation samples, each in file order.

    A seeded random split if samples are shuffled, else one block at `val_loc`; all for
    training, if `val_set` holds the others.
    """
    if hyps.val_set is not None:
        every = torch.arange(n_samples)
        return every[: hyps.train_set_size], every[:0]
    n_train, n_val = split_sizes(n_samples, hyps.val_p)
    if hyps.shuffle:
        assert hyps.split_seed is not None
        val = random_subset(hyps.split_seed, n_samples, n_val)
    else:
        place = {"beginning": 0, "middle": n_train // 2, "end": n_train}
        first = place[hyps.val_loc]
        val = torch.arange(first, first + n_val)
    is_train = torch.ones(n_samples, dtype=torch.bool)
    is_train[val] = False
    train = is_train.nonzero().squeeze(1)
    return train[: hyps.train_set_size], val[: hyps.val_set_size]


def inspect_data(hyps: ImageHyperparams) -> DataInfo:
    """Facts about an image set, without its images.

    Raises:
        DataError: With every problem of the file.
    """
    path = images_path(hyps)
    other = None if hyps.val_set is None else images_path(hyps, "val_set")
    with reading(path), open_file(path) as file:
        problems, class_names = image_set_problems(file, hyps.img_shape)
        problems += augmentation_problems(
            augmentations(hyps, file), int(hyps.img_shape[0])
        )
        if problems:
            raise DataError([f"{path}: {problem}" for problem in problems])
        n_train = len(file["train/labels"])
        if other is None:
            n_train, n_val = split_sizes(n_train, hyps.val_p)
        else:
            n_val = _inspect_val_set(other, hyps, class_names)
        sizes = {"train_set_size": n_train, "val_set_size": n_val}
        if problems := size_problems(hyps, sizes):
            raise DataError(problems)
        return DataInfo(
            n_units=len(class_names),
            labels={"n_units": len(class_names), "class_names": class_names},
            n_samples={
                "train": hyps.train_set_size or n_train,
                "val": hyps.val_set_size or n_val,
                "test": len(file["test/labels"]),
            },
            files=[str(one) for one in (path, other) if one],
            n_bytes=sum(file[f"{split}/images"].size for split in SPLITS),
        )


def _inspect_val_set(
    path: Path, hyps: ImageHyperparams, class_names: Sequence[str]
) -> int:
    """Training images of the set to validate on, found to have the same classes."""
    with reading(path), open_file(path) as file:
        problems, names = image_set_problems(file, hyps.img_shape)
        if not problems and list(names) != list(class_names):
            text = f"{len(names)} classes {shown(names)}, not those of {hyps.dataset}"
            problems = [f"val_set: {text}: {shown(list(class_names))}"]
        if problems:
            raise DataError([f"{path}: {problem}" for problem in problems])
        return len(file["train/labels"])


def image_set_problems(
    file: Any, img_shape: Sequence[int] | None = None
) -> tuple[list[str], list[str]]:
    """Everything that is wrong with an open file, and its class names.

    Args:
        file: An open image set.
        img_shape: (C, H, W) that its images must have.
    """
    names = _class_names(file)
    if isinstance(names, str):
        return [names], []
    problems = []
    for split in SPLITS:
        images = find_array(file, f"/{split}/images", 4, kinds="iufb")
        labels = find_array(file, f"/{split}/labels", 1, kinds="iu")
        problems += [found for found in (images, labels) if isinstance(found, str)]
        if not isinstance(images, str) and not isinstance(labels, str):
            problems += _image_problems(split, images, len(labels), img_shape)
            problems += _label_problems(split, labels, len(names))
    return problems, names


def _class_names(file: Any) -> list[str] | str:
    found = find_array(file, "/class_names", 1, kinds="OSU")
    if isinstance(found, str):
        there = ", ".join(f"/{name}" for name in file) or "nothing"
        return f"{found}; text (K,) expected; the file has {there}"
    names = [
        name.decode("utf-8") if isinstance(name, bytes) else name
        for name in values_of(found)
    ]
    if not names or not all(isinstance(name, str) for name in names):
        return f"/class_names holds {found.dtype}; text (K,) expected"
    return names


def _image_problems(
    split: str, images: Any, n_labels: int, img_shape: Sequence[int] | None
) -> list[str]:
    name = f"/{split}/images"
    if images.dtype != np.uint8:
        return [
            f"{name} is {images.dtype} of shape {images.shape}; uint8 (N, C, H, W) "
            "expected"
        ]
    problems = []
    if images.shape[1] not in (1, 3):
        fix = "; it looks like (N, H, W, C)" if images.shape[3] in (1, 3) else ""
        problems.append(
            f"{name} has shape {images.shape}: {images.shape[1]} channels, 1 or 3 "
            f"expected{fix}"
        )
    if img_shape is not None and list(images.shape[1:]) != list(img_shape):
        problems.append(
            f"{name} holds images of {list(images.shape[1:])}, but img_shape is "
            f"{list(img_shape)}"
        )
    least = 2 if split == "train" else 1
    if len(images) < least:
        problems.append(f"{name} has {len(images)} images; at least {least} needed")
    if len(images) != n_labels:
        problems.append(f"{name} has {len(images)} images for {n_labels} labels")
    return problems


def _label_problems(split: str, labels: Any, n_classes: int) -> list[str]:
    name = f"/{split}/labels"
    values = labels[:]
    outside = np.flatnonzero((values < 0) | (values >= n_classes))
    if len(outside):
        return [
            f"{name} holds {values[outside[0]]} at index {outside[0]}; 0 to "
            f"{n_classes - 1} expected"
        ]
    empty = sorted(set(range(n_classes)) - set(map(int, values)))
    if split == "train" and empty:
        return [f"{name} has no image of class {empty[0]}"]
    return []


def augmentations(hyps: ImageHyperparams, file: Any) -> Sequence[str]:
    """The augmentations of training images: the key's, or for auto the file's."""
    if hyps.augment != "auto":
        return list(hyps.augment)
    stored = file.attrs.get("augment", "[]")
    try:
        return [str(name) for name in json.loads(stored)]
    except (TypeError, ValueError):
        return [str(stored)]


def open_data(hyps: ImageHyperparams, device: torch.device) -> Data:
    """Open an image set; its images are mapped into memory, or on the device.

    Raises:
        DataError: With every problem of the file.
    """
    info = inspect_data(hyps)
    path = Path(info.files[0])
    with reading(path), open_file(path) as file:
        names = augmentations(hyps, file)
    place = device if _fits(info.n_bytes, device) else torch.device("cpu")
    whole = {split: _mapped(path, split, device) for split in SPLITS}
    train, val = split_indices(hyps, len(whole["train"]))
    normaliser = _fitted(hyps, whole["train"].take(train))
    kept = {split: one.on(place) for split, one in whole.items()}
    validated = kept["train"].take(val)
    if hyps.val_set is not None:
        other = _mapped(Path(info.files[1]), "train", device).on(place)
        validated = other.take(torch.arange(info.n_samples["val"]))
    data = Data(
        train=kept["train"].take(train),
        val=validated,
        test=kept["test"],
        info=dataclasses.replace(info, labels=dict(info.labels) | {"augment": names}),
        norm_stats=normaliser.stats(),
    )
    return bootstrapped(data, hyps, stretch=1)


def _fitted(hyps: ImageHyperparams, train: Images) -> Normaliser | OwnNormaliser:
    """The normaliser that the key names, fitted on training images."""
    if hyps.normalizer in NORMALIZERS:
        means, variances = channel_statistics(train.images, train.places)
        return Normaliser.of_channels(str(hyps.normalizer), means, variances)
    chosen = evenly_spaced(len(train), train.images[0].numel())
    inputs = train.batch(chosen).inputs
    return OwnNormaliser.fitted(hyps.normalizer, hyps.plugins, inputs)


def _mapped(path: Path, split: str, device: torch.device) -> Images:
    """All images of a split, mapped into memory; labels on a device."""
    rows = Rows(path, f"/{split}/images", "|u1", cache_folder(path.parent))
    with reading(path), open_file(path) as file:
        labels = torch.from_numpy(file[f"{split}/labels"][:].astype(np.int64))
    images = torch.from_numpy(rows.open())
    return Images(images, torch.arange(len(labels)), labels.to(device), rows)


def _fits(n_bytes: int, device: torch.device) -> bool:
    """Whether images take no more than half of a device's free memory."""
    if device.type != "cuda":
        return True
    return n_bytes <= torch.cuda.mem_get_info(device)[0] / 2


def channel_statistics(
    images: Tensor, places: Tensor
) -> tuple[list[float], list[float]]:
    """Mean and variance of each channel, levels scaled to [0, 1].

    Args:
        images: (M, C, H, W) uint8.
        places: (N,) which of them.
    """
    counts = torch.zeros(images.shape[1], MAX_LEVEL + 1, dtype=torch.int64)
    for first in range(0, len(places), STATISTICS_IMAGES):
        part = images[places[first : first + STATISTICS_IMAGES]]
        for channel, levels in enumerate(part.unbind(1)):
            counts[channel] += torch.bincount(levels.flatten(), minlength=MAX_LEVEL + 1)
    levels = torch.arange(MAX_LEVEL + 1, dtype=torch.float64) / MAX_LEVEL
    shares = counts / counts.sum(1, keepdim=True).double()
    means = shares @ levels
    variances = (shares * (levels - means[:, None]).square()).sum(1)
    return means.tolist(), variances.tolist()
