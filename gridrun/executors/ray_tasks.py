"""Ray: one task a cohort, on the machines of a cluster or on this one."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun.config import Hyperparams
from gridrun.config.cluster_args import RayArgs
from gridrun.errors import ClusterError, GridrunError, StorageError
from gridrun.executors.node import Signals, approved
from gridrun.executors.ray_post import Post, answer, train_away
from gridrun.executors.submissions import Submission, new_submission
from gridrun.guard import OnChange
from gridrun.machine import n_usable_cores
from gridrun.planner import Job
from gridrun.store import SweepFolder

SECONDS_TO_ANSWER = 10.0
SECONDS_TO_STOP = 30.0


def train_task(job: Job, on_change: OnChange, mark: str, post: Any = None) -> None:
    """Train a cohort in the process that Ray calls this in.

    Args:
        job: The cohort.
        on_change: What to do with runs half-trained under other circumstances.
        mark: A file in the sweep's folder, by which machines know it.
        post: Actor for machines that do not see it.

    Raises:
        StorageError: If the folder can be neither seen nor done without.
    """
    from gridrun.training.cohort import Interrupted
    from gridrun.training.job import train_job

    signals = Signals()  # ray.cancel comes as SIGINT
    with signals.caught(signal.SIGINT), contextlib.suppress(Interrupted):
        if not Path(mark).exists():
            _check_blind(job, mark, post)
            train_away(job, on_change, post, lambda: bool(signals))
        elif (left := approved(job, on_change)).folders:
            train_job(left, should_stop=lambda: bool(signals))


def _check_blind(job: Job, mark: str, post: Any) -> None:
    """What a machine that does not see the sweep's folder cannot do without."""
    sweep = Path(mark).parents[1]
    where = f"{socket.gethostname()} does not see {sweep}"
    remedy = "put save_root on a file system that all machines share"
    if post is None:
        raise StorageError(f"{where}; {remedy}")
    for hyps in job.hyps:
        if sweep in Path(hyps["init_weights_path"] or "").parents:
            text = "which holds the weights of init_weights_path"
            raise StorageError(f"{where}, {text}; {remedy}")


def problems(hyps: Hyperparams) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for what keeps cohorts from being handed in."""
    if importlib.util.find_spec("ray") is None:
        yield "executor", "ray is not installed: pip install 'gridrun[ray]'"
        return
    args = RayArgs.model_validate(hyps.executor_args)
    if not args.num_gpus and hyps.engine not in ("auto", "solo"):
        text = f"{hyps.engine} is for GPUs, and num_gpus of executor_args is 0"
        yield "engine", f"{text}; ask for one, or use auto or solo"
    address = args.address
    for text in _too_much(args) if address is None else _no_answer(address):
        yield "executor_args", text


def _too_much(args: RayArgs) -> Iterator[str]:
    """Yield what this machine lacks; Ray would wait for it for ever."""
    import torch

    asked = {"num_cpus": args.num_cpus or 0, "num_gpus": args.num_gpus}
    there = {"num_cpus": n_usable_cores(), "num_gpus": torch.cuda.device_count()}
    for name, n in asked.items():
        if n > there[name]:
            text = f"{name}: {n:g} asked for, this machine has {there[name]}"
            yield f"{text}; ask for less, or give the address of a cluster"
    if args.resources:
        yield "resources: this machine has none; give the address of a cluster"


def _no_answer(address: str) -> Iterator[str]:
    """Yield what is wrong with an address; Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)
    if found is None:
        return
    try:
        place = found[1], int(found[2])
        socket.create_connection(place, SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        text = f"address: nobody answers at {address}: {error}"
        yield f"{text}; give that of a Ray cluster, or none"


class Ray:
    """The engine of Ray.

    Its tasks end with this process, so that nobody finds them later.

    Args:
        folder: Of the sweep.
        hyps: Of any run.
        on_change: What to do with runs half-trained under other circumstances.
    """

    def __init__(
        self, folder: SweepFolder, hyps: Hyperparams, on_change: OnChange
    ) -> None:
        self.folder = folder
        self.args = RayArgs.model_validate(hyps.executor_args)
        self.on_change = on_change
        self.threads = hyps.threads
        self._connection = contextlib.ExitStack()
        self._submissions: list[Submission] = []
        self._post: Any = None
        self._jobs: dict[str, Job] = {}
        self._tasks: dict[str, Any] = {}
        self._over: dict[str, str] = {}

    @property
    def n_workers(self) -> int:
        """Cohorts that are trained at once."""
        there: Mapping[str, float] = {"CPU": n_usable_cores()}
        if self.args.address is not None:
            import ray

            self._connect()
            there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        needed = self._resources()
        shares = [there.get(name, 0.0) / n for name, n in needed.items() if n]
        return max(int(min(shares, default=1)), 1)

    def _resources(self) -> dict[str, float]:
        n_cpus = self.args.num_cpus
        own = {"CPU": self.threads if n_cpus is None else n_cpus}
        return own | {"GPU": self.args.num_gpus} | self.args.resources

    def _variables(self) -> dict[str, str]:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        variables = dict.fromkeys(names, str(self.threads))
        if self.args.address is None:  # else machines may have their own
            variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        return variables

    def _connect(self) -> None:
        import ray

        if not ray.is_initialized():
            self._connection.enter_context(connected(self.args))

    def submit(self, jobs: Sequence[Job]) -> dict[str, list[Job]]:
        """Start a task for each cohort; see `Engine`."""
        import ray

        self._connect()
        submission = new_submission(self.folder, "ray", [[job] for job in jobs])
        submission.write()
        self._submissions.append(submission)
        resources = self._resources()
        task = ray.remote(train_task).options(
            num_cpus=resources.pop("CPU"),
            num_gpus=resources.pop("GPU"),
            resources=resources,
            max_retries=self.args.max_retries,
            runtime_env={"env_vars": self._variables()},
        )
        if self._post is None and self.args.address is not None:
            self._post = _start_post()
        mark = str(submission.path)
        found = {}
        for job in jobs:
            is_on_cpu = job.device == "auto" and not self.args.num_gpus
            placed = job.on("cpu") if is_on_cpu else job
            reference = task.remote(placed, self.on_change, mark, self._post)
            self._tasks[reference.hex()], self._jobs[reference.hex()] = reference, job
            found[reference.hex()] = [job]
        return found

    def ended(self, names: Sequence[str], is_urgent: bool) -> Mapping[str, str]:
        """Those whose task is over; see `Engine`.

        Raises:
            GridrunError: Of a task.
        """
        import ray

        under_way = [self._tasks[name] for name in names if name not in self._over]
        if under_way:
            over, _ = ray.wait(under_way, num_returns=len(under_way), timeout=0)
            for one in over:
                self._take_back(one.hex())
                self._over[one.hex()] = _how_it_ended(one)
        return {name: self._over[name] for name in names if name in self._over}

    def _take_back(self, name: str) -> None:
        """Free the claims that a task has left, if it was lost."""
        from ray.exceptions import RayActorError

        if self._post is not None:
            with contextlib.suppress(RayActorError):  # its claims ended with it
                answer(self._post.take_back.remote(self._jobs[name].folders))

    def cancel(self, names: Sequence[str]) -> None:
        """Ask tasks to end; see `Engine`."""
        import ray

        for name in names:
            ray.cancel(self._tasks[name], recursive=False)

    def close(self) -> None:
        """End tasks, if there are any, and leave the cluster."""
        try:
            self._end_tasks()
        finally:
            self._connection.close()
        for one in self._submissions:
            one.close()
        self._submissions = []

    def _end_tasks(self) -> None:
        """After an error; leaving would kill them in the middle of a step."""
        if left := [name for name in self._tasks if name not in self._over]:
            import ray

            self.cancel(left)
            tasks = [self._tasks[name] for name in left]
            ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS_TO_STOP)
            for name in left:
                self._take_back(name)


def _start_post() -> Any:
    """The actor for machines that do not see the sweep's folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    place = NodeAffinitySchedulingStrategy(here, soft=False)
    actor = ray.remote(Post).options(
        num_cpus=0, max_restarts=-1, scheduling_strategy=place
    )
    return actor.remote()


def _how_it_ended(reference: Any) -> str:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, GridrunError):
            raise error.cause from None
        return f"{type(error.cause).__name__}: {error.cause}"
    except RayError as error:
        return type(error).__name__
    return "Ray's task ended"


@contextlib.contextmanager
def connected(args: RayArgs) -> Iterator[None]:
    """Connect to a cluster, or start a Ray on this machine, and leave it in the end.

    Raises:
        ClusterError: If there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if args.address is None:
        options |= {"num_cpus": n_usable_cores(), "include_dashboard": False}
    with kept_handlers():
        try:
            ray.init(args.address or "local", **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            text = f"executor_args: address: no Ray at {args.address or 'this machine'}"
            raise ClusterError(f"{text}: {error}") from error
    try:
        yield
    finally:
        with kept_handlers():
            ray.shutdown()


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """Give signals their handlers back in the end: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
