"""Recordings of retinal ganglion cells: HDF5 files to windows, lazily."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gridrun.config import data_root, suggest
from gridrun.errors import DataError
from gridrun.training.data import Batch, Data, DataInfo
from torchdeepretina.hyperparams import RetinaHyperparams

NORM_EPS = 1e-7
CHUNK_FRAMES = 2000
SMOOTHING_BINS = {
    "firing_rate_5ms": 2,
    "firing_rate_10ms": 3,
    "firing_rate_20ms": 6,
    "binned": 0,
}
KNOWN_BLOCKS = {
    "15-10-07": 6,
    "15-11-21a": 6,
    "15-11-21b": 6,
    "16-01-07": 3,
    "16-01-08": 3,
}
# Row and column of the curated cells of the public recordings (Maheswaranathan et
# al. 2023), by cell number.
CURATED_CENTERS: dict[str, dict[int, tuple[int, int]]] = {
    "15-10-07": {0: (21, 18), 1: (24, 20), 2: (22, 18), 3: (27, 18), 4: (31, 20)},
    "15-11-21a": {6: (37, 3), 10: (39, 6), 12: (20, 15), 13: (41, 2)},
    "15-11-21b": {
        0: (16, 13),
        1: (20, 12),
        3: (19, 7),
        5: (19, 3),
        8: (21, 7),
        9: (22, 6),
        13: (21, 7),
        14: (25, 3),
        16: (23, 6),
        17: (26, 4),
        18: (24, 6),
        20: (26, 7),
        21: (27, 9),
        22: (26, 9),
        23: (27, 11),
        24: (26, 13),
        25: (24, 10),
    },
}
Ints = NDArray[np.int64]


# --- where windows lie ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class WindowSplit:
    """First frames of the training and validation windows, in time order.

    Args:
        train: (N,) int64.
        val: (M,) int64.
        reach: Starts of a training and a validation window differ by at least this.
    """

    train: Ints
    val: Ints
    reach: int

    def __post_init__(self) -> None:
        if len(self.train) and len(self.val):
            first, last = self.val[0], self.val[-1]
            below, above = self.train[self.train < first], self.train > last
            inside = len(self.train) - len(below) - int(above.sum())
            assert not inside, "a training window lies among the validation windows"
            gap = min(
                first - below[-1] if len(below) else self.reach,
                self.train[above][0] - last if above.any() else self.reach,
            )
            assert gap >= self.reach, "training and validation windows overlap"


def window_starts(
    blocks: Sequence[tuple[int, int]], n_lags: int, target_offset: int, n_skip: int = 0
) -> Ints:
    """First frames of all windows that, with their target, lie in one block.

    Args:
        blocks: First frame and end of each block.
        n_lags: Frames of a window.
        target_offset: Bins from the last frame of a window to its target.
        n_skip: Frames ignored at the start of each block.
    """
    starts = [
        np.arange(first + n_skip, end - n_lags - target_offset + 1)
        for first, end in blocks
    ]
    return np.concatenate(starts).astype(np.int64)


def split_windows(starts: Ints, val_p: float, val_loc: str, reach: int) -> WindowSplit:
    """Cut consecutive validation windows out and purge their neighbourhood.

    Args:
        starts: First frames of all windows, in time order.
        val_p: Share of validation windows.
        val_loc: beginning, middle or end.
        reach: Training windows that start closer than this to a validation window are
            dropped: no shared frame, target or smoothing.
    """
    n_val = min(max(round(val_p * len(starts)), 1), len(starts))
    rest = len(starts) - n_val
    first = {"beginning": 0, "middle": rest // 2, "end": rest}[val_loc]
    val = starts[first : first + n_val]
    is_far = (starts <= val[0] - reach) | (starts >= val[-1] + reach)
    return WindowSplit(starts[is_far], val, reach)


def purge_reach(n_lags: int, target_offset: int, smoothing_bins: int) -> int:
    """Frames between starts of windows that share no frame, target or smoothing.

    Args:
        n_lags: Frames of a window.
        target_offset: Bins from the last frame of a window to its target.
        smoothing_bins: Reach of the response's smoothing, to each side.
    """
    return max(n_lags + target_offset + smoothing_bins, 2 * smoothing_bins + 1)


def equal_blocks(n_frames: int, n_blocks: int) -> list[tuple[int, int]]:
    """Blocks of equal length, as first frame and end."""
    length = n_frames // n_blocks
    return [(i * length, (i + 1) * length) for i in range(n_blocks)]


# --- a recording ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a recording's file holds, as far as a configuration needs it.

    Args:
        path: The file.
        n_frames: Frames T of train and test.
        frame_shape: (H, W).
        n_recorded: Cells in the file.
        cells: Chosen cells, in order.
        blocks: Of the training stimulus.
        centers: Row and column of each chosen cell, or None.
        windows: Training and validation windows.
        test_starts: First frames of the test windows.
    """

    path: Path
    n_frames: Mapping[str, int]
    frame_shape: tuple[int, int]
    n_recorded: int
    cells: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    centers: tuple[tuple[int, int], ...] | None
    windows: WindowSplit
    test_starts: Ints


def recording_path(hyps: RetinaHyperparams) -> Path:
    """The file that the keys name.

    Raises:
        DataError: If a folder or the file is absent, with what is there.
    """
    root, said_by = data_root(hyps.data_root)
    folder = Path(root) / hyps.dataset
    if not Path(root).is_dir():
        raise DataError(
            f"data_root: no folder {root} (from {said_by}); give data_root, or set "
            "GRIDRUN_DATA"
        )
    if not folder.is_dir():
        there = [path.name for path in Path(root).iterdir() if path.is_dir()]
        raise DataError(
            f"dataset: no {hyps.dataset!r} in {root}{suggest(hyps.dataset, there)}"
        )
    path = folder / f"{hyps.stim_type}.h5"
    if not path.is_file():
        there = [found.stem for found in folder.glob("*.h5")]
        raise DataError(
            f"stim_type: no {path.name} in {folder}{suggest(hyps.stim_type, there)}"
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


def inspect_recording(hyps: RetinaHyperparams) -> Layout:
    """Check a recording's file against a configuration, without the stimulus.

    Raises:
        DataError: With every problem found.
    """
    path = recording_path(hyps)
    with open_file(path) as file:
        checker = _Checker(path, file, hyps)
        try:
            layout = checker.layout()
        except (OSError, KeyError, RuntimeError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
    if checker.problems:
        raise DataError([f"{path}: {problem}" for problem in checker.problems])
    assert layout is not None
    return layout


class _Checker:
    """Collects the problems of one file."""

    def __init__(self, path: Path, file: Any, hyps: RetinaHyperparams) -> None:
        self.path = path
        self.file = file
        self.hyps = hyps
        self.problems: list[str] = []

    def layout(self) -> Layout | None:
        hyps = self.hyps
        n_frames = {split: self._stimulus(split) for split in ("train", "test")}
        n_cells = {split: self._response(split, n_frames[split]) for split in n_frames}
        if self.problems:
            return None
        if n_cells["train"] != n_cells["test"]:
            self.problems.append(
                f"/train has {n_cells['train']} cells, /test {n_cells['test']}"
            )
        cells = self._cells(n_cells["train"])
        blocks = self._blocks(n_frames["train"])
        if self.problems:
            return None
        windows, test_starts = self._windows(blocks, n_frames["test"])
        centers = self._centers(cells)
        if self.problems:
            return None
        return Layout(
            path=self.path,
            n_frames=n_frames,
            frame_shape=(hyps.img_shape[1], hyps.img_shape[2]),
            n_recorded=n_cells["train"],
            cells=cells,
            blocks=tuple(blocks),
            centers=centers,
            windows=windows,
            test_starts=test_starts,
        )

    def _dataset(self, name: str, n_dimensions: int) -> Any:
        node, seen = self.file, ""
        for part in name.strip("/").split("/"):
            if not isinstance(node, h5py.Group) or part not in node:
                there = list(node) if isinstance(node, h5py.Group) else []
                self.problems.append(
                    f"{name} is missing: {seen or '/'} has no {part!r}"
                    f"{suggest(part, there)}"
                )
                return None
            node, seen = node[part], f"{seen}/{part}"
        if not isinstance(node, h5py.Dataset):
            self.problems.append(f"{name} is a group, not a data set")
        elif node.ndim != n_dimensions:
            self.problems.append(
                f"{name} has shape {node.shape}; {n_dimensions} dimensions expected"
            )
        elif node.dtype.kind not in "iuf":
            self.problems.append(f"{name} holds {node.dtype}; numbers expected")
        else:
            return node
        return None

    def _stimulus(self, split: str) -> int:
        data = self._dataset(f"/{split}/stimulus", 3)
        if data is None:
            return 0
        shape = self.hyps.img_shape
        if data.shape[1:] != tuple(shape[1:]):
            self.problems.append(
                f"/{split}/stimulus has frames of {data.shape[1]}×{data.shape[2]} "
                f"pixels, but img_shape is {list(shape)}; use "
                f"[{shape[0]}, {data.shape[1]}, {data.shape[2]}]"
            )
        time = self._dataset(f"/{split}/time", 1)
        if time is not None:
            self._check_time(split, time[:], len(data))
        if data.size:
            self._check_values(f"/{split}/stimulus", data)
        return int(data.shape[0])

    def _check_values(self, name: str, data: Any) -> None:
        """Grey levels: finite, within float32, not all equal, integers for uint8."""
        needs_bytes = self.hyps.stim_storage == "uint8" and data.dtype != np.uint8
        if data.dtype.kind == "f" or needs_bytes:
            limit = float(np.finfo(np.float32).max)
            for first, part in _chunks(data):
                is_wrong = ~(np.abs(part.astype(np.float64)) <= limit)
                if is_wrong.any():
                    at = tuple(map(int, np.argwhere(is_wrong)[0]))
                    self.problems.append(
                        f"{name} holds NaN, infinity or values beyond float32: "
                        f"{is_wrong.sum()} in frames from {first}, the first at frame "
                        f"{first + at[0]}, row {at[1]}, column {at[2]}"
                    )
                    return
                with np.errstate(invalid="ignore"):
                    differs = needs_bytes and (part.astype(np.uint8) != part).any()
                if differs:
                    self.problems.append(
                        f"stim_storage: {name} holds values that are not integers "
                        "from 0 to 255; use auto or float32"
                    )
                    return
        if self._is_constant(data):
            self.problems.append(f"{name} is constant ({data[0, 0, 0]})")

    def _check_time(self, split: str, time: Any, n_frames: int) -> None:
        if len(time) != n_frames:
            self.problems.append(
                f"/{split}/time has {len(time)} values for {n_frames} frames"
            )
        falls = np.flatnonzero(~(np.diff(time) > 0))
        if len(falls):
            self.problems.append(
                f"/{split}/time does not increase at index {falls[0] + 1}"
            )

    @staticmethod
    def _is_constant(data: Any) -> bool:
        """Whether all frames are equal; reads until two values differ."""
        return all((part == data[0, 0, 0]).all() for _, part in _chunks(data))

    def _response(self, split: str, n_frames: int) -> int:
        name = f"/{split}/response/{self.hyps.response_type}"
        data = self._dataset(name, 2)
        if data is None:
            return 0
        if n_frames and data.shape[1] not in (n_frames, n_frames + 1):
            self.problems.append(
                f"{name} has {data.shape[1]} bins for {n_frames} frames; "
                f"{n_frames} or {n_frames + 1} expected"
            )
        if not data.shape[0]:
            self.problems.append(f"{name} holds no cell")
        values = data[:]
        for wrong, what in (
            (~np.isfinite(values), "NaN or infinite values"),
            (values < 0, "negative values"),
        ):
            if wrong.any():
                cell, at = np.argwhere(wrong)[0]
                self.problems.append(
                    f"{name} holds {wrong.sum()} {what}, the first, "
                    f"{values[cell, at]}, at cell {cell}, bin {at}"
                )
        return int(data.shape[0])

    def _cells(self, n_recorded: int) -> tuple[int, ...]:
        if self.hyps.cells == "all":
            return tuple(range(n_recorded))
        absent = [cell for cell in self.hyps.cells if cell >= n_recorded]
        if absent:
            self.problems.append(
                f"cells: {absent} not recorded; the file has cells 0 to "
                f"{n_recorded - 1}"
            )
        return tuple(self.hyps.cells)

    def _blocks(self, n_frames: int) -> list[tuple[int, int]]:
        stored = self.file["train"].attrs.get("n_blocks")
        n_blocks = None
        if stored is not None:
            if np.ndim(stored) or np.asarray(stored).dtype.kind not in "iu":
                self.problems.append(
                    f"/train has the attribute n_blocks {stored!r}; an integer expected"
                )
                return []
            n_blocks = int(stored)
        if n_blocks is None:
            steps = np.diff(self.file["train/time"][:])
            usual = np.median(steps) if len(steps) else 0.0
            jumps = np.flatnonzero(steps > 1.5 * usual) + 1
            if len(jumps):
                edges = [0, *map(int, jumps), n_frames]
                return list(itertools.pairwise(edges))
            n_blocks = KNOWN_BLOCKS.get(self.hyps.dataset, 1)
        if n_blocks < 1 or n_frames % n_blocks:
            self.problems.append(
                f"/train has {n_frames} frames, which {n_blocks} equal blocks "
                "(n_blocks) do not divide"
            )
            return []
        return equal_blocks(n_frames, n_blocks)

    def _windows(
        self, blocks: Sequence[tuple[int, int]], n_test: int
    ) -> tuple[WindowSplit, Ints]:
        hyps = self.hyps
        n_lags, offset = hyps.img_shape[0], hyps.target_offset
        for first, end in blocks:
            if end - first - hyps.n_skip_frames < n_lags + 1:
                self.problems.append(
                    f"/train has a block of {end - first} frames from frame {first}; "
                    f"at least {n_lags + 1} (img_shape[0] + 1) are needed beyond "
                    f"n_skip_frames {hyps.n_skip_frames}"
                )
        if self.problems:
            none = np.zeros(0, np.int64)
            return WindowSplit(none, none, 1), none
        starts = window_starts(blocks, n_lags, offset, hyps.n_skip_frames)
        test_starts = window_starts([(0, n_test)], n_lags, offset)
        reach = purge_reach(n_lags, offset, SMOOTHING_BINS[hyps.response_type])
        for name, found in (("/train", starts), ("/test", test_starts)):
            if not len(found):
                self.problems.append(
                    f"{name} holds no window of {n_lags} frames (img_shape[0]) and "
                    "its target; use fewer frames of history"
                )
        if self.problems:
            return WindowSplit(starts, starts[:0], reach), test_starts
        split = split_windows(starts, hyps.val_p, hyps.val_loc, reach)
        if not len(split.train):
            self.problems.append(
                f"val_p {hyps.val_p} leaves no training window: {len(starts)} windows, "
                f"{len(split.val)} for validation, the rest within {reach} frames"
            )
        return split, test_starts

    def _centers(self, cells: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
        if "centers" in self.file:
            stored = self._dataset("/centers", 2)
            if stored is None:
                return None
            values = stored[:]
            is_whole = np.isfinite(values).all() and (values == np.round(values)).all()
            if values.shape[1] != 2 or len(values) <= max(cells) or not is_whole:
                self.problems.append(
                    f"/centers has shape {values.shape}; a whole row and column for "
                    "each cell expected"
                )
                return None
            table = {i: (int(r), int(c)) for i, (r, c) in enumerate(values)}
        else:
            table = CURATED_CENTERS.get(self.hyps.dataset, {})
        if not all(cell in table for cell in cells):
            return None
        height, width = self.hyps.img_shape[1:]
        for cell in cells:
            row, column = table[cell]
            if not (0 <= row < height and 0 <= column < width):
                self.problems.append(
                    f"the centre of cell {cell} in centers, ({row}, {column}), lies "
                    f"outside the {height}×{width} pixels"
                )
        return tuple(table[cell] for cell in cells)


# --- reading ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of one stimulus with their targets; a `Split`.

    Args:
        stimulus: (T, H, W) as stored, on the device.
        starts: (N,) first frame of each window, on the same device.
        targets: (N, U) float32, on the same device.
        n_lags: Frames of a window.
        mean, std: Normalise grey levels.
    """

    stimulus: Tensor
    starts: Tensor
    targets: Tensor
    n_lags: int
    mean: float
    std: float

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, indices: Tensor) -> Batch:
        """Normalised windows (B, n_lags, H, W), oldest frame first, and targets."""
        chosen = indices.to(self.starts.device)
        windows = self._view().index_select(0, self.starts[chosen]).float()
        inputs = windows.sub_(self.mean).div_(self.std + NORM_EPS)
        return Batch(inputs, self.targets[chosen])

    def _view(self) -> Tensor:
        """All windows as a view (T − n_lags + 1, n_lags, H, W), nothing copied."""
        n_frames, height, width = self.stimulus.shape
        frame = height * width
        return self.stimulus.as_strided(
            (n_frames - self.n_lags + 1, self.n_lags, height, width),
            (frame, frame, width, 1),
        )


def inspect_data(hyps: RetinaHyperparams) -> DataInfo:
    """Facts about a recording, without its stimulus.

    Raises:
        DataError: With every problem of the file.
    """
    return _info(inspect_recording(hyps))


def _info(layout: Layout) -> DataInfo:
    centers = layout.centers
    return DataInfo(
        n_units=len(layout.cells),
        labels={
            "n_units": len(layout.cells),
            "cells": list(layout.cells),
            "centers": None if centers is None else [list(c) for c in centers],
        },
        n_samples={
            "train": len(layout.windows.train),
            "val": len(layout.windows.val),
            "test": len(layout.test_starts),
        },
        files=[str(layout.path)],
        centers=centers,
    )


def open_data(hyps: RetinaHyperparams, device: torch.device) -> Data:
    """Read a recording; train and val share one stimulus in memory.

    Raises:
        DataError: With every problem of the file.
    """
    layout = inspect_recording(hyps)
    n_lags = hyps.img_shape[0]
    with open_file(layout.path) as file:
        stimuli = {
            split: read_stimulus(file[f"{split}/stimulus"], hyps.stim_storage)
            for split in ("train", "test")
        }
        responses = {
            split: file[f"{split}/response/{hyps.response_type}"][:].astype(np.float32)
            for split in ("train", "test")
        }
    mean, std = frame_statistics(stimuli["train"], layout.windows.train, n_lags)
    on_device = {split: stimulus.to(device) for split, stimulus in stimuli.items()}

    def windows(split: str, starts: Ints) -> Windows:
        bins = starts + n_lags - 1 + hyps.target_offset
        targets = responses[split][list(layout.cells)][:, bins].T
        return Windows(
            stimulus=on_device[split],
            starts=torch.from_numpy(starts).to(device),
            targets=torch.from_numpy(np.ascontiguousarray(targets)).to(device),
            n_lags=n_lags,
            mean=mean,
            std=std,
        )

    return Data(
        train=windows("train", layout.windows.train),
        val=windows("train", layout.windows.val),
        test=windows("test", layout.test_starts),
        info=_info(layout),
        norm_stats={"mean": mean, "std": std},
    )


def read_stimulus(data: Any, storage: str) -> Tensor:
    """Read a stimulus (T, H, W) as stored, or as the key `stim_storage` says.

    Raises:
        DataError: If uint8 is asked for and values are not integers from 0 to 255.
    """
    kinds = {"uint8": np.uint8, "float16": np.float16, "float32": np.float32}
    if storage != "auto":
        dtype: Any = np.dtype(kinds[storage])
    elif data.dtype in (np.uint8, np.float16, np.float32):
        dtype = data.dtype
    else:
        dtype = np.dtype(np.float32)
    stimulus = np.empty(data.shape, dtype)
    for first, part in _chunks(data):
        if not np.isfinite(part).all():
            raise DataError(f"{data.file.filename}: {data.name} holds NaN or infinity")
        stimulus[first : first + len(part)] = part
        if dtype == np.uint8 and (stimulus[first : first + len(part)] != part).any():
            raise DataError(
                f"{data.file.filename}: stim_storage: {data.name} holds values that "
                "are not integers from 0 to 255; use auto or float32"
            )
    return torch.from_numpy(stimulus)


def _chunks(data: Any) -> Iterator[tuple[int, Any]]:
    for first in range(0, len(data), CHUNK_FRAMES):
        yield first, data[first : first + CHUNK_FRAMES]


def frame_statistics(
    stimulus: Tensor, starts: Ints, n_lags: int
) -> tuple[float, float]:
    """Mean and standard deviation of the frames that windows use, in float64.

    Args:
        stimulus: (T, H, W).
        starts: First frames of the windows.
        n_lags: Frames of a window.
    """
    n_frames = len(stimulus)
    edges = np.zeros(n_frames + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n_lags, -1)
    is_used = torch.from_numpy(np.cumsum(edges[:n_frames]) > 0)
    total, squares, count = 0.0, 0.0, 0
    for first in range(0, n_frames, CHUNK_FRAMES):
        part = slice(first, first + CHUNK_FRAMES)
        used = stimulus[part][is_used[part]].double()
        total += float(used.sum())
        squares += float(used.square().sum())
        count += used.numel()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5
