"""Sweeps: plan, skip what is finished, execute, collect."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import gridrun
from gridrun.analysis.sweep import Run, Sweep, load_model, load_sweep
from gridrun.analysis.tables import write_tables
from gridrun.config import Hyperparams, shown
from gridrun.effects import (
    Effects,
    check_data,
    check_effects,
    kept_weights,
    make_specs,
)
from gridrun.errors import ConfigError, StoreError, SweepStopped
from gridrun.executors import Executor, Stopped
from gridrun.guard import Change, OnChange, changes, refuse_changed, restart
from gridrun.planner import Job, plan_cohorts
from gridrun.plugins import Library, reads
from gridrun.request import Point, Request, read_request
from gridrun.run import RunSpec, RunState, identity
from gridrun.store import (
    Claim,
    RunFolder,
    SweepFolder,
    assign_numbers,
    claim_holder,
    read_record,
    write_durably,
    write_json,
)
from gridrun.tracking.progress import Progress

__all__ = ["Run", "Sweep", "load_model", "load_sweep", "run_sweep"]

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_TABLES = 10.0
SEED_LIMIT = 2**31 - 10**7  # leaves room for the repeats below 2**31


@dataclasses.dataclass(frozen=True)
class Plan:
    """A request checked against the models and the data.

    Args:
        request: As read.
        points: Its grid points.
        effects: Which keys act.
        folder: The sweep's.
        notices: What the user should know before it starts.
    """

    request: Request
    points: Sequence[Point]
    effects: Effects
    folder: SweepFolder
    notices: Sequence[str]

    @property
    def hyps(self) -> Hyperparams:
        """Any grid point's configuration, for keys that are never swept."""
        return self.points[0].hyps


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of the request with its number, and its folder if there is one."""

    number: int
    spec: RunSpec
    folder: RunFolder | None

    @property
    def state(self) -> RunState:
        """Where it stands now."""
        return RunState.PENDING if self.folder is None else self.folder.state()

    @property
    def label(self) -> str:
        """What tells it from the other runs."""
        parts = [f"{name}={shown(value)}" for name, value in self.spec.axes.items()]
        return ", ".join([*parts, f"repeat {self.spec.repeat}"])


def plan_sweep(request: Request) -> Plan:
    """Check a request completely; writes nothing.

    Raises:
        ConfigError, DataError: With every problem.
    """
    points = request.points()
    effects = check_effects(request, points)
    notices = [*effects.notices, *check_data(request, points)]
    hyps = points[0].hyps
    folder = SweepFolder(Path(hyps.save_root or ".").absolute() / hyps.exp_name)
    _refuse_other_folder(folder)
    return Plan(request, points, effects, folder, notices)


def _refuse_other_folder(folder: SweepFolder) -> None:
    if folder.exists() or not folder.path.exists():
        return
    if not folder.path.is_dir():
        raise ConfigError(f"exp_name: {folder.path} is a file; choose another name")
    others = [p.name for p in folder.path.iterdir() if not p.name.startswith(".")]
    if others:
        raise ConfigError(
            f"exp_name: {folder.path} is there and is no sweep (it holds {others[0]}); "
            "choose another exp_name or save_root"
        )


# --- numbers ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Numbering:
    """The runs of a request with their numbers, before anything is written."""

    record: dict[str, Any]
    runs: tuple[PlannedRun, ...]
    skipped: frozenset[int]


def number_runs(plan: Plan) -> Numbering:
    """Give every run of a request its number; known runs keep theirs.

    Raises:
        ConfigError, StoreError: If numbers clash, or skip_nums names others.
    """
    record = plan.folder.read() if plan.folder.exists() else _new_record(plan)
    specs = make_specs(plan.request, plan.points, plan.effects, record["base_seed"])
    known: dict[str, int] = {}
    for request in record["requests"]:
        known |= request["runs"]
    taken = set(known.values())
    folders: dict[int, RunFolder] = {}
    if plan.folder.path.is_dir():
        folders = dict(plan.folder.runs())
        known |= _identities(folders, plan.request.library)
        taken |= set(folders)
    first = plan.hyps.starting_exp_num
    if first is None:
        first = record["next_number"]
    numbers = assign_numbers(specs, known, taken, first)
    skipped = frozenset(plan.hyps.skip_nums or ())
    if outside := sorted(skipped - set(numbers)):
        raise ConfigError(
            f"{plan.request.source_of('skip_nums')}: skip_nums: {outside} are no runs "
            f"of this sweep, which has {min(numbers)} to {max(numbers)}"
        )
    runs = tuple(
        PlannedRun(number, spec, folders.get(number))
        for number, spec in zip(numbers, specs, strict=True)
        if number not in skipped
    )
    record["next_number"] = max([record["next_number"], *(n + 1 for n in numbers)])
    own = {spec.identity: n for spec, n in zip(specs, numbers, strict=True)}
    _add_request(record, plan, own)
    return Numbering(record, runs, skipped)


def _new_record(plan: Plan) -> dict[str, Any]:
    given = plan.hyps.base_seed
    return {
        "schema_version": 1,
        "exp_name": plan.hyps.exp_name,
        "library": plan.request.library.name,
        "base_seed": time.time_ns() % SEED_LIMIT if given is None else given,
        "next_number": 0,
        "requests": [],
    }


def _add_request(record: dict[str, Any], plan: Plan, runs: Mapping[str, int]) -> None:
    asked = {"base": dict(plan.request.base), "ranges": plan.request.ranges}
    invocation = _invocation()
    for earlier in record["requests"]:
        if {name: earlier[name] for name in asked} == asked:
            earlier["runs"] = dict(runs)
            earlier["invocations"].append(invocation)
            return
    entry = asked | {"runs": dict(runs), "invocations": [invocation]}
    record["requests"].append(entry)


def _invocation() -> dict[str, Any]:
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "working_directory": str(Path.cwd()),
        "host": socket.gethostname(),
        "git": _git_commit(),
        "versions": {
            "gridrun": gridrun.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "h5py", "scipy")},
        },
    }


def _git_commit() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes, if it has one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "is_dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None


def _identities(folders: Mapping[int, RunFolder], library: Library) -> dict[str, int]:
    """Identity of the runs on disk under the present schema."""
    found: dict[str, int] = {}
    known_reads: dict[str, frozenset[str]] = {}
    for number, folder in folders.items():
        try:
            hyps = library.schema.model_validate(read_record(folder.hyperparams))
            name = hyps.model_type
            if name not in known_reads:
                known_reads[name] = reads(library.model(name))
        except (StoreError, ValueError) as error:
            logger.warning("run %d is left alone: %s", number, error)
            continue
        found[identity(hyps, hyps.inactive(known_reads[name]))] = number
    return found


def settle(plan: Plan) -> Numbering:
    """Record the request and make the folders of its new runs, under the lock."""
    if not plan.folder.exists():
        number_runs(plan)  # refuses what must be refused before anything is written
    try:
        plan.folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"save_root: {plan.folder.path} cannot be made: {error.strerror}; "
            "choose another save_root"
        ) from error
    with plan.folder.locked():
        numbering = number_runs(plan)
        _keep_weights(plan)
        write_json(plan.folder.record, numbering.record)
        runs = tuple(
            run
            if run.folder
            else dataclasses.replace(
                run, folder=plan.folder.create_run(run.number, run.spec)
            )
            for run in numbering.runs
        )
    for run in runs:
        _remove_dead_claim(run)
    return dataclasses.replace(numbering, runs=runs)


def _keep_weights(plan: Plan) -> None:
    """Copy the weights that runs start from into the sweep's folder."""
    for point in plan.points:
        if point.hyps.init_weights_path is None:
            continue
        kept = kept_weights(point.hyps)
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            write_durably(kept, Path(point.hyps.init_weights_path).read_bytes())


def _remove_dead_claim(run: PlannedRun) -> None:
    """A runner that was killed between a run's end and its next run leaves one."""
    if run.folder is not None and run.folder.claim.exists():
        claim = Claim(run.folder.claim)
        if claim.acquire():
            claim.release()


# --- execution --------------------------------------------------------------------


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
    request = read_request(hyperparams, hyperranges, overrides, options)
    plan = plan_sweep(request)
    execute(plan, retry_failed=retry_failed, on_change=on_change, quiet=quiet)
    return load_sweep(plan.folder.path)


def execute(
    plan: Plan,
    *,
    retry_failed: bool = False,
    on_change: OnChange = "refuse",
    quiet: bool = False,
) -> Numbering:
    """Train every run of a plan that is not finished; returns all its runs.

    Raises:
        ConfigError: If half-trained runs may not continue; nothing is written then.
        SweepStopped: If a signal stopped it; what was finished is kept.
    """
    for notice in plan.notices:
        logger.warning("%s", notice)
    changed = _changes(plan)
    if warning := refuse_changed(changed, on_change):
        logger.warning("%s", warning)
    numbering = settle(plan)
    if on_change == "restart":
        restart(changed)
    final = [RunState.DONE]
    retried: set[int] = set()
    if not retry_failed:
        final += [RunState.FAILED, RunState.DIVERGED]
    with stop_signals() as stop:
        try:
            while todo := _due(numbering.runs, final, retried):
                free = [run for run in todo if _holder(run) is None]
                if free:
                    _train(plan, free, final, stop, quiet)
                    retried |= {run.number for run in free}
                else:
                    _wait_for(todo[0], stop)
        except Stopped:
            raise SweepStopped(stop.number) from None
        finally:
            write_tables(plan.folder)
    return numbering


def _changes(plan: Plan) -> list[Change]:
    if not plan.folder.exists():
        return []
    runs = [
        (run.number, run.spec.hyps, run.folder)
        for run in number_runs(plan).runs
        if run.folder is not None
    ]
    return changes(plan.request.library, runs)


def _due(
    runs: Sequence[PlannedRun], final: Sequence[RunState], retried: set[int]
) -> list[PlannedRun]:
    """Runs still to train; one that failed again is not tried a third time."""
    due = []
    for run in runs:
        state = run.state
        if state in final or (run.number in retried and state.is_final):
            continue
        due.append(run)
    return due


def _holder(run: PlannedRun) -> str | None:
    return claim_holder(run.folder.claim) if run.folder else None


def _wait_for(run: PlannedRun, stop: StopSignals) -> None:
    assert run.folder is not None
    logger.warning(
        "run %d is held by %s; waiting (if that process is gone, delete %s)",
        run.number,
        _holder(run),
        run.folder.claim,
    )
    while _holder(run) is not None:
        if stop():
            raise Stopped
        time.sleep(0.5)


def _train(
    plan: Plan,
    runs: Sequence[PlannedRun],
    final: Sequence[RunState],
    stop: StopSignals,
    quiet: bool,
) -> None:
    hyps = plan.hyps
    n_workers, devices = worker_places(hyps)
    jobs = make_jobs(runs, plan.request.library.name, n_workers, final)
    progress = Progress(
        n_epochs=sum(job.n_epochs for job in jobs),
        n_runs=len(runs),
        labels={run.number: run.label for run in runs},
        is_quiet=quiet,
    )
    tables = TableWriter(plan.folder)

    def report(event: Any, worker: int) -> None:
        progress(event, worker)
        if event.kind == "end":
            tables.refresh()

    try:
        make_executor(hyps, n_workers, devices).run(jobs, report, stop)
    finally:
        progress.close()


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


def worker_places(hyps: Hyperparams) -> tuple[int, list[str]]:
    """Number of workers, and the device of each in turn (none: the jobs' own)."""
    import torch

    n_gpus = torch.cuda.device_count() if hyps.device == "auto" else 0
    devices = [f"cuda:{i}" for i in range(n_gpus)]
    if hyps.workers != "auto":
        return int(hyps.workers), devices
    if devices or hyps.device.startswith("cuda"):
        return max(len(devices), 1), devices
    return max(n_usable_cores() // hyps.threads, 1), []


def n_usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_jobs(
    runs: Sequence[PlannedRun],
    library: str,
    n_workers: int,
    final: Sequence[RunState],
) -> list[Job]:
    """Cohorts of pending runs, as jobs."""
    all_hyps = [run.spec.hyps for run in runs]
    size = all_hyps[0].cohort_size
    cohorts = plan_cohorts(all_hyps, n_workers, size)
    return [
        Job(
            library=library,
            folders=tuple(str(_folder(runs[i])) for i in cohort),
            hyps=tuple(all_hyps[i].model_dump(mode="json") for i in cohort),
            threads=all_hyps[cohort[0]].threads,
            device=all_hyps[cohort[0]].device,
            final_states=tuple(state.value for state in final),
        )
        for cohort in cohorts
    ]


def _folder(run: PlannedRun) -> Path:
    assert run.folder is not None
    return run.folder.path


def make_executor(
    hyps: Hyperparams, n_workers: int, devices: Sequence[str]
) -> Executor:
    """The executor that the keys name."""
    if hyps.executor == "serial":
        from gridrun.executors.serial import SerialExecutor

        return SerialExecutor()
    from gridrun.executors.process import ProcessExecutor

    return ProcessExecutor(n_workers, devices, hyps.max_attempts, hyps.hang_timeout_s)


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
