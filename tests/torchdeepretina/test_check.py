"""`gridrun data check`: what it reports, and its verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gridrun import cli

SHIPPED = Path(__file__).parents[2] / "data"
KIND = "firing_rate_10ms"


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Function (arguments) that runs the command; gives exit code and output."""

    def run(*arguments: Any) -> tuple[int, str]:
        code = cli.main(["data", "check", *map(str, arguments)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out + said.err

    return run


@pytest.fixture
def report(check: Callable[..., Any]) -> Callable[[Path], dict[str, Any]]:
    """Function that gives the one report on a file, as JSON says it."""

    def read(path: Path) -> dict[str, Any]:
        (found,) = json.loads(check(path, "--json")[1])
        return dict(found)

    return read


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """All arrays of numbers in a file, by path."""
    found: dict[str, np.ndarray] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "iuf":
            found[name] = node[:]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def last_line(text: str) -> str:
    """The last line, which is the verdict."""
    return text.strip().splitlines()[-1]


# --- shipped data -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["sim-tiny", "digits", "digits16"])
def test_shipped_data_are_good(check: Callable[..., Any], name: str) -> None:
    """Found by path and by name, every file ends in OK."""
    by_name = check(name, "--data-root", SHIPPED)
    by_path = check(SHIPPED / name)
    assert by_name == by_path
    code, text = by_name
    assert code == 0
    assert last_line(text) == "OK"
    for path in (SHIPPED / name).glob("*.h5"):
        assert str(path) in text


def test_a_name_is_looked_for_where_the_environment_says(
    check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --data-root, GRIDRUN_DATA holds the data sets."""
    monkeypatch.setenv("GRIDRUN_DATA", str(SHIPPED))
    assert check("digits")[0] == 0


@pytest.mark.parametrize("stim_type", ["naturalscene", "whitenoise"])
def test_every_array_of_a_recording_has_its_hash(
    report: Callable[..., Any], stim_type: str
) -> None:
    """The SHA-256 of each array is that of its numpy bytes."""
    path = SHIPPED / "sim-tiny" / f"{stim_type}.h5"
    expected = {
        name: hashlib.sha256(values.tobytes()).hexdigest()
        for name, values in arrays_of(path).items()
    }
    assert report(path)["facts"]["sha256"] == expected


def test_the_images_have_their_hashes(report: Callable[..., Any]) -> None:
    """The SHA-256 of each split's images, and their statistics, are numpy's."""
    path = SHIPPED / "digits" / "images.h5"
    facts, arrays = report(path)["facts"], arrays_of(path)
    for split in ("train", "test"):
        images, labels = arrays[f"{split}/images"], arrays[f"{split}/labels"]
        found = facts[split]
        for name, array in (("images", images), ("labels", labels)):
            expected = hashlib.sha256(array.tobytes()).hexdigest()
            assert found["sha256"][f"{split}/{name}"] == expected
        assert found["mean"] == pytest.approx([images.mean()], rel=1e-12)
        assert found["sd"] == pytest.approx([images.std()], rel=1e-12)
        assert found["n_per_class"] == np.bincount(labels).tolist()


def test_statistics_are_those_of_numpy(report: Callable[..., Any]) -> None:
    """Grey levels, sizes and every cell's spikes and rates."""
    path = SHIPPED / "sim-tiny" / "naturalscene.h5"
    found = report(path)
    facts, arrays = found["facts"], arrays_of(path)
    for split, n_frames in (("train", 2000), ("test", 600)):
        grey = arrays[f"{split}/stimulus"]
        one = facts[split]
        assert (one["min"], one["max"]) == (grey.min(), grey.max())
        assert one["mean"] == pytest.approx(grey.mean(), rel=1e-12)
        assert one["sd"] == pytest.approx(grey.std(), rel=1e-12)
        assert (one["n_frames"], one["n_bytes"]) == (n_frames, grey.nbytes)
        assert one["duration_s"] == pytest.approx(n_frames * 0.01)
    counts = arrays["train/response/binned"]
    rates = arrays[f"train/response/{KIND}"]
    for cell, row in enumerate(facts["cells"]):
        assert row["spikes"] == counts[cell].sum()
        assert row["mean_hz"] == pytest.approx(counts[cell].mean() * 100)
        assert row["peak_hz"] == rates[cell].max()
        assert row["centre"] == arrays["centers"][cell].tolist()
    assert facts["windows"] == {"n_lags": 40, "train": 1960, "test": 560}
    assert facts["memory_bytes"] == {
        "stored": 2600 * 144,
        "float32": 2600 * 144 * 4,
        "copied_windows": (1960 + 560) * 40 * 144 * 4,
    }
    repeats = {"n": 5, "response_type": KIND, "layout": "one array per cell"}
    assert facts["repeats"] == repeats
    assert (found["problems"], found["verdict"]) == ([], "OK")


# --- verdicts ---------------------------------------------------------------------


def test_errors_come_together(
    tmp_path: Path, check: Callable[..., Any], write_recording: Callable[..., Any]
) -> None:
    """Three defects in three arrays are three errors, and exit code 2."""
    rates = np.ones((3, 40))
    rates[2, 7] = np.nan
    changes = {
        "train/time": np.arange(5.0),
        f"test/response/{KIND}": rates,
        "train/stimulus": np.zeros((135, 8, 8)),
    }
    write_recording(tmp_path / "movie.h5", changes=changes)
    code, text = check(tmp_path / "movie.h5")
    assert code == 2
    assert last_line(text) == "3 errors"
    for part in ("/train/time has 5", "cell 2, bin 7", "/train/stimulus is constant"):
        assert part in text


def test_cells_of_all_types_must_agree(
    tmp_path: Path, check: Callable[..., Any], write_recording: Callable[..., Any]
) -> None:
    """A response type with another number of cells is an error."""
    changes = {"train/response/binned": np.ones((2, 135))}
    write_recording(tmp_path / "movie.h5", changes=changes)
    code, text = check(tmp_path / "movie.h5")
    assert (code, last_line(text)) == (2, "1 error")
    assert "[2, 3] cells" in text


def test_a_centre_far_from_its_sta_is_a_warning(
    tmp_path: Path,
    check: Callable[..., Any],
    report: Callable[..., Any],
    write_recording: Callable[..., Any],
) -> None:
    """More than 3 px from the peak is told, with cell and distance; 3 px is not."""
    centers = np.array([[1, 1], [1, 1], [4, 4]])
    write_recording(tmp_path / "movie.h5", changes={"centers": centers})
    with h5py.File(tmp_path / "whitenoise.h5", "w") as file:
        for cell, (row, column) in enumerate([(1, 4), (1, 5), (4, 4)]):
            sta = np.zeros((5, 8, 8))
            sta[2, row, column] = 1.0
            file[f"train/stas/cell{cell + 1:02}"] = sta
    code, text = check(tmp_path / "movie.h5")
    assert (code, last_line(text)) == (0, "OK, 1 warning")
    assert "centre of cell 1" in text
    assert "4.0 px" in text
    cells = report(tmp_path / "movie.h5")["facts"]["cells"]
    assert [row["from_sta_px"] for row in cells] == [3.0, 4.0, 0.0]


def test_warnings_are_counted(
    tmp_path: Path, check: Callable[..., Any], write_recording: Callable[..., Any]
) -> None:
    """A silent cell and an odd time step are two warnings, and exit code 0."""
    time = np.arange(135) * 0.01
    time[60:] += 0.003
    changes: dict[str, Any] = {"train/time": time}
    for kind in ("binned", KIND):
        changes[f"train/response/{kind}"] = np.ones((3, 135)) * [[1], [0], [1]]
    write_recording(tmp_path / "movie.h5", changes=changes)
    code, text = check(tmp_path / "movie.h5")
    assert (code, last_line(text)) == (0, "OK, 2 warnings")
    assert "cells [1] never fire" in text
    assert "13 ms, at index 60" in text


def test_arrays_without_values_are_told_not_read(
    tmp_path: Path, check: Callable[..., Any], write_recording: Callable[..., Any]
) -> None:
    """One that declares a terabyte and holds nothing is a warning, and no wait."""
    write_recording(tmp_path / "movie.h5")
    with h5py.File(tmp_path / "movie.h5", "a") as file:
        file.create_dataset("spikes/cell01", (2**37,), "f8", chunks=(1024,))
    code, text = check(tmp_path / "movie.h5")
    assert (code, last_line(text)) == (0, "OK, 1 warning")
    assert "/spikes/cell01 has shape (137438953472,), but 0 of its" in text


def test_one_bad_file_of_a_folder_decides(
    tmp_path: Path, check: Callable[..., Any], write_recording: Callable[..., Any]
) -> None:
    """All files are reported, and the exit code is that of the worst."""
    write_recording(tmp_path / "set" / "b.h5")
    write_recording(tmp_path / "set" / "a.h5", changes={"train/time": None})
    code, text = check("set", "--data-root", tmp_path)
    assert (code, last_line(text)) == (2, "OK")
    assert "1 error" in text.splitlines()


# --- what is no data --------------------------------------------------------------


def test_a_file_that_is_no_hdf5_is_an_error(
    tmp_path: Path, check: Callable[..., Any], report: Callable[..., Any]
) -> None:
    """The error names the file."""
    path = tmp_path / "movie.h5"
    path.write_text("time,cell\n")
    code, text = check(path)
    assert (code, last_line(text)) == (2, "1 error")
    assert f"{path}: not a readable HDF5 file" in text
    assert report(path)["verdict"] == "1 error"


def test_a_name_that_is_nowhere_gets_the_nearest(check: Callable[..., Any]) -> None:
    """With where it was looked for."""
    code, text = check("sim-tinny", "--data-root", SHIPPED)
    assert code == 2
    assert f"no such file, nor in {SHIPPED}" in text
    assert "did you mean 'sim-tiny'" in text


def test_a_folder_without_files_is_an_error(
    tmp_path: Path, check: Callable[..., Any]
) -> None:
    """It says which folder."""
    code, text = check(tmp_path)
    assert code == 2
    assert f"{tmp_path}: holds no .h5 file" in text


def test_another_kind_of_file_is_said_to_be_unchecked(
    tmp_path: Path, check: Callable[..., Any]
) -> None:
    """A file of something else is no error."""
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = 1
    code, text = check(tmp_path / "other.h5")
    assert code == 0
    assert "not checked: no data to train on; holds /a" in text


@pytest.mark.parametrize("value", [np.inf, np.nan, 0.0, -0.01, "0.01"])
def test_an_impossible_bin_width_is_told_once(
    tmp_path: Path,
    write_recording: Callable[..., Any],
    report: Callable[..., Any],
    value: Any,
) -> None:
    """The attribute dt_s must be a number above 0."""
    path = tmp_path / "movie.h5"
    write_recording(path)
    with h5py.File(path, "r+") as file:
        file.attrs["dt_s"] = value
    (problem,) = report(path)["problems"]
    assert "dt_s" in problem
    assert "a number > 0 expected" in problem
