"""The process that loads torch once, and the workers that it forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import OF_SET

from gridrun.errors import ConfigError, GridrunError
from gridrun.executors import fork_server
from gridrun.executors.fork_server import UNKNOWN_EXIT, ForkServer
from gridrun.sweep import Sweep, run_sweep

KEYS: dict[str, Any] = {
    "exp_name": "sweep",
    **OF_SET,
    "drop_ps": [0.5, 0.5],
    "batch_size": 16,
    "n_epochs": 2,
    "seed": 5,
    "workers": 2,
}
LR = {"lr": [0.01, 0.02], "seed": [5, 6]}


@pytest.fixture(scope="module")
def keys(
    tmp_path_factory: pytest.TempPathFactory, write_images: Callable[..., Any]
) -> dict[str, Any]:
    """A configuration, with its data."""
    root = tmp_path_factory.mktemp("forked")
    write_images(root / "set" / "images.h5")
    return {**KEYS, "data_root": str(root)}


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """A server for image models."""
    found = ForkServer("imgclass")
    yield found
    found.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that are started with an interpreter of their own."""
    found: list[Any] = []
    start = fork_server.start_child

    def start_and_note(module: str, threads: int) -> Any:
        process, connection = start(module, threads)
        found.append((module.rpartition(".")[2], process))
        return process, connection

    monkeypatch.setattr(fork_server, "start_child", start_and_note)
    return found


def is_asking(connection: Connection[Any, Any]) -> bool:
    """Whether a worker asks for its first job within a minute."""
    return connection.poll(60) and connection.recv() is None


def has_ended(connection: Connection[Any, Any]) -> bool:
    """Whether the other end of a connection is closed within a minute."""
    try:
        return connection.poll(60) and connection.recv() is None and False
    except (EOFError, OSError):
        return True


def is_there(pid: int) -> bool:
    """Whether a process lives, and is not only waited for."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def weights(sweep: Sweep) -> list[dict[str, torch.Tensor]]:
    return [run.checkpoint("last")["model_state_dict"] for run in sweep.runs()]


def test_exit_codes(server: ForkServer) -> None:
    """Of a worker that had no job, and of one that was killed, in any order."""
    first, to_first = server.start_worker(1)
    second, to_second = server.start_worker(1)
    assert is_asking(to_first)
    assert is_asking(to_second)
    second.kill()
    assert second.wait() == -signal.SIGKILL
    to_first.send(None)
    assert first.wait() == 0
    assert first.wait() == 0
    second.kill()  # nothing is there to be killed


def test_a_worker_that_is_asked_to_stop_ends(server: ForkServer) -> None:
    """SIGTERM acts in a worker, though its server ignores it."""
    worker, connection = server.start_worker(1)
    assert is_asking(connection)
    worker.terminate()
    connection.send(None)
    assert worker.wait() == 0


def test_the_end_of_a_worker_is_seen_while_others_live(server: ForkServer) -> None:
    """No worker holds another's connection."""
    workers = [server.start_worker(1) for _ in range(3)]
    assert all(is_asking(connection) for _, connection in workers)
    for worker, connection in workers:
        worker.kill()
        assert has_ended(connection)


def test_a_killed_server_is_replaced(server: ForkServer, started: list[Any]) -> None:
    """Its workers live on; how they end is not known."""
    orphan, to_orphan = server.start_worker(1)
    assert is_asking(to_orphan)
    (_, process), *_ = started
    process.kill()
    process.wait()
    worker, connection = server.start_worker(1)
    assert is_asking(connection)
    assert len(started) == 2
    orphan.kill()
    assert has_ended(to_orphan)
    assert orphan.wait() == UNKNOWN_EXIT
    connection.send(None)
    assert worker.wait() == 0


def test_a_server_that_cannot_load_is_an_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It is tried twice; its own message stands above."""
    server = ForkServer("nothing")
    with pytest.raises(GridrunError, match="worker processes cannot start"):
        server.start_worker(1)
    assert "KeyError: 'nothing'" in capfd.readouterr().err
    server.close()


def test_nothing_stays_when_the_parent_is_killed() -> None:
    """Neither the server nor idle workers."""
    script = """
import time
from gridrun.executors.fork_server import ForkServer
server = ForkServer("imgclass")
workers = [server.start_worker(1) for _ in range(2)]
print(server._process.pid, *[worker.pid for worker, _ in workers], flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pids = [int(text) for text in parent.stdout.readline().split()]
    assert len(pids) == 3
    assert all(map(is_there, pids))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while any(map(is_there, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_there, pids))


def test_it_ends_with_a_refused_request(
    keys: dict[str, Any], started: list[Any], tmp_path: Path
) -> None:
    """Nothing is left of it, and nothing is written."""
    given = {
        **keys,
        "lr": 0.1,
        "optimizer": "Adamm",
        "save_root": str(tmp_path / "refused"),
    }
    with pytest.raises(ConfigError, match="did you mean 'Adam'"):
        run_sweep(given, quiet=True)
    assert [process.poll() for _, process in started] == [-signal.SIGKILL]
    assert not (tmp_path / "refused").exists()


def test_one_serves_a_sweep(
    keys: dict[str, Any], started: list[Any], tmp_path: Path
) -> None:
    """It is ended afterwards; for a sweep that is finished there is none."""
    for _ in range(2):
        run_sweep({**keys, "save_root": str(tmp_path)}, LR, quiet=True)
        assert [module for module, _ in started] == ["fork_server"]
        assert all(process.poll() is not None for _, process in started)


def test_forked_and_fresh_workers_give_the_same_bits(
    keys: dict[str, Any],
    started: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And so does this process."""
    forked = run_sweep({**keys, "save_root": str(tmp_path / "forked")}, LR, quiet=True)
    monkeypatch.setattr(fork_server, "CAN_FORK", False)
    fresh = run_sweep({**keys, "save_root": str(tmp_path / "fresh")}, LR, quiet=True)
    assert [module for module, _ in started] == ["fork_server", "worker", "worker"]
    serial = {**keys, "save_root": str(tmp_path / "serial"), "executor": "serial"}
    here = run_sweep(serial, LR, quiet=True)
    assert len(weights(forked)) == 4
    for one, two, three in zip(
        weights(forked), weights(fresh), weights(here), strict=True
    ):
        for name, tensor in one.items():
            assert torch.equal(tensor, two[name]), name
            assert torch.equal(tensor, three[name]), name
