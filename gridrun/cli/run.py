"""`gridrun run`: train what is missing of a grid."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gridrun.cli import show
from gridrun.cli.show import MAX_ROWS
from gridrun.errors import ConfigError

if TYPE_CHECKING:
    from gridrun.plan import Plan
    from gridrun.sweep import Outcome

KEY_OPTIONS = (
    "workers",
    "threads",
    "executor",
    "device",
    "save_root",
    "data_root",
    "plugins",
)
CLUSTERS = ("slurm", "ray")


def add_run(commands: Any) -> None:
    """Declare `gridrun run`."""
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
    for name in CLUSTERS:
        command.add_argument(
            f"--{name}",
            nargs="+",
            metavar="key=value",
            help=f"{name} trains, with these executor_args",
        )
    command.add_argument("--device", help="auto, cpu, cuda or cuda:i")
    command.add_argument("--save-root", help="folder that gets the sweep's folder")
    command.add_argument("--data-root", help="folder of the data sets")
    command.add_argument("--plugins", help="folder of plug-in files")
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


def cluster_options(given: argparse.Namespace) -> dict[str, Any]:
    """`--slurm` or `--ray` as keys.

    Raises:
        ConfigError: If one contradicts `--executor` or the other.
    """
    from gridrun.config import parse_override, set_nested
    from gridrun.config.cluster_args import ARGS

    found: dict[str, Any] = {}
    for name in CLUSTERS:
        texts = getattr(given, name)
        if texts is None:
            continue
        executor = found.get("executor", given.executor)
        if executor not in (None, name):
            text = f"given together with executor {executor}; keep one"
            raise ConfigError(f"command line: --{name}: {text}")
        args: dict[str, Any] = {}
        for text in texts:
            key, value = parse_override(text, ARGS[name])
            try:
                set_nested(args, key, value)
            except TypeError as error:
                raise ConfigError(f"command line: --{name}: {error}") from error
        found = {"executor": name, "executor_args": args}
    return found


def run(given: argparse.Namespace) -> int:
    """`gridrun run`."""
    from gridrun.plan import plan_sweep
    from gridrun.request import read_request
    from gridrun.sweep import run_request

    options = {
        name: value
        for name in KEY_OPTIONS
        if (value := getattr(given, name)) is not None
    } | cluster_options(given)
    request = read_request(*split_inputs(given.inputs), options)
    if given.dry_run:
        return dry_run(plan_sweep(request))
    outcome = run_request(request, given.retry_failed, given.on_change, given.quiet)
    return report_results(outcome, given.quiet)


def report_results(outcome: Outcome, quiet: bool) -> int:
    """Print the table of the request's runs; 1 if one failed."""
    from gridrun.analysis import tables
    from gridrun.guard import is_set_aside

    runs = outcome.runs
    if not quiet:
        axes = tables.axis_names(runs)
        print(show.results_text(tables.result_rows(runs[:MAX_ROWS], axes)))
        if len(runs) > MAX_ROWS:
            print(f"... {len(runs) - MAX_ROWS} more")
        print(f"\n{outcome.folder.path}: results.csv, summary.csv, one folder per run")
    bad = [
        one
        for one in runs
        if one.state.value in ("failed", "diverged") or is_set_aside(one.record)
    ]
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
    from gridrun.executors.fork_server import ForkServer
    from gridrun.sweep import make_executor

    runs = tables.read_runs(plan.folder) if plan.folder.exists() else []
    done = [one for one in runs if one.state.value == "done"]
    if not done:
        return "time and disk: unknown until a run of this sweep is finished"
    seconds = sum(r["time_s"] for one in done for r in one.epochs) / len(done)
    size = sum(
        path.stat().st_size for one in done for path in one.folder.path.rglob("*")
    ) / len(done)
    server = ForkServer(plan.request.library.name)
    n_at_once = make_executor(plan.hyps, plan.folder, server, "refuse").n_workers
    total_s = seconds * n_pending / n_at_once
    return (
        f"about {show.duration_text(total_s)}, {size * n_pending / 1e6:.1f} MB "
        f"(from {len(done)} finished runs)"
    )
