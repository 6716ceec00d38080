"""The virtual retina: equations, files and the command."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import signal, stats

from gridrun.errors import ConfigError, DataError
from torchdeepretina.simulate import (
    Grey,
    Recipe,
    Size,
    add_arguments,
    fit_retina,
    main,
    read_truth,
    respond,
    simulate,
)
from torchdeepretina.simulate.interneurons import interneuron_traces
from torchdeepretina.simulate.kernels import (
    PARAMETERS,
    pool_time,
    subunit_space,
    subunit_time,
)
from torchdeepretina.simulate.recipe import SIZES
from torchdeepretina.simulate.recording import triggered_sum, write_recording
from torchdeepretina.simulate.retina import build_retina, divide, drive_and_pool
from torchdeepretina.simulate.spikes import poisson_counts, smooth
from torchdeepretina.simulate.stimuli import (
    gaze,
    look,
    naturalscene,
    scenes,
    whitenoise,
)

SHIPPED = Path(__file__).parents[2] / "data" / "sim-tiny"
MOVIES = ("naturalscene", "whitenoise")
RATES = ("firing_rate_5ms", "firing_rate_10ms", "firing_rate_20ms")
TWO_BLOCKS = Size(600, 2, 120, 12, 12, 4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three tiny files of seed 7."""
    folder = tmp_path_factory.mktemp("tiny")
    simulate(folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def small_noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small white-noise recording."""
    folder = tmp_path_factory.mktemp("small")
    return simulate(folder, size="small", stim="whitenoise", progress=False)[0]


def in_memory(recipe: Recipe, stim: Any = "naturalscene") -> h5py.File:
    """A recording that never reaches the disk."""
    file = h5py.File("memory.h5", "w", driver="core", backing_store=False)
    write_recording(file, stim, recipe, lambda n_frames: None)
    return file


def contents(path: Path) -> dict[str, np.ndarray]:
    """All data sets of a file by path."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def attributes(path: Path) -> dict[str, Any]:
    """All attributes of a file by path."""
    with h5py.File(path) as file:
        found = {f"/{key}": value for key, value in file.attrs.items()}
        file.visititems(
            lambda name, item: found.update(
                {f"{name}/{key}": value for key, value in item.attrs.items()}
            )
        )
    return found


def noise_movie(n_frames: int, seed: int = 1, side: int = 12) -> np.ndarray:
    """Independent grey levels (T, H, W)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n_frames, side, side), dtype=np.uint8)


# Files


def test_same_seed_gives_same_bytes(tiny: Path, tmp_path: Path) -> None:
    """Two simulations with one seed write identical files."""
    for path in simulate(tmp_path, progress=False):
        assert path.read_bytes() == (tiny / path.name).read_bytes(), path.name


def test_other_seed_gives_other_data(tiny: Path, tmp_path: Path) -> None:
    """Another seed changes movies, cells, spikes and potentials."""
    simulate(tmp_path, seed=8, progress=False)
    for name, keys in {
        "naturalscene": ["train/stimulus", "test/stimulus", "truth/calibration/theta"],
        "whitenoise": ["train/stimulus", "test/stimulus", "train/response/binned"],
        "interneurons": ["boxes/stimuli", "boxes/detrended_membrane_potential"],
    }.items():
        before = contents(tiny / f"{name}.h5")
        after = contents(tmp_path / f"{name}.h5")
        for key in keys:
            assert not np.array_equal(before[key], after[key]), f"{name} {key}"


def test_streams_of_one_seed_are_independent() -> None:
    """Train and test movies and spikes of one seed never share numbers."""
    file = in_memory(Recipe(Size(300, 1, 300, 12, 12, 4), seed=7), "whitenoise")
    train, test = file["train/stimulus"][:], file["test/stimulus"][:]
    assert 0.45 < np.mean(train == test) < 0.55


@pytest.mark.parametrize("stim", MOVIES)
def test_shipped_files_are_what_the_code_makes(tiny: Path, stim: str) -> None:
    """data/sim-tiny is the output of this version of the simulator."""
    assert_same_content(SHIPPED / f"{stim}.h5", tiny / f"{stim}.h5")


def test_shipped_interneurons_are_what_the_code_makes(tiny: Path) -> None:
    """The shipped interneuron file is the output of this version too."""
    assert_same_content(SHIPPED / "interneurons.h5", tiny / "interneurons.h5")


def assert_same_content(shipped: Path, made: Path) -> None:
    expected, found = contents(shipped), contents(made)
    assert sorted(expected) == sorted(found)
    for key, values in expected.items():
        assert values.dtype == found[key].dtype, key
        if values.dtype.kind == "f":
            # Sums may differ in the last bits between processors.
            np.testing.assert_allclose(
                found[key], values, rtol=1e-6, atol=1e-6, err_msg=key
            )
        else:
            np.testing.assert_array_equal(found[key], values, err_msg=key)
    for key, value in attributes(shipped).items():
        assert attributes(made)[key] == value, key


def test_equal_file_is_left_alone(tmp_path: Path) -> None:
    """Asking again for what is there writes nothing."""
    paths = simulate(tmp_path, stim="whitenoise", progress=False)
    before = [path.stat() for path in paths]
    assert simulate(tmp_path, stim="whitenoise", progress=False) == paths
    after = [path.stat() for path in paths]
    assert [(s.st_ino, s.st_mtime_ns) for s in after] == [
        (s.st_ino, s.st_mtime_ns) for s in before
    ]


def test_different_file_is_refused_unless_forced(tmp_path: Path) -> None:
    """Files that differ are named with the difference, kept, and replaced by force."""
    (path, _) = simulate(tmp_path, stim="whitenoise", progress=False)
    before = path.read_bytes()
    with pytest.raises(DataError, match="seed is 7, asked 8") as caught:
        simulate(tmp_path, stim="whitenoise", seed=8, progress=False)
    assert len(caught.value.problems) == 2
    assert all("--force" in problem for problem in caught.value.problems)
    with pytest.raises(DataError, match=r"ablate is \[\], asked \['gain'\]"):
        simulate(tmp_path, stim="whitenoise", ablate=["gain"], progress=False)
    with pytest.raises(DataError, match=r"size\.height is 12, asked 20"):
        simulate(tmp_path, stim="whitenoise", size="small", progress=False)
    assert path.read_bytes() == before
    simulate(tmp_path, stim="whitenoise", seed=8, force=True, progress=False)
    assert path.read_bytes() != before
    simulate(tmp_path, stim="whitenoise", seed=8, progress=False)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "incomplete", "not HDF5"])
def test_damaged_file_is_refused_and_mended_by_force(
    tmp_path: Path, damage: str
) -> None:
    """A damaged or foreign file counts as different."""
    (path, _) = simulate(tmp_path, stim="whitenoise", progress=False)
    good = path.read_bytes()
    if damage == "truncated":
        os.truncate(path, len(good) // 2)
    elif damage == "not HDF5":
        path.write_text("notes")
    else:
        with h5py.File(path, "a") as file:
            del file.attrs["recipe" if damage == "foreign" else "complete"]
    with pytest.raises(DataError, match=r"whitenoise\.h5: exists") as caught:
        simulate(tmp_path, stim="whitenoise", progress=False)
    assert len(caught.value.problems) == 1
    simulate(tmp_path, stim="whitenoise", force=True, progress=False)
    assert path.read_bytes() == good


def test_failure_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When writing fails midway the folder is as before and the reason is told."""

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torchdeepretina.simulate.recording.write_truth", full_disk)
    with pytest.raises(DataError, match=r"naturalscene\.h5: could not .*No space"):
        simulate(tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    """A file where the folder should be is reported as such."""
    (tmp_path / "name").write_text("")
    with pytest.raises(DataError, match="expected a writable folder"):
        simulate(tmp_path / "name", progress=False)


def test_killed_simulation_leaves_no_half_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a kill no final name exists; the next call works and points at the rest."""
    code = (
        "from pathlib import Path; from torchdeepretina.simulate import simulate;"
        f"simulate(Path({str(tmp_path)!r}), size='full', progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert list(tmp_path.glob(".*.partial"))
    assert not list(tmp_path.glob("*.h5"))
    with caplog.at_level(logging.WARNING):
        simulate(tmp_path, stim="naturalscene", progress=False)
    assert "left by a command that was killed" in caplog.text


# Layout


@pytest.mark.parametrize("stim", MOVIES)
def test_required_datasets_are_there(tiny: Path, stim: str) -> None:
    """A file has every data set of the layout with its shape and type."""
    T, S, C, R = 2_000, 600, 4, 5
    expected: dict[str, tuple[tuple[int, ...], type]] = {
        "train/stimulus": ((T, 12, 12), np.uint8),
        "test/stimulus": ((S, 12, 12), np.uint8),
        "train/time": ((T,), np.float64),
        "test/time": ((S,), np.float64),
        "centers": ((C, 2), np.int32),
        "truth/train/rate": ((C, T), np.float32),
        "truth/test/rate": ((C, S + 1), np.float32),
    }
    for response in ("binned", *RATES):
        expected[f"train/response/{response}"] = ((C, T), np.float64)
        expected[f"test/response/{response}"] = ((C, S + 1), np.float64)
    for cell in range(1, C + 1):
        expected[f"test/repeats/cell{cell:02d}"] = ((R, S + 1), np.float64)
        if stim == "whitenoise":
            expected[f"train/stas/cell{cell:02d}"] = ((40, 12, 12), np.float32)
    found = contents(tiny / f"{stim}.h5")
    for key, (shape, dtype) in expected.items():
        assert (found[key].shape, found[key].dtype) == (shape, dtype), key
        assert np.isfinite(found[key]).all(), key
    known = attributes(tiny / f"{stim}.h5")
    assert known["/dt_s"] == 0.01
    assert known["/um_per_pixel"] == 50
    assert known["train/n_blocks"] == 1
    assert known["truth/seed"] == 7
    assert json.loads(known["truth/parameters"])["retina"]["kappa"] == 4


@pytest.mark.parametrize("stim", MOVIES)
def test_arrays_can_be_mapped_into_memory(tiny: Path, stim: str) -> None:
    """The bytes at a contiguous data set's offset are the array itself."""
    path = tiny / f"{stim}.h5"
    with h5py.File(path) as file:
        for key in ("train/stimulus", "train/response/firing_rate_10ms"):
            data = file[key]
            assert data.chunks is None
            mapped = np.memmap(path, data.dtype, "r", data.id.get_offset(), data.shape)
            np.testing.assert_array_equal(mapped, data[:])


def test_time_jumps_between_blocks() -> None:
    """Frames are 10 ms apart within blocks, and 60 s more between them."""
    file = in_memory(Recipe(TWO_BLOCKS, seed=7))
    steps_s = np.diff(file["train/time"][:])
    assert steps_s[299] == pytest.approx(60.01)
    np.testing.assert_allclose(np.delete(steps_s, 299), 0.01, rtol=1e-9)
    assert file["train"].attrs["n_blocks"] == 2


@pytest.mark.parametrize("stim", MOVIES)
def test_responses_belong_together(tiny: Path, stim: str) -> None:
    """Rates, repeats and spike times all follow from the binned counts."""
    with h5py.File(tiny / f"{stim}.h5") as file:
        counts = file["train/response/binned"][:]
        for name, sd_bins in zip(RATES, (0.5, 1, 2), strict=True):
            rates_hz = file[f"train/response/{name}"][:]
            np.testing.assert_allclose(rates_hz, smooth(counts, sd_bins) / 0.01)
        edges_s = np.append(file["train/time"][:], file["train/time"][-1] + 0.01)
        for cell, row in enumerate(counts):
            times_s = file[f"spikes/cell{cell + 1:02d}"][:]
            assert (np.diff(times_s) > 0).all()
            np.testing.assert_array_equal(np.histogram(times_s, edges_s)[0], row)
            repeats = file[f"test/repeats/cell{cell + 1:02d}"][:]
            assert not np.array_equal(repeats[0], repeats[1])
            np.testing.assert_allclose(
                repeats.mean(axis=0), file["test/response/firing_rate_10ms"][cell]
            )


def test_smoothing_ends_at_the_end_of_a_block() -> None:
    """Spikes of one block do not leak into the rate of the next."""
    file = in_memory(Recipe(TWO_BLOCKS, seed=7))
    counts = file["train/response/binned"][:]
    for name, sd_bins in zip(RATES, (0.5, 1, 2), strict=True):
        parts = [smooth(counts[:, at], sd_bins) for at in TWO_BLOCKS.blocks]
        rates_hz = np.concatenate(parts, axis=1) / 0.01
        np.testing.assert_allclose(file[f"train/response/{name}"][:], rates_hz)
    assert counts[:, 294:306].any()


# Stimuli


def test_whitenoise_holds_binary_checkers_for_three_bins() -> None:
    """White noise has two equally likely levels and changes every third frame."""
    (movie,) = whitenoise(np.random.default_rng(0), 1_000, (12, 12))
    assert movie.shape == (1_000, 12, 12)
    assert sorted(set(movie.ravel().tolist())) == [83, 172]
    assert np.mean(movie == 172) == pytest.approx(0.5, abs=0.01)
    changes = np.diff(movie.astype(int), axis=0).any(axis=(1, 2))
    np.testing.assert_array_equal(np.flatnonzero(changes) % 3, 2)
    assert changes.sum() == 333
    images = movie[::3].reshape(334, -1).astype(float)
    assert np.abs(np.corrcoef(images[:-1].ravel(), images[1:].ravel())[0, 1]) < 0.03


def test_scenes_have_power_of_natural_images() -> None:
    """Scenes have mean 0, s.d. 1 and power falling with the square of frequency."""
    images = scenes(np.random.default_rng(0), 48)
    assert images.shape == (32, 48, 48)
    np.testing.assert_allclose(images.mean(axis=(1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(images.std(axis=(1, 2)), 1)
    power = np.abs(np.fft.fft2(images)) ** 2
    np.testing.assert_allclose(power[:, 0, 1], 16 * power[:, 4, 0])
    assert not np.allclose(images[0], images[1])


def test_naturalscene_looks_like_the_recordings() -> None:
    """Grey levels have about the mean and s.d. of the recorded movies, 50 ± 49."""
    images = scenes(np.random.default_rng(0), 80)
    chunks = naturalscene(np.random.default_rng(1), 30_000, (20, 20), images)
    movie = np.concatenate([*chunks])
    assert movie.mean() == pytest.approx(50, abs=5)
    assert movie.std() == pytest.approx(49, abs=5)
    changes = np.diff(movie[:300].astype(int), axis=0).any(axis=(1, 2))
    assert (np.flatnonzero(changes) % 3 == 2).all()


def test_gaze_jumps_every_second_and_drifts_between() -> None:
    """Saccades come each second; steps between them have s.d. .3 px per axis."""
    scene, corner = gaze(np.random.default_rng(0), 60_000, 1_000)
    step = np.diff(corner, axis=0)
    step -= 1_000 * np.rint(step / 1_000)
    is_jump = np.abs(step).max(axis=1) > 2.5
    at_s = (np.flatnonzero(is_jump) + 1) * 0.03
    assert len(at_s) == pytest.approx(599, abs=2)
    assert (at_s % 1 < 0.0301).all()
    assert step[~is_jump].std() == pytest.approx(0.3, rel=0.02)
    assert set(scene) == set(range(32))
    assert ((corner >= 0) & (corner < 1_000)).all()


def test_gaze_interpolates_between_pixels_and_wraps() -> None:
    """A ramp seen half a pixel on shows the means; beyond the edge it starts again."""
    image = np.log(np.arange(1.0, 65).reshape(1, 8, 8) / 33)
    scene = np.zeros(3, np.int64)
    corner = np.array([[2.0, 3.0], [2.5, 3.0], [7.0, 7.0]])
    views = look(image, scene, corner, (2, 2))
    np.testing.assert_array_equal(views[0], [[20, 21], [28, 29]])
    expected = np.rint(np.sqrt([[20 * 28, 21 * 29], [28 * 36, 29 * 37]]))
    np.testing.assert_array_equal(views[1], expected)
    np.testing.assert_array_equal(views[2], [[64, 57], [8, 1]])


# Equations


def test_space_kernel_is_center_minus_surround() -> None:
    """The spatial kernel is G(.8 px) - .6·G(2.4 px) on 17×17, of unit norm."""
    squares = np.add.outer(np.arange(-8, 9) ** 2, np.arange(-8, 9) ** 2)
    center, surround = (np.exp(-0.5 * squares / sd**2) for sd in (0.8, 2.4))
    expected = center / center.sum() - 0.6 * surround / surround.sum()
    expected /= np.sqrt((expected**2).sum())
    np.testing.assert_allclose(subunit_space(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("kind", "first_ms", "second_ms", "weight", "peak_lag"),
    [("fast", 60, 110, 0.5, 6), ("slow", 85, 150, 0.35, 8)],
)
def test_time_kernels_are_tapered_differences_of_bumps(
    kind: Any, first_ms: float, second_ms: float, weight: float, peak_lag: int
) -> None:
    """Temporal kernels follow their formula, tap by tap."""
    expected = []
    for lag in range(1, 26):
        tau_ms = 10 * lag
        value = (tau_ms / first_ms) ** 8 * np.exp(8 - 8 * tau_ms / first_ms)
        value -= weight * (
            (tau_ms / second_ms) ** 8 * np.exp(8 - 8 * tau_ms / second_ms)
        )
        if lag > 20:
            value *= 0.5 * (1 + np.cos(np.pi * (lag - 20) / 6))
        expected.append(value)
    kernel = subunit_time(kind)
    np.testing.assert_allclose(kernel, expected / np.linalg.norm(expected), rtol=1e-10)
    assert np.argmax(kernel) + 1 == peak_lag


def test_pool_kernel_is_an_alpha_function() -> None:
    """The gain pool's kernel is ∝ τ·exp(-τ/30 ms) over 15 bins, of sum 1."""
    expected = np.array([lag * np.exp(-lag / 3) for lag in range(1, 16)])
    np.testing.assert_allclose(pool_time(), expected / expected.sum(), rtol=1e-10)


def test_equations_match_a_loop_over_pixels() -> None:
    """The fast response equals the equations written out with plain convolutions."""
    retina = build_retina((12, 12), 4, np.random.default_rng(0))
    s = np.random.default_rng(1).standard_normal((47, 12, 12))
    v, g = drive_and_pool(s, retina)
    assert v.shape == g.shape == (4, 8)
    spatial = np.stack(
        [signal.convolve2d(frame, subunit_space(), mode="same") for frame in s]
    )
    for cell in range(4):
        k = subunit_time(retina.kinds[cell])

        def u(t: int, k: np.ndarray = k, cell: int = cell) -> np.ndarray:
            terms = [k[lag - 1] * spatial[t - lag] for lag in range(1, 26)]
            return np.sum(terms, axis=0) * retina.polarity[cell]

        for t in (40, 43, 47):
            expected_v = (retina.excitation[cell] * np.maximum(u(t), 0)).sum()
            expected_g = sum(
                pool_time()[lag - 1] * (retina.pool[cell] * np.abs(u(t - lag))).sum()
                for lag in range(1, 16)
            )
            assert v[cell, t - 40] == pytest.approx(expected_v, rel=1e-10)
            assert g[cell, t - 40] == pytest.approx(expected_g, rel=1e-10)


def test_output_follows_the_equations(tiny: Path) -> None:
    """Stored rates follow from v and g by division, threshold and dead time."""
    path = tiny / "naturalscene.h5"
    retina, fitted = read_truth(path)
    with h5py.File(path) as file:
        x = file["train/stimulus"][:].astype(float)
        rate_hz = file["truth/train/rate"][:]
    s = (x - x.mean()) / (x.std() + 1e-7)
    v, g = drive_and_pool(np.concatenate([np.zeros((40, 12, 12)), s[:-1]]), retina)
    y = v / (1 + 4 * g / g.mean(axis=1, keepdims=True))
    z = (y - y.mean(axis=1, keepdims=True)) / y.std(axis=1, keepdims=True)
    theta, a = retina.theta[:, None], fitted.amplitude_hz[:, None]
    r = a * np.log(1 + np.exp(4 * (z - theta))) / 4
    np.testing.assert_allclose(rate_hz, r / (1 + 0.004 * r), rtol=1e-5)
    assert rate_hz.max() < 250
    assert ((theta >= 0.5) & (theta <= 1.2)).all()
    assert ((retina.target_hz >= 5) & (retina.target_hz <= 15)).all()


@pytest.mark.parametrize("stim", MOVIES)
def test_training_mean_is_the_target(tiny: Path, stim: str) -> None:
    """The mean rate of every cell over training is its target within 1e-3 Hz."""
    with h5py.File(tiny / f"{stim}.h5") as file:
        mean_hz = file["truth/train/rate"][:].astype(float).mean(axis=1)
        target_hz = file["truth/calibration/target_hz"][:]
    np.testing.assert_allclose(mean_hz, target_hz, atol=1e-3)


@pytest.mark.parametrize("t", [41, 90, 120])
def test_rate_depends_on_forty_frames_before_it_only(tiny: Path, t: int) -> None:
    """Frames outside t-40 … t-1 leave the rate at t as it is; those inside do not."""
    retina, fitted = read_truth(tiny / "naturalscene.h5")
    movie, other = noise_movie(120), noise_movie(120, seed=2)
    rate_hz = respond(movie, retina, fitted)[:, t]
    outside = other.copy()
    outside[t - 40 : t] = movie[t - 40 : t]
    np.testing.assert_allclose(
        respond(outside, retina, fitted)[:, t], rate_hz, rtol=1e-12
    )
    for inside in (t - 40, t - 20, t - 1):
        changed = movie.copy()
        changed[inside] = other[inside]
        difference = respond(changed, retina, fitted)[:, t] - rate_hz
        assert np.abs(difference).max() > 1e-9, f"frame {inside}"


def test_blocks_start_from_grey(tiny: Path) -> None:
    """The second block's rates are those of its frames alone."""
    recipe = Recipe(TWO_BLOCKS, seed=7)
    file = in_memory(recipe)
    retina, fitted = fit_retina(recipe, "naturalscene")
    alone_hz = respond(file["train/stimulus"][300:], retina, fitted)[:, :300]
    np.testing.assert_allclose(file["truth/train/rate"][:, 300:], alone_hz, rtol=1e-6)
    grey = np.full((60, 12, 12), fitted.grey.mean)
    later_hz = respond(
        np.concatenate([grey, file["train/stimulus"][300:]]), retina, fitted
    )
    np.testing.assert_allclose(later_hz[:, 60:360], alone_hz, rtol=1e-9)


def test_chunks_do_not_change_results(tiny: Path) -> None:
    """Movies, rates and averages are the same whatever the length of chunks."""
    retina, fitted = read_truth(tiny / "naturalscene.h5")
    movie = noise_movie(200)
    whole = respond(movie, retina, fitted)
    for chunk_bins in (1, 37, 200):
        parts = respond(movie, retina, fitted, chunk_bins=chunk_bins)
        np.testing.assert_allclose(parts, whole, rtol=1e-10)
    sums = [
        triggered_sum(
            movie,
            slice(0, 200),
            whole[:, :200],
            fitted.grey,
            lambda n_bins: None,
            chunk_bins=n,
        )
        for n in (3_000, 37)
    ]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-9, atol=1e-9)
    images = scenes(np.random.default_rng(0), 48)
    for chunk_frames in (3, 99):
        for make, more in ((whitenoise, ()), (naturalscene, (images,))):
            movies = [
                np.concatenate(
                    [
                        *make(
                            np.random.default_rng(5),
                            500,
                            (12, 12),
                            *more,
                            chunk_frames=n,
                        )
                    ]
                )
                for n in (3_000, chunk_frames)
            ]
            np.testing.assert_array_equal(*movies)


def test_ablating_gain_leaves_no_division() -> None:
    """Without gain control twice the contrast is twice the drive; with it, less."""
    s = np.random.default_rng(1).standard_normal((300, 12, 12))
    growth = {}
    for ablate in ((), ("gain",)):
        retina = build_retina((12, 12), 4, np.random.default_rng(0), ablate)
        v, g = drive_and_pool(s, retina)
        pool_mean = g.mean(axis=1)
        once = divide(v, g, pool_mean, retina.kappa)
        twice = divide(*drive_and_pool(2 * s, retina), pool_mean, retina.kappa)
        growth[ablate] = twice / once
    np.testing.assert_allclose(growth["gain",], 2)
    assert (growth[()] < 1.5).all()


def test_ablating_subunits_leaves_a_linear_drive() -> None:
    """Without rectification the drive of the negative is the negative drive."""
    s = np.random.default_rng(1).standard_normal((100, 12, 12))
    linear = build_retina((12, 12), 4, np.random.default_rng(0), ("subunits",))
    full = build_retina((12, 12), 4, np.random.default_rng(0))
    v, g = drive_and_pool(s, linear)
    v_negative, g_negative = drive_and_pool(-s, linear)
    np.testing.assert_allclose(v_negative, -v)
    np.testing.assert_allclose(g_negative, g)
    assert (drive_and_pool(s, full)[0] >= 0).all()
    np.testing.assert_array_equal(full.centers, linear.centers)
    np.testing.assert_array_equal(full.theta, linear.theta)


def test_ablations_reach_the_files(tmp_path: Path) -> None:
    """Both ablations together make an LN retina with the same cells and movies."""
    simulate(tmp_path, ablate=["subunits", "gain"], progress=False)
    path = tmp_path / "whitenoise.h5"
    retina, _ = read_truth(path)
    assert (retina.kappa, retina.is_rectified) == (0, False)
    full, ablated = contents(SHIPPED / "whitenoise.h5"), contents(path)
    np.testing.assert_array_equal(full["train/stimulus"], ablated["train/stimulus"])
    np.testing.assert_array_equal(full["centers"], ablated["centers"])
    assert not np.allclose(full["truth/test/rate"], ablated["truth/test/rate"])


def test_cells_have_their_types_and_places() -> None:
    """Types come in turn; centres fill the middle half and no more."""
    retina = build_retina((50, 40), 900, np.random.default_rng(0))
    assert retina.polarity[:9].tolist() == [-1, -1, 1, -1, 1, -1, -1, 1, -1]
    assert retina.kinds[9:14] == ("fast", "slow", "fast", "fast", "slow")
    assert retina.centers.min(axis=0).tolist() == [12, 10]
    assert retina.centers.max(axis=0).tolist() == [37, 29]
    np.testing.assert_allclose(retina.excitation.sum(axis=(1, 2)), 1)
    np.testing.assert_allclose(retina.pool.sum(axis=(1, 2)), 1)
    peaks = [np.unravel_index(w.argmax(), w.shape) for w in retina.excitation]
    np.testing.assert_array_equal(peaks, retina.centers)


# Spikes


def test_counts_are_the_poisson_quantiles() -> None:
    """Counts equal scipy's inverse distribution at the same uniform numbers."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 2.5, 20_000)
    mean[:10] = 0
    uniform = rng.random(20_000)
    expected = stats.poisson.ppf(uniform[10:], mean[10:])
    np.testing.assert_array_equal(poisson_counts(mean, uniform)[10:], expected)
    assert (poisson_counts(mean, uniform)[:10] == 0).all()


def test_smoothing_is_a_cut_gaussian_with_fair_edges() -> None:
    """An impulse becomes the cut Gaussian; a constant stays constant to the edges."""
    np.testing.assert_allclose(smooth(np.full((2, 40), 3), 2), 3)
    impulse = np.zeros((1, 41))
    impulse[0, 20] = 1
    for sd_bins, radius in ((0.5, 2), (1, 3), (2, 6)):
        taps = smooth(impulse, sd_bins)[0]
        np.testing.assert_array_equal(
            np.flatnonzero(taps), 20 + np.arange(-radius, radius + 1)
        )
        assert taps.sum() == pytest.approx(1)
        assert taps[21] / taps[20] == pytest.approx(np.exp(-0.5 / sd_bins**2))


def test_repeats_tend_to_the_true_rate() -> None:
    """Over many repeats the mean count is the rate, with Poisson variance."""
    size = Size(600, 1, 300, 12, 12, 4, n_repeats=500)
    file = in_memory(Recipe(size, seed=7))
    mean = file["truth/test/rate"][:].astype(float) * 0.01
    deviation = (file["test/response/binned"][:] - mean) / np.sqrt(mean / 500)
    assert deviation.mean() == pytest.approx(0, abs=0.1)
    assert (deviation[mean > 0.01] ** 2).mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("stim", MOVIES)
def test_training_spikes_follow_the_true_rate(tiny: Path, stim: str) -> None:
    """Each cell's training spikes number as its rate says, and in its busy bins."""
    with h5py.File(tiny / f"{stim}.h5") as file:
        counts = file["train/response/binned"][:]
        expected = file["truth/train/rate"][:].astype(float) * 0.01
    n_spikes, n_expected = counts.sum(axis=1), expected.sum(axis=1)
    assert (np.abs(n_spikes - n_expected) < 4 * np.sqrt(n_expected)).all()
    for count, rate in zip(counts, expected, strict=True):
        assert np.corrcoef(count, rate)[0, 1] > 0.3


def test_stas_show_centre_sign_and_lag(small_noise: Path) -> None:
    """White-noise STAs peak at each centre, with the cell's sign and latency."""
    retina, _ = read_truth(small_noise)
    with h5py.File(small_noise) as file:
        stas = [file[f"train/stas/cell{cell:02d}"][:] for cell in range(1, 7)]
        np.testing.assert_array_equal(file["centers"][:], retina.centers)
    for cell, sta in enumerate(stas):
        oldest, *place = np.unravel_index(np.abs(sta).argmax(), sta.shape)
        assert np.abs(place - retina.centers[cell]).max() <= 1, f"cell {cell}"
        assert np.sign(sta[oldest, *place]) == retina.polarity[cell], f"cell {cell}"
        lag = {"fast": 6, "slow": 8}[retina.kinds[cell]]
        assert abs((40 - oldest) - lag) <= 1, f"cell {cell}"


def test_stored_stas_are_the_average_of_windows(tiny: Path) -> None:
    """A stored STA is the sum over windows of centred counts times frames."""
    with h5py.File(tiny / "whitenoise.h5") as file:
        x = file["train/stimulus"][:].astype(float)
        counts = file["train/response/binned"][1]
        stored = file["train/stas/cell02"][:]
    s = np.concatenate([np.zeros((40, 12, 12)), (x - x.mean()) / x.std()])
    centred = counts - counts.mean()
    total = sum(centred[t] * s[t : t + 40] for t in range(2_000))
    np.testing.assert_allclose(
        stored, total / np.abs(centred).sum(), rtol=1e-4, atol=1e-6
    )


# Truth and interneurons


@pytest.mark.parametrize("stim", MOVIES)
def test_truth_can_be_read_back(tiny: Path, stim: Any) -> None:
    """The retina in a file reproduces the file's test rate, and so does a new fit."""
    path = tiny / f"{stim}.h5"
    with h5py.File(path) as file:
        movie, rate_hz = file["test/stimulus"][:], file["truth/test/rate"][:]
    for retina, fitted in (
        read_truth(path),
        fit_retina(Recipe(SIZES["tiny"], seed=7), stim),
    ):
        np.testing.assert_allclose(respond(movie, retina, fitted), rate_hz, rtol=1e-6)


def test_truth_of_another_file_is_an_error(tmp_path: Path) -> None:
    """Files without a truth are refused by name."""
    path = tmp_path / "recording.h5"
    with h5py.File(path, "w") as file:
        file["train/time"] = [0.0]
    with pytest.raises(DataError, match="no group /truth"):
        read_truth(path)
    with pytest.raises(DataError, match=r"none\.h5: cannot be read"):
        read_truth(tmp_path / "none.h5")


def test_interneurons_hold_noisy_subunits_and_pools(tiny: Path) -> None:
    """Potentials are the model's traces on the box movie plus noise of SNR 4."""
    found = contents(tiny / "interneurons.h5")
    boxes = found["boxes/stimuli"]
    potentials = found["boxes/detrended_membrane_potential"]
    assert (boxes.shape, boxes.dtype) == ((5_000, 10, 10), np.uint8)
    assert set(np.unique(boxes)) == {0, 1}
    assert potentials.shape == (6, 5_000)
    assert [key for key in found if "rfs" in key] == [
        f"boxes/rfs/cell0{n}" for n in range(1, 7)
    ]
    movie = np.pad(2.0 * boxes - 1, ((0, 0), (1, 1), (1, 1)))
    retina, _ = read_truth(tiny / "naturalscene.h5")
    traces = interneuron_traces(movie, retina)
    noise = potentials - traces
    np.testing.assert_allclose(traces.std(axis=1) / noise.std(axis=1), 4, rtol=0.05)
    for trace, potential in zip(traces, potentials, strict=True):
        assert np.corrcoef(trace[40:], potential[40:])[0, 1] > 0.96


def test_interneuron_traces_are_the_subunits_and_pools() -> None:
    """The first three traces are u at the centres, the others g, bin for bin."""
    retina = build_retina((12, 12), 4, np.random.default_rng(0))
    movie = np.random.default_rng(1).standard_normal((90, 12, 12))
    traces = interneuron_traces(movie, retina)
    spatial = [signal.convolve2d(x, subunit_space(), mode="same") for x in movie]
    t = 60
    for cell, (row, column) in enumerate(retina.centers[:3]):
        k = subunit_time(retina.kinds[cell])
        u = sum(k[lag - 1] * spatial[t - lag][row, column] for lag in range(1, 26))
        assert traces[cell, t] == pytest.approx(retina.polarity[cell] * u)
    _, g = drive_and_pool(movie[t - 40 : t], retina)
    np.testing.assert_allclose(traces[3:, t], g[:3, 0])


# Command


def parse(*words: str) -> argparse.Namespace:
    """Arguments of the command."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_command_writes_into_the_data_root(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The option wins over GRIDRUN_DATA, which wins over the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRIDRUN_DATA", str(tmp_path / "variable"))
    caplog.set_level(logging.INFO)
    assert main(parse("v", "--stim", "whitenoise", "--data-root", "~/option")) == 0
    assert (tmp_path / "home/option/v/whitenoise.h5").is_file()
    assert "home/option/v/whitenoise.h5: written" in caplog.text
    assert main(parse("v", "--stim", "whitenoise")) == 0
    assert (tmp_path / "variable/v/whitenoise.h5").is_file()
    assert not (tmp_path / "variable/v/naturalscene.h5").exists()
    monkeypatch.delenv("GRIDRUN_DATA")
    caplog.clear()
    assert main(parse("v", "--stim", "whitenoise", "--ablate", "gain,subunits")) == 0
    path = tmp_path / "home/experiments/data/v/whitenoise.h5"
    assert read_truth(path)[0].kappa == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "whitenoise: 100%" in captured.err


def test_progress_bar_ends_at_its_total(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every bar reaches exactly 100 %, and none is shown unless asked."""
    simulate(tmp_path, progress=True)
    shown = capsys.readouterr().err.replace("\n", "\r").split("\r")
    for kind in (*MOVIES, "interneurons"):
        bar = [text for text in shown if text.startswith(f"{kind}:")][-1]
        done, total = bar.split("| ")[1].split(" [")[0].split("/")
        assert done == total, bar
    simulate(tmp_path, seed=9, force=True, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0b"])
def test_name_must_be_one_folder(tmp_path: Path, name: str) -> None:
    """A name that would leave the data root is refused."""
    with pytest.raises(ConfigError, match="not the name of one folder"):
        main(parse(name, "--data-root", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_named_together(tmp_path: Path) -> None:
    """Unknown stages, sizes and negative seeds are reported at once, near names too."""
    with pytest.raises(ConfigError, match="did you mean 'gain'") as caught:
        simulate(
            tmp_path / "new",
            size="big",  # type: ignore[arg-type]
            ablate=["gian"],
            seed=-1,
        )
    assert len(caught.value.problems) == 3
    assert not (tmp_path / "new").exists()


def test_import_needs_no_torch() -> None:
    """The simulator is usable without loading torch."""
    code = "import sys, torchdeepretina.simulate; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0


def test_small_and_full_sizes_are_those_of_the_design() -> None:
    """The sizes are as documented; blocks divide training evenly."""
    assert SIZES["small"] == Size(20_000, 2, 2_000, 20, 20, 6)
    assert SIZES["full"] == Size(360_000, 6, 6_000, 50, 50, 9)
    assert SIZES["full"].boxes_shape == (38, 38)
    assert SIZES["full"].blocks[5] == slice(300_000, 360_000)
    assert PARAMETERS.kappa == 4
    assert Grey(2, 4).normalise(np.array([6])).tolist() == [1]
