"""Recordings as they come: variants of the layout, odd files, memory and cache."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gridrun import cli, hdf5
from gridrun.errors import DataError
from torchdeepretina import centers, datas

CPU = torch.device("cpu")
N_LAGS = 4
N_TRAIN, N_TEST = 135, 40
KIND = "firing_rate_10ms"
RATE = f"train/response/{KIND}"
TEST_RATE = f"test/response/{KIND}"
SPREAD = np.array([0.5, 1.0, 1.5])[:, None]  # mean 1
GREY = np.arange(N_TRAIN * 64).reshape(N_TRAIN, 8, 8) % 251


@pytest.fixture
def write(
    tmp_path: Path, write_recording: Callable[..., Any]
) -> Callable[..., dict[str, np.ndarray]]:
    """Function (**options) that writes `rec/movie.h5` under tmp_path."""
    return lambda **options: write_recording(tmp_path / "rec" / "movie.h5", **options)


@pytest.fixture
def hyps(tmp_path: Path, retina_hyps: Callable[..., Any]) -> Callable[..., Any]:
    """Function (**keys) that gives a configuration of data under tmp_path."""
    return lambda **keys: retina_hyps(tmp_path, **keys)


def everything(split: Any) -> Any:
    """The whole of a split as one batch."""
    return split.batch(torch.arange(len(split)))


def grey_levels(split: Any, data: Any) -> np.ndarray:
    """The windows of a split before normalisation, whole numbers."""
    stats = data.norm_stats
    inputs = everything(split).inputs.double().numpy()
    return np.rint(inputs * (stats["std"] + 1e-7) + stats["mean"])


def notices(info: Any) -> str:
    """The notices as one text."""
    return "\n".join(info.notices)


# --- the archive's files ----------------------------------------------------------

PACKED = {"compression": "gzip", "chunks": (16, 50, 50)}


@pytest.mark.parametrize("options", [{}, PACKED], ids=["contiguous", "gzip"])
@pytest.mark.parametrize(
    ("dataset", "n_cells"), [("15-10-07", 9), ("15-11-21a", 14), ("15-11-21b", 27)]
)
def test_files_of_the_archive_open(
    tmp_path: Path,
    hyps: Callable[..., Any],
    dataset: str,
    n_cells: int,
    options: dict[str, Any],
) -> None:
    """uint8 movies of six blocks, float64 responses, T + 1 bins in test."""
    rng = np.random.default_rng(0)
    frames = {
        split: rng.integers(0, 256, (n, 50, 50), np.uint8)
        for split, n in (("train", 132), ("test", 37))
    }
    rates = {"train": rng.random((n_cells, 132)), "test": rng.random((n_cells, 38))}
    path = tmp_path / dataset / "naturalscene.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        for split, movie in frames.items():
            file.create_dataset(f"{split}/stimulus", data=movie, **options)
            file[f"{split}/time"] = np.arange(len(movie)) * 0.01
            file[f"{split}/response/{KIND}"] = rates[split]
        for cell in range(n_cells):
            name = f"test/repeats/cell{cell + 1:02}"
            file[name] = np.repeat(rates["test"][cell][None], 5, 0)
    keys = {"dataset": dataset, "stim_type": "naturalscene", "img_shape": [4, 50, 50]}
    data = datas.open_data(hyps(**keys), CPU)
    assert data.info.n_units == n_cells
    starts = [b * 22 + i for b in range(6) for i in range(22 - N_LAGS)]
    n_val = round(0.1 * len(starts))
    assert data.val.first_frames.tolist() == starts[-n_val:]
    assert set(data.train.first_frames.tolist()) < set(starts[:-n_val])
    assert data.test.repeats.shape == (5, 37 - N_LAGS, n_cells)
    for split, name in (("train", "train"), ("val", "train"), ("test", "test")):
        one = getattr(data, split)
        found, targets = grey_levels(one, data), everything(one).targets.numpy()
        for i, start in enumerate(one.first_frames.tolist()):
            assert np.array_equal(found[i], frames[name][start : start + N_LAGS])
            expected = rates[name][:, start + N_LAGS].astype(np.float32)
            assert np.array_equal(targets[i], expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, float, np.int16])
def test_stimuli_of_any_type_give_the_same_windows(
    write: Callable[..., Any], hyps: Callable[..., Any], dtype: Any
) -> None:
    """Grey levels are those of the file, whatever number type holds them."""
    frames = write(dtype=dtype)["train/stimulus"].astype(float)
    data = datas.open_data(hyps(), CPU)
    found = grey_levels(data.train, data)
    for i, start in enumerate(data.train.first_frames.tolist()):
        assert np.array_equal(found[i], frames[start : start + N_LAGS])


# --- repeats ----------------------------------------------------------------------


def cellwise(rates: np.ndarray, spread: np.ndarray = SPREAD) -> dict[str, np.ndarray]:
    """Repeats of responses (C, T), one array per cell, their mean the response."""
    return {
        f"test/repeats/cell{cell + 1:02}": spread * rate
        for cell, rate in enumerate(rates)
    }


@pytest.mark.parametrize("extra_bins", [0, 1])
@pytest.mark.parametrize("by_type", [False, True])
def test_repeats_of_either_layout_follow_the_cells(
    write: Callable[..., Any],
    hyps: Callable[..., Any],
    extra_bins: int,
    by_type: bool,
) -> None:
    """Cells out of order permute repeats, counts, centres and targets alike."""
    options = {"n_cells": 11, "extra_bins": extra_bins}
    rates = write(**options)[TEST_RATE]
    stacked = {f"test/repeats/{KIND}": SPREAD[:, None] * rates}
    arrays = write(**options, changes=stacked if by_type else cellwise(rates))
    cells = [9, 1, 10, 0]
    data = datas.open_data(hyps(cells=cells), CPU)
    bins = slice(N_LAGS, N_TEST)
    chosen = rates[cells, bins].T
    expected = (SPREAD[:, None] * chosen).astype(np.float32)
    assert np.array_equal(data.test.repeats.numpy(), expected)
    assert np.array_equal(everything(data.test).targets, chosen.astype(np.float32))
    counts = arrays["test/response/binned"][cells, bins].T.astype(np.float32)
    assert np.array_equal(data.test.counts.numpy(), counts)
    assert np.array_equal(data.info.centers, arrays["centers"][cells])
    assert not data.info.notices


def test_cells_are_ordered_by_number(
    write: Callable[..., Any], hyps: Callable[..., Any]
) -> None:
    """cell2 comes before cell10, though not as text."""
    rates = write(n_cells=11)[TEST_RATE]
    named = {f"test/repeats/cell{c + 1}": SPREAD * rate for c, rate in enumerate(rates)}
    write(n_cells=11, changes=named)
    data = datas.open_data(hyps(), CPU)
    middle = data.test.repeats[1].numpy()
    assert np.array_equal(middle, rates[:, N_LAGS:].T.astype(np.float32))


def test_an_array_of_the_type_wins_over_arrays_of_cells(
    write: Callable[..., Any], hyps: Callable[..., Any]
) -> None:
    """Where both layouts are there, the one that names the response type is read."""
    arrays = write()
    stacked = {f"test/repeats/{KIND}": SPREAD[:, None] * arrays[TEST_RATE]}
    write(changes=cellwise(arrays["test/response/binned"]) | stacked)
    data = datas.open_data(hyps(), CPU)
    expected = arrays[TEST_RATE][:, N_LAGS:].T.astype(np.float32)
    assert np.array_equal(data.test.repeats[1].numpy(), expected)
    other = datas.open_data(hyps(response_type="binned"), CPU)
    expected = arrays["test/response/binned"][:, N_LAGS:].T.astype(np.float32)
    assert np.array_equal(other.test.repeats[1].numpy(), expected)


def test_without_repeats_there_are_none(
    write: Callable[..., Any], hyps: Callable[..., Any]
) -> None:
    """A recording without /test/repeats opens and has no repeats."""
    write()
    assert datas.open_data(hyps(), CPU).test.repeats is None


ODD_REPEATS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "one repeat": (lambda a: cellwise(a[TEST_RATE], SPREAD[1:2]), ["one repeat"]),
    "of spike counts": (
        lambda a: cellwise(a["test/response/binned"]),
        ["match binned", KIND, "no noise ceiling"],
    ),
    "another type's array": (
        lambda a: {"test/repeats/binned": np.ones((2, 3, 40))},
        ["binned only", "no noise ceiling"],
    ),
}


@pytest.mark.parametrize("case", ODD_REPEATS)
def test_repeats_of_no_use_are_told_and_left(
    write: Callable[..., Any], hyps: Callable[..., Any], case: str
) -> None:
    """They give a notice that names the file, and no repeats."""
    make, texts = ODD_REPEATS[case]
    write(changes=make(write()))
    data = datas.open_data(hyps(), CPU)
    assert data.test.repeats is None
    for text in ["movie.h5", *texts]:
        assert text in notices(data.info)


# --- centres ----------------------------------------------------------------------


def checkers(n_frames: int = 1200) -> np.ndarray:
    """White noise (T, 8, 8) of two grey levels."""
    random = np.random.default_rng(5)
    return np.where(random.random((n_frames, 8, 8)) < 0.5, 20, 230).astype(np.uint8)


def following(frames: np.ndarray, places: list[tuple[int, int]]) -> np.ndarray:
    """Counts (C, T) of cells that fire two bins after light on one pixel each."""
    counts = np.zeros((len(places), len(frames)))
    for cell, (row, column) in enumerate(places):
        counts[cell, 2:] = 3.0 * (frames[:-2, row, column] > 128)
    return counts


PLACES = [(1, 6), (4, 3), (6, 2)]


def test_stored_centres_are_first(
    tmp_path: Path, write_recording: Callable[..., Any], hyps: Callable[..., Any]
) -> None:
    """/centers wins over the published list."""
    centers = np.array([[2, 3], [3, 4], [5, 5]])
    path = tmp_path / "15-10-07" / "movie.h5"
    write_recording(path, n_train=132, changes={"centers": centers})
    info = datas.inspect_data(hyps(dataset="15-10-07", convgc=True))
    assert np.array_equal(info.centers, centers)


def test_the_published_list_is_that_of_the_design() -> None:
    """The curated cells and their places, by count and sum."""
    totals = {
        name: (len(cells), sum(r for r, _ in cells.values()))
        for name, cells in centers.CURATED_CENTERS.items()
    }
    assert totals == {
        "15-10-07": (5, 125),
        "15-11-21a": (4, 137),
        "15-11-21b": (17, 392),
    }


@pytest.mark.parametrize("stored", [False, True])
def test_centres_are_the_peaks_of_the_white_noise(
    tmp_path: Path,
    write: Callable[..., Any],
    write_recording: Callable[..., Any],
    hyps: Callable[..., Any],
    stored: bool,
) -> None:
    """Peaks of stored STAs, or of those found by planted cells' spikes."""
    write(centers=False)
    frames = checkers()
    changes = {
        "train/stimulus": frames,
        "train/time": np.arange(len(frames)) * 0.01,
        "train/response/binned": following(frames, PLACES[::-1] if stored else PLACES),
    }
    if stored:
        for cell, (row, column) in enumerate(PLACES):
            sta = np.random.default_rng(1).normal(0, 0.1, (10, 8, 8))
            sta[3:5, row, column] = -3.0
            changes[f"train/stas/cell{cell + 1:02}"] = sta
    write_recording(tmp_path / "rec" / "whitenoise.h5", centers=False, changes=changes)
    info = datas.inspect_data(hyps(convgc=True, cells=[2, 0, 1]))
    assert info.centers == (PLACES[2], PLACES[0], PLACES[1])


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_sta_without_peak_gives_no_centre(tmp_path: Path, value: float) -> None:
    """One that holds NaN, or nothing, has no place."""
    with h5py.File(tmp_path / "whitenoise.h5", "w") as file:
        file["train/stas/cell01"] = np.full((5, 8, 8), value)
    assert centers.sta_peaks(tmp_path / "whitenoise.h5", (8, 8)) == {}


# --- the table of conditions ------------------------------------------------------


def rates_with(value: float, shape: tuple[int, int] = (3, N_TRAIN)) -> np.ndarray:
    """Rates of which cell 1 has a value at bin 17."""
    rates = np.ones(shape)
    rates[1, 17] = value
    return rates


def grey_with(value: float) -> np.ndarray:
    """Grey levels of which one, in frame 9, is that."""
    frames = GREY.astype(float)
    frames[9, 2, 3] = value
    return frames


Case = tuple[dict[str, Any], dict[str, Any], list[str]]
TEXT = np.full((N_TRAIN, 8, 8), b"a")
TIME = np.arange(N_TRAIN) * 0.01
CELL2 = "test/repeats/cell02"
ONES = np.ones((3, N_TEST))
REFUSED: dict[str, Case] = {
    "missing response": ({RATE: None}, {}, [f"/{RATE} is missing", "firing_rate_5ms"]),
    "missing stimulus": ({"test/stimulus": None}, {}, ["/test has no 'stimulus'"]),
    "missing time": ({"train/time": None}, {}, ["/train has no 'time'"]),
    "rank": ({"train/stimulus": np.ones((N_TRAIN, 64))}, {}, ["(135, 64)", "3 dim"]),
    "pixels": ({}, {"img_shape": [4, 9, 8]}, ["8×8", "[4, 9, 8]"]),
    "splits": ({"test/stimulus": np.ones((40, 7, 8))}, {}, ["7×8", "[4, 8, 8]"]),
    "text": ({"train/stimulus": TEXT}, {}, ["|S1", "numbers expected"]),
    "bool": ({RATE: np.ones((3, N_TRAIN), bool)}, {}, [RATE, "bool", "numbers"]),
    "complex": ({RATE: np.ones((3, N_TRAIN)) + 1j}, {}, [RATE, "complex128"]),
    "nan": ({RATE: rates_with(np.nan)}, {}, [RATE, "1 NaN", "cell 1, bin 17"]),
    "inf": ({RATE: rates_with(-np.inf)}, {}, [RATE, "-inf", "cell 1, bin 17"]),
    "grey nan": ({"train/stimulus": grey_with(np.nan)}, {}, ["NaN", "frame 9, row 2"]),
    "grey inf": ({"train/stimulus": grey_with(np.inf)}, {}, ["inf", "frame 9, row 2"]),
    "time nan": ({"train/time": np.r_[TIME[:-1], np.nan]}, {}, ["/train/time", "134"]),
    "repeat nan": (
        cellwise(ONES) | {CELL2: rates_with(np.nan)[:2, :40]},
        {},
        [CELL2, "repeat 1, bin 17"],
    ),
    "few bins": ({RATE: np.ones((3, 134))}, {}, ["134 bins", "135 or 136"]),
    "many bins": ({RATE: np.ones((3, 137))}, {}, ["137 bins", "135 or 136"]),
    "times": ({"test/time": np.arange(41.0)}, {}, ["/test/time", "41", "40 frames"]),
    "cells": ({RATE: np.ones((2, N_TRAIN))}, {}, ["/train has 2 cells", "/test 3"]),
    "negative": ({RATE: rates_with(-2.0)}, {}, ["negative", "-2.0", "cell 1, bin 17"]),
    "time falls": ({"train/time": TIME[::-1]}, {}, ["/train/time", "index 1"]),
    "gap": (
        {f"test/repeats/cell{c:02}": ONES for c in (1, 2, 4)},
        {},
        ["3 is missing"],
    ),
    "few repeats": (cellwise(ONES[:2]), {}, ["cells [1, 2]", "1 to 3 expected"]),
    "many repeats": (cellwise(np.ones((4, 40))), {}, ["4", "1 to 3 expected"]),
    "names": ({"test/repeats/a": ONES}, {}, ['/test/repeats holds ["a"]', "cell01"]),
    "unequal": (cellwise(ONES) | {CELL2: np.ones((5, 40))}, {}, ["repeats ([3, 5])"]),
    "repeat bins": (cellwise(ONES) | {CELL2: np.ones((3, 42))}, {}, [CELL2, "42 bins"]),
    "stacked cells": (
        {f"test/repeats/{KIND}": np.ones((5, 2, 40))},
        {},
        ["(5, 2, 40)", "3 cells"],
    ),
    "short": (
        {},
        {"img_shape": [39, 8, 8]},
        ["/test has 40 frames", "39", "41 frames"],
    ),
    "no training": ({}, {"val_p": 0.97}, ["val_p 0.97", "131 windows"]),
    "constant": ({"train/stimulus": GREY * 0}, {}, ["/train/stimulus", "constant (0)"]),
    "short block": ({"train/time": np.r_[0:4, 900:1031] * 0.01}, {}, ["block of 4"]),
    "cell": ({}, {"cells": [0, 5]}, ["[5]", "cells 0 to 2"]),
    "centre": ({"centers": np.full((3, 2), 8)}, {}, ["cell 0", "(8, 8)", "8×8"]),
    "unwritten": ({}, {}, ["/train/stimulus", "0 of 8,640 bytes"]),
    "not hdf5": ({}, {}, ["not a readable HDF5 file"]),
    "truncated": ({}, {}, ["not a readable HDF5 file", "truncated"]),
    "damaged chunk": ({}, {}, ["/train/stimulus", "filter returned failure"]),
    "no centres": ({"centers": None}, {"convgc": True}, ["centers"]),
}


def put_damage(path: Path, case: str) -> None:
    """What cannot be said by other arrays."""
    content = path.read_bytes()
    if case == "not hdf5":
        path.write_bytes(b"time,cell\n" * 500)
    elif case == "truncated":
        path.write_bytes(content[:-5000])
    elif case == "unwritten":
        with h5py.File(path, "a") as file:
            del file["train/stimulus"]
            file.create_dataset("train/stimulus", (N_TRAIN, 8, 8), "u1")
    elif case == "damaged chunk":
        with h5py.File(path, "a") as file:
            del file["train/stimulus"]
        damage_chunk(path, "train/stimulus", GREY.astype(np.uint8))


def damage_chunk(path: Path, name: str, values: np.ndarray) -> None:
    """Write an array compressed, and spoil its second chunk."""
    with h5py.File(path, "a") as file:
        data = file.create_dataset(
            name, data=values, compression="gzip", chunks=(16, *values.shape[1:])
        )
        chunk = data.id.get_chunk_info(1)
        place, size = chunk.byte_offset, chunk.size
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)


@pytest.mark.parametrize("case", REFUSED)
def test_a_condition_ends_the_command_before_anything_is_written(
    tmp_path: Path,
    write: Callable[..., Any],
    hyps: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    """DataError and exit code 2, with file, what was found and what was expected."""
    changes, keys, texts = REFUSED[case]
    write(changes=changes)
    path = tmp_path / "rec" / "movie.h5"
    put_damage(path, case)
    configuration = hyps(**keys).model_dump(mode="json", exclude_unset=True)
    configuration |= {"save_root": str(tmp_path / "saved"), "executor": "serial"}
    given = tmp_path / "hyperparams.json"
    given.write_text(json.dumps(configuration))
    assert cli.main(["run", str(given)]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    for text in texts:
        assert text in said.err
    assert not (tmp_path / "saved").exists()
    if case != "no centres":  # which a model needs, not the data
        assert str(path) in said.err
        with pytest.raises(DataError) as caught:
            datas.inspect_data(hyps(**keys))
        for text in [str(path), *texts]:
            assert text in str(caught.value)


def test_dense_models_need_no_centres(
    tmp_path: Path, write: Callable[..., Any], hyps: Callable[..., Any]
) -> None:
    """Without convgc a recording that says no centres is fine."""
    write(centers=False)
    configuration = hyps().model_dump(mode="json", exclude_unset=True)
    given = tmp_path / "hyperparams.json"
    given.write_text(json.dumps(configuration | {"save_root": str(tmp_path)}))
    assert datas.inspect_data(hyps()).centers is None
    assert cli.main(["run", str(given), "--dry-run"]) == 0


QUIET = np.where(np.arange(3)[:, None] == 1, 0.0, np.ones((3, N_TRAIN)))
ODD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "silent cell": ({RATE: QUIET}, ["cells [1] never fire in /train"]),
    "odd step": (
        {"train/time": np.r_[TIME[:50], TIME[50:] + 0.002]},
        ["/train/time: 1 of 134 steps", "12 ms", "index 50"],
    ),
    "unlike repeats": (
        {f"test/repeats/{KIND}": np.random.default_rng(0).random((3, 3, N_TEST))},
        [f"unlike /test/response/{KIND}"],
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_a_condition_that_is_merely_odd_is_a_notice(
    write: Callable[..., Any], hyps: Callable[..., Any], case: str
) -> None:
    """Training goes on, and the notice names file and place."""
    changes, texts = ODD[case]
    write(changes=changes)
    info = datas.inspect_data(hyps())
    assert len(info.notices) == 1
    for text in ["movie.h5", *texts]:
        assert text in notices(info)


# --- causality --------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_sample_depends_on_its_window_and_target_only(
    write: Callable[..., Any], hyps: Callable[..., Any], split: str
) -> None:
    """Other frames and other bins leave each sample as it is, bit for bit."""
    arrays = write()
    before = getattr(datas.open_data(hyps(), CPU), split)
    name = "test" if split == "test" else "train"
    for i in range(0, len(before), 5):
        start = int(before.first_frames[i])
        stimulus = before.stimulus.clone()
        stimulus[:start] += 1
        stimulus[start + N_LAGS :] += 1
        changed = dataclasses.replace(before, stimulus=stimulus)
        one, other = (s.batch(torch.tensor([i])) for s in (before, changed))
        assert torch.equal(one.inputs, other.inputs)
        rates = arrays[f"{name}/response/{KIND}"] + 1.0
        rates[:, start + N_LAGS] -= 1.0
        write(changes={f"{name}/response/{KIND}": rates})
        other = getattr(datas.open_data(hyps(), CPU), split).batch(torch.tensor([i]))
        assert torch.equal(one.inputs, other.inputs)
        assert torch.allclose(one.targets, other.targets, rtol=1e-6)


def test_test_samples_do_not_depend_on_other_frames_of_the_file(
    write: Callable[..., Any], hyps: Callable[..., Any]
) -> None:
    """With all other test frames changed in the file, a sample keeps its bits."""
    frames = write()["test/stimulus"]
    before = everything(datas.open_data(hyps(), CPU).test).inputs
    for i in (0, 17, len(before) - 1):
        other = 255 - frames
        other[i : i + N_LAGS] = frames[i : i + N_LAGS]
        write(changes={"test/stimulus": other})
        after = everything(datas.open_data(hyps(), CPU).test).inputs
        assert torch.equal(before[i], after[i])
        assert not torch.equal(before, after)


@settings(max_examples=60, deadline=None)
@given(
    n_blocks=st.integers(1, 4),
    length=st.integers(8, 60),
    n_lags=st.integers(1, 10),
    offset=st.integers(0, 1),
    val_loc=st.sampled_from(["beginning", "middle", "end"]),
    val_p=st.floats(0.05, 0.6),
)
def test_no_marked_frame_is_on_two_sides(
    tmp_path_factory: pytest.TempPathFactory,
    write_recording: Callable[..., Any],
    retina_hyps: Callable[..., Any],
    n_blocks: int,
    length: int,
    n_lags: int,
    offset: int,
    val_loc: str,
    val_p: float,
) -> None:
    """Frames that carry split, block and number: none is shared, no block crossed."""

    def marked(is_test: int, blocks: int, n: int) -> np.ndarray:
        frames = np.zeros((blocks, n, 8, 8), np.float32)
        frames[..., 0, 0] = is_test
        frames[..., 0, 1] = np.arange(blocks)[:, None]
        frames[..., 0, 2] = np.arange(n)
        return frames.reshape(-1, 8, 8)

    root = tmp_path_factory.mktemp("marked")
    changes = {
        "train/stimulus": marked(0, n_blocks, length),
        "test/stimulus": marked(1, 1, 40),
    }
    n_train = n_blocks * length
    path = root / "rec" / "movie.h5"
    write_recording(path, n_train=n_train, n_blocks=n_blocks, changes=changes)
    keys = {"val_loc": val_loc, "val_p": val_p, "target_offset": offset}
    try:
        data = datas.open_data(retina_hyps(root, img_shape=[n_lags, 8, 8], **keys), CPU)
    except DataError:
        assume(False)
    seen = {}
    for split in ("train", "val", "test"):
        marks = grey_levels(getattr(data, split), data)[:, :, 0, :3].astype(int)
        assert (marks[:, :, :2] == marks[:, :1, :2]).all()
        assert (np.diff(marks[:, :, 2], axis=1) == 1).all()
        seen[split] = set(map(tuple, marks.reshape(-1, 3).tolist()))
    assert not seen["train"] & seen["val"]
    assert not seen["test"] & (seen["train"] | seen["val"])
    assert all(is_test for is_test, _, _ in seen["test"])


# --- memory -----------------------------------------------------------------------

READ_AN_EPOCH = """
import json, sys
import torch
from gridrun.config import complete
from gridrun.plugins import libraries
from torchdeepretina import datas

torch.set_num_threads(1)
keys = json.loads(sys.argv[1])
hyps, problems = complete(keys, libraries()["torchdeepretina"].schema)
assert not problems, problems


def kilobytes(field):
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith(field)).split()[1])


before = kilobytes("VmRSS")
data = datas.open_data(hyps, torch.device("cpu"))
print(kilobytes("VmHWM") - before)
weights = torch.ones(40 * 50 * 50)
for indices in torch.arange(len(data.train)).split(128)[::20]:
    (data.train.batch(indices).inputs.flatten(1) @ weights).sum()
print(kilobytes("VmHWM") - before)
"""
STIMULUS_BYTES = 60_000 * 50 * 50
BATCH_BYTES = 128 * 40 * 50 * 50 * (1 + 4)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """Largest extra memory, bytes, of opening 60,000 frames, then after an epoch."""
    root = tmp_path_factory.mktemp("large")
    path = root / "rec" / "movie.h5"
    path.parent.mkdir()
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (1000, 50, 50), np.uint8)
    with h5py.File(path, "w") as file:
        movie = file.create_dataset("train/stimulus", (60_000, 50, 50), "u1")
        for first in range(0, 60_000, 1000):
            movie[first : first + 1000] = some
        file["test/stimulus"] = some[:100]
        for split, n in (("train", 60_000), ("test", 100)):
            file[f"{split}/time"] = np.arange(n) * 0.01
            file[f"{split}/response/{KIND}"] = rng.random((2, n))
    keys = {"exp_name": "x", "dataset": "rec", "stim_type": "movie", "lr": 0.1}
    keys |= {"data_root": str(root), "batch_size": 128, "n_epochs": 1}
    keys |= {"model_type": "LN", "img_shape": [40, 50, 50], "seed": 1}
    said = subprocess.run(
        [sys.executable, "-c", READ_AN_EPOCH, json.dumps(keys)],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"},  # freed is given back
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    path.unlink()
    return [int(line) * 1024 for line in said.split()]


def test_an_epoch_takes_little_more_memory_than_the_stimulus(peaks: list[int]) -> None:
    """At no time more than 1.2 of the stimulus, and a batch as stored and as floats."""
    assert peaks[1] <= 1.2 * STIMULUS_BYTES + BATCH_BYTES


def test_opening_takes_little_more_memory_than_the_stimulus(peaks: list[int]) -> None:
    """Without a batch, no more than 1.2 of the stimulus."""
    assert peaks[0] <= 1.2 * STIMULUS_BYTES


# --- the cache --------------------------------------------------------------------

OPEN_CACHED = """
import sys
from pathlib import Path
from gridrun import hdf5

hdf5.SMALL_BYTES = 0
hdf5.chunks = None  # nothing is decompressed
array = hdf5.mapped_array(Path(sys.argv[1]), "/a", "u1", Path(sys.argv[2]))
print(int(array.sum()))
"""


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a compressed array /a, worth a cache, and no user's cache yet."""
    monkeypatch.setattr(hdf5, "SMALL_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    path = tmp_path / "root" / "rec" / "movie.h5"
    path.parent.mkdir(parents=True)
    pack(path, GREY)
    return path


def pack(path: Path, values: np.ndarray) -> None:
    """Write /a, compressed."""
    with h5py.File(path, "w") as file:
        options = {"compression": "gzip", "chunks": (16, 8, 8)}
        file.create_dataset("a", data=values.astype(np.uint8), **options)


def mapped(path: Path) -> np.ndarray:
    """/a of a file, by way of the cache."""
    return hdf5.mapped_array(path, "/a", "u1", hdf5.cache_folder(path.parent))


def kept(folder: Path) -> list[Path]:
    """All files of a cache but its lock."""
    return [one for one in folder.glob("*") if one.name != ".lock"]


def test_a_compressed_array_is_unpacked_once(packed: Path) -> None:
    """The cache beside the data serves this process and others, unchanged."""
    folder = packed.parents[1] / ".cache"
    assert np.array_equal(mapped(packed), GREY)
    (made,) = kept(folder)
    assert made.suffix == ".npy"
    stamp = made.stat()
    assert np.array_equal(mapped(packed), GREY)
    command = [sys.executable, "-c", OPEN_CACHED, str(packed), str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(said) == GREY.sum()
    assert kept(folder) == [made]
    assert made.stat().st_mtime_ns == stamp.st_mtime_ns
    assert not (packed.parents[2] / "user").exists()


def test_a_changed_recording_is_unpacked_again(packed: Path) -> None:
    """What the cache holds of the old file is not taken for the new one."""
    mapped(packed)
    pack(packed, GREY[::-1])
    assert np.array_equal(mapped(packed), GREY[::-1])


def test_writing_to_a_mapped_array_changes_no_file(packed: Path) -> None:
    """Neither the cache nor, for a contiguous array, the recording."""
    array = mapped(packed)
    array[:] = 0
    assert np.array_equal(mapped(packed), GREY)


def test_the_users_cache_stands_in(packed: Path) -> None:
    """Where the data root cannot be written, the array is kept in XDG_CACHE_HOME."""
    (packed.parents[1] / ".cache").write_text("in the way")
    assert np.array_equal(mapped(packed), GREY)
    assert len(kept(packed.parents[2] / "user" / "gridrun")) == 1


def test_without_any_cache_the_array_is_read(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says so, with file and array."""
    (packed.parents[1] / ".cache").write_text("in the way")
    (packed.parents[2] / "user").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(mapped(packed), GREY)
    assert str(packed) in caplog.text
    assert "no room to keep /a" in caplog.text


def test_a_full_disk_leaves_nothing_half_written(
    packed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When writing the cache fails, the array is read and no part file stays."""

    def fails(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fails)
    assert np.array_equal(mapped(packed), GREY)
    assert "no room" in caplog.text
    assert kept(packed.parents[1] / ".cache") == []
    assert kept(packed.parents[2] / "user" / "gridrun") == []


def test_a_spoilt_cache_file_is_not_used(packed: Path) -> None:
    """One that is cut short does not stand for the array."""
    mapped(packed)
    (made,) = kept(packed.parents[1] / ".cache")
    made.write_bytes(made.read_bytes()[:200])
    assert np.array_equal(mapped(packed), GREY)


def test_a_damaged_chunk_names_file_and_array(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a DataError, no want of room, and leaves no part file."""
    damage_chunk(packed, "b", GREY.astype(np.uint8))
    with pytest.raises(DataError, match=r"movie\.h5: .*/b: .*filter"):
        hdf5.mapped_array(packed, "/b", "u1", hdf5.cache_folder(packed.parent))
    assert "no room" not in caplog.text
    assert kept(packed.parents[1] / ".cache") == []
