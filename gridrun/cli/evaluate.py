"""`gridrun evaluate`: score a checkpoint of a run on a split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
        "--checkpoint",
        default="best",
        metavar="EPOCH",
        help="best, last or a number; with --evaluator also pruned",
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:i")
    command.add_argument(
        "--evaluator", metavar="NAME", help="a plug-in: function of run, split, epoch"
    )
    command.add_argument(
        "arguments", nargs="*", metavar="key=value", help="arguments of the evaluator"
    )
    command.add_argument(
        "--plugins", help="folder of plug-ins that the run's record may use"
    )
    command.add_argument(
        "--imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module, or a package of them, that it may import; may stand again",
    )
    command.set_defaults(function=evaluate)


def evaluate(given: argparse.Namespace) -> int:
    """`gridrun evaluate`."""
    from gridrun.analysis import tables
    from gridrun.analysis.run import EvaluatorError, Run, existing_folder

    folder, arguments, plugins = given.run, given.arguments, given.plugins
    if folder is not None and "=" in folder.name and not folder.exists():
        folder, arguments = None, [str(folder), *arguments]
    if plugins is not None:
        plugins = existing_folder(plugins)
    if folder is None:
        here = Path("hyperparams.json")
        folder = newest_run(here)
        plugins = plugins or plugins_of(here)
    if not (folder / "run.json").exists():
        raise StoreError(f"{folder}: no run here (it has no run.json)")
    run = Run(folder, plugins, given.imports)
    text = given.checkpoint
    is_number = text.isdecimal() and len(text) < 20
    epoch: Any = int(text) if is_number else text
    if given.evaluator is not None:
        args = _values(arguments)
        try:
            found = run.evaluate_with(
                given.evaluator, args, given.split, epoch, True, given.device
            )
        except EvaluatorError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    elif arguments:
        raise ConfigError(f"command line: {arguments[0]}: needs --evaluator")
    else:
        found = run.evaluate(given.split, epoch, given.device, is_saved=True)
    rows = [{"metric": name, "value": value} for name, value in found.items()]
    print(f"{folder}, {text}:\n{tables.text_table(rows)}")
    return 0


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts; the values are JSON, else text."""
    from gridrun.config.files import parse_json

    found: dict[str, Any] = {}
    for argument in arguments:
        name, sign, text = argument.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"command line: {argument!r}: expected key=value")
        if name in found:
            raise ConfigError(f"command line: {name}: stands twice; keep one")
        try:
            found[name], wrong = parse_json(text, name)
        except ConfigError:
            found[name], wrong = text, []
        if wrong:
            raise ConfigError([f"command line: {name}: {why}" for _, why in wrong])
    return found


def plugins_of(hyperparams: Path) -> str | None:
    """The folder of plug-ins of a configuration, or that beside it."""
    from gridrun.config.files import absolute, read_json

    values, _ = read_json(hyperparams)
    if values.get("plugins") is not None:
        return absolute(str(values["plugins"]), hyperparams.absolute().parent)
    beside = hyperparams.absolute().parent / "plugins"
    return str(beside) if beside.is_dir() else None


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
