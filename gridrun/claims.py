"""Who trains a run: claims that free themselves when their process or host is gone.

On one host a claim is a file lock, which the system frees with its process. Other
hosts may not see the lock: for them a claim is alive while its content changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gridrun.durable import TEMPORARY, writing
from gridrun.errors import StorageError

CLAIM_BYTES = 256  # of every claim: renewed in place by one write
SECONDS_BETWEEN_RENEWALS = 5.0


class ClaimLost(Exception):
    """Another host took a run over, since this one was silent for so long."""


class Claim:
    """The right to train one run.

    Args:
        path: The claim file of a run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._content = b""
        self._n_renewals = 0
        self._lock = threading.Lock()

    def acquire(self) -> bool:
        """Take the claim; False if another live process holds it."""
        for attempt in range(5):
            with writing(self.path):
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                time.sleep(0.01 * attempt)  # a reader's test holds it for microseconds
                continue
            if not _is_at(self.path, descriptor) or _is_foreign(descriptor):
                os.close(descriptor)
                continue
            self._descriptor = descriptor
            try:
                self._write()
            except BaseException:
                os.close(descriptor)
                self._descriptor = None
                raise
            return True
        return False

    def renew(self) -> None:
        """Show other hosts that the holder lives; nothing if it is not held."""
        with self._lock:
            if self._descriptor is not None and self._is_own():
                self._write()

    def check(self) -> None:
        """Make sure that it is still held; called before every write to the run.

        Raises:
            ClaimLost: If it is not.
        """
        with self._lock:  # not while it is renewed
            is_own = self._is_own()
        if not is_own:
            raise ClaimLost(f"{self.path}: another host has taken the run over")

    def release(self) -> None:
        """Give the claim up and remove its file."""
        with self._lock:
            if self._descriptor is None:
                return
            with contextlib.suppress(OSError):  # closing frees the lock in any case
                if self._is_own():
                    self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def _is_own(self) -> bool:
        return (
            self._descriptor is not None
            and _is_at(self.path, self._descriptor)
            and os.pread(self._descriptor, CLAIM_BYTES, 0) == self._content
        )

    def _write(self) -> None:
        assert self._descriptor is not None
        self._n_renewals += 1
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "renewals": self._n_renewals,
        }
        content = json.dumps(owner).encode().ljust(CLAIM_BYTES)
        with writing(self.path):
            os.ftruncate(self._descriptor, CLAIM_BYTES)
            os.pwrite(self._descriptor, content, 0)
        self._content = content


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _is_foreign(descriptor: int) -> bool:
    """Whether another host wrote a claim; its lock may be invisible here."""
    owner = _owner(os.pread(descriptor, CLAIM_BYTES, 0))
    return owner is not None and owner[0] != socket.gethostname()


def _owner(content: bytes) -> tuple[str, int] | None:
    """Host and process of a claim; None if it is damaged or not yet written."""
    try:
        owner = json.loads(content)
        return str(owner["host"]), int(owner["pid"])
    except (ValueError, KeyError, TypeError):
        return None


def claim_holder(path: Path) -> str | None:
    """Who holds a claim, as text; None if nobody on this host does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        owner = _owner(os.pread(descriptor, CLAIM_BYTES, 0))
        holder = f"process {owner[1]} on {owner[0]}" if owner else "a starting process"
        if owner and owner[0] != socket.gethostname():
            return holder
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder
        return None
    finally:
        os.close(descriptor)


class ClaimWatch:
    """Tells which claims are held, and ends those of hosts that have gone silent.

    Args:
        timeout_s: Another host's claim is dead when unchanged for so long, on the
            clock of this one.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def holder(self, path: Path) -> str | None:
        """As `claim_holder`; a claim found dead is removed."""
        holder = claim_holder(path)
        if holder is None:
            self._seen.pop(path, None)
            return None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        owner = _owner(content)
        if owner is None or owner[0] == socket.gethostname():
            return holder
        now = time.monotonic()
        before, since = self._seen.get(path, (b"", now))
        if content != before:
            self._seen[path] = (content, now)
        elif now - since >= self.timeout_s and _remove(path, content):
            return None
        return holder


def _remove(path: Path, content: bytes) -> bool:
    """Remove a dead claim; False if it is another by now, which is left."""
    aside = path.with_name(f".claim-{socket.gethostname()}-{os.getpid()}{TEMPORARY}")
    with writing(path):
        try:
            path.rename(aside)
        except FileNotFoundError:  # another runner was faster
            return True
        is_dead = aside.read_bytes() == content
        if not is_dead:  # taken between the look and the renaming
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()
    return is_dead


@contextlib.contextmanager
def renewing(claims: Sequence[Claim]) -> Iterator[None]:
    """Renew claims every few seconds inside, however long a step takes."""
    is_over = threading.Event()

    def renew() -> None:
        while not is_over.wait(SECONDS_BETWEEN_RENEWALS):
            for claim in claims:
                with contextlib.suppress(OSError, StorageError):  # the next write tells
                    claim.renew()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
