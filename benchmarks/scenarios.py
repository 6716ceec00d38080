"""The grids that are measured, and the data that they train on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.measure import ROOT
from gridrun.config import complete
from gridrun.plugins import library_of

# the configuration of performance.md, section 2
DENSE: dict[str, Any] = {
    "model_type": "BNCNN",
    "img_shape": [40, 50, 50],
    "chans": [8, 8],
    "ksizes": [15, 11],
    "noise": 0.05,
    "batch_size": 128,
    "lr": 0.002,
    "l2": 0.001,
    "val_p": 0.1,
    "seed": 0,
}
RECIPE: dict[str, Any] = DENSE | {
    "model_type": "LinearStackedBNCNN",
    "ksizes": [15, 11, 11],
    "stackconvs": True,
    "convgc": True,
    "bnorm_d": 2,
}
SMALL = {"img_shape": [6, 20, 20], "chans": [3, 3], "batch_size": 32}
QUICK_DENSE = SMALL | {"ksizes": [7, 5]}
QUICK_RECIPE = SMALL | {"ksizes": [7, 5, 5]}
TINY10: dict[str, Any] = {
    "model_type": "Tiny10",
    "img_shape": [3, 32, 32],
    "batch_size": 64,
    "lr": 0.001,
    "seed": 0,
}
PLAIN16: dict[str, Any] = TINY10 | {"model_type": "PlainN", "width": 16}
DIGITS: dict[str, Any] = {
    "exp_name": "bench",
    "model_type": "SmallNet",
    "img_shape": [1, 8, 8],
    "chans": [16, 32],
    "ksizes": [3, 3],
    "paddings": [1, 1],
    "strides": [1, 2],
    "mid_dims": 64,
    "dataset": "digits",
    "data_root": str(ROOT / "data"),
    "batch_size": 64,
    "lr": 0.002,
    "l2": 0.0001,
    "seed": 0,
}
RETINA_AXES = {"lr": [0.001, 0.002, 0.005], "noise": [0.02, 0.05], "l2": [1e-4, 1e-3]}
IMAGE_AXES = {"lr": [0.0005, 0.001, 0.002], "l2": [0.0, 1e-4]}
DIGITS_AXES = {"chans": [[16, 32], [32, 64]], "bnorm": [True, False]}


@dataclasses.dataclass(frozen=True)
class Grid:
    """A pair of JSON files' content.

    Args:
        name: Of the sweep.
        hyperparams: Settings of every run.
        hyperranges: Values to try.
        n_peer_runs: Runs that a peer is timed on; None: all.
    """

    name: str
    hyperparams: Mapping[str, Any]
    hyperranges: Mapping[str, Any]
    n_peer_runs: int | None = None

    def runs(self) -> list[dict[str, Any]]:
        """The complete settings of every run, in the order of the grid."""
        repeats = range(int(self.hyperparams.get("n_repeats", 1)))
        points = itertools.product(*self.hyperranges.values())
        seed = int(self.hyperparams["seed"])
        return [
            settings(
                {**self.hyperparams, **dict(zip(self.hyperranges, point, strict=True))}
                | {"n_repeats": 1, "seed": seed + repeat, "split_seed": seed}
            )
            for point in points
            for repeat in repeats
        ]


def completed(values: Mapping[str, Any]) -> Any:
    """Settings with every default filled in, checked by their library."""
    library = library_of(str(values["model_type"]))
    assert library is not None
    given = {"exp_name": "bench", "n_epochs": 1, **values}
    hyps, problems = complete(given, library.schema)
    if problems or hyps is None:
        raise ValueError(f"{problems}")
    return hyps.model_copy(update=hyps.resolved())


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain data, for peers."""
    found: dict[str, Any] = completed(values).model_dump(mode="json")
    return found


def retina_data(
    root: Path, n_frames: int, side: int = 50, n_cells: int = 5
) -> dict[str, Any]:
    """Simulate a recording as `gridrun data simulate` does, cut to a size.

    Args:
        root: Data root.
        n_frames: Training frames; a tenth as many are for test.
        side: Height and width of a frame.
        n_cells: Cells.

    Returns:
        The keys that name it.
    """
    from torchdeepretina.simulate.recipe import Recipe, Size
    from torchdeepretina.simulate.recording import write_recording

    name = f"sim-{n_frames}-{side}-{n_cells}"
    path = root / name / "naturalscene.h5"
    if not path.exists():
        path.parent.mkdir(parents=True)
        size = Size(n_frames, 1, max(n_frames // 10, 200), side, side, n_cells)
        with h5py.File(path, "w") as file:
            write_recording(file, "naturalscene", Recipe(size, seed=7), lambda n: None)
    return {"data_root": str(root), "dataset": name, "stim_type": "naturalscene"}


def noise_recording(root: Path, n_frames: int, side: int = 50) -> dict[str, Any]:
    """Write a large recording of random bytes and rates, where only memory counts."""
    name = f"noise-{n_frames}-{side}"
    path = root / name / "noise.h5"
    rng = np.random.default_rng(0)
    if not path.exists():
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            for split, n in (("train", n_frames), ("test", 400)):
                shape = (n, side, side)
                stimulus = file.create_dataset(f"{split}/stimulus", shape, np.uint8)
                for first in range(0, n, 1000):
                    count = min(1000, n - first)
                    frames = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
                    stimulus[first : first + count] = frames
                file[f"{split}/time"] = 0.01 * np.arange(n)
                rates = rng.gamma(1.0, 5.0, (5, n))
                file[f"{split}/response/firing_rate_10ms"] = rates
    return {"data_root": str(root), "dataset": name, "stim_type": "noise"}


def image_data(root: Path, n_train: int, side: int = 32) -> dict[str, Any]:
    """Write coloured pictures of ten classes: a coarse pattern each, and noise.

    Args:
        root: Data root.
        n_train: Training pictures; a quarter as many are for test.
        side: Height and width.

    Returns:
        The keys that name them.
    """
    name = f"patterns-{n_train}-{side}"
    path = root / name / "images.h5"
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 196, (10, 3, side // 8, side // 8))
    patterns = coarse.repeat(8, axis=2).repeat(8, axis=3)
    if not path.exists():
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            for split, n in (("train", n_train), ("test", n_train // 4)):
                labels = np.arange(n) % 10
                noise = rng.normal(0, 60, (n, 3, side, side))
                pictures = (patterns[labels] + noise).clip(0, 255).astype(np.uint8)
                file[f"{split}/images"] = pictures
                file[f"{split}/labels"] = labels.astype(np.int64)
            names = [f"pattern {i}" for i in range(10)]
            file.create_dataset("class_names", data=names, dtype=h5py.string_dtype())
    return {"data_root": str(root), "dataset": name, "augment": ["crop", "flip"]}
