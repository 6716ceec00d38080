"""Diagnostics: against independent references, on the libraries' models, as files."""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import inspect
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import gridrun.diagnostics
from gridrun.diagnostics import (
    DIAGNOSTICS,
    Context,
    NotApplicable,
    Schedule,
    diagnostic_problems,
    load_diagnostic,
    save_result,
    storage,
)
from gridrun.diagnostics.eigen import largest_eigenvalues
from gridrun.diagnostics.filters import effective_weights, separated
from gridrun.diagnostics.hessian import hessian_product
from gridrun.errors import ConfigError
from gridrun.nn import LinearStackedConv2d
from gridrun.training.data import Batch

FIGURES = {
    "latent_pca",
    "predictions",
    "jacobian",
    "perturbation",
    "first_filters",
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Seeded normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def seeded(model: nn.Module, seed: int = 1, scale: float = 0.7) -> nn.Module:
    """A model in eval mode whose parameters are all seeded normal numbers, float64."""
    model = model.double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(scale * normal(*parameter.shape, seed=seed + i))
    return model


def context_of(
    model: nn.Module,
    batch: Batch,
    criterion: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    seed: int = 0,
) -> Context:
    """A context whose predictions are the model's output."""
    hyps: Any = None
    return Context(
        epoch=5,
        hyps=hyps,
        loss=lambda one: criterion(one(batch.inputs), batch.targets),
        predict=model,
        generator=torch.Generator().manual_seed(seed),
    )


def found_by(name: str, model: nn.Module, batch: Batch, **args: Any) -> dict[str, Any]:
    """What a diagnostic finds."""
    is_class = not batch.targets.is_floating_point()
    criterion = F.cross_entropy if is_class else F.mse_loss
    context = context_of(model, batch, criterion)
    return dict(load_diagnostic(name)(model, batch, context, **args))


def mlp() -> nn.Module:
    """5 inputs, 6 and 4 hidden units, 3 outputs; curved everywhere."""
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Softplus()]
    return seeded(nn.Sequential(*layers, nn.Linear(4, 3)))


def regression(n: int = 24) -> Batch:
    """Samples for `mlp`."""
    return Batch(normal(n, 5, seed=3), normal(n, 3, seed=4), torch.float64)


# --- the registry -------------------------------------------------------------------


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_signatures(name: str) -> None:
    """All take model, batch and context, and the rest by keyword, with defaults."""
    function = load_diagnostic(name)
    parameters = list(inspect.signature(function).parameters.values())
    assert [p.name for p in parameters[:3]] == ["model", "batch", "context"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[3:])
    defaults = {p.name: p.default for p in parameters[3:]}
    as_json = json.loads(json.dumps(defaults))
    assert not diagnostic_problems({"name": name, "args": as_json})


def test_importing_and_checking_load_no_torch() -> None:
    """A configuration whose diagnostics have no arguments is checked at once."""
    script = (
        "import sys, gridrun.diagnostics as d\n"
        "assert d.diagnostic_problems({'name': 'hessian', 'every': 2}) == []\n"
        "assert d.diagnostic_problems('hesian')\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def user_diagnostic(
    model: nn.Module, batch: Batch, context: Context, size: int, label: str = "x"
) -> dict[str, float]:
    """As in a plug-in file."""
    return {label: float(size)}


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("hesian", ["hesian", "did you mean 'hessian'", "known:", "weight_norms"]),
        ("zzz", ["unknown diagnostic 'zzz'", "known:", "weight_norms", "mine"]),
        (3, ["expected a name or an object", "got 3"]),
        ({"every": 2}, ["expected a name or an object"]),
        ({"name": "hessian", "evry": 1}, ["hessian: unknown field 'evry'", "every"]),
        ({"name": "hessian", "every": 0}, ["hessian: every", "≥ 1", "got 0"]),
        ({"name": "hessian", "every": True}, ["every", "got true"]),
        ({"name": "hessian", "every": 1.5}, ["every", "got 1.5"]),
        ({"name": "hessian", "at": "end"}, ["at", "epoch_end or run_end", '"end"']),
        ({"name": "hessian", "args": [1]}, ["args: expected an object", "[1]"]),
        ({"name": "hessian", "args": {"width": 2}}, ["'width'", "known: k, n_steps"]),
        ({"name": "hessian", "args": {"k": 0}}, ["args: k", "integer ≥ 1", "got 0"]),
        ({"name": "hessian", "args": {"k": "2"}}, ["args: k", 'got "2"']),
        ({"name": "hessian", "args": {"tolerance": 0}}, ["tolerance", "> 0"]),
        ({"name": "perturbation", "args": {"sizes": []}}, ["sizes", "a list"]),
        ({"name": "perturbation", "args": {"sizes": [-1]}}, ["sizes", "> 0"]),
        ({"name": "latent_pca", "args": {"layer": 3}}, ["layer", "text", "got 3"]),
        ({"name": "first_filters", "args": {"channels": "x"}}, ["channels", "colour"]),
        ({"name": "weight_norms", "args": {"k": 1}}, ["'k'", "takes none"]),
        ("mine", ["mine: args: size is required"]),
        ({"name": "mine", "args": {"size": "a"}}, ["size", "an integer"]),
        ({"name": "mine", "args": {"size": 1, "labl": "a"}}, ["did you mean 'label'"]),
        ("short", ["short: its function must take (model, batch, context)"]),
    ],
)
def test_problems_of_an_entry(entry: Any, parts: list[str]) -> None:
    """One problem, which names what was found and what was expected."""
    extra: dict[str, Any] = {"mine": user_diagnostic, "short": lambda model: {}}
    (problem,) = diagnostic_problems(entry, extra)
    assert all(part in problem for part in parts), problem


def test_sound_entries() -> None:
    """Names, whole objects, a user's functions, also those that take anything."""
    extra: dict[str, Any] = {
        "mine": user_diagnostic,
        "any": lambda model, batch, context, **args: args,
    }
    for entry in [
        "hessian",
        {"name": "jacobian", "every": 1, "at": "run_end", "args": {"k": 3}},
        {"name": "perturbation", "args": {"sizes": [1, 0.5]}},
        {"name": "mine", "args": {"size": 2}},
        {"name": "any", "args": {"whatever": None}},
    ]:
        assert not diagnostic_problems(entry, extra)
    assert load_diagnostic("mine", extra) is user_diagnostic
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        load_diagnostic("min", extra)


def test_several_problems_are_told_together() -> None:
    """Each wrong field of an entry is a line."""
    entry = {"name": "hessian", "every": 0, "at": 1, "args": {"k": 0, "x": 1}}
    assert len(diagnostic_problems(entry)) == 4


def test_schedule() -> None:
    """Every N epochs, or at the end of the run."""
    assert Schedule.of("hessian") == Schedule("hessian", 5, "epoch_end", {})
    entry = {"name": "hessian", "every": 3, "args": {"k": 2}}
    assert [e for e in range(1, 10) if Schedule.of(entry).is_due(e)] == [3, 6, 9]
    assert Schedule.of(entry).args == {"k": 2}
    late = Schedule.of({"name": "hessian", "every": 3, "at": "run_end"})
    assert not any(late.is_due(epoch) for epoch in range(1, 10))


# --- norms --------------------------------------------------------------------------


def test_weight_norms() -> None:
    """The root of the sum of squares of each parameter, and of all."""
    model = mlp()
    found = found_by("weight_norms", model, regression())
    arrays = {name: p.detach().numpy() for name, p in model.named_parameters()}
    for name, array in arrays.items():
        assert found[name] == pytest.approx(np.sqrt((array**2).sum()))
    everything = np.concatenate([array.ravel() for array in arrays.values()])
    assert found["total"] == pytest.approx(np.linalg.norm(everything))
    assert set(found) == {*arrays, "total"}


def test_gradient_norms() -> None:
    """As from backward(); 0 of what is not used; frozen parameters are left out."""
    model, batch = mlp(), regression()
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    first: Any = model.get_submodule("0")
    first.bias.requires_grad_(False)
    found = found_by("gradient_norms", model, batch)
    assert all(p.grad is None for p in model.parameters())
    F.mse_loss(model(batch.inputs), batch.targets).backward()  # type: ignore[no-untyped-call]
    squares = 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            square = float((parameter.grad**2).sum())
            assert found[name] == pytest.approx(square**0.5)
            squares += square
    assert found["unused"] == 0
    assert "0.bias" not in found
    assert found["total"] == pytest.approx(squares**0.5)


# --- activations --------------------------------------------------------------------


class WithFunctions(nn.Module):
    """ReLU as a function, and as a module that works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.second = nn.Conv2d(4, 3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(3 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 2) of (B, 1, 8, 8)."""
        y = self.relu(self.second(self.first(x).relu()))
        logits: Tensor = self.last(self.dropout(y).flatten(1))
        return logits


def test_activations_and_dead_units() -> None:
    """Units that never fire are counted, behind functions and in-place layers too."""
    model: Any = seeded(WithFunctions())
    with torch.no_grad():
        model.first.bias[:2] = -1e3  # 2 of 4 channels never fire
        model.second.bias[1] = -1e6
    batch = Batch(normal(6, 1, 8, 8), torch.zeros(6).long(), torch.float64)
    found = found_by("activations", model, batch)
    with torch.no_grad():
        first = model.first(batch.inputs)
        second = model.second(first.relu())
        places = {
            "first": first,
            "input of second": first.relu(),
            "second": second,
            "relu": second.clamp(min=0),
            "last": model(batch.inputs),
        }
    n_dead = {"input of second": 2.0, "relu": 1.0}
    assert {key.partition("/")[0] for key in found} == set(places)
    for name, tensor in places.items():
        array = tensor.numpy()
        assert found[f"{name}/mean"] == pytest.approx(array.mean())
        assert found[f"{name}/sd"] == pytest.approx(array.std())
        assert found[f"{name}/zeros"] == pytest.approx((array == 0).mean())
        assert found[f"{name}/n_units"] == array.shape[1]
        assert found[f"{name}/n_dead"] == n_dead.get(name, 0.0)
    assert 0.5 < found["input of second/zeros"] < 1


def test_a_unit_that_fires_once_is_not_dead() -> None:
    """One sample and one place are enough."""
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    x = -torch.ones(5, 3, 4, 4)
    x[4, 1, 3, 2] = 1.0
    found = found_by("activations", model, Batch(x, torch.zeros(5)))
    assert found["1/n_dead"] == 2
    assert found["1/zeros"] == pytest.approx(1 - 1 / x.numel())
    assert not any(key.startswith(("0/", "input", "output")) for key in found)


def test_units_of_linear_layers_are_last() -> None:
    """Of (B, 1, L) too, and behind what leaves the units where they are."""
    first, last = nn.Linear(5, 6), nn.Linear(6, 3)
    layers = [first, nn.ReLU(inplace=True), nn.LayerNorm(6), last, nn.Tanh()]
    model = seeded(nn.Sequential(*layers))
    with torch.no_grad():
        first.bias.fill_(1e3)
        first.bias[1:3] = -1e3
    batch = Batch(normal(4, 1, 5), normal(4, 1, 3), torch.float64)
    found = found_by("activations", model, batch)
    n_units = {"0": 6, "1": 6, "2": 6, "3": 3, "4": 3}
    assert {k: found[f"{k}/n_units"] for k in n_units} == n_units
    assert found["1/n_dead"] == 2
    mixed = seeded(nn.Sequential(nn.Conv1d(2, 4, 1), nn.Linear(5, 6), nn.Flatten()))
    found = found_by("activations", mixed, Batch(normal(3, 2, 5), normal(3, 24)))
    assert (found["0/n_units"], found["1/n_units"]) == (4, 6)


# --- principal components -----------------------------------------------------------


def test_latent_pca_against_the_covariance() -> None:
    """Ratios are those of the covariance matrix' eigenvalues; so are the scores."""
    model, batch = mlp(), regression(40)
    found = found_by("latent_pca", model, batch, n_components=3)
    with torch.no_grad():
        hidden = model.get_submodule("2")(
            torch.tanh(model.get_submodule("0")(batch.inputs))
        )
        x = F.softplus(hidden).numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    ratios = values / values.sum()
    np.testing.assert_allclose(found["explained_variance_ratios"], ratios[:3])
    assert found["participation_ratio"] == pytest.approx(
        values.sum() ** 2 / (values**2).sum()
    )
    points = found["figure"].axes[0].collections[0].get_offsets()
    scores = (x - x.mean(0)) @ vectors[:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(scores), atol=1e-12)


def test_latent_pca_of_a_named_layer() -> None:
    """Its output is taken; a name that is none is answered by a suggestion."""
    model, batch = mlp(), regression()
    found = found_by("latent_pca", model, batch, layer="0")
    with torch.no_grad():
        x = model.get_submodule("0")(batch.inputs).numpy()
    sizes = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    ratios = found["explained_variance_ratios"]
    np.testing.assert_allclose(ratios, sizes / sizes.sum(), atol=1e-14)
    with pytest.raises(NotApplicable, match=r"no layer '9'.*known: 0, 1, 2"):
        found_by("latent_pca", model, batch, layer="9")


def test_latent_pca_before_a_layer_that_works_in_place() -> None:
    """A named layer's output is what it was before the next layer changed it."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    found = found_by("latent_pca", seeded(model), regression(), layer="0")
    assert len(found["explained_variance_ratios"]) == 6
    assert found["explained_variance_ratios"][5] < 1e-20  # 5 inputs, so a plane of 5


def test_latent_pca_where_there_is_nothing_to_see() -> None:
    """One linear map, or one sample, is an error; a silent layer is not."""
    with pytest.raises(NotApplicable, match="no hidden layer"):
        found_by("latent_pca", seeded(nn.Sequential(nn.Linear(5, 3))), regression())
    with pytest.raises(NotApplicable, match="2 samples"):
        found_by("latent_pca", mlp(), regression(1))
    model = mlp()
    with torch.no_grad():
        model.get_submodule("2").weight.zero_()  # type: ignore[operator]
    found = found_by("latent_pca", model, regression())
    assert (found["explained_variance_ratios"] == 0).all()


def test_few_points_are_large() -> None:
    """Clouds of few samples are seen, those of many stay clouds."""
    widths = []
    for n in (4, 2000):
        found = found_by("latent_pca", mlp(), regression(n))
        widths.append(float(found["figure"].axes[0].collections[0].get_sizes()[0]))
        axis = found_by("predictions", mlp(), regression(n))["figure"].axes[0]
        widths.append(axis.lines[0].get_markersize())
        assert axis.lines[0].get_marker() == "o"
    assert widths[0] > 40 > 20 > widths[2]
    assert widths[1] > 5 > 3 > widths[3]


def test_ticks_of_classes_are_whole_numbers() -> None:
    """In the colours of many classes, in large confusion pictures, of one unit."""
    labels = torch.arange(40)
    batch = Batch(normal(40, 5), labels, torch.float64)
    pca = found_by("latent_pca", mlp(), batch, n_components=1)["figure"]
    logits = Batch(normal(40, 40), labels, torch.float64)
    confusion = found_by("predictions", nn.Identity(), logits)["figure"]
    rows = found_by("first_filters", seeded(nn.Linear(2, 1)), batch)["figure"]
    for figure in (pca, confusion, rows):
        figure.savefig(io.BytesIO(), format="png")
    scale, spectrum = pca.axes[2].yaxis, pca.axes[1].xaxis
    (matrix, _), (weights, _) = confusion.axes, rows.axes
    for axis in (scale, spectrum, matrix.xaxis, matrix.yaxis, weights.yaxis):
        places = axis.get_majorticklocs()
        assert len(places)
        assert (places == places.round()).all(), places


# --- predictions --------------------------------------------------------------------


def test_predictions_of_continuous_targets() -> None:
    """mse, and the share of variance around each unit's own mean."""
    model, batch = mlp(), regression()
    found = found_by("predictions", model, batch, n_shown=2)
    y, t = model(batch.inputs).detach().numpy(), batch.targets.numpy()
    assert found["mse"] == pytest.approx(((y - t) ** 2).mean())
    spread = sum(((t[:, u] - t[:, u].mean()) ** 2).sum() for u in range(3))
    assert found["r2"] == pytest.approx(1 - ((y - t) ** 2).sum() / spread)
    assert len(found["figure"].axes) == 2


def test_predictions_of_classes() -> None:
    """Counts of true class by row and predicted class by column."""
    logits = torch.eye(3)[[0, 1, 1, 2, 0, 2]]
    labels = torch.tensor([0, 1, 0, 2, 0, 1])
    maps = logits.repeat(2, 1)[:, :, None]  # a place each, the second half left out
    places = torch.cat([labels, torch.full((6,), -100)])[:, None]
    found = found_by("predictions", nn.Identity(), Batch(logits, labels))
    assert found["acc"] == pytest.approx(4 / 6)
    assert found["confusion"].tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    again = found_by("predictions", nn.Identity(), Batch(maps, places))
    assert again["confusion"].tolist() == found["confusion"].tolist()


def test_predictions_of_one_logit() -> None:
    """A single output is a number, also beside integer targets."""
    batch = Batch(torch.tensor([[0.5], [1.0]]), torch.tensor([0, 1]))
    context = context_of(nn.Identity(), batch)
    found = load_diagnostic("predictions")(nn.Identity(), batch, context)
    assert found["mse"] == pytest.approx(0.125)


@pytest.mark.parametrize("n_chans", [1, 3, 4])
def test_predictions_of_pictures(n_chans: int) -> None:
    """Three rows of pictures: input, prediction, target."""
    model = seeded(nn.Conv2d(n_chans, n_chans, 1, bias=False))
    x, t = normal(4, n_chans, 6, 6), normal(4, n_chans, 6, 6, seed=9)
    y = model(x).detach()
    found = found_by("predictions", model, Batch(x, t), n_shown=2)
    assert found["mse"] == pytest.approx(float((y - t).square().mean()))
    assert found["mse_of_inputs"] == pytest.approx(float((x - t).square().mean()))
    pictures = [a.images[0].get_array() for a in found["figure"].axes if a.images]
    assert len(pictures[:6]) == 6
    if n_chans != 3:
        shown = [x[1, 0], y[1, 0], t[1, 0]]
        for picture, expected in zip(pictures[1:6:2], shown, strict=True):
            np.testing.assert_allclose(picture, expected.numpy())


def test_predictions_that_fit_no_targets() -> None:
    """Shapes are named."""
    batch = Batch(normal(4, 5), normal(4, 2), torch.float64)
    with pytest.raises(NotApplicable, match=r"\(4, 3\), but targets are \(4, 2\)"):
        found_by("predictions", mlp(), batch)


# --- Jacobian -----------------------------------------------------------------------


def test_jacobian_against_autograd_and_finite_differences() -> None:
    """Singular values of each sample's own matrix, made in two other ways."""
    model, batch = mlp(), regression()
    found = found_by("jacobian", model, batch, n_samples=3, k=2)
    values = found["singular_values"]
    assert values.shape == (3, 2)
    assert found["largest"] == pytest.approx(values[:, 0].mean())
    for x, own in zip(batch.inputs, values, strict=False):
        dense = torch.autograd.functional.jacobian(model, x)  # type: ignore[no-untyped-call]
        np.testing.assert_allclose(own, torch.linalg.svdvals(dense)[:2], rtol=1e-10)
        steps = 1e-5 * torch.eye(5, dtype=torch.float64)
        with torch.no_grad():
            columns = [(model(x + step) - model(x - step)) / 2e-5 for step in steps]
        differences = torch.linalg.svdvals(torch.stack(columns, 1))[:2]
        np.testing.assert_allclose(own, differences, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jacobian_without_the_matrix(dtype: torch.dtype) -> None:
    """Lanczos gives what the matrix gives, for wide and for tall ones."""
    layers = [nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 50)]
    model = seeded(nn.Sequential(*layers), scale=0.2).to(dtype)
    batch = Batch(normal(3, 30, dtype=dtype), normal(3, 50, dtype=dtype), dtype)
    exact = found_by("jacobian", model, batch, n_samples=2, k=6)
    found = found_by("jacobian", model, batch, n_samples=2, k=6, max_outputs=1)
    assert exact["n_converged"] == found["n_converged"] == 6
    np.testing.assert_allclose(
        found["singular_values"], exact["singular_values"], rtol=1e-4
    )
    all_ranks = found_by("jacobian", model, batch, k=99, max_outputs=1)
    assert all_ranks["singular_values"].shape == (3, 30)


def test_jacobian_of_predictions_without_derivative() -> None:
    """Rounded predictions have none."""
    batch = regression()
    context = context_of(mlp(), batch)
    vague = Context(
        5, context.hyps, context.loss, torch.no_grad()(mlp()), context.generator
    )
    with pytest.raises(NotApplicable, match="no derivative"):
        load_diagnostic("jacobian")(mlp(), batch, vague)


# --- Hessian ------------------------------------------------------------------------


def dense_hessian(model: nn.Module, batch: Batch) -> Tensor:
    """(P, P), by torch.func, in the order of the model's parameters."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [shape.numel() for shape in shapes.values()])
        named = {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        output = torch.func.functional_call(model, named, batch.inputs)
        return F.mse_loss(output, batch.targets)

    dense: Tensor = torch.func.jacrev(torch.func.jacrev(loss))(flat)
    return dense


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-3)]
)
def test_hessian_against_the_dense_one(dtype: torch.dtype, rtol: float) -> None:
    """Signed eigenvalues, largest magnitude first, some of them negative."""
    model, batch = mlp(), regression(8)
    expected = torch.linalg.eigvalsh(dense_hessian(model, batch)).numpy()
    expected = expected[np.argsort(-np.abs(expected))]
    assert (expected[:8] < 0).any()
    assert (expected[:8] > 0).any()
    own = Batch(batch.inputs.to(dtype), batch.targets.to(dtype), dtype)
    found = found_by("hessian", model.to(dtype), own, k=8, tolerance=1e-4)
    np.testing.assert_allclose(found["eigenvalues"], expected[:8], rtol=rtol)
    assert found["largest"] == found["eigenvalues"][0]
    assert found["n_converged"] == 8
    assert found["is_complete"] == 1


def test_hessian_of_what_is_trainable_only() -> None:
    """Frozen parameters have no row; all eigenvalues may be asked for."""
    model, batch = mlp(), regression(8)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("4."))
    found = found_by("hessian", model, batch, k=99)
    rows = dense_hessian(model, batch)[-15:, -15:]
    expected = torch.linalg.eigvalsh(rows).numpy()
    np.testing.assert_allclose(np.sort(found["eigenvalues"]), expected, atol=1e-12)


def test_hessian_that_is_stopped_early() -> None:
    """What has not converged is said, and each value is as near as its residual."""
    model, batch = mlp(), regression(8)
    found = found_by("hessian", model, batch, k=5, n_steps=8)
    assert found["n_steps"] == 8
    assert found["is_complete"] == 0
    assert found["n_converged"] < 5
    expected = torch.linalg.eigvalsh(dense_hessian(model, batch)).numpy()
    for value, residual in zip(found["eigenvalues"], found["residuals"], strict=True):
        assert np.abs(expected - value).min() <= residual
    assert found["residuals"].max() > 1e-3


def test_hessian_without_curvature_or_meaning() -> None:
    """0 of a linear loss; an error where nothing is trainable or finite."""
    model, batch = mlp(), regression()
    context = context_of(model, batch, lambda y, t: (y * t).sum())
    linear = seeded(nn.Sequential(nn.Linear(5, 3)))
    found = load_diagnostic("hessian")(linear, batch, context)
    assert not found["eigenvalues"].any()
    with pytest.raises(NotApplicable, match="no parameter is trainable"):
        found_by("hessian", nn.Identity(), Batch(normal(3, 2), normal(3, 2)))
    batch.inputs[0] = np.nan
    with pytest.raises(NotApplicable, match="not finite"):
        found_by("hessian", model, batch)


SPECTRA = {
    "both signs alike": [5.0, -5.0, 4.9, -4.9, *np.linspace(-3, 3, 300)],
    "multiple": [5.0, 5.0, 5.0, -2.0, -2.0, 1.5, *np.linspace(-0.5, 0.5, 500)],
    "few": [3.0, -1.0, 0.5, *[0.0] * 400],
    "decaying": list(10.0 ** -np.arange(60)),
    "one value": [2.0] * 40,
    "zero": [0.0] * 30,
    "small": [1.0, -2.0],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_of_difficult_spectra(name: str, dtype: torch.dtype) -> None:
    """Multiple, opposite and vanishing eigenvalues come as often as they occur."""
    spectrum = np.array(SPECTRA[name])
    rotation, _ = torch.linalg.qr(normal(len(spectrum), len(spectrum)))
    matrix = (rotation * torch.from_numpy(spectrum) @ rotation.T).to(dtype)
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(
        torch.randn, len(spectrum), generator=generator, dtype=dtype
    )
    calls = []

    def apply(vector: Tensor) -> Tensor:
        calls.append(vector)
        return torch.mv(matrix, vector)

    found = largest_eigenvalues(apply, draw, 5, 1000, 1e-4)
    expected = spectrum[np.argsort(-np.abs(spectrum), kind="stable")][:5]
    eps = torch.finfo(dtype).eps
    np.testing.assert_allclose(
        np.sort(found.values), np.sort(expected), rtol=1e-4, atol=1e3 * eps
    )
    assert (np.diff(np.abs(found.values)) <= 0).all()
    assert found.is_complete
    assert found.n_converged == len(expected)
    assert found.n_steps == len(calls) <= 400


# --- perturbation -------------------------------------------------------------------


def test_perturbation_of_a_linear_model() -> None:
    """|Wn| / |Wx| for noise from the context's generator, in the inputs' s.d."""
    model: Any = seeded(nn.Linear(5, 3, bias=False))
    x = 3 * normal(50, 5, seed=3) + 1
    batch = Batch(x, normal(50, 3), torch.float64)
    found = found_by("perturbation", model, batch, sizes=[0.1, 2.0])
    noise = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    w = model.weight.detach().numpy()
    for size in (0.1, 2.0):
        n = size * x.numpy().std() * noise.double().numpy()
        change = np.linalg.norm(n @ w.T) / np.linalg.norm(x.numpy() @ w.T)
        assert found[f"change_{size:g}"] == pytest.approx(change)
    assert found["change_2"] == pytest.approx(20 * found["change_0.1"])
    assert not any(key.startswith("flipped") for key in found)


def test_perturbation_of_classes() -> None:
    """The share of samples whose largest output is another."""
    x = normal(30, 2, seed=3, dtype=torch.float32)
    batch = Batch(x, torch.zeros(30, dtype=torch.long))
    found = found_by("perturbation", nn.Identity(), batch, sizes=[0.001, 1.0])
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    for size in (0.001, 1.0):
        after = x + size * x.std(correction=0) * noise
        flips = (after.argmax(1) != x.argmax(1)).float().mean()
        assert found[f"flipped_{size:g}"] == pytest.approx(float(flips))
    assert found["flipped_0.001"] == 0 < found["flipped_1"]


@pytest.mark.parametrize("name", ["jacobian", "perturbation"])
def test_integer_inputs(name: str) -> None:
    """Token numbers have neither derivative nor noise."""
    batch = Batch(torch.arange(4), torch.zeros(4))
    with pytest.raises(NotApplicable, match=f"{name}: inputs are integers"):
        found_by(name, nn.Embedding(4, 2), batch)


def test_perturbation_of_equal_inputs() -> None:
    """Noise has no scale there."""
    with pytest.raises(NotApplicable, match="all inputs are equal"):
        found_by("perturbation", mlp(), Batch(torch.ones(4, 5).double(), normal(4, 3)))


# --- filters ------------------------------------------------------------------------


def impulse_response(layer: nn.Module, n_chans: int, ksize: int) -> Tensor:
    """(O, C, k, k): what a layer answers to one lit pixel, pixel by pixel."""
    found = []
    with torch.no_grad():
        silence = layer(torch.zeros(1, n_chans, ksize, ksize).double())
        for channel in range(n_chans):
            for row in range(ksize):
                for column in range(ksize):
                    x = torch.zeros(1, n_chans, ksize, ksize).double()
                    x[0, channel, row, column] = 1
                    found.append((layer(x) - silence)[0, :, 0, 0])
    return torch.stack(found, 1).view(-1, n_chans, ksize, ksize)


@pytest.mark.parametrize("ksize", [3, 4, 7])
def test_filters_are_impulse_responses(ksize: int) -> None:
    """Of single convolutions, and of stacks with biases on every level."""
    stack = seeded(LinearStackedConv2d(3, 4, ksize, inner_bias=True))
    single = seeded(nn.Conv2d(3, 4, ksize))
    for layer in (stack, single):
        weights = effective_weights(layer, (3, 9, 9)).detach()
        np.testing.assert_allclose(
            weights, impulse_response(layer, 3, ksize), atol=1e-12
        )
    model = nn.Sequential(stack, nn.Flatten(), nn.LazyLinear(2).double())
    batch = Batch(normal(2, 3, 9, 9), normal(2, 2), torch.float64)
    model(batch.inputs)
    found = found_by("first_filters", model, batch, n_filters=3)
    np.testing.assert_allclose(
        found["filters"], impulse_response(stack, 3, ksize)[:3], atol=1e-12
    )


def test_separated_profiles() -> None:
    """A product of profiles is found whole; of a sum of two the stronger, by share."""
    time, space = normal(2, 6).numpy(), normal(2, 4, 5, seed=1).numpy()
    time[1] -= time[0] * (time[1] @ time[0]) / (time[0] @ time[0])
    second = (space[1] * space[0]).sum() / (space[0] ** 2).sum()
    space[1] -= space[0] * second
    products = np.einsum("nt,nhw->nthw", time, space)
    kernels = np.stack([products[0], products[0] + 0.1 * products[1], 0 * products[0]])
    temporal, spatial, share = separated(kernels)
    powers = (products**2).sum((1, 2, 3)) * [1, 0.01]
    np.testing.assert_allclose(share, [1, powers[0] / powers.sum(), 0])
    for i in (0, 1):
        product = np.einsum("t,hw->thw", temporal[i], spatial[i])
        np.testing.assert_allclose(product, products[0], atol=1e-12)
        assert (spatial[i] ** 2).sum() == pytest.approx(1)
        assert spatial[i].ravel()[np.abs(spatial[i]).argmax()] > 0


def test_filters_of_linear_layers() -> None:
    """Rows are pictures where they fit the inputs, with the oldest frame first."""
    model: Any = seeded(nn.Sequential(nn.Flatten(), nn.Linear(4 * 5 * 6, 3)))
    batch = Batch(normal(2, 4, 5, 6), normal(2, 3), torch.float64)
    found = found_by("first_filters", model, batch)
    assert found["spatial"].shape == (3, 5, 6)
    kernel = model[1].weight.detach().view(3, 4, 5, 6)
    left, sizes, _ = torch.linalg.svd(kernel[1].flatten(1))
    np.testing.assert_allclose(
        np.abs(found["temporal"][1]), (left[:, 0] * sizes[0]).abs(), rtol=1e-10
    )
    rows = found_by("first_filters", mlp(), regression())["filters"]
    np.testing.assert_allclose(rows, mlp().get_parameter("0.weight").detach())


@pytest.mark.parametrize("n", [1, 2, 3, 9])
@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 5, 5), (4, 5, 5), (5,)])
def test_titles_of_filters_are_whole(shape: tuple[int, ...], n: int) -> None:
    """No letter lies beyond the edges, also of few filters of a layer far below."""
    model = nn.Linear(5, n) if len(shape) == 1 else nn.Conv2d(shape[0], n, 3)
    for name in ("stage", "encoder_of_the_retina", "backbone"):
        outer = nn.Sequential()
        outer.add_module(name, model)
        model = outer  # type: ignore[assignment]
    batch = Batch(normal(2, *shape), normal(2, n), torch.float64)
    figure = found_by("first_filters", seeded(model), batch)["figure"]
    figure.savefig(io.BytesIO(), format="png")
    title = figure.axes[0].title if len(shape) == 1 else figure._suptitle
    box, edge = title.get_window_extent(), figure.bbox
    assert box.x0 >= 0
    assert box.x1 <= edge.x1
    assert box.y1 <= edge.y1


def test_filters_of_a_model_that_is_a_layer() -> None:
    """It is found without a name, and called `model`."""
    linear: Any = seeded(nn.Linear(5, 3))
    found = found_by("first_filters", linear, regression())
    np.testing.assert_allclose(found["filters"], linear.weight.detach())
    assert found["figure"].axes[0].get_title() == "filters of model: 3 of 3"
    stack = seeded(LinearStackedConv2d(3, 4, 5))
    batch = Batch(normal(2, 3, 9, 9), normal(2, 4), torch.float64)
    found = found_by("first_filters", stack, batch, layer="model")
    np.testing.assert_allclose(
        found["filters"], impulse_response(stack, 3, 5), atol=1e-12
    )
    with pytest.raises(NotApplicable, match="Linear has no hidden layer"):
        found_by("latent_pca", linear, regression())
    assert found_by("activations", linear, regression())["model/n_units"] == 3


def test_filters_where_there_are_none() -> None:
    """What has no filters is named; four channels are no colours."""
    batch = Batch(normal(2, 4, 5, 5), normal(2, 4, 5, 5), torch.float64)
    with pytest.raises(NotApplicable, match="no linear map"):
        found_by("first_filters", nn.ReLU(), batch)
    model = seeded(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
    with pytest.raises(NotApplicable, match="ReLU has no filters"):
        found_by("first_filters", model, batch, layer="1")
    with pytest.raises(NotApplicable, match="4 channels: no colours"):
        found_by("first_filters", model, batch, channels="colour")


# --- the libraries' models ----------------------------------------------------------

CENTERS = [(3, 3), (4, 5), (5, 4)]
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fourier": (
        "torchdeepretina",
        "VaryModel",
        {"n_layers": 2, "chans": [3], "ksizes": [5, 4], "conv_method": "fourier"},
    ),
    "places": (
        "torchdeepretina",
        "BNCNN",
        {"chans": [3, 2], "ksizes": [3, 3, 2], "convgc": True},
    ),
    "one-hot": (
        "torchdeepretina",
        "RetinotopicModel",
        {"n_layers": 2, "chans": [3], "ksizes": [3, 4]},
    ),
    "LN": ("torchdeepretina", "LN", {}),
    "shakes": (
        "imgclass",
        "SmallNet",
        {"chans": [4], "ksizes": [5], "n_shakes": 2, "stackconvs": True},
    ),
    "plain": ("imgclass", "PlainN", {"width": 8, "img_shape": [1, 10, 10]}),
}
HIDDEN = {
    "fourier": "input of ganglion.1",
    "places": "layers",
    "one-hot": "input of ganglion",
    "shakes": "input of logits",
    "plain": "input of logits",
}


def link(model: Any, z: Tensor) -> Tensor:
    """A retina model's rates."""
    rates: Tensor = model.link(z)
    return rates


@pytest.fixture
def case(
    build: Callable[..., nn.Module],
) -> Callable[..., tuple[nn.Module, Batch, Context]]:
    """Function (name, dtype, **keys): a library's model, a batch and its context."""

    def make(
        name: str, dtype: torch.dtype = torch.float32, **more: Any
    ) -> tuple[nn.Module, Batch, Context]:
        library, model_type, own = MODELS[name]
        is_retina = library == "torchdeepretina"
        keys = {"img_shape": [4, 8, 8] if is_retina else [3, 8, 8], **own, **more}
        centers = CENTERS if keys.get("convgc") else None
        model: Any = build(library, model_type, 3, centers=centers, **keys)
        model.to(dtype).eval()
        x = normal(12, *keys["img_shape"], dtype=dtype)
        if not is_retina:
            batch = Batch(x, torch.arange(12) % 3, dtype)
            return model, batch, context_of(model, batch, F.cross_entropy)
        batch = Batch(x, normal(12, 3, seed=2, dtype=dtype).abs(), dtype)
        context = dataclasses.replace(
            context_of(model, batch),
            loss=lambda one: F.mse_loss(link(one, one(x)), batch.targets),
            predict=lambda inputs: link(model, model(inputs)),
        )
        return model, batch, context

    return make


@pytest.mark.parametrize(
    ("name", "dtype"),
    list(zip(MODELS, [torch.float32, torch.float64] * 3, strict=True)),
)
def test_diagnostics_of_the_libraries_models(
    case: Callable[..., Any], name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Each runs, leaves no trace, draws the same again, and can be written."""
    model, batch, context = case(name, dtype)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    for diagnostic in DIAGNOSTICS:
        function = load_diagnostic(diagnostic)
        if (name, diagnostic) == ("LN", "latent_pca"):
            with pytest.raises(NotApplicable, match="LN has no hidden layer"):
                function(model, batch, context)
            continue
        context.generator.manual_seed(0)
        found = function(model, batch, context)
        again = found
        if diagnostic in ("hessian", "perturbation"):
            context.generator.manual_seed(0)
            again = function(model, batch, context)
        if name in ("fourier", "LN", "shakes"):  # drawing takes most of the time
            save_result(tmp_path, diagnostic, 1, found)
        assert ("figure" in found) == (diagnostic in FIGURES)
        for key, value in found.items():
            if not isinstance(value, Figure):
                assert np.isfinite(value).all(), (diagnostic, key)
                assert np.array_equal(value, again[key]), (diagnostic, key)
        if diagnostic == "latent_pca":
            assert found["figure"].axes[0].get_title().endswith(f", {HIDDEN[name]}")
    assert torch.equal(random, torch.get_rng_state())
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert batch.inputs.grad is None
    assert not batch.inputs.requires_grad


@pytest.mark.parametrize("name", ["fourier", "places", "shakes"])
def test_hessians_of_the_libraries_models(case: Callable[..., Any], name: str) -> None:
    """Products with a vector are differences of gradients; eigenvectors fit."""
    model, _, context = case(name, torch.float64)
    apply, like = hessian_product(model, context.loss(model))
    vector = normal(len(like))
    ends = []
    for step in (1e-6, -1e-6):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            parts = torch.split(vector, [p.numel() for p in moved.parameters()])
            for parameter, part in zip(moved.parameters(), parts, strict=True):
                parameter.add_(step * part.view_as(parameter))
        gradients = torch.autograd.grad(context.loss(moved), list(moved.parameters()))
        ends.append(torch.cat([one.flatten() for one in gradients]))
    differences = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(apply(vector), differences, rtol=1e-5, atol=1e-6)


def test_diagnostics_do_not_depend_on_the_convolutions_method(
    case: Callable[..., Any],
) -> None:
    """Direct and by Fourier transform: the same numbers to rounding."""
    names = ["activations", "gradient_norms", "hessian", "jacobian", "latent_pca"]
    for diagnostic in [*names, "perturbation"]:
        function = load_diagnostic(diagnostic)
        both = [
            function(*case("fourier", torch.float64, conv_method=method))
            for method in ("direct", "fourier")
        ]
        assert both[0].keys() == both[1].keys()
        for key, value in both[0].items():
            if not isinstance(value, Figure) and key != "residuals":
                np.testing.assert_allclose(value, both[1][key], rtol=1e-6)


# --- files --------------------------------------------------------------------------


def picture(height: float = 1.0) -> Figure:
    """A small figure."""
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, height])
    return figure


def test_results_are_files_that_explain_themselves(tmp_path: Path) -> None:
    """JSON holds scalars and short arrays, and names the files of the rest."""
    long = normal(20, 10).numpy()
    found = {
        "loss": 0.1,
        "n": 3,
        "layers.0/mean": float("nan"),
        "spectrum": np.array([[1.0, np.inf], [2.5, 3.0]]),
        "long/one": long,
        "figure": picture(),
    }
    folder = tmp_path / "run" / "diagnostics"
    save_result(folder, "mine", 12, found)
    assert json.loads((folder / "mine_0012.json").read_text()) == {
        "loss": 0.1,
        "n": 3,
        "layers.0/mean": "nan",
        "spectrum": [[1.0, "inf"], [2.5, 3.0]],
        "long/one": {"file": "mine_0012.npz", "shape": [20, 10]},
        "figure": {"file": "mine_0012_figure.png"},
    }
    with np.load(folder / "mine_0012.npz") as arrays:
        np.testing.assert_array_equal(arrays["long_one"], long)
    with Image.open(folder / "mine_0012_figure.png") as image:
        assert image.size == (240, 120)


def test_results_written_again_are_the_same_files(tmp_path: Path) -> None:
    """A resumed run leaves what it found at the first time, byte by byte."""
    contents = []
    for _ in range(2):
        found = {"x": 1.0, "long": normal(200).numpy(), "figure": picture()}
        save_result(tmp_path, "mine", 5, found)
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == [
        "mine_0005.json",
        "mine_0005.npz",
        "mine_0005_figure.png",
    ]


def test_the_record_is_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the JSON is, the files that it names are."""
    written = []
    for name in ("write_durably", "write_json"):
        real = getattr(storage, name)

        def write(path: Path, content: Any, real: Any = real) -> None:
            written.append(path.suffix)
            real(path, content)

        monkeypatch.setattr(storage, name, write)
    found = {"figure": picture(), "x": 1.0, "long": normal(200).numpy()}
    save_result(tmp_path, "mine", 5, found)
    assert written == [".npz", ".png", ".json"]


@pytest.mark.parametrize("value", [None, "text", [1.0], np.array([None]), 1j])
def test_results_of_other_kinds_are_refused(tmp_path: Path, value: Any) -> None:
    """The message names diagnostic and key; nothing is written."""
    with pytest.raises(TypeError, match="mine: x: expected a number, an array"):
        save_result(tmp_path, "mine", 5, {"figure": picture(), "x": value})
    assert not list(tmp_path.iterdir())


def test_no_module_uses_pyplot_or_global_random_numbers() -> None:
    """Both would leave a trace outside the diagnostic."""
    folder = Path(gridrun.diagnostics.__file__).parent
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "pyplot" not in text.replace("without pyplot", ""), path
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            if "rand" in ast.unparse(node.func).rpartition(".")[2]:
                named = {word.arg for word in node.keywords}
                assert "generator" in named, (path, node.lineno)
