"""Slurm: array jobs through submitit, and questions to its own commands."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gridrun.config import Hyperparams
from gridrun.config.cluster_args import SlurmArgs
from gridrun.errors import ClusterError
from gridrun.executors.node import NodeTask
from gridrun.executors.submissions import (
    Submission,
    new_submission,
    number_of,
    open_submissions,
)
from gridrun.guard import OnChange
from gridrun.planner import Job
from gridrun.store import SweepFolder

logger = logging.getLogger(__name__)
OVER = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
SECONDS_TO_ANSWER = 60.0
URGENT_PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0  # between two questions
LONGEST_NOTICE_S = 90  # before the time limit
REQUEUES = 10**6  # at the time limit; a job without a new epoch is not queued again


@dataclasses.dataclass(frozen=True)
class QueuedJob:
    """One of a sweep's jobs that Slurm has queued or is running.

    Args:
        id: As Slurm shows it, such as 12_0.
        state: In Slurm's words, such as PENDING.
        reason: Why it does not run yet.
        runs: Run numbers.
        submission: That it is of.
    """

    id: str
    state: str
    reason: str
    runs: Sequence[int]
    submission: str


def queued_jobs(folder: SweepFolder) -> list[QueuedJob]:
    """A sweep's jobs that Slurm has queued or is running.

    Raises:
        ClusterError: If Slurm does not answer.
    """
    return list(_queued(open_submissions(folder, "slurm")))


def _queued(submissions: Sequence[Submission]) -> Iterator[QueuedJob]:
    known = {one.name: one for one in submissions}
    for name, index, number, state, reason in _queue(list(known)):
        runs = known[name].runs[int(index) if index.isdecimal() else 0]
        yield QueuedJob(number, state, reason, runs, name)


def _queue(names: Sequence[str]) -> list[list[str]]:
    """Name, array index, id, state and reason of the jobs of these names."""
    if not names:
        return []
    options = ["--noheader", "--array", "--states=all", "--format=%j|%K|%i|%T|%r"]
    text = ask("squeue", *options, f"--name={','.join(names)}")
    rows = [line.strip().split("|", 4) for line in text.splitlines()]
    return [row for row in rows if row[3] not in OVER]


def ask(*command: str) -> str:
    """What one of Slurm's commands answers.

    Raises:
        ClusterError: If it does not, or refuses.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_ANSWER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{command[0]}: no answer from Slurm: {error}") from error
    if done.returncode:
        text = done.stderr.strip().replace("\n", "; ")
        raise ClusterError(f"{command[0]}: {text or f'exit code {done.returncode}'}")
    return done.stdout


def problems(hyps: Hyperparams) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what keeps jobs from being handed in."""
    if importlib.util.find_spec("submitit") is None:
        text = "slurm needs submitit, which is not installed"
        yield "executor", f"{text}: pip install 'gridrun[slurm]'"
        return
    args = SlurmArgs.model_validate(hyps.executor_args)
    options = sbatch_options(args, n_cores(hyps, args)) | {"time": args.time_min}
    flags = [f"--{n}" if v is True else f"--{n}={v}" for n, v in options.items()]
    try:
        ask("sbatch", "--test-only", *flags, "--wrap=true")
    except ClusterError as error:
        text = f"Slurm does not take such jobs: {error}"
        yield "executor_args", f"{text}; mend the options, or use another executor"


def n_cores(hyps: Hyperparams, args: SlurmArgs) -> int:
    """Cores of a job: as asked for, or as its workers need."""
    auto = args.gpus_per_node or 1
    n_workers = auto if hyps.workers == "auto" else int(hyps.workers)
    return args.cpus_per_task or n_workers * hyps.threads


def sbatch_options(args: SlurmArgs, n_cores: int) -> dict[str, Any]:
    """Options of sbatch, by their names there."""
    names = ("partition", "account", "qos", "constraint", "mem", "gpus_per_node")
    given = {name.replace("_", "-"): getattr(args, name) for name in names}
    found = {name: value for name, value in given.items() if value is not None}
    return {"requeue": True, "cpus-per-task": n_cores} | found | args.extra


class Slurm:
    """The engine of Slurm.

    A job of Slurm takes as many cohorts as it has workers, and more where an array
    cannot be so large. Who comes later finds the jobs by their records.

    Args:
        folder: Of the sweep.
        hyps: Of any run.
        on_change: What to do with runs half-trained under other circumstances.
    """

    def __init__(
        self, folder: SweepFolder, hyps: Hyperparams, on_change: OnChange
    ) -> None:
        self.folder = folder
        self.hyps = hyps
        self.args = SlurmArgs.model_validate(hyps.executor_args)
        self.on_change = on_change
        self._pause_s = URGENT_PAUSE_S
        self._asked_s = 0.0

    @property
    def n_workers(self) -> int:
        """Cohorts that are trained at once."""
        return self._workers_per_job * (self.args.max_parallel or 1)

    @property
    def _workers_per_job(self) -> int:
        if self.hyps.workers != "auto":
            return int(self.hyps.workers)
        n_cpu_workers = max(n_cores(self.hyps, self.args) // self.hyps.threads, 1)
        return self.args.gpus_per_node or n_cpu_workers

    def submit(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        """Hand in the runs that no queued or running job has; see `Engine`."""
        with self.folder.locked():  # another runner may be about to do the same
            found = self._in_queue(jobs)
            taken = {f for some in found.values() for job in some for f in job.folders}
            cut = (job.only(set(job.folders) - taken) for job in jobs)
            rest = [job for job in cut if job.folders]
            return found | (self._handed_in(rest) if rest else {})

    def _in_queue(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        folders = {number_of(folder): folder for job in jobs for folder in job.folders}
        submissions = open_submissions(self.folder, "slurm")
        queued = list(_queued(submissions))
        names = {job.submission for job in queued}
        for submission in submissions:
            if submission.name not in names:
                submission.close()
        found = {}
        for one in queued:
            wanted = {folders[number] for number in one.runs if number in folders}
            cut = (job.only(wanted) for job in jobs)
            if mine := [job for job in cut if job.folders]:
                found[one.id] = mine
        return found

    def _handed_in(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        parts = self._divided(jobs)
        submission = new_submission(self.folder, "slurm", parts)
        submission.write()
        cores = n_cores(self.hyps, self.args)
        executor = SlurmExecutor(submission.files, max_num_timeout=REQUEUES)
        executor.update_parameters(
            job_name=submission.name,
            wckey=None,
            time=self.args.time_min,
            signal_delay_s=min(15 * self.args.time_min, LONGEST_NOTICE_S),
            setup=[*self._exports(), *self.args.setup_lines],
            array_parallelism=self.args.max_parallel or len(parts),
            srun_args=[f"--cpus-per-task={cores}"],
            additional_parameters=sbatch_options(self.args, cores),
        )
        try:
            with executor.batch():
                tasks = [NodeTask(part, cores, self.on_change) for part in parts]
                handed_in = [executor.submit(task) for task in tasks]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            submission.close()
            raise ClusterError(f"Slurm takes no jobs: {error}") from error
        names = [str(one.job_id) for one in handed_in]
        dataclasses.replace(submission, job=names[0].partition("_")[0]).write()
        return dict(zip(names, parts, strict=True))

    def _divided(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Cohorts of each of Slurm's jobs, which come with the most work first."""
        most = self.args.max_array_size or site_array_size()
        n_parts = min(math.ceil(len(jobs) / self._workers_per_job), most)
        return [list(jobs[i::n_parts]) for i in range(n_parts)]

    def _exports(self) -> list[str]:
        """Shell lines that give the job what this process imports from."""
        variables: Mapping[str, object] = {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": self.hyps.threads,
            "MKL_NUM_THREADS": self.hyps.threads,
        }
        return [f"export {n}={shlex.quote(str(v))}" for n, v in variables.items()]

    def ended(self, names: Sequence[str], is_urgent: bool) -> Mapping[str, str]:
        """Those that Slurm's queue no longer holds; see `Engine`."""
        pause_s = URGENT_PAUSE_S if is_urgent else self._pause_s
        if time.monotonic() < self._asked_s + pause_s:
            return {}
        self._pause_s = min(1.2 * self._pause_s, LONGEST_PAUSE_S)
        try:
            there = {job.id for job in queued_jobs(self.folder)}
        except ClusterError as error:
            logger.warning("%s; it is asked again", error)
            return {}
        finally:
            self._asked_s = time.monotonic()
        return {name: f"Slurm's job {name}" for name in names if name not in there}

    def cancel(self, names: Sequence[str]) -> None:
        """Ask jobs to end; see `Engine`."""
        if names:
            with contextlib.suppress(ClusterError):  # some have ended by themselves
                ask("scancel", *names)

    def close(self) -> None:
        """Close the records of what has left the queue."""
        with contextlib.suppress(ClusterError), self.folder.locked():
            self._in_queue([])


def site_array_size() -> int:
    """The largest array that the site allows."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return int(found[1]) if found else 1000
