"""The retinotopic loop: its loss, what it records, and where it may be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gridrun.analysis.run import Run
from gridrun.config import complete
from gridrun.effects import check_effects
from gridrun.errors import ConfigError
from gridrun.plugins import libraries
from gridrun.request import read_request
from gridrun.training.data import Batch
from gridrun.training.extras import Extras
from torchdeepretina.trainer import RetinaTrainer

LIBRARY = libraries()["torchdeepretina"]
LOOP: dict[str, Any] = {
    "model_type": "RetinotopicModel",
    "train_loop": "retinotopic_loop",
    "bnorm_d": 2,
    "n_epochs": 1,
}
TERMS = ("semantic_term", "semantic_l1_term")
Build = Callable[..., Any]


@pytest.fixture
def hyps(recording: Path, retina_hyps: Build) -> Build:
    """Function (**keys) that gives a small configuration of the loop."""
    return lambda **keys: retina_hyps(recording, **{**LOOP, **keys})


def by_products(p: np.ndarray) -> float:
    """The semantic loss as it is written, summed over cells."""
    losses = []
    for row in p:
        others = [np.prod(1 - np.delete(row, i)) for i in range(len(row))]
        losses.append(-math.log(float(np.sum(row * others))))
    return sum(losses)


def probabilities(weight: Any) -> np.ndarray:
    """Of each position, from one-hot weights."""
    sizes = np.abs(np.asarray(weight, dtype=np.float64)) + 1e-7
    p: np.ndarray = sizes / sizes.sum(1, keepdims=True)
    return p


def entropy(weight: Any) -> float:
    """Mean entropy of the positions, in nats."""
    p = probabilities(weight)
    return float(-(p * np.log(p)).sum(1).mean())


# --- the loss ---------------------------------------------------------------------


@pytest.mark.parametrize("l1", [0.0, 0.3])
@pytest.mark.parametrize(("scale", "semantic_l1"), [(10.0, 0.7), (0.0, 0.7), (3.0, 0)])
@pytest.mark.parametrize("lossfxn", ["PoissonNLLLoss", "MSELoss"])
def test_loss_agrees_with_hand(
    hyps: Build, build: Build, lossfxn: str, scale: float, semantic_l1: float, l1: float
) -> None:
    """Criterion + l1 + scale x semantic loss + semantic_l1 x mean sum of |w|."""
    keys = {"semantic_scale": scale, "semantic_l1": semantic_l1, "l1": l1}
    shape = {"img_shape": [4, 8, 8], "chans": [3], "ksizes": [4, 3], "noise": 0.0}
    model: Any = build(
        "torchdeepretina", "RetinotopicModel", 3, rand_onehot=True, **shape
    ).double()
    with torch.no_grad():
        model.onehot.weight[::2] *= -1  # magnitudes count
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(6, 4, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.rand(6, 3, generator=generator, dtype=torch.float64) * 5
    own = hyps(lossfxn=lossfxn, **keys)
    run: Any = SimpleNamespace(model=model, hyps=own, extras=Extras())
    trainer: Any = RetinaTrainer(LIBRARY, [], SimpleNamespace())
    terms = trainer.retinotopic_objective(run, Batch(x, targets), x)

    w = model.onehot.weight.detach().numpy()
    maps = model.tiled_forward(x).detach().numpy().reshape(6, 3, -1)
    z, y = (maps * probabilities(w)).sum(2), targets.numpy()
    poisson = (z - y * np.log(z + 1e-8)).mean()
    expected = poisson if lossfxn == "PoissonNLLLoss" else ((z - y) ** 2).mean()
    expected += l1 * np.abs(z).sum(1).mean()
    semantic = scale * by_products(probabilities(w))
    size = semantic_l1 * np.abs(w).sum(1).mean()
    assert terms["loss"].item() == pytest.approx(expected + semantic + size, rel=1e-10)
    assert terms["semantic_term"].item() == pytest.approx(semantic, rel=1e-10)
    assert terms["semantic_l1_term"].item() == pytest.approx(size, rel=1e-12)
    assert set(terms) == {"loss", *TERMS} | ({"l1_term"} if l1 else set())
    terms["loss"].backward()
    assert torch.isfinite(model.onehot.weight.grad).all()


# --- what is recorded -------------------------------------------------------------


def test_terms_are_logged_in_this_loop_only(hyps: Build, train: Any) -> None:
    """They add to the training loss, not to the validation's, and have columns."""
    still = {"lr": 1e-12, "optimizer": "SGD", "noise": 0.0, "bnorm": False}
    keys = {"semantic_scale": 4.0, "semantic_l1": 0.5, "ksizes": [3, 3], **still}
    loop, plain = (
        train([hyps(train_loop=name, n_epochs=2, **keys)])[0].epochs.read()
        for name in ("retinotopic_loop", "train_loop")
    )
    n = 16  # places of a map of 4x4, all equally probable
    semantic = 4.0 * 3 * -(n - 1) * math.log(1 - 1 / n)
    for row, other in zip(loop, plain, strict=True):
        assert row["semantic_term"] == pytest.approx(semantic, rel=1e-5)
        assert row["semantic_l1_term"] == pytest.approx(0.5, rel=1e-5)
        added = row["semantic_term"] + row["semantic_l1_term"]
        assert row["loss"] == pytest.approx(other["loss"] + added, rel=1e-5)
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-6)
        assert row.keys() - other.keys() == set(TERMS)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("name", TERMS)
def test_a_term_may_be_monitored(hyps: Build, train: Any, name: str, mode: str) -> None:
    """The best epoch is that of its least or greatest value."""
    keys = {"ksizes": [3, 3], "rand_onehot": True, "semantic_l1": 0.1, "n_epochs": 3}
    (folder,) = train([hyps(monitor=f"{name}:{mode}", **keys)])
    values = [row[name] for row in folder.epochs.read()]
    assert len(set(values)) == 3
    best = min(values) if mode == "min" else max(values)
    assert folder.read()["best_epoch"] == values.index(best) + 1


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"monitor": "semantic_term"}, "say what is better"),
        ({"monitor": "semantic_term:min", "train_loop": "train_loop"}, "unknown"),
        ({"monitor": "semantic_l1_term:min", "train_loop": "train_loop"}, "unknown"),
    ],
)
def test_a_term_is_monitored_with_a_mode_and_in_the_loop(
    hyps: Build, keys: dict[str, Any], text: str
) -> None:
    """What is better is not said by its name; elsewhere it is unknown."""
    found, problems = complete({**hyps().model_dump(), **keys}, LIBRARY.schema)
    assert found is None
    assert [(key, text in message) for key, message in problems] == [("monitor", True)]


# --- what the keys do -------------------------------------------------------------


def test_a_large_semantic_scale_sharpens_the_places(hyps: Build, train: Any) -> None:
    """The entropy of p falls, and further than without the semantic loss."""
    keys = {"ksizes": [3, 3], "rand_onehot": True, "lr": 0.03, "n_epochs": 8}
    grid = [hyps(semantic_scale=scale, **keys) for scale in (1000.0, 0.0)]
    initial = torch.load(_untrained(grid[0], train), weights_only=True)
    before = entropy(initial["model_state_dict"]["onehot.weight"])
    sharp, free = (
        entropy(Run(folder.path).load_model("last").state_dict()["onehot.weight"])
        for folder in train(grid)
    )
    assert sharp < 0.7 * before
    assert sharp < 0.8 * free


def _untrained(hyps: Any, train: Any) -> Path:
    """The checkpoint of a run whose weights have not moved."""
    still = {"optimizer": "SGD", "lr": 1e-30, "n_epochs": 1}
    (folder,) = train([hyps.model_copy(update=still)])
    path: Path = folder.checkpoint_path(1)
    return path


CHANGES: list[dict[str, Any]] = [
    {"semantic_scale": 1.0},
    {"semantic_l1": 0.5},
    {"rand_onehot": True},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_keys_of_the_loop_act_in_it_alone(
    hyps: Build, train: Any, last_state: Any, same: Any, change: dict[str, Any]
) -> None:
    """Each changes the weights; the semantic ones change nothing in train_loop."""
    name = next(iter(change))
    for loop in ("retinotopic_loop", "train_loop"):
        keys = {"train_loop": loop, "ksizes": [3, 3], "n_epochs": 1}
        folders = train([hyps(**keys), hyps(**keys, **change)])
        states = [last_state(folder)["model_state_dict"] for folder in folders]
        acts = loop == "retinotopic_loop" or name == "rand_onehot"
        assert same(*states) is not acts


# --- where it may be used ---------------------------------------------------------


def test_the_loop_is_one_of_two() -> None:
    """Others are refused by name."""
    assert set(RetinaTrainer.loops) == {"train_loop", "retinotopic_loop"}


@pytest.mark.parametrize("name", sorted(set(LIBRARY.model_names)))
def test_only_the_retinotopic_model_has_the_loop(hyps: Build, name: str) -> None:
    """Other classes have no one-hot weights."""
    keys: dict[str, Any] = {"model_type": name, "chans": [3, 2], "ksizes": [3, 3, 2]}
    values = {**hyps().model_dump(), "n_layers": None, "stackconvs": True, **keys}
    found, problems = complete(values, LIBRARY.schema)
    if name == "RetinotopicModel":
        assert found is not None, problems
        return
    assert found is None
    ((key, text),) = problems
    assert key == "train_loop"
    assert "RetinotopicModel" in text
    assert name in text


def check_axis(model: str, loop: str, axis: str, values: list[Any]) -> None:
    """Plan a sweep of one key."""
    keys = {"exp_name": "test", "dataset": "d", "stim_type": "s", "batch_size": 9}
    keys |= {"n_epochs": 1, "lr": 0.1, "model_type": model, "train_loop": loop}
    request = read_request({**keys, "library": "torchdeepretina"}, {axis: values})
    check_effects(request, request.points())


@pytest.mark.parametrize(
    ("axis", "values"), [("semantic_scale", [1, 2]), ("semantic_l1", [0.0, 0.1])]
)
def test_semantic_keys_are_axes_of_the_loop_alone(axis: str, values: list[Any]) -> None:
    """Under train_loop they act on nothing, so a sweep of them is refused."""
    check_axis("RetinotopicModel", "retinotopic_loop", axis, values)
    with pytest.raises(ConfigError, match=f"{axis}: has no effect.*retinotopic_loop"):
        check_axis("RetinotopicModel", "train_loop", axis, values)


def test_rand_onehot_is_an_axis_of_its_model_alone() -> None:
    """In either loop; other models do not read it."""
    for loop in ("train_loop", "retinotopic_loop"):
        check_axis("RetinotopicModel", loop, "rand_onehot", [False, True])
    with pytest.raises(ConfigError, match="rand_onehot: has no effect: VaryModel"):
        check_axis("VaryModel", "train_loop", "rand_onehot", [False, True])
