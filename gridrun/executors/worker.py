"""A worker process: takes jobs from its parent and reports events.

Forked by `gridrun.executors.fork_server`, or started as
`python -m gridrun.executors.worker <descriptor>`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from gridrun.errors import StorageError
from gridrun.machine import keep_freed_memory

SECONDS_BETWEEN_STEPS = 0.1


class Worker:
    """Trains the jobs that come over a connection."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self.connection = connection
        self.is_stopping = False
        self._last_step_s = 0.0

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: end after the step under way."""
        self.is_stopping = True

    def report(self, event: Any) -> None:
        """Send an event; a parent that is gone means stop."""
        now = time.monotonic()
        if event.kind == "step":
            if now - self._last_step_s < SECONDS_BETWEEN_STEPS:
                return
            self._last_step_s = now
        try:
            self.connection.send(event)
        except OSError:
            self.is_stopping = True

    def work(self) -> int:
        """Train jobs until there are none; gives the exit code."""
        from gridrun.training.cohort import Interrupted
        from gridrun.training.job import train_job
        from gridrun.training.schedules import load_optimizers

        load_optimizers()
        while (job := self.next_job()) is not None:
            try:
                train_job(job, self.report, lambda: self.is_stopping)
            except Interrupted:
                return 0
            except StorageError as error:  # the parent stops the sweep
                with contextlib.suppress(OSError):
                    self.connection.send(error)
                return 1
        return 0

    def next_job(self) -> Any:
        """Ask the parent for a job; None if there is none, or no parent."""
        if self.is_stopping:
            return None
        try:
            self.connection.send(None)
            return self.connection.recv()
        except (EOFError, OSError):
            return None


def serve(connection: Connection[Any, Any]) -> int:
    """Be a worker until there are no more jobs; gives the exit code."""
    worker = Worker(connection)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, worker.stop)
    keep_freed_memory()
    return worker.work()


if __name__ == "__main__":
    sys.exit(serve(Connection(int(sys.argv[1]))))
