"""Tests of the tests: each bug, planted in a copy of the code, makes one fail."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torture.conftest import count

REPOSITORY = Path(__file__).parents[2]
COPIED = ("gridrun", "imgclass", "torchdeepretina", "tests", "benchmarks")
COPIED += ("pyproject.toml", "data")


@dataclasses.dataclass(frozen=True)
class Bug:
    """A line that a tired programmer might leave out.

    Args:
        name: Of the bug.
        file: Where it is planted.
        right, wrong: The text there, and what takes its place.
        tests: File and expression of the tests that must notice.
    """

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, str]


KILLS, DAMAGE = "tests/torture/test_kills.py", "tests/torture/test_damage.py"
DISK, RUNNERS = "tests/torture/test_disk.py", "tests/torture/test_runners.py"
EVERY = (KILLS, "every_change")
BUGS = [
    Bug(
        "no fsync",
        "gridrun/durable.py",
        "            os.fsync(file.fileno())\n        halfway",
        "        halfway",
        ("tests/gridrun/test_store.py", "on_disk"),
    ),
    Bug(
        "no rename",
        "gridrun/durable.py",
        "    halfway = temporary(path)\n    with writing",
        "    halfway = path\n    with writing",
        EVERY,
    ),
    Bug(
        "generators not restored",
        "gridrun/training/cohort.py",
        '        self.random.load_state(state["rng"])\n',
        "",
        EVERY,
    ),
    Bug(
        "optimizer not restored",
        "gridrun/training/cohort.py",
        '        self.optimizer.load_state_dict(state["optim_state_dict"])\n',
        "",
        EVERY,
    ),
    Bug(
        "metrics not cut",
        "gridrun/training/cohort.py",
        "        self.folder.cut_tables(self.epoch)\n",
        "",
        EVERY,
    ),
    Bug(
        "scheduler not restored",
        "gridrun/training/cohort.py",
        "        if self.scheduler is not None:\n            template",
        "        if False:\n            template",
        EVERY,
    ),
    Bug(
        "claim without lock",
        "gridrun/claims.py",
        "                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "                pass\n",
        (RUNNERS, "many_runners"),
    ),
    Bug(
        "hash not checked",
        "gridrun/store.py",
        'if hashlib.sha256(content).hexdigest() != files[path.name]["sha256"]:',
        "if False:",
        (DAMAGE, "damaged_checkpoints"),
    ),
    Bug(
        "silent hosts keep their runs",
        "gridrun/claims.py",
        "now - since >= self.timeout_s",
        "now - since >= 1e9",
        (RUNNERS, "silent_host"),
    ),
    Bug(
        "lost claim not noticed",
        "gridrun/claims.py",
        "        if not is_own:\n            raise ClaimLost",
        "        if False:\n            raise ClaimLost",
        (RUNNERS, "lost_its_claim"),
    ),
    Bug(
        "full disk fails the run",
        "gridrun/training/trainer.py",
        "        except StorageError:\n            raise\n",
        "",
        (DISK, "change_of_a_file"),
    ),
    Bug(
        "divergence seen at the epoch's end",
        "gridrun/training/trainer.py",
        "        if not is_finite(loss):\n            raise Diverged(f\"training",
        "        if False:\n            raise Diverged(f\"training",
        (RUNNERS, "diverging"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("bug", BUGS[: count(len(BUGS), 1)], ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    """The tests pass without it (they are run beside this one) and fail with it."""
    for name in COPIED:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    path = tmp_path / bug.file
    text = path.read_text(encoding="utf-8")
    assert text.count(bug.right) == 1, "the code has changed: plant it elsewhere"
    path.write_text(text.replace(bug.right, bug.wrong), encoding="utf-8")
    file, expression = bug.tests
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TORTURE": "planted"}
    done = subprocess.run(
        [*command, file, "-k", expression],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "failed" in done.stdout.splitlines()[-1]
