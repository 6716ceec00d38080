"""`gridrun repair`: bring a sweep folder in order."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_repair(commands: Any) -> None:
    """Declare `gridrun repair`."""
    command = commands.add_parser(
        "repair", help="rebuild the tables, remove leftovers, name what is damaged"
    )
    command.add_argument("sweep", type=Path)
    command.set_defaults(function=repair)


def repair(given: argparse.Namespace) -> int:
    """`gridrun repair`; 1 if something is left to do."""
    from gridrun.repair import repair_sweep
    from gridrun.store import SweepFolder

    found = repair_sweep(SweepFolder(given.sweep))
    for finding in found:
        print(finding.text)
    left = sum(not finding.is_mended for finding in found)
    rest = f"{left} damaged files are left" if left else "every file is whole"
    print(f"{given.sweep}: tables rebuilt; {rest}")
    return 1 if left else 0
