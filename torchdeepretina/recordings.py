"""Files of recorded ganglion cells: what is in one, and what is wrong with it.

    /{train,test}/stimulus (T, H, W), /{train,test}/time (T,) in s,
    /{train,test}/response/<type> (C, T or T+1), /test/repeats, /centers, ...

Imports no torch.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gridrun.config import shown
from gridrun.hdf5 import (
    chunks,
    find_array,
    values_of,
)
from torchdeepretina.centers import CURATED_CENTERS, Centers, sta_peaks

SPLITS = ("train", "test")
RESPONSE_TYPES = ("binned", "firing_rate_5ms", "firing_rate_10ms", "firing_rate_20ms")
SMOOTHING_BINS = {
    "firing_rate_5ms": 2,
    "firing_rate_10ms": 3,
    "firing_rate_20ms": 6,
    "binned": 0,
}
BIN_S = 0.01
LARGEST_JUMP = 1.5
LEAST_MATCH = 0.99
KNOWN_BLOCKS = {
    "15-10-07": 6,
    "15-11-21a": 6,
    "15-11-21b": 6,
    "16-01-07": 3,
    "16-01-08": 3,
}
Floats = NDArray[np.float64]


class Recording:
    """An open recording; what is wrong or odd is collected on reading.

    Args:
        path: The file.
        file: It, open.

    `dt_s` is the width of a bin, s.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self.file = file
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.dt_s = self._attribute("dt_s", BIN_S)

    def _attribute(self, name: str, default: float) -> float:
        value = self.file.attrs.get(name, default)
        is_number = not np.ndim(value) and np.asarray(value).dtype.kind in "iuf"
        if is_number and 0 < value < np.inf:
            return float(value)
        self.problems.append(f"attribute {name} is {value!r}; a number > 0 expected")
        return default

    def array(self, name: str, n_dimensions: int) -> Any:
        """The array of that name, or None with a problem."""
        found = find_array(self.file, name, n_dimensions)
        if isinstance(found, str):
            self.problems.append(found)
            return None
        return found

    # stimulus

    def stimulus(self, split: str, img_shape: Sequence[int] | None) -> Any:
        """The stimulus (T, H, W), with frames as in img_shape, and its times."""
        name = f"/{split}/stimulus"
        data = self.array(name, 3)
        if data is None:
            return None
        found = data.shape[1:]
        if img_shape is not None and found != tuple(img_shape[1:]):
            self.problems.append(
                f"{name} has frames of {found[0]}×{found[1]} pixels, but img_shape is "
                f"{list(img_shape)}; use {[img_shape[0], *found]}"
            )
        if not data.size:
            self.problems.append(f"{name} is empty: {data.shape}")
        return data

    def check_grey(
        self,
        name: str,
        data: Any,
        needs_bytes: bool,
        visit: Callable[[Any], None] = lambda part: None,
    ) -> None:
        """Grey levels: readable, finite, not all equal, integers if need be.

        Args:
            name: Of the array.
            data: (T, H, W), read once, in parts.
            needs_bytes: Whether values must be integers from 0 to 255.
            visit: Called with each part.
        """
        limit = float(np.finfo(np.float32).max)
        is_float = data.dtype.kind == "f"
        is_constant = True
        level = data[0, 0, 0]
        for first, part in chunks(data):
            if is_float:
                is_wrong = ~(np.abs(part.astype(np.float64)) <= limit)
                if is_wrong.any():
                    at = tuple(map(int, np.argwhere(is_wrong)[0]))
                    self.problems.append(
                        f"{name} holds NaN, infinity or values beyond float32: "
                        f"{is_wrong.sum()} in frames from {first}, the first at frame "
                        f"{first + at[0]}, row {at[1]}, column {at[2]}"
                    )
                    return
            if needs_bytes and data.dtype != np.uint8:
                with np.errstate(invalid="ignore"):
                    differs = (part.astype(np.uint8) != part).any()
                if differs:
                    self.problems.append(
                        f"stim_storage: {name} holds values that are not integers "
                        "from 0 to 255; use auto or float32"
                    )
                    return
            is_constant = is_constant and bool((part == level).all())
            visit(part)
        if is_constant:
            self.problems.append(f"{name} is constant ({level})")

    def time(self, split: str, n_frames: int) -> Floats | None:
        """Frame times (T,), s."""
        name = f"/{split}/time"
        data = self.array(name, 1)
        if data is None:
            return None
        if len(data) != n_frames:
            self.problems.append(f"{name} has {len(data)} values for {n_frames} frames")
            return None
        time: Floats = values_of(data).astype(np.float64)
        steps = np.diff(time)
        falls = np.flatnonzero(~(steps > 0))
        if len(falls):
            self.problems.append(f"{name} does not increase at index {falls[0] + 1}")
            return None
        return time

    def check_steps(self, split: str, time: Floats, starts: Sequence[int]) -> None:
        """Warn of frames that are not one bin apart, inside blocks."""
        steps = np.diff(time)
        is_inside = np.ones(len(steps), bool)
        is_inside[[first - 1 for first in starts if first > 0]] = False
        odd = np.flatnonzero(is_inside & (np.abs(steps / self.dt_s - 1) > 0.01))
        if len(odd):
            self.warnings.append(
                f"/{split}/time: {len(odd)} of {len(steps)} steps are not "
                f"{self.dt_s * 1000:g} ms ± 1 %, the first, "
                f"{steps[odd[0]] * 1000:.4g} ms, at index {odd[0] + 1}"
            )

    def blocks(
        self, dataset: str, n_frames: int, time: Floats
    ) -> list[tuple[int, int]]:
        """First frame and end of each training block; empty with a problem.

        Args:
            dataset: Name of the data set, for the public recordings.
            n_frames: Frames of /train/stimulus.
            time: Their times.
        """
        stored = self.file["train"].attrs.get("n_blocks")
        n_blocks = KNOWN_BLOCKS.get(dataset, 1)
        if stored is not None:
            if np.ndim(stored) or np.asarray(stored).dtype.kind not in "iu":
                self.problems.append(
                    f"/train has the attribute n_blocks {stored!r}; an integer expected"
                )
                return []
            n_blocks = int(stored)
        else:
            steps = np.diff(time)
            usual = np.median(steps) if len(steps) else 0.0
            jumps = np.flatnonzero(steps > LARGEST_JUMP * usual) + 1
            if len(jumps):
                return list(itertools.pairwise([0, *map(int, jumps), n_frames]))
        if n_blocks < 1 or n_frames % n_blocks:
            self.problems.append(
                f"/train has {n_frames} frames, which {n_blocks} equal blocks "
                "(n_blocks) do not divide"
            )
            return []
        return equal_blocks(n_frames, n_blocks)

    # responses

    def response(self, split: str, kind: str, n_frames: int) -> Floats | None:
        """Responses (C, T) of one type, cut to the stimulus."""
        name = f"/{split}/response/{kind}"
        data = self.array(name, 2)
        if data is None:
            return None
        if not data.shape[0]:
            self.problems.append(f"{name} holds no cell")
            return None
        return self._cut(name, data, n_frames, "cell")

    def sound_responses(self, split: str, shape: tuple[int, ...]) -> dict[str, Floats]:
        """Every response type (C, T) that is there and without fault."""
        found: dict[str, Floats] = {}
        for kind in RESPONSE_TYPES:
            n_problems = len(self.problems)
            values = self.response(split, kind, shape[1])
            del self.problems[n_problems:]
            if values is not None and values.shape == shape:
                found[kind] = values
        return found

    def _cut(self, name: str, data: Any, n_frames: int, *axes: str) -> Floats | None:
        """Finite values ≥ 0 (..., T) of an array (..., T or T+1), axes named."""
        if data.shape[-1] not in (n_frames, n_frames + 1):
            self.problems.append(
                f"{name} has {data.shape[-1]} bins for {n_frames} frames; "
                f"{n_frames} or {n_frames + 1} expected"
            )
            return None
        values: Floats = values_of(data).astype(np.float64)
        for wrong, what in (
            (~np.isfinite(values), "NaN or infinite values"),
            (values < 0, "negative values"),
        ):
            if wrong.any():
                *row, at = np.argwhere(wrong)[0]
                place = ", ".join(
                    f"{axis} {i}" for axis, i in zip(axes, row, strict=True)
                )
                self.problems.append(
                    f"{name} holds {wrong.sum()} {what}, the first, "
                    f"{values[(*row, at)]}, at {place}, bin {at}"
                )
                return None
        return values[..., :n_frames]

    def repeats(
        self, kind: str, responses: dict[str, Floats], n_frames: int
    ) -> Floats | None:
        """Responses of one type to each repeat of the test stimulus, (R, C, T).

        Args:
            kind: The response type wanted.
            responses: /test/response by type, (C, T), that one among them.
            n_frames: T.

        Returns:
            None where there are none of that type, with a warning if others are.
        """
        if "repeats" not in self.file["test"]:
            return None
        group = self.file["test/repeats"]
        if not isinstance(group, h5py.Group):
            self.problems.append("/test/repeats is no group")
            return None
        n_cells = len(responses[kind])
        if kind in group:
            found = self._stacked_repeats(f"/test/repeats/{kind}", n_cells, n_frames)
        else:
            found = self._cellwise_repeats(list(group), n_cells, n_frames)
        if found is None:
            return None
        if len(found) < 2:
            self.warnings.append(
                "/test/repeats holds one repeat: no noise ceiling can be estimated"
            )
            return None
        mean = found.mean(0)
        matches = {one: _correlation(mean, values) for one, values in responses.items()}
        best = max(matches, key=lambda one: matches[one])
        is_named = kind in group
        if not is_named and best != kind and matches[kind] < LEAST_MATCH:
            self.warnings.append(
                f"/test/repeats match {best} (r = {matches[best]:.3f}), not "
                f"response_type {kind} (r = {matches[kind]:.3f}): no noise ceiling"
            )
            return None
        if matches[kind] < LEAST_MATCH:
            self.warnings.append(
                f"the mean of /test/repeats is unlike /test/response/{kind}: "
                f"r = {matches[kind]:.3f}"
            )
        return found

    def _stacked_repeats(self, name: str, n_cells: int, n_frames: int) -> Floats | None:
        data = self.array(name, 3)
        if data is None:
            return None
        if data.shape[1] != n_cells:
            self.problems.append(
                f"{name} has shape {data.shape}; (repeats, {n_cells} cells, bins) "
                "expected"
            )
            return None
        return self._cut(name, data, n_frames, "repeat", "cell")

    def _cellwise_repeats(
        self, names: Sequence[str], n_cells: int, n_frames: int
    ) -> Floats | None:
        numbers = {int(m[1]): n for n in names if (m := re.fullmatch(r"cell(\d+)", n))}
        if not numbers:
            others = [name for name in names if name in RESPONSE_TYPES]
            if others:
                self.warnings.append(
                    f"/test/repeats holds {', '.join(others)} only: no noise ceiling "
                    "for this response_type"
                )
            else:
                self.problems.append(
                    f"/test/repeats holds {shown(sorted(names)[:5])}; cell01, cell02, "
                    "... or one array per response type expected"
                )
            return None
        n_arrays = sum(bool(re.fullmatch(r"cell\d+", name)) for name in names)
        if len(numbers) < n_arrays:
            self.problems.append(
                "/test/repeats names a cell twice, as cell1 and cell01"
            )
            return None
        if sorted(numbers) != list(range(1, n_cells + 1)):
            missing = sorted(set(range(1, n_cells + 1)) - set(numbers))
            self.problems.append(
                f"/test/repeats has cells {shown(sorted(numbers))}; 1 to {n_cells} "
                f"expected" + (f", {missing[0]} is missing" if missing else "")
            )
            return None
        found = []
        for number in sorted(numbers):
            name = f"/test/repeats/{numbers[number]}"
            data = self.array(name, 2)
            cut = None if data is None else self._cut(name, data, n_frames, "repeat")
            if cut is None:
                return None
            found.append(cut)
        counts = {len(one) for one in found}
        if len(counts) > 1:
            self.problems.append(
                f"/test/repeats: cells have different numbers of repeats "
                f"({shown(sorted(counts))})"
            )
            return None
        return np.stack(found, 1)

    # centres

    def centers(
        self, dataset: str, n_cells: int, frame_shape: tuple[int, int], by_sta: bool
    ) -> tuple[Centers, str]:
        """Row and column of each cell whose place is known, and who says so.

        Args:
            dataset: Name of the data set, for the public recordings.
            n_cells: Cells recorded.
            frame_shape: (H, W).
            by_sta: Whether to ask the white-noise recording, if nobody else knows.
        """
        if "centers" in self.file:
            table, origin = self._stored_centers(n_cells), "/centers"
        elif dataset in CURATED_CENTERS:
            table, origin = CURATED_CENTERS[dataset], "the published list"
        elif by_sta:
            noise = self.path.with_name("whitenoise.h5")
            table, origin = sta_peaks(noise, frame_shape), f"the STAs of {noise.name}"
        else:
            return {}, "nothing"
        height, width = frame_shape
        for cell, (row, column) in table.items():
            if cell < n_cells and not (0 <= row < height and 0 <= column < width):
                self.problems.append(
                    f"the centre of cell {cell} in {origin}, ({row}, {column}), lies "
                    f"outside the {height}×{width} pixels"
                )
        return table, origin

    def _stored_centers(self, n_cells: int) -> Centers:
        stored = self.array("/centers", 2)
        if stored is None:
            return {}
        values = values_of(stored)
        is_whole = np.isfinite(values).all() and (values == np.round(values)).all()
        if values.shape != (n_cells, 2) or not is_whole:
            self.problems.append(
                f"/centers has shape {values.shape}; a whole row and column for "
                f"each of the {n_cells} cells expected"
            )
            return {}
        return {i: (int(r), int(c)) for i, (r, c) in enumerate(values)}


def equal_blocks(n_frames: int, n_blocks: int) -> list[tuple[int, int]]:
    """Blocks of equal length, as first frame and end."""
    length = n_frames // n_blocks
    return [(i * length, (i + 1) * length) for i in range(n_blocks)]


def _correlation(a: Floats, b: Floats) -> float:
    x, y = a.ravel() - a.mean(), b.ravel() - b.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 0.0
