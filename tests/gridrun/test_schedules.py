"""Optimizers and schedulers by the names of torch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from gridrun.errors import ConfigError
from gridrun.training import checkpoint as checkpoints
from gridrun.training.schedules import check_names, make_optimizer, make_scheduler

LR = 0.1
OPTIMIZERS = sorted(
    name
    for name, item in vars(torch.optim).items()
    if inspect.isclass(item)
    and issubclass(item, torch.optim.Optimizer)
    and item is not torch.optim.Optimizer
)
SCHEDULERS = sorted(
    name
    for name, item in vars(lr_scheduler).items()
    if inspect.isclass(item)
    and issubclass(item, lr_scheduler.LRScheduler)
    and name not in ("LRScheduler", "_LRScheduler")
)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"start_factor": 0.2, "total_iters": 4},
    "MultiStepLR": {"milestones": [2, 4]},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 20},
    "PolynomialLR": {"total_iters": 5},
    "ReduceLROnPlateau": {"patience": 0},
    "StepLR": {"step_size": 2},
}
NOT_IN_JSON = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}


@pytest.fixture
def hyps(image_hyps: Callable[..., Any]) -> Callable[..., Any]:
    """Function (**keys) that gives a complete configuration."""
    return lambda **keys: image_hyps(Path("nowhere"), lr=LR, **keys)


def network() -> nn.Sequential:
    """Parameters of one, two and four dimensions, equal at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    """One update on data of that number."""
    x = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad(set_to_none=True)
    model(x).square().mean().backward()
    optimizer.step()


def rates(given: Any, n_epochs: int, values: list[float] | None = None) -> list[float]:
    """The rate that each epoch is trained with; `values` feed a plateau scheduler."""
    model = network()
    optimizer = make_optimizer(given, model.parameters())
    scheduler: Any = make_scheduler(given, optimizer)
    found = []
    for epoch in range(n_epochs):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step(*([] if values is None else [values[epoch]]))
    return found


# --- sequences by hand ------------------------------------------------------------

FORMULAS: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "StepLR": ({"step_size": 3, "gamma": 0.5}, lambda e: LR * 0.5 ** (e // 3)),
    "MultiStepLR": (
        {"milestones": [2, 5], "gamma": 0.1},
        lambda e: LR * 0.1 ** ((e >= 2) + (e >= 5)),
    ),
    "CosineAnnealingLR": (
        {"T_max": 10, "eta_min": 0.01},
        lambda e: 0.01 + (LR - 0.01) * (1 + math.cos(math.pi * e / 10)) / 2,
    ),
    "ExponentialLR": ({"gamma": 0.8}, lambda e: LR * 0.8**e),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_rates_follow_the_formula(hyps: Callable[..., Any], name: str) -> None:
    """Epoch e (from 0) is trained with the rate of the textbook formula."""
    arguments, formula = FORMULAS[name]
    found = rates(hyps(scheduler=name, scheduler_args=arguments), 10)
    assert found == pytest.approx([formula(e) for e in range(10)], rel=1e-12)


@pytest.mark.parametrize(
    ("monitor", "values", "expected"),
    [
        # patience 1: the second epoch in a row without improvement halves the rate
        ("val_loss", [5, 4, 4, 4, 3, 3, 3, 3], [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        ("val_acc", [1, 2, 3, 4, 5, 6, 7, 8], [1] * 8),
        ("val_acc", [8, 7, 6, 5, 4, 3, 2, 1], [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]),
        ("val_loss:max", [1, 2, 3, 4, 5, 6, 7, 8], [1] * 8),
    ],
)
def test_plateau_by_hand(
    hyps: Callable[..., Any], monitor: str, values: list[float], expected: list[float]
) -> None:
    """The rate falls after patience + 1 bad epochs, in the monitor's direction."""
    given = hyps(
        scheduler="ReduceLROnPlateau",
        scheduler_args={"factor": 0.5, "patience": 1},
        monitor=monitor,
    )
    found = rates(given, 8, [float(value) for value in values])
    assert found == pytest.approx([LR * factor for factor in expected])


def test_default_arguments_of_plateau(hyps: Callable[..., Any]) -> None:
    """Without arguments the rate halves after 9 bad epochs, again after 9 more."""
    found = rates(hyps(scheduler="ReduceLROnPlateau"), 21, [1.0] * 21)
    expected = [LR] * 10 + [LR / 2] * 9 + [LR / 4] * 2
    assert found == pytest.approx(expected)


def test_default_arguments_of_cosine(hyps: Callable[..., Any]) -> None:
    """T_max is n_epochs: the rate would reach zero after the last epoch."""
    found = rates(hyps(scheduler="CosineAnnealingLR", n_epochs=7), 8)
    expected = [LR * (1 + math.cos(math.pi * e / 7)) / 2 for e in range(8)]
    assert found == pytest.approx(expected, abs=1e-15)


def test_default_arguments_of_multistep(hyps: Callable[..., Any]) -> None:
    """Milestones are 10, 20 and 30, factors of torch's .1."""
    found = rates(hyps(scheduler="MultiStepLR"), 32)
    expected = [LR * 0.1 ** (e // 10) for e in range(32)]
    assert found == pytest.approx(expected)


def test_defaults_of_others_are_torch_s(hyps: Callable[..., Any]) -> None:
    """A scheduler without a row of its own has torch's defaults."""
    assert hyps(scheduler="LinearLR").scheduler_args == {}
    assert rates(hyps(scheduler="LinearLR"), 1) == pytest.approx([LR / 3])


def test_no_scheduler_is_none(hyps: Callable[..., Any]) -> None:
    """Null makes no scheduler."""
    given = hyps()
    optimizer = make_optimizer(given, network().parameters())
    assert make_scheduler(given, optimizer) is None


# --- every name -------------------------------------------------------------------


def through_file(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict as it comes back from a checkpoint's bytes."""
    content = checkpoints.to_bytes({"model_state_dict": {}, "state": state})
    found: dict[str, Any] = checkpoints.from_bytes(content, "test")["state"]
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_works_or_is_refused(
    hyps: Callable[..., Any], same: Callable[[Any, Any], bool], name: str
) -> None:
    """Made, stepped, saved and restored it goes on bit for bit; or ConfigError."""
    given = hyps(optimizer=name)
    model = network()
    try:
        optimizer = make_optimizer(given, model.parameters())
    except ConfigError:
        return
    for number in range(3):
        step(model, optimizer, number)
    saved = through_file(optimizer.state_dict())
    other = network()
    other.load_state_dict(model.state_dict())
    restored = make_optimizer(given, other.parameters())
    restored.load_state_dict(saved)
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, restored, number)
    assert not same(model.state_dict(), network().state_dict())
    assert same(dict(model.state_dict()), dict(other.state_dict()))


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam"]
)
def test_common_optimizers_are_not_refused(hyps: Callable[..., Any], name: str) -> None:
    """The class in use is the one named, with lr and l2 in its group."""
    optimizer = make_optimizer(hyps(optimizer=name, l2=0.25), network().parameters())
    assert type(optimizer) is getattr(torch.optim, name)
    assert optimizer.param_groups[0]["lr"] == LR
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


def test_an_optimizer_that_needs_a_closure_is_refused(
    hyps: Callable[..., Any],
) -> None:
    """LBFGS is no choice."""
    with pytest.raises(ConfigError, match=r"^optimizer: .*LBFGS"):
        make_optimizer(hyps(optimizer="LBFGS"), network().parameters())


@pytest.mark.parametrize("optimizer_name", ["SGD", "Adam"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_works_or_is_refused(
    hyps: Callable[..., Any], name: str, optimizer_name: str
) -> None:
    """Constructed, stepped, saved and restored it goes on equally; or ConfigError."""
    args = {"momentum": 0.9} if optimizer_name == "SGD" else {}
    given = hyps(
        scheduler=name,
        scheduler_args=ARGUMENTS.get(name),
        optimizer=optimizer_name,
        optimizer_args=args,
    )
    optimizer = make_optimizer(given, network().parameters())
    if name in NOT_IN_JSON:
        with pytest.raises(ConfigError, match=f"scheduler_args: {name}"):
            make_scheduler(given, optimizer)
        return
    scheduler: Any = make_scheduler(given, optimizer)
    advance(scheduler, optimizer, 3)
    other = make_optimizer(given, network().parameters())
    restored: Any = make_scheduler(given, other)
    other.load_state_dict(through_file(optimizer.state_dict()))
    template = restored.state_dict()
    saved = through_file(scheduler.state_dict())
    restored.load_state_dict(
        {
            key: checkpoints.like(value, template.get(key))
            for key, value in saved.items()
        }
    )
    expected, found = advance(scheduler, optimizer, 6), advance(restored, other, 6)
    assert found == expected


def advance(scheduler: Any, optimizer: torch.optim.Optimizer, n: int) -> list[Any]:
    """Step n epochs; returns rate, momentum and betas after each."""
    settings = []
    for _ in range(n):
        optimizer.step()
        is_plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([1.0] if is_plateau else []))
        group = optimizer.param_groups[0]
        betas = tuple(group["betas"]) if "betas" in group else None
        settings.append((float(group["lr"]), group.get("momentum"), betas))
    return settings


# --- what is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "texts"),
    [
        ({"optimizer": "Adamm"}, ["optimizer: unknown 'Adamm'", "'Adam'"]),
        ({"optimizer": "Optimizer"}, ["optimizer: unknown 'Optimizer'"]),
        ({"optimizer_args": {"beta": 1}}, ["optimizer_args", "'beta'", "'betas'"]),
        ({"optimizer_args": {"params": []}}, ["optimizer_args", "'params'"]),
        ({"optimizer_args": {"betas": [2, 0.9]}}, ["optimizer_args: Adam"]),
        ({"optimizer_args": {"eps": "x"}}, ["optimizer_args: Adam"]),
        ({"optimizer": "SGD", "optimizer_args": {"momentum": -1}}, ["optimizer_args"]),
        ({"optimizer_args": {"betas": [0.9]}}, ["optimizer_args: Adam: IndexError"]),
        ({"optimizer_args": {"betas": {"0": 0.9}}}, ["optimizer_args: Adam: KeyErr"]),
    ],
)
def test_wrong_optimizers_are_refused(
    hyps: Callable[..., Any], keys: dict[str, Any], texts: list[str]
) -> None:
    """Unknown names and arguments are refused with the nearest known one."""
    with pytest.raises(ConfigError) as caught:
        make_optimizer(hyps(**keys), network().parameters())
    assert all(text in str(caught.value) for text in texts)


@pytest.mark.parametrize(
    ("name", "arguments", "texts"),
    [
        ("StepL", {}, ["scheduler: unknown 'StepL'", "'StepLR'"]),
        ("LRScheduler", {}, ["scheduler: unknown 'LRScheduler'"]),
        ("StepLR", {}, ["scheduler_args: StepLR"]),
        ("StepLR", {"step_sise": 3}, ["scheduler_args", "'step_sise'", "'step_size'"]),
        ("StepLR", {"step_size": 3, "optimizer": 1}, ["scheduler_args", "'optimizer'"]),
        ("ReduceLROnPlateau", {"mode": "max"}, ["scheduler_args: mode is monitor's"]),
        ("ReduceLROnPlateau", {"factor": 2.0}, ["scheduler_args: ReduceLROnPlateau"]),
        ("LambdaLR", {"lr_lambda": "lambda e: 1"}, ["scheduler_args: LambdaLR"]),
        ("MultiplicativeLR", {"lr_lambda": "x"}, ["scheduler_args: Multiplicative"]),
        ("SequentialLR", {"schedulers": [], "milestones": []}, ["scheduler_args"]),
        ("ChainedScheduler", {"schedulers": []}, ["scheduler_args: Chained"]),
        ("CyclicLR", {"base_lr": 0, "max_lr": 1, "scale_fn": "x"}, ["scheduler_args"]),
    ],
)
def test_wrong_schedulers_are_refused(
    hyps: Callable[..., Any], name: str, arguments: dict[str, Any], texts: list[str]
) -> None:
    """Unknown names and arguments, and what JSON cannot express, are refused."""
    given = hyps(scheduler=name, scheduler_args=arguments)
    with pytest.raises(ConfigError) as caught:
        make_scheduler(given, make_optimizer(given, network().parameters()))
    assert all(text in str(caught.value) for text in texts)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StepLR", {"step_size": 0}),
        ("StepLR", {"step_size": "3"}),
        ("StepLR", {"step_size": 3, "gamma": "x"}),
        ("ExponentialLR", {"gamma": "x"}),
        ("CosineAnnealingLR", {"T_max": 0}),
        ("MultiStepLR", {"milestones": 5}),
        ("MultiStepLR", {"milestones": ["1"]}),
        ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 0}),
        ("ReduceLROnPlateau", {"patience": "x"}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 2}),
    ],
)
def test_arguments_that_fail_in_training_are_refused_before(
    hyps: Callable[..., Any], name: str, arguments: dict[str, Any]
) -> None:
    """Arguments with which some epoch's step would raise are told beforehand."""
    given = hyps(scheduler=name, scheduler_args=arguments, n_epochs=4)
    if name == "OneCycleLR":
        given = hyps(
            scheduler=name,
            scheduler_args=arguments,
            n_epochs=4,
            optimizer_args={"betas": [0.9, 0.99]},
        )
    assert [key for key, _ in check_names(given)] == ["scheduler_args"]


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("Adam", {"betas": [0.9, 0.99, 0.5]}, "fails when it steps"),
        ("Adam", {"amsgrad": "no"}, "amsgrad: expected true or false, got 'no'"),
        ("Adam", {"foreach": "x"}, "foreach: expected true or false"),
        ("Adam", {"differentiable": True}, "fails when it steps"),
        ("SGD", {"dampening": "x", "momentum": 0.9}, "fails when it steps"),
    ],
)
def test_optimizers_that_fail_in_training_are_refused_before(
    hyps: Callable[..., Any], name: str, arguments: dict[str, Any], text: str
) -> None:
    """What only a step notices."""
    given = hyps(optimizer=name, optimizer_args=arguments)
    ((key, found),) = check_names(given)
    assert key == "optimizer_args"
    assert text in found


@pytest.mark.parametrize("keys", [{}, {"scheduler": "StepLR"}])
def test_names_are_checked_together(
    hyps: Callable[..., Any], keys: dict[str, Any]
) -> None:
    """check_names tells the problems of both names, by key, and none of good ones."""
    assert check_names(hyps()) == []
    found = check_names(hyps(optimizer="Adamm", **keys))
    assert [key for key, _ in found] == [
        "optimizer",
        *(["scheduler_args"] if keys else []),
    ]


@pytest.mark.parametrize("name", ["SparseAdam", "LBFGS"])
def test_l2_without_weight_decay_is_refused(
    hyps: Callable[..., Any], name: str
) -> None:
    """An optimizer without weight decay does not take l2 in silence."""
    assert (
        "weight_decay" not in inspect.signature(getattr(torch.optim, name)).parameters
    )
    with pytest.raises(ConfigError):
        make_optimizer(hyps(optimizer=name, l2=0.1), network().parameters())


def test_l2_is_coupled_in_adam_and_decoupled_in_adamw(hyps: Callable[..., Any]) -> None:
    """With zero gradients AdamW shrinks by lr · l2, Adam moves by a whole lr."""
    for name, expected in (("AdamW", 2 * (1 - LR * 0.5)), ("Adam", 2 - LR)):
        weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        optimizer = make_optimizer(hyps(optimizer=name, l2=0.5), [weight])
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert float(weight.detach()) == pytest.approx(expected, rel=1e-6)


def test_optimizer_arguments_arrive(hyps: Callable[..., Any]) -> None:
    """optimizer_args go to the constructor."""
    given = hyps(optimizer="SGD", optimizer_args={"momentum": 0.9, "nesterov": True})
    group = make_optimizer(given, network().parameters()).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
