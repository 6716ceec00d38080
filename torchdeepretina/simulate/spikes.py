"""From firing rates to spikes and smoothed responses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdeepretina.simulate.kernels import Floats, Ints, gaussian_taps


def poisson_counts(mean: Floats, uniform: Floats) -> Ints:
    """Poisson counts by inverting the distribution, one uniform number each.

    A last-bit difference in a mean changes one count at most, never the draws of
    later bins.

    Args:
        mean: Any shape, expected counts, at most a few.
        uniform: Same shape, in [0, 1).

    Returns:
        Counts of the same shape.
    """
    probability = np.exp(-mean)
    cumulative = probability.copy()
    counts = np.zeros(mean.shape, np.int64)
    # Means below 2.5 leave nothing to find beyond 60.
    for n in range(1, 60):
        is_more = uniform >= cumulative
        if not is_more.any():
            break
        counts += is_more
        probability = probability * mean / n
        cumulative += probability
    return counts


def smooth(counts: NDArray[Any], sd_bins: float) -> Floats:
    """Convolve the last axis with a Gaussian cut at 3 s.d., edges renormalised.

    Args:
        counts: (..., T), T at least the kernel's length.
        sd_bins: S.d. in bins; the radius is 3 s.d. rounded half up.

    Returns:
        Same shape, in the unit of the counts.
    """
    taps = gaussian_taps(sd_bins, int(3 * sd_bins + 0.5))
    rows = np.reshape(counts, (-1, counts.shape[-1])).astype(np.float64)
    weight = np.convolve(np.ones(rows.shape[-1]), taps, "same")
    smoothed = np.stack([np.convolve(row, taps, "same") / weight for row in rows])
    return smoothed.reshape(counts.shape)


def spike_times(counts: Ints, time_s: Floats, dt_s: float) -> Floats:
    """Spike times, s, in order; the spikes of a bin are spread evenly over it.

    Args:
        counts: (T,) spikes per bin.
        time_s: (T,) start of each bin.
        dt_s: Length of a bin.

    Returns:
        (n,) times.
    """
    of_bin = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(of_bin)) - np.repeat(np.cumsum(counts) - counts, counts)
    times_s: Floats = time_s[of_bin] + dt_s * (place + 0.5) / counts[of_bin]
    return times_s
