"""Claims: one holder, and none once that is dead."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gridrun import claims
from gridrun.claims import Claim, ClaimLost, ClaimWatch, claim_holder, renewing

HOLD = """
import pathlib, sys
from gridrun.claims import Claim
claim = Claim(pathlib.Path(sys.argv[1]))
print(claim.acquire(), flush=True)
sys.stdin.readline()
claim.release()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A claim file's path."""
    return tmp_path / "claim"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the claim until it reads a line."""
    command = [sys.executable, "-c", HOLD, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_claim_is_exclusive_between_processes(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    """Who holds it is told, and nobody else gets it."""
    assert not Claim(path).acquire()
    assert claim_holder(path) == f"process {holder.pid} on {socket.gethostname()}"


def test_a_claim_dies_with_its_process(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    """After kill -9 the run can be claimed at once, though the file is left."""
    holder.kill()
    holder.wait()
    assert path.exists()
    assert claim_holder(path) is None
    assert Claim(path).acquire()


def test_a_released_claim_is_free_and_leaves_no_file(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    """A run folder holds a claim file only while it is trained."""
    holder.communicate("\n")
    assert not path.exists()
    assert Claim(path).acquire()


def test_looking_at_a_claim_does_not_take_it(path: Path) -> None:
    """Readers and writers of claims do not disturb each other."""
    claim = Claim(path)
    assert claim_holder(path) is None
    assert claim.acquire()
    assert claim_holder(path) is not None
    claim.release()
    assert claim_holder(path) is None


def test_releasing_twice_takes_nobody_elses(path: Path) -> None:
    """A claim that was given up is not given up again for its next holder."""
    first, second = Claim(path), Claim(path)
    assert first.acquire()
    first.release()
    assert second.acquire()
    first.release()
    assert claim_holder(path) is not None


def test_the_claim_of_another_host_is_never_stolen(path: Path) -> None:
    """Its lock may be invisible here, so its file alone keeps others away."""
    foreign = json.dumps({"host": "elsewhere", "pid": 7})
    path.write_text(foreign)
    assert not Claim(path).acquire()
    assert path.read_text() == foreign
    assert claim_holder(path) == "process 7 on elsewhere"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_damaged_claim_without_lock_is_free(path: Path, text: str) -> None:
    """What a process left that died while claiming keeps nobody away."""
    path.write_text(text)
    assert claim_holder(path) is None
    assert Claim(path).acquire()


def test_a_claim_on_a_removed_file_does_not_count(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who locked a file that its holder just removed tries again on the new one."""
    flock = fcntl.flock
    replaced = []

    def replace_first(descriptor: int, operation: int) -> None:
        if not replaced:
            replaced.append(path.unlink())
            path.touch()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    assert Claim(path).acquire()
    assert not Claim(path).acquire()


def test_one_of_many_gets_the_claim(path: Path) -> None:
    """However many ask at once, one is told yes."""
    barrier = threading.Barrier(8)
    asking = [Claim(path) for _ in range(8)]
    won: list[Claim] = []

    def ask(claim: Claim) -> None:
        barrier.wait()
        if claim.acquire():
            won.append(claim)

    threads = [threading.Thread(target=ask, args=[claim]) for claim in asking]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


# --- other hosts ------------------------------------------------------------------


def written_by(host: str, n_renewals: int = 1) -> str:
    """A claim as a host writes it."""
    return json.dumps({"host": host, "pid": 7, "renewals": n_renewals})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that claims see; its one entry can be set."""
    now = [0.0]
    fake = SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr(claims, "time", fake)
    return now


def test_a_silent_hosts_claim_dies_after_the_timeout(
    path: Path, clock: list[float]
) -> None:
    """Counted from its last change that was seen, on the watcher's clock."""
    watch = ClaimWatch(timeout_s=100)
    path.write_text(written_by("elsewhere", 1))
    assert watch.holder(path) == "process 7 on elsewhere"
    clock[0] = 99
    path.write_text(written_by("elsewhere", 2))
    assert watch.holder(path) == "process 7 on elsewhere"
    clock[0] = 198
    assert watch.holder(path) == "process 7 on elsewhere"
    clock[0] = 199
    assert watch.holder(path) is None
    assert not path.exists()
    assert Claim(path).acquire()


def test_a_claim_of_this_host_dies_with_its_lock_only(
    path: Path, clock: list[float]
) -> None:
    """However long it is unchanged."""
    claim = Claim(path)
    assert claim.acquire()
    watch = ClaimWatch(timeout_s=10)
    for clock[0] in (0.0, 1e6):
        assert watch.holder(path) == f"process {os.getpid()} on {socket.gethostname()}"
    claim.check()


def test_a_claim_taken_between_look_and_removal_stays(
    path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts find the same claim dead; the slower does not remove the faster's."""
    watch = ClaimWatch(timeout_s=10)
    path.write_text(written_by("elsewhere"))
    watch.holder(path)
    clock[0] = 20
    rename = Path.rename

    def late(source: Path, target: Path) -> Path:
        source.write_text(written_by("third"))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", late)
    assert watch.holder(path) == "process 7 on elsewhere"
    assert json.loads(path.read_text())["host"] == "third"
    assert [p.name for p in path.parent.iterdir()] == ["claim"]


def test_who_lost_a_claim_is_told_and_leaves_it(path: Path) -> None:
    """It neither renews nor removes what is another's now."""
    claim = Claim(path)
    assert claim.acquire()
    claim.check()
    path.unlink()
    path.write_text(written_by("elsewhere"))
    claim.renew()
    with pytest.raises(ClaimLost, match="another host"):
        claim.check()
    claim.release()
    assert path.read_text() == written_by("elsewhere")


def test_a_claim_overwritten_in_place_is_lost(path: Path) -> None:
    """Who created the file at the same moment and wrote later holds it."""
    claim = Claim(path)
    assert claim.acquire()
    path.write_text(written_by("elsewhere"))
    with pytest.raises(ClaimLost):
        claim.check()


def test_claims_are_renewed_however_long_a_step_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their content changes every few seconds, and no longer once given up."""
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_RENEWALS", 0.01)
    claim = Claim(path)
    assert claim.acquire()
    seen = set()
    until = time.monotonic() + 30
    with renewing([claim]):
        while len(seen) < 4 and time.monotonic() < until:
            seen.add(path.read_bytes())
            claim.check()
        assert len(seen) == 4
        claim.release()
        time.sleep(0.05)
        assert not path.exists()
    assert len({len(content) for content in seen}) == 1


def test_a_renewal_that_fails_gives_nothing_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told by the next write to the run, and by nothing else."""
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_RENEWALS", 0.005)
    claim = Claim(path)
    assert claim.acquire()
    before, n_tried = path.read_bytes(), [0]

    def fail(*_: object) -> int:
        n_tried[0] += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    until = time.monotonic() + 30
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with renewing([claim]):
            while n_tried[0] < 3 and time.monotonic() < until:
                claim.check()
    assert n_tried[0] >= 3
    assert path.read_bytes() == before
    claim.check()
