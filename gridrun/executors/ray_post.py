"""Ray without a shared file system: runs travel to a machine, and back by the epoch."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun.claims import Claim, ClaimLost, renewing
from gridrun.durable import remove_temporaries, write_durably, writing
from gridrun.executors.follow import signature
from gridrun.executors.node import approved
from gridrun.guard import OnChange
from gridrun.planner import Job
from gridrun.store import RunFolder

LAST = ("checkpoints/index.json", "run.json")  # written after what they speak of


class Post:
    """Holds the claims of runs that are away, and writes what comes back of them.

    An actor on the machine of the driver, with which it ends.
    """

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}
        self._leases: dict[str, int] = {}
        self._n_leases = 0
        self._held: list[Claim] = []
        self._renewal = renewing(self._held)
        self._renewal.__enter__()

    def lend(self, folders: Sequence[str]) -> tuple[int, dict[str, dict[str, bytes]]]:
        """Claim the runs that nobody else holds.

        Who had them from here before was lost, and can write no more.

        Returns:
            The number of the lease, and each run's files by their path in its folder.
        """
        self.take_back(folders)
        self._n_leases += 1
        found = {}
        for path in folders:
            folder = RunFolder(Path(path))
            claim = Claim(folder.claim)
            if not claim.acquire():
                continue
            self._claims[path], self._leases[path] = claim, self._n_leases
            self._held.append(claim)
            for place in (folder.path, folder.checkpoints):
                remove_temporaries(place)
            found[path] = {
                name: (folder.path / name).read_bytes() for name in names(folder.path)
            }
        return self._n_leases, found

    def write(
        self, lease: int, path: str, files: Mapping[str, bytes], gone: Sequence[str]
    ) -> None:
        """Write what has changed in a run's folder, on disk when this returns.

        Args:
            lease: Under which the run is away.
            path: Of its folder.
            files: New content by path in the folder.
            gone: Files that are there no more.

        Raises:
            ClaimLost: If somebody else has the run by now.
        """
        if self._leases.get(path) != lease:
            raise ClaimLost(f"{path}: another machine has taken the run over")
        self._claims[path].check()
        folder = Path(path)
        for name in sorted(files, key=_order):
            with writing(folder / name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_durably(folder / name, files[name])
        for name in gone:
            with writing(folder / name):
                (folder / name).unlink(missing_ok=True)

    def take_back(self, folders: Sequence[str]) -> None:
        """Free the claims of runs that are away no more."""
        for path in folders:
            claim = self._claims.pop(path, None)
            self._leases.pop(path, None)
            if claim is not None:
                self._held.remove(claim)
                claim.release()


def _order(name: str) -> int:
    return LAST.index(name) if name in LAST else -1


def names(folder: Path) -> list[str]:
    """Paths, in a run's folder, of the files that are sent."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [
        path.as_posix()
        for path in paths
        if path.as_posix() != "claim" and not path.name.startswith(".")
    ]


class Copy:
    """A run's folder on this machine, and what of it has been sent.

    Args:
        folder: Where it is to be.
        files: Its files by their path in it.
    """

    def __init__(self, folder: Path, files: Mapping[str, bytes]) -> None:
        self.folder = folder
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        self._sent = self._signatures()

    def changes(self) -> tuple[dict[str, bytes], list[str]]:
        """Files that are new or different since it was asked last, and those gone."""
        now = self._signatures()
        changed = {
            name: (self.folder / name).read_bytes()
            for name, found in now.items()
            if self._sent.get(name) != found
        }
        gone = [name for name in self._sent if name not in now]
        self._sent = now
        return changed, gone

    def _signatures(self) -> dict[str, Any]:
        return {name: signature(self.folder / name) for name in names(self.folder)}


def train_away(
    job: Job, on_change: OnChange, post: Any, should_stop: Callable[[], bool]
) -> None:
    """Train a cohort in a temporary folder, and send its files back by the epoch.

    Args:
        job: The cohort, with the folders of the driver's machine.
        on_change: What to do with runs half-trained under other circumstances.
        post: The actor.
        should_stop: Asked before each step.

    Raises:
        Interrupted: If it was asked to stop.
        ClaimLost: If somebody else has taken a run over.
        StorageError: If the driver cannot write.
    """
    from gridrun.training.job import train_job

    lease, lent = answer(post.lend.remote(job.folders))
    mine = job.only(lent)
    with tempfile.TemporaryDirectory(prefix="gridrun-") as place:
        copies = {
            path: Copy(Path(place) / Path(path).parent.name / Path(path).name, files)
            for path, files in lent.items()
        }

        def send(event: Any = None) -> None:
            if event is not None and event.kind not in ("epoch", "end"):
                return
            for path, copy in copies.items():
                files, gone = copy.changes()
                if files or gone:
                    answer(post.write.remote(lease, path, files, gone))

        folders = tuple(str(copies[path].folder) for path in mine.folders)
        left = approved(dataclasses.replace(mine, folders=folders), on_change)
        try:
            if left.folders:
                train_job(left, send, should_stop)
        finally:
            send()


def answer(reference: Any) -> Any:
    """What an actor answers; what it raises is raised as it is."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
