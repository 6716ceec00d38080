"""Real commands, real processes, real kills, on the shipped data."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import BREAKING

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "training_scripts"
RETINA = ("hyperparams.json", "hyperranges.json", "n_repeats=2")
IMAGES = ("images_hyperparams.json", "images_hyperranges.json", "n_repeats=2")
NOT_COMPARED = {"save_root", "executor", "workers", "cohort_size", "max_attempts"}

pytestmark = pytest.mark.e2e


def command(*arguments: object) -> list[str]:
    return [sys.executable, "main.py", *map(str, arguments)]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        cwd=SCRIPTS,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def train(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=SCRIPTS, text=True, capture_output=True, timeout=300
    )


def plain(value: Any) -> Any:
    """A checkpoint as comparable values, less what may differ between folders."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in NOT_COMPARED}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def weights(sweep: Path) -> dict[str, Any]:
    """Everything in the checkpoints of a sweep, by run folder and file."""
    return {
        f"{path.parent.parent.name}/{path.name}": plain(
            torch.load(path, weights_only=True)
        )
        for path in sorted(sweep.glob("*/checkpoints/*.pt"))
    }


def table(path: Path) -> list[dict[str, str]]:
    """A table without its times."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "duration_s"} for row in rows]


def metrics(sweep: Path) -> dict[str, list[dict[str, str]]]:
    """metrics.csv of each run without its times."""
    found = {}
    for path in sorted(sweep.glob("*/metrics.csv")):
        rows = table(path)
        found[path.parent.name] = [
            {k: v for k, v in row.items() if k != "time_s"} for row in rows
        ]
    return found


def same_sweep(one: Path, other: Path) -> None:
    assert weights(one)
    assert weights(one) == weights(other)
    assert metrics(one) == metrics(other)
    for name in ("results.csv", "summary.csv"):
        assert table(one / name) == table(other / name)


@pytest.fixture(scope="module")
def retina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped retina grid, three epochs, trained without interruption."""
    root = tmp_path_factory.mktemp("retina")
    done = train(*RETINA, "n_epochs=3", "--save-root", root)
    assert done.returncode == 0, done.stderr
    return root / "retina"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped image grid, three epochs, every epoch kept."""
    root = tmp_path_factory.mktemp("images")
    done = train(*IMAGES, "n_epochs=3", "save_every_epoch=true", "--save-root", root)
    assert done.returncode == 0, done.stderr
    return root / "digits"


def test_a_sweep_folder_holds_exactly_what_is_documented(retina: Path) -> None:
    """Tables, one folder per run, and in each the files of architecture.md."""
    folders = sorted(path.name for path in retina.iterdir() if path.is_dir())
    files = {path.name for path in retina.iterdir() if path.is_file()}
    assert files == {"sweep.json", "results.csv", "summary.csv"}
    assert folders[0] == "retina_0_chans8-8_lr0.002"
    assert len(folders) == 8
    for folder in folders:
        inside = {path.name for path in (retina / folder).iterdir()}
        assert inside == {
            "hyperparams.json",
            "model.txt",
            "run.json",
            "metrics.csv",
            "checkpoints",
            "log.txt",
        }
        index = json.loads((retina / folder / "checkpoints/index.json").read_text())
        kept = {f"epoch_{index[name]:04d}.pt" for name in ("last", "best")}
        there = {p.name for p in (retina / folder / "checkpoints").iterdir()}
        assert there == kept | {"index.json"}


def test_every_epoch_is_kept_when_asked(images: Path) -> None:
    """save_every_epoch leaves a loadable state_dict for each epoch of each run."""
    found = weights(images)
    assert len(found) == 8 * 3
    assert all(state["model_state_dict"] for state in found.values())


def test_repeats_have_different_recorded_seeds(retina: Path) -> None:
    """The seeds of a grid point's repeats differ and are in results.csv."""
    rows = table(retina / "results.csv")
    assert [row["seed"] for row in rows] == ["0", "1"] * 4
    for row in rows:
        hyps = json.loads((retina / row["folder"] / "hyperparams.json").read_text())
        assert str(hyps["seed"]) == row["seed"]


def test_the_command_again_trains_nothing(retina: Path) -> None:
    """A finished sweep is found finished, and no run folder is touched."""
    before = {p: p.stat().st_mtime_ns for p in retina.glob("*/**/*")}
    done = train(*RETINA, "n_epochs=3", "--save-root", retina.parent)
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in retina.glob("*/**/*")} == before


@pytest.mark.parametrize(
    "options",
    [
        ["--executor", "serial", "cohort_size=1"],
        ["--executor", "serial", "cohort_size=8"],
        ["--workers", "1", "cohort_size=3"],
    ],
    ids=["alone", "all together", "one worker"],
)
def test_results_do_not_depend_on_company(
    retina: Path, tmp_path: Path, options: list[str]
) -> None:
    """Serial or processes, cohorts of one or all: equal weights and tables."""
    done = train(*RETINA, "n_epochs=3", "--save-root", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    same_sweep(retina, tmp_path / "retina")


def test_image_results_do_not_depend_on_company(images: Path, tmp_path: Path) -> None:
    """The same for the image library, whose batches are augmented per run."""
    options = ["--executor", "serial", "cohort_size=1", "save_every_epoch=true"]
    done = train(*IMAGES, "n_epochs=3", "--save-root", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    same_sweep(images, tmp_path / "digits")


def test_a_run_is_trained_again_from_its_own_configuration(
    images: Path, tmp_path: Path
) -> None:
    """A run's hyperparams.json, under another save root, gives its weights."""
    folder = sorted(path for path in images.iterdir() if path.is_dir())[3]
    done = train(folder / "hyperparams.json", "--save-root", tmp_path)
    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "digits").glob("digits_*")
    ours, theirs = weights(folder.parent), weights(again.parent)
    assert len(theirs) == 3
    for name, state in theirs.items():
        epoch = name.rpartition("/")[2]
        assert state == ours[f"{folder.name}/{epoch}"]


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    """Wait for a condition while a sweep runs; it must come before the end."""
    while not condition():
        assert process.poll() is None, "the sweep ended before it was interrupted"
        time.sleep(0.02)


def n_epochs_on_disk(sweep: Path) -> int:
    return len(list(sweep.glob("*/checkpoints/epoch_*.pt")))


def claimants(sweep: Path) -> set[int]:
    """Process numbers in the claims of a sweep."""
    found = set()
    for claim in sweep.glob("*/claim"):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            found.add(int(json.loads(claim.read_text())["pid"]))
    return found


@pytest.mark.parametrize("n_files", [1, 5])
def test_a_killed_sweep_resumes_bit_for_bit(
    tmp_path: Path, retina: Path, n_files: int
) -> None:
    """SIGKILL of the whole group in the middle; the same command then finishes it."""
    request = (*RETINA, "n_epochs=3", "--save-root", tmp_path)
    process = start(*request)
    sweep = tmp_path / "retina"
    wait_until(lambda: n_epochs_on_disk(sweep) >= n_files, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    again = train(*request)
    assert again.returncode == 0, again.stderr
    same_sweep(retina, sweep)
    assert not list(sweep.rglob("*.tmp"))
    assert not list(sweep.rglob("claim"))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)],
)
def test_a_signal_stops_and_the_command_continues(
    tmp_path: Path, retina: Path, number: signal.Signals, code: int
) -> None:
    """A signal to the sweep gives its exit code, keeps epochs, leaves no worker."""
    request = (*RETINA, "n_epochs=3", "max_attempts=1", "--save-root", tmp_path)
    process = start(*request)
    wait_until(lambda: n_epochs_on_disk(tmp_path / "retina") >= 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    states = {row["state"] for row in table(tmp_path / "retina" / "results.csv")}
    assert "interrupted" in states
    assert "running" not in states
    assert train(*request).returncode == 0
    same_sweep(retina, tmp_path / "retina")


def test_one_failing_run_does_not_stop_the_others(tmp_path: Path) -> None:
    """A model that raises in its first step: exit 1, named, the rest done."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "breaking.py").write_text(BREAKING)
    ranges = tmp_path / "ranges.json"
    ranges.write_text('{"model_args.breaks": [true, false]}')
    request = [IMAGES[0], ranges, "n_epochs=1", "n_repeats=1", "model_type=Breaking"]
    places = ["--plugins", tmp_path / "plugins", "--save-root", tmp_path]
    done = train(*request, *places)
    assert done.returncode == 1
    assert "run 0 failed" in done.stderr
    assert "failure.txt" in done.stderr
    states = [row["state"] for row in table(tmp_path / "digits" / "results.csv")]
    assert states == ["failed", "done"]
    failure = next((tmp_path / "digits").glob("digits_0*/failure.txt"))
    assert "it breaks" in failure.read_text()


def test_a_diverged_run_is_told_apart(tmp_path: Path) -> None:
    """A learning rate of 1e30 diverges; its neighbour is trained."""
    ranges = tmp_path / "ranges.json"
    ranges.write_text('{"lr": [1e30, 0.001]}')
    done = train(
        RETINA[0], ranges, "n_epochs=2", "n_repeats=1", "--save-root", tmp_path
    )
    assert done.returncode == 1
    states = [row["state"] for row in table(tmp_path / "retina" / "results.csv")]
    assert states == ["diverged", "done"]
    again = train(
        RETINA[0], ranges, "n_epochs=2", "n_repeats=1", "--save-root", tmp_path
    )
    assert again.returncode == 1, "an earlier failure still shows in the exit code"


def test_a_larger_grid_keeps_what_is_there(tmp_path: Path) -> None:
    """A further value trains only its own runs; numbers go on, none is reused."""
    few, more = tmp_path / "few.json", tmp_path / "more.json"
    few.write_text('{"lr": [0.01, 0.02]}')
    more.write_text('{"lr": [0.005, 0.01, 0.02]}')
    options = ("n_epochs=1", "n_repeats=1", "--save-root", tmp_path)
    assert train(IMAGES[0], few, *options).returncode == 0
    before = weights(tmp_path / "digits")
    assert train(IMAGES[0], more, *options).returncode == 0
    rows = table(tmp_path / "digits" / "results.csv")
    assert [(row["number"], row["lr"]) for row in rows] == [
        ("0", "0.01"),
        ("1", "0.02"),
        ("2", "0.005"),
    ]
    after = weights(tmp_path / "digits")
    assert before == {name: after[name] for name in before}


def test_two_runners_share_one_sweep(tmp_path: Path) -> None:
    """Two commands at once train each run exactly once and both succeed."""
    request = (*IMAGES, "n_epochs=2", "--save-root", tmp_path, "--workers", 1)
    both = [start(*request), start(*request)]
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    rows = table(tmp_path / "digits" / "results.csv")
    assert [row["state"] for row in rows] == ["done"] * 8
    for path in (tmp_path / "digits").glob("*/run.json"):
        assert len(json.loads(path.read_text())["attempts"]) == 1


def test_a_half_trained_run_does_not_continue_under_other_threads(
    tmp_path: Path,
) -> None:
    """Another thread count is refused with exit 2 unless asked for."""
    request = (*RETINA, "n_epochs=60", "--save-root", tmp_path)
    process = start(*request)
    wait_until(lambda: n_epochs_on_disk(tmp_path / "retina") >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    refused = train(*request, "threads=2")
    assert refused.returncode == 2
    assert "threads 1, now 2" in refused.stderr
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_looking_at_a_sweep_loads_no_torch(retina: Path) -> None:
    """status and results of a real sweep answer without torch or pandas."""
    for arguments in (["status"], ["results"], ["results", "--summary"]):
        code = (
            "import sys; from gridrun.cli import main\n"
            f"code = main({[*arguments, str(retina)]!r})\n"
            "assert not {'torch', 'pandas'} & set(sys.modules)\n"
            "sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert done.returncode == 0, done.stderr


def test_a_run_whose_worker_keeps_dying_fails(tmp_path: Path) -> None:
    """Killed max_attempts times before a first epoch: failed, with the reason."""
    request = (IMAGES[0], "n_repeats=1", "n_epochs=50", "max_attempts=2")
    process = start(*request, "batch_size=2", "--save-root", tmp_path)
    killed: set[int] = set()
    while process.poll() is None and len(killed) < 2:
        for pid in claimants(tmp_path / "digits") - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "its worker died 2 times in a row" in errors
    (row,) = table(tmp_path / "digits" / "results.csv")
    assert row["state"] == "failed"


def test_a_worker_that_died_once_is_replaced(tmp_path: Path, images: Path) -> None:
    """One kill of one worker costs nothing: the same weights in one command."""
    process = start(
        *IMAGES, "n_epochs=3", "save_every_epoch=true", "--save-root", tmp_path
    )
    wait_until(lambda: n_epochs_on_disk(tmp_path / "digits") >= 3, process)
    os.kill(min(claimants(tmp_path / "digits")), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    same_sweep(images, tmp_path / "digits")
