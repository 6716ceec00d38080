"""What people are told: expectations, suggestions, problems."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gridrun.errors import ConfigError

MAX_LISTED = 20


def shown(value: object) -> str:
    """A value as JSON text, cut to a readable length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def suggest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the known names (of many, the nearest)."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    near = near or [name for name in names if word and name.startswith(word)][:1]
    if near:
        return f" (did you mean {near[0]!r}?)"
    if len(names) > MAX_LISTED:
        nearest = difflib.get_close_matches(word, names, n=3, cutoff=0)
        return f"; nearest known: {', '.join(nearest)}"
    return f"; known: {', '.join(names)}" if names else ""


def expectation(node: Mapping[str, Any]) -> str:
    """What a JSON Schema node allows, in words."""
    if "expected" in node.get("gridrun", {}):
        return str(node["gridrun"]["expected"])
    if "anyOf" in node:
        parts = [part for part in node["anyOf"] if part.get("type") != "null"]
        text = " or ".join(map(expectation, parts))
        return text if len(parts) == len(node["anyOf"]) else f"{text}, or null"
    if "enum" in node:
        return "one of " + ", ".join(shown(value) for value in node["enum"])
    if "const" in node:
        return shown(node["const"])
    kind = node.get("type")
    if kind == "array":
        return _array_expectation(node)
    names = {"integer": "an integer", "number": "a number", "string": "text"}
    names |= {"boolean": "true or false", "object": "an object", "null": "null"}
    text = names.get(str(kind), "a value")
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    signs |= {"exclusiveMaximum": "<"}
    limits = [f"{sign} {node[name]}" for name, sign in signs.items() if name in node]
    return " ".join([text, " and ".join(limits)]).strip()


def _array_expectation(node: Mapping[str, Any]) -> str:
    if "prefixItems" in node:
        parts = ", ".join(expectation(part) for part in node["prefixItems"])
        return f"a list [{parts}]"
    least, most = node.get("minItems"), node.get("maxItems")
    count = f" of {least}" if least is not None and least == most else ""
    items = node.get("items", {})
    of = f", each {expectation(items)}" if items else ""
    return f"a list{count}{of}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing to mend: where it stands and what is wrong."""

    file: str
    key: str
    message: str

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.key}: {self.message}"
            if self.key
            else (f"{self.file}: {self.message}")
        )


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise one ConfigError with every problem once; nothing where there is none."""
    if problems:
        raise ConfigError([str(problem) for problem in dict.fromkeys(problems)])
