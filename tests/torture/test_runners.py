"""Several runners, hosts and misbehaving runs on one sweep."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torture.conftest import IS_FULL, Scenario, count, random_of
from torture.nursery import SABOTAGE
from torture.oracle import assert_same, contents
from torture.test_kills import _claimant, start

from gridrun.claims import CLAIM_BYTES
from gridrun.sweep import run_sweep


@pytest.mark.parametrize(
    ("n_runners", "is_killed", "trial"),
    [(n, k, i) for n in (2, 4, 8) for k in (False, True) for i in range(5)]
    if IS_FULL
    else [(2, True, 0), (4, False, 0)],
)
def test_many_runners(
    scenarios: dict[str, Scenario],
    root: Path,
    n_runners: int,
    is_killed: bool,
    trial: int,
) -> None:
    """Each run is trained once, by one of them; one may be killed in the middle."""
    scenario = scenarios["images"]
    random = random_of("runners", n_runners, trial)
    options = ["--executor", "serial", "cohort_size=1"]
    runners = [start(scenario, root, *options) for _ in range(n_runners)]
    sweep = root / "sweep"
    if is_killed:
        n_files = random.randint(1, 6)
        while len(list(sweep.glob("*/checkpoints/epoch_*.pt"))) < n_files:
            assert any(runner.poll() is None for runner in runners)
            time.sleep(0.005)
        os.killpg(random.choice(runners).pid, signal.SIGKILL)
    for runner in runners:
        _, errors = runner.communicate(timeout=200)
        assert runner.returncode in (0, -signal.SIGKILL), errors
        assert "Traceback" not in errors
    assert_same(sweep, scenario.expected)
    attempts = [
        len(json.loads(path.read_text(encoding="utf-8"))["attempts"])
        for path in sweep.glob("*/run.json")
    ]
    assert len(attempts) == 4
    assert sum(attempts) <= 4 + is_killed


def test_a_dead_claim_is_free_at_once(
    scenarios: dict[str, Scenario], root: Path
) -> None:
    """The next runner on this host need not wait."""
    scenario = scenarios["images"]
    process = start(scenario, root, "--executor", "serial", "cohort_size=1")
    sweep = root / "sweep"
    while not any(map(_claimant, sweep.glob("*/claim"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    started = time.monotonic()
    scenario.finish(root)
    assert time.monotonic() - started < 10


def foreign(n_renewals: int) -> bytes:
    """A claim as another host writes it."""
    owner = {"host": "elsewhere", "pid": 7, "renewals": n_renewals}
    return json.dumps(owner).encode().ljust(CLAIM_BYTES)


def test_a_silent_host_loses_its_claim(
    scenarios: dict[str, Scenario], root: Path
) -> None:
    """A claim that another host renews is respected; once it is not, taken over."""
    scenario = scenarios["images"]
    timeout = "claim_timeout_s=10"
    assert scenario.run(root, "n_epochs=1", timeout).code == 0
    sweep = root / "sweep"
    process = start(scenario, root, "--executor", "serial", timeout)
    claims: list[Path] = []
    while len(claims) < 4:  # the runs of 3 epochs, as soon as they are there
        claims = [
            folder / "claim"
            for folder in sweep.glob("sweep_*")
            if not (folder / "checkpoints").exists()
        ]
        assert process.poll() is None
        for claim in claims[:1]:
            claim.write_bytes(foreign(0))
        time.sleep(0.001)
        if claims:
            break
    (claim, *_) = claims
    for n in range(1, 16):
        time.sleep(1)
        assert process.poll() is None
        assert json.loads(claim.read_bytes())["host"] == "elsewhere"
        claim.write_bytes(foreign(n))
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert 9 < time.monotonic() - started < 30
    assert "elsewhere" in errors


def test_a_host_that_lost_its_claim_stops(
    scenarios: dict[str, Scenario], root: Path
) -> None:
    """It writes nothing more to that run; the others it trains to their end."""
    scenario = scenarios["images"]
    process = start(scenario, root, "--executor", "serial", "n_epochs=60")
    sweep = root / "sweep"
    while not list(sweep.glob("sweep_0_*/checkpoints/epoch_0002.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    (claim,) = sweep.glob("sweep_0_*/claim")
    halfway = claim.with_name(".claim.tmp")
    halfway.write_bytes(foreign(0))
    halfway.replace(claim)
    while _state(sweep, 1) != "done":
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    before = _files(claim.parent)
    time.sleep(1)
    assert _files(claim.parent) == before
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "another host has taken the run over" in errors
    assert json.loads(claim.read_bytes())["host"] == "elsewhere"


def _state(sweep: Path, number: int) -> str:
    (path,) = sweep.glob(f"sweep_{number}_*/run.json")
    return str(json.loads(path.read_text(encoding="utf-8"))["state"])


def _files(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("segfault", "signal 11"),
        ("hang", "signal 9"),
        ("exit", "exit code 7"),
        ("memory", "memory"),
    ][: count(4, 1)],
)
def test_a_misbehaving_run_fails_alone(
    scenarios: dict[str, Scenario],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    reason: str,
) -> None:
    """The run of lr 0.02, repeat 1 crashes its process; the others are as ever."""
    scenario = scenarios["images"]
    path = os.pathsep.join([SABOTAGE, *filter(None, sys.path)])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("SABOTAGE", how)
    process = start(scenario, root, "max_attempts=2", "hang_timeout_s=4")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    sweep = root / "sweep"
    with (sweep / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done"] * 3 + ["failed"]
    record = json.loads((sweep / rows[3]["folder"] / "run.json").read_text())
    assert reason in record["error"], record["error"]
    found = contents(sweep)
    for name, content in scenario.expected.items():
        if name.startswith("sweep_") and not name.startswith("sweep_3_"):
            assert found[name] == content, name
    monkeypatch.delenv("SABOTAGE")
    again = start(scenario, root, "--retry-failed")
    _, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert_same(sweep, scenario.expected)


@pytest.mark.parametrize("step", [1, 9, 20, 5, 16][: count(5, 1)])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_diverging_run(
    scenarios: dict[str, Scenario],
    root: Path,
    value: str,
    step: int,
) -> None:
    """A loss that is not finite ends its run in that step, and no other."""
    scenario = scenarios["images"]
    ended = scenario.run(root, hook=f"divergence:at_{step}_{value}")
    assert ended.code == 1, ended.errors
    sweep = root / "sweep"
    with (sweep / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done"] * 3 + ["diverged"]
    folder = sweep / rows[3]["folder"]
    steps = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
    assert steps == step  # no batch after it
    for path in sweep.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    for path in sweep.rglob("*.csv"):
        with path.open(encoding="utf-8") as file:
            cells = {
                cell.lower().strip("+-") for row in csv.reader(file) for cell in row
            }
        assert not cells & {"nan", "inf", "infinity"}
    n_whole = (step - 1) // 8
    saved = sorted(path.name for path in folder.glob("checkpoints/epoch_*.pt"))
    assert (f"epoch_{n_whole:04d}.pt" in saved) == (n_whole > 0)
    found = contents(sweep)
    for name, content in scenario.expected.items():
        if name.startswith("sweep_") and not name.startswith("sweep_3_"):
            assert found[name] == content, name


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} in JSON")


def test_ten_thousand_runs(tmp_path: Path) -> None:
    """Every run has its row, once."""
    n_runs = count(10_000, 300)
    command = [sys.executable, "-m", "benchmarks.stub", str(n_runs), str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    with (tmp_path / "stub" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(n_runs))
    assert {row["state"] for row in rows} == {"done"}


@pytest.mark.parametrize("name", ["images", "retina"])
@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1, "executor": "process"},
        {"workers": 2, "executor": "process"},
        {"workers": 4, "executor": "process"},
        {"cohort_size": 1},
        {"cohort_size": 2},
        {"cohort_size": 4},
        {"n_workers": 2},
        {"n_workers": 2, "cohort_size": 1},
    ][:: count(1, 2)],
    ids=str,
)
def test_nothing_depends_on_company_or_order(
    scenarios: dict[str, Scenario], root: Path, name: str, options: dict[str, object]
) -> None:
    """Workers, cohorts, readers and the order of the grid leave the bits alone."""
    scenario = scenarios[name]
    base = json.loads(scenario.files[0].read_text(encoding="utf-8"))
    swept = {"lr": [0.02, 0.01]}  # the other way round
    turned = run_sweep(base | options, swept, quiet=True, save_root=str(root))
    weights = {
        (run.hyps.lr, run.record["repeat"]): run.checkpoint("last")
        for run in turned.runs()
    }
    assert len(weights) == 4
    from gridrun.sweep import load_sweep

    for run in load_sweep(scenario.finished).runs():
        theirs = weights[run.hyps.lr, run.record["repeat"]]["model_state_dict"]
        for key, tensor in run.checkpoint("last")["model_state_dict"].items():
            assert tensor.equal(theirs[key]), key
