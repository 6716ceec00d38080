"""Strict JSON, overrides and paths."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from gridrun.config.keys import Hyperparams, keys_of
from gridrun.errors import ConfigError


def read_json(path: Path) -> tuple[Any, list[tuple[str, str]]]:
    """Read a JSON file.

    Returns:
        Its content, and a (key, message) for each key that stands twice, each number
        that is not finite and each text that is none.

    Raises:
        ConfigError: If it cannot be read, with the line where JSON itself is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; a JSON file was expected") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return parse_json(text, str(path))


def parse_json(text: str, source: str) -> tuple[Any, list[tuple[str, str]]]:
    """Parse JSON text under the same rules; `source` names it in messages."""
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(sorted({n for n in names if names.count(n) > 1}))
        return result

    try:
        data = json.loads(text, object_pairs_hook=unique)
        problems = [(name, "stands twice; keep one") for name in twice]
        problems += odd_values(data)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{source}: not valid JSON: {error.msg} "
            f"(line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    return data, problems


def odd_values(data: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The outermost key and a message for each value that cannot be written back."""
    if isinstance(data, float) and not math.isfinite(data):
        yield name, f"{data} is not a finite number"
    inner: Iterable[tuple[str, Any]] = ()
    if isinstance(data, dict):
        inner = data.items()
    elif isinstance(data, list):
        inner = (("", value) for value in data)
    elif isinstance(data, str) and any("\ud800" <= sign <= "\udfff" for sign in data):
        yield name, f"{data!a} holds half a character (\\ud800 to \\udfff)"
    for key, value in inner:
        yield from odd_values(key, ascii(key)[1:-1])
        yield from odd_values(value, name or key)


def parse_override(text: str, schema: type[BaseModel]) -> tuple[str, Any]:
    """Split `key=value`; the value is JSON where the key's type takes it, else text.

    Raises:
        ConfigError: If there is no `=`, or the JSON is not strict.
    """
    name, sign, raw = text.partition("=")
    name = name.strip()
    if not sign or not all(name.split(".")):
        raise ConfigError(f"command line: {text!r}: expected key=value")
    try:
        value, problems = parse_json(raw, f"command line: {name}")
    except ConfigError:
        return name, raw
    field = schema.model_fields.get(name)
    if field is not None and not isinstance(value, str):
        adapter: TypeAdapter[Any] = TypeAdapter(field.annotation or Any)
        if not _takes(adapter, value) and _takes(adapter, raw):
            return name, raw
    if problems:
        raise ConfigError([f"command line: {name}: {text}" for _, text in problems])
    return name, value


def _takes(adapter: TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def absolute(path: str, base: Path) -> str:
    """`~` expanded; relative to `base` where relative.

    Raises:
        ConfigError: If `~` names a home that is not there.
    """
    try:
        return os.path.normpath(base / Path(path).expanduser())
    except RuntimeError:
        raise ConfigError(f"{path}: no such home folder; give a full path") from None


def resolve_paths(
    values: Mapping[str, Any], schema: type[Hyperparams], base: Path
) -> dict[str, Any]:
    """Make the values of path keys absolute; others are left as they are.

    Raises:
        ConfigError: If one cannot be; the text begins with the key.
    """
    paths = {name for name, facts in keys_of(schema).items() if facts.is_path}
    resolved = dict(values)
    for name in paths & set(values):
        if isinstance(values[name], str):
            try:
                resolved[name] = absolute(values[name], base)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
    return resolved


def data_root(given: str | None) -> tuple[str, str]:
    """The folder of the data sets, and where that was said."""
    if given is not None:
        return given, "data_root"
    if from_environment := os.environ.get("GRIDRUN_DATA"):
        return absolute(from_environment, Path.cwd()), "GRIDRUN_DATA"
    return absolute("~/experiments/data", Path.cwd()), "the default data_root"


def set_nested(values: dict[str, Any], name: str, value: Any) -> None:
    """Set `a.b.c`, making objects on the way.

    Raises:
        TypeError: If a value on the way is no object.
    """
    *path, last = name.split(".")
    for part in path:
        inner = values.get(part)
        if inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise TypeError(f"{part} is not an object, so {name} cannot be set")
        values[part] = inner = dict(inner)
        values = inner
    values[last] = value


def get_nested(values: Mapping[str, Any], name: str) -> Any:
    """The value of `a.b.c`, None where absent."""
    node: Any = values
    for part in name.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
