"""Sweeps by a real Slurm: the bits of worker processes, whatever comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster.commands import n_epochs, records, start, train, wait_until
from cluster.slurm_site import SlurmSite
from torture.oracle import assert_same

pytestmark = pytest.mark.e2e
OPTIONS = (
    "cohort_size=1",
    "--quiet",
    "--executor",
    "slurm",
    "--slurm",
    "time=00:10:00",
)


def submissions(sweep: Path) -> list[dict[str, Any]]:
    """The records of what was handed in."""
    paths = (sweep / "submissions").glob("*.json")
    found = [json.loads(path.read_text()) for path in paths]
    return sorted(found, key=lambda record: int(record["job"]))


def job_of(run: int, sweep: Path) -> str:
    """Slurm's id of the job that was first handed in for a run."""
    record = submissions(sweep)[0]
    return f"{record['job']}_{record['runs'].index([run])}"


def n_attempts(sweep: Path) -> list[int]:
    """Attempts of each run."""
    return [len(record["attempts"]) for record in records(sweep)]


def test_slurm_trains_what_processes_train(
    slurm: SlurmSite, quick: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    """Tables and weights are equal bit for bit; the jobs' record is closed."""
    options = (*OPTIONS, "max_parallel=2")
    done = train(*quick, "--save-root", tmp_path, *options, **slurm.variables)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "sweep", expected)
    (record,) = submissions(tmp_path / "sweep")
    assert sorted(record["runs"]) == [[0], [1], [2], [3]]
    (script,) = (tmp_path / "sweep" / "submissions").rglob("*.sh")
    for option in ("--array=0-3%2", "--signal=USR2@90", "--time=10", "--requeue"):
        assert f"#SBATCH {option}" in script.read_text()
    assert record["is_over"]
    assert record["job"].isdecimal()
    assert n_attempts(tmp_path / "sweep") == [1] * 4
    assert not list((tmp_path / "sweep" / "submissions").rglob("*.pkl"))


def test_an_array_is_no_larger_than_allowed(
    slurm: SlurmSite, quick: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    """Jobs beyond max_array_size become further cohorts of the others."""
    options = (*OPTIONS, "max_array_size=1", "cpus_per_task=2", "partition=main")
    done = train(*quick, "--save-root", tmp_path, *options, **slurm.variables)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "sweep", expected)
    (record,) = submissions(tmp_path / "sweep")
    assert [sorted(runs) for runs in record["runs"]] == [[0, 1, 2, 3]]
    pids = {one["attempts"][0]["pid"] for one in records(tmp_path / "sweep")}
    assert len(pids) == 2, "a job of two cores has two workers"


def test_cancelled_and_requeued_jobs_are_made_good(
    slurm: SlurmSite, slow: list[str], expected_slow: dict[str, Any], tmp_path: Path
) -> None:
    """scancel, scontrol requeue and SIGUSR2 cost at most the epoch under way."""
    sweep = tmp_path / "sweep"
    process = start(*slow, "--save-root", tmp_path, *OPTIONS, **slurm.variables)
    wait_until(lambda: set(n_epochs(sweep)) == {0, 1}, process)
    slurm.ask("scancel", job_of(0, sweep))
    slurm.ask("scontrol", "requeue", job_of(1, sweep))
    wait_until(lambda: 3 in n_epochs(sweep), process)
    slurm.ask("scancel", "--signal=USR2", job_of(3, sweep))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_same(sweep, expected_slow)
    assert sum(n > 1 for n in n_attempts(sweep)) >= 3
    assert len(submissions(sweep)) == 2, "only what was cancelled is handed in again"
    assert all(record["is_over"] for record in submissions(sweep))


def test_a_second_run_finds_the_jobs_of_a_killed_one(
    slurm: SlurmSite, slow: list[str], expected_slow: dict[str, Any], tmp_path: Path
) -> None:
    """It waits for running and queued jobs and hands in none of their runs again."""
    sweep = tmp_path / "sweep"
    options = ("--save-root", tmp_path, *OPTIONS)
    process = start(*slow, *options, **slurm.variables)
    wait_until(lambda: len(n_epochs(sweep)) == 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status = subprocess.run(
        [sys.executable, "-m", "gridrun", "status", str(sweep)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **slurm.variables},
        capture_output=True,
        text=True,
    )
    assert "PENDING" in status.stdout
    again = train(*slow, *options, **slurm.variables)
    assert again.returncode == 0, again.stderr
    assert_same(sweep, expected_slow)
    assert len(submissions(sweep)) == 1
    assert n_attempts(sweep) == [1] * 4


def test_an_interrupt_cancels_the_jobs(
    slurm: SlurmSite, slow: list[str], expected_slow: dict[str, Any], tmp_path: Path
) -> None:
    """Ctrl-C is exit code 130, leaves no job, and processes go on with the runs."""
    sweep = tmp_path / "sweep"
    process = start(*slow, "--save-root", tmp_path, *OPTIONS, **slurm.variables)
    wait_until(lambda: len(n_epochs(sweep)) == 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert not slurm.jobs("PENDING", "RUNNING", "COMPLETING")
    states = [record["state"] for record in records(sweep)]
    assert sorted(states) == ["interrupted"] * 2 + ["pending"] * 2
    again = train(*slow, "--save-root", tmp_path, "--executor", "process")
    assert again.returncode == 0, again.stderr
    assert_same(sweep, expected_slow)


def test_what_slurm_does_not_take_is_told_before_anything_is_written(
    slurm: SlurmSite, quick: list[str], tmp_path: Path
) -> None:
    """An unknown partition is exit code 2, in Slurm's words."""
    options = (*OPTIONS, "partition=nowhere")
    done = train(*quick, "--save-root", tmp_path, *options, **slurm.variables)
    assert done.returncode == 2
    assert "executor_args: Slurm does not take such jobs" in done.stderr
    assert "partition" in done.stderr
    assert not list(tmp_path.iterdir())
