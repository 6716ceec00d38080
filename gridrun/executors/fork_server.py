"""A process that loads torch once and forks the workers of a sweep.

Started as `python -m gridrun.executors.fork_server <descriptor>`. It computes nothing,
so no thread is lost in a fork. Where loaded libraries may not survive a fork (macOS),
each worker is a fresh interpreter instead.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NoReturn

from gridrun.child import start_child
from gridrun.errors import GridrunError
from gridrun.executors.worker import serve
from gridrun.machine import keep_freed_memory
from gridrun.plugins import libraries

logger = logging.getLogger(__name__)
CAN_FORK = sys.platform == "linux"
UNKNOWN_EXIT = 255  # of a worker whose server was killed before it


class ForkedWorker:
    """A process that a server has forked; its methods are those of Popen."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._exit_code: int | None = None

    def terminate(self) -> None:
        """Ask it to stop."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, when it has ended; negative for a signal."""
        if self._exit_code is None:
            self._exit_code = self._server.exit_code(self.pid)
        return self._exit_code

    def _send(self, number: int) -> None:
        if self._exit_code is None:  # else the number may be another process's
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class ForkServer:
    """Starts workers; leave with `close`.

    Args:
        library: Whose models and trainer they need.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None

    def start(self, threads: int) -> None:
        """Let the server load what workers need, if it does not run yet.

        Args:
            threads: CPU threads of numerical libraries, until a job sets its own.
        """
        if not CAN_FORK or self._process is not None:
            return
        module = "gridrun.executors.fork_server"
        self._process, self._connection = start_child(module, threads)
        with contextlib.suppress(OSError):
            self._connection.send(self.library)

    def start_worker(
        self, threads: int
    ) -> tuple[subprocess.Popen[bytes] | ForkedWorker, Connection[Any, Any]]:
        """A new worker and the connection to it.

        Args:
            threads: As of `start`.

        Raises:
            GridrunError: If the server cannot start.
        """
        if not CAN_FORK:
            return start_child("gridrun.executors.worker", threads)
        with contextlib.suppress(EOFError, OSError):
            return self._forked(threads)
        self.close()  # it was killed: one more
        try:
            return self._forked(threads)
        except (EOFError, OSError) as error:
            raise GridrunError(
                "worker processes cannot start: the process that loads torch for "
                f"them ended ({error!r}); what it wrote is above"
            ) from error

    def _forked(self, threads: int) -> tuple[ForkedWorker, Connection[Any, Any]]:
        self.start(threads)
        assert self._connection is not None
        assert self._process is not None
        connection, other = Pipe()
        try:
            self._connection.send(None)
            send_handle(self._connection, other.fileno(), self._process.pid)
            return ForkedWorker(self, self._connection.recv()), connection
        finally:
            other.close()

    def exit_code(self, pid: int) -> int:
        """Of a forked worker, when it has ended."""
        try:
            assert self._connection is not None
            self._connection.send(pid)
            return int(self._connection.recv())
        except (AssertionError, EOFError, OSError):
            return UNKNOWN_EXIT

    def close(self) -> None:
        """End the server; workers end when their connection does."""
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
        self._process = self._connection = None


def main() -> None:
    """Entry of the server, which ends with its parent."""
    parent: Connection[Any, Any] = Connection(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    with contextlib.suppress(EOFError, OSError):
        load(parent.recv())
        fork_workers(parent)


def load(library: str) -> None:
    """Import what a worker needs."""
    importlib.import_module("gridrun.training.job")
    from gridrun.training.schedules import load_optimizers

    found = libraries()[library]
    found.load_trainer()
    if found.models:
        importlib.import_module(found.models)
    load_optimizers()
    gc.freeze()  # looked at by no worker, so that it stays shared


def fork_workers(parent: Connection[Any, Any]) -> None:
    """Answer the parent until it is gone.

    A request is None, and then a descriptor, for a new worker: the answer is its
    process; or a process: the answer is its exit code, when it has ended.

    Raises:
        EOFError: When the parent is gone.
        OSError: The same.
    """
    while True:
        request = parent.recv()
        if request is not None:
            parent.send(exit_code_of(request))
            continue
        descriptor = recv_handle(parent)
        pid = os.fork()
        if pid == 0:
            parent.close()
            be_worker(descriptor)
        os.close(descriptor)
        parent.send(pid)


def exit_code_of(pid: int) -> int:
    """Of a child, when it has ended."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # forked by a server that was there before
        return UNKNOWN_EXIT


def be_worker(descriptor: int) -> NoReturn:
    """Train, and exit without taking apart what was loaded, which takes long."""
    code = 1
    try:
        code = serve(Connection(descriptor))
    except Exception:
        logger.exception("a worker ends")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
