"""The hyperparameter reference of training_scripts/README.md, from the schemas.

`python -m gridrun.config.reference FILE` rewrites the part of a file below its mark.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from gridrun.config.checks import json_schema
from gridrun.config.declare import Group
from gridrun.config.keys import Hyperparams, defaults_of, keys_of
from gridrun.config.messages import expectation
from gridrun.plugins import libraries

MARK = "<!-- below: made by `make reference` from the schemas -->"
TITLES: dict[Group, str] = {
    "sweep": "Sweep and seeds",
    "model": "Model",
    "data": "Data",
    "training": "Training",
    "pruning": "Pruning",
    "runner": "Options of the runner",
}


def reference() -> str:
    """Tables of all keys of all libraries, as Markdown."""
    lines: list[str] = []
    for group, title in TITLES.items():
        lines += [f"## {title}", ""]
        lines += [
            "| Key | Library | Value | Default | Meaning |",
            "|---|---|---|---|---|",
        ]
        lines += _rows(group)
        lines.append("")
    return "\n".join(lines)


def _rows(group: Group) -> Iterator[str]:
    schemas = {name: library.schema for name, library in libraries().items()}
    names = dict.fromkeys(
        name
        for schema in schemas.values()
        for name, facts in keys_of(schema).items()
        if facts.group == group
    )
    for name in names:
        rows: dict[str, list[str]] = {}
        for library, schema in schemas.items():
            if name in schema.model_fields:
                rows.setdefault(_row(name, schema), []).append(library)
        for row, having in rows.items():
            library = "all" if len(having) == len(schemas) else " ".join(having)
            yield f"| `{name}` | {library} | {row} |"


def _row(name: str, schema: type[Hyperparams]) -> str:
    default = defaults_of(schema).get(name, ...)
    shown = "required" if default is ... else f"`{json.dumps(default)}`"
    meaning = (schema.model_fields[name].description or "").replace("|", "\\|")
    value = expectation(json_schema(schema)["properties"][name]).replace("|", "\\|")
    return f"{value} | {shown} | {meaning}"


def rewrite(path: Path) -> None:
    """Replace everything below the mark."""
    kept, mark, _ = path.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise SystemExit(f"{path}: the line {MARK!r} is missing")
    path.write_text(f"{kept}{MARK}\n\n{reference()}", encoding="utf-8")


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]))
