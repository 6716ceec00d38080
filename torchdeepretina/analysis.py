"""What is done with trained retina models."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gridrun.errors import ConfigError
from gridrun.training.data import Data, in_order
from gridrun.training.trainer import EVAL_BATCH_SIZE
from torchdeepretina import datas
from torchdeepretina.hyperparams import RetinaHyperparams
from torchdeepretina.metrics import pearson_per_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float32]
BIN_S = 0.01


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's rates beside the recorded ones.

    Args:
        rates: (N, U) predicted, Hz (binned responses: spikes per bin / bin width).
        targets: (N, U) recorded, Hz.
        time_s: (N,) of the target bins.
        cells: (U,) numbers of the recorded cells.
        split: train, val or test.
    """

    rates: Floats
    targets: Floats
    time_s: NDArray[np.float64]
    cells: tuple[int, ...]
    split: str

    def pearson(self) -> NDArray[np.float64]:
        """Correlation of each cell over the whole split, (U,)."""
        rates, targets = torch.from_numpy(self.rates), torch.from_numpy(self.targets)
        found: NDArray[np.float64] = pearson_per_cell(rates, targets).numpy()
        return found


def predict(model: nn.Module, hyps: RetinaHyperparams, split: str) -> Predictions:
    """Predict all windows of a split.

    Args:
        model: In eval mode, on the CPU.
        hyps: Name the recording.
        split: train, val or test.

    Raises:
        ConfigError: For another split.
        DataError: If the recording is not there as it was.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"split: expected train, val or test, got {split!r}")
    data = datas.open_data(hyps, torch.device("cpu"))
    windows = cast(datas.Windows, getattr(data, split))
    retina: Any = model
    with torch.no_grad():
        rates = [
            retina.link(retina(batch.inputs))
            for batch in in_order(windows, EVAL_BATCH_SIZE)
        ]
    in_hz = 1 / BIN_S if hyps.response_type == "binned" else 1.0
    return Predictions(
        rates=(torch.cat(rates) * in_hz).numpy(),
        targets=(windows.targets * in_hz).numpy(),
        time_s=_times(hyps, data, split),
        cells=tuple(data.info.labels["cells"]),
        split=split,
    )


def _times(hyps: RetinaHyperparams, data: Data, split: str) -> NDArray[np.float64]:
    """Time of each target bin, s."""
    windows = cast(datas.Windows, getattr(data, split))
    name = "test" if split == "test" else "train"
    with datas.open_file(datas.recording_path(hyps)) as file:
        time = file[f"{name}/time"][:].astype(np.float64)
    bins = windows.starts.numpy() + windows.n_lags - 1
    found: NDArray[np.float64] = time[bins] + hyps.target_offset * BIN_S
    return found


def plot_predictions(
    predictions: Predictions,
    cells: tuple[int, ...] | None = None,
    first_s: float = 0.0,
    duration_s: float = 4.0,
) -> Figure:
    """Recorded and predicted rate of some cells over some seconds.

    Args:
        predictions: Of one split.
        cells: Numbers of recorded cells; None: the first four.
        first_s: Start, seconds from the first target bin.
        duration_s: Length shown, seconds.
    """
    from matplotlib.figure import Figure

    chosen = cells if cells is not None else predictions.cells[:4]
    r = predictions.pearson()
    time_s = predictions.time_s - predictions.time_s[0]
    is_shown = (time_s >= first_s) & (time_s < first_s + duration_s)
    figure = Figure(figsize=(8, 1.6 * len(chosen) + 0.6), layout="constrained")
    axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    for axis, cell in zip(axes, chosen, strict=True):
        unit = predictions.cells.index(cell)
        t = time_s[is_shown]
        recorded = predictions.targets[is_shown, unit]
        axis.fill_between(t, recorded, color="0.8", label="recorded")
        axis.plot(t, predictions.rates[is_shown, unit], "C3", lw=1.2, label="model")
        axis.set_title(f"cell {cell}, r = {r[unit]:.2f} ({predictions.split})", size=9)
        axis.set_ylabel("rate (Hz)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, ncols=2, fontsize=8, loc="upper right")
    axes[-1].set_xlabel("time (s)")
    return figure
