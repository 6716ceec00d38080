"""A virtual interneuron recording: potentials of subunits and gain pools."""

from __future__ import annotations

import h5py
import numpy as np

from torchdeepretina.simulate import stimuli
from torchdeepretina.simulate.kernels import (
    PARAMETERS,
    Floats,
    subunit_time,
    subunit_weights,
)
from torchdeepretina.simulate.recipe import (
    DT_S,
    INTERNEURON_SNR,
    N_BOX_FRAMES,
    N_INTERNEURONS,
    Recipe,
    cell_name,
)
from torchdeepretina.simulate.recording import Progress
from torchdeepretina.simulate.retina import (
    Grey,
    Movie,
    Retina,
    block_drives,
    padded_frames,
)
from torchdeepretina.simulate.truth import write_origin


def write_interneurons(file: h5py.File, recipe: Recipe, advance: Progress) -> None:
    """Box movie and noisy potentials of three subunits and three gain pools.

    Cells 1 to 3 are the subunits at the centres of the first three ganglion cells,
    cells 4 to 6 their gain pools. The noise has a quarter of each trace's s.d.

    Args:
        file: Empty HDF5 file.
        recipe: Size, seed and ablations.
        advance: Called with numbers of frames, N_BOX_FRAMES in all.
    """
    retina = recipe.retina()
    boxes = box_movie(recipe.stream("boxes"), N_BOX_FRAMES, recipe.size.boxes_shape)
    # Black and white as -1 and 1, grey around: the model's input.
    movie = np.pad(
        2 * boxes.astype(np.int8) - 1, ((0, 0), *[(recipe.size.boxes_rim,) * 2] * 2)
    )
    traces = interneuron_traces(movie, retina)
    advance(N_BOX_FRAMES)
    noise = recipe.stream("interneuron_noise").standard_normal(traces.shape)
    noisy = traces + noise * traces.std(axis=1, keepdims=True) / INTERNEURON_SNR
    group = file.create_group("boxes")
    group.create_dataset("stimuli", data=boxes, compression="gzip")
    group["detrended_membrane_potential"] = noisy.astype(np.float32)
    for cell, field in enumerate(_interneuron_fields(retina, recipe.size.boxes_rim)):
        group[f"rfs/{cell_name(cell)}"] = field.astype(np.float32)
    truth = file.create_group("truth")
    truth["centers"] = np.tile(retina.centers[:N_INTERNEURONS], (2, 1))
    truth["layer"] = np.repeat(np.array(["subunit", "pool"], "S7"), N_INTERNEURONS)
    write_origin(truth, recipe, "interneurons")
    file.attrs["dt_s"] = DT_S
    file.attrs["um_per_pixel"] = PARAMETERS.um_per_pixel


def box_movie(
    rng: np.random.Generator, n_frames: int, shape: tuple[int, int]
) -> stimuli.Frames:
    """Random boxes of 2×2 px, 0 or 1, each shown for three frames, (T, h, w)."""
    n = stimuli.n_images(n_frames)
    boxes = stimuli.checkers(rng, n, (-(-shape[0] // 2), -(-shape[1] // 2)))
    boxes = boxes.repeat(2, axis=1)[:, : shape[0]].repeat(2, axis=2)[:, :, : shape[1]]
    return stimuli.hold(boxes, n_frames)


def interneuron_traces(movie: Movie, retina: Retina) -> Floats:
    """Traces of three subunits, then three gain pools, (6, T), without noise.

    Args:
        movie: (T, H, W) in units of the training s.d., 0 = grey.
        retina: At least three cells.

    Returns:
        Bin t sees frames before t.
    """
    n_frames = movie.shape[0]
    unit = Grey(mean=0.0, scale=1.0)
    block = slice(0, n_frames)
    frames = padded_frames(movie, block, -PARAMETERS.time_taps, n_frames - 1, unit)
    subunits = [
        sign * np.convolve(np.tensordot(frames, field), subunit_time(kind), "valid")
        for sign, kind, field in zip(
            retina.polarity, retina.kinds, _subunit_fields(retina), strict=False
        )
    ]
    pools = [g for _, _, g in block_drives(movie, block, n_frames, unit, retina)]
    return np.concatenate(
        [np.stack(subunits), np.concatenate(pools, axis=1)[:N_INTERNEURONS]]
    )


def _subunit_fields(retina: Retina) -> list[Floats]:
    return [
        subunit_weights(place, retina.shape) for place in retina.places[:N_INTERNEURONS]
    ]


def _interneuron_fields(retina: Retina, rim: int) -> list[Floats]:
    """Signed receptive fields within the box movie's frame, (h, w) each."""
    signed = zip(retina.polarity, _subunit_fields(retina), strict=False)
    fields = [sign * field for sign, field in signed]
    inner = slice(rim, -rim or None)
    return [field[inner, inner] for field in [*fields, *retina.pool[:N_INTERNEURONS]]]
