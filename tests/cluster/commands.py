"""Commands of a small sweep, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strategies import OF_SET

SLOW = '''
import time
from gridrun.tracking.callback import Callback


class Slow(Callback):
    """Takes its time after each epoch, so that a test can come in between."""

    def on_epoch_end(self, run, row):
        time.sleep(self.args["seconds"])
'''


def write_request(folder: Path, data_root: Path, seconds: float = 0.0) -> list[str]:
    """hyperparams.json and hyperranges.json of two grid points with two repeats."""
    (folder / "plugins").mkdir(parents=True)
    (folder / "plugins" / "slow.py").write_text(SLOW)
    hyps: dict[str, Any] = {
        "exp_name": "sweep",
        "n_repeats": 2,
        "seed": 5,
        "split_seed": 5,
        **OF_SET,
        "data_root": str(data_root),
        "batch_size": 16,
        "n_epochs": 5,
        "trackers": ["Slow"],
        "tracker_args": {"Slow": {"seconds": seconds}},
    }
    files = folder / "hyperparams.json", folder / "hyperranges.json"
    files[0].write_text(json.dumps(hyps))
    files[1].write_text(json.dumps({"lr": [0.01, 0.02]}))
    return [str(path) for path in files]


def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    """Begin `gridrun run`."""
    return subprocess.Popen(
        [sys.executable, "-m", "gridrun", "run", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
    )


def train(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """`gridrun run`, to its end."""
    process = start(*arguments, **variables)
    try:
        out, errors = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str] | None = None
) -> None:
    """Wait for a condition, which must come while a command runs."""
    until = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def records(sweep: Path) -> list[dict[str, Any]]:
    """run.json of each run, in the order of their numbers."""
    found = [json.loads(path.read_text()) for path in sweep.glob("*/run.json")]
    return sorted(found, key=lambda record: record["number"])


def n_epochs(sweep: Path) -> dict[int, int]:
    """Epochs that are in the table of each run, by its number."""
    found = {}
    for path in sweep.glob("*/metrics.csv"):
        number = json.loads((path.parent / "run.json").read_text())["number"]
        found[number] = path.read_text().count("\n") - 1
    return found
