"""Trains in worker processes of this machine, each with its own threads."""

from __future__ import annotations

import collections
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from gridrun.claims import Claim
from gridrun.errors import StorageError
from gridrun.executors import Stopped
from gridrun.executors.fork_server import ForkServer
from gridrun.planner import Job
from gridrun.run import RunState
from gridrun.store import RunFolder

logger = logging.getLogger(__name__)
POLL_S = 0.2
FINAL_STATES = [state.value for state in RunState if state.is_final]


class _Process:
    """One worker and the connection to it."""

    def __init__(self, index: int, server: ForkServer, threads: int) -> None:
        self.index = index
        self.process, self.connection = server.start_worker(threads)
        self.job: Job | None = None
        self.heard_s = time.monotonic()

    def give(self, job: Job | None) -> None:
        self.job = job
        self.connection.send(job)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class ProcessExecutor:
    """The default executor.

    Args:
        server: Starts the workers.
        n_workers: Worker processes at most.
        devices: One a worker, in turn; the jobs' own where empty.
        max_attempts: Attempts in a row without a new epoch for runs whose worker died.
        hang_timeout_s: A worker silent for so long is killed.
    """

    def __init__(
        self,
        server: ForkServer,
        n_workers: int,
        devices: Sequence[str] = (),
        max_attempts: int = 3,
        hang_timeout_s: float = 1800.0,
    ) -> None:
        self.server = server
        self.n_workers = n_workers
        self.devices = devices
        self.max_attempts = max_attempts
        self.hang_timeout_s = hang_timeout_s
        self._is_stopping = False
        self._storage_error: StorageError | None = None
        self._deaths: dict[Path, tuple[int | None, int]] = {}

    def run(
        self,
        jobs: Sequence[Job],
        report: Callable[[Any, int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Train all jobs; see `Executor`."""
        waiting = collections.deque(jobs)
        workers: dict[Connection[Any, Any], _Process] = {}
        self._is_stopping = False
        self._storage_error = None
        try:
            while waiting or workers:
                is_asked = should_stop() or self._storage_error is not None
                if is_asked and not self._is_stopping:
                    self._is_stopping = True
                    waiting.clear()
                    for worker in workers.values():
                        worker.process.terminate()
                while waiting and len(workers) < min(
                    self.n_workers, len(waiting) + _n_busy(workers)
                ):
                    index = _free_index(workers.values())
                    worker = _Process(index, self.server, waiting[0].threads)
                    workers[worker.connection] = worker
                self._listen(workers, waiting, report)
                self._kill_hanging(workers)
        finally:
            for worker in workers.values():
                worker.end()
        if self._storage_error is not None:
            raise self._storage_error
        if self._is_stopping:
            raise Stopped

    def _listen(
        self,
        workers: dict[Connection[Any, Any], _Process],
        waiting: collections.deque[Job],
        report: Callable[[Any, int], None],
    ) -> None:
        for ready in wait(list(workers), timeout=POLL_S):
            worker = workers[ready]  # type: ignore[index]
            worker.heard_s = time.monotonic()
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                del workers[worker.connection]
                self._bury(worker, waiting, report)
                continue
            if isinstance(message, StorageError):  # the others will find it too
                self._storage_error = message
                continue
            if message is not None:
                report(message, worker.index)
                continue
            try:
                worker.give(self._placed(waiting, worker))
            except OSError:  # it died while it waited; EOF comes next
                logger.debug("worker %d is gone", worker.index)

    def _placed(self, waiting: collections.deque[Job], worker: _Process) -> Job | None:
        if not waiting:
            return None
        job = waiting.popleft()
        if self.devices and job.device == "auto":
            device = self.devices[worker.index % len(self.devices)]
            return job.on(device)
        return job

    def _kill_hanging(self, workers: dict[Connection[Any, Any], _Process]) -> None:
        for worker in workers.values():
            silent_s = time.monotonic() - worker.heard_s
            if worker.job is not None and silent_s > self.hang_timeout_s:
                logger.warning("worker %d hangs; it is killed", worker.index)
                worker.process.kill()

    def _bury(
        self,
        worker: _Process,
        waiting: collections.deque[Job],
        report: Callable[[Any, int], None],
    ) -> None:
        """Take a dead worker's runs back: again, alone, or failed."""
        code = worker.process.wait()
        worker.connection.close()
        if worker.job is None or self._is_stopping:
            return
        for job in worker.job.singles():
            folder = RunFolder(Path(job.folders[0]))
            if folder.read()["state"] in FINAL_STATES:
                continue
            n_deaths = self._count_death(folder)
            if n_deaths < self.max_attempts:
                waiting.append(job)
                continue
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            reason = (
                f"its worker died {n_deaths} times in a row without a new epoch "
                f"(last: {how})"
            )
            report(record_death(folder, reason), worker.index)

    def _count_death(self, folder: RunFolder) -> int:
        """Deaths of a run's workers in a row since its last new epoch."""
        last = folder.read_index()["last"]
        earlier, n_deaths = self._deaths.get(folder.path, (last, 0))
        n_deaths = n_deaths + 1 if earlier == last else 1
        self._deaths[folder.path] = (last, n_deaths)
        return n_deaths


def _free_index(workers: Iterable[_Process]) -> int:
    taken = {worker.index for worker in workers}
    return next(index for index in itertools.count() if index not in taken)


def _n_busy(workers: dict[Connection[Any, Any], _Process]) -> int:
    return sum(worker.job is not None for worker in workers.values())


def record_death(folder: RunFolder, reason: str) -> Any:
    """Record a run as failed for its parent's reasons; returns the event."""
    from gridrun.training.event import Event

    claim = Claim(folder.claim)
    record = folder.read()
    if claim.acquire():
        folder.write_text(folder.failure, reason + "\n")
        folder.update(state=RunState.FAILED.value, error=reason)
        claim.release()
    return Event(
        "end",
        record["number"],
        0,
        state=RunState.FAILED.value,
        metrics={"error": reason},
    )
