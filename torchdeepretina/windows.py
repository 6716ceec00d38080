"""Windows of a movie: where they lie, what is in them, how they are split."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gridrun.nn import Spectrum, flat_transform
from gridrun.readers import Rows
from gridrun.training.data import Batch
from gridrun.training.normalise import Normaliser, OwnNormaliser

FRAMES_AT_ONCE = 200
Ints = NDArray[np.int64]


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


# --- in memory --------------------------------------------------------------------


class FrameSpectra:
    """Transforms of a stimulus' normalised frames, kept where memory allows.

    A frame's bits are the same whether all are kept or some are made when needed.

    Args:
        stimulus: (T, H, W) as stored, on the device.
        normalise: Of grey levels; treats all frames alike.
        max_bytes: Memory that the transforms of all frames may take.
    """

    def __init__(
        self, stimulus: Tensor, normalise: Normaliser, max_bytes: float
    ) -> None:
        self.stimulus = stimulus
        self.normalise = normalise
        self.max_bytes = max_bytes

    @functools.cached_property
    def kept(self) -> Tensor | None:
        """(T, F) complex64 of all frames; None if they do not fit."""
        n_frames = len(self.stimulus)
        n_frequencies = self._made(self.stimulus[:1]).shape[1]
        if n_frames * n_frequencies * 8 > self.max_bytes:
            return None
        found = torch.empty(
            n_frames, n_frequencies, dtype=torch.complex64, device=self.stimulus.device
        )
        for first in range(0, n_frames, FRAMES_AT_ONCE):
            part = slice(first, first + FRAMES_AT_ONCE)
            found[part] = self._made(self.stimulus[part])
        return found

    def of_windows(self, starts: Tensor, n_lags: int) -> Spectrum:
        """Of windows of `n_lags` frames from `starts` (B,)."""
        frames = (
            starts[:, None] + torch.arange(n_lags, device=starts.device)
        ).flatten()
        if self.kept is not None:
            rows = self.kept.index_select(0, frames)
        else:
            needed, places = torch.unique(frames, return_inverse=True)
            rows = self._made(self.stimulus[needed]).index_select(0, places)
        size = (self.stimulus.shape[1], self.stimulus.shape[2])
        return Spectrum.of_rows(rows, n_lags, size)

    def _made(self, frames: Tensor) -> Tensor:
        copied = frames.to(torch.float32, copy=True)
        return flat_transform(self.normalise(copied, in_place=True))


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of one stimulus with their targets; a `Split`.

    Args:
        stimulus: (T, H, W) as stored, on the device.
        first_frames: (N,) int64, of each window, on the same device.
        targets: (N, U) float32, on the same device.
        n_lags: Frames of a window.
        normalise: Of grey levels.
        rows: Where the stimulus lies.
        dt_s: Width of a bin, s.
        repeats: (R, N, U) responses to each repeat, where there are several.
        counts: (N, U) spikes per bin, mean over repeats, where known.
        spectra: Of the stimulus' frames.
    """

    stimulus: Tensor
    first_frames: Tensor
    targets: Tensor
    n_lags: int
    normalise: Normaliser | OwnNormaliser
    rows: Rows
    dt_s: float
    repeats: Tensor | None = None
    counts: Tensor | None = None
    spectra: FrameSpectra | None = None

    def __len__(self) -> int:
        return len(self.first_frames)

    def unit_hz(self, response_type: str) -> float:
        """The unit of targets of that type, in Hz."""
        return 1 / self.dt_s if response_type == "binned" else 1.0

    def starts(self, indices: Tensor) -> Tensor:
        """First frame of each window, (B,)."""
        return self.first_frames[indices.to(self.first_frames.device)]

    def batch(self, indices: Tensor, inputs: Tensor | None = None) -> Batch:
        """Normalised windows (B, n_lags, H, W), oldest frame first, and targets."""
        starts = self.starts(indices)

        def windows() -> Tensor:
            found = inputs
            if found is None:
                found = self._view().index_select(0, starts)
            found = found.to(self.targets.device, torch.float32, copy=True)
            return self.normalise(found, in_place=True)

        def spectrum() -> Spectrum:
            assert self.spectra is not None
            return self.spectra.of_windows(starts, self.n_lags)

        return Batch(
            windows,
            self.targets[indices.to(self.targets.device)],
            spectrum=spectrum if self.spectra is not None else None,
        )

    def take(self, indices: Tensor) -> Windows:
        """The windows at those indices."""
        chosen = indices.to(self.targets.device)
        return dataclasses.replace(
            self,
            first_frames=self.first_frames[chosen],
            targets=self.targets[chosen],
            repeats=None if self.repeats is None else self.repeats[:, chosen],
            counts=None if self.counts is None else self.counts[chosen],
        )

    def _view(self) -> Tensor:
        """All windows as a view (T − n_lags + 1, n_lags, H, W), nothing copied."""
        n_frames, height, width = self.stimulus.shape
        frame = height * width
        return self.stimulus.as_strided(
            (n_frames - self.n_lags + 1, self.n_lags, height, width),
            (frame, frame, width, 1),
        )


def model_inputs(model: nn.Module, batch: Batch) -> Tensor | Spectrum:
    """Windows, or their transform where the model can start from it."""
    takes_spectrum = getattr(model, "takes_spectrum", False)
    return batch.spectrum if takes_spectrum else batch.inputs


def fitted_normaliser(
    kind: str, stimulus: Tensor, starts: Ints, n_lags: int
) -> Normaliser:
    """The normaliser of a kind, fitted on training windows, in float64.

    Args:
        kind: The key `normalizer`. global: over the frames that some window uses, once
            each; per_channel: over all windows, by position in the window.
        stimulus: (T, H, W).
        starts: First frames of the windows.
        n_lags: Frames of a window.
    """
    if kind not in ("global", "per_channel"):
        return Normaliser(kind)
    sums, squares = _frame_sums(stimulus)
    n_pixels = stimulus[0].numel()
    uses = np.zeros((1 if kind == "global" else n_lags, len(stimulus)), np.int64)
    for lag in range(n_lags):
        np.add.at(uses[lag % len(uses)], starts + lag, 1)
    if kind == "global":
        uses = np.minimum(uses, 1)
    counts = uses.sum(1) * n_pixels
    means = uses @ sums / counts
    variances = np.maximum(uses @ squares / counts - means**2, 0.0)
    return Normaliser.of_channels(kind, means.tolist(), variances.tolist())


def _frame_sums(stimulus: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and sum of squares of each frame, (T,)."""
    sums, squares = np.empty(len(stimulus)), np.empty(len(stimulus))
    for first in range(0, len(stimulus), FRAMES_AT_ONCE):
        part = slice(first, first + FRAMES_AT_ONCE)
        frames = stimulus[part].flatten(1).double()
        sums[part] = frames.sum(1).numpy()
        squares[part] = frames.square().sum(1).numpy()
    return sums, squares
