"""What runs jobs: this process, worker processes, and clusters.

An executor has `run(jobs, report, should_stop)`: it trains every job, passes on the
events of each worker, and raises `Stopped` once it was asked to stop and all workers
have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gridrun.planner import Job


class Stopped(Exception):
    """Training was asked to stop; what was finished is kept."""


class Executor(Protocol):
    """Runs jobs somewhere."""

    @property
    def n_workers(self) -> int:
        """Jobs that are trained at once."""
        ...

    def run(
        self,
        jobs: Sequence[Job],
        report: Callable[[Any, int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Train all jobs.

        Args:
            jobs: Cohorts, in the order to start them.
            report: Called with each event and the worker's index.
            should_stop: Asked often.

        Raises:
            Stopped: If it was asked to stop.
        """
        ...
