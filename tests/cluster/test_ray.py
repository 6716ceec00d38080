"""Sweeps by a real Ray: the bits of worker processes, whatever comes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.commands import n_epochs, records, start, train, wait_until
from torture.oracle import assert_same

pytest.importorskip("ray", reason="no ray: pip install ray")
pytestmark = pytest.mark.e2e
OPTIONS = ("cohort_size=1", "--quiet", "--executor", "ray")


@contextlib.contextmanager
def two_machines(*hidden: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A cluster of two, as a process, and its address."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("two_machines.py")), *hidden],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.communicate(timeout=60)


def test_ray_trains_what_processes_train(
    quick: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    """A Ray of this machine, two runs side by side: equal bit for bit."""
    done = train(*quick, "--save-root", tmp_path, "--ray", "num_cpus=1")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "sweep", expected)
    assert "[4/4" in done.stderr, "the ends of all runs are told"


def test_a_lost_machine_is_made_good(
    slow: list[str], expected_slow: dict[str, Any], tmp_path: Path
) -> None:
    """One of two is killed in the middle; its run continues on the other."""
    sweep = tmp_path / "sweep"
    with two_machines() as (machines, address):
        options = (*OPTIONS, "--ray", f"address={address}", "max_retries=2")
        process = start(*slow, "--save-root", tmp_path, *options)
        wait_until(lambda: len(n_epochs(sweep)) == 2, process)
        assert machines.stdin is not None
        machines.stdin.write("remove\n")
        machines.stdin.flush()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert_same(sweep, expected_slow)
    assert max(len(record["attempts"]) for record in records(sweep)) == 2


def test_a_machine_that_does_not_see_the_folder_sends_its_files(
    quick: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    """The driver writes them: equal bit for bit, each run trained once."""
    root = tmp_path / "hidden"
    root.mkdir()
    with two_machines(root) as (_, address):
        if address.startswith("not allowed"):
            pytest.skip(f"no folder can be hidden from a process here: {address}")
        options = ("--save-root", root, "--quiet", "--ray", f"address={address}")
        done = train(*quick, *options)
    assert done.returncode == 0, done.stderr
    assert_same(root / "sweep", expected)
    assert [len(record["attempts"]) for record in records(root / "sweep")] == [1] * 4


def test_an_interrupt_ends_the_tasks(slow: list[str], tmp_path: Path) -> None:
    """Ctrl-C is exit code 130; runs end as interrupted."""
    sweep = tmp_path / "sweep"
    process = start(*slow, "--save-root", tmp_path, *OPTIONS)
    wait_until(lambda: bool(n_epochs(sweep)), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    states = {record["state"] for record in records(sweep)}
    assert states == {"interrupted", "pending"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["address=127.0.0.1:1"], "address: nobody answers at 127.0.0.1:1"),
        (["num_cpus=1000"], "num_cpus: 1000 asked for, this machine has"),
        (["resources.tpu=1"], "resources: this machine has none"),
    ],
)
def test_what_ray_could_only_wait_for_is_told(
    quick: list[str], tmp_path: Path, options: list[str], expected: str
) -> None:
    """As a mistake in executor_args, before anything is written."""
    done = train(*quick, "--save-root", tmp_path, "--ray", *options)
    assert done.returncode == 2
    assert f"command line: executor_args: {expected}" in done.stderr
    assert not list(tmp_path.iterdir())
