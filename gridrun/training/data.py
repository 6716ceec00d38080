"""What a trainer needs of data: splits that give batches, and facts about them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from gridrun.config import Hyperparams
from gridrun.nn import Spectrum
from gridrun.readers import Readers, Rows
from gridrun.training.seeding import generator


class Batch:
    """Inputs and targets of some samples, on one device.

    What a cohort shares of them is computed when first asked for, once.

    Args:
        inputs: (B, C, H, W) or (B, ...), or a function without arguments that makes
            them.
        targets: (B, U), (B,) or of the inputs' shape.
        dtype: Floating type of the inputs.
        spectrum: Makes the inputs' transform otherwise than from the inputs.
        seed: Of what is drawn for it in evaluation, if anything is.
    """

    def __init__(
        self,
        inputs: Tensor | Callable[[], Tensor],
        targets: Tensor,
        dtype: torch.dtype = torch.float32,
        spectrum: Callable[[], Spectrum] | None = None,
        seed: int | None = None,
    ) -> None:
        self.targets = targets
        self.seed = seed
        self.dtype = dtype
        self._inputs = inputs
        self._spectrum = spectrum
        self._others: dict[torch.dtype, Batch] = {}

    def __len__(self) -> int:
        return len(self.targets)

    @functools.cached_property
    def inputs(self) -> Tensor:
        """(B, C, H, W)."""
        return self._inputs if isinstance(self._inputs, Tensor) else self._inputs()

    @functools.cached_property
    def spectrum(self) -> Spectrum:
        """The transform of the inputs."""
        return self._spectrum() if self._spectrum else Spectrum.of(self.inputs)

    def to(self, dtype: torch.dtype) -> Batch:
        """The same in another floating type; labels stay as they are."""
        if dtype is self.dtype:
            return self
        if dtype not in self._others:
            targets = self.targets
            if targets.is_floating_point():
                targets = targets.to(dtype)

            def inputs() -> Tensor:
                own = self.inputs
                return own.to(dtype) if own.is_floating_point() else own

            other = Batch(inputs, targets, dtype, seed=self.seed)
            self._others[dtype] = other
        return self._others[dtype]


class Split(Protocol):
    """A part of the data, indexed from 0."""

    @property
    def rows(self) -> Rows | None:
        """Where the inputs can be read ahead, if they can."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, inputs: Tensor | None = None) -> Batch:
        """The samples at `indices` (B,) int64.

        Args:
            indices: Of the samples.
            inputs: Their inputs as `rows` gives them, if they have been read ahead.
        """
        ...

    def starts(self, indices: Tensor) -> Tensor:
        """First row of each sample in `rows`, (B,) int64."""
        ...

    def take(self, indices: Tensor) -> Self:
        """The split of these samples, in this order; some may stand twice."""
        ...


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What is known of data before they are read.

    Args:
        n_units: Model outputs: cells or classes.
        labels: JSON-able facts that a checkpoint keeps (cells, centers, class names).
        n_samples: Samples in train, val and test.
        files: The files that hold them.
        contents: SHA-256 of data that lie in no file, by name.
        centers: Row and column of each cell, where known.
        notices: What a user should know of the data.
        n_bytes: Size of the inputs as stored.
    """

    n_units: int
    labels: Mapping[str, Any]
    n_samples: Mapping[str, int]
    files: Sequence[str]
    centers: Sequence[tuple[int, int]] | None = None
    notices: Sequence[str] = ()
    n_bytes: int = 0
    contents: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """Splits of one data set, read and normalised.

    Args:
        train, val, test: The splits.
        info: As found before reading.
        norm_stats: Statistics of the training samples that normalise inputs.
        subsets: Further validation samples, by the data set's own names.
    """

    train: Split
    val: Split
    test: Split
    info: DataInfo
    norm_stats: Mapping[str, Any]
    subsets: Mapping[str, Split] = dataclasses.field(default_factory=dict)


def size_problems(hyps: Hyperparams, sizes: Mapping[str, int]) -> list[str]:
    """Keys that ask for more samples than there are, each as a line of an error."""
    return [
        f"{name}: {getattr(hyps, name)} samples, but there are {n}"
        for name, n in sizes.items()
        if (getattr(hyps, name) or 0) > n
    ]


def bootstrapped(data: Data, hyps: Hyperparams, stretch: int) -> Data:
    """Data whose training samples are drawn again, with replacement, if asked.

    Args:
        data: Its validation and test splits stay as they are.
        hyps: `bootstrap_index` is the draw's number, `split_seed` its seed.
        stretch: Samples that are drawn together, being neighbours in time.
    """
    if hyps.bootstrap_index is None:
        return data
    assert hyps.split_seed is not None
    draws = resample(len(data.train), stretch, hyps.split_seed, hyps.bootstrap_index)
    return dataclasses.replace(data, train=data.train.take(draws))


def resample(n_samples: int, stretch: int, seed: int, index: int) -> Tensor:
    """As many indices as there are samples, in stretches drawn with replacement.

    Stretches start anywhere where they fit; the last is cut.
    """
    stretch = min(stretch, n_samples)
    random = generator(seed, f"bootstrap:{index}")
    n_stretches = -(-n_samples // stretch)
    firsts = torch.randint(n_samples - stretch + 1, (n_stretches,), generator=random)
    return (firsts[:, None] + torch.arange(stretch)).flatten()[:n_samples]


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


def in_batches(
    split: Split, orders: Iterable[Tensor], readers: Readers | None
) -> Iterator[Batch]:
    """The batches of an epoch, read ahead if there are readers; the same bits."""
    if readers is None:
        yield from map(split.batch, orders)
        return
    ahead, orders = itertools.tee(orders)
    starts = (split.starts(indices).cpu().numpy() for indices in ahead)
    for indices, inputs in zip(orders, readers.read(starts), strict=True):
        yield split.batch(indices, torch.from_numpy(inputs))


def in_order(split: Split, batch_size: int) -> Iterator[Batch]:
    """All samples of a split, in order."""
    for first in range(0, len(split), batch_size):
        yield split.batch(torch.arange(first, min(first + batch_size, len(split))))
