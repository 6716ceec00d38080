"""Recordings of retinal ganglion cells as training, validation and test windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gridrun.config import suggest
from gridrun.config.keys import NORMALIZERS
from gridrun.errors import DataError
from gridrun.hdf5 import cache_folder, data_folder, open_file, reading
from gridrun.machine import available_memory, n_usable_cores
from gridrun.readers import Rows
from gridrun.training.data import Data, DataInfo, bootstrapped, size_problems
from gridrun.training.normalise import (
    Normaliser,
    OwnNormaliser,
    evenly_spaced,
)
from torchdeepretina.hyperparams import RetinaHyperparams
from torchdeepretina.recordings import SMOOTHING_BINS, SPLITS, Recording
from torchdeepretina.windows import (
    FrameSpectra,
    Ints,
    Windows,
    WindowSplit,
    fitted_normaliser,
    purge_reach,
    split_windows,
    window_starts,
)

BOOTSTRAP_STRETCH = 100
Floats32 = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What training takes of a recording's file, all but the stimulus.

    Args:
        path: The file.
        n_frames: Frames T of train and test.
        frame_shape: (H, W).
        dt_s: Width of a bin, s.
        cells: Chosen cells, in order, U of them.
        centers: Row and column of each, or None.
        windows: Training and validation windows.
        test_starts: First frames of the test windows.
        responses: (U, T) of train and test.
        repeats: (R, U, T) of test, or None.
        counts: (U, T) mean spikes per test bin, or None.
        notices: What is odd about the file.
        n_bytes: Size of the stimuli as stored.
    """

    path: Path
    n_frames: Mapping[str, int]
    frame_shape: tuple[int, int]
    dt_s: float
    cells: tuple[int, ...]
    centers: tuple[tuple[int, int], ...] | None
    windows: WindowSplit
    test_starts: Ints
    responses: Mapping[str, Floats32]
    repeats: Floats32 | None
    counts: Floats32 | None
    notices: tuple[str, ...]
    n_bytes: int


def recording_path(hyps: RetinaHyperparams, key: str = "dataset") -> Path:
    """The file that the keys name.

    Args:
        hyps: They name it.
        key: That names its folder, for errors.

    Raises:
        DataError: If a folder or the file is absent, with what is there.
    """
    folder = data_folder(hyps.data_root, hyps.dataset, "*.h5", key)
    path = folder / f"{hyps.stim_type}.h5"
    if not path.is_file():
        there = sorted(found.stem for found in folder.glob("*.h5"))
        named = "stim_type" if key == "dataset" else key
        raise DataError(
            f"{named}: no {path.name} in {folder}{suggest(hyps.stim_type, there)}"
        )
    return path


def inspect_recording(hyps: RetinaHyperparams, key: str = "dataset") -> Layout:
    """Check all that training takes of a recording, and read all but the stimulus.

    Args:
        hyps: They name it.
        key: That names its folder, for errors.

    Raises:
        DataError: With every problem found.
    """
    path = recording_path(hyps, key)
    with reading(path), open_file(path) as file:
        recording = Recording(path, file)
        layout = _layout(recording, hyps)
    if recording.problems:
        raise DataError([f"{path}: {problem}" for problem in recording.problems])
    assert layout is not None
    return layout


def _layout(recording: Recording, hyps: RetinaHyperparams) -> Layout | None:
    """What the file holds; None or incomplete where there are problems."""
    kind, problems = hyps.response_type, recording.problems
    stimuli = {split: recording.stimulus(split, hyps.img_shape) for split in SPLITS}
    n_frames = {s: 0 if data is None else len(data) for s, data in stimuli.items()}
    times = {split: recording.time(split, n_frames[split]) for split in SPLITS}
    responses = {
        split: recording.response(split, kind, n_frames[split]) for split in SPLITS
    }
    for data in stimuli.values():
        if data is not None and data.size:
            _check_grey_once(recording, data, hyps.stim_storage == "uint8")
    if problems:
        return None
    train, test = responses["train"], responses["test"]
    assert train is not None
    assert test is not None
    assert times["train"] is not None
    if len(train) != len(test):
        problems.append(f"/train has {len(train)} cells, /test {len(test)}")
    cells = _chosen_cells(hyps, len(train), problems)
    blocks = recording.blocks(hyps.dataset, n_frames["train"], times["train"])
    if problems:
        return None
    found = _windows(hyps, blocks, n_frames["test"], problems)
    table, _ = recording.centers(
        hyps.dataset, len(train), (hyps.img_shape[1], hyps.img_shape[2]), hyps.convgc
    )
    known = recording.sound_responses("test", test.shape) | {kind: test}
    repeats = recording.repeats(kind, known, n_frames["test"])
    if problems or found is None:
        return None
    recording.check_steps("train", times["train"], [first for first, _ in blocks])
    silent = [cell for cell in cells if not train[cell].any()]
    if silent:
        recording.warnings.append(f"cells {silent} never fire in /train: r counts as 0")
    chosen = list(cells)
    return Layout(
        path=recording.path,
        n_frames=n_frames,
        frame_shape=(hyps.img_shape[1], hyps.img_shape[2]),
        dt_s=recording.dt_s,
        cells=cells,
        centers=tuple(table[c] for c in cells) if set(cells) <= set(table) else None,
        windows=found[0],
        test_starts=found[1],
        responses={
            "train": train[chosen].astype(np.float32),
            "test": test[chosen].astype(np.float32),
        },
        repeats=None if repeats is None else repeats[:, chosen].astype(np.float32),
        counts=known["binned"][chosen].astype(np.float32)
        if "binned" in known
        else None,
        notices=tuple(f"{recording.path}: {text}" for text in recording.warnings),
        n_bytes=sum(d.size * d.dtype.itemsize for d in stimuli.values() if d),
    )


_known_good: set[tuple[str, int, int, str, bool]] = set()


def _check_grey_once(recording: Recording, data: Any, needs_bytes: bool) -> None:
    """Read a stimulus to check it, unless this process has found it good before."""
    status = recording.path.stat()
    stamp = (str(recording.path), status.st_mtime_ns, status.st_size)
    key = (*stamp, str(data.name), needs_bytes)
    if key not in _known_good:
        n_problems = len(recording.problems)
        recording.check_grey(str(data.name), data, needs_bytes)
        if len(recording.problems) == n_problems:
            _known_good.add(key)


def _chosen_cells(
    hyps: RetinaHyperparams, n_recorded: int, problems: list[str]
) -> tuple[int, ...]:
    if hyps.cells == "all":
        return tuple(range(n_recorded))
    absent = [cell for cell in hyps.cells if cell >= n_recorded]
    if absent:
        problems.append(
            f"cells: {absent} not recorded; the file has cells 0 to {n_recorded - 1}"
        )
    return tuple(hyps.cells)


def _windows(
    hyps: RetinaHyperparams,
    blocks: Sequence[tuple[int, int]],
    n_test: int,
    problems: list[str],
) -> tuple[WindowSplit, Ints] | None:
    n_lags, offset = hyps.img_shape[0], hyps.target_offset
    for first, end in blocks:
        if end - first - hyps.n_skip_frames < n_lags + 1:
            problems.append(
                f"/train has a block of {end - first} frames from frame {first}; "
                f"at least {n_lags + 1} (img_shape[0] + 1) are needed beyond "
                f"n_skip_frames {hyps.n_skip_frames}"
            )
    if problems:
        return None
    starts = window_starts(blocks, n_lags, offset, hyps.n_skip_frames)
    test_starts = window_starts([(0, n_test)], n_lags, offset)
    for name, found, n_frames in (
        ("/train", starts, blocks[-1][1]),
        ("/test", test_starts, n_test),
    ):
        if n_frames < n_lags + 2 or not len(found):
            problems.append(
                f"{name} has {n_frames} frames, {len(found)} windows of {n_lags} "
                f"(img_shape[0]) with a target; at least {n_lags + 2} frames are "
                "needed, or fewer frames of history"
            )
    if problems:
        return None
    reach = purge_reach(n_lags, offset, SMOOTHING_BINS[hyps.response_type])
    split = WindowSplit(starts, starts[:0], reach)
    if hyps.val_set is None:
        split = split_windows(starts, hyps.val_p, hyps.val_loc, reach)
    if not len(split.train):
        problems.append(
            f"val_p {hyps.val_p} leaves no training window: {len(starts)} windows, "
            f"{len(split.val)} for validation, the rest within {reach} frames"
        )
    sizes = {"train_set_size": len(split.train)}
    if hyps.val_set is None:
        sizes["val_set_size"] = len(split.val)
    problems += size_problems(hyps, sizes)
    train, val = split.train[: hyps.train_set_size], split.val[: hyps.val_set_size]
    return WindowSplit(train, val, reach), test_starts


def inspect_data(hyps: RetinaHyperparams) -> DataInfo:
    """Facts about a recording, checked.

    Raises:
        DataError: With every problem of the file.
    """
    layout = inspect_recording(hyps)
    return _info(layout, inspect_val_set(hyps, layout))


def inspect_val_set(hyps: RetinaHyperparams, layout: Layout) -> Layout | None:
    """The recording of `val_set`, whose training windows are validated on, if given.

    Args:
        hyps: They name it.
        layout: Of the recording that is trained on.

    Raises:
        DataError: With every problem of the file, or if it has other cells or bins.
    """
    if hyps.val_set is None:
        return None
    dataset, _, stim_type = hyps.val_set.partition("/")
    own: dict[str, Any] = {"dataset": dataset, "stim_type": stim_type}
    own |= {"train_set_size": hyps.val_set_size}
    try:
        other = inspect_recording(hyps.model_copy(update=own), "val_set")
    except DataError as error:
        wrong = [
            text.replace("train_set_size", "val_set_size") for text in error.problems
        ]
        raise DataError(wrong) from error
    for what, here, there in (
        ("cells", len(layout.cells), len(other.cells)),
        ("s per bin", layout.dt_s, other.dt_s),
    ):
        if here != there:
            raise DataError(f"val_set: {other.path} has {there} {what}, not {here}")
    return other


def _info(layout: Layout, other: Layout | None) -> DataInfo:
    centers = layout.centers
    validated = layout.windows.val if other is None else other.windows.train
    return DataInfo(
        n_units=len(layout.cells),
        labels={
            "n_units": len(layout.cells),
            "cells": list(layout.cells),
            "centers": None if centers is None else [list(c) for c in centers],
        },
        n_samples={
            "train": len(layout.windows.train),
            "val": len(validated),
            "test": len(layout.test_starts),
        },
        files=[str(one.path) for one in (layout, other) if one],
        centers=centers,
        notices=[*layout.notices, *(other.notices if other else ())],
        n_bytes=layout.n_bytes,
    )


def open_data(hyps: RetinaHyperparams, device: torch.device) -> Data:
    """Open a recording; train and val share one stimulus, mapped into memory.

    Raises:
        DataError: With every problem of the file.
    """
    layout = inspect_recording(hyps)
    other = inspect_val_set(hyps, layout)
    stimulus = torch.from_numpy(stimulus_rows(layout, "train", hyps).open())
    starts, n_lags = layout.windows.train, hyps.img_shape[0]
    normaliser: Normaliser | OwnNormaliser
    if hyps.normalizer in NORMALIZERS:
        kind = str(hyps.normalizer)
        normaliser = fitted_normaliser(kind, stimulus, starts, n_lags)
    else:
        raw = _Opened(layout, hyps, Normaliser("none"), torch.device("cpu"))
        train = raw.windows("train", starts)
        n_values = n_lags * stimulus[0].numel()
        inputs = train.batch(evenly_spaced(len(train), n_values)).inputs
        normaliser = OwnNormaliser.fitted(hyps.normalizer, hyps.plugins, inputs)
    own = _Opened(layout, hyps, normaliser, device)
    if other is None:
        val = own.windows("train", layout.windows.val)
    else:
        opened = _Opened(other, hyps, normaliser, device)
        val = opened.windows("train", other.windows.train)
    data = Data(
        train=own.windows("train", starts),
        val=val,
        test=own.test(),
        info=_info(layout, other),
        norm_stats=normaliser.stats(),
    )
    return bootstrapped(data, hyps, stretch=BOOTSTRAP_STRETCH)


class _Opened:
    """A recording on a device; the windows of a split share its stimulus.

    Args:
        layout: Of the recording.
        hyps: Name what is taken of it.
        normaliser: Of grey levels.
        device: Where it goes.
    """

    def __init__(
        self,
        layout: Layout,
        hyps: RetinaHyperparams,
        normaliser: Normaliser | OwnNormaliser,
        device: torch.device,
    ) -> None:
        self.layout = layout
        self.hyps = hyps
        self.normaliser = normaliser
        self.device = device
        self.rows = {s: stimulus_rows(layout, s, hyps) for s in SPLITS}
        self.stimuli = {
            split: torch.from_numpy(rows.open()).to(device)
            for split, rows in self.rows.items()
        }
        max_bytes = spectra_bytes(hyps, device)
        self.spectra = {
            split: FrameSpectra(stimulus, normaliser, max_bytes)
            for split, stimulus in self.stimuli.items()
            if isinstance(normaliser, Normaliser) and normaliser.is_of_frames
        }

    def windows(self, split: str, starts: Ints) -> Windows:
        """The windows from those first frames, in the stimulus of train or test."""
        n_lags = self.hyps.img_shape[0]
        return Windows(
            stimulus=self.stimuli[split],
            first_frames=torch.from_numpy(starts).to(self.device),
            targets=self._at_bins(self.layout.responses[split], starts),
            n_lags=n_lags,
            normalise=self.normaliser,
            rows=dataclasses.replace(self.rows[split], span=n_lags),
            dt_s=self.layout.dt_s,
            spectra=self.spectra.get(split),
        )

    def test(self) -> Windows:
        """The windows of the test split, with what is known of repeats and spikes."""
        layout = self.layout
        found = self.windows("test", layout.test_starts)
        if layout.repeats is not None:
            repeats = self._at_bins(layout.repeats, layout.test_starts)
            found = dataclasses.replace(found, repeats=repeats)
        if layout.counts is not None:
            counts = self._at_bins(layout.counts, layout.test_starts)
            found = dataclasses.replace(found, counts=counts)
        return found

    def _at_bins(self, values: Floats32, starts: Ints) -> Tensor:
        """Responses (..., U, T) at the target bins of windows, (..., N, U)."""
        bins = starts + self.hyps.img_shape[0] - 1 + self.hyps.target_offset
        chosen = np.ascontiguousarray(values[..., bins].swapaxes(-1, -2))
        return torch.from_numpy(chosen).to(self.device)


def spectra_bytes(hyps: RetinaHyperparams, device: torch.device) -> float:
    """Memory for the transforms of a stimulus, as the key `spectra_cache_mib` says.

    auto: half of what is available, shared among as many processes as there are cores
    (a GPU has one).
    """
    if hyps.spectra_cache_mib != "auto":
        return int(hyps.spectra_cache_mib) * 2.0**20
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    return available_memory() / (2 * n_usable_cores())


def stimulus_rows(layout: Layout, split: str, hyps: RetinaHyperparams) -> Rows:
    """A stimulus (T, H, W) as stored, or as the key `stim_storage` says."""
    name = f"/{split}/stimulus"
    with reading(layout.path), open_file(layout.path) as file:
        stored = file[name].dtype
    is_kept = stored in (np.uint8, np.float16, np.float32)
    dtype = np.dtype(stored if is_kept else np.float32)
    if hyps.stim_storage != "auto":
        dtype = np.dtype(hyps.stim_storage)
    return Rows(layout.path, name, dtype.str, cache_folder(layout.path.parent))
