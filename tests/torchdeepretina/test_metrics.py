"""Metrics of predicted rates against scipy, and what is done with predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gridrun.errors import ConfigError
from torchdeepretina import analysis
from torchdeepretina.metrics import pearson_per_cell


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


# --- predictions ------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("offset", [0, 1])
def test_predictions_stand_beside_the_recorded_bins(
    recording: Path,
    retina_hyps: Callable[..., Any],
    build: Callable[..., Any],
    split: str,
    offset: int,
) -> None:
    """Targets are the recording's at the times given, rates the model's."""
    hyps = retina_hyps(recording, target_offset=offset, cells=[2, 0])
    keys = {"img_shape": [4, 8, 8], "chans": [3], "ksizes": [5, 4]}
    model = build("torchdeepretina", "VaryModel", 2, None, **keys).eval()
    found = analysis.predict(model, hyps, split)
    name = "test" if split == "test" else "train"
    with h5py.File(recording / "rec" / "movie.h5") as file:
        responses = file[f"{name}/response/firing_rate_10ms"][[0, 2]][::-1]
    bins = np.rint(found.time_s / 0.01).astype(int)
    np.testing.assert_array_equal(found.targets, responses[:, bins].T.astype("f4"))
    assert found.cells == (2, 0)
    assert found.rates.shape == found.targets.shape
    expected = [
        stats.pearsonr(found.rates[:, u], found.targets[:, u])[0] for u in (0, 1)
    ]
    np.testing.assert_allclose(found.pearson(), expected, atol=1e-5)


def test_binned_predictions_are_in_hz(
    recording: Path, retina_hyps: Callable[..., Any], build: Callable[..., Any]
) -> None:
    """Spikes per bin leave training as Hz: a hundredfold, in rates and targets."""
    keys = {"img_shape": [4, 8, 8], "chans": [3], "ksizes": [5, 4]}
    model = build("torchdeepretina", "VaryModel", 3, None, **keys).eval()
    binned, rate = (
        analysis.predict(model, retina_hyps(recording, response_type=kind), "test")
        for kind in ("binned", "firing_rate_10ms")
    )
    with h5py.File(recording / "rec" / "movie.h5") as file:
        counts = file["test/response/binned"][:, 4:].T
    np.testing.assert_allclose(binned.targets, counts * 100, rtol=1e-5)
    assert binned.rates.mean() == pytest.approx(100 * rate.rates.mean(), rel=0.2)


def test_an_unknown_split_is_refused(
    recording: Path, retina_hyps: Callable[..., Any]
) -> None:
    """Only train, val and test can be predicted."""
    with pytest.raises(ConfigError, match="split: expected train, val or test"):
        analysis.predict(torch.nn.Identity(), retina_hyps(recording), "validation")
