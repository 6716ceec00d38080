"""What is done with trained retina models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gridrun.errors import ConfigError
from gridrun.hdf5 import open_file, reading
from gridrun.nn import field_side
from gridrun.training.data import in_order
from gridrun.training.trainer import EVAL_BATCH_SIZE
from torchdeepretina import datas, metrics
from torchdeepretina.hyperparams import RetinaHyperparams
from torchdeepretina.windows import Windows, model_inputs

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from gridrun.analysis.run import Run

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's rates beside the recorded ones.

    Args:
        rates: (N, U) predicted, Hz (binned responses: spikes per bin / bin width).
        targets: (N, U) recorded, Hz; of the test split the mean over repeats.
        time_s: (N,) of the target bins.
        cells: (U,) numbers of the recorded cells.
        split: train, val or test.
        mean_rates: (U,) recorded, mean over the training windows, Hz.
        dt_s: Width of a bin, s.
        repeats: (R, N, U) recorded in each repeat, Hz; test split, where there are.
        counts: (N, U) spikes per bin, mean over repeats; test split, where known.
        truth: (N, U) the rates that made the spikes, Hz; virtual retinas only.
    """

    rates: Floats
    targets: Floats
    time_s: NDArray[np.float64]
    cells: tuple[int, ...]
    split: str
    mean_rates: Floats
    dt_s: float
    repeats: Floats | None = None
    counts: Floats | None = None
    truth: Floats | None = None

    def pearson(self) -> NDArray[np.float64]:
        """Correlation of each cell over the whole split, (U,)."""
        rates, targets = torch.from_numpy(self.rates), torch.from_numpy(self.targets)
        found: NDArray[np.float64] = metrics.pearson_per_cell(rates, targets).numpy()
        return found

    def of_truth(self) -> Predictions:
        """The true rates as a prediction: the ceiling of every model.

        Raises:
            ConfigError: If the recording is of no virtual retina.
        """
        if self.truth is None:
            raise ConfigError("truth: the recording stores no true rates")
        return dataclasses.replace(self, rates=self.truth)


def predict(model: nn.Module, hyps: RetinaHyperparams, split: str) -> Predictions:
    """Predict all windows of a split; of a bootstrap replicate, each window once.

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
    whole = hyps.model_copy(update={"bootstrap_index": None})
    data = datas.open_data(whole, torch.device("cpu"))
    windows = cast(Windows, getattr(data, split))
    retina: Any = model
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        rates = [
            retina.link(retina(model_inputs(model, batch.to(dtype))))
            for batch in in_order(windows, EVAL_BATCH_SIZE)
        ]
    cells = tuple(data.info.labels["cells"])
    unit_hz = windows.unit_hz(hyps.response_type)
    time_s, truth = _stored(hyps, windows, split, cells)
    train = cast(Windows, data.train)
    repeats = windows.repeats
    return Predictions(
        rates=(torch.cat(rates) * unit_hz).float().numpy(),
        targets=(windows.targets * unit_hz).numpy(),
        time_s=time_s,
        cells=cells,
        split=split,
        mean_rates=(train.targets.double().mean(0) * unit_hz).float().numpy(),
        dt_s=windows.dt_s,
        repeats=None if repeats is None else (repeats * unit_hz).numpy(),
        counts=None if windows.counts is None else windows.counts.numpy(),
        truth=truth,
    )


def _stored(
    hyps: RetinaHyperparams, windows: Windows, split: str, cells: tuple[int, ...]
) -> tuple[NDArray[np.float64], Floats | None]:
    """Time of each target bin, s, and the true rates where the file has them."""
    name = "test" if split == "test" else "train"
    last = windows.first_frames.numpy() + windows.n_lags - 1
    path = datas.recording_path(hyps)
    with reading(path), open_file(path) as file:
        time_s: NDArray[np.float64] = file[f"{name}/time"][:].astype(np.float64)
        time_s = time_s[last] + hyps.target_offset * windows.dt_s
        if f"truth/{name}/rate" not in file:
            return time_s, None
        rates = file[f"truth/{name}/rate"][:]
    truth = rates[list(cells)][:, last + hyps.target_offset].T
    return time_s, np.ascontiguousarray(truth, np.float32)


def cell_metrics(predictions: Predictions) -> pd.DataFrame:
    """What is measured of each cell, and mean and s.e.m. over cells without NaN.

    Columns: r; cc_norm, cc_max, fev, explainable (NaN without repeats) and
    bits_per_spike (NaN without counts), as in `torchdeepretina.metrics`; mean_hz,
    n_spikes of all repeats, and gain, the slope of targets on rates. Index: the cells,
    then mean, sem and n.
    """
    import pandas as pd

    one = predictions
    x, y = torch.from_numpy(one.rates), torch.from_numpy(one.targets)
    nothing = torch.full((x.shape[1],), float("nan"))
    columns = {"r": metrics.pearson_per_cell(x, y)}
    columns |= dict.fromkeys(metrics.OF_REPEATS, nothing)
    if one.repeats is not None:
        columns |= metrics.of_repeats(x, torch.from_numpy(one.repeats))
    columns["bits_per_spike"] = columns["n_spikes"] = nothing
    if one.counts is not None:
        counts, mean = torch.from_numpy(one.counts), torch.from_numpy(one.mean_rates)
        columns["bits_per_spike"] = metrics.bits_per_spike(x, counts, mean, one.dt_s)
        n_repeats = 1 if one.repeats is None else len(one.repeats)
        columns["n_spikes"] = counts.double().sum(0) * n_repeats
    columns["mean_hz"] = y.double().mean(0)
    centred = x.double() - x.double().mean(0)
    columns["gain"] = (centred * y).sum(0) / centred.square().sum(0)
    table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    table.index = pd.Index([*one.cells], name="cell", dtype=object)
    statistics = {"mean": table.mean(), "sem": table.sem(), "n": table.count()}
    return pd.concat([table, pd.DataFrame(statistics).T])


def plot_predictions(
    predictions: Predictions,
    cells: Sequence[int] | None = None,
    first_s: float = 0.0,
    duration_s: float = 4.0,
) -> Figure:
    """Recorded and predicted rate of some cells over some seconds.

    Recorded is the mean over repeats, its band ± s.e.m., where there are repeats.

    Args:
        predictions: Of one split.
        cells: Numbers of recorded cells; None: the first four.
        first_s: Start, seconds from the first target bin.
        duration_s: Length shown, seconds.

    Raises:
        ConfigError: For a cell that was not predicted.
    """
    from matplotlib.figure import Figure

    one = predictions
    chosen = cells if cells is not None else one.cells[:4]
    if unknown := [cell for cell in chosen if cell not in one.cells]:
        raise ConfigError(f"cells: {unknown} not predicted; there are {one.cells}")
    r = one.pearson()
    time_s = one.time_s - one.time_s[0]
    shown = (time_s >= first_s) & (time_s < first_s + duration_s)
    t = time_s[shown]
    figure = Figure(figsize=(8, 1.6 * len(chosen) + 0.7), layout="constrained")
    axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
    for axis, cell in zip(axes, chosen, strict=True):
        unit = one.cells.index(cell)
        recorded = one.targets[shown, unit]
        if one.repeats is None:
            axis.fill_between(t, recorded, color="0.8", label="recorded")
        else:
            n_repeats = len(one.repeats)
            spread = one.repeats[:, shown, unit].std(0, ddof=1) / n_repeats**0.5
            label = f"recorded, mean ± s.e.m. of {n_repeats} repeats"
            low, high = recorded - spread, recorded + spread
            axis.fill_between(t, low, high, color="0.75", lw=0, label=label)
        if one.truth is not None:
            axis.plot(t, one.truth[shown, unit], "k", lw=0.8, label="true rate")
        axis.plot(t, one.rates[shown, unit], "C3", lw=1.2, label="model")
        axis.set_title(f"cell {cell}, r = {r[unit]:.2f} ({one.split})", size=9)
        axis.set_ylabel("rate (Hz)")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False
    )
    axes[-1].set_xlabel("time (s)")
    return figure


def onehot_places(model: nn.Module) -> pd.DataFrame:
    """Where the one-hot weights of a loaded RetinotopicModel point.

    Returns:
        Per cell: probability of the likeliest place; row and column, in the image, of
        the centre of its receptive field; where known the cell's own centre and the
        distance from it, pixels.
    """
    import pandas as pd

    maps = _onehot_maps(model)
    hyps: Any = model.hyps
    offset = (field_side(hyps.ksizes) - 1) // 2
    best = maps.reshape(len(maps), -1).argmax(1)
    rows, columns = np.divmod(best, maps.shape[2])
    facts: Any = model
    table = pd.DataFrame(
        {
            "probability": maps.max((1, 2)),
            "row": rows + offset,
            "column": columns + offset,
        },
        index=pd.Index(facts.cells, name="cell"),
    )
    if facts.centers is not None:
        centers = np.array(facts.centers)
        table["center_row"], table["center_column"] = centers.T
        gap = table[["row", "column"]].to_numpy() - centers
        table["distance_px"] = np.hypot(*gap.T)
    return table


def _onehot_maps(model: nn.Module) -> Floats:
    """Probabilities of a RetinotopicModel's places, (U, H', W')."""
    onehot: Any = getattr(model, "onehot", None)
    if onehot is None:
        raise ConfigError("onehot: only a RetinotopicModel has one-hot weights")
    height, width = onehot.shape
    with torch.no_grad():
        maps: Floats = onehot.probabilities().float().numpy()
    return maps.reshape(-1, height, width)


def plot_onehot(model: nn.Module) -> Figure:
    """One-hot weights of a loaded RetinotopicModel, with the cells' centres marked."""
    from matplotlib.figure import Figure

    maps, table = _onehot_maps(model), onehot_places(model)
    hyps: Any = model.hyps
    offset = (field_side(hyps.ksizes) - 1) // 2
    height, width = maps.shape[1:]
    edges = (offset - 0.5, offset + width - 0.5, offset + height - 0.5, offset - 0.5)
    n_columns = min(len(maps), 6)
    n_rows = -(-len(maps) // n_columns)
    size = (1.7 * n_columns + 0.8, 1.9 * n_rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(maps) :]:
        axis.set_axis_off()
    for axis, values, (cell, row) in zip(
        axes.flat, maps, table.iterrows(), strict=False
    ):
        image = axis.imshow(values, extent=edges, vmin=0, vmax=1, cmap="Greys")
        if "center_row" in table:
            axis.plot(row.center_column, row.center_row, "C3+", ms=9, mew=1.5)
        axis.set_title(f"cell {cell}, p = {row.probability:.2f}", size=8)
    figure.colorbar(image, ax=axes, label="probability", shrink=0.8)
    figure.supxlabel("column (pixels)", size=9)
    figure.supylabel("row (pixels)", size=9)
    return figure


def pruning_steps(run: Run) -> pd.DataFrame:
    """The judged removals of a run with `prune`, one a row.

    Columns: attempt, epoch, layer, channel, score, scores, baseline, val_acc, verdict,
    and n_<layer>, channels of each layer after it.

    Raises:
        ConfigError: If the run has pruned nothing.
    """
    import pandas as pd

    path = run.folder.path / "pruning.csv"
    if not path.exists():
        raise ConfigError(f"{run.folder.path}: no pruning.csv; was it run with prune?")
    table = pd.read_csv(path, converters={"scores": json.loads})
    hyps: Any = run.hyps
    for i, n_chans in enumerate(hyps.chans):
        layer = f"layers.{i}"
        gone = (table.layer == layer) & (table.verdict == "accept")
        table[f"n_{layer}"] = n_chans - gone.cumsum()
    return table


def plot_pruning(run: Run) -> Figure:
    """Correlation and channels left over the removals that a run tried."""
    from matplotlib.figure import Figure

    table = pruning_steps(run)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    above.step(table.attempt, table.baseline, "0.5", where="mid", label="to hold")
    for verdict, style in (("accept", "C2o"), ("reject", "C3x")):
        tried = table[table.verdict == verdict]
        above.plot(tried.attempt, tried.val_acc, style, label=f"{verdict}ed")
    above.set_ylabel("val_acc (Pearson r)")
    above.legend(frameon=False, fontsize=8)
    for name in (one for one in table.columns if one.startswith("n_layers")):
        label = name.removeprefix("n_")
        below.step(table.attempt, table[name], where="mid", label=label)
    below.set_ylabel("channels left")
    below.set_xlabel("removal tried")
    below.legend(frameon=False, fontsize=8)
    below.yaxis.get_major_locator().set_params(integer=True)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
    above.set_title(f"pruning of {run.folder.path.name}", size=9)
    return figure
