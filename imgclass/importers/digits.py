"""The UCI optical digits, as scikit-learn has them."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gridrun.errors import ConfigError, DataError
from imgclass.importers.files import save
from imgclass.importers.image_set import ImageSet, default_augment, split_stratified

DIGITS_N_TEST = 359
DIGITS_SPLIT_SEED = 0
DIGITS_LEVEL_STEP = 15  # levels 0-16 become 0-240
DIGITS_SOURCE = (
    "UCI Machine Learning Repository, Optical Recognition of Handwritten Digits, "
    "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits; "
    "its test file, as distributed with scikit-learn (load_digits)"
)
DIGITS_LICENCE = (
    "Creative Commons Attribution 4.0 International (CC BY 4.0), "
    "https://creativecommons.org/licenses/by/4.0/legalcode"
)
DIGITS_CITATION = (
    "Alpaydin, E. & Kaynak, C. (1998). Optical Recognition of Handwritten Digits "
    "[Dataset]. UCI Machine Learning Repository. https://doi.org/10.24432/C50P49"
)


def import_digits(path: Path, *, scale: int = 1) -> None:
    """Write the UCI optical digits as in scikit-learn: 1,797 grey images, 8×8.

    A file that is there is replaced.

    Args:
        path: The `images.h5` to write.
        scale: Side of the square that each pixel becomes; 2 gives 16×16 images.

    Raises:
        ConfigError: `scale` is below 1.
        DataError: scikit-learn is missing, or the file cannot be written.
    """
    save(path, read_digits(scale=scale), force=True)


def read_digits(*, scale: int = 1) -> ImageSet:
    """The digits, levels 0-16 ×15, in a stratified split that is always the same.

    Args:
        scale: Side of the square that each pixel becomes.

    Returns:
        1,438 train and 359 test images (1, 8·scale, 8·scale).

    Raises:
        ConfigError: `scale` is below 1.
        DataError: scikit-learn is missing.
    """
    if scale < 1:
        raise ConfigError(f"scale: {scale} is not possible; give 1 or more")
    images, labels = _load()
    images = np.repeat(np.repeat(images, scale, axis=2), scale, axis=3)
    train, test = split_stratified(labels, DIGITS_N_TEST, seed=DIGITS_SPLIT_SEED)
    return ImageSet(
        {"train": images[train], "test": images[test]},
        {"train": labels[train], "test": labels[test]},
        [str(digit) for digit in range(10)],
        source=DIGITS_SOURCE,
        licence=DIGITS_LICENCE,
        citation=DIGITS_CITATION,
        augment=default_augment(1),
        compress=True,
    )


def _load() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return images (1797, 1, 8, 8) of levels 0, 15 ... 240 and labels (1797,)."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise DataError(
            "data import digits: needs scikit-learn, which is not installed; "
            "`pip install scikit-learn`, or use the digits and digits16 in data/"
        ) from error
    digits = datasets.load_digits()
    levels = np.asarray(digits.images)[:, None]
    images = (levels * DIGITS_LEVEL_STEP).astype(np.uint8)
    return images, np.asarray(digits.target).astype(np.int64)
