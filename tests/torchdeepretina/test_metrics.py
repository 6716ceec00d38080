"""Metrics of predicted rates against the papers' formulas, limits and invariances."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from torchdeepretina import metrics
from torchdeepretina.metrics import OF_REPEATS, of_repeats, pearson_per_cell

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def tensors(seed: int, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Rates and targets of three cells that correlate in part."""
    random = np.random.default_rng(seed)
    targets = random.gamma(1.0, 10.0, (n, 3))
    rates = targets * [0.1, 0.0, -2.0] + random.normal(size=(n, 3)) * [1, 1, 20] + 5
    return torch.tensor(rates), torch.tensor(targets)


@given(st.integers(0, 1000))
def test_pearson_agrees_with_scipy(seed: int) -> None:
    """Each cell's correlation is scipy's over time."""
    rates, targets = tensors(seed)
    expected = [
        stats.pearsonr(x, y).statistic
        for x, y in zip(rates.numpy().T, targets.numpy().T, strict=True)
    ]
    np.testing.assert_allclose(pearson_per_cell(rates, targets), expected, atol=1e-12)


def test_pearson_is_accurate_for_small_changes_about_a_large_mean() -> None:
    """Float32 rates of 1000 ± .001 Hz keep their correlation."""
    rates = (1000 + 1e-3 * torch.arange(50.0)).float()[:, None]
    targets = torch.arange(50.0)[:, None] ** 2
    expected = stats.pearsonr(rates[:, 0].double(), targets[:, 0].double()).statistic
    assert float(pearson_per_cell(rates, targets)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.0), (1e-6, 0.0), (1e6, -5.0)])
def test_pearson_ignores_gain_and_offset(a: float, b: float) -> None:
    """A positive gain and an offset leave it, a negative gain turns its sign."""
    rates, targets = tensors(0)
    r = pearson_per_cell(rates, targets)
    torch.testing.assert_close(pearson_per_cell(a * rates + b, targets), r)
    torch.testing.assert_close(pearson_per_cell(-a * rates + b, targets), -r)


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e-3, 255.0])
@pytest.mark.parametrize("side", ["rates", "targets"])
def test_a_constant_cell_has_zero(value: float, side: str) -> None:
    """Where rates or targets never change, r is 0, and the others are untouched."""
    rates, targets = (tensor.float() for tensor in tensors(1, 1037))
    expected = pearson_per_cell(rates, targets)
    (rates if side == "rates" else targets)[:, 1] = value
    found = pearson_per_cell(rates, targets)
    assert found[1] == 0
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_pearson_stays_within_one() -> None:
    """Rounding takes no correlation beyond 1."""
    for seed in range(50):
        rates, _ = tensors(seed)
        assert pearson_per_cell(rates, rates * 3).max() <= 1


# --- repeats: the papers' formulas, cell by cell ----------------------------------


def repeated(
    seed: int, n_repeats: int = 5, n_bins: int = 120
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (N, 3) of a signal, and its noisy repeats (R, N, 3), float64."""
    random = np.random.default_rng(seed)
    signal = random.gamma(1.0, 12.0, (n_bins, 3))
    noise = random.normal(0, [2.0, 8.0, 10.0], (n_repeats, n_bins, 3))
    rates = signal * [1.0, 0.3, 2.0] + random.normal(0, 4, (n_bins, 3)) + 3
    return torch.tensor(rates), torch.tensor(signal + noise)


def power_of_signal(y: np.ndarray) -> float:
    """Signal power of responses (R, N): from the variance of their sum."""
    n = len(y)
    total = sum(y[i] for i in range(n))
    own = sum(statistics.variance(y[i].tolist()) for i in range(n))
    return (statistics.variance(total.tolist()) - own) / (n * (n - 1))


def largest(y: np.ndarray) -> float:
    """CC_max from signal and noise power, (1 + NP / (R SP))^(-1/2)."""
    power = power_of_signal(y)
    noise = float(np.mean([np.var(one, ddof=1) for one in y])) - power
    return 1 / math.sqrt(1 + noise / (len(y) * power))


def normalised(x: np.ndarray, y: np.ndarray) -> float:
    """CC_norm as CC_abs / CC_max."""
    mean = np.array([y[:, t].sum() / len(y) for t in range(y.shape[1])])
    return float(stats.pearsonr(x, mean).statistic) / largest(y)


def noise_of(y: np.ndarray) -> float:
    """Mean over time of the variance over repeats."""
    return statistics.fmean(statistics.variance(one.tolist()) for one in y.T)


def share(y: np.ndarray) -> float:
    """Explainable share of the variance of all responses."""
    total = statistics.variance(y.ravel().tolist())
    return (total - noise_of(y)) / total


def fev(x: np.ndarray, y: np.ndarray) -> float:
    """Cadena et al. (2019): 1 - (MSE - noise) / (variance - noise)."""
    errors = [(x[t] - one[t]) ** 2 for one in y for t in range(len(x))]
    noise = noise_of(y)
    total = statistics.variance(y.ravel().tolist())
    return 1 - (statistics.fmean(errors) - noise) / (total - noise)


REFERENCES: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., float]]] = {
    "signal power": (
        lambda x, y: metrics.signal_power(y),
        lambda x, y: power_of_signal(y),
    ),
    "cc_max": (lambda x, y: metrics.largest_correlation(y), lambda x, y: largest(y)),
    "cc_norm": (metrics.noise_corrected_correlation, normalised),
    "noise": (lambda x, y: metrics.noise_variance(y), lambda x, y: noise_of(y)),
    "explainable": (
        lambda x, y: metrics.explainable_fraction(y),
        lambda x, y: share(y),
    ),
    "fev": (metrics.explained_variance, fev),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("n_repeats", [2, 3, 7])
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_metrics_of_repeats_are_the_papers(
    name: str, n_repeats: int, seed: int
) -> None:
    """Each cell's value is that of the published formula, from two repeats on."""
    rates, repeats = repeated(seed, n_repeats)
    found, reference = REFERENCES[name]
    expected = [
        reference(rates[:, u].numpy(), repeats[:, :, u].numpy()) for u in range(3)
    ]
    values = found(rates, repeats)
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values, expected, **CLOSE)


def test_of_repeats_holds_each_under_its_name() -> None:
    """The names are `OF_REPEATS`, each with its own metric."""
    rates, repeats = repeated(0)
    found = of_repeats(rates, repeats)
    assert tuple(found) == OF_REPEATS
    for name in OF_REPEATS:
        assert torch.equal(found[name], REFERENCES[name][0](rates, repeats))


# --- repeats: limits --------------------------------------------------------------

SIGNAL, NOISE, ERROR = 4.0, 9.0, 3.0  # variances


@pytest.fixture(scope="module", params=[2, 8])
def gaussian(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A long Gaussian signal about 20, repeats with noise, and an imperfect model."""
    random = np.random.default_rng(0)
    n, n_repeats = 60_000, request.param
    signal = 20 + random.normal(0, SIGNAL**0.5, (n, 1))
    noise = random.normal(0, NOISE**0.5, (n_repeats, n, 1))
    model = signal + random.normal(0, ERROR**0.5, (n, 1))
    return {
        "n_repeats": n_repeats,
        "signal": torch.tensor(signal),
        "repeats": torch.tensor(signal + noise),
        "model": torch.tensor(model),
    }


def test_power_and_ceiling_of_gaussian_repeats(gaussian: dict[str, Any]) -> None:
    """The variances put in come out, and CC_max is √(S / (S + N/R))."""
    y, n = gaussian["repeats"], gaussian["n_repeats"]
    assert float(metrics.signal_power(y)) == pytest.approx(SIGNAL, rel=0.03)
    assert float(metrics.noise_variance(y)) == pytest.approx(NOISE, rel=0.03)
    share = SIGNAL / (SIGNAL + NOISE)
    assert float(metrics.explainable_fraction(y)) == pytest.approx(share, abs=0.01)
    ceiling = math.sqrt(SIGNAL / (SIGNAL + NOISE / n))
    assert float(metrics.largest_correlation(y)) == pytest.approx(ceiling, abs=0.01)


def test_the_signal_itself_reaches_the_ceiling(gaussian: dict[str, Any]) -> None:
    """CC_norm and FEV of the signal are 1, its r is CC_max."""
    x, y = gaussian["signal"], gaussian["repeats"]
    found = of_repeats(x, y)
    assert float(found["cc_norm"]) == pytest.approx(1, abs=0.01)
    assert float(found["fev"]) == pytest.approx(1, abs=0.01)
    r = float(pearson_per_cell(x, y.mean(0)))
    assert r == pytest.approx(float(found["cc_max"]), abs=0.01)


def test_the_mean_explains_nothing(gaussian: dict[str, Any]) -> None:
    """FEV of the mean response is 0; a wrong mean makes it negative."""
    y = gaussian["repeats"]
    mean = y.mean((0, 1)).expand(y.shape[1], 1)
    assert float(metrics.explained_variance(mean, y)) == pytest.approx(0, abs=1e-3)
    wrong = metrics.explained_variance(mean + 2 * SIGNAL**0.5, y)
    assert float(wrong) == pytest.approx(-4, rel=0.05)


def test_at_the_best_gain_and_offset_fev_is_cc_norm_squared(
    gaussian: dict[str, Any],
) -> None:
    """CC_norm with model error E is √(S / (S + E)); a wrong gain costs FEV only."""
    x, y = gaussian["model"], gaussian["repeats"]
    cc_norm = float(metrics.noise_corrected_correlation(x, y))
    assert cc_norm == pytest.approx(math.sqrt(SIGNAL / (SIGNAL + ERROR)), abs=0.01)
    line = stats.linregress(x[:, 0], y.mean(0)[:, 0])
    best = x * line.slope + line.intercept
    found = float(metrics.explained_variance(best, y))
    assert found == pytest.approx(cc_norm**2, abs=0.01)
    for gain, offset in ((0.5, 0.0), (1.5, 0.0), (1.0, 2.0)):
        worse = (best - 20) * gain + 20 + offset
        assert float(metrics.explained_variance(worse, y)) < found - 0.05


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.0), (1e-4, 0.0), (1e4, -50.0)])
def test_cc_norm_ignores_gain_and_offset(a: float, b: float) -> None:
    """A positive gain and an offset leave CC_norm; FEV they change."""
    rates, repeats = repeated(0)
    before, after = of_repeats(rates, repeats), of_repeats(a * rates + b, repeats)
    np.testing.assert_allclose(after["cc_norm"], before["cc_norm"], rtol=1e-9)
    assert (abs(after["fev"] - before["fev"]) > 0.01).all()
    opposite = metrics.noise_corrected_correlation(-a * rates + b, repeats)
    np.testing.assert_allclose(opposite, -before["cc_norm"], rtol=1e-9)


def test_cc_norm_and_fev_are_not_clipped() -> None:
    """A prediction nearer the repeats than their signal scores above 1."""
    rates, repeats = repeated(1)
    best = of_repeats(repeats.mean(0), repeats)
    assert (best["cc_norm"] > 1).all()
    assert (best["fev"] > 1).all()
    assert (of_repeats(rates * 100, repeats)["fev"] < -10).all()


# --- what a cell does not allow ---------------------------------------------------


def opposed(y: torch.Tensor) -> torch.Tensor:
    """Repeats whose every other one is the mirror of the one before."""
    mirrored = [one if n % 2 == 0 else 20 - y[n - 1] for n, one in enumerate(y)]
    return torch.stack(mirrored)


@pytest.mark.parametrize("spoil", [opposed, torch.zeros_like, torch.ones_like])
def test_a_cell_without_signal_has_no_value(
    spoil: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """No shared variance: CC_norm, CC_max and FEV are NaN; the others are untouched."""
    rates, repeats = repeated(2, 4)
    expected = of_repeats(rates, repeats)
    repeats[:, :, 1] = spoil(repeats[:, :, 1])
    found = of_repeats(rates, repeats)
    for name in ("cc_norm", "cc_max", "fev"):
        assert torch.isnan(found[name]).tolist() == [False, True, False], name
    assert torch.isnan(metrics.signal_power(repeats)).tolist() == [False, True, False]
    for name in OF_REPEATS:
        assert torch.equal(found[name][[0, 2]], expected[name][[0, 2]]), name


def test_noise_alone_is_hardly_explainable() -> None:
    """Of independent repeats about 0 is explainable, and half have SP ≤ 0: NaN."""
    random = np.random.default_rng(5)
    noise = torch.tensor(random.normal(0, 3, (5, 400, 200)))
    assert abs(metrics.explainable_fraction(noise)).max() < 0.15
    assert abs(metrics.explainable_fraction(noise).mean()) < 0.01
    assert 60 < int(torch.isnan(metrics.signal_power(noise)).sum()) < 140


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, 255.7])
def test_a_constant_prediction_correlates_with_nothing(value: float) -> None:
    """Its CC_norm is NaN, its FEV a number; the ceiling does not depend on it."""
    rates, repeats = (tensor.float() for tensor in repeated(3, n_bins=1037))
    expected = of_repeats(rates, repeats)
    rates[:, 1] = value
    found = of_repeats(rates, repeats)
    assert torch.isnan(found["cc_norm"]).tolist() == [False, True, False]
    assert torch.equal(found["cc_norm"][[0, 2]], expected["cc_norm"][[0, 2]])
    assert torch.isfinite(found["fev"]).all()
    assert found["fev"][1] < 0.01
    assert torch.equal(found["cc_max"], expected["cc_max"])


def test_float32_is_measured_in_float64() -> None:
    """Results are float64, those of the same numbers in float64, about large means."""
    rates, repeats = repeated(4)
    rates, repeats = (rates + 1e4).float(), (repeats + 1e4).float()
    expected = of_repeats(rates.double(), repeats.double())
    for name, found in of_repeats(rates, repeats).items():
        assert found.dtype == torch.float64
        assert torch.equal(found, expected[name]), name
    counts, mean = rates.round(), rates.mean(0)
    bits = metrics.bits_per_spike(rates, counts, mean, 0.01)
    double = (tensor.double() for tensor in (rates, counts, mean))
    assert bits.dtype == torch.float64
    assert torch.equal(bits, metrics.bits_per_spike(*double, 0.01))


# --- bits per spike ---------------------------------------------------------------


@pytest.mark.parametrize("dt_s", [0.01, 0.005])
@pytest.mark.parametrize("n_repeats", [1, 4])
@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_bits_are_a_difference_of_poisson_likelihoods(
    dt_s: float, n_repeats: int, seed: int
) -> None:
    """Against scipy: log likelihood beyond the mean rate, per spike, in bits."""
    random = np.random.default_rng(seed)
    rates = random.gamma(1.0, 20.0, (80, 3)) + 1
    rates[random.random((80, 3)) < 0.1] = [0.0]
    spikes = random.poisson((rates + 5) * dt_s, (n_repeats, 80, 3))
    spikes[0, 0] += 1
    base = random.uniform(5, 30, 3)
    likely = stats.poisson.logpmf(spikes, np.maximum(rates, 1e-3) * dt_s)
    usual = stats.poisson.logpmf(spikes, base * dt_s)
    expected = (likely - usual).sum((0, 1)) / spikes.sum((0, 1)) / math.log(2)
    counts = torch.tensor(spikes.mean(0))
    found = metrics.bits_per_spike(
        torch.tensor(rates), counts, torch.tensor(base), dt_s
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_bits_of_known_predictions() -> None:
    """The mean rate has 0 bits; half the time at twice the rate, else silent, has 1."""
    base = torch.tensor([10.0, 10.0])
    rates = torch.full((1000, 2), 10.0)
    rates[:500, 1], rates[500:, 1] = 20.0, 0.0
    counts = torch.zeros(1000, 2)
    counts[:500] = 0.2
    found = metrics.bits_per_spike(rates, counts, base, 0.01)
    assert float(found[0]) == 0
    assert float(found[1]) == pytest.approx(1, abs=1e-3)


def test_bits_of_the_true_rate_are_the_most() -> None:
    """Any gain but 1, and any offset, costs bits on Poisson spikes."""
    random = np.random.default_rng(0)
    truth = torch.tensor(random.gamma(1.0, 20.0, (50_000, 1)))
    counts = torch.tensor(random.poisson(truth * 0.01)).double()
    mean = truth.mean(0)

    def bits(rates: torch.Tensor) -> float:
        return float(metrics.bits_per_spike(rates, counts, mean, 0.01))

    best = bits(truth)
    assert best > 0.3
    assert all(bits(truth * gain) < best - 0.01 for gain in (0.7, 1.4))
    assert bits(truth + 10) < best - 0.01


@pytest.mark.parametrize("silent", ["test", "train"])
def test_a_silent_cell_has_no_bits(silent: str) -> None:
    """No spike in test, or in training: NaN for that cell; its r is 0."""
    rates, targets = tensors(6)
    counts, mean = targets / 100, targets.mean(0)
    expected = metrics.bits_per_spike(rates, counts, mean, 0.01)
    if silent == "test":
        counts[:, 1] = 0
        assert pearson_per_cell(rates, counts)[1] == 0
    else:
        mean[1] = 0
    found = metrics.bits_per_spike(rates, counts, mean, 0.01)
    assert torch.isnan(found).tolist() == [False, True, False]
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
