"""`gridrun evaluate`: score a checkpoint of a run on a split."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gridrun.errors import ConfigError, StoreError


def add_evaluate(commands: Any) -> None:
    """Declare `gridrun evaluate`."""
    command = commands.add_parser("evaluate", help="score a checkpoint on a split")
    command.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="a run's folder; default: the newest finished run of the sweep of "
        "hyperparams.json here",
    )
    command.add_argument("--split", default="test", help="train, val or test")
    command.add_argument(
        "--checkpoint", default="best", metavar="EPOCH", help="best, last or a number"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:i")
    command.set_defaults(function=evaluate)


def evaluate(given: argparse.Namespace) -> int:
    """`gridrun evaluate`."""
    from gridrun.analysis import tables
    from gridrun.analysis.sweep import Run

    folder = newest_run(Path("hyperparams.json")) if given.run is None else given.run
    if not (folder / "run.json").exists():
        raise StoreError(f"{folder}: no run here (it has no run.json)")
    run = Run(folder)
    text = given.checkpoint
    epoch: Any = int(text) if text.isdecimal() else text
    scores = run.evaluate(given.split, epoch, given.device, is_saved=True)
    rows = [{"metric": name, "value": value} for name, value in scores.items()]
    print(f"{folder}, {text}:\n{tables.text_table(rows)}")
    return 0


def newest_run(hyperparams: Path) -> Path:
    """The folder of the run that was finished last, in the sweep of a configuration.

    Raises:
        ConfigError, StoreError: If there is none.
    """
    from gridrun.analysis import tables
    from gridrun.config.files import absolute, read_json
    from gridrun.store import SweepFolder

    values, _ = read_json(hyperparams)
    if not isinstance(values, dict) or "exp_name" not in values:
        raise ConfigError(f"{hyperparams}: exp_name: required to find the sweep")
    root = absolute(str(values.get("save_root") or "."), Path.cwd())
    sweep = SweepFolder(Path(root) / str(values["exp_name"]))
    done = [run for run in tables.read_runs(sweep) if run.state.value == "done"]
    if not done:
        raise StoreError(f"{sweep.path}: no run is done yet")
    newest = max(
        done,
        key=lambda run: (run.record["attempts"][-1]["ended"], run.record["number"]),
    )
    return newest.folder.path
