"""What jobs of a cluster do on the machine where they run."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from gridrun.config import Hyperparams
from gridrun.executors import Stopped
from gridrun.executors.fork_server import ForkServer
from gridrun.executors.process import ProcessExecutor, worker_places
from gridrun.guard import OnChange, changes, restart, set_aside
from gridrun.planner import Job
from gridrun.plugins import libraries
from gridrun.store import RunFolder


def approved(job: Job, on_change: OnChange) -> Job:
    """A job less the half-trained runs that may not continue on this machine.

    These are recorded as interrupted, with the reason. Runs begin here whatever they
    were planned with.

    Args:
        job: The cohort.
        on_change: What to do with runs half-trained under other circumstances.
    """
    library = libraries()[job.library]
    begun = []
    for path, hyps in zip(job.folders, job.hyps, strict=True):
        folder = RunFolder(Path(path))
        record = folder.read()
        if record["attempts"] and record["state"] not in job.final_states:
            given = library.schema.model_validate(dict(hyps))
            begun.append((record["number"], given, folder))
    if not begun or on_change == "continue":
        return job
    found = [one for one in changes(library, begun) if not one.is_finished]
    if on_change == "restart":
        restart(found)
        return job
    set_aside(found)
    return job.only(set(job.folders) - {str(one.folder.path) for one in found})


class Signals:
    """Remembers signals, each time and in their order."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.numbers.append(number)

    def __bool__(self) -> bool:
        return bool(self.numbers)

    @contextlib.contextmanager
    def caught(self, *numbers: int) -> Iterator[dict[int, Any]]:
        """Remember these signals inside; gives what handled them before."""
        before = {number: signal.signal(number, self.handle) for number in numbers}
        try:
            yield before
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclasses.dataclass
class NodeTask:
    """A job of Slurm: a process executor of the machine that it gets.

    submitit calls it; `checkpoint` makes it one that is queued again at SIGUSR2, which
    comes before the time limit and, at some sites, before preemption.

    Args:
        jobs: Cohorts, in the order to start them.
        n_cores: That the job has.
        on_change: What to do with runs half-trained under other circumstances.
    """

    jobs: Sequence[Job]
    n_cores: int
    on_change: OnChange
    n_epochs: int = 0

    def __call__(self) -> None:
        """Train until all is done or a signal comes."""
        signals = Signals()
        self.n_epochs = self._epochs_on_disk()
        with signals.caught(signal.SIGTERM, signal.SIGUSR2) as before:
            cut = (approved(job, self.on_change) for job in self.jobs)
            jobs = [job for job in cut if job.folders]
            if jobs:
                self._train(jobs, signals)
        if signals and signals.numbers[0] == signal.SIGUSR2:
            before[signal.SIGUSR2](signal.SIGUSR2, None)

    def checkpoint(self) -> Any:
        """What submitit queues again; None, so that it ends, without a new epoch."""
        from submitit.helpers import DelayedSubmission

        if self._epochs_on_disk() == self.n_epochs:
            return None
        return DelayedSubmission(self)

    def _train(self, jobs: Sequence[Job], signals: Signals) -> None:
        hyps = _hyps(jobs[0])
        with contextlib.closing(ForkServer(jobs[0].library)) as server:
            server.start(hyps.threads)  # while this process loads torch, too
            n_workers, devices = worker_places(hyps, self.n_cores)
            executor = ProcessExecutor(
                server, n_workers, devices, hyps.max_attempts, hyps.hang_timeout_s
            )
            with contextlib.suppress(Stopped):
                executor.run(jobs, lambda event, worker: None, lambda: bool(signals))

    def _epochs_on_disk(self) -> int:
        folders = [RunFolder(Path(path)) for job in self.jobs for path in job.folders]
        return sum(folder.read_index()["last"] or 0 for folder in folders)


def _hyps(job: Job) -> Hyperparams:
    schema = libraries()[job.library].schema
    return schema.model_validate(dict(job.hyps[0]))
