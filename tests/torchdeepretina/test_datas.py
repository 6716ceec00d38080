"""Recordings: windows, splits, normalisation, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gridrun import hdf5
from gridrun.errors import DataError
from torchdeepretina import datas, recordings, windows

CPU = torch.device("cpu")
SHIPPED = Path(__file__).parents[2] / "data"
N_LAGS = 4
SMOOTHING = {5: 2, 10: 3, 20: 6, 0: 0}  # bins either side, by ms


@pytest.fixture
def opened(
    tmp_path: Path, write_recording: Callable[..., Any], retina_hyps: Callable[..., Any]
) -> Callable[..., Any]:
    """Function (file options, **keys) that writes a recording and opens it.

    Returns the arrays written and the `Data`.
    """

    def write_and_open(options: dict[str, Any] | None = None, **keys: Any) -> Any:
        arrays = write_recording(tmp_path / "rec" / "movie.h5", **(options or {}))
        return arrays, datas.open_data(retina_hyps(tmp_path, **keys), CPU)

    return write_and_open


def everything(split: Any) -> Any:
    """The whole of a split as one batch."""
    return split.batch(torch.arange(len(split)))


def grey_levels(split: Any, data: Any) -> np.ndarray:
    """The windows of a split before normalisation, whole numbers."""
    stats = data.norm_stats
    inputs = everything(split).inputs.double().numpy()
    return np.rint(inputs * (stats["std"] + 1e-7) + stats["mean"])


# --- windows ----------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_windows_are_the_frames_of_an_explicit_loop(
    opened: Callable[..., Any], split: str
) -> None:
    """Window i holds frames i to i + n_lags - 1, oldest first, pixel for pixel."""
    arrays, data = opened()
    frames = arrays["test/stimulus" if split == "test" else "train/stimulus"]
    n_windows = len(frames) - N_LAGS
    n_val = round(0.1 * n_windows)
    reach = N_LAGS + 1 + 3
    starts = {
        "train": range(n_windows - n_val - reach + 1),
        "val": range(n_windows - n_val, n_windows),
        "test": range(n_windows),
    }[split]
    found = grey_levels(getattr(data, split), data)
    assert len(found) == len(starts)
    for window, start in zip(found, starts, strict=True):
        for lag in range(N_LAGS):
            for row in range(8):
                for column in range(8):
                    assert window[lag, row, column] == frames[start + lag, row, column]


@pytest.mark.parametrize("offset", [0, 1])
def test_targets_are_offset_bins_after_the_last_frame(
    opened: Callable[..., Any], offset: int
) -> None:
    """The target of the window that starts at i is bin i + n_lags - 1 + offset."""
    arrays, data = opened(target_offset=offset)
    rates = arrays["test/response/firing_rate_10ms"]
    targets = everything(data.test).targets.numpy()
    assert len(targets) == 40 - N_LAGS + 1 - offset
    for i, target in enumerate(targets):
        assert target.tolist() == rates[:, i + 3 + offset].astype(np.float32).tolist()


@pytest.mark.parametrize("kind", ["binned", "firing_rate_5ms", "firing_rate_10ms"])
def test_response_type_chooses_the_response(
    opened: Callable[..., Any], kind: str
) -> None:
    """Targets come from the data set of that name."""
    arrays, data = opened(response_type=kind)
    expected = arrays[f"test/response/{kind}"][:, N_LAGS].astype(np.float32)
    assert everything(data.test).targets[0].tolist() == expected.tolist()


def test_cells_are_taken_in_the_order_given(opened: Callable[..., Any]) -> None:
    """Cells [2, 0] give the responses and the centres of cell 2, then of cell 0."""
    arrays, data = opened(cells=[2, 0])
    expected = arrays["test/response/firing_rate_10ms"][[2, 0], N_LAGS:].T
    assert np.array_equal(
        everything(data.test).targets.numpy(), expected.astype(np.float32)
    )
    assert data.info.n_units == 2
    assert data.info.labels["cells"] == [2, 0]
    centers = [tuple(arrays["centers"][cell].tolist()) for cell in (2, 0)]
    assert [tuple(center) for center in data.info.centers] == centers


def test_responses_one_bin_longer_are_cut(opened: Callable[..., Any]) -> None:
    """With T + 1 bins windows and targets are those of the first T."""
    arrays, data = opened({"extra_bins": 1})
    assert len(data.test) == 40 - N_LAGS
    last = arrays["test/response/firing_rate_10ms"][:, 39].astype(np.float32)
    assert everything(data.test).targets[-1].tolist() == last.tolist()


def test_a_window_never_sees_the_bin_it_predicts(opened: Callable[..., Any]) -> None:
    """Changing frames from the target bin on changes no input of that window."""
    _, data = opened()
    before = data.test.batch(torch.tensor([7]))
    stimulus = data.test.stimulus.clone()
    stimulus[7 + N_LAGS :] = 255 - stimulus[7 + N_LAGS :]
    changed = dataclasses.replace(data.test, stimulus=stimulus)
    assert torch.equal(before.inputs, changed.batch(torch.tensor([7])).inputs)
    stimulus[7 + N_LAGS - 1] += 1
    assert not torch.equal(before.inputs, changed.batch(torch.tensor([7])).inputs)


def test_batches_come_in_the_order_asked_for(opened: Callable[..., Any]) -> None:
    """A batch of indices holds those windows and targets, repeats included."""
    _, data = opened()
    whole = everything(data.train)
    indices = torch.tensor([5, 0, 5, 90])
    batch = data.train.batch(indices)
    assert torch.equal(batch.inputs, whole.inputs[indices])
    assert torch.equal(batch.targets, whole.targets[indices])


def test_a_batch_does_not_change_the_stimulus(opened: Callable[..., Any]) -> None:
    """Normalising a batch leaves the frames in memory as they were."""
    _, data = opened({"dtype": np.float32})
    before = data.train.stimulus.clone()
    everything(data.train)
    assert torch.equal(before, data.train.stimulus)


def test_train_and_val_share_one_stimulus(opened: Callable[..., Any]) -> None:
    """Both splits read the same memory."""
    _, data = opened()
    assert data.train.stimulus.data_ptr() == data.val.stimulus.data_ptr()


# --- blocks and splits ------------------------------------------------------------


def brute_windows(
    n_frames: int, n_blocks: int, n_lags: int, offset: int, skip: int
) -> list[int]:
    """Starts of the windows whose frames and target lie in one block."""
    length = n_frames // n_blocks
    starts = []
    for i in range(n_frames):
        needed = [*range(i, i + n_lags), i + n_lags - 1 + offset]
        blocks = {frame // length for frame in needed}
        if len(blocks) == 1 and max(needed) < n_frames and i % length >= skip:
            starts.append(i)
    return starts


@given(
    n_blocks=st.integers(1, 4),
    length=st.integers(1, 30),
    n_lags=st.integers(1, 12),
    offset=st.integers(0, 1),
    skip=st.integers(0, 5),
)
def test_windows_lie_in_one_block(
    n_blocks: int, length: int, n_lags: int, offset: int, skip: int
) -> None:
    """Windows are all those that lie, with their target, in one block."""
    blocks = recordings.equal_blocks(n_blocks * length, n_blocks)
    found = windows.window_starts(blocks, n_lags, offset, skip)
    expected = brute_windows(n_blocks * length, n_blocks, n_lags, offset, skip)
    assert found.tolist() == expected


@given(
    n_blocks=st.integers(1, 3),
    length=st.integers(5, 70),
    n_lags=st.integers(1, 12),
    offset=st.integers(0, 1),
    ms=st.sampled_from([5, 10, 20, 0]),
    val_p=st.floats(0.01, 0.9),
    val_loc=st.sampled_from(["beginning", "middle", "end"]),
)
def test_no_frame_target_or_smoothing_is_shared(
    n_blocks: int,
    length: int,
    n_lags: int,
    offset: int,
    ms: int,
    val_p: float,
    val_loc: str,
) -> None:
    """Spans of both sides' windows, smoothed targets included, are apart."""
    s = SMOOTHING[ms]
    blocks = recordings.equal_blocks(n_blocks * length, n_blocks)
    starts = windows.window_starts(blocks, n_lags, offset)
    assume(len(starts) > 1)
    reach = windows.purge_reach(n_lags, offset, s)
    split = windows.split_windows(starts, val_p, val_loc, reach)

    def used(windows: Any) -> set[int]:
        bins: set[int] = set()
        for i in windows.tolist():
            target = i + n_lags - 1 + offset
            bins |= set(range(i, i + n_lags)) | set(range(target - s, target + s + 1))
        return bins

    assert not used(split.train) & used(split.val)


@given(
    n=st.integers(2, 300),
    val_p=st.floats(0.01, 0.9),
    val_loc=st.sampled_from(["beginning", "middle", "end"]),
    reach=st.integers(1, 20),
)
def test_exactly_the_windows_within_reach_are_dropped(
    n: int, val_p: float, val_loc: str, reach: int
) -> None:
    """Validation is a run of round(val_p N) windows; training all that are far."""
    split = windows.split_windows(np.arange(n), val_p, val_loc, reach)
    n_val = max(round(val_p * n), 1)
    first = {"beginning": 0, "middle": (n - n_val) // 2, "end": n - n_val}[val_loc]
    assert split.val.tolist() == list(range(first, first + n_val))
    expected = [i for i in range(n) if all(abs(i - int(v)) >= reach for v in split.val)]
    assert split.train.tolist() == expected


@pytest.mark.parametrize(("val_loc", "sides"), [("end", 1), ("middle", 2)])
def test_the_default_drops_43_windows_per_open_side(val_loc: str, sides: int) -> None:
    """40 lags, offset 1 and the 10 ms response cost 43 windows where val has a side."""
    starts = windows.window_starts([(0, 1000)], 40, 1)
    reach = 40 + 1 + recordings.SMOOTHING_BINS["firing_rate_10ms"]
    split = windows.split_windows(starts, 0.1, val_loc, reach)
    assert len(starts) - len(split.train) - len(split.val) == 43 * sides


def test_the_reach_of_a_configuration_is_44(
    tmp_path: Path, write_recording: Any, retina_hyps: Any
) -> None:
    """With 40 lags and the defaults a recording loses 43 windows to the purge."""
    write_recording(tmp_path / "rec" / "movie.h5", n_train=200, n_test=60)
    hyps = retina_hyps(tmp_path, img_shape=[40, 8, 8])
    layout = datas.inspect_recording(hyps)
    assert 160 - len(layout.windows.train) - len(layout.windows.val) == 43


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [("firing_rate_5ms", 6), ("firing_rate_10ms", 7), ("binned", 4)],
)
def test_the_purge_follows_the_smoothing(
    opened: Callable[..., Any], kind: str, dropped: int
) -> None:
    """Windows within n_lags + 1 + s of validation are dropped, s by response type."""
    _, data = opened(response_type=kind)
    assert 131 - len(data.train) - len(data.val) == dropped


def test_counts_of_15_10_07() -> None:
    """Its 6 blocks of 59,967 frames hold 359,562 windows, its test split 5,956."""
    blocks = recordings.equal_blocks(359_802, recordings.KNOWN_BLOCKS["15-10-07"])
    assert blocks[1] == (59_967, 119_934)
    assert len(windows.window_starts(blocks, 40, 1)) == 359_562
    assert len(windows.window_starts([(0, 5_996)], 40, 1)) == 5_956


def test_stored_blocks_are_honoured(opened: Callable[..., Any]) -> None:
    """n_blocks 3 loses n_lags windows at each of the three ends."""
    _, data = opened({"n_blocks": 3}, val_p=0.01)
    assert len(data.val) == 1
    assert len(data.train) == 135 - 3 * N_LAGS - len(data.val) - 7


def test_blocks_are_cut_where_time_jumps(opened: Callable[..., Any]) -> None:
    """Without n_blocks a pause in /train/time ends a block."""
    time = np.arange(135) * 0.01
    time[50:] += 60
    _, data = opened({"changes": {"train/time": time}}, val_p=0.01)
    starts = data.train.first_frames.tolist()
    assert [i for i in range(40, 60) if i not in starts] == [46, 47, 48, 49]


def test_skipped_frames_count_in_every_block(opened: Callable[..., Any]) -> None:
    """n_skip_frames takes that many windows from the start of each block."""
    _, data = opened({"n_blocks": 3}, n_skip_frames=10, val_p=0.01)
    starts = data.train.first_frames.tolist()
    assert starts[0] == 10
    expected = [*range(35, 41), *range(55, 60)]
    assert [i for i in range(35, 60) if i in starts] == expected


@pytest.mark.parametrize("val_loc", ["beginning", "middle", "end"])
def test_val_loc_places_the_block(opened: Callable[..., Any], val_loc: str) -> None:
    """The validation windows are consecutive, and where the key says."""
    _, data = opened(val_loc=val_loc, val_p=0.2)
    first = {"beginning": 0, "middle": 52, "end": 105}[val_loc]
    assert data.val.first_frames.tolist() == list(range(first, first + 26))


def test_the_split_does_not_depend_on_seeds(opened: Callable[..., Any]) -> None:
    """Seed and split_seed move no window."""
    _, one = opened(seed=1, split_seed=1)
    _, other = opened(seed=2, split_seed=2)
    assert torch.equal(one.val.first_frames, other.val.first_frames)
    assert torch.equal(one.train.first_frames, other.train.first_frames)


# --- normalisation ----------------------------------------------------------------


@pytest.mark.parametrize("val_loc", ["beginning", "middle", "end"])
def test_statistics_are_those_of_training_frames(
    opened: Callable[..., Any], val_loc: str
) -> None:
    """Mean and s.d. are over the frames that some training window holds, once each."""
    arrays, data = opened({"n_blocks": 3}, val_loc=val_loc, n_skip_frames=2)
    starts = data.train.first_frames.tolist()
    used = sorted({i + k for i in starts for k in range(N_LAGS)})
    frames = arrays["train/stimulus"][used].astype(np.float64)
    assert len(used) < 135
    assert data.norm_stats["mean"] == pytest.approx(frames.mean(), rel=1e-12)
    assert data.norm_stats["std"] == pytest.approx(frames.std(), rel=1e-12)


def test_inputs_are_normalised_by_the_statistics(opened: Callable[..., Any]) -> None:
    """x = (grey - mean) / (s.d. + 1e-7), in every split."""
    arrays, data = opened()
    mean, std = data.norm_stats["mean"], data.norm_stats["std"]
    frames = arrays["test/stimulus"][3 : 3 + N_LAGS].astype(np.float64)
    expected = (frames - mean) / (std + 1e-7)
    found = data.test.batch(torch.tensor([3])).inputs[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_validation_frames_do_not_enter_the_statistics(
    opened: Callable[..., Any],
) -> None:
    """Changing every frame that only validation windows hold changes no statistic."""
    arrays, before = opened()
    last = int(before.train.first_frames[-1]) + N_LAGS
    frames = arrays["train/stimulus"].copy()
    frames[last:] = 255 - frames[last:]
    _, after = opened({"changes": {"train/stimulus": frames}})
    assert before.norm_stats == after.norm_stats
    frames[last - 1] = 255 - frames[last - 1]
    _, changed = opened({"changes": {"train/stimulus": frames}})
    assert before.norm_stats != changed.norm_stats


def test_statistics_are_accurate_for_large_means(opened: Callable[..., Any]) -> None:
    """Float32 frames far from zero keep their s.d. to 1e-6."""
    frames = np.random.default_rng(0).normal(4096, 1, (135, 8, 8)).astype(np.float32)
    _, data = opened({"changes": {"train/stimulus": frames}})
    used = frames[: int(data.train.first_frames[-1]) + N_LAGS].astype(np.float64)
    assert data.norm_stats["std"] == pytest.approx(used.std(), rel=1e-6)


def test_the_statistics_do_not_depend_on_chunks(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading in chunks of 7 frames gives the same windows and statistics."""
    _, whole = opened()
    monkeypatch.setattr(windows, "FRAMES_AT_ONCE", 7)
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 7 * 64)
    _, pieces = opened()
    assert torch.equal(whole.train.stimulus, pieces.train.stimulus)
    assert pieces.norm_stats["mean"] == pytest.approx(whole.norm_stats["mean"], 1e-14)
    assert pieces.norm_stats["std"] == pytest.approx(whole.norm_stats["std"], 1e-12)


# --- types ------------------------------------------------------------------------


def test_uint8_and_float32_storage_give_equal_bits(opened: Callable[..., Any]) -> None:
    """The inputs of all splits are the same bits, and uint8 takes a quarter."""
    _, small = opened(stim_storage="uint8")
    _, large = opened(stim_storage="float32")
    for split in ("train", "val", "test"):
        one, other = (everything(getattr(data, split)) for data in (small, large))
        assert torch.equal(one.inputs, other.inputs)
    assert small.train.stimulus.element_size() == 1
    assert large.train.stimulus.element_size() == 4


@pytest.mark.parametrize(
    ("stored", "held"),
    [
        (np.uint8, torch.uint8),
        (np.float16, torch.float16),
        (np.float32, torch.float32),
        (np.float64, torch.float32),
        (np.int16, torch.float32),
    ],
)
def test_auto_keeps_the_type_of_the_file(
    opened: Callable[..., Any], stored: Any, held: torch.dtype
) -> None:
    """Auto holds uint8, float16 and float32 as they are, others as float32."""
    _, data = opened({"dtype": stored})
    assert data.train.stimulus.dtype is held


def test_inputs_and_targets_are_float32(opened: Callable[..., Any]) -> None:
    """Models get float32, whatever the file holds."""
    _, data = opened({"dtype": np.float64})
    batch = data.train.batch(torch.arange(2))
    assert (batch.inputs.dtype, batch.targets.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("value", [0.5, 300.0, -1.0])
def test_uint8_storage_refuses_what_it_cannot_hold(
    opened: Callable[..., Any], value: float
) -> None:
    """A grey level that is no integer from 0 to 255 is refused by name."""
    frames = np.zeros((135, 8, 8))
    frames[9, 1, 1] = value
    with pytest.raises(DataError, match="stim_storage: /train/stimulus") as caught:
        opened({"changes": {"train/stimulus": frames}}, stim_storage="uint8")
    assert "movie.h5" in str(caught.value)


# --- what is refused --------------------------------------------------------------

RATES = np.ones((3, 135))


def with_value(value: float) -> np.ndarray:
    """Rates of which cell 1 has a value at bin 17."""
    rates = RATES.copy()
    rates[1, 17] = value
    return rates


RATE = "train/response/firing_rate_10ms"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "missing stimulus": ({"train/stimulus": None}, {}, ["/train/stimulus", "time"]),
    "missing time": ({"test/time": None}, {}, ["/test/time", "missing"]),
    "missing response": (
        {RATE: None},
        {},
        ["/train/response/firing_rate_10ms", "missing", "firing_rate_5ms"],
    ),
    "flat stimulus": (
        {"train/stimulus": np.zeros((135, 64))},
        {},
        ["/train/stimulus", "(135, 64)"],
    ),
    "other frames": ({}, {"img_shape": [4, 9, 7]}, ["8×8", "[4, 9, 7]"]),
    "other test frames": (
        {"test/stimulus": np.zeros((40, 9, 8))},
        {},
        ["/test/stimulus", "9×8", "[4, 8, 8]"],
    ),
    "text": (
        {"train/stimulus": np.full((135, 8, 8), b"a")},
        {},
        ["/train/stimulus", "|S1"],
    ),
    "complex": ({RATE: RATES + 1j}, {}, [RATE, "complex128"]),
    "nan": ({RATE: with_value(np.nan)}, {}, [RATE, "nan", "cell 1", "bin 17"]),
    "infinity": ({RATE: with_value(np.inf)}, {}, [RATE, "inf", "cell 1", "bin 17"]),
    "negative": ({RATE: with_value(-1.0)}, {}, [RATE, "negative", "cell 1", "bin 17"]),
    "few bins": ({RATE: np.ones((3, 130))}, {}, [RATE, "130", "135"]),
    "many bins": ({RATE: np.ones((3, 137))}, {}, [RATE, "137", "135"]),
    "time's length": ({"train/time": np.arange(134.0)}, {}, ["/train/time", "134"]),
    "cells of the splits": ({RATE: np.ones((2, 135))}, {}, ["/train has 2", "/test 3"]),
    "cell out of range": ({}, {"cells": [0, 7, 3]}, ["cells", "7", "3", "0 to 2"]),
    "no window": ({}, {"img_shape": [50, 8, 8]}, ["/test", "50", "img_shape"]),
    "no training window": ({}, {"val_p": 0.97}, ["val_p", "0.97", "131"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_refused_by_name(opened: Callable[..., Any], case: str) -> None:
    """The error names the file, the data set and the values."""
    changes, keys, texts = REFUSED[case]
    with pytest.raises(DataError) as caught:
        opened({"changes": changes}, **keys)
    for text in ["movie.h5", *texts]:
        assert text in str(caught.value)


def test_blocks_that_do_not_divide_are_refused(opened: Callable[..., Any]) -> None:
    """135 frames are no 4 equal blocks, and both numbers are said."""
    with pytest.raises(DataError, match=r"135 frames.*4 equal blocks"):
        opened({"n_blocks": 4})


@pytest.mark.parametrize(
    ("split", "value"), [("train", np.nan), ("test", np.inf), ("train", -np.inf)]
)
def test_a_stimulus_that_is_not_finite_is_refused(
    opened: Callable[..., Any], split: str, value: float
) -> None:
    """NaN or infinity in a stimulus is named with file and data set."""
    frames = np.ones((135 if split == "train" else 40, 8, 8))
    frames[11, 2, 3] = value
    with pytest.raises(DataError, match=f"movie.h5.*/{split}/stimulus"):
        opened({"changes": {f"{split}/stimulus": frames}})


def test_several_problems_come_together(opened: Callable[..., Any]) -> None:
    """Two wrong data sets are told in one error."""
    changes = {"train/time": np.arange(3.0), "test/stimulus": None}
    with pytest.raises(DataError) as caught:
        opened({"changes": changes})
    assert len(caught.value.problems) >= 2
    assert all("movie.h5" in problem for problem in caught.value.problems)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_no_hdf5_is_refused(
    tmp_path: Path, retina_hyps: Any, content: bytes
) -> None:
    """Bytes that are no HDF5, or a mere beginning of it, are named with the file."""
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "movie.h5").write_bytes(content)
    with pytest.raises(DataError, match=r"movie\.h5: not a readable HDF5 file"):
        datas.inspect_data(retina_hyps(tmp_path))


def test_a_truncated_file_is_refused(
    recording: Path, tmp_path: Path, retina_hyps: Any
) -> None:
    """The first half of a recording is no recording."""
    content = (recording / "rec" / "movie.h5").read_bytes()
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "movie.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"movie\.h5"):
        datas.open_data(retina_hyps(tmp_path), CPU)


def test_absent_files_are_named_with_what_is_there(
    recording: Path, retina_hyps: Any
) -> None:
    """A wrong root, data set or stimulus is told, with the nearest name."""
    with pytest.raises(DataError, match=r"data_root: no folder .*nowhere.*data_root"):
        datas.inspect_data(retina_hyps(recording / "nowhere"))
    with pytest.raises(DataError, match=r"dataset: no 'rac'.*'rec'"):
        datas.inspect_data(retina_hyps(recording, dataset="rac"))
    with pytest.raises(DataError, match=r"stim_type: no movies\.h5.*'movie'"):
        datas.inspect_data(retina_hyps(recording, stim_type="movies"))


def test_the_environment_gives_the_data_root(
    recording: Path, retina_hyps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the key, GRIDRUN_DATA holds the data, and errors name it."""
    hyps = retina_hyps(recording, data_root=None)
    monkeypatch.setenv("GRIDRUN_DATA", str(recording))
    assert datas.inspect_data(hyps).n_units == 3
    monkeypatch.setenv("GRIDRUN_DATA", str(recording / "nowhere"))
    with pytest.raises(DataError, match="GRIDRUN_DATA"):
        datas.inspect_data(hyps)


# --- what the reference refuses beyond --------------------------------------------

GREY = np.arange(135 * 64).reshape(135, 8, 8) % 251
BEYOND: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "time not increasing": (
        {"train/time": np.r_[0:60, 59, 61:135] * 0.01},
        {},
        ["/train/time", "60"],
    ),
    "constant stimulus": (
        {"train/stimulus": np.full((135, 8, 8), 7, np.uint8)},
        {},
        ["/train/stimulus", "constant"],
    ),
    "short block": (
        {"train/time": np.r_[0:3, 1000:1132] * 0.01},
        {},
        ["/train", "block"],
    ),
    "centre outside": (
        {"centers": np.array([[3, 3], [3, 8], [3, 3]])},
        {"convgc": True},
        ["centers", "8"],
    ),
    "nan in the stimulus": (
        {"train/stimulus": np.where(np.arange(135)[:, None, None] == 9, np.nan, GREY)},
        {},
        ["/train/stimulus", "64", "frame 9, row 0, column 0"],
    ),
    "not bytes": (
        {"train/stimulus": GREY + 0.5},
        {"stim_storage": "uint8"},
        ["stim_storage", "/train/stimulus"],
    ),
    "centres of three numbers": (
        {"centers": np.zeros((3, 3))},
        {"convgc": True},
        ["/centers", "(3, 3)"],
    ),
    "no cell": (
        {RATE: np.zeros((0, 135))},
        {},
        [RATE, "no cell"],
    ),
    "count of nans": (
        {RATE: np.where(np.arange(135) > 100, np.nan, RATES)},
        {},
        [RATE, "102", "cell 0", "bin 101"],
    ),
}


@pytest.mark.parametrize("case", BEYOND)
def test_conditions_of_the_reference_are_refused(
    opened: Callable[..., Any], case: str
) -> None:
    """Each condition of the table of data.md, section 1, is a DataError."""
    changes, keys, texts = BEYOND[case]
    with pytest.raises(DataError) as caught:
        opened({"changes": changes}, **keys)
    for text in ["movie.h5", *texts]:
        assert text in str(caught.value)


# --- centres and the shipped recording --------------------------------------------


def test_curated_cells_have_their_centres(
    tmp_path: Path, write_recording: Any, retina_hyps: Any
) -> None:
    """A public recording without /centers takes its cells' places from the table."""
    path = tmp_path / "15-10-07" / "movie.h5"
    write_recording(path, 132, 40, (50, 50), n_cells=9, centers=False)
    keys = {"dataset": "15-10-07", "img_shape": [4, 50, 50]}
    hyps = retina_hyps(tmp_path, cells=[4, 0], **keys)
    assert datas.inspect_data(hyps).centers == ((31, 20), (21, 18))
    unknown = retina_hyps(tmp_path, cells=[4, 8], **keys)
    assert datas.inspect_data(unknown).centers is None


def test_public_recordings_without_jumps_have_six_blocks(
    tmp_path: Path, write_recording: Any, retina_hyps: Any
) -> None:
    """15-10-07 is cut into 6 equal blocks where its file does not say."""
    path = tmp_path / "15-10-07" / "movie.h5"
    write_recording(path, 132, 40, (50, 50), n_cells=5, centers=False)
    hyps = retina_hyps(tmp_path, dataset="15-10-07", img_shape=[4, 50, 50])
    starts = datas.inspect_recording(hyps).windows
    every = recordings.equal_blocks(132, 6)
    inside = windows.window_starts(every, 4, 1)
    assert {*starts.train, *starts.val} <= set(inside)
    assert len(starts.train) > 0


@pytest.mark.parametrize("stim_type", ["naturalscene", "whitenoise"])
def test_the_shipped_recording_opens(retina_hyps: Any, stim_type: str) -> None:
    """data/sim-tiny has the counts of its sizes and its cells' centres."""
    keys = {"dataset": "sim-tiny", "stim_type": stim_type, "img_shape": [40, 12, 12]}
    data = datas.open_data(retina_hyps(SHIPPED, **keys), CPU)
    assert len(data.train) + len(data.val) + 43 == 2000 - 40
    assert (len(data.val), len(data.test)) == (196, 560)
    with h5py.File(SHIPPED / "sim-tiny" / f"{stim_type}.h5") as file:
        centers = [tuple(center) for center in file["centers"][:].tolist()]
        rate = file["train/response/firing_rate_10ms"][2, 40]
    assert [tuple(center) for center in data.info.centers] == centers
    assert float(data.train.targets[0, 2]) == pytest.approx(rate, rel=1e-6)


def test_inspecting_and_opening_tell_the_same(
    recording: Path, retina_hyps: Any
) -> None:
    """Facts found without the stimulus are those of the opened data."""
    hyps = retina_hyps(recording)
    info, data = datas.inspect_data(hyps), datas.open_data(hyps, CPU)
    assert info == data.info
    assert info.n_samples == {
        split: len(getattr(data, split)) for split in ("train", "val", "test")
    }
