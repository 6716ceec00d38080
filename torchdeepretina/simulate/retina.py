"""The virtual retina: subunits, gain control and spikes as numpy equations.

Response of a cell at bin t depends on frames t-40 … t-1 only. Everything here
is float64; positions are pixels (row, column), times are 10 ms bins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from torchdeepretina.simulate.kernels import (
    KINDS,
    N_LAGS,
    PARAMETERS,
    Floats,
    Ints,
    Kind,
    blur_matrix,
    difference_of_gaussians,
    gaussian_weights,
    pool_time,
    subunit_time,
)

Ablation = Literal["gain", "subunits"]

CHUNK_FRAMES: Final = 3_000
ABLATIONS: Final[tuple[Ablation, ...]] = ("gain", "subunits")
CELL_TYPES: Final[tuple[tuple[int, Kind], ...]] = (
    (-1, "fast"),
    (-1, "slow"),
    (+1, "fast"),
    (-1, "fast"),
    (+1, "slow"),
    (-1, "slow"),
    (-1, "fast"),
    (+1, "fast"),
    (-1, "slow"),
)
# Rows of the banded matrix that convolves over time: large enough for BLAS, small
# enough that one block of subunits stays in the cache.
_TIME_BLOCK: Final = 72


class Movie(Protocol):
    """A movie (T, H, W) that is read by slices: an array or an HDF5 data set."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, frames: slice, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Retina:
    """The cells of one retina, before they are fitted to a movie.

    Attributes:
        centers: (C, 2) row and column, px, from 0.
        polarity: (C,) +1 ON, -1 OFF.
        kinds: C names, fast or slow.
        excitation: (C, H, W) weights w of the subunits, each cell's sum 1.
        pool: (C, H, W) weights q of the gain pool, each cell's sum 1.
        theta: (C,) thresholds in s.d. of the divided drive.
        target_hz: (C,) mean rates on the training movie.
        kappa: Strength of the division; 0 without gain control.
        is_rectified: Whether subunits pass their positive part only.
    """

    centers: Ints
    polarity: Ints
    kinds: tuple[Kind, ...]
    excitation: Floats
    pool: Floats
    theta: Floats
    target_hz: Floats
    kappa: float
    is_rectified: bool

    def __post_init__(self) -> None:
        lengths = {
            field.name: len(getattr(self, field.name))
            for field in fields(self)
            if field.name not in ("kappa", "is_rectified")
        }
        assert len(set(lengths.values())) == 1, f"cells differ in number: {lengths}"

    @property
    def n_cells(self) -> int:
        """Number of cells C."""
        return len(self.kinds)

    @property
    def places(self) -> list[tuple[int, int]]:
        """The centres as pairs of plain integers."""
        return [(int(row), int(column)) for row, column in self.centers]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the movie, px."""
        height, width = self.pool.shape[1:]
        return int(height), int(width)


@dataclass(frozen=True)
class Grey:
    """Normalisation of a movie: (grey level - mean) / scale.

    Attributes:
        mean: Mean over the training frames, grey levels.
        scale: Their s.d. + 1e-7, as in training.
    """

    mean: float
    scale: float

    def normalise(self, frames: NDArray[Any]) -> Floats:
        """Frames of any type and shape in units of the training s.d."""
        return (np.asarray(frames, np.float64) - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class Calibration:
    """What is fitted to one training movie; every array is (C,).

    Attributes:
        grey: Normalisation of the movie.
        pool_mean: Mean of the gain pool, the g-bar of the division.
        drive_mean: Mean of the divided drive.
        drive_std: S.d. of the divided drive.
        amplitude_hz: Output amplitude a.
    """

    grey: Grey
    pool_mean: Floats
    drive_mean: Floats
    drive_std: Floats
    amplitude_hz: Floats


def build_retina(
    shape: tuple[int, int],
    n_cells: int,
    rng: np.random.Generator,
    ablate: Collection[str] = (),
) -> Retina:
    """Draw the cells of a retina; types in turn, centres in the middle half.

    Args:
        shape: Height and width of the movie, px.
        n_cells: Number of cells C.
        rng: Stream of the retina (SeedSequence([seed, 0])).
        ablate: Stages to leave out, of "gain" and "subunits".

    Returns:
        The retina; the same draws whatever is ablated.
    """
    low = np.array(shape) // 4
    centers: Ints = rng.integers(low, np.array(shape) - low, size=(n_cells, 2))
    theta = rng.uniform(*PARAMETERS.theta_range, size=n_cells)
    target_hz = rng.uniform(*PARAMETERS.target_range_hz, size=n_cells)
    types = [CELL_TYPES[cell % len(CELL_TYPES)] for cell in range(n_cells)]
    kinds = tuple(kind for _, kind in types)
    places = [(int(row), int(column)) for row, column in centers]
    radii_px = [getattr(PARAMETERS, kind).excitation_sd_px for kind in kinds]
    return Retina(
        centers=centers,
        polarity=np.array([sign for sign, _ in types], np.int64),
        kinds=kinds,
        excitation=np.stack(
            [
                gaussian_weights(at, sd, shape)
                for at, sd in zip(places, radii_px, strict=True)
            ]
        ),
        pool=np.stack(
            [gaussian_weights(at, PARAMETERS.pool_sd_px, shape) for at in places]
        ),
        theta=theta,
        target_hz=target_hz,
        kappa=0.0 if "gain" in ablate else PARAMETERS.kappa,
        is_rectified="subunits" not in ablate,
    )


def center_surround(s: Floats) -> Floats:
    """Every subunit's spatial sum D = s * kernel, zero-padded.

    Args:
        s: (F, H, W) normalised movie.

    Returns:
        (F, H, W), equal to convolving each frame with `subunit_space`; done as two
        separable Gaussians.
    """
    p = PARAMETERS
    surround = _blur(s, p.surround_sd_px)
    surround *= p.surround_weight
    spatial = _blur(s, p.center_sd_px)
    spatial -= surround
    spatial /= float(np.linalg.norm(difference_of_gaussians()))
    return spatial


def _blur(s: Floats, sd_px: float) -> Floats:
    height, width = s.shape[1:]
    blurred: Floats = blur_matrix(height, sd_px) @ (s @ blur_matrix(width, sd_px))
    return blurred


def subunit_blocks(spatial: Floats, kernel: Floats) -> Iterator[tuple[slice, Floats]]:
    """Convolve D over time, u(t) = Σ_l k(l)·D(t-l), for ON subunits.

    Args:
        spatial: (F, P) spatial sums D.
        kernel: (L,) temporal kernel, lag 1 first.

    Yields:
        Index n of a run of outputs and u (n, P). Output i sees frames i … i+L-1, of
        F-L+1 outputs in all.
    """
    n_taps = len(kernel)
    n_outputs = len(spatial) - n_taps + 1
    band = np.zeros((_TIME_BLOCK, _TIME_BLOCK + n_taps - 1))
    for row in range(_TIME_BLOCK):
        band[row, row : row + n_taps] = kernel[::-1]
    for first in range(0, n_outputs, _TIME_BLOCK):
        n = min(_TIME_BLOCK, n_outputs - first)
        n_inputs = n + n_taps - 1
        u = band[:n, :n_inputs] @ spatial[first : first + n_inputs]
        yield slice(first, first + n), u


def drive_and_pool(s: Floats, retina: Retina) -> tuple[Floats, Floats]:
    """Excitation v and gain pool g of every window of 40 frames.

    Args:
        s: (F, H, W) normalised movie, F ≥ 40.
        retina: C cells on H×W pixels.

    Returns:
        v and g, each (C, F-39). Column i depends on frames i … i+39 and belongs to
        the bin after them.
    """
    n_frames = len(s)
    spatial = center_surround(s).reshape(n_frames, -1)
    n_outputs = n_frames - PARAMETERS.time_taps + 1
    excitation = np.empty((retina.n_cells, n_outputs))
    pooled = np.empty((retina.n_cells, n_outputs))
    weights = retina.excitation.reshape(retina.n_cells, -1)
    pool = retina.pool.reshape(retina.n_cells, -1)
    for kind in KINDS:
        is_kind = np.array([k == kind for k in retina.kinds])
        for at, u in subunit_blocks(spatial, subunit_time(kind)):
            pooled[is_kind, at] = pool[is_kind] @ np.abs(u).T
            for sign in (-1, 1):
                cells = is_kind & (retina.polarity == sign)
                passed = np.maximum(sign * u, 0) if retina.is_rectified else sign * u
                excitation[cells, at] = weights[cells] @ passed.T
    # g(t) sees u(t-1) … u(t-15), so the last u of each window serves v alone.
    v = excitation[:, PARAMETERS.pool_taps :]
    g = np.stack([np.convolve(cell[:-1], pool_time(), "valid") for cell in pooled])
    return v, g


def padded_frames(
    movie: Movie, block: slice, first: int, last: int, grey: Grey
) -> Floats:
    """Normalised frames first … last-1 of a block, mean grey before its start.

    Args:
        movie: (T, H, W) grey levels.
        block: Frames of the block within the movie.
        first: First frame, counted from the block's start; may be negative.
        last: End of the frames, not included; at most the block's length.
        grey: Normalisation.

    Returns:
        (last - first, H, W).
    """
    assert first < last <= block.stop - block.start
    s = np.zeros((last - first, *movie.shape[1:]))
    n_before = min(max(-first, 0), last - first)
    shown = movie[block.start + first + n_before : block.start + last]
    s[n_before:] = grey.normalise(shown)
    return s


def block_drives(
    movie: Movie,
    block: slice,
    n_bins: int,
    grey: Grey,
    retina: Retina,
    *,
    chunk_bins: int = CHUNK_FRAMES,
) -> Iterator[tuple[slice, Floats, Floats]]:
    """Excitation and gain pool of a block, chunk by chunk, 40 frames overlapping.

    Args:
        movie: (T, H, W) grey levels.
        block: Frames of the block within the movie, B of them.
        n_bins: Bins to compute, B or B+1; bin t sees frames t-40 … t-1.
        grey: Normalisation; frames before the block are mean grey.
        retina: The cells.
        chunk_bins: Bins at a time.

    Yields:
        Bins of the chunk within the block, v and g, each (C, bins).
    """
    for first in range(0, n_bins, chunk_bins):
        last = min(first + chunk_bins, n_bins)
        s = padded_frames(movie, block, first - N_LAGS, last - 1, grey)
        yield slice(first, last), *drive_and_pool(s, retina)


def divide(v: Floats, g: Floats, pool_mean: Floats, kappa: float) -> Floats:
    """Divisive gain control y = v / (1 + κ·g / mean g); v, g and y are (C, T)."""
    return v / (1 + kappa * g / pool_mean[:, None])


def output_shape(y: Floats, mean: Floats, std: Floats, theta: Floats) -> Floats:
    """Soft threshold softplus(4(z-θ))/4 of the divided drive y (C, T), z its score."""
    slope = PARAMETERS.softplus_slope
    z = (y - mean[:, None]) / std[:, None]
    shape: Floats = np.logaddexp(0, slope * (z - theta[:, None])) / slope
    return shape


def saturate(r_hz: Floats) -> Floats:
    """Rate with dead time, λ = r / (1 + r·4 ms), below 250 Hz."""
    rate_hz: Floats = r_hz / (1 + r_hz * (PARAMETERS.dead_time_ms / 1000))
    return rate_hz


def fit_amplitude(shape: Floats, target_hz: float) -> float:
    """Amplitude a, Hz, at which the mean of saturate(a·shape) is the target.

    Args:
        shape: (T,) soft-thresholded drive of one cell, > 0.
        target_hz: Wanted mean rate, below 250 Hz.

    Returns:
        The amplitude, by bisection to the last bits.
    """
    low, high = 0.0, 1.0
    while saturate(high * shape).mean() < target_hz:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if saturate(middle * shape).mean() < target_hz:
            low = middle
        else:
            high = middle
    return high


def calibrate(v: Floats, g: Floats, retina: Retina, grey: Grey) -> Calibration:
    """Fit the free constants to a training movie.

    Args:
        v: (C, T) excitation over training.
        g: (C, T) gain pool over training.
        retina: The cells.
        grey: Normalisation of the movie, kept with the result.

    Returns:
        Constants that give every cell its target mean rate.
    """
    pool_mean: Floats = g.mean(axis=1)
    y = divide(v, g, pool_mean, retina.kappa)
    mean, std = y.mean(axis=1), y.std(axis=1)
    shapes = output_shape(y, mean, std, retina.theta)
    amplitudes = map(fit_amplitude, shapes, retina.target_hz)
    return Calibration(grey, pool_mean, mean, std, np.array([*amplitudes]))


def rates(v: Floats, g: Floats, retina: Retina, calibration: Calibration) -> Floats:
    """Firing rates λ (C, T), Hz, of excitation v and gain pool g, each (C, T)."""
    y = divide(v, g, calibration.pool_mean, retina.kappa)
    mean, std = calibration.drive_mean, calibration.drive_std
    shape = output_shape(y, mean, std, retina.theta)
    return saturate(calibration.amplitude_hz[:, None] * shape)


def respond(
    movie: Movie,
    retina: Retina,
    calibration: Calibration,
    *,
    chunk_bins: int = CHUNK_FRAMES,
) -> Floats:
    """Firing rates of one uninterrupted movie, after mean grey.

    Args:
        movie: (T, H, W) grey levels.
        retina: C cells.
        calibration: Constants from the training movie.
        chunk_bins: Bins computed at a time.

    Returns:
        (C, T+1) Hz; bin t sees frames t-40 … t-1.
    """
    n_frames = movie.shape[0]
    rate_hz = np.empty((retina.n_cells, n_frames + 1))
    chunks = block_drives(
        movie,
        slice(0, n_frames),
        n_frames + 1,
        calibration.grey,
        retina,
        chunk_bins=chunk_bins,
    )
    for bins, v, g in chunks:
        rate_hz[:, bins] = rates(v, g, retina, calibration)
    return rate_hz
