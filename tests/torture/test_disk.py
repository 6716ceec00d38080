"""A disk that is full, or fails: said by path and cause, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torture.conftest import Scenario, count
from torture.test_kills import struck_calls

N_PARTS = count(5, 1)
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]


@pytest.mark.parametrize("part", range(N_PARTS))
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("repeats", [True, False], ids=["from", "once"])
def test_every_change_of_a_file_fails(
    scenarios: dict[str, Scenario],
    tmp_path: Path,
    number: int,
    repeats: bool,
    part: int,
) -> None:
    """The n-th change fails, alone or with all after it; the next command goes on."""
    scenario = scenarios["images"]
    is_thorough = repeats and number == errno.ENOSPC
    n_points = count(10_000 if is_thorough else 100, 6 if is_thorough else 2)
    for at in struck_calls(scenario.n_calls, n_points)[part::N_PARTS]:
        root = tmp_path / str(at)
        ended = scenario.run(root, at=at, how=number, repeats=repeats)
        assert "Traceback" not in ended.errors, (at, ended.errors)
        if ended.code != 0:  # some failures matter to nobody: a removal, say
            is_begun = (root / "sweep").exists()
            assert ended.code == (1 if is_begun else 2), (at, ended)
            assert os.strerror(number) in ended.errors, (at, ended.errors)
            assert str(root / "sweep") in ended.errors, (at, ended.errors)
        scenario.finish(root)
        shutil.rmtree(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs privileges")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("executor", ["serial", "process"])
def test_a_full_disk(
    scenarios: dict[str, Scenario], small_disk: Path, executor: str
) -> None:
    """Exit 1 and one message; with room again the sweep is finished to the same."""
    scenario = scenarios["images"]
    ballast = small_disk / "ballast"
    n_bytes = 100_000
    ballast.write_bytes(bytes(n_bytes))
    root = small_disk / "runs"
    command = [sys.executable, "-m", "gridrun", "run", *map(str, scenario.files)]
    options = ["--save-root", str(root), "--quiet", "--executor", executor]
    ended = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1, ended.stderr
    assert "No space left on device" in ended.stderr
    assert str(root) in ended.stderr
    assert "Traceback" not in ended.stderr
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    scenario.finish(root)
