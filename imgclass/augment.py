"""Augmentation of whole image batches, with parameters drawn for each image.

An augmentation is two steps: a few numbers per image are drawn from the run's
generator, on the generator's device and always as float32, so that neither the
device nor the type of the images changes what is drawn; then a pure function
applies them to the whole batch at once.

Images are float in [0, 1], shape (B, C, H, W), and are not modified.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gridrun.errors import ConfigError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

FLIP_PROBABILITY = 0.5
CROP_FRACTION = 8  # the padding is 1/8 of the side
MAX_SATURATION_CHANGE = 0.05
MAX_HUE_SHIFT = 0.05  # of the circle
MAX_ANGLE_DEG = 20.0


def augment_images(
    images: Tensor, names: Sequence[str], generator: torch.Generator
) -> Tensor:
    """Apply augmentations, one after the other, to every image of a batch.

    Args:
        images: Float in [0, 1], shape (B, C, H, W).
        names: Keys of `AUGMENTATIONS`, in the order of application; empty: the
            images come back as they are.
        generator: Source of all random numbers, on any device. Each augmentation
            takes its numbers in the order of the images.

    Returns:
        Images of the same shape, type and device.

    Raises:
        ConfigError: A name is unknown or does not fit the number of channels.
    """
    check_augmentations(names, images.shape[1])
    for name in names:
        images = AUGMENTATIONS[name](images, generator)
    return images


def check_augmentations(names: Sequence[str], n_channels: int) -> None:
    """Refuse augmentations that are unknown or that these images cannot have.

    Args:
        names: Augmentations asked for.
        n_channels: Channels of the images.

    Raises:
        ConfigError: With one line per problem.
    """
    problems = augmentation_problems(names, n_channels)
    if problems:
        raise ConfigError(problems)


def augmentation_problems(names: Sequence[str], n_channels: int) -> list[str]:
    """Say what is wrong with a list of augmentations; empty if nothing is.

    Args:
        names: Augmentations asked for.
        n_channels: Channels of the images.

    Returns:
        One line per problem, each naming the key `augment`.
    """
    problems = [_unknown_name(name) for name in names if name not in AUGMENTATIONS]
    if "jitter" in names and n_channels != 3:
        problems.append(
            "augment: 'jitter' changes saturation and hue and so needs images of 3 "
            f"channels; these have {n_channels}. Leave 'jitter' out of augment."
        )
    return problems


def flip_images(images: Tensor, is_flipped: Tensor) -> Tensor:
    """Mirror the marked images left to right.

    Args:
        images: Shape (B, C, H, W).
        is_flipped: Boolean, shape (B,).

    Returns:
        Shape (B, C, H, W).
    """
    return torch.where(is_flipped[:, None, None, None], images.flip(-1), images)


def crop_images(images: Tensor, offsets: Tensor) -> Tensor:
    """Zero-pad each image and cut a window of the original size out of it.

    Args:
        images: Shape (B, C, H, W).
        offsets: First row and column of the window in the padded image, integer,
            shape (B, 2), in 0 ... 2·`crop_padding` of that side.

    Returns:
        Shape (B, C, H, W).
    """
    n, channels, height, width = images.shape
    pad_rows, pad_columns = crop_padding(height), crop_padding(width)
    padded = F.pad(images, (pad_columns, pad_columns, pad_rows, pad_rows))
    rows = offsets[:, :1] + torch.arange(height, device=images.device)
    columns = offsets[:, 1:] + torch.arange(width, device=images.device)
    cut = padded.gather(
        2, rows[:, None, :, None].expand(n, channels, height, padded.shape[3])
    )
    return cut.gather(3, columns[:, None, None, :].expand(n, channels, height, width))


def crop_padding(side: int) -> int:
    """Return the zero pixels that `crop` adds at each end of a side.

    Args:
        side: Height or width in pixels.

    Returns:
        side/8, rounded down: 1 of 8, 3 of 28, 4 of 32 pixels.
    """
    return side // CROP_FRACTION


def jitter_images(images: Tensor, saturation_factors: Tensor, shifts: Tensor) -> Tensor:
    """Scale the saturation and turn the hue of RGB images in the HSV model.

    Args:
        images: Red, green, blue in [0, 1], shape (B, 3, H, W).
        saturation_factors: Shape (B,); products above 1 become 1.
        shifts: Added to the hue, in turns of the circle, shape (B,).

    Returns:
        Shape (B, 3, H, W). Each pixel keeps its largest channel value.
    """
    hue, saturation, value = _rgb_to_hsv(images)
    saturation = (saturation * saturation_factors[:, None, None]).clamp(max=1.0)
    return _hsv_to_rgb(hue + shifts[:, None, None], saturation, value)


def rotate_images(images: Tensor, angles_deg: Tensor) -> Tensor:
    """Rotate each image about its centre: bilinear, zero outside the image.

    Args:
        images: Shape (B, C, H, W).
        angles_deg: Degrees, anticlockwise as the image is displayed, shape (B,).

    Returns:
        Shape (B, C, H, W).
    """
    n, _, height, width = images.shape
    cos, sin = angles_deg.deg2rad().cos(), angles_deg.deg2rad().sin()
    # The grid runs from -1 to 1 along both sides, so a turn in pixels needs the
    # ratio of the sides in its off-diagonal terms.
    to_input = cos.new_zeros(n, 2, 3)
    to_input[:, 0, 0] = to_input[:, 1, 1] = cos
    to_input[:, 0, 1] = -sin * (height / width)
    to_input[:, 1, 0] = sin * (width / height)
    grid = F.affine_grid(to_input, list(images.shape), align_corners=False)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    draws = _draw(images, 1, generator)[:, 0]
    return flip_images(images, draws < FLIP_PROBABILITY)


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    draws = _draw(images, 2, generator)
    n_offsets = draws.new_tensor([2 * crop_padding(s) + 1 for s in images.shape[2:]])
    return crop_images(images, (draws * n_offsets).floor().long())


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    draws = 2 * _draw(images, 2, generator) - 1
    factors = 1 + MAX_SATURATION_CHANGE * draws[:, 0]
    shifts = MAX_HUE_SHIFT * draws[:, 1]
    return jitter_images(images.to(draws.dtype), factors, shifts).to(images.dtype)


def _rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    angles_deg = MAX_ANGLE_DEG * (2 * _draw(images, 1, generator)[:, 0] - 1)
    return rotate_images(images.to(angles_deg.dtype), angles_deg).to(images.dtype)


AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": _flip,
    "crop": _crop,
    "jitter": _jitter,
    "rotate": _rotate,
}
"""Name in the key `augment` -> function of a batch and a generator."""


def _draw(images: Tensor, n_numbers: int, generator: torch.Generator) -> Tensor:
    """Draw numbers in [0, 1) for each image, shape (B, n_numbers).

    They come as at least float32, in which 16-bit images are computed too: a
    16-bit angle or pixel position would be visibly coarse.
    """
    draws = torch.rand(
        images.shape[0],
        n_numbers,
        generator=generator,
        device=generator.device,
        dtype=torch.float32,
    )
    dtype = torch.promote_types(images.dtype, torch.float32)
    return draws.to(images.device, dtype)


def _rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in turns, -1/6 ... 5/6, saturation and value in [0, 1].

    Each has the shape (B, H, W); grey has hue 0.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    divisor = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(
            value == green,
            2 + (blue - red) / divisor,
            4 + (red - green) / divisor,
        ),
    )
    saturation = chroma / torch.where(value > 0, value, torch.ones_like(value))
    return sixths / 6, saturation, value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB (B, 3, H, W); hue in turns of any size, the others in [0, 1]."""
    corners = hue.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    position = (corners + 6 * hue[:, None]).remainder(6.0)
    darkening = torch.minimum(position, 4 - position).clamp(0.0, 1.0)
    return value[:, None] * (1 - saturation[:, None] * darkening)


def _unknown_name(name: str) -> str:
    near = difflib.get_close_matches(name, AUGMENTATIONS, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"augment: unknown '{name}'{hint}; known: {', '.join(AUGMENTATIONS)}"
