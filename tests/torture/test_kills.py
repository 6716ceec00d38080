"""Killed anywhere, a sweep goes on to the bits of an uninterrupted one."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torture.conftest import Scenario, count, random_of

N_KILLS = count(160, 4)  # in forked commands
N_COMMANDS = count(40, 2)  # commands with worker processes
N_POINTS = count(10_000, 8)  # of the changes of files, all in full
N_PARTS = count(20, 1)
MOST_KILLS = 4


def epochs_on_disk(sweep: Path) -> dict[str, tuple[int, int, int]]:
    """Of each run: epochs in metrics.csv, the last with a checkpoint, attempts."""
    found = {}
    for folder in sorted(sweep.glob("sweep_*")):
        metrics, index = folder / "metrics.csv", folder / "checkpoints" / "index.json"
        n_rows = 0
        if metrics.exists():
            text = metrics.read_text(encoding="utf-8")
            n_rows = max(text[: text.rfind("\n") + 1].count("\n") - 1, 0)
        last = 0
        if index.exists():
            last = json.loads(index.read_text(encoding="utf-8"))["last"] or 0
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        found[folder.name] = (n_rows, last, len(record["attempts"]))
    return found


def assert_little_is_redone(
    sweep: Path, before: dict[str, tuple[int, int, int]]
) -> None:
    """After a kill: at most one finished epoch has no checkpoint, and only it is lost.

    Args:
        sweep: After it was continued.
        before: `epochs_on_disk` when it was killed.
    """
    assert sum(n_rows - last for n_rows, last, _ in before.values()) in (0, 1)
    for name, (n_rows, last, n_attempts) in before.items():
        assert n_rows >= last, name
        record = json.loads((sweep / name / "run.json").read_text(encoding="utf-8"))
        for attempt in record["attempts"][n_attempts:]:
            assert attempt["first_epoch"] == last + 1, name


@pytest.mark.parametrize(
    ("name", "trial"), [(["images", "retina"][i % 2], i) for i in range(N_KILLS)]
)
def test_killed_at_random(
    scenarios: dict[str, Scenario], root: Path, name: str, trial: int
) -> None:
    """SIGKILL of the process group, again and again, then the command until done."""
    scenario = scenarios[name]
    random = random_of(name, trial)
    for _ in range(random.randint(1, MOST_KILLS)):
        after_s = random.uniform(0, scenario.seconds)
        ended = scenario.run(root, kill_after_s=after_s)
        assert ended.code in (0, -signal.SIGKILL), ended.errors
        before = epochs_on_disk(root / "sweep")
        if ended.code == 0:
            break
    scenario.finish(root)
    assert_little_is_redone(root / "sweep", before)


def start(scenario: Scenario, root: Path, *more: str) -> subprocess.Popen[str]:
    """The command with worker processes, in a group of its own."""
    command = [sys.executable, "-m", "gridrun", "run", *map(str, scenario.files)]
    options = ["--save-root", str(root), "--quiet", "--executor", "process", *more]
    return subprocess.Popen(
        [*command, *options],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("trial", range(N_COMMANDS))
def test_killed_commands(
    scenarios: dict[str, Scenario], root: Path, trial: int
) -> None:
    """The same for commands whose workers are processes: all, one, or the parent."""
    scenario = scenarios[["images", "retina"][trial % 2]]
    random = random_of("commands", trial)
    process = start(scenario, root, "--workers", str(random.choice([1, 2, 4])))
    sweep = root / "sweep"
    until = time.monotonic() + 60
    n_files = random.randint(0, 12)
    while len(list(sweep.glob("*/checkpoints/epoch_*.pt"))) < n_files:
        if process.poll() == 0:
            break  # files of earlier epochs are removed: so many are rare
        assert process.returncode is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    who = random.choice(["group", "parent", "worker"])
    claims = [_claimant(path) for path in sweep.glob("*/claim")]
    if who == "worker" and any(claims):
        os.kill(next(filter(None, claims)), signal.SIGKILL)
    elif who == "parent":
        process.kill()
    elif process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    while claims and any(map(_lives, claims)) and time.monotonic() < until:
        time.sleep(0.02)  # workers of a killed parent end by themselves
    scenario.finish(root)


def _claimant(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["pid"])
    except (OSError, ValueError):
        return 0


def _lives(pid: int) -> bool:
    return pid > 0 and Path(f"/proc/{pid}").exists()


def struck_calls(n_calls: int, n_points: int) -> list[int]:
    """All calls from 1, or as many spread evenly."""
    if n_points >= n_calls:
        return list(range(1, n_calls + 1))
    return [math.ceil((i + 0.5) * n_calls / n_points) for i in range(n_points)]


@pytest.mark.parametrize("part", range(N_PARTS))
@pytest.mark.parametrize("name", ["images", "retina"])
def test_killed_at_every_change_of_a_file(
    scenarios: dict[str, Scenario], tmp_path: Path, name: str, part: int
) -> None:
    """Every open, write, sync, renaming and removal of a 4-run sweep is a last one."""
    scenario = scenarios[name]
    assert scenario.n_calls > 200
    for at in struck_calls(scenario.n_calls, N_POINTS)[part::N_PARTS]:
        root = tmp_path / str(at)
        ended = scenario.run(root, at=at)
        assert ended.code == -signal.SIGKILL, (at, ended)
        before = epochs_on_disk(root / "sweep")
        scenario.finish(root)
        assert_little_is_redone(root / "sweep", before)
        shutil.rmtree(root)


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR2, 140)]


@pytest.mark.parametrize("trial", range(count(10, 1)))
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_signals(
    scenarios: dict[str, Scenario],
    root: Path,
    number: signal.Signals,
    code: int,
    trial: int,
) -> None:
    """Stops soon with its code, keeps every finished epoch, and goes on."""
    scenario = scenarios["images"]
    random = random_of("signals", number, trial)
    process = start(scenario, root, "n_epochs=200", "--workers", "2")
    sweep = root / "sweep"
    n_files = random.randint(1, 12)
    while len(list(sweep.glob("*/checkpoints/epoch_*.pt"))) < n_files:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - started < 30  # 5 s where nothing else runs
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    with (sweep / "results.csv").open(encoding="utf-8") as file:
        states = {row["state"] for row in csv.DictReader(file)}
    assert "interrupted" in states
    assert "running" not in states
    for name, (n_rows, last, _) in epochs_on_disk(sweep).items():
        assert n_rows == last, name
    assert not list(sweep.rglob("claim"))


@pytest.mark.parametrize("trial", range(count(30, 1)))
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_signals_at_any_time(
    scenarios: dict[str, Scenario],
    root: Path,
    number: signal.Signals,
    code: int,
    trial: int,
) -> None:
    """Also while it starts; then the sweep goes on to the same bits."""
    scenario = scenarios["retina"]
    random = random_of("any time", number, trial)
    process = start(scenario, root)
    time.sleep(random.uniform(0.0, 5.0))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, code, -number), errors
    assert "Traceback" not in errors
    scenario.finish(root)
