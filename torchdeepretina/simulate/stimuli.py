"""Movies for the virtual retina: white noise, natural scenes and boxes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from torchdeepretina.simulate.kernels import Floats, Ints
from torchdeepretina.simulate.retina import CHUNK_FRAMES

Frames = NDArray[np.uint8]

FRAMES_PER_IMAGE: Final = 3
NOISE_GREYS: Final = (83, 172)
N_SCENES: Final = 32
SCENE_SIDES: Final = 4
SCENE_MEDIAN_GREY: Final = 33.0
SACCADE_FRAMES: Final = 100
DRIFT_SD_PX: Final = 0.3


def parameters() -> dict[str, object]:
    """The constants of this module, for the record in each file."""
    return {
        "frames_per_image": FRAMES_PER_IMAGE,
        "noise_greys": list(NOISE_GREYS),
        "n_scenes": N_SCENES,
        "scene_sides": SCENE_SIDES,
        "scene_median_grey": SCENE_MEDIAN_GREY,
        "saccade_frames": SACCADE_FRAMES,
        "drift_sd_px": DRIFT_SD_PX,
    }


def hold(images: Frames, n_frames: int) -> Frames:
    """Show each image for three frames and cut the movie to `n_frames`."""
    return np.repeat(images, FRAMES_PER_IMAGE, axis=0)[:n_frames]


def chunk_lengths(n_frames: int, chunk_frames: int) -> list[int]:
    """Lengths of the chunks of a movie; only the last may cut an image short."""
    assert chunk_frames % FRAMES_PER_IMAGE == 0
    starts = range(0, n_frames, chunk_frames)
    return [min(chunk_frames, n_frames - start) for start in starts]


def n_images(n_frames: int) -> int:
    """Number of images that a movie of `n_frames` begins to show."""
    return -(-n_frames // FRAMES_PER_IMAGE)


def checkers(rng: np.random.Generator, n: int, shape: tuple[int, int]) -> Frames:
    """Independent pixels 0 or 1 with p = ½, (n, H, W)."""
    return (rng.random((n, *shape)) < 0.5).astype(np.uint8)


def whitenoise(
    rng: np.random.Generator,
    n_frames: int,
    shape: tuple[int, int],
    *,
    chunk_frames: int = CHUNK_FRAMES,
) -> Iterator[Frames]:
    """Binary white noise, one block.

    Args:
        rng: Stream of the movie.
        n_frames: Length of the block.
        shape: Height and width, px.
        chunk_frames: Frames per chunk, a multiple of 3; does not change the movie.

    Yields:
        Grey levels (n, H, W).
    """
    greys = np.array(NOISE_GREYS, np.uint8)
    for n in chunk_lengths(n_frames, chunk_frames):
        yield hold(greys[checkers(rng, n_images(n), shape)], n)


def scenes(rng: np.random.Generator, side: int) -> Floats:
    """Images of random phase with power ∝ 1/f², (32, side, side), mean 0, s.d. 1."""
    noise = np.fft.rfft2(rng.standard_normal((N_SCENES, side, side)))
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    images: Floats = np.fft.irfft2(noise / np.abs(noise) / frequency, s=(side, side))
    images -= images.mean(axis=(1, 2), keepdims=True)
    images /= images.std(axis=(1, 2), keepdims=True)
    return images


def gaze(rng: np.random.Generator, n_frames: int, side: int) -> tuple[Ints, Floats]:
    """Where the eye looks in one block: saccades every second, a drift between.

    A saccade falls on the first new image at or after each full second.

    Args:
        rng: Stream of the movie.
        n_frames: Length of the block.
        side: Side of the scenes, px.

    Returns:
        Scene (n,) and top left corner (n, 2), px, of every new image shown.
    """
    second = np.arange(n_images(n_frames)) * FRAMES_PER_IMAGE // SACCADE_FRAMES
    is_saccade = np.diff(second, prepend=-1) > 0
    n_saccades = int(is_saccade.sum())
    scene = rng.integers(N_SCENES, size=n_saccades)
    landing = rng.uniform(0, side, size=(n_saccades, 2))
    steps = rng.normal(0, DRIFT_SD_PX, size=(len(second), 2))
    walk = np.cumsum(steps, axis=0)
    fixation = np.cumsum(is_saccade) - 1
    corner = (landing - walk[is_saccade])[fixation] + walk
    return scene[fixation], corner % side


def look(images: Floats, scene: Ints, corner: Floats, shape: tuple[int, int]) -> Frames:
    """Grey levels seen at given places of the scenes.

    Args:
        images: (32, side, side) scenes z.
        scene: (n,) scene of each view.
        corner: (n, 2) top left corner, px; between pixels bilinear, wrapping around.
        shape: Height and width of the view, px.

    Returns:
        (n, H, W), clip(round(33·e^z), 0, 255).
    """
    side = images.shape[-1]
    whole = np.floor(corner).astype(np.int64)
    part = corner - whole
    rows = (whole[:, :1] + np.arange(shape[0] + 1)) % side
    columns = (whole[:, 1:] + np.arange(shape[1] + 1)) % side
    z = images[scene[:, None, None], rows[:, :, None], columns[:, None, :]]
    down, right = part[:, 0, None, None], part[:, 1, None, None]
    z = z[:, :-1] * (1 - down) + z[:, 1:] * down
    z = z[:, :, :-1] * (1 - right) + z[:, :, 1:] * right
    grey: Floats = np.rint(SCENE_MEDIAN_GREY * np.exp(z))
    return np.clip(grey, 0, 255).astype(np.uint8)


def naturalscene(
    rng: np.random.Generator,
    n_frames: int,
    shape: tuple[int, int],
    images: Floats,
    *,
    chunk_frames: int = CHUNK_FRAMES,
) -> Iterator[Frames]:
    """Natural scenes seen by a moving eye, one block.

    Args:
        rng: Stream of the movie.
        n_frames: Length of the block.
        shape: Height and width, px.
        images: Scenes from `scenes`.
        chunk_frames: Frames per chunk, a multiple of 3; does not change the movie.

    Yields:
        Grey levels (n, H, W).
    """
    scene, corner = gaze(rng, n_frames, images.shape[-1])
    first = 0
    for n in chunk_lengths(n_frames, chunk_frames):
        at = slice(first, first + n_images(n))
        yield hold(look(images, scene[at], corner[at], shape), n)
        first = at.stop
