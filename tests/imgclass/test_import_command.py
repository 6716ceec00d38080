"""`gridrun data import` as a whole: arguments, files there already, kills, training."""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from gridrun.cli import main
from gridrun.plugins import libraries
from imgclass import importers
from imgclass.augment import augmentation_problems
from imgclass.datas import open_data

Run = Callable[..., Any]


def levels(first: int, n: int, n_channels: int = 1) -> Any:
    """Distinct images (n, C, 12, 12)."""
    images = np.zeros((n, n_channels, 12, 12), np.uint8)
    images += np.arange(first, first + n, dtype=np.uint8)[:, None, None, None]
    return images


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of 12 and 6 images in 3 classes."""
    path = tmp_path / "a.npz"
    write(path)
    return path


def write(path: Path, n_shared: int = 0, **changes: Any) -> None:
    """An archive whose last training images are the first test images."""
    content = {
        "x_train": levels(0, 12),
        "y_train": np.arange(12) % 3,
        "x_test": levels(12 - n_shared, 6),
        "y_test": np.arange(6) % 3,
    }
    np.savez(path, **content | changes)


# --- arguments -----------------------------------------------------------------------


def test_kind_is_declared() -> None:
    """The library brings the command, and the module has what a command needs."""
    assert libraries()["imgclass"].data_commands["import"] == "imgclass.importers"
    parser = argparse.ArgumentParser()
    importers.add_arguments(parser)
    assert parser.parse_args(["idx", "--name", "x"]).source_kind == "idx"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cifar1"], ["KIND: unknown 'cifar1'", "did you mean 'cifar10'?"]),
        (["folders", "--from", "x"], ["did you mean 'folder'?"]),
        (["imagenet", "--from", "x"], ["known: cifar10", "digits"]),
        (["idx"], ["--from: missing; idx needs"]),
        (["idx", "--from", ""], ["--from: missing"]),
        (["digits", "--from", "x"], ["--from: not for digits", "cifar10, cifar100"]),
        (["idx", "--from", "x", "--side", 8], ["--side: not for idx; for folder"]),
        (["npz", "--from", "x", "--skip-corrupt"], ["--skip-corrupt: not for npz"]),
        (["cifar10", "--from", "x", "--layout", "NHWC"], ["--layout: not for cifar10"]),
        (["folder", "--from", "x", "--side", 0], ["--side: 0; expected 1 to 8,192"]),
        (["folder", "--from", "x", "--side", 99999], ["--side: 99999"]),
        (["folder", "--from", "x", "--test-p", 1], ["--test-p: 1.0", "0 and 1"]),
        (["folder", "--from", "x", "--test-p", "nan"], ["--test-p: nan"]),
        (["npz", "--from", "~nobody_here/x"], ["no such home folder"]),
    ],
)
def test_wrong_arguments(
    run_import: Run, words: list[Any], expected: list[str]
) -> None:
    """Each is named, with what is expected instead; nothing is written."""
    assert run_import(*words).refused(*expected)


def test_wrong_arguments_are_named_together(run_import: Run) -> None:
    """All that is wrong whatever the files hold is said at once."""
    done = run_import("digits", "--side", 0, "--test-p", 2, "--layout", "NCHW")
    assert done.text.count("error: ") == 5


@pytest.mark.parametrize(
    "words", [["idx", "--channels", "2"], ["npz", "--layout", "HWC"], ["npz", "--sid"]]
)
def test_usage(run_import: Run, words: list[str]) -> None:
    """What the parser itself refuses has the same exit code."""
    assert run_import(*words, "--from", "x").code == 2


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b"])
def test_name_must_be_one_folder(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A name that would leave the data root is refused."""
    given = ["data", "import", "npz", "--from", str(archive), "--data-root"]
    assert main([*given, str(tmp_path / "r"), "--name", name]) == 2
    assert "not the name of one folder" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_data_root(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option wins over GRIDRUN_DATA, which wins over the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRIDRUN_DATA", str(tmp_path / "variable"))
    monkeypatch.chdir(tmp_path)
    given = ["data", "import", "npz", "--from", archive.name, "--name", "n"]
    assert main([*given, "--data-root", "~/option"]) == 0
    assert (tmp_path / "home/option/n/images.h5").is_file()
    assert main(given) == 0
    assert (tmp_path / "variable/n/images.h5").is_file()
    monkeypatch.delenv("GRIDRUN_DATA")
    assert main(given) == 0
    assert (tmp_path / "home/experiments/data/n/images.h5").is_file()


# --- files that are there ------------------------------------------------------------


def test_equal_file_is_left_alone(run_import: Run, archive: Path) -> None:
    """The same again is nothing to do, and the file is not touched."""
    first = run_import("npz", "--from", archive)
    assert "written" in first.text
    before = first.path.stat()
    again = run_import("npz", "--from", archive)
    assert again.code == 0
    assert "already there, nothing to do" in again.text
    assert '"dataset": "set", "img_shape": [1, 12, 12]' in again.text
    after = again.path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_test": levels(100, 6)}, "differs in test/images"),
        ({"y_test": np.arange(6) % 2}, "differs in test/labels"),
        ({"x_test": levels(9, 5), "y_test": np.arange(5) % 3}, "test/images is uint8"),
        ({"y_train": np.arange(12) % 4}, "differs in"),
        (
            {"x_train": levels(0, 12, 3), "x_test": levels(12, 6, 3)},
            "attribute augment",
        ),
    ],
)
def test_other_file_is_not_replaced_unless_forced(
    run_import: Run, archive: Path, changes: dict[str, Any], words: str
) -> None:
    """What differs is named; --force replaces."""
    path = run_import("npz", "--from", archive).path
    before = path.read_bytes()
    write(archive, **changes)
    done = run_import("npz", "--from", archive)
    assert done.code == 2
    assert f"{path}: exists and " in done.text
    assert words in done.text
    assert "--force" in done.text
    assert path.read_bytes() == before
    assert run_import("npz", "--from", archive, "--force").code == 0
    assert path.read_bytes() != before
    assert "nothing to do" in run_import("npz", "--from", archive).text


@pytest.mark.parametrize("content", [b"", b"notes of mine", "more", "a folder"])
def test_foreign_file_is_not_replaced(
    run_import: Run, archive: Path, content: bytes | str
) -> None:
    """A file that is no image set, or has more in it, is kept."""
    path = run_import("npz", "--from", archive).path
    if content == "more":
        with h5py.File(path, "a") as file:
            file["notes"] = 3
    elif content == "a folder":
        path.unlink()
        path.mkdir()
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    done = run_import("npz", "--from", archive)
    assert done.code == 2
    assert f"{path}: exists and " in done.text
    if content != "a folder":
        assert run_import("npz", "--from", archive, "--force").code == 0


def test_place_that_cannot_be_written(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data root that is a file is an error of one line."""
    given = ["data", "import", "npz", "--from", str(archive), "--name", "n"]
    assert main([*given, "--data-root", str(archive)]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_shared_images_are_counted(run_import: Run, archive: Path) -> None:
    """A warning says how many test images are in train, too."""
    assert "also in train" not in run_import("npz", "--from", archive).text
    write(archive, n_shared=4)
    done = run_import("npz", "--from", archive, "--force")
    assert done.code == 0
    assert "4 test images are also in train" in done.text


def test_many_classes_are_summed_up(run_import: Run, archive: Path) -> None:
    """The counts stay one line."""
    labels = np.repeat(np.arange(25), 4)
    write(archive, x_train=levels(0, 100), y_train=labels)
    text = run_import("npz", "--from", archive).text
    assert "25 classes of 4 to 4 train and 0 to 2 test images" in text


# --- kills ---------------------------------------------------------------------------

SLOW = """
import sys, time
from gridrun.cli import main
from imgclass.importers import image_set
add = image_set.SharedImages.add
def slow(self, split, images):
    add(self, split, images)
    print("half", flush=True)
    time.sleep(60)
image_set.SharedImages.add = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_import_leaves_no_half_file(
    tmp_path: Path, archive: Path, run_import: Run, number: int
) -> None:
    """Killed while writing: no images.h5; the same command then makes it."""
    given = ["data", "import", "npz", "--from", str(archive), "--name", "set"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *given, "--data-root", str(tmp_path / "r")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(number)
        process.wait(60)
    left = [path.name for path in (tmp_path / "r").rglob("*.*")]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert left == []
    else:
        assert [name.rsplit(".", 1)[1] for name in left] == ["partial"]
    done = run_import("npz", "--from", archive)
    assert done.code == 0
    assert ("left by a command that was killed" in done.text) == bool(left)
    assert done.datasets["train/images"].shape == (12, 1, 12, 12)


def test_failed_write_leaves_nothing(
    run_import: Run, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is an error, and neither a file nor a folder stays."""

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    done = run_import("npz", "--from", archive)
    assert done.refused("could not be written", "No space left")


def test_command_loads_no_torch(tmp_path: Path, archive: Path) -> None:
    """Importing images does not wait for torch."""
    given = ["data", "import", "npz", "--from", str(archive), "--name", "set"]
    given += ["--data-root", str(tmp_path)]
    script = (
        f"import sys; from gridrun.cli import main; code = main({given!r}); "
        "print('torch' in sys.modules, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False 0\n"
    assert str(tmp_path / "set" / "images.h5") in done.stderr
    assert "Traceback" not in done.stderr


# --- digits and training -------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scikit-learn whose digits are all distinct."""
    images = np.zeros((1797, 64))
    for number in range(1797):
        images[number, :12] = [(number >> bit) & 1 for bit in range(12)]
    datasets = types.ModuleType("sklearn.datasets")
    digits = types.SimpleNamespace(
        images=images.reshape(-1, 8, 8) * 16, target=np.arange(1797) % 10
    )
    monkeypatch.setattr(datasets, "load_digits", lambda: digits, raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", datasets)


@pytest.mark.usefixtures("stand_in")
def test_digits(run_import: Run) -> None:
    """The command gives the same file as the function."""
    done = run_import("digits")
    assert done.code == 0, done.text
    assert done.datasets["train/images"].shape == (1438, 1, 8, 8)
    assert set(np.unique(done.datasets["test/images"])) == {0, 240}
    assert json.loads(done.attributes["augment"]) == ["rotate"]
    importers.import_digits(done.path.with_name("function.h5"))
    assert hashlib.sha256(done.path.read_bytes()).digest() == (
        hashlib.sha256(done.path.with_name("function.h5").read_bytes()).digest()
    )


def test_digits_without_scikit_learn(
    run_import: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The missing package is named, with the way to mend it."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    assert run_import("digits").refused("pip install scikit-learn")


def test_training_accepts_what_is_written(
    tmp_path: Path, archive: Path, run_import: Run, image_hyps: Callable[..., Any]
) -> None:
    """The keys that are printed are those that training needs."""
    write(archive, x_train=levels(0, 12, 3), x_test=levels(12, 6, 3))
    done = run_import("npz", "--from", archive)
    (line,) = [one for one in done.text.splitlines() if '"dataset"' in one]
    keys = json.loads("{" + line[line.index('"dataset"') :] + "}")
    data = open_data(image_hyps(tmp_path / "r", **keys), torch.device("cpu"))
    assert len(data.train) + len(data.val) == 12
    augment = data.info.labels["augment"]
    assert augment == ["flip", "jitter", "rotate"]
    assert augmentation_problems(augment, 3) == []
