"""Python values as JSON can hold them, so that a run can be rebuilt from its record."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gridrun.errors import ConfigError
from gridrun.plugin_files import find
from gridrun.plugins import library_of, load_object

# where torch has the classes that a key takes by their names alone
NAMED_CLASSES = {
    "lossfxn": "torch.nn",
    "loss_function": "torch.nn",
    "optimizer": "torch.optim",
    "scheduler": "torch.optim.lr_scheduler",
}


def recordable(value: Any, name: str) -> Any:
    """A value as plain data.

    A class becomes its name, where a library or torch has it, or its import path; an
    object `{"class", "args"}`, with the attributes that have the names of its
    constructor's parameters; devices and paths become text.

    Args:
        value: As given.
        name: Of its key, for errors.

    Raises:
        ConfigError: For what could not be rebuilt from the record, with the reason.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): recordable(v, name) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [recordable(inner, name) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if type(value).__name__ == "device":
        return value.type if value.type == "cpu" else str(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        text = f"{name}: a {type(value).__name__} cannot be recorded; give plain values"
        raise ConfigError(text)
    if "." in name or name.endswith("_args"):
        what = value.__name__ if hasattr(value, "__name__") else type(value).__name__
        text = f"{name}: {what} is an argument of a class, which must be plain"
        raise ConfigError(f"{text}: a number, text, a list, an object")
    if inspect.isclass(value) or inspect.isfunction(value):
        return _named(value, name)
    return _rebuildable(value, name)


def _named(item: Any, name: str) -> str:
    """The name or import path under which a class or function is found again."""
    own = item.__name__
    library = library_of(own)
    if library is not None and library.model(own) is item:
        return str(own)
    module = NAMED_CLASSES.get(name)
    if module and getattr(importlib.import_module(module), own, None) is item:
        return str(own)
    what = f"{name}: {item.__qualname__}"
    if item.__module__ == "__main__":
        raise ConfigError(
            f"{what} is defined in a script or notebook, where workers cannot find it; "
            "put it into a module or a plug-in file"
        )
    if "<" in item.__qualname__ or "." in item.__qualname__:
        raise ConfigError(
            f"{what} is defined inside another; put it at the top of a module"
        )
    path = f"{item.__module__}:{own}"
    if find(path, None) is None or load_object(path) is not item:
        raise ConfigError(f"{what} is not what {path} leads to; it cannot be recorded")
    return path


def _rebuildable(value: Any, name: str) -> dict[str, Any] | str:
    """An object by its class and arguments, after making it anew as a trial.

    Of torch's own classes, arguments that have their defaults are left out; without
    others it is its class.
    """
    kind = type(value)
    what = f"{name}: a {kind.__name__}"
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(f"{what} cannot be recorded; give plain values") from None
    named = _named(kind, name)
    args: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for one in parameters:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        if not hasattr(value, one.name):
            if one.default is one.empty:
                text = f"it keeps no attribute {one.name!r} for its argument"
                raise ConfigError(f"{what} cannot be recorded: {text}")
            continue
        given[one.name] = getattr(value, one.name)
        is_usual = one.default is not one.empty and _is_same(
            given[one.name], one.default
        )
        if ":" in named or not is_usual:
            args[one.name] = recordable(given[one.name], f"{name}.{one.name}")
    entry = {"class": named, "args": args}
    try:
        different = _difference(value, kind(**given))
    except Exception as error:
        text = f"making it again fails: {type(error).__name__}: {error}"
        raise ConfigError(f"{what} cannot be recorded: {text}") from error
    if different is not None:
        raise ConfigError(
            f"{what} cannot be recorded: made again from its arguments it has another "
            f"{different}"
        )
    return entry if args else str(entry["class"])


def _difference(value: Any, other: Any) -> str | None:
    """The first attribute in which two objects of a class differ, if one does."""
    one, two = dict(vars(value)), dict(vars(other))
    if hasattr(value, "state_dict") and hasattr(value, "named_modules"):
        if str(value) != str(other):
            return "structure"
        shapes = [
            {name: tuple(part.shape) for name, part in model.state_dict().items()}
            for model in (value, other)
        ]
        if shapes[0] != shapes[1]:
            return "state"
        inner = ("_parameters", "_buffers", "_modules")
        for attributes in (one, two):
            for name in inner:
                attributes.pop(name, None)
    for name in {**one, **two}:
        if name not in one or name not in two or not _is_same(one[name], two[name]):
            return str(name)
    return None


def _is_same(one: Any, other: Any) -> bool:
    if hasattr(one, "shape") and hasattr(other, "shape"):
        return tuple(one.shape) == tuple(other.shape) and bool((one == other).all())
    if type(one) is type(other) and hasattr(one, "__dict__") and not callable(one):
        return _difference(one, other) is None
    return bool(one == other)
