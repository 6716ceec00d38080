"""The command line `gridrun`; each command is one function. Loads torch only to train.

Exit codes: 0 all runs done; 1 some run failed or diverged, nothing more can be written,
or a cluster refuses; 2 bad usage, configuration or data, with nothing written; 130,
143, 140 stopped by SIGINT, SIGTERM, SIGUSR2.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from gridrun.cli.data import add_data
from gridrun.cli.evaluate import add_evaluate
from gridrun.cli.models import add_models, add_schema
from gridrun.cli.new import add_new
from gridrun.cli.repair import add_repair
from gridrun.cli.run import add_run
from gridrun.cli.show import add_report, add_results, add_status
from gridrun.errors import ClusterError, GridrunError, StorageError, SweepStopped

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    is_run = arguments[:1] == ["run"]
    here = str(Path.cwd())
    if here not in sys.path:  # import paths of a user's own modules
        sys.path.append(here)
    with exits_on_signals() if is_run else contextlib.nullcontext():
        return _run_command(arguments)


def _run_command(arguments: Sequence[str]) -> int:
    parser = build_parser(arguments)
    given, rest = parser.parse_known_args(arguments)
    takes_more = {"run": "inputs", "evaluate": "arguments"}.get(given.command)
    if rest and (takes_more is None or any(r.startswith("-") for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if takes_more is not None:
        setattr(given, takes_more, [*getattr(given, takes_more), *rest])
    level = logging.INFO if given.command == "data" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    try:
        return int(given.function(given))
    except SweepStopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.number
    except (StorageError, ClusterError) as error:  # what is finished is kept
        print(f"error: {error}", file=sys.stderr)
        return 1
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


def train() -> int:
    """The command `train`: `gridrun run`, of hyperparams.json here if none is named."""
    arguments = sys.argv[1:]
    is_named = bool(arguments) and arguments[0].endswith(".json")
    return main(["run", *([] if is_named else ["hyperparams.json"]), *arguments])


def evaluate() -> int:
    """The command `evaluate`: `gridrun evaluate`."""
    return main(["evaluate", *sys.argv[1:]])


@contextlib.contextmanager
def exits_on_signals() -> Iterator[None]:
    """End at once where no sweep handles signals; what is on disk is whole.

    An exception instead could be swallowed by a module that is just being imported.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{SweepStopped(number)}\n".encode())
        os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The commands and their options; of `data` only those of the kind asked for."""
    parser = argparse.ArgumentParser(
        prog="gridrun", description="Hyperparameter grids for PyTorch."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        add_run,
        add_status,
        add_results,
        add_report,
        add_evaluate,
        add_repair,
        add_new,
        add_schema,
        add_models,
    ):
        add(commands)
    add_data(commands, arguments)
    return parser
