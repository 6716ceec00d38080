"""`gridrun new`: its project's commands, as installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
BIN = Path(sys.executable).parent


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the installed commands."""
    name, *rest = arguments
    return subprocess.run(
        [str(BIN / name), *rest],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_new_project_is_green(tmp_path: Path) -> None:
    """Both commands, an override, the evaluator and its test; a typo is told."""
    done = command("gridrun", "new", "mine", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    project = tmp_path / "mine"
    assert (project / "plugins" / "models" / "perceptron.py").exists()
    done = command("train", "with", "n_epochs=2", "model_args.width=4", folder=project)
    assert done.returncode == 0, done.stderr
    assert (project / "spirals" / "spirals_1").is_dir()
    done = command("evaluate", folder=project)
    assert done.returncode == 0, done.stderr
    assert "test_acc" in done.stdout
    done = command("evaluate", "--evaluator", "confusion", folder=project)
    assert done.returncode == 0, done.stderr
    assert "0 taken for 1" in done.stdout
    done = command("train", "with", "model_args.widht=4", folder=project)
    assert done.returncode == 2
    assert "did you mean 'width'" in done.stderr
    done = command("pytest", "-q", "-p", "no:cacheprovider", folder=project)
    assert done.returncode == 0, done.stdout
    done = command("gridrun", "new", "mine", folder=tmp_path)
    assert done.returncode == 2
    assert "not empty" in done.stderr


def test_a_dropped_file_is_all_it_takes(tmp_path: Path) -> None:
    """A model in a new file is trained by its name; the old one's run stays."""
    command("gridrun", "new", "mine", folder=tmp_path)
    project = tmp_path / "mine"
    (project / "plugins" / "models" / "line.py").write_text(
        "from torch import nn\n\n\nclass Line(nn.Linear):\n"
        "    def __init__(self, input_shape, n_units):\n"
        "        super().__init__(input_shape[0], n_units)\n"
    )
    given = ("with", "n_epochs=1", "n_repeats=1")
    done = command("train", *given, folder=project)
    assert done.returncode == 0, done.stderr
    changed = ("model_type=Line", "model_args={}", "--quiet")
    done = command("train", *given, *changed, folder=project)
    assert done.returncode == 0, done.stderr
    assert len(list((project / "spirals").glob("spirals_*"))) == 2
