"""Predictions beside targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from gridrun.diagnostics.arrays import Floats, as_array
from gridrun.diagnostics.context import Context, Count, Found, NotApplicable, Samples
from gridrun.figures import (
    dot_size,
    finite_range,
    lighten,
    new_figure,
    whole_ticks,
    without_ticks,
)

MAX_COUNTED = 15  # classes up to which a confusion picture shows counts


def predictions(
    model: nn.Module, batch: Samples, context: Context, *, n_shown: Count = 6
) -> Found:
    """Predictions of a batch against its targets.

    Args:
        model, batch, context: As of every diagnostic.
        n_shown: Units, or pictures, that the figure shows at most.

    Returns:
        Of classes (integer targets, logits): `acc`, `confusion` (U, U) counts, true
        class by row. Of pictures (targets of the inputs' shape (B, C, H, W)): `mse`,
        and `mse_of_inputs`, what leaving the inputs as they are gives. Of other
        targets (B, ...): `mse` and `r2`, the share of the targets' variance, each unit
        around its own mean, that is predicted. Always a `figure`.

    Raises:
        NotApplicable: If predictions and targets do not fit.
    """
    with torch.no_grad():
        predicted = context.predict(batch.inputs)
    targets = batch.targets
    if _are_classes(predicted, targets):
        return _of_classes(predicted, targets)
    if predicted.numel() != targets.numel() or len(predicted) != len(targets):
        raise NotApplicable(
            f"predictions: of shape {tuple(predicted.shape)}, but targets are "
            f"{tuple(targets.shape)}"
        )
    if targets.ndim == 4 and targets.shape == batch.inputs.shape == predicted.shape:
        return _of_pictures(batch.inputs, predicted, targets, n_shown)
    return _of_units(
        as_array(predicted.flatten(1) if predicted.ndim > 1 else predicted[:, None]),
        as_array(targets.flatten(1) if targets.ndim > 1 else targets[:, None]),
        n_shown,
    )


# --- classes ------------------------------------------------------------------------


def _are_classes(predicted: Tensor, targets: Tensor) -> bool:
    """Whether these are logits (B, U, ...), U ≥ 2, and labels (B, ...)."""
    has_logits = predicted.ndim > 1 and predicted.shape[1] > 1
    places = predicted.shape[:1] + predicted.shape[2:]
    return has_logits and not targets.is_floating_point() and targets.shape == places


def _of_classes(logits: Tensor, labels: Tensor) -> Found:
    """Logits (B, U, ...) against labels (B, ...); negative ones are no classes."""
    n_classes = logits.shape[1]
    pairs = labels * n_classes + logits.argmax(1)
    counts = torch.bincount(pairs[labels >= 0].cpu(), minlength=n_classes**2)
    confusion = counts.view(n_classes, n_classes).numpy()
    return {
        "acc": float(confusion.trace() / max(confusion.sum(), 1)),
        "confusion": confusion,
        "figure": _confusion_picture(confusion),
    }


def _confusion_picture(confusion: NDArray[np.int64]) -> Figure:
    n = len(confusion)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure, axes = new_figure(1, 1, (5.2, 4.4))
    axis = axes[0, 0]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if n <= MAX_COUNTED:
        for (row, column), count in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = str(count) if count else ""
            axis.text(column, row, text, ha="center", va="center", size=7, color=colour)
        axis.set_xticks(range(n))
        axis.set_yticks(range(n))
    else:
        whole_ticks(axis.xaxis, axis.yaxis)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(f"{confusion.sum()} samples", size=9)
    figure.colorbar(image, ax=axis, label="share of the true class")
    return figure


# --- pictures -----------------------------------------------------------------------


def _of_pictures(
    inputs: Tensor, predicted: Tensor, targets: Tensor, n_shown: int
) -> Found:
    """All (B, C, H, W)."""
    x, y, t = (as_array(one) for one in (inputs, predicted, targets))
    n = min(n_shown, len(t))
    rows = {"input": x[:n], "prediction": y[:n], "target": t[:n]}
    return {
        "mse": float(np.square(y - t).mean()),
        "mse_of_inputs": float(np.square(x - t).mean()),
        "figure": picture_grid(rows),
    }


def picture_grid(rows: dict[str, Floats], titles: Sequence[str] = ()) -> Figure:
    """Pictures (n, C, H, W) on one scale, that of the targets.

    Args:
        rows: By name; one is `target`.
        titles: (n,), of the columns, if they have any.
    """
    low, high = finite_range(rows["target"])
    n, n_chans = rows["target"].shape[:2]
    figure, axes = new_figure(3, n, (1.3 * n + 1.2, 4.2))
    image: Any = None
    for (name, pictures), line in zip(rows.items(), axes, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            if n_chans == 3:
                unit = np.nan_to_num((picture - low) / (high - low))
                axis.imshow(unit.clip(0, 1).transpose(1, 2, 0))
            else:
                image = axis.imshow(picture[0], cmap="gray", vmin=low, vmax=high)
            without_ticks(axis)
        line[0].set_ylabel(name)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, size=8)
    if n_chans == 3:
        figure.suptitle(f"black {low:.3g}, full colour {high:.3g}", size=9)
    else:
        label = "value" if n_chans == 1 else f"value of the first of {n_chans} channels"
        figure.colorbar(image, ax=axes, label=label, shrink=0.7)
    return figure


# --- continuous targets -------------------------------------------------------------


def _of_units(predicted: Floats, targets: Floats, n_shown: int) -> Found:
    """Both (B, U)."""
    missed = np.square(predicted - targets)
    spread = np.square(targets - targets.mean(0))
    r2 = 1 - missed.sum() / spread.sum() if spread.sum() > 0 else np.nan
    return {
        "mse": float(missed.mean()),
        "r2": float(r2),
        "figure": _scatter_picture(predicted, targets, n_shown),
    }


def _scatter_picture(predicted: Floats, targets: Floats, n_shown: int) -> Figure:
    n = min(n_shown, targets.shape[1])
    n_columns = 2 if n == 4 else min(n, 3)
    n_rows = -(-n // n_columns)
    size = (2.5 * n_columns + 0.6, 2.4 * n_rows + 0.6)
    figure, axes = new_figure(n_rows, n_columns, size)
    for unit, axis in enumerate(axes.flat):
        if unit >= n:
            axis.set_axis_off()
            continue
        x, y = targets[:, unit], predicted[:, unit]
        axis.plot(x, y, "o", ms=dot_size(len(x), 2), alpha=0.6, mew=0)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axis.plot(ends, ends, color="0.5", lw=0.8, label="equal")
        axis.set_title(f"unit {unit}, mse {np.square(x - y).mean():.3g}", size=8)
        axis.tick_params(labelsize=7)
        lighten(axis)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.supxlabel("target", size=9)
    figure.supylabel("prediction (same unit)", size=9)
    return figure
