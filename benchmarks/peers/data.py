"""Arrays of the project's data files as ordinary torch data sets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

DATA_KEYS = [
    *("data_root", "dataset", "stim_type", "img_shape", "cells", "convgc", "val_p"),
    *("train_set_size", "val_set_size", "shuffle", "split_seed"),
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

    def pictures(split: Any) -> TensorDataset:
        images = split.images[split.places].float() / 255
        return TensorDataset((images - mean) / (std + 1e-7), split.labels)

    return Samples(pictures(data.train), pictures(data.val), data.info.n_units)
