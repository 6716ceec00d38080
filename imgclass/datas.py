"""Image sets: one HDF5 file to splits of uint8 images in memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from gridrun.config import data_root, suggest
from gridrun.errors import DataError
from gridrun.training.data import Batch, Data, DataInfo
from gridrun.training.seeding import random_subset
from imgclass.augment import augmentation_problems
from imgclass.hyperparams import ImageHyperparams

FILE_NAME = "images.h5"
MAX_LEVEL = 255.0
NORM_EPS = 1e-7
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Images:
    """Images with their labels; a `Split`.

    Args:
        images: (N, C, H, W) uint8, on the device.
        labels: (N,) int64, on the same device.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> Batch:
        """Images scaled to [0, 1], not yet normalised, and labels."""
        chosen = indices.to(self.labels.device)
        return Batch(self.images[chosen].float() / MAX_LEVEL, self.labels[chosen])


def images_path(hyps: ImageHyperparams) -> Path:
    """The file that the keys name.

    Raises:
        DataError: If a folder or the file is absent, with what is there.
    """
    root, said_by = data_root(hyps.data_root)
    path = Path(root) / hyps.dataset / FILE_NAME
    if not Path(root).is_dir():
        raise DataError(
            f"data_root: no folder {root} (from {said_by}); give data_root, or set "
            "GRIDRUN_DATA"
        )
    if not path.is_file():
        there = [found.parent.name for found in Path(root).glob(f"*/{FILE_NAME}")]
        raise DataError(
            f"dataset: no {hyps.dataset}/{FILE_NAME} in {root}"
            f"{suggest(hyps.dataset, there)}"
        )
    return path


def open_file(path: Path) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        DataError: If it is none, or damaged.
    """
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file: {error}") from error


def split_sizes(n_samples: int, val_p: float) -> tuple[int, int]:
    """Training and validation samples, at least one each where there are two."""
    n_val = min(max(round(val_p * n_samples), 1), n_samples - 1)
    return n_samples - n_val, n_val


def split_indices(hyps: ImageHyperparams, n_samples: int) -> tuple[Tensor, Tensor]:
    """Training and validation samples, each in file order.

    A seeded random split if samples are shuffled, else one block at `val_loc`.
    """
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
    return is_train.nonzero().squeeze(1), val


def inspect_data(hyps: ImageHyperparams) -> DataInfo:
    """Facts about an image set, without its images.

    Raises:
        DataError: With every problem of the file.
    """
    path = images_path(hyps)
    with open_file(path) as file:
        problems, class_names = _problems(file, hyps)
        if problems:
            raise DataError([f"{path}: {problem}" for problem in problems])
        n_train, n_val = split_sizes(len(file["train/labels"]), hyps.val_p)
        return DataInfo(
            n_units=len(class_names),
            labels={"n_units": len(class_names), "class_names": class_names},
            n_samples={
                "train": n_train,
                "val": n_val,
                "test": len(file["test/labels"]),
            },
            files=[str(path)],
        )


def _problems(file: Any, hyps: ImageHyperparams) -> tuple[list[str], list[str]]:
    """Everything that is wrong with a file, and its class names."""
    names = [f"{split}/{part}" for split in SPLITS for part in ("images", "labels")]
    missing = [f"/{name}" for name in [*names, "class_names"] if name not in file]
    if missing:
        there = ", ".join(f"/{name}" for name in file)
        return [f"{' and '.join(missing)} missing; the file has {there}"], []
    class_names = [name.decode("utf-8") for name in file["class_names"][:]]
    problems = []
    for split in SPLITS:
        problems += _image_problems(file, split, hyps)
        problems += _label_problems(file, split, len(class_names))
    problems += augmentation_problems(augmentations(hyps, file), int(hyps.img_shape[0]))
    return problems, class_names


def _image_problems(file: Any, split: str, hyps: ImageHyperparams) -> list[str]:
    images, labels = file[f"{split}/images"], file[f"{split}/labels"]
    name = f"/{split}/images"
    if images.dtype != np.uint8 or images.ndim != 4:
        return [
            f"{name} is {images.dtype} of shape {images.shape}; uint8 (N, C, H, W) "
            "expected"
        ]
    problems = []
    if images.shape[1] not in (1, 3):
        fix = "; it looks like (N, H, W, C)" if images.shape[3] in (1, 3) else ""
        problems.append(f"{name} has {images.shape[1]} channels, 1 or 3 expected{fix}")
    if list(images.shape[1:]) != list(hyps.img_shape):
        problems.append(
            f"{name} holds images of {list(images.shape[1:])}, but img_shape is "
            f"{list(hyps.img_shape)}"
        )
    least = 2 if split == "train" else 1
    if len(images) < least:
        problems.append(f"{name} has {len(images)} images; at least {least} needed")
    if len(images) != len(labels):
        problems.append(f"{name} has {len(images)} images for {len(labels)} labels")
    return problems


def _label_problems(file: Any, split: str, n_classes: int) -> list[str]:
    labels = file[f"{split}/labels"]
    name = f"/{split}/labels"
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        return [f"{name} is {labels.dtype} of shape {labels.shape}; integers (N,)"]
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
    return [str(name) for name in json.loads(stored)]


def open_data(hyps: ImageHyperparams, device: torch.device) -> Data:
    """Read an image set.

    Raises:
        DataError: With every problem of the file.
    """
    info = inspect_data(hyps)
    with open_file(Path(info.files[0])) as file:
        read = {
            split: (
                torch.from_numpy(file[f"{split}/images"][:]),
                torch.from_numpy(file[f"{split}/labels"][:].astype(np.int64)),
            )
            for split in SPLITS
        }
        names = augmentations(hyps, file)
    images, labels = read["train"]
    train, val = split_indices(hyps, len(labels))
    mean, std = channel_statistics(images[train])

    def split(images: Tensor, labels: Tensor) -> Images:
        return Images(images.to(device), labels.to(device))

    return Data(
        train=split(images[train], labels[train]),
        val=split(images[val], labels[val]),
        test=split(*read["test"]),
        info=dataclasses.replace(info, labels=dict(info.labels) | {"augment": names}),
        norm_stats={"mean": mean, "std": std},
    )


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, levels scaled to [0, 1].

    Args:
        images: (N, C, H, W) uint8.
    """
    means, deviations = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        levels = torch.arange(256, dtype=torch.float64) / MAX_LEVEL
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        deviations.append(variance**0.5)
    return means, deviations


def normalise(images: Tensor, norm_stats: Mapping[str, Any]) -> Tensor:
    """(images − mean) / std per channel, for images (B, C, H, W) in [0, 1]."""
    mean = images.new_tensor(norm_stats["mean"])[:, None, None]
    std = images.new_tensor(norm_stats["std"])[:, None, None]
    return (images - mean) / (std + NORM_EPS)
