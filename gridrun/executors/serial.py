"""Trains in this process, one job after the other: for notebooks and debugging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gridrun.executors import Stopped
from gridrun.planner import Job


class SerialExecutor:
    """The executor without processes.

    Args:
        n_workers: For which cohorts are made, as they would be for processes.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers

    def run(
        self,
        jobs: Sequence[Job],
        report: Callable[[Any, int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Train all jobs; see `Executor`."""
        import torch

        from gridrun.training.cohort import Interrupted
        from gridrun.training.job import train_job

        n_threads = torch.get_num_threads()
        try:
            for job in jobs:
                if should_stop():
                    raise Stopped
                train_job(job, lambda event: report(event, 0), should_stop)
        except Interrupted:
            raise Stopped from None
        finally:
            torch.set_num_threads(n_threads)
