"""Losses against numpy, and the output rule that decides what they are computed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gridrun.config import complete
from gridrun.plugins import libraries
from gridrun.training.losses import (
    class_loss,
    is_finite,
    l1_of_outputs,
    mean_squared_error,
    poisson_nll,
)
from torchdeepretina.trainer import RetinaTrainer, criterion

RANDOM = np.random.default_rng(0)
RATES = RANDOM.gamma(1.0, 3.0, (7, 4))
COUNTS = RANDOM.poisson(3.0, (7, 4)).astype(float)
LOGITS = RANDOM.normal(size=(7, 4))
LABELS = RANDOM.integers(0, 4, 7)


def value(loss: torch.Tensor) -> float:
    """A scalar loss as a number."""
    assert loss.shape == ()
    return float(loss)


def test_poisson_loss_of_rates() -> None:
    """Mean over samples and units of rate - y ln(rate + 1e-8)."""
    found = poisson_nll(torch.tensor(RATES), torch.tensor(COUNTS), log_rate=False)
    expected = np.mean(RATES - COUNTS * np.log(RATES + 1e-8))
    assert value(found) == pytest.approx(expected, rel=1e-12)


def test_poisson_loss_of_log_rates() -> None:
    """Mean over samples and units of e^z - y z."""
    found = poisson_nll(torch.tensor(LOGITS), torch.tensor(COUNTS), log_rate=True)
    assert value(found) == pytest.approx(
        np.mean(np.exp(LOGITS) - COUNTS * LOGITS), rel=1e-12
    )


def test_poisson_loss_is_finite_for_a_rate_of_zero() -> None:
    """A rate of zero with spikes costs much, but no infinity."""
    found = poisson_nll(torch.zeros(1, 1), torch.ones(1, 1), log_rate=False)
    assert value(found) == pytest.approx(-np.log(1e-8), rel=1e-6)


def test_squared_error() -> None:
    """Mean over samples and units of the squared difference."""
    found = mean_squared_error(torch.tensor(RATES), torch.tensor(COUNTS))
    assert value(found) == pytest.approx(np.mean((RATES - COUNTS) ** 2), rel=1e-12)


def test_l1_is_summed_over_units() -> None:
    """Batch mean of the sum over units of |z|."""
    expected = np.abs(LOGITS).sum(1).mean()
    assert value(l1_of_outputs(torch.tensor(LOGITS))) == pytest.approx(
        expected, rel=1e-12
    )


@given(st.integers(1, 5))
def test_l1_does_not_depend_on_duplicates(n_times: int) -> None:
    """Every sample taken n times gives the same term."""
    once = value(l1_of_outputs(torch.tensor(LOGITS)))
    often = value(l1_of_outputs(torch.tensor(np.repeat(LOGITS, n_times, 0))))
    assert often == pytest.approx(once, rel=1e-12)


def one_hot() -> np.ndarray:
    """Labels as rows of zeros and a one."""
    rows = np.zeros((7, 4))
    for row, label in zip(rows, LABELS, strict=True):
        row[label] = 1
    return rows


CLASS_LOSSES = {
    "CrossEntropyLoss": np.mean(
        np.log(np.exp(LOGITS).sum(1)) - (LOGITS * one_hot()).sum(1)
    ),
    "MSELoss": np.mean((LOGITS - one_hot()) ** 2),
    "PoissonNLLLoss": np.mean(np.exp(LOGITS) - one_hot() * LOGITS),
}


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_losses(name: str) -> None:
    """Cross entropy of labels; the others of one-hot targets, Poisson in log rates."""
    found = class_loss(name, torch.tensor(LOGITS), torch.tensor(LABELS))
    assert value(found) == pytest.approx(CLASS_LOSSES[name], rel=1e-12)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_losses_keep_float32(name: str) -> None:
    """One-hot targets take the type of the logits."""
    found = class_loss(name, torch.tensor(LOGITS).float(), torch.tensor(LABELS))
    assert found.dtype is torch.float32


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1.0, True), (float("nan"), False), (float("inf"), False), (-float("inf"), False)],
)
def test_is_finite(number: float, expected: bool) -> None:
    """NaN and both infinities are not finite."""
    assert is_finite(torch.tensor(number, requires_grad=True)) is expected


# --- the output rule --------------------------------------------------------------

Numbers = Callable[[np.ndarray], np.ndarray]


def softplus(raw: np.ndarray) -> np.ndarray:
    """ln(1 + e^raw)."""
    return np.log1p(np.exp(raw))


# loss, softplus, log_poisson: z, rate for unit gain
RULES: dict[tuple[str, bool, bool], tuple[Numbers, Numbers]] = {
    ("PoissonNLLLoss", True, False): (softplus, softplus),
    ("PoissonNLLLoss", False, True): (lambda raw: raw, np.exp),
    ("PoissonNLLLoss", True, True): (softplus, lambda raw: 1 + np.exp(raw)),
    ("MSELoss", True, False): (softplus, softplus),
    ("MSELoss", False, False): (lambda raw: raw, lambda raw: raw),
    ("MSELoss", True, True): (softplus, softplus),
    ("MSELoss", False, True): (lambda raw: raw, lambda raw: raw),
}
GAINS = np.array([2.0, 0.5, 30.0])
X = RANDOM.normal(size=(6, 2, 3, 3))
TARGETS = RANDOM.gamma(1.0, 2.0, (6, 3))


@pytest.fixture
def linear(build: Callable[..., Any]) -> Callable[..., Any]:
    """Function that builds a model of one linear layer, and gives it with raw."""

    def make(**keys: Any) -> tuple[Any, np.ndarray]:
        given = {"chans": [], "ksizes": [], "bnorm": False, "img_shape": [2, 3, 3]}
        model = build("torchdeepretina", "VaryModel", 3, **given, **keys).double()
        (layer,) = (m for m in model.modules() if isinstance(m, nn.Linear))
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        return model, X.reshape(6, -1) @ weight.T + bias

    return make


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_output_rule(
    linear: Callable[..., Any], rule: tuple[str, bool, bool], scaled: bool
) -> None:
    """z, rate and loss are the table's, times s (log rates + ln s) where asked."""
    lossfxn, is_softplus, log_poisson = rule
    model, raw = linear(
        lossfxn=lossfxn,
        softplus=is_softplus,
        log_poisson=log_poisson,
        output_scale="std" if scaled else "none",
    )
    gains = GAINS if scaled else np.ones(3)
    model.output_scale.copy_(torch.tensor(gains))
    z_of, rate_of = RULES[rule]
    rate = rate_of(raw) * gains
    if lossfxn == "MSELoss":
        loss = np.mean((rate - TARGETS) ** 2)
    elif log_poisson:
        loss = np.mean(rate - TARGETS * (z_of(raw) + np.log(gains)))
    else:
        loss = np.mean(rate - TARGETS * np.log(rate + 1e-8))
    for mode in (model.train, model.eval):
        mode()
        with torch.no_grad():
            z = model(torch.tensor(X))
            found = criterion(model, lossfxn, z, torch.tensor(TARGETS))
            np.testing.assert_allclose(z.numpy(), z_of(raw), rtol=1e-12)
            np.testing.assert_allclose(model.link(z).numpy(), rate, rtol=1e-12)
        assert value(found) == pytest.approx(loss, rel=1e-12)


def test_poisson_of_unbounded_outputs_is_refused() -> None:
    """Poisson without softplus and log_poisson is a config error that names keys."""
    values = {"exp_name": "a", "dataset": "a", "stim_type": "a", "batch_size": 2}
    values |= {"n_epochs": 1, "lr": 0.1, "model_type": "VaryModel", "softplus": False}
    _, problems = complete(values, libraries()["torchdeepretina"].schema)
    assert [key for key, _ in problems] == ["softplus"]
    assert "log_poisson true" in problems[0][1]


def test_the_scale_is_the_training_targets_deviation(
    linear: Callable[..., Any],
) -> None:
    """output_scale std is the s.d. with ddof 1 of each cell, 1 for a silent cell."""
    model, _ = linear(output_scale="std")
    targets = RANDOM.gamma(1.0, 5.0, (50, 3))
    targets[:, 1] = 0
    data: Any = SimpleNamespace(train=SimpleNamespace(targets=torch.tensor(targets)))
    RetinaTrainer.prepare_model(model, data)
    expected = [targets[:, 0].std(ddof=1), 1, targets[:, 2].std(ddof=1)]
    np.testing.assert_allclose(model.output_scale.numpy(), expected, rtol=1e-6)


def test_without_output_scale_the_scale_is_one(linear: Callable[..., Any]) -> None:
    """With none the buffer stays ones whatever the data."""
    model, _ = linear(output_scale="none")
    data: Any = SimpleNamespace(train=SimpleNamespace(targets=torch.tensor(TARGETS)))
    RetinaTrainer.prepare_model(model, data)
    assert model.output_scale.tolist() == [1, 1, 1]


def test_l1_uses_z_unscaled(
    recording: Path, retina_hyps: Callable[..., Any], train: Callable[..., Any]
) -> None:
    """The recorded l1 term at the first step does not change with output_scale."""
    keys: dict[str, Any] = {"l1": 3.0, "lr": 1e-12, "n_epochs": 1, "noise": 0.0}
    terms = [
        train([retina_hyps(recording, output_scale=scale, **keys)])[0].epochs.read()[0]
        for scale in ("none", "std")
    ]
    assert terms[0]["l1_term"] == pytest.approx(terms[1]["l1_term"], rel=1e-6)
    assert terms[0]["loss"] != pytest.approx(terms[1]["loss"], rel=1e-3)
