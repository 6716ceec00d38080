"""Sweeps: plan, skip what is finished, execute, collect."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from gridrun.analysis.run import Run
from gridrun.analysis.sweep import Sweep, load_model, load_sweep
from gridrun.analysis.tables import RunSummary, write_tables
from gridrun.claims import ClaimWatch
from gridrun.config import Hyperparams, varied
from gridrun.errors import StoreError, SweepStopped
from gridrun.executors import Executor, Stopped
from gridrun.executors.cluster import ClusterExecutor
from gridrun.executors.fork_server import ForkServer
from gridrun.executors.process import ProcessExecutor, worker_places
from gridrun.executors.serial import SerialExecutor
from gridrun.guard import (
    Change,
    OnChange,
    changes,
    is_set_aside,
    refuse_changed,
    restart,
)
from gridrun.plan import (
    Numbering,
    Plan,
    PlannedRun,
    plan_sweep,
    settle,
)
from gridrun.planner import Job, plan_cohorts
from gridrun.repair import mend_hyperparams, mend_record
from gridrun.request import Point, Request, read_request
from gridrun.run import RunState
from gridrun.store import SweepFolder
from gridrun.tracking.live import LivePlot
from gridrun.tracking.progress import Progress
from gridrun.tracking.watchers import Watchers

__all__ = ["Run", "Sweep", "load_model", "load_sweep", "run_sweep"]

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_TABLES = 10.0
SECONDS_BETWEEN_LOOKS = 0.5
USUAL_THRESHOLD = 2_000


def run_sweep(
    hyperparams: str | Path | Mapping[str, Any],
    hyperranges: str | Path | Mapping[str, Any] | Sequence[Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    retry_failed: bool = False,
    on_change: OnChange = "refuse",
    quiet: bool = False,
    **options: Any,
) -> Sweep:
    """Train what is missing of a grid; returns the sweep, finished runs included.

    Args:
        hyperparams: Path of hyperparams.json, or its content.
        hyperranges: Path of hyperranges.json, or its content; None: one grid point.
        overrides: `key=value` texts, which win over hyperparams.json.
        retry_failed: Train failed and diverged runs again.
        on_change: What to do with half-trained runs when threads, device, versions,
            data or model source are no longer those they were begun with.
        quiet: Report failures only.
        **options: Keys of the runner, e.g. `workers=2`, `executor="serial"`,
            `save_root="..."`; they win over everything.

    Raises:
        ConfigError, DataError: Before anything is written.
        SweepStopped: If a signal stopped it.
    """
    request = read_request(hyperparams, hyperranges, overrides, options, "run_sweep")
    found = run_request(request, retry_failed, on_change, quiet)
    return load_sweep(found.folder.path, request.base.get("plugins"), found.imports)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A request after training.

    Args:
        folder: The sweep's.
        runs: Those of the request, as they are recorded.
        imports: Modules that the request imports.
    """

    folder: SweepFolder
    runs: Sequence[RunSummary]
    imports: Sequence[str] = ()


def run_request(
    request: Request, retry_failed: bool, on_change: OnChange, quiet: bool
) -> Outcome:
    """Train every run of a request that is not finished.

    Args: as of `run_sweep`.

    Raises:
        ConfigError: If half-trained runs may not continue; nothing is written then.
        SweepStopped: If a signal stopped it; what was finished is kept.
    """
    server = ForkServer(request.library.name)
    try:
        with few_collections():
            plan = plan_sweep(request, functools.partial(start_early, server))
            return _execute(plan, server, retry_failed, on_change, quiet)
    finally:
        server.close()


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Look for garbage seldom inside: thousands of runs are none, but take long."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def usual_collections() -> Iterator[None]:
    """Look for garbage as usual inside, but not among what is there before."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(USUAL_THRESHOLD, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def start_early(
    server: ForkServer, folder: SweepFolder, points: Sequence[Point]
) -> None:
    """Load what a new sweep needs while it is checked: loading torch takes long."""
    hyps = points[0].hyps
    if hyps.executor == "process" and not folder.exists():
        server.start(hyps.threads)


def _execute(
    plan: Plan,
    server: ForkServer,
    retry_failed: bool,
    on_change: OnChange,
    quiet: bool,
) -> Outcome:
    for notice in () if quiet else plan.notices:
        logger.warning("%s", notice)
    changed: list[Change] = []

    def approve(numbering: Numbering) -> None:
        if plan.hyps.is_on_cluster:  # whose machines look, each for itself
            return
        changed[:] = _changes(plan, numbering)
        if warning := refuse_changed(changed, on_change):
            logger.warning("%s", warning)

    numbering = settle(plan, approve)
    if on_change == "restart":
        restart(changed)
    final = [RunState.DONE]
    retried: set[int] = set()
    set_aside: set[int] = set()
    if not retry_failed:
        final += [RunState.FAILED, RunState.DIVERGED]
    watch = ClaimWatch(plan.hyps.claim_timeout_s)
    watchers = Watchers.of(plan.hyps)
    watchers.tell("on_sweep_start", plan.folder.path)
    with stop_signals() as stop:
        try:
            while todo := _due(numbering.runs, final, retried, set_aside):
                ours = _in_queue(plan)
                free = [
                    run
                    for run in todo
                    if run.number in ours or _holder(run, watch) is None
                ]
                if free:
                    executor = make_executor(plan.hyps, plan.folder, server, on_change)
                    set_aside |= _train(plan, executor, free, final, stop, quiet)
                    retried |= {run.number for run in free}
                else:
                    _wait_for(todo, watch, stop)
        except Stopped:
            raise SweepStopped(stop.number) from None
        finally:
            everything = write_tables(plan.folder)
            watchers.tell("on_sweep_end", plan.folder.path)
    found = {one.record["number"] for one in everything}
    if lost := [run for run in numbering.runs if run.number not in found]:
        for run in lost:
            mend_hyperparams(run)
        everything = write_tables(plan.folder)
    numbers = {run.number for run in numbering.runs}
    runs = [one for one in everything if one.record["number"] in numbers]
    names = {name for point in plan.points for name in point.hyps.plugin_names()}
    imports = sorted(name.partition(":")[0] for name in names if ":" in name)
    return Outcome(plan.folder, runs, imports)


def _changes(plan: Plan, numbering: Numbering) -> list[Change]:
    runs = (
        (run.number, run.spec.hyps, run.folder)
        for run in numbering.runs
        if run.folder is not None
    )
    return changes(plan.request.library, runs)


def _due(
    runs: Sequence[PlannedRun],
    final: Sequence[RunState],
    retried: set[int],
    set_aside: set[int],
) -> list[PlannedRun]:
    """Runs still to train; one that failed again is not tried a third time."""
    due = []
    for run in runs:
        try:
            state = run.state
        except StoreError as error:
            state = mend_record(run, error)
        if state in final or (run.number in retried and state.is_final):
            continue
        if run.number in set_aside:
            continue
        due.append(run)
    return due


def _holder(run: PlannedRun, watch: ClaimWatch) -> str | None:
    return watch.holder(run.folder.claim) if run.folder else None


def _wait_for(runs: Sequence[PlannedRun], watch: ClaimWatch, stop: StopSignals) -> None:
    """Wait until one of the runs, all held by others, is finished or free."""
    logger.warning(
        "run %d is held by %s; waiting (a claim of another host is dead when unchanged "
        "for %g s)",
        runs[0].number,
        _holder(runs[0], watch),
        watch.timeout_s,
    )
    while all(_holder(run, watch) is not None for run in runs):
        if stop():
            raise Stopped
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _in_queue(plan: Plan) -> set[int]:
    """Numbers of runs that a cluster has in its queue or trains, for this sweep."""
    if plan.hyps.executor != "slurm":
        return set()
    from gridrun.executors.slurm import queued_jobs

    return {number for job in queued_jobs(plan.folder) for number in job.runs}


def _train(
    plan: Plan,
    executor: Executor,
    runs: Sequence[PlannedRun],
    final: Sequence[RunState],
    stop: StopSignals,
    quiet: bool,
) -> set[int]:
    """Train runs; gives the numbers of those that a cluster does not continue."""
    hyps = plan.hyps
    jobs = make_jobs(runs, plan.request.library.name, executor.n_workers, final)
    progress = Progress(
        n_epochs=sum(job.n_epochs for job in jobs),
        n_runs=len(runs),
        labels={run.number: run.label for run in runs},
        is_quiet=quiet,
        is_verbose=hyps.verbose,
    )
    tables = TableWriter(plan.folder)
    folders = {run.number: _folder(run) for run in runs}
    live = LivePlot(folders) if hyps.show_plots else None
    set_aside: set[int] = set()

    def report(event: Any, worker: int) -> None:
        progress(event, worker)
        if event.kind == "epoch" and live is not None:
            live.refresh(event.number)
        if event.kind == "end":
            tables.refresh()
            if is_set_aside({"state": event.state, **event.metrics}):
                set_aside.add(event.number)

    try:
        with usual_collections():
            executor.run(jobs, report, stop)
    finally:
        progress.close()
    return set_aside


class TableWriter:
    """Rewrites the tables now and then while runs end.

    Args:
        folder: The sweep's.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self._next_s = time.monotonic() + SECONDS_BETWEEN_TABLES

    def refresh(self) -> None:
        """Write the tables if that was not done lately."""
        started = time.monotonic()
        if started >= self._next_s:
            write_tables(self.folder)
            now = time.monotonic()
            pause_s = max(SECONDS_BETWEEN_TABLES, 20 * (now - started))
            self._next_s = now + pause_s


def make_jobs(
    runs: Sequence[PlannedRun],
    library: str,
    n_workers: int,
    final: Sequence[RunState],
) -> list[Job]:
    """Cohorts of pending runs, as jobs."""
    first = runs[0].spec.hyps
    cohorts = plan_cohorts(_Configurations(runs), n_workers, first.cohort_size)
    base = first.model_dump(mode="json")
    states = tuple(state.value for state in final)
    jobs = []
    for cohort in cohorts:
        hyps = [runs[i].spec.hyps for i in cohort]
        jobs.append(
            Job(
                library=library,
                folders=tuple(str(_folder(runs[i])) for i in cohort),
                hyps=tuple(varied(one.model_dump(mode="json"), base) for one in hyps),
                threads=hyps[0].threads,
                device=hyps[0].device,
                final_states=states,
            )
        )
    return jobs


class _Configurations(Sequence[Hyperparams]):
    """The configurations of runs, each made when it is asked for."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self.runs = runs

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        return self.runs[index].spec.hyps


def _folder(run: PlannedRun) -> Path:
    assert run.folder is not None
    return run.folder.path


def make_executor(
    hyps: Hyperparams, folder: SweepFolder, server: ForkServer, on_change: OnChange
) -> Executor:
    """The executor that the keys name.

    Args:
        hyps: Of any run.
        folder: Of the sweep.
        server: Starts worker processes.
        on_change: For machines of a cluster, which look by themselves.
    """
    if hyps.executor == "slurm":
        from gridrun.executors.slurm import Slurm

        return ClusterExecutor(Slurm(folder, hyps, on_change), hyps)
    if hyps.executor == "ray":
        from gridrun.executors.ray_tasks import Ray

        return ClusterExecutor(Ray(folder, hyps, on_change), hyps)
    n_workers, devices = worker_places(hyps)
    if hyps.executor == "serial":
        return SerialExecutor(n_workers)
    return ProcessExecutor(
        server, n_workers, devices, hyps.max_attempts, hyps.hang_timeout_s
    )


class StopSignals:
    """Remembers the signal that asked to stop; calling it tells whether one did."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        return self.number != 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler; the second signal ends the process as usual."""
        self.number = number
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Let SIGINT, SIGTERM and SIGUSR2 ask for a stop inside; in threads none do."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, stop.handle) for number in StopSignals.NUMBERS
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
