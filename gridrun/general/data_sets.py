"""Plug-in data sets as they are read: a class with `splits` to arrays, checked."""

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
from gridrun.config import data_root
from gridrun.errors import DataError
from gridrun.general.hyperparams import GeneralHyperparams

Metric = Callable[[Tensor, Tensor], Any]
HASHED_AT_ONCE = 2**24
RESERVED = ("train", "val", "test", "DEFAULT")
OURS = ("loss", "epoch", "lr", "time_s")  # columns that no metric may take


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
    root, _ = data_root(hyps.data_root)
    return _read_set(key, name, hyps.plugins, args, root, stamp)


@functools.lru_cache(maxsize=4)
def _read_set(
    key: str, name: str, plugins: str | None, args: str, root: str, stamp: Any
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
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}"
        raise DataError(f"{key}: {name}: {text}") from error
    is_pairs = bool(getattr(made, "PAIRS", False))
    problems: list[str] = []
    if not isinstance(given, Mapping) or set(given) != {"train", "test"}:
        problems.append('splits() must give {"train": ..., "test": ...}')
        given = {}
    if not isinstance(extra, Mapping):
        kind_of = type(extra).__name__
        problems.append(f"subsets must give names and parts, not a {kind_of}")
        extra = {}
    taken = [name for name in extra if name in RESERVED or not isinstance(name, str)]
    problems += [f"subset {name!r}: the name is taken" for name in taken]
    problems += [
        f"metric {name!r}: the name is taken" for name in metrics if name in OURS
    ]
    parts = {s: _part(s, v, is_pairs, problems) for s, v in given.items()}
    subsets = {s: _part(s, v, is_pairs, problems) for s, v in extra.items()}
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
    if not is_pairs and not targets.is_floating_point():
        targets = targets.long()  # classes, of whatever kind of whole number
        if targets.numel() and int(targets.min()) < 0:
            problems.append(f"{names[1]} are classes, but some are negative")
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
    if found.ndim == 0:
        problems.append(f"{name} are a single number")
        return torch.zeros(0)
    return found.detach().cpu()


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
