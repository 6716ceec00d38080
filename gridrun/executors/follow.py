"""What happens to runs that other machines train, read from their folders; no torch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun.errors import StoreError
from gridrun.executors.deaths import FINAL_STATES
from gridrun.guard import is_set_aside
from gridrun.planner import Job
from gridrun.store import RunFolder
from gridrun.training.event import Event

logger = logging.getLogger(__name__)
NOT_SCORES = ("epoch", "lr", "time_s")


class Follower:
    """Tells of runs what their workers would tell.

    Args:
        jobs: Whose runs to follow.
        report: Gets the events; the worker is 0.
    """

    def __init__(self, jobs: Sequence[Job], report: Callable[[Any, int], None]) -> None:
        self.report = report
        self._runs = {
            folder: _Followed(RunFolder(Path(folder)), job.final_states)
            for job in jobs
            for folder in job.folders
        }
        self._told: set[str] = set()

    def look(self) -> None:
        """Report what has happened since the last look."""
        for folder, run in list(self._runs.items()):
            for event in run.news():
                self.report(event, 0)
            if run.has_ended:
                self._tell_versions(run.record)
                del self._runs[folder]

    def left(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs less their runs that have ended."""
        cut = (job.only(self._runs) for job in jobs)
        return [job for job in cut if job.folders]

    def _tell_versions(self, record: Mapping[str, Any]) -> None:
        """Warn once of each difference between a worker's packages and those here."""
        from gridrun.training.job import versions

        if not record["attempts"]:
            return
        attempt = record["attempts"][-1]
        theirs = attempt.get("versions", {})
        for name, version in versions().items():
            text = f"{name} {theirs.get(name)} there, {version} here"
            if theirs.get(name) != version and text not in self._told:
                self._told.add(text)
                logger.warning("trained on %s with %s", attempt.get("host"), text)


class _Followed:
    """One run, as far as it has been told."""

    def __init__(self, folder: RunFolder, final_states: Sequence[str]) -> None:
        self.folder = folder
        self.final_states = final_states
        self.has_ended = False
        self.record: Mapping[str, Any] = {}
        self._first_record = signature(folder.record)
        self._seen: tuple[Any, Any] | None = None
        self._epoch = 0

    def news(self) -> Iterator[Event]:
        """Events since it was asked last; none while a file cannot be read."""
        with contextlib.suppress(StoreError):
            seen = signature(self.folder.record), signature(self.folder.metrics)
            if seen == self._seen:
                return
            record = self.folder.read()  # before the rows, of which it may be the end
            rows = self.folder.epochs.read()
            is_first, self._seen, self.record = self._seen is None, seen, record
            if is_first and rows:
                self._epoch = int(rows[-1]["epoch"])
                yield Event("start", record["number"], self._epoch)
            yield from self._new_epochs(record["number"], rows)
            if self._is_end(record, seen[0]):
                self.has_ended = True
                yield self._end(record)

    def _new_epochs(
        self, number: int, rows: Sequence[Mapping[str, float]]
    ) -> Iterator[Event]:
        for row in rows:
            if row["epoch"] > self._epoch:
                self._epoch = int(row["epoch"])
                scores = {n: v for n, v in row.items() if n not in NOT_SCORES}
                yield Event("epoch", number, self._epoch, metrics=scores)

    def _is_end(self, record: Mapping[str, Any], signature: Any) -> bool:
        """Whether nothing more comes; what stood there before does not count."""
        if record["state"] in self.final_states:
            return True
        is_over = record["state"] in FINAL_STATES or is_set_aside(record)
        return is_over and signature != self._first_record

    def _end(self, record: Mapping[str, Any]) -> Event:
        scores = dict(record.get("test") or {}) | {"error": record.get("error")}
        number, state = record["number"], record["state"]
        return Event("end", number, self._epoch, state=state, metrics=scores)


def signature(path: Path) -> tuple[int, int, int] | None:
    """Another for each content of a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
