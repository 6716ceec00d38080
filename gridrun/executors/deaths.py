"""Runs whose workers die: tried again, and failed when it happens too often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gridrun.claims import Claim
from gridrun.run import RunState
from gridrun.store import RunFolder

FINAL_STATES = [state.value for state in RunState if state.is_final]


class Deaths:
    """Counts the deaths of each run's workers in a row since its last new epoch.

    Args:
        max_attempts: So many fail the run.
    """

    def __init__(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self._found: dict[Path, tuple[int | None, int]] = {}

    def one_more(self, folder: RunFolder, who: str, how: str) -> Any:
        """Count a death; gives the event of the run's end if it was one too many.

        Args:
            folder: Of the run.
            who: Has died, in words.
            how: It died, in words.
        """
        n_deaths = self._count(folder)
        if n_deaths < self.max_attempts:
            return None
        reason = (
            f"{who} died {n_deaths} times in a row without a new epoch (last: {how})"
        )
        return record_death(folder, reason)

    def _count(self, folder: RunFolder) -> int:
        last = folder.read_index()["last"]
        earlier, n_deaths = self._found.get(folder.path, (last, 0))
        n_deaths = n_deaths + 1 if earlier == last else 1
        self._found[folder.path] = (last, n_deaths)
        return n_deaths


def record_death(folder: RunFolder, reason: str) -> Any:
    """Record a run as failed for its parent's reasons; returns the event."""
    from gridrun.training.event import Event

    claim = Claim(folder.claim)
    record = folder.read()
    if claim.acquire():
        if folder.read()["state"] not in FINAL_STATES:  # as the claim's holder sees it
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
