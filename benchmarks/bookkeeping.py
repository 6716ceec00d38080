"""What the framework itself costs: runs whose training does nothing, and commands."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import COMMAND, GRIDRUN, Setting, run_command
from benchmarks.scenarios import DIGITS
from benchmarks.table import Row

GROUP = "Bookkeeping"
SHIPPED = Path(__file__).parents[1] / "training_scripts"


def rows(setting: Setting) -> Iterator[Row]:
    """The rows of this group, as they are measured."""
    n_runs = 120 if setting.is_quick else 10_000
    yield from stub_runs(n_runs, setting)
    yield from commands(n_runs, setting)


def stub_sweep(n_runs: int, root: Path) -> dict[str, Any]:
    """Run a stub sweep in a process of its own; what it cost."""
    command = [sys.executable, "-m", "benchmarks.stub", str(n_runs), str(root)]
    found: dict[str, Any] = json.loads(run_command(command).checked().stdout)
    if found["n_done"] != n_runs:
        raise RuntimeError(f"{found['n_done']} of {n_runs} stub runs done")
    return found


def stub_runs(n_runs: int, setting: Setting) -> Iterator[Row]:
    """Cost per run, memory, completeness, and resuming what is finished."""
    setting.note(f"bookkeeping: {n_runs} stub runs")
    root = setting.folder / "stub"
    found = stub_sweep(n_runs, root)
    each = {"runs": n_runs}
    cpu_ms, wall_ms = (1e3 * found[name] / n_runs for name in ("cpu_s", "wall_s"))
    name = "framework cost per run"
    yield Row(GROUP, f"{name}, processor", cpu_ms, "ms", "<=", 2, each)
    yield Row(GROUP, f"{name}, wall clock", wall_ms, "ms", "<=", 6, each)
    growth = found["peak_mib"] - (found["warm_mib"] or found["peak_mib"])
    details = {"peak_mib": found["peak_mib"]}
    # MB, as the target says
    yield Row(GROUP, "memory growth", growth * 1.048576, "MB", "<=", 50, details)
    with (root / "stub" / "results.csv").open(encoding="utf-8") as file:
        n_rows = sum(row["state"] == "done" for row in csv.DictReader(file))
    share = n_rows / n_runs
    yield Row(GROUP, "share of runs in the results table", share, "", ">=", 1, each)
    again = stub_sweep(n_runs, root)
    yield Row(GROUP, "resume scan of all runs", again["wall_s"], "s", "<=", 5, each)


def commands(n_runs: int, setting: Setting) -> Iterator[Row]:
    """Commands that train nothing, start-up included."""
    rounds = 1 if setting.is_quick else 3
    n_small = 20 if setting.is_quick else 500
    small = setting.folder / "stub-small"
    setting.note("bookkeeping: status, results, errors, --dry-run")
    stub_sweep(n_small, small)
    for n, root, limit in (
        (n_small, small, 1.0),
        (n_runs, setting.folder / "stub", None),
    ):
        for name in ("status", "results"):
            yield command_row(
                f"`{name}` of {n} runs",
                [*COMMAND, name, str(root / "stub")],
                limit,
                rounds,
            )
    given = setting.folder / "mistaken.json"
    given.write_text(json.dumps(DIGITS | {"learning_rat": 0.1}), encoding="utf-8")
    mistaken = [*COMMAND, "run", str(given)]
    yield command_row("error in a file", mistaken, 1.0, rounds, code=2)
    values = DIGITS | {"ksizes": [9, 9], "paddings": [0, 0], "n_epochs": 1}
    given = setting.folder / "unfit.json"
    given.write_text(json.dumps(values), encoding="utf-8")
    unfit = [*COMMAND, "run", str(given)]
    yield command_row("error that needs a model class", unfit, 4.0, rounds, code=2)
    pair = [str(SHIPPED / name) for name in ("hyperparams.json", "hyperranges.json")]
    options = ["--dry-run", "--save-root", str(setting.folder / "dry")]
    yield command_row(
        "`--dry-run` of the shipped pair", [*GRIDRUN, *pair, *options], 4.0, rounds
    )


def command_row(
    name: str, command: list[str], limit: float | None, n_rounds: int, code: int = 0
) -> Row:
    """The shortest of several runs of a command, which must end with `code`."""
    both = [run_command(command) for _ in range(n_rounds)]
    for one in both:
        if one.code != code:
            raise RuntimeError(f"{name}: exit code {one.code}: {one.stderr[-2000:]}")
    facts: dict[str, Any] = {}
    if command[0] == COMMAND[0] and command[1] == COMMAND[1]:
        facts["torch_imported"] = "torch imported" in both[0].stderr
    seconds = min(one.wall_s for one in both)
    return Row(GROUP, name, seconds, "s", "<=" if limit else "", limit, facts)
