"""Constants of the virtual retina and the kernels that they define, in float64.

Positions are pixels (row, column), times are bins of 10 ms. The kernels are those of
salamander ganglion cells in rough outline; nothing is fitted to a recording.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["fast", "slow"]

KINDS: Final[tuple[Kind, ...]] = ("fast", "slow")
N_LAGS: Final = 40


@dataclass(frozen=True)
class SubunitTime:
    """Time course and pooling radius of one kind of cell."""

    first_peak_ms: float
    second_peak_ms: float
    second_weight: float
    excitation_sd_px: float


@dataclass(frozen=True)
class Parameters:
    """All constants of the equations; the same for every virtual retina."""

    dt_ms: float = 10.0
    um_per_pixel: float = 50.0
    space_radius_px: int = 8
    center_sd_px: float = 0.8
    surround_sd_px: float = 2.4
    surround_weight: float = 0.6
    time_taps: int = 25
    time_taper_taps: int = 5
    time_power: int = 8
    fast: SubunitTime = SubunitTime(60.0, 110.0, 0.5, 2.0)
    slow: SubunitTime = SubunitTime(85.0, 150.0, 0.35, 1.5)
    pool_sd_px: float = 8.0
    pool_taps: int = 15
    pool_decay_ms: float = 30.0
    kappa: float = 4.0
    softplus_slope: float = 4.0
    dead_time_ms: float = 4.0
    theta_range: tuple[float, float] = (0.5, 1.2)
    target_range_hz: tuple[float, float] = (5.0, 15.0)


PARAMETERS: Final = Parameters()


def gaussian_taps(sd: float, radius: int) -> Floats:
    """Gaussian at -radius … radius, (2·radius + 1,), sum 1."""
    taps: Floats = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sd) ** 2)
    taps /= taps.sum()
    return taps


def gaussian_weights(
    center: tuple[float, float], sd_px: float, shape: tuple[int, int]
) -> Floats:
    """Gaussian about a centre (row, column), (H, W), sum 1 over the frame."""
    rows = np.arange(shape[0])[:, None] - center[0]
    columns = np.arange(shape[1])[None, :] - center[1]
    weights: Floats = np.exp(-0.5 * (rows**2 + columns**2) / sd_px**2)
    weights /= weights.sum()
    return weights


def subunit_space() -> Floats:
    """Centre minus surround of one subunit, (17, 17), unit L2 norm."""
    kernel = difference_of_gaussians()
    return kernel / float(np.linalg.norm(kernel))


def difference_of_gaussians() -> Floats:
    """Centre minus weighted surround, (17, 17), before it is scaled."""
    p = PARAMETERS
    center = gaussian_taps(p.center_sd_px, p.space_radius_px)
    surround = gaussian_taps(p.surround_sd_px, p.space_radius_px)
    difference: Floats = np.outer(center, center) - p.surround_weight * np.outer(
        surround, surround
    )
    return difference


def subunit_weights(center: tuple[int, int], shape: tuple[int, int]) -> Floats:
    """The pixels that one subunit sees, (H, W): its kernel, cut at the frame."""
    radius = PARAMETERS.space_radius_px
    padded = np.zeros((shape[0] + 2 * radius, shape[1] + 2 * radius))
    row, column = center
    span = 2 * radius + 1
    padded[row : row + span, column : column + span] = subunit_space()
    return padded[radius:-radius, radius:-radius]


def subunit_time(kind: Kind) -> Floats:
    """Temporal kernel k(l), (25,), lags 1 … 25 bins, unit L2 norm."""
    p = PARAMETERS
    course: SubunitTime = getattr(p, kind)
    tau_ms: Floats = p.dt_ms * np.arange(1.0, p.time_taps + 1)
    kernel: Floats = _bump(tau_ms, course.first_peak_ms)
    kernel -= course.second_weight * _bump(tau_ms, course.second_peak_ms)
    n_taper = p.time_taper_taps
    angles = np.pi * np.arange(1, n_taper + 1) / (n_taper + 1)
    kernel[-n_taper:] *= 0.5 * (1 + np.cos(angles))
    return kernel / float(np.linalg.norm(kernel))


def _bump(tau_ms: Floats, peak_ms: float) -> Floats:
    ratio = tau_ms / peak_ms
    bump: Floats = (ratio * np.exp(1 - ratio)) ** PARAMETERS.time_power
    return bump


def pool_time() -> Floats:
    """Temporal kernel h(l) of the gain pool, (15,), lags 1 … 15 bins, sum 1."""
    p = PARAMETERS
    tau_ms: Floats = p.dt_ms * np.arange(1.0, p.pool_taps + 1)
    kernel: Floats = tau_ms * np.exp(-tau_ms / p.pool_decay_ms)
    kernel /= kernel.sum()
    return kernel


def blur_matrix(n_pixels: int, sd_px: float) -> Floats:
    """Matrix (n, n) that blurs a row of n pixels by a 17-tap Gaussian, zero-padded."""
    radius = PARAMETERS.space_radius_px
    taps = np.zeros(2 * max(n_pixels, radius + 1) - 1)
    middle = len(taps) // 2
    taps[middle - radius : middle + radius + 1] = gaussian_taps(sd_px, radius)
    pixels = np.arange(n_pixels)
    matrix: Floats = taps[middle + pixels[:, None] - pixels[None, :]]
    return matrix
