"""Decode one picture file; whatever is wrong with it is a reason, not a crash."""

from __future__ import annotations

import dataclasses
import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS: Final = ("PNG", "JPEG", "BMP")
GREY_MODES: Final = frozenset({"1", "L", "LA"})
COLOUR_MODES: Final = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
MAX_PIXELS: Final = 2**26  # 8,192 × 8,192
MAX_FILE_BYTES: Final = 2**28
# What Pillow raises for damaged files, beside its own errors.
DAMAGE: Final = (
    OSError,
    SyntaxError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class Corrupt(Exception):
    """A picture cannot be decoded; `--skip-corrupt` leaves it out."""


class Unusable(Exception):
    """A file cannot be read, or is of a kind that is not taken; an error always."""


@dataclasses.dataclass(frozen=True)
class Form:
    """What each picture becomes.

    Args:
        n_channels: 1 (luma of ITU-R 601) or 3 (red, green, blue).
        side: Side of the square in pixels; None: as it is.
    """

    n_channels: int
    side: int | None


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Bombs are errors; other warnings of Pillow say nothing that matters here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def inspect_picture(path: Path) -> tuple[tuple[int, int], bool]:
    """Decode a whole picture to see that it can be.

    Returns:
        (Height, width) as it is displayed, and whether it is grey.

    Raises:
        Corrupt: It cannot be decoded.
        Unusable: It cannot be read, or has more than 8 bits per channel.
    """
    picture = _decode(path)
    return (picture.height, picture.width), picture.mode in GREY_MODES


def read_picture(path: Path, form: Form) -> npt.NDArray[np.uint8]:
    """The levels of a picture, (C, H, W).

    Raises:
        Corrupt: It cannot be decoded.
        Unusable: It cannot be read, or has more than 8 bits per channel.
    """
    picture = _decode(path).convert("L" if form.n_channels == 1 else "RGB")
    if form.side is not None:
        picture = _square(picture, form.side)
    levels = np.asarray(picture, np.uint8)
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)


def _square(picture: Image.Image, side: int) -> Image.Image:
    """Shorter side to `side`, bilinear with antialiasing, then the central square.

    Both at once, so that a long strip never becomes a huge picture on the way.
    """
    width, height = picture.size
    left, top = max(0, width - height) / 2, max(0, height - width) / 2
    box = (left, top, width - left, height - top)
    return picture.resize((side, side), Image.Resampling.BILINEAR, box=box)


def _decode(path: Path) -> Image.Image:
    """The decoded picture, upright as its EXIF data say; transparency is ignored."""
    content = _read_bytes(path)
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise Corrupt(
                f"{picture.width:,} × {picture.height:,} pixels; at most "
                f"{MAX_PIXELS:,} are unpacked"
            )
        if picture.format == "PNG":
            picture.verify()  # compares checksums, which decoding does not
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.mode in GREY_MODES | COLOUR_MODES:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        raise Corrupt("no PNG, JPEG or BMP") from error
    except DAMAGE as error:
        raise Corrupt(str(error) or type(error).__name__) from error
    raise Unusable(f"mode {picture.mode!r}; expected 8 bits per channel")


def _read_bytes(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unusable("not a file")
        if found.st_size > MAX_FILE_BYTES:
            raise Unusable(f"{found.st_size / 1e6:,.0f} MB; too large for a picture")
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"could not be read ({error.strerror})") from error
