"""`python -m benchmarks`: measure everything, print the table, write the results."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Setting, run_command
from benchmarks.table import (
    Row,
    circumstances,
    line,
    package_versions,
    write_results,
)

GROUPS = ("step", "grids", "bookkeeping", "scaling")
HERE = Path(__file__).parent


def main() -> int:
    """Measure the groups asked for; 1 if one of them failed."""
    given = parse()
    started = time.perf_counter()

    def note(text: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {text}", file=sys.stderr)

    rows: list[Row] = []
    facts = circumstances(peer_versions(given.peer_python))
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        setting = Setting(given.quick, Path(folder), given.peer_python, note)
        for group in given.only:
            for row in measured(group, setting):
                rows.append(row)
                name, *cells = line(row, given.quick)
                print(f"{name:72}" + "".join(f"{cell:>22}" for cell in cells))
                write_results(given.out, rows, facts, given.quick)
    print(f"\n{given.out}: results.md, results.json, results.png")
    return 1 if any(row.unit == "failed" for row in rows) else 0


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(GROUPS),
        help=f"some of {','.join(GROUPS)}",
    )
    parser.add_argument("--quick", action="store_true", help="smoke run, a minute")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--scratch", type=Path, help="folder for data and sweeps")
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        help="interpreter that has the peers installed",
    )
    given = parser.parse_args()
    if unknown := set(given.only) - set(GROUPS):
        parser.error(f"--only: {', '.join(sorted(unknown))}; there are {GROUPS}")
    return given


def peer_versions(python: str) -> dict[str, str]:
    """Versions of packages, as the peers see them."""
    if python == sys.executable:
        return package_versions()
    code = "import json; from benchmarks.table import package_versions; "
    code += "print(json.dumps(package_versions()))"
    found: dict[str, str] = json.loads(
        run_command([python, "-c", code]).checked().stdout
    )
    return found


def measured(group: str, setting: Setting) -> Iterator[Row]:
    """The rows of a group; an error ends it with a row that says so."""
    try:
        yield from importlib.import_module(f"benchmarks.{group}").rows(setting)
    except Exception as error:  # noqa: BLE001 - the other groups still count
        traceback.print_exc()
        text = str(error).strip().splitlines()
        yield Row(
            group, f"{group} ended early", None, "failed", details={"error": text[-1:]}
        )


if __name__ == "__main__":
    raise SystemExit(main())
