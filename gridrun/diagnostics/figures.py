"""Figures without pyplot: nothing global changes, nothing stays open."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def as_array(x: Tensor) -> Floats:
    """A tensor of any device and type as float64, without graph."""
    found: Floats = x.detach().to("cpu", torch.float64).numpy()
    return found


def new_figure(
    n_rows: int, n_columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes, (n_rows, n_columns).

    Args:
        n_rows, n_columns: Of axes.
        size: Width and height in inches.
        options: Of `Figure.subplots`.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, **options)
    return figure, axes


def lighten(axis: Axes) -> None:
    """Take the upper and right frame away."""
    axis.spines[["top", "right"]].set_visible(False)


def without_ticks(axis: Axes) -> None:
    """Keep the frame of a picture only."""
    axis.set_xticks([])
    axis.set_yticks([])
