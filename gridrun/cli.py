"""The command line `gridrun`; each command is one function. Loads torch only to train.

Exit codes: 0 all runs done; 1 some run failed or diverged; 2 bad usage, configuration
or data, with nothing written; 130, 143, 140 stopped by SIGINT, SIGTERM, SIGUSR2.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridrun.errors import ConfigError, GridrunError, StoreError, SweepStopped

if TYPE_CHECKING:
    from gridrun.analysis.tables import Row, RunSummary
    from gridrun.plan import Plan
    from gridrun.plugins import Library

MAX_ROWS = 60
KEY_OPTIONS = ("workers", "threads", "executor", "device", "save_root", "data_root")
STATISTICS = ("n", "mean", "sd", "sem", "ci_low", "ci_high")
HIDDEN_COLUMNS = ("parameters", "engine", "folder", "seed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(arguments)
    given, rest = parser.parse_known_args(arguments)
    if rest and (given.command != "run" or any(r.startswith("-") for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if given.command == "run":
        given.inputs += rest
    level = logging.INFO if given.command == "data" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    try:
        return int(given.function(given))
    except SweepStopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.number
    except GridrunError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, say: what is finished is kept
        print(f"error: {error}", file=sys.stderr)
        return 1


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The commands and their options; of `data` only those of the kind asked for."""
    parser = argparse.ArgumentParser(
        prog="gridrun", description="Hyperparameter grids for PyTorch."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_status(commands)
    _add_results(commands)
    command = commands.add_parser("schema", help="JSON Schema of a library's keys")
    command.add_argument("library")
    command.set_defaults(function=show_schema)
    command = commands.add_parser("models", help="models and the keys that each uses")
    command.add_argument("--units", type=int, default=10, help="cells or classes (10)")
    command.set_defaults(function=show_models)
    _add_data(commands, arguments)
    return parser


# --- run --------------------------------------------------------------------------


def _add_run(commands: Any) -> None:
    command = commands.add_parser(
        "run",
        help="train what is missing of a grid",
        description="Train every grid point n_repeats times; finished runs are kept.",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE|key=value",
        help="hyperparams.json, then hyperranges.json if any, then overrides",
    )
    command.add_argument("--workers", type=_number_or_auto, help="worker processes")
    command.add_argument("--threads", type=int, help="CPU threads of each worker")
    command.add_argument("--executor", choices=["serial", "process", "slurm", "ray"])
    command.add_argument("--device", help="auto, cpu, cuda or cuda:i")
    command.add_argument("--save-root", help="folder that gets the sweep's folder")
    command.add_argument("--data-root", help="folder of the data sets")
    command.add_argument(
        "--dry-run", action="store_true", help="check everything, write nothing"
    )
    command.add_argument(
        "--retry-failed", action="store_true", help="failed and diverged runs again"
    )
    command.add_argument(
        "--on-change",
        choices=["refuse", "continue", "restart"],
        default="refuse",
        help="half-trained runs whose versions, threads, device, data or model "
        "source have changed",
    )
    command.add_argument("--quiet", action="store_true", help="report failures only")
    command.set_defaults(function=run)


def _number_or_auto(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"expected auto or an integer ≥ 1, got {text!r}")


def split_inputs(inputs: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """hyperparams, hyperranges or None, and overrides.

    Raises:
        ConfigError: If an input is out of place.
    """
    hyperparams, *rest = inputs
    if "=" in hyperparams:
        raise ConfigError(
            f"command line: {hyperparams}: the first argument is hyperparams.json"
        )
    hyperranges = None
    if rest and "=" not in rest[0] and rest[0] != "with":
        hyperranges, *rest = rest
    if rest and rest[0] == "with":
        rest = rest[1:]
    return hyperparams, hyperranges, rest


def run(given: argparse.Namespace) -> int:
    """`gridrun run`."""
    from gridrun.plan import plan_sweep
    from gridrun.request import read_request
    from gridrun.sweep import execute

    options = {
        name: value
        for name in KEY_OPTIONS
        if (value := getattr(given, name)) is not None
    }
    request = read_request(*split_inputs(given.inputs), options)
    plan = plan_sweep(request)
    if given.dry_run:
        return dry_run(plan)
    numbering = execute(
        plan,
        retry_failed=given.retry_failed,
        on_change=given.on_change,
        quiet=given.quiet,
    )
    numbers = {planned.number for planned in numbering.runs}
    return report_results(plan, numbers, given.quiet)


def report_results(plan: Plan, numbers: Collection[int], quiet: bool) -> int:
    """Print the table of the request's runs; 1 if one failed."""
    from gridrun.analysis import tables

    everything = tables.read_runs(plan.folder)
    runs = [one for one in everything if one.record["number"] in numbers]
    if not quiet:
        print(results_text(tables.result_rows(runs)[:MAX_ROWS]))
        if len(runs) > MAX_ROWS:
            print(f"... {len(runs) - MAX_ROWS} more")
        print(f"\n{plan.folder.path}: results.csv, summary.csv, one folder per run")
    bad = [one for one in runs if one.state.value in ("failed", "diverged")]
    for one in bad:
        where = one.folder.failure if one.folder.failure.exists() else one.folder.path
        print(
            f"run {one.record['number']} {one.state.value}: "
            f"{one.record.get('error')} ({where})",
            file=sys.stderr,
        )
    if bad:
        print(
            f"{len(bad)} of {len(runs)} runs did not succeed; --retry-failed trains "
            "them again",
            file=sys.stderr,
        )
    return 1 if bad else 0


def dry_run(plan: Plan) -> int:
    """Print what would be trained."""
    from gridrun.analysis import tables
    from gridrun.plan import number_runs

    for notice in plan.notices:
        print(notice)
    numbering = number_runs(plan)
    rows = [
        {
            "number": planned.number,
            "state": planned.state.value,
            "repeat": planned.spec.repeat,
            "seed": planned.spec.hyps.seed,
            **{name: tables.cell(v) for name, v in planned.spec.axes.items()},
        }
        for planned in numbering.runs
    ]
    print(tables.text_table(rows[:MAX_ROWS]))
    if len(rows) > MAX_ROWS:
        print(f"... {len(rows) - MAX_ROWS} more")
    n_pending = sum(row["state"] not in ("done", "failed", "diverged") for row in rows)
    print(f"\n{len(rows)} runs, {n_pending} to train, in {plan.folder.path}")
    print(_estimate(plan, n_pending))
    return 0


def _estimate(plan: Plan, n_pending: int) -> str:
    from gridrun.analysis import tables
    from gridrun.sweep import worker_places

    runs = tables.read_runs(plan.folder) if plan.folder.exists() else []
    done = [one for one in runs if one.state.value == "done"]
    if not done:
        return "time and disk: unknown until a run of this sweep is finished"
    seconds = sum(r["time_s"] for one in done for r in one.epochs) / len(done)
    size = sum(
        path.stat().st_size for one in done for path in one.folder.path.rglob("*")
    ) / len(done)
    total_s = seconds * n_pending / worker_places(plan.hyps)[0]
    return (
        f"about {duration_text(total_s)}, {size * n_pending / 1e6:.1f} MB "
        f"(from {len(done)} finished runs)"
    )


def duration_text(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min, 5.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


# --- looking at sweeps ------------------------------------------------------------


def _add_status(commands: Any) -> None:
    command = commands.add_parser("status", help="where the runs of a sweep stand")
    command.add_argument("sweep", type=Path)
    command.set_defaults(function=status)


def status(given: argparse.Namespace) -> int:
    """`gridrun status`."""
    from gridrun.analysis import tables
    from gridrun.store import SweepFolder

    runs = tables.read_runs(SweepFolder(given.sweep))
    axes = tables.axis_names(runs)
    unfinished = [one for one in runs if one.state.value != "done"]
    listed = runs if len(runs) <= MAX_ROWS else unfinished[:MAX_ROWS]
    if listed:
        print(tables.text_table([_status_row(one, axes) for one in listed]))
    counts: dict[str, int] = {}
    for one in runs:
        counts[one.state.value] = counts.get(one.state.value, 0) + 1
    print(f"\n{len(runs)} runs: {', '.join(f'{n} {s}' for s, n in counts.items())}")
    print(_remaining(runs))
    return 0


def _status_row(one: RunSummary, axes: Sequence[str]) -> Row:
    from gridrun.analysis import tables

    monitor = str(one.hyps["monitor"]).partition(":")[0]
    values = [row[monitor] for row in one.epochs if monitor in row]
    is_max = monitor == "val_acc" or str(one.hyps["monitor"]).endswith(":max")
    best = (max if is_max else min)(values) if values else None
    n_done = int(one.epochs[-1]["epoch"]) if one.epochs else 0
    return {
        "run": one.record["number"],
        "state": one.state.value,
        "repeat": one.record["repeat"],
        **{name: tables.cell(tables.axis_value(one, name)) for name in axes},
        "epoch": f"{n_done}/{one.hyps['n_epochs']}",
        f"best {monitor}": best,
        "error": one.record.get("error"),
    }


def _remaining(runs: Sequence[RunSummary]) -> str:
    """The time left, from the epochs so far."""
    live = [one for one in runs if not one.state.is_final]
    if not live:
        return "nothing left to train"
    times = [row["time_s"] for one in runs for row in one.epochs]
    n_running = sum(one.state.value == "running" for one in live)
    n_left = sum(max(one.hyps["n_epochs"] - len(one.epochs), 0) for one in live)
    if not n_running:
        return "nobody is training; the same `run` command continues"
    if not times:
        return f"{n_left} epochs left"
    workers = len({str(_worker(one)) for one in live if one.state.value == "running"})
    left_s = n_left * sum(times) / len(times) / max(workers, 1)
    return f"{n_left} epochs left, about {duration_text(left_s)}"


def _worker(one: RunSummary) -> Mapping[str, Any]:
    attempt = one.record["attempts"][-1]
    return {"host": attempt.get("host"), "pid": attempt.get("pid")}


def _add_results(commands: Any) -> None:
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


# --- libraries --------------------------------------------------------------------


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
    schema["properties"]["model_type"]["enum"] = list(library.model_names)
    print(json.dumps(schema, indent=2, ensure_ascii=False))
    return 0


def show_models(given: argparse.Namespace) -> int:
    """`gridrun models`."""
    import textwrap

    from gridrun.plugins import libraries, reads

    if given.units < 1:
        raise ConfigError(f"--units: expected an integer ≥ 1, got {given.units}")
    for library in libraries().values():
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
    from gridrun.training.trainer import default_model, n_parameters

    try:
        return f"{n_parameters(default_model(library, name, n_units)):,} parameters"
    except (GridrunError, TypeError) as error:
        return f"cannot be built from default keys: {error}"


def _add_data(commands: Any, arguments: Sequence[str]) -> None:
    command = commands.add_parser("data", help="make, import and check data sets")
    kinds = command.add_subparsers(dest="kind", required=True, metavar="KIND")
    from gridrun.plugins import libraries

    modules = {"check": ("any library", "gridrun.data_check")}
    for library in libraries().values():
        for name, module in library.data_commands.items():
            modules[name] = (library.name, module)
    for name, (owner, module) in modules.items():
        kind = kinds.add_parser(name, help=f"{owner}: see --help")
        kind.set_defaults(function=data_command, module=module)
        if list(arguments[:2]) == ["data", name]:
            importlib.import_module(module).add_arguments(kind)


def data_command(given: argparse.Namespace) -> int:
    """`gridrun data ...`: a command that a library defines."""
    return int(importlib.import_module(given.module).main(given))


if __name__ == "__main__":
    sys.exit(main())
