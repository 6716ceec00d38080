"""What a trainer needs of data: splits that give batches, and facts about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs (B, C, H, W) and their targets, (B, U) or (B,), on one device."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


class Split(Protocol):
    """A part of the data, indexed from 0."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Batch:
        """The samples at `indices` (B,) int64."""
        ...


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What is known of data before they are read.

    Args:
        n_units: Model outputs: cells or classes.
        labels: JSON-able facts that a checkpoint keeps (cells, centers, class names).
        n_samples: Samples in train, val and test.
        files: The files that hold them.
        centers: Row and column of each cell, where known.
        notices: What a user should know of the data.
    """

    n_units: int
    labels: Mapping[str, Any]
    n_samples: Mapping[str, int]
    files: Sequence[str]
    centers: Sequence[tuple[int, int]] | None = None
    notices: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Data:
    """Splits of one data set, read and normalised.

    Args:
        train, val, test: The splits.
        info: As found before reading.
        norm_stats: Statistics of the training samples that normalise inputs.
    """

    train: Split
    val: Split
    test: Split
    info: DataInfo
    norm_stats: Mapping[str, Any]


def batches(order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Cut an order into batches; a single left-over joins the batch before.

    Args:
        order: (N,) sample indices.
        batch_size: Samples per batch; the last may be smaller.
    """
    starts = list(range(0, len(order), batch_size))
    if batch_size > 1 and len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    for i, start in enumerate(starts):
        stop = starts[i + 1] if i + 1 < len(starts) else len(order)
        yield order[start:stop]


def n_batches(n_samples: int, batch_size: int) -> int:
    """Number of steps in an epoch."""
    whole, rest = divmod(n_samples, batch_size)
    return max(whole + (rest > 1), 1) if n_samples else 0


def in_order(split: Split, batch_size: int) -> Iterator[Batch]:
    """All samples of a split, in order."""
    for first in range(0, len(split), batch_size):
        yield split.batch(torch.arange(first, min(first + batch_size, len(split))))
