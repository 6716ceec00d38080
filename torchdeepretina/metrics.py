"""What is measured of predicted firing rates.

Predictions x (N, U), responses to R repeats of a stimulus (R, N, U), all in Hz; every
result is (U,), float64. What a cell does not allow is NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OF_REPEATS = ("cc_norm", "cc_max", "fev", "explainable")


def pearson_per_cell(rates: Tensor, targets: Tensor) -> Tensor:
    """Pearson correlation over time of each cell.

    Args:
        rates: (N, U) predictions.
        targets: (N, U) recorded responses.

    Returns:
        (U,) in [-1, 1]; 0 where either is constant.
    """
    x = rates.double() - rates.double().mean(0)
    y = targets.double() - targets.double().mean(0)
    scale = (x.square().sum(0) * y.square().sum(0)).sqrt()
    is_constant = (rates == rates[0]).all(0) | (targets == targets[0]).all(0)
    is_constant |= scale == 0
    r = (x * y).sum(0) / torch.where(is_constant, torch.ones_like(scale), scale)
    return torch.where(is_constant, torch.zeros_like(r), r).clamp(-1, 1)


def signal_power(repeats: Tensor) -> Tensor:
    """Variance over time of the response that all repeats share; NaN if not > 0.

    Sahani & Linden (2003), as in Schoppe et al. (2016), eq. 5.
    """
    y = repeats.double()
    n = len(y)
    power = (n * y.mean(0).var(0) - y.var(1).mean(0)) / (n - 1)
    return _positive(power)


def noise_corrected_correlation(rates: Tensor, repeats: Tensor) -> Tensor:
    """Correlation with what is not noise (CC_norm); may exceed 1 slightly.

    Schoppe et al. (2016), "Measuring the performance of neural models", eq. 7.
    """
    x = rates.double() - rates.double().mean(0)
    mean = repeats.double().mean(0)
    covariance = (x * (mean - mean.mean(0))).sum(0) / (len(x) - 1)
    return covariance / (_positive(x.var(0)) * signal_power(repeats)).sqrt()


def largest_correlation(repeats: Tensor) -> Tensor:
    """Correlation of a perfect model with the mean over repeats (CC_max).

    Schoppe et al. (2016), eq. 6.
    """
    return (signal_power(repeats) / repeats.double().mean(0).var(0)).sqrt()


def noise_variance(repeats: Tensor) -> Tensor:
    """Variance over repeats, mean over time."""
    return repeats.double().var(0).mean(0)


def explainable_fraction(repeats: Tensor) -> Tensor:
    """Share of the variance of single responses that the stimulus explains."""
    total = repeats.double().flatten(0, 1).var(0)
    return (total - noise_variance(repeats)) / _positive(total)


def explained_variance(rates: Tensor, repeats: Tensor) -> Tensor:
    """Fraction of explainable variance explained (FEV); not clipped.

    Cadena et al. (2019), "Deep convolutional models improve predictions of macaque V1
    responses to natural images".
    """
    y = repeats.double()
    error = (y - rates.double()).square().mean((0, 1))
    noise = noise_variance(repeats)
    explainable = y.flatten(0, 1).var(0) - noise
    return 1 - (error - noise) / _positive(explainable)


def bits_per_spike(
    rates: Tensor, counts: Tensor, mean_rates: Tensor, dt_s: float
) -> Tensor:
    """Poisson log likelihood beyond that of the mean rate, in bits per spike.

    Brenner et al. (2000), as in Pillow et al. (2008).

    Args:
        rates: (N, U) predictions, Hz; taken as at least 1e-3.
        counts: (N, U) spikes per bin, mean over repeats.
        mean_rates: (U,) mean rates in training, Hz.
        dt_s: Width of a bin, s.
    """
    x = rates.double().clamp(min=1e-3)
    base = _positive(mean_rates.double())
    gain = counts.double() * (x / base).log2() - (x - base) * dt_s / math.log(2)
    return gain.sum(0) / _positive(counts.double().sum(0))


def of_repeats(rates: Tensor, repeats: Tensor) -> dict[str, Tensor]:
    """Everything that repeats allow, by the names in `OF_REPEATS`."""
    return {
        "cc_norm": noise_corrected_correlation(rates, repeats),
        "cc_max": largest_correlation(repeats),
        "fev": explained_variance(rates, repeats),
        "explainable": explainable_fraction(repeats),
    }


def _positive(values: Tensor) -> Tensor:
    """NaN where a value is not > 0."""
    return torch.where(values > 0, values, torch.full_like(values, math.nan))
