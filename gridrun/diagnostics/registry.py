"""Diagnostics by name: which there are, when they are due, what an entry may say."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Literal, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from gridrun.config import shown, suggest
from gridrun.config.keys import EVERY
from gridrun.config.messages import expectation
from gridrun.errors import ConfigError
from gridrun.plugins import load_object

Diagnostic = Callable[..., Mapping[str, Any]]
FIELDS = ("name", "every", "at", "args")
TIMES = ("epoch_end", "run_end")
N_GIVEN = 3  # model, batch, context

DIAGNOSTICS: dict[str, str] = {
    "weight_norms": "gridrun.diagnostics.norms:weight_norms",
    "gradient_norms": "gridrun.diagnostics.norms:gradient_norms",
    "activations": "gridrun.diagnostics.activations:activations",
    "latent_pca": "gridrun.diagnostics.latent:latent_pca",
    "predictions": "gridrun.diagnostics.predictions:predictions",
    "jacobian": "gridrun.diagnostics.jacobian:jacobian",
    "hessian": "gridrun.diagnostics.hessian:hessian",
    "perturbation": "gridrun.diagnostics.perturbation:perturbation",
    "first_filters": "gridrun.diagnostics.filters:first_filters",
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A diagnostic that is asked for.

    Args:
        name: Of the diagnostic.
        every: Epochs from one time to the next, ≥ 1; at epoch_end only.
        at: epoch_end or run_end.
        args: Arguments of its function beside model, batch and context.
    """

    name: str
    every: int = EVERY
    at: Literal["epoch_end", "run_end"] = "epoch_end"
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, entry: str | Mapping[str, Any]) -> Schedule:
        """Read an entry of the configuration in which nothing is wrong."""
        return cls(entry) if isinstance(entry, str) else cls(**entry)

    def is_due(self, epoch: int) -> bool:
        """Whether it is due at the end of an epoch, counted from 1."""
        return self.at == "epoch_end" and epoch % self.every == 0


def load_diagnostic(
    name: str, extra: Mapping[str, Diagnostic] | None = None
) -> Diagnostic:
    """The function of that name; imports torch.

    Args:
        name: Of ours or an extra one.
        extra: A user's own functions by name; they come before ours.

    Raises:
        ConfigError: If there is none.
    """
    extra = extra or {}
    if name in extra:
        return extra[name]
    if name not in DIAGNOSTICS:
        raise ConfigError(_unknown(name, extra))
    return cast(Diagnostic, load_object(DIAGNOSTICS[name]))


def diagnostic_problems(
    entry: Any, extra: Mapping[str, Diagnostic] | None = None
) -> list[str]:
    """What is wrong with an entry: a name, or {name, every, at, args}.

    Torch is imported only where the entry has arguments.

    Args:
        entry: As in the configuration.
        extra: A user's own functions by name.
    """
    extra = extra or {}
    given = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        expected = "expected a name or an object with name, every, at and args"
        return [f"{expected}; got {shown(entry)}"]
    name, args = given["name"], given.get("args", {})
    if name not in extra and name not in DIAGNOSTICS:
        return [_unknown(name, extra)]
    problems = _field_problems(given)
    if isinstance(args, Mapping) and (args or name in extra):
        problems += argument_problems(load_diagnostic(name, extra), args)
    return [f"{name}: {problem}" for problem in problems]


def _field_problems(given: Mapping[str, Any]) -> list[str]:
    problems = [
        f"unknown field {field!r}{suggest(field, FIELDS)}"
        for field in given
        if field not in FIELDS
    ]
    every, at, args = (given.get(name) for name in FIELDS[1:])
    is_count = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    if "every" in given and not is_count:
        problems.append(f"every: expected an integer ≥ 1; got {shown(every)}")
    if "at" in given and at not in TIMES:
        problems.append(f"at: expected {' or '.join(TIMES)}; got {shown(at)}")
    if "args" in given and not isinstance(args, Mapping):
        problems.append(f"args: expected an object; got {shown(args)}")
    return problems


def _unknown(name: str, extra: Mapping[str, Diagnostic]) -> str:
    known = sorted({*DIAGNOSTICS, *extra})
    hint = suggest(name, known)
    if "known" not in hint:
        hint += f"; known: {', '.join(known)}"
    return f"unknown diagnostic {name!r}{hint}"


def argument_problems(function: Diagnostic, args: Mapping[str, Any]) -> list[str]:
    """What a function's signature says against arguments.

    Args:
        function: A diagnostic.
        args: Those beside model, batch and context, by name.
    """
    parameters = list(inspect.signature(function).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) < N_GIVEN or any(p.kind not in kinds for p in parameters[:3]):
        return ["its function must take (model, batch, context)"]
    own = {p.name: p for p in parameters[N_GIVEN:]}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in own.values())
    named = {
        name: p
        for name, p in own.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    problems = [
        f"args: {name} is required"
        for name, p in named.items()
        if p.default is p.empty and name not in args
    ]
    for name, value in args.items():
        if name in named:
            problems += _value_problems(function, named[name], value)
        elif not takes_any:
            hint = suggest(name, named) or "; it takes none"
            problems.append(f"args: unknown argument {name!r}{hint}")
    return problems


def _value_problems(
    function: Diagnostic, parameter: inspect.Parameter, value: Any
) -> list[str]:
    """Whether a value has the annotated type; what cannot be checked passes."""
    if parameter.annotation is parameter.empty:
        return []
    annotated: Any = SimpleNamespace(
        __annotations__={parameter.name: parameter.annotation}
    )
    names = getattr(function, "__globals__", {})
    try:
        hints = get_type_hints(annotated, names, include_extras=True)
        kind = TypeAdapter[Any](hints[parameter.name])
    except (NameError, TypeError, PydanticUserError):
        return []
    try:
        kind.validate_python(value, strict=True)
    except ValidationError:
        expected = expectation(kind.json_schema())
        return [f"args: {parameter.name}: expected {expected}; got {shown(value)}"]
    return []
