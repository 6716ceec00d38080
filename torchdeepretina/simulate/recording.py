"""A recording of the virtual retina: movies, responses, spikes and the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

import h5py
import numpy as np

from torchdeepretina.simulate import stimuli
from torchdeepretina.simulate.kernels import N_LAGS, PARAMETERS, Floats, Ints
from torchdeepretina.simulate.recipe import (
    BLOCK_GAP_S,
    DT_S,
    SMOOTHING,
    Recipe,
    Size,
    Stim,
    cell_name,
)
from torchdeepretina.simulate.retina import (
    CHUNK_FRAMES,
    Calibration,
    Grey,
    Movie,
    Retina,
    block_drives,
    calibrate,
    padded_frames,
    rates,
    respond,
)
from torchdeepretina.simulate.spikes import poisson_counts, smooth, spike_times
from torchdeepretina.simulate.truth import write_origin, write_truth

REPEATS_RESPONSE: Final = "firing_rate_10ms"
# Called with the number of frames that have been dealt with.
Progress = Callable[[int], object]


def work_frames(stim: Stim, size: Size) -> int:
    """Frames that `write_recording` reports to its progress: once per pass."""
    n_train_passes = 3 if stim == "whitenoise" else 2
    return n_train_passes * size.n_train_frames + 2 * size.n_test_frames


def write_recording(
    file: h5py.File, stim: Stim, recipe: Recipe, advance: Progress
) -> None:
    """Simulate one movie and the responses to it, and write all of it.

    Args:
        file: Empty HDF5 file.
        stim: Kind of movie.
        recipe: Size, seed and ablations.
        advance: Called with numbers of frames, `work_frames` in all.
    """
    retina = recipe.retina()
    grey = _write_movies(file, stim, recipe, advance)
    v, g = _training_drives(file["train/stimulus"], recipe.size, grey, retina, advance)
    calibration = calibrate(v, g, retina, grey)
    train_hz = rates(v, g, retina, calibration)
    test_hz = respond(file["test/stimulus"], retina, calibration)
    advance(recipe.size.n_test_frames)
    counts = _spike_counts(train_hz, recipe.stream("train_spikes"))
    _write_train_responses(file, counts, recipe.size)
    _write_test_responses(file, test_hz, recipe)
    file["centers"] = retina.centers.astype(np.int32)
    file["truth/train/rate"] = train_hz.astype(np.float32)
    file["truth/test/rate"] = test_hz.astype(np.float32)
    write_truth(file["truth"], retina, calibration)
    write_origin(file["truth"], recipe, stim)
    if stim == "whitenoise":
        _write_stas(file, counts, recipe.size, grey, advance)


def fit_retina(recipe: Recipe, stim: Stim) -> tuple[Retina, Calibration]:
    """The cells fitted to their training movie, without writing a file.

    Args:
        recipe: Size, seed and ablations; the movie is held in memory.
        stim: Kind of movie.

    Returns:
        The same as `read_truth` from the file that the recipe makes.
    """
    size, retina = recipe.size, recipe.retina()
    movie = np.concatenate([*movie_chunks(stim, recipe, "train")])
    grey = _grey(_levels(movie))
    v, g = _training_drives(movie, size, grey, retina, lambda n_frames: None)
    return retina, calibrate(v, g, retina, grey)


def movie_chunks(
    stim: Stim, recipe: Recipe, split: Literal["train", "test"]
) -> Iterator[stimuli.Frames]:
    """A movie in pieces (n, H, W), all its blocks one after the other."""
    size, shape = recipe.size, recipe.size.shape
    if split == "train":
        rng = recipe.stream("train_stimulus")
        n_frames = [block.stop - block.start for block in size.blocks]
    else:
        rng, n_frames = recipe.stream("test_stimulus"), [size.n_test_frames]
    if stim == "whitenoise":
        for n in n_frames:
            yield from stimuli.whitenoise(rng, n, shape)
    else:
        side = stimuli.SCENE_SIDES * max(shape)
        images = stimuli.scenes(recipe.stream("images"), side)
        for n in n_frames:
            yield from stimuli.naturalscene(rng, n, shape, images)


def _write_movies(
    file: h5py.File, stim: Stim, recipe: Recipe, advance: Progress
) -> Grey:
    """Write both movies, their times and attributes; normalisation of the first."""
    size = recipe.size
    train = file.create_dataset(
        "train/stimulus", (size.n_train_frames, *size.shape), np.uint8
    )
    test = file.create_dataset(
        "test/stimulus", (size.n_test_frames, *size.shape), np.uint8
    )
    levels = _write_movie(train, movie_chunks(stim, recipe, "train"), advance)
    _write_movie(test, movie_chunks(stim, recipe, "test"), advance)
    file["train/time"] = block_times_s(size)
    file["test/time"] = DT_S * np.arange(size.n_test_frames)
    file["train"].attrs["n_blocks"] = size.n_blocks
    file.attrs["dt_s"] = DT_S
    file.attrs["um_per_pixel"] = PARAMETERS.um_per_pixel
    return _grey(levels)


def _write_movie(
    movie: h5py.Dataset, chunks: Iterable[stimuli.Frames], advance: Progress
) -> Ints:
    """Fill a movie; returns how often each grey level occurs, (256,)."""
    first, levels = 0, np.zeros(256, np.int64)
    for chunk in chunks:
        movie[first : first + len(chunk)] = chunk
        first += len(chunk)
        levels += _levels(chunk)
        advance(len(chunk))
    assert first == len(movie)
    return levels


def _levels(frames: stimuli.Frames) -> Ints:
    return np.bincount(frames.ravel(), minlength=256)


def _grey(levels: Ints) -> Grey:
    """Normalisation from counts of grey levels (256,), by exact integer sums."""
    n = int(levels.sum())
    total = int(levels @ np.arange(256))
    total_squares = int(levels @ np.arange(256) ** 2)
    variance = (n * total_squares - total**2) / n**2
    return Grey(mean=total / n, scale=float(np.sqrt(variance)) + 1e-7)


def block_times_s(size: Size) -> Floats:
    """Frame times of training (T,), s; 60 s pass between blocks."""
    n_block = size.n_train_frames // size.n_blocks
    starts_s = (n_block * DT_S + BLOCK_GAP_S) * np.arange(size.n_blocks)
    return np.ravel(starts_s[:, None] + DT_S * np.arange(n_block))


def _training_drives(
    movie: Movie, size: Size, grey: Grey, retina: Retina, advance: Progress
) -> tuple[Floats, Floats]:
    """Excitation and gain pool, (C, T) each, every block after mean grey."""
    v = np.empty((size.n_cells, size.n_train_frames))
    g = np.empty_like(v)
    for block in size.blocks:
        n_bins = block.stop - block.start
        for bins, *drives in block_drives(movie, block, n_bins, grey, retina):
            at = slice(block.start + bins.start, block.start + bins.stop)
            v[:, at], g[:, at] = drives
            advance(bins.stop - bins.start)
    return v, g


def _spike_counts(rate_hz: Floats, rng: np.random.Generator) -> Ints:
    """Spikes of one presentation, (C, T), drawn cell by cell."""
    return np.stack(
        [poisson_counts(cell * DT_S, rng.random(len(cell))) for cell in rate_hz]
    )


def _write_train_responses(file: h5py.File, counts: Ints, size: Size) -> None:
    file["train/response/binned"] = counts.astype(np.float64)
    for name, sd_bins in SMOOTHING.items():
        blocks = [smooth(counts[:, block], sd_bins) for block in size.blocks]
        file[f"train/response/{name}"] = np.concatenate(blocks, axis=1) / DT_S
    time_s = file["train/time"][:]
    for cell, n_spikes in enumerate(counts):
        file[f"spikes/{cell_name(cell)}"] = spike_times(n_spikes, time_s, DT_S)


def _write_test_responses(file: h5py.File, rate_hz: Floats, recipe: Recipe) -> None:
    """Draw the repeats from the rate (C, T+1) and average them."""
    rng = recipe.stream("test_spikes")
    counts = np.stack(
        [_spike_counts(rate_hz, rng) for _ in range(recipe.size.n_repeats)]
    )
    file["test/response/binned"] = counts.mean(axis=0)
    for name, sd_bins in SMOOTHING.items():
        repeats_hz = smooth(counts, sd_bins) / DT_S
        file[f"test/response/{name}"] = repeats_hz.mean(axis=0)
        if name == REPEATS_RESPONSE:
            for cell in range(recipe.size.n_cells):
                file[f"test/repeats/{cell_name(cell)}"] = repeats_hz[:, cell]
    file["test/repeats"].attrs["response_type"] = REPEATS_RESPONSE


def _write_stas(
    file: h5py.File, counts: Ints, size: Size, grey: Grey, advance: Progress
) -> None:
    """Spike-triggered averages of the training movie, in its s.d. per |y - mean|."""
    centred = counts - counts.mean(axis=1, keepdims=True)
    stas = np.zeros((size.n_cells, N_LAGS, *size.shape))
    for block in size.blocks:
        response = centred[:, block]
        movie = file["train/stimulus"]
        stas += triggered_sum(movie, block, response, grey, advance)
    stas /= np.abs(centred).sum(axis=1)[:, None, None, None]
    for cell, sta in enumerate(stas):
        file[f"train/stas/{cell_name(cell)}"] = sta.astype(np.float32)
    file["train/stas"].attrs["lags"] = "oldest first: 40 … 1 bins before the spikes"


def triggered_sum(
    movie: Movie,
    block: slice,
    response: Floats,
    grey: Grey,
    advance: Progress,
    *,
    chunk_bins: int = CHUNK_FRAMES,
) -> Floats:
    """Sum over bins of response times the 40 frames before the bin.

    Args:
        movie: (T, H, W) grey levels.
        block: Frames of the block within the movie, B of them.
        response: (C, B).
        grey: Normalisation; before the block is mean grey.
        advance: Called with numbers of bins.
        chunk_bins: Bins at a time.

    Returns:
        (C, 40, H, W), oldest lag first.
    """
    n_cells, n_bins = response.shape
    total = np.zeros((n_cells * N_LAGS, int(np.prod(movie.shape[1:]))))
    for first in range(0, n_bins, chunk_bins):
        last = min(first + chunk_bins, n_bins)
        s = padded_frames(movie, block, first - N_LAGS, last - 1, grey)
        padded = np.pad(response[:, first:last], ((0, 0), (N_LAGS - 1, N_LAGS - 1)))
        shifted = np.lib.stride_tricks.sliding_window_view(padded, len(s), axis=1)
        # Row i of a cell holds the response at the frames that are i-th in windows.
        rows = shifted[:, ::-1].reshape(n_cells * N_LAGS, len(s))
        total += rows @ s.reshape(len(s), -1)
        advance(last - first)
    return total.reshape(n_cells, N_LAGS, *movie.shape[1:])
