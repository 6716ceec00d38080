"""Plug-in data sets for training: split, normalised, in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from gridrun import plugin_files
from gridrun.config.keys import NORMALIZERS
from gridrun.errors import ConfigError, DataError
from gridrun.general.data_sets import DataSet, Metric, read_set
from gridrun.general.hyperparams import GeneralHyperparams
from gridrun.training.data import (
    Batch,
    Data,
    DataInfo,
    bootstrapped,
    size_problems,
)
from gridrun.training.losses import make_loss
from gridrun.training.normalise import Normaliser, OwnNormaliser
from gridrun.training.seeding import derive_seed, random_subset


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Samples in memory; a `Split`.

    Args:
        inputs: (N, ...), on the device; None: the targets are the inputs.
        targets: (N, ...), on the device.
        seed: Of what is drawn for a batch in evaluation.
    """

    inputs: Tensor | None
    targets: Tensor
    seed: int
    rows = None

    def __len__(self) -> int:
        return len(self.targets)

    def starts(self, indices: Tensor) -> Tensor:
        """The samples themselves, (B,)."""
        return indices

    def batch(self, indices: Tensor, inputs: Tensor | None = None) -> Batch:
        """Samples with floating inputs as float32; whole numbers stay (uint8 too)."""
        places = indices.to(self.targets.device)
        targets = as_float32(self.targets[places])
        own = targets if self.inputs is None else as_float32(self.inputs[places])
        seed = derive_seed(self.seed, f"evaluation:{int(indices[0])}")
        return Batch(own, targets, seed=seed)

    def take(self, indices: Tensor) -> Arrays:
        """The samples at those indices."""
        places = indices.to(self.targets.device)
        own = None if self.inputs is None else self.inputs[places]
        return dataclasses.replace(self, inputs=own, targets=self.targets[places])


def as_float32(values: Tensor) -> Tensor:
    """uint8 (images) and other floating types become float32; the rest stays."""
    is_number = values.is_floating_point() or values.dtype == torch.uint8
    return values.float() if is_number else values


def inspect_data(hyps: GeneralHyperparams) -> DataInfo:
    """Facts about the data sets that the keys name.

    Raises:
        ConfigError, DataError: With every problem.
    """
    data = read_set(hyps)
    problems = _pair_problems(hyps, data)
    train, val = split_indices(hyps, len(data.splits["train"][1]))
    n_train, n_val = len(train), len(val)
    contents = {data.name: data.sha256}
    if hyps.val_set is not None:
        other = read_set(hyps, "val_set")
        if other.sizes != data.sizes:
            problems.append(f"val_set: samples are {other.sizes}, not {data.sizes}")
        n_val = len(other.splits["train"][1])
        contents[other.name] = other.sha256
    if hyps.val_example_subset not in ("DEFAULT", *data.subsets):
        names = ", ".join(["DEFAULT", *data.subsets])
        problems.append(f"val_example_subset: {data.name} has {names}")
    sizes = {"train_set_size": n_train, "val_set_size": n_val}
    problems += size_problems(hyps, sizes)
    problems += _metric_problems(hyps, data)
    if problems:
        raise DataError(problems)
    inputs, targets = data.sizes
    n_units = _n_units(data)
    return DataInfo(
        n_units=n_units,
        labels={"n_units": n_units, "input_shape": inputs, "target_shape": targets},
        n_samples={
            "train": hyps.train_set_size or n_train,
            "val": hyps.val_set_size or n_val,
            "test": len(data.splits["test"][1]),
            **{name: len(part[1]) for name, part in data.subsets.items()},
        },
        files=[],
        contents=contents,
    )


def _n_units(data: DataSet) -> int:
    """Classes of whole numbers in any split, else the second axis of the targets."""
    targets = data.splits["train"][1]
    if targets.ndim == 1:
        if targets.is_floating_point():
            return 1
        return 1 + max(int(part[1].max()) for part in data.splits.values())
    return int(targets.shape[1])


def _pair_problems(hyps: GeneralHyperparams, data: DataSet) -> list[str]:
    problems = []
    if data.is_pairs:
        if hyps.use_preset and data.splits["train"][0] is None:
            problems.append(f"use_preset: {data.name} stores no inputs; use false")
        return problems
    for name, usual in (
        ("use_preset", False),
        ("loss_space", "default"),
        ("eval_space", "default"),
    ):
        if getattr(hyps, name) != usual:
            problems.append(f"{name}: of pair data; {data.name} has no PAIRS = True")
    return problems


def _metric_problems(hyps: GeneralHyperparams, data: DataSet) -> list[str]:
    name = hyps.monitor.partition(":")[0]
    known = [
        "loss",
        "val_loss",
        *(f"val_{metric}" for metric in metrics_of(hyps, data)),
    ]
    if name in known or (hyps.train_loop not in hyps.loops) or name == "l1_term":
        return []
    return [f"monitor: unknown metric {name!r}; known: {', '.join(known)}"]


def metrics_of(hyps: GeneralHyperparams, data: DataSet) -> dict[str, Metric]:
    """Functions of predictions and targets that loss, objective and data set define."""
    found = dict(getattr(make_loss(hyps.lossfxn, hyps.plugins), "metrics", {}))
    if hyps.train_loop not in hyps.loops:
        made = plugin_files.make("train_loop", hyps.train_loop, hyps.plugins)
        found |= getattr(made, "metrics", {})
    return found | dict(data.metrics)


def split_indices(hyps: GeneralHyperparams, n_samples: int) -> tuple[Tensor, Tensor]:
    """Training and validation samples of the training split, each in order."""
    every = torch.arange(n_samples)
    if hyps.val_set is not None:
        return every, every[:0]
    n_val = min(max(round(hyps.val_p * n_samples), 1), n_samples - 1)
    if hyps.shuffle:
        val = random_subset(hyps.split_seed or 0, n_samples, n_val)
    else:
        rest = n_samples - n_val
        first = {"beginning": 0, "middle": rest // 2, "end": rest}[hyps.val_loc]
        val = every[first : first + n_val]
    is_train = torch.ones(n_samples, dtype=torch.bool)
    is_train[val] = False
    return every[is_train], val


def open_data(
    hyps: GeneralHyperparams, device: torch.device, most: int | None = None
) -> Data:
    """The splits on a device, with the normaliser fitted on the training samples.

    Args:
        hyps: They name the data sets.
        device: Where the samples go.
        most: Training samples at most, for a trial.

    Raises:
        ConfigError, DataError: With every problem.
    """
    info = inspect_data(hyps)
    data = read_set(hyps)
    train, val = split_indices(hyps, len(data.splits["train"][1]))
    train = train[:most]
    seed = hyps.split_seed or 0

    def split(
        name: str, use: str, chosen: Tensor | None, of: str = "dataset"
    ) -> Arrays:
        source = data if of == "dataset" else read_set(hyps, of)
        inputs, targets = {**source.splits, **source.subsets}[name]
        kept = slice(None) if chosen is None else chosen
        is_own = source.is_pairs and not hyps.use_preset
        own = None if is_own or inputs is None else inputs[kept].to(device)
        return Arrays(own, targets[kept].to(device), derive_seed(seed, use))

    trained = split("train", "train", train[: hyps.train_set_size])
    if hyps.val_set is None:
        validated = split("train", "val", val[: hyps.val_set_size])
    else:
        every = torch.arange(info.n_samples["val"])
        validated = split("train", "val", every, of="val_set")
    normaliser = fitted_normaliser(hyps, trained)
    whole = Data(
        train=trained,
        val=validated,
        test=split("test", "test", None),
        info=info,
        norm_stats=normaliser.stats(),
        subsets={name: split(name, name, None) for name in data.subsets},
    )
    return bootstrapped(whole, hyps, stretch=1)


def fitted_normaliser(hyps: GeneralHyperparams, train: Arrays) -> Any:
    """The normaliser of the key `normalizer`, fitted on training samples.

    Raises:
        ConfigError: If a plug-in cannot be made, or inputs are whole numbers.
    """
    values = train.targets if train.inputs is None else train.inputs
    if hyps.normalizer == "none":
        return Normaliser("none")
    if values.dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise ConfigError("normalizer: inputs are whole numbers; use none")
    if hyps.normalizer not in NORMALIZERS:
        own = as_float32(values)
        return OwnNormaliser.fitted(hyps.normalizer, hyps.plugins, own)
    kind = str(hyps.normalizer)
    if kind == "per_sample" or values.ndim < 2:
        if kind != "global":
            return Normaliser(kind)
        values = values[:, None]
    by_channel = values.double().transpose(0, 1).flatten(1)
    means, variances = by_channel.mean(1), by_channel.var(1, correction=0)
    return Normaliser.of_channels(kind, means.tolist(), variances.tolist())
