"""`gridrun status`, `results`, `report`: where a sweep stands, what came of it."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridrun.errors import ConfigError, GridrunError, StoreError

if TYPE_CHECKING:
    from gridrun.analysis.tables import Row, RunSummary
    from gridrun.store import SweepFolder

MAX_ROWS = 60
STATISTICS = ("n", "mean", "sd", "sem", "ci_low", "ci_high")
HIDDEN_COLUMNS = ("parameters", "engine", "folder", "seed")


def add_status(commands: Any) -> None:
    """Declare `gridrun status`."""
    command = commands.add_parser("status", help="where the runs of a sweep stand")
    command.add_argument("sweep", type=Path)
    command.set_defaults(function=status)


def status(given: argparse.Namespace) -> int:
    """`gridrun status`."""
    from gridrun.analysis import tables
    from gridrun.store import SweepFolder

    folder = SweepFolder(given.sweep)
    runs = tables.read_runs(folder)
    axes = tables.axis_names(runs)
    unfinished = [one for one in runs if one.state.value != "done"]
    listed = runs if len(runs) <= MAX_ROWS else unfinished[:MAX_ROWS]
    if listed:
        print(tables.text_table([_status_row(one, axes) for one in listed]))
    counts: dict[str, int] = {}
    for one in runs:
        counts[one.state.value] = counts.get(one.state.value, 0) + 1
    print(f"\n{len(runs)} runs: {', '.join(f'{n} {s}' for s, n in counts.items())}")
    queue = list(_queue_lines(folder))
    print("\n".join([_remaining(runs, is_queued=bool(queue)), *queue]))
    return 0


def _queue_lines(folder: SweepFolder) -> Iterator[str]:
    """What waits in Slurm's queue, where it can be asked."""
    from gridrun.executors.slurm import queued_jobs

    with contextlib.suppress(GridrunError):
        for job in queued_jobs(folder):
            if job.state not in ("RUNNING", "COMPLETING"):
                runs = ", ".join(map(str, job.runs))
                yield f"Slurm's job {job.id}: {job.state} ({job.reason}): runs {runs}"


def _status_row(one: RunSummary, axes: Sequence[str]) -> Row:
    from gridrun.analysis import tables

    monitor = str(one.hyps["monitor"]).partition(":")[0]
    values = [row[monitor] for row in one.epochs if monitor in row]
    is_max = monitor == "val_acc" or str(one.hyps["monitor"]).endswith(":max")
    best = (max if is_max else min)(values) if values else None
    n_done = int(one.epochs[-1]["epoch"]) if one.epochs else 0
    n_epochs = one.hyps["n_epochs"]
    return {
        "run": one.record["number"],
        "state": one.state.value,
        "repeat": one.record["repeat"],
        **{name: tables.cell(tables.axis_value(one, name)) for name in axes},
        "epoch": f"{n_done}/{n_epochs}"
        if n_done <= n_epochs
        else f"{n_done} (pruning)",
        f"best {monitor}": best,
        "error": one.record.get("error"),
    }


def _remaining(runs: Sequence[RunSummary], is_queued: bool) -> str:
    """The time left, from the epochs so far."""
    live = [one for one in runs if not one.state.is_final]
    if not live:
        return "nothing left to train"
    times = [row["time_s"] for one in runs for row in one.epochs]
    n_running = sum(one.state.value == "running" for one in live)
    n_left = sum(max(one.hyps["n_epochs"] - len(one.epochs), 0) for one in live)
    if not (n_running or is_queued):
        return "nobody is training; the same `run` command continues"
    if not (times and n_running):
        return f"{n_left} epochs left"
    workers = len({str(_worker(one)) for one in live if one.state.value == "running"})
    left_s = n_left * sum(times) / len(times) / max(workers, 1)
    return f"{n_left} epochs left, about {duration_text(left_s)}"


def _worker(one: RunSummary) -> Mapping[str, Any]:
    attempt = one.record["attempts"][-1]
    return {"host": attempt.get("host"), "pid": attempt.get("pid")}


def add_results(commands: Any) -> None:
    """Declare `gridrun results`."""
    command = commands.add_parser("results", help="the results of a sweep")
    command.add_argument("sweep", type=Path)
    command.add_argument(
        "--summary", action="store_true", help="statistics over repeats"
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true")
    form.add_argument("--json", action="store_true")
    command.add_argument("--sort", metavar="METRIC", help="best first")
    command.set_defaults(function=results)


def results(given: argparse.Namespace) -> int:
    """`gridrun results`."""
    from gridrun.analysis import tables
    from gridrun.store import SweepFolder

    runs = tables.read_runs(SweepFolder(given.sweep))
    make = tables.summary_rows if given.summary else tables.result_rows
    rows = make(runs)
    if given.sort:
        rows = _sorted(rows, given.sort, runs)
    if given.csv:
        print(tables.csv_text(rows), end="")
    elif given.json:
        print(json.dumps(tables.without_nan(rows), indent=2))
    else:
        print(summary_text(rows) if given.summary else results_text(rows))
    return 0


def add_report(commands: Any) -> None:
    """Declare `gridrun report`."""
    command = commands.add_parser("report", help="one HTML page about a sweep")
    command.add_argument("sweep", type=Path)
    command.add_argument(
        "--metric", help="a column of results.csv; default: val_acc, or the monitor's"
    )
    command.add_argument(
        "--mode",
        choices=("min", "max"),
        help="what is better, if its name does not tell",
    )
    command.add_argument(
        "--output", type=Path, help="default: report.html in the sweep's folder"
    )
    command.set_defaults(function=report)


def report(given: argparse.Namespace) -> int:
    """`gridrun report`."""
    from gridrun.analysis.report import write_report
    from gridrun.analysis.sweep import Sweep

    print(write_report(Sweep(given.sweep), given.metric, given.mode, given.output))
    return 0


def _sorted(rows: Sequence[Row], metric: str, runs: Sequence[RunSummary]) -> list[Row]:
    from gridrun.analysis.tables import better
    from gridrun.config import suggest

    known = list(rows[0]) if rows else []
    column = metric if metric in known else f"{metric}_mean"
    if column not in known and not any(one.epochs for one in runs):
        raise StoreError("no run has finished an epoch yet")
    if column not in known:
        raise ConfigError(f"--sort: unknown column {metric!r}{suggest(metric, known)}")
    try:
        sign = -1 if better(metric.removesuffix("_mean"), None, runs) == "max" else 1
    except ConfigError:  # no metric: a number, an axis
        sign = 1
    return sorted(
        rows,
        key=lambda row: (row[column] is None, sign * (row[column] or 0)),
    )


def results_text(rows: Sequence[Row]) -> str:
    """The columns of result rows that fit a terminal."""
    from gridrun.analysis.tables import text_table

    if not rows:
        return "(no runs)"
    shown = [
        name
        for name in rows[0]
        if name not in HIDDEN_COLUMNS
        and not name.endswith("_last")
        and not (name == "error" and all(row[name] is None for row in rows))
    ]
    return text_table(rows, shown)


def summary_text(rows: Sequence[Row]) -> str:
    """Mean ± half the 95 % interval of each metric."""
    from gridrun.analysis.tables import text_table

    short = []
    for row in rows:
        metrics = [name.removesuffix("_ci_low") for name in row if "_ci_low" in name]
        parts = {f"{metric}_{part}" for metric in metrics for part in STATISTICS}
        line: Row = {name: value for name, value in row.items() if name not in parts}
        for metric in metrics:
            line.setdefault("n", row[f"{metric}_n"])
            if not metric.endswith("_last"):
                mean, high = row[f"{metric}_mean"], row[f"{metric}_ci_high"]
                line[metric] = _interval(mean, high)
        short.append(line)
    return text_table(short)


def _interval(mean: float | None, high: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.4g}" + ("" if high is None else f" ± {high - mean:.2g}")


def duration_text(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min, 5.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
