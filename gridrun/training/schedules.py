"""Optimizers and learning-rate schedulers by the names of torch."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from gridrun.config import Hyperparams, suggest
from gridrun.errors import ConfigError
from gridrun.training.checkpoint import plain

UNUSABLE = {
    "LBFGS": "it needs a closure",
    "SparseAdam": "it needs sparse gradients, which no layer here gives",
}
MAX_TRIED_EPOCHS = 1000
IMPLEMENTATIONS = {"fused", "foreach", "differentiable", "capturable"}


def optimizer_names() -> list[str]:
    """The classes of torch.optim that step without a closure."""
    return [
        name
        for name, item in vars(torch.optim).items()
        if inspect.isclass(item)
        and issubclass(item, Optimizer)
        and item is not Optimizer
        and name not in UNUSABLE
    ]


def scheduler_names() -> list[str]:
    """The classes of torch.optim.lr_scheduler."""
    return [
        name
        for name, item in vars(lr_scheduler).items()
        if inspect.isclass(item)
        and issubclass(item, lr_scheduler.LRScheduler)
        and not name.startswith("_")
        and name != "LRScheduler"
    ]


def load_optimizers() -> None:
    """Let torch load what its first optimizer needs, which takes a second."""
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def make_optimizer(
    hyps: Hyperparams, parameters: Any, is_trial: bool = False
) -> Optimizer:
    """The optimizer that the keys name, over `parameters`.

    Where torch has a fused implementation it is used, unless `optimizer_args` names
    one: small networks spend a tenth of a step on the other.

    Args:
        hyps: They name it.
        parameters: Of a model.
        is_trial: Only check the arguments: the optimizer cannot step, but does not
            load torch's compiler (1 s), as others do.

    Raises:
        ConfigError: For an unknown name or argument.
    """
    if hyps.optimizer in UNUSABLE:
        raise ConfigError(
            f"optimizer: {hyps.optimizer} cannot be used: {UNUSABLE[hyps.optimizer]}"
        )
    if hyps.optimizer not in optimizer_names():
        raise ConfigError(
            f"optimizer: unknown {hyps.optimizer!r}"
            f"{suggest(hyps.optimizer, optimizer_names())}"
        )
    kind: Any = getattr(torch.optim, hyps.optimizer)
    known = set(inspect.signature(kind).parameters) - {"params"}
    _check_arguments("optimizer_args", hyps.optimizer, hyps.optimizer_args, known)
    arguments = dict(hyps.optimizer_args) | {"lr": hyps.lr}
    if "fused" in known and not IMPLEMENTATIONS & set(arguments):
        arguments["fused"] = True
    if is_trial:
        kind = type(hyps.optimizer, (kind,), {"add_param_group": _add_unchecked})
    if "weight_decay" in known:
        arguments["weight_decay"] = hyps.l2
    elif hyps.l2:
        raise ConfigError(f"l2: {hyps.optimizer} has no weight decay; use l2 0")
    try:
        optimizer: Optimizer = kind(parameters, **arguments)
    except Exception as error:
        reason = reason_of(error)
        raise ConfigError(f"optimizer_args: {hyps.optimizer}: {reason}") from error
    return optimizer


def reason_of(error: Exception) -> str:
    """What an error says; of those that do not say, their kind as well."""
    if isinstance(error, ConfigError | ValueError | TypeError | RuntimeError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def try_optimizer(hyps: Hyperparams) -> None:
    """Let the optimizer step, with arguments that torch does not check before.

    Raises:
        ConfigError: For arguments that torch refuses.
    """
    switches = inspect.signature(getattr(torch.optim, hyps.optimizer)).parameters
    for name, value in hyps.optimizer_args.items():
        kind = str(switches[name].annotation) if name in switches else ""
        is_switch = "bool" in kind and "float" not in kind
        if is_switch and not isinstance(value, bool | None):
            text = f"{hyps.optimizer}: {name}: expected true or false, got {value!r}"
            raise ConfigError(f"optimizer_args: {text}")
    given = dict(hyps.optimizer_args)
    if hyps.is_on_cluster or torch.cuda.is_available():
        given.pop("capturable", None)  # of GPUs, which may not be here
    parameter = nn.Parameter(torch.ones(2, 2))
    own = hyps.model_copy(update={"optimizer_args": given})
    optimizer = make_optimizer(own, [parameter])
    try:
        for _ in range(2):
            parameter.grad = torch.ones(2, 2)
            optimizer.step()
    except Exception as error:
        reason = reason_of(error)
        text = f"{hyps.optimizer} fails when it steps: {reason}"
        raise ConfigError(f"optimizer_args: {text}") from error


def _add_unchecked(optimizer: Optimizer, group: dict[str, Any]) -> None:
    optimizer.param_groups.append({**optimizer.defaults, **group})


def make_scheduler(
    hyps: Hyperparams, optimizer: Optimizer
) -> lr_scheduler.LRScheduler | None:
    """The scheduler that the keys name, or None.

    Raises:
        ConfigError: For an unknown name or argument, or one that JSON cannot express.
    """
    name = hyps.scheduler
    if name is None:
        return None
    if name not in scheduler_names():
        raise ConfigError(
            f"scheduler: unknown {name!r}{suggest(name, scheduler_names())}"
        )
    kind: Any = getattr(lr_scheduler, name)
    arguments = dict(hyps.scheduler_args or {})
    known = set(inspect.signature(kind).parameters) - {"optimizer"}
    if name == "ReduceLROnPlateau":
        known.discard("mode")
        if "mode" in arguments:
            raise ConfigError("scheduler_args: mode is monitor's; leave it out")
        arguments["mode"] = hyps.monitor_mode()[1]
    _check_arguments("scheduler_args", name, hyps.scheduler_args or {}, known)
    milestones = arguments.get("milestones", [])
    if not isinstance(milestones, list) or not all(type(n) is int for n in milestones):
        text = f"expected a list of epochs, got {milestones!r}"
        raise ConfigError(f"scheduler_args: {name}: milestones: {text}")
    try:
        scheduler: lr_scheduler.LRScheduler = kind(optimizer, **arguments)
        plain(scheduler.state_dict())
    except Exception as error:
        raise ConfigError(f"scheduler_args: {name}: {reason_of(error)}") from error
    return scheduler


def try_schedule(hyps: Hyperparams, optimizer: Optimizer) -> None:
    """Step the scheduler through a run's epochs without training.

    Raises:
        ConfigError: For arguments that torch refuses now, or would later.
    """
    scheduler: Any = make_scheduler(hyps, optimizer)
    if scheduler is None:
        return
    metric = (1.0,) if hyps.scheduler == "ReduceLROnPlateau" else ()
    try:
        with warnings.catch_warnings(action="ignore"):
            for _ in range(min(hyps.n_epochs, MAX_TRIED_EPOCHS)):
                scheduler.step(*metric)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"scheduler_args: {hyps.scheduler} fails when it is stepped: {reason}"
        ) from error


def check_names(hyps: Hyperparams) -> list[tuple[str, str]]:
    """Problems of the optimizer's and the scheduler's names and arguments."""
    problems = []
    parameters = [nn.Parameter(torch.zeros(1))]
    plain_sgd = hyps.model_copy(
        update={"optimizer": "SGD", "optimizer_args": {}, "l2": 0.0}
    )
    optimizer = make_optimizer(plain_sgd, parameters, is_trial=True)
    try:
        optimizer = make_optimizer(hyps, parameters, is_trial=True)
        if hyps.optimizer_args:
            try_optimizer(hyps)
    except ConfigError as error:
        problems.append(error)
    try:
        try_schedule(hyps, optimizer)
    except ConfigError as error:
        problems.append(error)
    return [(key, text) for key, _, text in (str(e).partition(": ") for e in problems)]


def _check_arguments(key: str, name: str, given: Any, known: set[str]) -> None:
    for argument in given:
        if argument not in known:
            raise ConfigError(
                f"{key}: {name} has no argument {argument!r}{suggest(argument, known)}"
            )
