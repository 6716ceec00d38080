"""The group /truth: the retina that made a file, written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gridrun.errors import DataError
from torchdeepretina.simulate.kernels import (
    KINDS,
    pool_time,
    subunit_space,
    subunit_time,
)
from torchdeepretina.simulate.recipe import GENERATOR_VERSION, Recipe
from torchdeepretina.simulate.retina import Calibration, Grey, Retina


def write_truth(truth: h5py.Group, retina: Retina, calibration: Calibration) -> None:
    """Write the cells, kernels and fitted constants into the group /truth."""
    truth["centers"] = retina.centers
    truth["polarity"] = retina.polarity
    truth["type"] = np.array(retina.kinds, "S4")
    truth["weights/excitation"] = retina.excitation
    truth["weights/pool"] = retina.pool
    truth["kernels/subunit_space"] = subunit_space()
    for kind in KINDS:
        truth[f"kernels/subunit_time_{kind}"] = subunit_time(kind)
    truth["kernels/pool_time"] = pool_time()
    fitted = truth.create_group("calibration")
    fitted["theta"] = retina.theta
    fitted["target_hz"] = retina.target_hz
    fitted["pool_mean"] = calibration.pool_mean
    fitted["drive_mean"] = calibration.drive_mean
    fitted["drive_std"] = calibration.drive_std
    fitted["amplitude_hz"] = calibration.amplitude_hz
    fitted.attrs["grey_mean"] = calibration.grey.mean
    fitted.attrs["grey_scale"] = calibration.grey.scale
    truth.attrs["kappa"] = retina.kappa
    truth.attrs["is_rectified"] = retina.is_rectified


def write_origin(truth: h5py.Group, recipe: Recipe, kind: str) -> None:
    """Note with what parameters, seed and version a file was made."""
    truth.attrs["parameters"] = recipe.record(kind)
    truth.attrs["seed"] = recipe.seed
    truth.attrs["generator_version"] = GENERATOR_VERSION


def read_truth(path: Path) -> tuple[Retina, Calibration]:
    """The virtual retina that made a file, ready for `respond`.

    Args:
        path: naturalscene.h5 or whitenoise.h5 of a virtual retina.

    Returns:
        The cells and the constants fitted to the file's training movie.

    Raises:
        DataError: The file is not readable or holds no truth.
    """
    try:
        with h5py.File(path, "r") as file:
            if "truth" not in file:
                raise DataError(
                    f"{path}: no group /truth, only {sorted(file)}; expected a file "
                    "of a virtual retina, made by `gridrun data simulate`"
                )
            return _truth(file["truth"])
    except (OSError, KeyError) as error:
        raise DataError(
            f"{path}: cannot be read as the file of a virtual retina ({error}); make "
            "it again with `gridrun data simulate NAME --force`"
        ) from error


def _truth(truth: h5py.Group) -> tuple[Retina, Calibration]:
    fitted: dict[str, Any] = {k: d[:] for k, d in truth["calibration"].items()}
    grey = {
        k: float(truth["calibration"].attrs[f"grey_{k}"]) for k in ("mean", "scale")
    }
    retina = Retina(
        centers=truth["centers"][:],
        polarity=truth["polarity"][:],
        kinds=tuple(kind.decode() for kind in truth["type"][:]),
        excitation=truth["weights/excitation"][:],
        pool=truth["weights/pool"][:],
        theta=fitted.pop("theta"),
        target_hz=fitted.pop("target_hz"),
        kappa=float(truth.attrs["kappa"]),
        is_rectified=bool(truth.attrs["is_rectified"]),
    )
    return retina, Calibration(grey=Grey(**grey), **fitted)
