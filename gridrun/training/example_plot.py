"""Pictures of a few samples: input, prediction, target."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gridrun.diagnostics.figures import lighten, new_figure
from gridrun.diagnostics.predictions import picture_grid

MOST_SHOWN = 8
N_COLUMNS = 4


def examples_figure(inputs: Any, predictions: Any, targets: Any) -> Figure:
    """One panel a sample.

    Args:
        inputs: (n, ...).
        predictions: (n, ...): of the targets' shape, or logits (n, U) of classes.
        targets: (n, ...), or classes (n,).
    """
    n = min(len(targets), MOST_SHOWN)
    is_pair = inputs.shape == targets.shape == predictions.shape
    if is_pair and targets.ndim == 4:
        named = {"input": inputs, "prediction": predictions, "target": targets}
        return picture_grid({name: values[:n] for name, values in named.items()})
    n_rows = -(-n // N_COLUMNS)
    size = (2.6 * min(n, N_COLUMNS) + 0.6, 2.0 * n_rows + 0.6)
    figure, axes = new_figure(n_rows, min(n, N_COLUMNS), size)
    for sample, axis in enumerate(axes.flat):
        if sample >= n:
            axis.set_axis_off()
            continue
        axis.set_title(f"example {sample}", size=8)
        axis.tick_params(labelsize=7)
        lighten(axis)
        if targets.ndim == predictions.ndim - 1:
            _draw_class(axis, predictions[sample], int(targets[sample]))
            continue
        if is_pair:
            axis.plot(inputs[sample].ravel(), color="0.75", lw=1, label="input")
        style = ".-" if targets[sample].size < 30 else "-"
        axis.plot(targets[sample].ravel(), style, color="0.2", lw=1, label="target")
        axis.plot(predictions[sample].ravel(), style, color="C0", label="prediction")
    is_class = targets.ndim == predictions.ndim - 1
    if not is_class:
        axes[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel("class" if is_class else "unit", size=9)
    figure.supylabel("probability" if is_class else "value", size=9)
    return figure


def _draw_class(axis: Any, logits: Any, label: int) -> None:
    """Probabilities (softmax) of the classes; the true one is dark."""
    odds = np.exp(logits - logits.max())
    colours = ["0.2" if one == label else "0.75" for one in range(len(logits))]
    axis.bar(np.arange(len(logits)), odds / odds.sum(), color=colours)
    axis.set_ylim(0, 1)
