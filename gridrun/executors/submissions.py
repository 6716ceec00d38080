"""What a sweep has handed to the engine of a cluster, recorded in its folder."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gridrun.durable import read_record, write_json, writing
from gridrun.errors import StoreError
from gridrun.planner import Job
from gridrun.store import RunFolder, SweepFolder

MAX_NAME_LENGTH = 40


@dataclasses.dataclass(frozen=True)
class Submission:
    """Jobs handed in at once, under a name that the engine knows them by.

    The record is written before they are handed in: whoever finds it can ask the
    engine, even if who wrote it was killed in between.

    Args:
        path: Of the record.
        engine: Which.
        runs: Run numbers of each job.
        job: What the engine calls them, once it has said so.
        is_over: Whether none of them is queued or running any more.
    """

    path: Path
    engine: str
    runs: Sequence[Sequence[int]]
    job: str | None = None
    is_over: bool = False

    @property
    def name(self) -> str:
        """Unique; letters, digits and `_`."""
        return self.path.stem

    @property
    def files(self) -> Path:
        """Folder of what the engine and the jobs write."""
        return self.path.with_suffix("")

    def write(self) -> None:
        """Write the record, on disk when this returns."""
        with writing(self.path):
            self.path.parent.mkdir(exist_ok=True)
        fields: dict[str, Any] = dict(vars(self))
        del fields["path"]
        write_json(self.path, fields)

    def close(self) -> None:
        """Record that it is over; the jobs' logs stay, their code goes."""
        dataclasses.replace(self, is_over=True).write()
        for pattern in ("*.pkl", ".*"):
            for path in self.files.glob(pattern):
                path.unlink(missing_ok=True)


def new_submission(
    folder: SweepFolder, engine: str, jobs: Sequence[Sequence[Job]]
) -> Submission:
    """A submission that is not yet written.

    Args:
        folder: Of the sweep.
        engine: Which.
        jobs: Cohorts of each of the engine's jobs.
    """
    sweep = re.sub(r"\W", "_", folder.path.name, flags=re.ASCII)[:MAX_NAME_LENGTH]
    path = folder.submissions / f"{sweep}_{secrets.token_hex(4)}.json"
    runs = [[number_of(one) for job in some for one in job.folders] for some in jobs]
    return Submission(path, engine, runs)


def open_submissions(folder: SweepFolder, engine: str) -> list[Submission]:
    """Those of a sweep that may have jobs in the queue; damaged records have none."""
    found = []
    for path in sorted(folder.submissions.glob("*.json")):
        try:
            one = Submission(path, **read_record(path))
        except (StoreError, TypeError):
            continue
        if one.engine == engine and not one.is_over:
            found.append(one)
    return found


def number_of(folder: str) -> int:
    """The number of the run of a folder."""
    return int(RunFolder(Path(folder)).read()["number"])
