"""Arrays of the project's data files as ordinary torch data sets."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

DATA_KEYS = [
    *("data_root", "dataset", "stim_type", "img_shape", "cells", "convgc", "val_p"),
    *("train_set_size", "val_set_size", "shuffle", "split_seed", "augment"),
]


class WindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a movie that is held in memory, already normalised.

    Args:
        stimulus: (T, H, W) float32.
        starts: First frame of each window.
        targets: (N, U) rates.
        n_lags: Frames of a window.
    """

    def __init__(
        self, stimulus: Tensor, starts: Tensor, targets: Tensor, n_lags: int
    ) -> None:
        self.stimulus = stimulus
        self.starts = starts.tolist()
        self.targets = targets
        self.n_lags = n_lags

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        return self.stimulus[start : start + self.n_lags], self.targets[index]


class AugmentedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images that are augmented one by one when they are asked for, then normalised.

    Args:
        images: (N, C, H, W) float in [0, 1].
        labels: (N,).
        names: Of flip, crop and rotate, as the key `augment`.
        mean, std: (C, 1, 1) of the training images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        names: Sequence[str],
        mean: Tensor,
        std: Tensor,
    ) -> None:
        self.images = images
        self.labels = labels
        self.transforms = [TRANSFORMS[name] for name in names]
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        for transform in self.transforms:
            image = transform(image)
        return (image - self.mean) / (self.std + 1e-7), self.labels[index]


def flip(image: Tensor) -> Tensor:
    """Mirrored, or not."""
    return image.flip(-1) if random.random() < 0.5 else image


def crop(image: Tensor) -> Tensor:
    """A window of the padded image, of its size."""
    height, width = image.shape[1:]
    rows, columns = height // 8, width // 8
    padded = F.pad(image, (columns, columns, rows, rows))
    top, left = random.randint(0, 2 * rows), random.randint(0, 2 * columns)
    return padded[:, top : top + height, left : left + width]


def rotate(image: Tensor) -> Tensor:
    """Turned by at most 20 degrees."""
    angle = math.radians(random.uniform(-20, 20))
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
    grid = F.affine_grid(turn, [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, align_corners=False)[0]


TRANSFORMS = {"flip": flip, "crop": crop, "rotate": rotate}


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a run trains and validates on.

    Args:
        train, val: Data sets of (input, target).
        n_outputs: Cells or classes.
        centers: Row and column of each cell.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    n_outputs: int
    centers: Sequence[Sequence[int]] | None = None


def samples(settings: Mapping[str, Any]) -> Samples:
    """The samples of a run; read once a process."""
    return _read(json.dumps(dict(settings), sort_keys=True), _data_key(settings))


def _data_key(settings: Mapping[str, Any]) -> str:
    return json.dumps({name: settings.get(name) for name in DATA_KEYS})


_kept: dict[str, Samples] = {}


def _read(text: str, key: str) -> Samples:
    if key not in _kept:
        _kept.clear()
        values = json.loads(text)
        _kept[key] = _windows(values) if "stim_type" in values else _images(values)
    return _kept[key]


def _windows(settings: Mapping[str, Any]) -> Samples:
    from torchdeepretina.datas import open_data
    from torchdeepretina.hyperparams import RetinaHyperparams

    data: Any = open_data(
        RetinaHyperparams.model_validate(settings), torch.device("cpu")
    )
    mean, std = data.norm_stats["mean"], data.norm_stats["std"]
    stimulus = (data.train.stimulus.float() - mean) / (std + 1e-7)
    n_lags = settings["img_shape"][0]

    def windows(split: Any) -> WindowDataset:
        return WindowDataset(stimulus, split.first_frames, split.targets, n_lags)

    n_cells, centers = data.info.n_units, data.info.centers
    return Samples(windows(data.train), windows(data.val), n_cells, centers)


def _images(settings: Mapping[str, Any]) -> Samples:
    from imgclass.datas import open_data
    from imgclass.hyperparams import ImageHyperparams

    data: Any = open_data(
        ImageHyperparams.model_validate(settings), torch.device("cpu")
    )
    mean, std = (
        torch.tensor(data.norm_stats[name])[:, None, None] for name in ("mean", "std")
    )

    def scaled(split: Any) -> Tensor:
        found: Tensor = split.images[split.places].float() / 255
        return found

    val = TensorDataset((scaled(data.val) - mean) / (std + 1e-7), data.val.labels)
    names = data.info.labels["augment"]
    train = AugmentedImages(scaled(data.train), data.train.labels, names, mean, std)
    if not names:
        whole = (train.images - mean) / (std + 1e-7)
        return Samples(TensorDataset(whole, train.labels), val, data.info.n_units)
    return Samples(train, val, data.info.n_units)
