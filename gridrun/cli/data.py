"""`gridrun data ...`: check, and the commands that libraries define."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from typing import Any


def add_data(commands: Any, arguments: Sequence[str]) -> None:
    """Declare `gridrun data`; options only of the kind that is asked for."""
    from gridrun.plugins import libraries

    command = commands.add_parser("data", help="make, import and check data sets")
    kinds = command.add_subparsers(dest="kind", required=True, metavar="KIND")
    add_check(kinds)
    for library in libraries().values():
        for name, module in library.data_commands.items():
            kind = kinds.add_parser(name, help=f"{library.name}: see --help")
            kind.set_defaults(function=library_command, module=module)
            if list(arguments[:2]) == ["data", name]:
                importlib.import_module(module).add_arguments(kind)


def library_command(given: argparse.Namespace) -> int:
    """`gridrun data ...`: a command that a library defines."""
    return int(importlib.import_module(given.module).main(given))


def add_check(kinds: Any) -> None:
    """Declare `gridrun data check`."""
    kind = kinds.add_parser("check", help="what a file holds, and its defects")
    kind.add_argument("data", metavar="PATH|DATASET", help="a file or data set")
    kind.add_argument("--data-root", help="default: $GRIDRUN_DATA")
    kind.add_argument("--json", action="store_true", help="for machines")
    kind.set_defaults(function=check)


def check(given: argparse.Namespace) -> int:
    """`gridrun data check`: a report on each file; 2 if one has errors."""
    from gridrun.analysis.tables import without_nan
    from gridrun.data_check import as_json, check_file, files_of

    reports = [check_file(path) for path in files_of(given.data, given.data_root)]
    if given.json:
        print(json.dumps(without_nan([as_json(one) for one in reports]), indent=2))
        return 2 if any(one.problems for one in reports) else 0
    for one in reports:
        print(one.path)
        for line in one.lines:
            print(f"  {line}")
        for kind, texts in (("warning", one.warnings), ("error", one.problems)):
            for text in texts:
                print(f"  {kind}: {text}")
        print(one.verdict)
    return 2 if any(one.problems for one in reports) else 0
