"""Plug-in data sets: a class with `splits` to arrays in memory."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gridrun import plugin_files
from gridrun.errors import ConfigError, DataError
from gridrun.general.hyperparams import NORMALIZERS, GeneralHyperparams
from gridrun.training.data import (
    Batch,
    Data,
    DataInfo,
    bootstrapped,
    size_problems,
)
from gridrun.training.normalise import Normaliser
from gridrun.training.seeding import derive_seed, random_subset

Metric = Callable[[Tensor, Tensor], Any]
HASHED_AT_ONCE = 2**24


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


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A plug-in data set, read and found sound.

    Args:
        name: Of its class.
        splits: train and test: inputs (or None) and targets.
        subsets: The same by the data set's own names.
        is_pairs: Whether targets have the inputs' shape.
        metrics: Name to function of predictions and targets.
        sha256: Of all arrays.
    """

    name: str
    splits: Mapping[str, tuple[Tensor | None, Tensor]]
    subsets: Mapping[str, tuple[Tensor | None, Tensor]]
    is_pairs: bool
    metrics: Mapping[str, Metric]
    sha256: str

    @property
    def sizes(self) -> tuple[list[int], list[int]]:
        """Shape of one input and of one target."""
        inputs, targets = self.splits["train"]
        shape = list(targets.shape[1:])
        return (shape if inputs is None else list(inputs.shape[1:])), shape


def read_set(hyps: GeneralHyperparams, key: str = "dataset") -> DataSet:
    """The data set that `dataset` or `val_set` names; kept for the next question.

    Raises:
        ConfigError: If there is no such class, or it refuses its arguments.
        DataError: With every problem of its arrays.
    """
    name = getattr(hyps, key)
    files = plugin_files.source_files([name], hyps.plugins)
    stamp = tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files)
    args = json.dumps(hyps.dataset_args, sort_keys=True)
    return _read_set(key, name, hyps.plugins, args, hyps.data_root, stamp)


@functools.lru_cache(maxsize=4)
def _read_set(
    key: str, name: str, plugins: str | None, args: str, root: str | None, stamp: Any
) -> DataSet:
    kind = plugin_files.load(key, name, plugins)
    made = plugin_files.construct(
        "dataset_args", kind, json.loads(args), {"data_root": root}
    )
    try:
        given = made.splits()
        extra = getattr(made, "subsets", {})
        extra = extra() if callable(extra) else extra
        metrics = dict(getattr(made, "metrics", {}))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise DataError(f"{key}: {name}: {text}") from error
    is_pairs = bool(getattr(made, "PAIRS", False))
    problems: list[str] = []
    if not isinstance(given, Mapping) or set(given) != {"train", "test"}:
        problems.append('splits() must give {"train": ..., "test": ...}')
        given = {}
    parts = {s: _part(s, v, is_pairs, problems) for s, v in given.items()}
    subsets = {s: _part(s, v, is_pairs, problems) for s, v in dict(extra).items()}
    if not problems:
        problems += _mismatches({**parts, **subsets})
        problems += [
            f"metric {metric!r} is no function of predictions and targets"
            for metric, function in metrics.items()
            if not callable(function)
        ]
    if problems:
        raise DataError([f"{key}: {name}: {text}" for text in problems])
    digest = hashlib.sha256()
    for part in (*parts.values(), *subsets.values()):
        for values in part:
            _add_to(digest, values)
    return DataSet(name, parts, subsets, is_pairs, metrics, digest.hexdigest())


def _part(
    split: str, given: Any, is_pairs: bool, problems: list[str]
) -> tuple[Tensor | None, Tensor]:
    """Inputs and targets of a split as tensors."""
    nothing = (None, torch.zeros(0))
    if not isinstance(given, Sequence) or len(given) != 2:
        problems.append(f"{split} must be a pair (inputs, targets)")
        return nothing
    names = (f"inputs of {split}", f"targets of {split}")
    inputs, targets = (
        None if values is None else _tensor(name, values, problems)
        for name, values in zip(names, given, strict=True)
    )
    if targets is None or (inputs is None and not is_pairs):
        missing = names[1] if targets is None else names[0]
        problems.append(f"{missing} are None (only inputs may be, with PAIRS = True)")
        return nothing
    if inputs is not None:
        if len(inputs) != len(targets):
            text = f"{split} has {len(inputs)} inputs and {len(targets)} targets"
            problems.append(text)
        if is_pairs and inputs.shape != targets.shape:
            shapes = f"{list(inputs.shape)} and {list(targets.shape)}"
            problems.append(f"PAIRS need equal shapes; {split} has {shapes}")
    if len(targets) < (2 if split == "train" else 1):
        problems.append(f"{split} has {len(targets)} samples")
    return inputs, targets


def _tensor(name: str, values: Any, problems: list[str]) -> Tensor:
    try:
        found = (
            values
            if isinstance(values, Tensor)
            else torch.as_tensor(np.ascontiguousarray(values))
        )
    except (TypeError, ValueError, RuntimeError) as error:
        problems.append(f"{name} are no array of numbers: {error}")
        return torch.zeros(0)
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        problems.append(f"{name} hold values that are not finite")
    return found.detach()


def _mismatches(parts: Mapping[str, tuple[Tensor | None, Tensor]]) -> list[str]:
    """Splits whose samples differ in shape or in having inputs."""
    first = parts["train"]
    problems = []
    for split, part in parts.items():
        for kind, own, other in zip(("inputs", "targets"), part, first, strict=True):
            shapes = [None if x is None else list(x.shape[1:]) for x in (own, other)]
            if shapes[0] != shapes[1]:
                text = f"{kind} of {split} are {shapes[0]}, of train {shapes[1]}"
                problems.append(text)
    return problems


def _add_to(digest: Any, values: Tensor | None) -> None:
    if values is None:
        digest.update(b"none")
        return
    digest.update(f"{values.dtype}{tuple(values.shape)}".encode())
    flat = values.contiguous().flatten().view(torch.uint8).numpy()
    for first in range(0, len(flat), HASHED_AT_ONCE):
        digest.update(flat[first : first + HASHED_AT_ONCE].tobytes())


# --- for training -----------------------------------------------------------------


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
    """Classes of whole numbers, else the second axis of the targets."""
    targets = data.splits["train"][1]
    if targets.ndim == 1:
        is_class = not targets.is_floating_point()
        return int(targets.max()) + 1 if is_class else 1
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
    """Functions of predictions and targets that the data set and the loss define."""
    from gridrun.training.losses import make_loss

    of_loss = getattr(make_loss(hyps.lossfxn, hyps.plugins), "metrics", {})
    return dict(of_loss) | dict(data.metrics)


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
        norm_stats=normaliser_stats(hyps, normaliser),
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
        made = plugin_files.make("normalizer", hyps.normalizer, hyps.plugins)
        made.fit(as_float32(values))
        return made
    kind = str(hyps.normalizer)
    if kind == "per_sample" or values.ndim < 2:
        if kind != "global":
            return Normaliser(kind)
        values = values[:, None]
    by_channel = values.double().transpose(0, 1).flatten(1)
    means, variances = by_channel.mean(1), by_channel.var(1, correction=0)
    return Normaliser.of_channels(kind, means.tolist(), variances.tolist())


def normaliser_stats(hyps: GeneralHyperparams, normaliser: Any) -> dict[str, Any]:
    """A normaliser as plain data, for checkpoints."""
    if isinstance(normaliser, Normaliser):
        return normaliser.stats()
    return {"normalizer": hyps.normalizer, "stats": normaliser.stats()}


def load_normaliser(hyps: GeneralHyperparams, stats: Mapping[str, Any]) -> Any:
    """The normaliser of a checkpoint."""
    if "stats" not in stats:
        return Normaliser.load(stats)
    made = plugin_files.make("normalizer", hyps.normalizer, hyps.plugins)
    made.load(stats["stats"])
    return made
