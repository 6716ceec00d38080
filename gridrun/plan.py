"""A request beside its sweep's folder: its runs, their numbers, what is settled first.

Planning writes nothing; `settle` records the request and makes the run folders.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gridrun
from gridrun.claims import Claim
from gridrun.config import Hyperparams, shown
from gridrun.durable import read_record, write_durably, write_json
from gridrun.effects import (
    Effects,
    check_data,
    check_effects,
    kept_weights,
    make_specs,
)
from gridrun.errors import ConfigError, StoreError
from gridrun.plugins import reads
from gridrun.request import Point, Request
from gridrun.run import RunSpec, RunState, identity
from gridrun.store import (
    RunFolder,
    SweepFolder,
    assign_numbers,
)

logger = logging.getLogger(__name__)
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


def plan_sweep(
    request: Request,
    meanwhile: Callable[[SweepFolder, Sequence[Point]], None] | None = None,
) -> Plan:
    """Check a request completely; writes nothing.

    Args:
        request: As read.
        meanwhile: Called when the files are found sound, before torch is loaded.

    Raises:
        ConfigError, DataError: With every problem.
    """
    points = request.points()
    hyps = points[0].hyps
    folder = SweepFolder(Path(hyps.save_root or ".").absolute() / hyps.exp_name)
    _refuse_other_folder(folder)
    if meanwhile is not None:
        meanwhile(folder, points)
    effects = check_effects(request, points)
    notices = [*effects.notices, *check_data(request, points)]
    return Plan(request, points, effects, folder, notices)


def _refuse_other_folder(folder: SweepFolder) -> None:
    try:
        if folder.exists() or not folder.path.exists():
            return
    except OSError as error:  # a name that the system cannot have, say
        raise ConfigError(f"save_root: {error}; choose another save_root") from error
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
    if plan.folder.exists():
        record = plan.folder.read()
    else:
        given = plan.hyps.base_seed
        base_seed = time.time_ns() % SEED_LIMIT if given is None else given
        name = plan.request.library.name
        record = new_record(plan.hyps.exp_name, name, base_seed)
    specs = make_specs(plan.request, plan.points, plan.effects, record["base_seed"])
    known: dict[str, int] = {}
    for request in record["requests"]:
        known |= request["runs"]
    taken = set(known.values())
    folders: dict[int, RunFolder] = {}
    if plan.folder.path.is_dir():
        folders = dict(plan.folder.runs())
        if any(spec.identity not in known for spec in specs):
            known |= _identities(folders, plan)
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


def new_record(exp_name: str, library: str, base_seed: int) -> dict[str, Any]:
    """sweep.json before the first request."""
    return {
        "schema_version": 1,
        "exp_name": exp_name,
        "library": library,
        "base_seed": base_seed,
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


def _identities(folders: Mapping[int, RunFolder], plan: Plan) -> dict[str, int]:
    """Identity, under the present schema, of the runs on disk of the same models."""
    library, found = plan.request.library, {}
    asked = {point.hyps.model_type for point in plan.points}
    known_reads = {
        name: reads(library.model(name, plan.hyps.plugins)) for name in asked
    }
    for number, folder in folders.items():
        try:
            hyps = library.schema.model_validate(read_record(folder.hyperparams))
        except (StoreError, ValueError) as error:
            logger.warning("run %d is left alone: %s", number, error)
            continue
        if hyps.model_type in asked:
            reasons = hyps.inactive(known_reads[hyps.model_type])
            found[identity(hyps, reasons)] = number
    return found


def settle(
    plan: Plan, approve: Callable[[Numbering], None] = lambda numbering: None
) -> Numbering:
    """Record the request and make the folders of its new runs, under the lock.

    Args:
        plan: Of the request.
        approve: Called before anything is written; may raise to refuse.
    """
    is_new = not plan.folder.exists()
    if is_new:
        numbering = number_runs(plan)  # refuses before there is a folder
    try:
        plan.folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"save_root: {plan.folder.path} cannot be made: {error.strerror}; "
            "choose another save_root"
        ) from error
    with plan.folder.locked():
        if not is_new or plan.folder.exists():  # another runner may have been faster
            numbering = number_runs(plan)
        approve(numbering)
        _keep_weights(plan)
        write_json(plan.folder.record, numbering.record)
        new = {run.number: run.spec for run in numbering.runs if run.folder is None}
        made = plan.folder.create_runs(new) if new else {}
        runs = tuple(
            run if run.folder else dataclasses.replace(run, folder=made[run.number])
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
