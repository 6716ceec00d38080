"""Augmentations against independent references, and what they draw."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from gridrun.errors import ConfigError
from imgclass.augment import (
    AUGMENTATIONS,
    augment_images,
    check_augmentations,
    crop_images,
    flip_images,
    jitter_images,
    rotate_images,
)

N_DRAWS = 4000


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return images of uniform noise in [0, 1), the same at every call."""
    return torch.rand(*shape, generator=generator(99), dtype=torch.float64).to(dtype)


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """Fail unless values look uniform on [low, high) in range and in every eighth."""
    assert values.min() >= low
    assert values.max() <= high
    counts = torch.histc(values.float(), bins=8, min=low, max=high)
    expected = len(values) / 8
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


def test_flip_mirrors_exactly_the_marked_images() -> None:
    """Marked images come out mirrored left to right, the others untouched."""
    images = noise(4, 3, 5, 6)
    marked = [True, False, True, False]
    flipped = flip_images(images, torch.tensor(marked))
    for b in range(4):
        for column in range(6):
            origin = 5 - column if marked[b] else column
            assert torch.equal(flipped[b, :, :, column], images[b, :, :, origin])


def test_crop_is_a_window_of_the_zero_padded_image() -> None:
    """Every pixel of a crop is the padded image's at the offset, or zero."""
    height, width, pad_rows, pad_columns = 16, 24, 2, 3
    offsets = [(r, c) for r in range(5) for c in range(7)]
    images = noise(len(offsets), 3, height, width) + 0.1
    crops = crop_images(images, torch.tensor(offsets))
    for b, (first_row, first_column) in enumerate(offsets):
        expected = torch.zeros(3, height, width, dtype=torch.float64)
        for row in range(height):
            for column in range(width):
                r = row + first_row - pad_rows
                c = column + first_column - pad_columns
                if 0 <= r < height and 0 <= c < width:
                    expected[:, row, column] = images[b, :, r, c]
        assert torch.equal(crops[b], expected)


def test_jitter_agrees_with_colorsys() -> None:
    """Saturation and hue change as in the standard library's HSV model."""
    images = noise(6, 3, 4, 5)
    images[0, :, 0] = 0.4  # grey
    images[1, :, 0] = 0.0  # black
    images[2, :, 0] = torch.tensor([1.0, 0.0, 0.0])[:, None]  # saturated
    images[3, 1, 0] = images[3, 0, 0]  # two channels tie
    factors = [0.95, 1.05, 1.04, 1.0, 0.97, 1.3]
    shifts = [0.05, -0.05, 0.02, 0.0, -0.01, 0.4]
    jittered = jitter_images(
        images,
        torch.tensor(factors, dtype=torch.float64),
        torch.tensor(shifts, dtype=torch.float64),
    )
    for b, (factor, shift) in enumerate(zip(factors, shifts, strict=True)):
        for row in range(4):
            for column in range(5):
                h, s, v = colorsys.rgb_to_hsv(*images[b, :, row, column].tolist())
                expected = colorsys.hsv_to_rgb((h + shift) % 1, min(s * factor, 1.0), v)
                found = jittered[b, :, row, column].tolist()
                assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (9, 14), (20, 11)])
def test_rotation_agrees_with_scipy(height: int, width: int) -> None:
    """Rotation equals scipy's bilinear affine transform with zeros outside."""
    angles_deg = [-20.0, -7.3, 0.0, 3.1, 20.0, 65.0]
    images = noise(len(angles_deg), 2, height, width)
    rotated = rotate_images(images, torch.tensor(angles_deg, dtype=torch.float64))
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    for b, angle in enumerate(np.deg2rad(angles_deg)):
        # Row and column of the input for a row and column of the output.
        matrix = np.array(
            [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        )
        for channel in range(2):
            expected = ndimage.affine_transform(
                images[b, channel].numpy(),
                matrix,
                offset=centre - matrix @ centre,
                order=1,
                mode="grid-constant",
            )
            np.testing.assert_allclose(rotated[b, channel], expected, atol=1e-12)


def test_positive_angles_are_anticlockwise() -> None:
    """A quarter turn equals numpy's anticlockwise quarter turn."""
    images = noise(1, 1, 7, 7)
    turned = rotate_images(images, torch.tensor([90.0], dtype=torch.float64))
    np.testing.assert_allclose(turned[0, 0], np.rot90(images[0, 0]), atol=1e-12)


def test_flip_draws_a_coin_for_each_image() -> None:
    """About half of the images of a batch are mirrored."""
    images = torch.zeros(N_DRAWS, 1, 1, 2)
    images[..., 0] = 1.0
    n_flipped = augment_images(images, ["flip"], generator())[..., 1].sum()
    assert abs(n_flipped - N_DRAWS / 2) < 5 * math.sqrt(N_DRAWS / 4)


def test_crop_draws_every_offset_alike() -> None:
    """All places of the window, to both ends of the padding, are equally likely."""
    images = torch.zeros(N_DRAWS, 1, 16, 8)
    images[:, :, 8, 4] = 1.0
    crops = augment_images(images, ["crop"], generator())
    places = crops[:, 0].nonzero()[:, 1:] - torch.tensor([8, 4])
    assert len(places) == N_DRAWS
    found, counts = np.unique(places.numpy(), axis=0, return_counts=True)
    assert found.tolist() == [[r, c] for r in range(-2, 3) for c in range(-1, 2)]
    assert np.abs(counts - N_DRAWS / 15).max() < 5 * math.sqrt(N_DRAWS / 15)


def test_jitter_draws_saturation_and_hue_uniformly() -> None:
    """Factors lie in 0.95 ... 1.05, hue shifts in ±0.05 turns, both uniform."""
    colour = (0.8, 0.5, 0.3)
    images = torch.tensor(colour, dtype=torch.float64)[:, None, None]
    jittered = augment_images(images.repeat(N_DRAWS, 1, 1, 1), ["jitter"], generator())
    h0, s0, v0 = colorsys.rgb_to_hsv(*colour)
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in jittered[:, :, 0, 0].tolist()]
    hues, saturations, values = torch.tensor(hsv, dtype=torch.float64).unbind(1)
    shifts = (hues - h0 + 0.5).remainder(1.0) - 0.5
    assert_uniform(shifts, -0.05, 0.05)
    assert_uniform(saturations / s0, 0.95, 1.05)
    assert torch.corrcoef(torch.stack([shifts, saturations]))[0, 1].abs() < 0.08
    torch.testing.assert_close(values, torch.full_like(values, v0))


def test_rotate_draws_angles_uniformly() -> None:
    """Angles lie within ±20° and are uniform, one for each image."""
    # On a ramp along x bilinear interpolation is exact, and the slope along y at
    # the centre is -sin of the angle.
    ramp = torch.arange(8, dtype=torch.float64).expand(N_DRAWS, 1, 8, 8)
    rotated = augment_images(ramp, ["rotate"], generator())[:, 0]
    angles_deg = torch.asin(rotated[:, 3, 3] - rotated[:, 4, 3]).rad2deg()
    assert_uniform(angles_deg, -20.0, 20.0)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_generator_decides_everything(name: str) -> None:
    """Equal generator states give equal batches, other states others."""
    images = noise(16, 3, 16, 16)
    first = augment_images(images, [name], generator(1))
    torch.manual_seed(0)
    assert torch.equal(first, augment_images(images, [name], generator(1)))
    assert not torch.equal(first, augment_images(images, [name], generator(2)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_global_random_state_is_not_touched(name: str) -> None:
    """Augmentation takes nothing from torch's own generator."""
    state = torch.get_rng_state()
    augment_images(noise(4, 3, 16, 16), [name], generator())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_type_changes_rounding_only(name: str, dtype: torch.dtype) -> None:
    """Every floating type keeps its type and draws the same parameters."""
    images = noise(8, 3, 16, 16, dtype=dtype)
    augmented = augment_images(images, [name], generator())
    exact = augment_images(images.double(), [name], generator())
    assert augmented.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
    torch.testing.assert_close(augmented.double(), exact, atol=tolerance[dtype], rtol=0)


def test_input_is_not_modified() -> None:
    """The batch that goes in is the same afterwards."""
    images = noise(8, 3, 16, 16)
    before = images.clone()
    augment_images(images, list(AUGMENTATIONS), generator())
    assert torch.equal(images, before)


def test_levels_stay_in_range() -> None:
    """All four together keep levels in 0 ... 1, to rounding."""
    images = noise(64, 3, 16, 16, dtype=torch.float32).round(decimals=1)
    augmented = augment_images(images, list(AUGMENTATIONS), generator())
    assert augmented.min() >= 0
    assert augmented.max() <= 1 + 1e-6


@pytest.mark.parametrize("names", [["crop", "rotate"], ["rotate", "crop"]])
def test_names_are_applied_in_their_order(names: list[str]) -> None:
    """A list does the same as its entries one after the other."""
    images = noise(8, 1, 16, 16)
    together = augment_images(images, names, generator())
    one_by_one, stream = images, generator()
    for name in names:
        one_by_one = augment_images(one_by_one, [name], stream)
    assert torch.equal(together, one_by_one)


def test_no_names_change_nothing() -> None:
    """An empty list gives the images back and draws nothing."""
    images, stream = noise(2, 1, 8, 8), generator()
    state = stream.get_state()
    assert augment_images(images, [], stream) is images
    assert torch.equal(state, stream.get_state())


@pytest.mark.parametrize(
    ("names", "n_channels", "words"),
    [
        (["jitter"], 1, ["augment", "'jitter'", "3 channels", "have 1"]),
        (["flip", "rotat"], 3, ["augment", "'rotat'", "did you mean 'rotate'"]),
        (["mosaic"], 3, ["augment", "'mosaic'", "flip, crop, jitter, rotate"]),
    ],
)
@pytest.mark.parametrize("entry", ["check", "augment"])
def test_impossible_augmentations_are_refused(
    entry: str, names: list[str], n_channels: int, words: list[str]
) -> None:
    """Unknown names, and jitter without colour, are errors that name the key."""
    calls: dict[str, Callable[[], object]] = {
        "check": lambda: check_augmentations(names, n_channels),
        "augment": lambda: augment_images(
            noise(1, n_channels, 8, 8), names, generator()
        ),
    }
    with pytest.raises(ConfigError) as caught:
        calls[entry]()
    assert all(word in str(caught.value) for word in words)
