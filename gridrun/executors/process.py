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

from gridrun.config import Hyperparams
from gridrun.errors import StorageError
from gridrun.executors import Stopped
from gridrun.executors.deaths import FINAL_STATES, Deaths
from gridrun.executors.fork_server import ForkServer
from gridrun.machine import n_usable_cores
from gridrun.planner import Job
from gridrun.store import RunFolder

logger = logging.getLogger(__name__)
POLL_S = 0.2


class _Process:
    """One worker and the connection to it."""

    def __init__(self, index: int, server: ForkServer, threads: int) -> None:
        self.index = index
        self.process, self.connection = server.start_worker(threads)
        self.job: Job | None = None
        self.has_hung = False
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
        self.hang_timeout_s = hang_timeout_s
        self._is_stopping = False
        self._should_stop: Callable[[], bool] = lambda: False
        self._storage_error: StorageError | None = None
        self._deaths = Deaths(max_attempts)

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
        self._should_stop = should_stop
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
                worker.has_hung = True
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
        if self._should_stop():  # a signal may reach workers before it is seen here
            waiting.append(worker.job)
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if worker.has_hung:
            how = f"killed, silent for hang_timeout_s = {self.hang_timeout_s:g} s"
        for job in worker.job.singles():
            folder = RunFolder(Path(job.folders[0]))
            if folder.read()["state"] in FINAL_STATES:
                continue
            end = self._deaths.one_more(folder, "its worker", how)
            if end is None:
                waiting.append(job)
            else:
                report(end, worker.index)


def _free_index(workers: Iterable[_Process]) -> int:
    taken = {worker.index for worker in workers}
    return next(index for index in itertools.count() if index not in taken)


def _n_busy(workers: dict[Connection[Any, Any], _Process]) -> int:
    return sum(worker.job is not None for worker in workers.values())


def worker_places(
    hyps: Hyperparams, n_cores: int | None = None
) -> tuple[int, list[str]]:
    """Number of workers, and the device of each in turn (none: the jobs' own).

    Args:
        hyps: Of any run.
        n_cores: To be used; None: all that may be.
    """
    import torch

    n_gpus = torch.cuda.device_count() if hyps.device == "auto" else 0
    devices = [f"cuda:{i}" for i in range(n_gpus)]
    if hyps.workers == "auto" and (devices or hyps.device.startswith("cuda")):
        return max(len(devices), 1), devices
    return n_cpu_workers(hyps, n_cores or n_usable_cores()), devices


def n_cpu_workers(hyps: Hyperparams, n_cores: int) -> int:
    """Workers of so many cores, without GPUs."""
    if hyps.workers != "auto":
        return int(hyps.workers)
    return max(n_cores // hyps.threads, 1)
