"""Trains by jobs of a cluster, which this process hands in and follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gridrun.claims import ClaimWatch
from gridrun.config import Hyperparams
from gridrun.executors import Stopped
from gridrun.executors.deaths import Deaths
from gridrun.executors.follow import Follower
from gridrun.planner import Job
from gridrun.store import RunFolder

SECONDS_BETWEEN_LOOKS, LONGEST_PAUSE_S = 0.5, 5.0
SECONDS_TO_STOP = 90.0  # Slurm kills 30 s after it has asked, by default


class Engine(Protocol):
    """What schedules jobs on the machines of a cluster."""

    @property
    def n_workers(self) -> int:
        """Cohorts that are trained at once."""
        ...

    def submit(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        """Hand cohorts in; gives them by the engine's job that trains them.

        Runs that the engine has in its queue already are not handed in again.
        """
        ...

    def ended(self, names: Sequence[str], is_urgent: bool) -> Mapping[str, str]:
        """Those of the engine's jobs that are over, and how, in words.

        Args:
            names: The engine's jobs.
            is_urgent: Whether to ask now, and not only now and then.
        """
        ...

    def cancel(self, names: Sequence[str]) -> None:
        """Ask jobs to end; they record their runs as interrupted."""
        ...

    def close(self) -> None:
        """Called in the end, also after errors."""
        ...


class ClusterExecutor:
    """The executor of all engines.

    Args:
        engine: Schedules the jobs.
        hyps: Of any run.
    """

    def __init__(self, engine: Engine, hyps: Hyperparams) -> None:
        self.engine = engine
        self._deaths = Deaths(hyps.max_attempts)
        self._watch = ClaimWatch(hyps.claim_timeout_s)

    @property
    def n_workers(self) -> int:
        """Cohorts that are trained at once."""
        return self.engine.n_workers

    def run(
        self,
        jobs: Sequence[Job],
        report: Callable[[Any, int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Train all jobs; see `Executor`."""
        follower = Follower(jobs, report)
        waiting: list[Job] = list(jobs)
        live: dict[str, list[Job]] = {}
        pause_s = SECONDS_BETWEEN_LOOKS
        try:
            while waiting or live:
                if should_stop():
                    self._stop(live, follower)
                if waiting:
                    live |= self.engine.submit(waiting)
                time.sleep(pause_s)
                started = time.monotonic()
                waiting = self._look(live, follower)
                looked_s = time.monotonic() - started
                pause_s = min(
                    max(SECONDS_BETWEEN_LOOKS, 10 * looked_s), LONGEST_PAUSE_S
                )
            follower.look()
        finally:
            self.engine.close()

    def _look(self, live: dict[str, list[Job]], follower: Follower) -> list[Job]:
        """Follow the runs, and forget jobs that are over; gives what is to try again.

        Args:
            live: The engine's jobs and their cohorts.
            follower: Of the runs.
        """
        follower.look()
        is_urgent = any(not follower.left(jobs) for jobs in live.values())
        over = self.engine.ended(list(live), is_urgent)
        if over:
            follower.look()  # at what they wrote before they ended
        again: list[Job] = []
        for name, how in over.items():
            left = follower.left(live[name])
            if not any(map(self._is_held, left)):
                del live[name]
                again += [one for job in left if (one := self._again(job, how)).folders]
        return again

    def _is_held(self, job: Job) -> bool:
        """Whether somebody has a claim; one of a dead host is removed in time."""
        claims = [RunFolder(Path(folder)).claim for folder in job.folders]
        return any(self._watch.holder(claim) is not None for claim in claims)

    def _again(self, job: Job, how: str) -> Job:
        """Those runs of a job that ended too early that may be tried again."""
        return job.only(
            {
                folder
                for folder in job.folders
                if not self._deaths.one_more(RunFolder(Path(folder)), "its job", how)
            }
        )

    def _stop(self, live: dict[str, list[Job]], follower: Follower) -> None:
        """Cancel jobs and wait until they have ended.

        Raises:
            Stopped: Always.
        """
        self.engine.cancel(list(live))
        until = time.monotonic() + SECONDS_TO_STOP
        while live and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for name in self.engine.ended(list(live), is_urgent=True):
                del live[name]
        follower.look()
        raise Stopped
