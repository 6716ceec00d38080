"""Where recorded cells look: published centres, and peaks of triggered averages.

Imports no torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridrun.hdf5 import chunks, find_array, members, open_file, reading, values_of

STA_LAGS = 25
# Row and column of the curated cells of the public recordings (Maheswaranathan et
# al. 2023), by cell number.
CURATED_CENTERS: dict[str, dict[int, tuple[int, int]]] = {
    "15-10-07": {0: (21, 18), 1: (24, 20), 2: (22, 18), 3: (27, 18), 4: (31, 20)},
    "15-11-21a": {6: (37, 3), 10: (39, 6), 12: (20, 15), 13: (41, 2)},
    "15-11-21b": {
        0: (16, 13),
        1: (20, 12),
        3: (19, 7),
        5: (19, 3),
        8: (21, 7),
        9: (22, 6),
        13: (21, 7),
        14: (25, 3),
        16: (23, 6),
        17: (26, 4),
        18: (24, 6),
        20: (26, 7),
        21: (27, 9),
        22: (26, 9),
        23: (27, 11),
        24: (26, 13),
        25: (24, 10),
    },
}
Floats = NDArray[np.float64]
Centers = dict[int, tuple[int, int]]


def sta_peaks(path: Path, frame_shape: tuple[int, int]) -> Centers:
    """Where the spike-triggered averages of a white-noise recording peak.

    Args:
        path: whitenoise.h5 of the same cells; nothing is known if it is absent.
        frame_shape: (H, W) that its frames must have.
    """
    if not path.is_file():
        return {}
    with reading(path), open_file(path) as file:
        stimulus = find_array(file, "/train/stimulus", 3)
        counts = find_array(file, "/train/response/binned", 2)
        stas: dict[int, Floats] = {}
        if stored := members(file, "train/stas"):
            for name in stored:
                match = re.fullmatch(r"cell(\d+)", name)
                data = find_array(file, f"/train/stas/{name}", 3)
                if match and not isinstance(data, str):
                    stas[int(match[1]) - 1] = values_of(data).astype(np.float64)
        elif not isinstance(stimulus, str) and not isinstance(counts, str):
            stas = dict(enumerate(_triggered_sum(stimulus, values_of(counts))))
    return {
        cell: spatial_peak(sta)
        for cell, sta in stas.items()
        if sta.shape[1:] == frame_shape and sta.any() and np.isfinite(sta).all()
    }


def _triggered_sum(stimulus: Any, counts: Floats) -> Floats:
    """Σ_t (y(t) − ȳ)·frame(t − l) for lags l = 1 … STA_LAGS, (C, lags, H, W)."""
    n_frames, height, width = stimulus.shape
    centred = (counts - counts.mean(1, keepdims=True))[:, :n_frames]
    total = np.zeros((STA_LAGS, len(counts), height * width))
    for first, part in chunks(stimulus):
        frames = part.reshape(len(part), -1).astype(np.float32)
        for lag in range(1, STA_LAGS + 1):
            response = centred[:, first + lag : first + lag + len(part)]
            total[lag - 1] += response.astype(np.float32) @ frames[: response.shape[1]]
    return total.swapaxes(0, 1).reshape(len(counts), STA_LAGS, height, width)


def spatial_peak(sta: Floats) -> tuple[int, int]:
    """Row and column where the spatial part of an STA (lags, H, W) peaks."""
    spatial = np.linalg.svd(sta.reshape(len(sta), -1), full_matrices=False)[2][0]
    row, column = divmod(int(np.abs(spatial).argmax()), sta.shape[2])
    return row, column
