"""`gridrun schema` and `models`: what the libraries hold."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from gridrun.errors import ConfigError, GridrunError

if TYPE_CHECKING:
    from gridrun.plugins import Library


def add_schema(commands: Any) -> None:
    """Declare `gridrun schema`."""
    command = commands.add_parser("schema", help="JSON Schema of a library's keys")
    command.add_argument("library")
    command.set_defaults(function=show_schema)


def add_models(commands: Any) -> None:
    """Declare `gridrun models`."""
    command = commands.add_parser("models", help="models and the keys that each uses")
    command.add_argument("--units", type=int, default=10, help="cells or classes (10)")
    command.set_defaults(function=show_models)


def show_schema(given: argparse.Namespace) -> int:
    """`gridrun schema`."""
    from gridrun.config import json_schema, suggest
    from gridrun.plugins import libraries

    if given.library not in libraries():
        raise ConfigError(
            f"unknown library {given.library!r}{suggest(given.library, libraries())}"
        )
    library = libraries()[given.library]
    schema = json.loads(json.dumps(json_schema(library.schema)))
    kind = schema["properties"]["model_type"]
    if library.model_names:  # editors complete these; plug-ins have other names
        kind["anyOf"] = [
            {"enum": list(library.model_names)},
            {"type": kind.pop("type")},
        ]
    print(json.dumps(schema, indent=2, ensure_ascii=False))
    return 0


def show_models(given: argparse.Namespace) -> int:
    """`gridrun models`."""
    import textwrap

    from gridrun.plugins import libraries, reads

    if given.units < 1:
        raise ConfigError(f"--units: expected an integer ≥ 1, got {given.units}")
    for library in libraries().values():
        if not library.model_names:
            continue
        print(f"{library.name} (parameters: default keys, {given.units} units)\n")
        for name in library.model_names:
            model = library.model(name)
            summary, source = _documented(model)
            keys = sorted(reads(model) & set(library.schema.model_fields))
            lines = {"": summary, "source: ": source, "uses: ": ", ".join(keys)}
            print(f"  {name}, {_default_size(library, name, given.units)}")
            for label, text in lines.items():
                if text:
                    indent = " " * 6
                    print(
                        textwrap.fill(
                            label + text,
                            88,
                            initial_indent=indent,
                            subsequent_indent=indent + "  ",
                        )
                    )
            print()
    return 0


def _documented(model: type[Any]) -> tuple[str, str]:
    """A class's summary, and the source that its docstring names."""
    import inspect

    text = inspect.getdoc(model) or ""
    found = re.search(r"Source: (.*?)(?:\n\n|$)", text, re.DOTALL)
    source = " ".join(found.group(1).split()) if found else ""
    return text.partition("\n")[0], source


def _default_size(library: Library, name: str, n_units: int) -> str:
    from gridrun.training.models import default_model, n_parameters

    try:
        return f"{n_parameters(default_model(library, name, n_units)):,} parameters"
    except (GridrunError, TypeError) as error:
        return f"cannot be built from default keys: {error}"
