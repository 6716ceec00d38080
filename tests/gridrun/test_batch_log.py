"""Losses and gradients by the batch, and evaluations within an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gridrun.store import RunFolder
from gridrun.training.batch_log import gradient_norms
from gridrun.training.cohort import Interrupted


@pytest.fixture
def trained(
    image_set: Path, image_hyps: Callable[..., Any], train: Callable[..., Any]
) -> Callable[..., RunFolder]:
    """Function (**keys) that trains an image model and gives its folder."""

    def make(**keys: Any) -> RunFolder:
        (folder,) = train([image_hyps(image_set, **keys)])
        return folder

    return make


def test_batch_losses_average_to_the_epochs(trained: Callable[..., RunFolder]) -> None:
    """Weighted by samples, a row per step."""
    folder = trained(log_loss=True, batch_size=8, val_p=0.1)
    rows = folder.batches.read()
    for epoch in folder.epochs.read():
        own = [row for row in rows if row["epoch"] == epoch["epoch"]]
        assert [row["step"] for row in own] == list(range(1, len(own) + 1))
        sizes = [8] * (len(own) - 1)
        sizes.append(59 - sum(sizes))
        mean = sum(n * row["loss"] for n, row in zip(sizes, own, strict=True)) / 59
        assert mean == pytest.approx(epoch["loss"], rel=1e-6)


def test_gradient_norms_are_those_of_the_vectors() -> None:
    """Against numpy over all entries, by layer and in total."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    model(torch.randn(5, 3)).square().sum().backward()
    found = gradient_norms(model)
    squares = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        squares[name] = float((parameter.grad.numpy().astype(float) ** 2).sum())
    first = squares["0.weight"] + squares["0.bias"]
    assert float(found["grad_norm.0"]) == pytest.approx(first**0.5, rel=1e-12)
    assert float(found["grad_norm.2"]) == pytest.approx(
        squares["2.weight"] ** 0.5, rel=1e-12
    )
    total = sum(squares.values()) ** 0.5
    assert float(found["grad_norm"]) == pytest.approx(total, rel=1e-12)
    assert set(found) == {"grad_norm", "grad_norm.0", "grad_norm.2"}


def test_the_norm_is_that_before_clipping(trained: Callable[..., RunFolder]) -> None:
    """A tiny grad_clip does not show in the first batch."""
    free = trained(log_grad=True).batches.read()[0]
    clipped = trained(log_grad=True, grad_clip=1e-6).batches.read()[0]
    assert free == clipped
    assert free["grad_norm"] > 1e-3


def test_evaluations_are_evenly_spaced(trained: Callable[..., RunFolder]) -> None:
    """The last of an epoch is the epoch's own; the weights are as without."""
    folder = trained(log_frequency=3, batch_size=8)
    rows = folder.evaluations.read()
    n_steps = int(max(row["step"] for row in rows))
    spaced = [n_steps // 3, n_steps * 2 // 3, n_steps]
    assert [row["step"] for row in rows] == spaced * 3
    last = [row for row in rows if row["step"] == n_steps]
    for row, epoch in zip(last, folder.epochs.read(), strict=True):
        assert row["val_loss"] == epoch["val_loss"]
        assert row["val_acc"] == epoch["val_acc"]
    assert len({row["val_loss"] for row in rows}) > 3
    plain = trained(batch_size=8)
    assert not plain.evaluations.path.exists()
    states = [
        torch.load(one.checkpoint_path(3), weights_only=True)["model_state_dict"]
        for one in (folder, plain)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("n_steps", [0, 3, 8])
def test_an_interrupted_run_logs_every_batch_once(
    image_set: Path,
    image_hyps: Callable[..., Any],
    train: Callable[..., Any],
    make_folder: Callable[..., RunFolder],
    n_steps: int,
) -> None:
    """What was logged of the epoch under way is dropped with it."""
    keys = {"log_loss": True, "log_grad": True, "log_frequency": 2, "batch_size": 16}
    hyps = image_hyps(image_set, **keys)
    (whole,) = train([hyps])
    half, n_asked = make_folder(hyps), [0]

    def should_stop() -> bool:
        n_asked[0] += 1
        return n_asked[0] > n_steps

    with pytest.raises(Interrupted):
        train([hyps], [half], should_stop)
    train([hyps], [half])
    assert half.batches.read() == whole.batches.read()
    assert half.evaluations.read() == whole.evaluations.read()
