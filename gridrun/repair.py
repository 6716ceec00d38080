"""Bring a sweep folder in order: tables rebuilt, leftovers removed, damage named."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

from gridrun.analysis.tables import write_tables
from gridrun.claims import Claim, claim_holder
from gridrun.durable import read_record, remove_temporaries, write_json
from gridrun.errors import CheckpointError, StoreError
from gridrun.plan import PlannedRun, new_record
from gridrun.plugins import recorded_library
from gridrun.run import RunState
from gridrun.store import RunFolder, SweepFolder, pending_record

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that was wrong in a sweep folder.

    Args:
        text: What, where, and what was done or is to be done.
        is_mended: Whether nothing is left to do.
    """

    text: str
    is_mended: bool


def repair_sweep(sweep: SweepFolder) -> list[Finding]:
    """Rebuild what is derived, remove what is left over, check what is kept.

    Runs that are being trained are left alone.

    Raises:
        StoreError: If there is no sweep.
    """
    found = list(_mended_record(sweep))
    for number, folder in sweep.runs():
        if holder := claim_holder(folder.claim):
            text = f"run {number} is held by {holder}; it is left alone"
            found.append(Finding(text, is_mended=True))
        else:
            found += _mended_run(number, folder)
    for table in (sweep.results, sweep.summary):
        table.unlink(missing_ok=True)
    write_tables(sweep)
    return found


def _mended_record(sweep: SweepFolder) -> Iterator[Finding]:
    """Rebuild a damaged sweep.json from the run folders."""
    try:
        sweep.read()
        return
    except StoreError as error:
        reason = error
    runs = list(sweep.runs()) if sweep.path.is_dir() else []
    if not runs:
        raise reason
    for number, folder in runs:
        try:
            record, hyps = folder.read(), read_record(folder.hyperparams)
            library = recorded_library(hyps)
            base_seed = int(hyps["seed"]) - int(record["repeat"])
        except (StoreError, KeyError, TypeError):
            continue
        if library is None:
            continue
        rebuilt = new_record(sweep.path.name, library.name, base_seed)
        last = max(number for number, _ in runs)
        write_json(sweep.record, rebuilt | {"next_number": last + 1})
        yield Finding(
            f"{reason}; it is rebuilt from the run folders (base seed {base_seed}, "
            f"as of run {number}; its requests are not known any more)",
            is_mended=True,
        )
        return
    raise StoreError(f"{reason}; no run folder can be read either")


def _mended_run(number: int, folder: RunFolder) -> Iterator[Finding]:
    if folder.claim.exists():
        yield Finding(f"run {number}: the claim of a dead process is removed", True)
    claim = Claim(folder.claim)
    if not claim.acquire():
        return
    try:
        remove_temporaries(folder.path)
        remove_temporaries(folder.checkpoints)
        yield from _damages(folder)
    finally:
        claim.release()


def _damages(folder: RunFolder) -> Iterator[Finding]:
    for path in (folder.record, folder.hyperparams):
        try:
            read_record(path)
        except StoreError as error:
            text = f"{error}; give the sweep's command again, which writes it anew"
            yield Finding(text, is_mended=False)
    try:
        folder.epochs.read()
    except StoreError as error:
        text = f"{error}; to train the run anew, to the same bits, remove {folder.path}"
        yield Finding(f"{text} and give the sweep's command again", is_mended=False)
    for epoch in sorted(f["epoch"] for f in folder.read_index()["files"].values()):
        try:
            folder.read_checkpoint(epoch)
        except CheckpointError as error:
            with contextlib.suppress(StoreError):  # named above
                folder.update(state=RunState.INTERRUPTED.value)
            yield Finding(
                f"{error}; the run counts as interrupted: give the sweep's command "
                "again, which trains it from its last whole epoch to the same bits",
                is_mended=False,
            )


def mend_record(run: PlannedRun, error: StoreError) -> RunState:
    """Write a run's damaged run.json anew; it goes on from its last checkpoint.

    Args:
        run: As its request has it.
        error: What is wrong.

    Returns:
        The run's state then.
    """
    assert run.folder is not None
    logger.warning("%s; it is written anew", error)
    claim = Claim(run.folder.claim)
    if claim.acquire():
        write_json(run.folder.record, pending_record(run.number, run.spec))
        claim.release()
    return RunState.PENDING


def mend_hyperparams(run: PlannedRun) -> None:
    """Write the configuration of a finished run anew, if it is damaged."""
    assert run.folder is not None
    try:
        read_record(run.folder.hyperparams)
    except StoreError as error:
        logger.warning("%s; it is written anew", error)
        write_json(run.folder.hyperparams, run.spec.hyps.model_dump(mode="json"))
