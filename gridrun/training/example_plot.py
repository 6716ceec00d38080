"""Pictures of a few samples: input, prediction, target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gridrun.diagnostics.predictions import picture_grid
from gridrun.figures import (
    finite_range,
    lighten,
    new_figure,
    whole_numbers,
    whole_ticks,
    without_ticks,
)

Array: TypeAlias = NDArray[Any]
MOST_SHOWN = 8
N_COLUMNS = 4
MOST_DOTS = 30  # values of a line whose points are marked


def examples_figure(
    inputs: Any, predictions: Any, targets: Any, indices: Sequence[int] | None = None
) -> Figure:
    """One panel a sample; arrays that fit no picture are drawn as lines.

    Args:
        inputs: (n, ...).
        predictions: (n, ...): of the targets' shape, or logits (n, U, ...) of classes.
        targets: (n, ...), or classes (n, ...): whole numbers.
        indices: (n,), the samples' places in their subset, for the titles.
    """
    given = [np.atleast_1d(np.asarray(one)) for one in (inputs, predictions, targets)]
    n = min(MOST_SHOWN, *map(len, given))
    x, y, t = (one[:n] for one in given)
    if n == 0:
        return Figure(figsize=(3, 2))
    titles = [f"example {sample}" for sample in range(n)]
    if indices is not None and len(indices) >= n:
        titles = [f"sample {index}" for index in indices[:n]]
    is_class = _are_classes(y, t)
    if is_class and t.ndim == 1:
        return _class_figure(x, y, t, titles)
    if is_class and t.ndim == 3:
        return _map_figure(x, y, t, titles)
    if is_class:
        return _line_figure(x, y.argmax(1), t, titles, "place", "class")
    if t.ndim == 4 and t.size and x.shape == t.shape == y.shape:
        return picture_grid({"input": x, "prediction": y, "target": t}, titles)
    return _line_figure(x, y, t, titles, "unit", "value")


def _are_classes(predictions: Array, targets: Array) -> bool:
    """Whether these are logits (n, U, ...), U ≥ 2, and labels (n, ...)."""
    has_logits = predictions.ndim == targets.ndim + 1 and predictions.shape[1] > 1
    places = predictions.shape[:1] + predictions.shape[2:]
    is_whole = targets.dtype.kind in "iub"
    return has_logits and is_whole and targets.shape == places and targets.size > 0


def _are_images(inputs: Array) -> bool:
    """Grey or coloured ones, (n, C, H, W)."""
    return inputs.ndim == 4 and inputs.shape[1] in (1, 3) and inputs.size > 0


def _draw_image(axis: Axes, image: Array) -> None:
    """(C, H, W), C 1 or 3, on its own scale."""
    low, high = finite_range(image)
    unit = np.nan_to_num((image.astype(float) - low) / (high - low))
    unit = unit.clip(0, 1).transpose(1, 2, 0)
    sides = sorted(unit.shape[:2])
    aspect: Any = "equal" if sides[1] < 8 * sides[0] else "auto"
    axis.imshow(unit.repeat(3 // unit.shape[2], axis=2), aspect=aspect)
    without_ticks(axis)


# --- a class for each sample --------------------------------------------------------


def _class_figure(
    inputs: Array, logits: Array, labels: Array, titles: Sequence[str]
) -> Figure:
    """Bars of probabilities, below the inputs where these are images."""
    n, n_columns = len(titles), min(len(titles), N_COLUMNS)
    n_rows = -(-n // n_columns)
    ratios = [1.3, 1.0] if _are_images(inputs) else [1.0]
    size = (2.6 * n_columns + 0.6, 1.75 * n_rows * sum(ratios) + 0.6)
    figure, axes = new_figure(
        n_rows * len(ratios), n_columns, size, height_ratios=ratios * n_rows
    )
    panels = axes.reshape(n_rows, len(ratios), n_columns).swapaxes(1, 2)
    for sample, panel in enumerate(panels.reshape(-1, len(ratios))):
        if sample >= n:
            for axis in panel:
                axis.set_axis_off()
            continue
        if len(panel) == 2:
            _draw_image(panel[0], inputs[sample])
        panel[0].set_title(titles[sample], size=8)
        _draw_class(panel[-1], logits[sample], int(labels[sample]))
    figure.supxlabel("class (dark: the true one)", size=9)
    figure.supylabel("probability", size=9)
    return figure


def _draw_class(axis: Axes, logits: Array, label: int) -> None:
    """Probabilities (softmax) of the classes; the true one is dark."""
    with np.errstate(invalid="ignore"):  # of a diverged model
        odds = np.exp(logits.astype(float) - logits.max())
        shares = np.nan_to_num(odds / odds.sum())
    colours = ["0.2" if one == label else "0.75" for one in range(len(logits))]
    axis.bar(np.arange(len(logits)), shares, color=colours)
    axis.set_ylim(0, 1)
    axis.tick_params(labelsize=7)
    whole_ticks(axis.xaxis)
    lighten(axis)


# --- a class for each pixel ---------------------------------------------------------


def _map_figure(
    inputs: Array, logits: Array, labels: Array, titles: Sequence[str]
) -> Figure:
    """Pictures of the predicted and of the true class, below inputs that are images."""
    n, n_classes = logits.shape[:2]
    maps = {"prediction": logits.argmax(1), "target": labels.astype(int)}
    n_rows = 3 if _are_images(inputs) else 2
    figure, axes = new_figure(n_rows, n, (1.3 * n + 1.6, 1.4 * n_rows + 0.2))
    if n_rows == 3:
        for axis, image in zip(axes[0], inputs, strict=True):
            _draw_image(axis, image)
        axes[0, 0].set_ylabel("input")
    palette = _palette(n_classes)
    shown: Any = None
    for (name, pictures), line in zip(maps.items(), axes[-2:], strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            shown = axis.imshow(
                np.ma.masked_where(_are_none(picture, n_classes), picture),
                cmap=palette,
                vmin=-0.5,
                vmax=n_classes - 0.5,
                interpolation="nearest",
            )
            without_ticks(axis)
        line[0].set_ylabel(name)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, size=8)
    has_none = _are_none(maps["target"], n_classes).any()
    label = "class (white: none)" if has_none else "class"
    figure.colorbar(
        shown, ax=axes, label=label, shrink=0.7, ticks=whole_numbers()
    ).minorticks_off()
    return figure


def _are_none(labels: Array, n_classes: int) -> NDArray[np.bool_]:
    """Which labels are no classes, as those that a criterion leaves out."""
    found: NDArray[np.bool_] = (labels < 0) | (labels >= n_classes)
    return found


def _palette(n_classes: int) -> ListedColormap:
    """A colour for each class."""
    name = "tab10" if n_classes <= 10 else "tab20" if n_classes <= 20 else "viridis"
    places: Any = range(n_classes) if n_classes <= 20 else np.linspace(0, 1, n_classes)
    return ListedColormap([colormaps[name](place) for place in places])


# --- numbers ------------------------------------------------------------------------


def _line_figure(
    inputs: Array,
    predictions: Array,
    targets: Array,
    titles: Sequence[str],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Prediction and target of each sample, flattened; single numbers on one scale."""
    n, n_columns = len(titles), min(len(titles), N_COLUMNS)
    n_rows = -(-n // n_columns)
    size = (2.6 * n_columns + 0.6, 2.0 * n_rows + 0.6)
    has_one = targets[0].size == predictions[0].size == 1
    figure, axes = new_figure(n_rows, n_columns, size, sharey=has_one)
    for sample, axis in enumerate(axes.flat):
        if sample >= n:
            axis.set_axis_off()
            continue
        axis.set_title(titles[sample], size=8)
        axis.tick_params(labelsize=7)
        lighten(axis)
        whole_ticks(axis.xaxis)
        if ylabel == "class":
            whole_ticks(axis.yaxis)
        if inputs.shape == targets.shape:
            axis.plot(inputs[sample].ravel(), color="0.75", lw=1, label="input")
        for name, values, colour in (
            ("target", targets[sample].ravel(), "0.2"),
            ("prediction", predictions[sample].ravel(), "C0"),
        ):
            style = ".-" if values.size < MOST_DOTS else "-"
            ms = 12 if has_one else 5
            axis.plot(values, style, color=colour, lw=1, ms=ms, label=name)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel(xlabel, size=9)
    figure.supylabel(ylabel, size=9)
    return figure
