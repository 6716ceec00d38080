"""Figures without pyplot: nothing global changes, nothing stays open; no torch."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray


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


def whole_numbers() -> MaxNLocator:
    """Where ticks of classes, units and ranks are; also if there is one only."""
    return MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def whole_ticks(*axes: Axis) -> None:
    """Label whole numbers only."""
    for one in axes:
        one.set_major_locator(whole_numbers())


def wrapped(title: str, width: float, size: float) -> str:
    """A title in lines that fit.

    Args:
        title: The text.
        width: Of a line, in inches.
        size: Of the letters, in points.
    """
    return textwrap.fill(title, max(int(width * 72 / (0.6 * size)), 8))


def dot_size(n: int, least: float) -> float:
    """Diameter in points of each of n points of a cloud: few ones are seen too."""
    return max(least, min(60 / math.sqrt(max(n, 1)), 7.0))


def finite_range(values: NDArray[Any]) -> tuple[float, float]:
    """Least and largest finite value, not equal: for the scale of a picture."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + 1.0
