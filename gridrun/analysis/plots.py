"""Figures of a sweep; each is returned, nothing is shown or written. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gridrun.analysis.curves import Curve, learning_curves
from gridrun.analysis.factors import grid_rows, importance, marginal_rows
from gridrun.analysis.scores import (
    Level,
    Scores,
    is_number,
    level_text,
    mean_of,
    read_scores,
)
from gridrun.analysis.sweep import Sweep
from gridrun.analysis.tables import RunSummary, read_runs
from gridrun.figures import finite_range, lighten, new_figure, whole_ticks
from gridrun.run import RunState

Source: TypeAlias = Sweep | Sequence[RunSummary]
MOST_IN_LEGEND = 12
MOST_TERMS = 20
MOST_LABELLED = 12  # ticks of an axis of parallel coordinates
GREY = "0.85"


def runs_of(source: Source) -> Sequence[RunSummary]:
    """The runs of a sweep, read now unless they were."""
    return read_runs(source.folder) if isinstance(source, Sweep) else source


# --- learning curves ----------------------------------------------------------------


def plot_learning_curves(
    sweep: Source, metric: str = "val_acc", by: str | None = None
) -> Figure:
    """A line for each value of an axis: mean over runs, 95 % interval over repeats.

    Thin lines are single runs (dashed: not done), dots their best epochs. The mean is
    of runs that are done, as far as all of them go.

    Args:
        sweep: The sweep, or its runs.
        metric: A column of metrics.csv.
        by: An axis; None: a line for each grid point.
    """
    runs = runs_of(sweep)
    curves = learning_curves(runs, metric, by)
    figure, axes = new_figure(1, 1, (7.0, 4.2))
    axis = axes[0, 0]
    colours = level_colours([curve.level for curve in curves])
    for curve, colour in zip(curves, colours, strict=True):
        _draw_curve(axis, curve, metric, colour)
    values = [
        v for curve in curves for _, _, of_run in curve.singles(metric) for v in of_run
    ]
    low, high = finite_range(np.array(values))
    margin = 0.3 * (high - low)  # the interval of two repeats may be ten times as wide
    bottom, top = axis.get_ylim()
    axis.set_ylim(max(bottom, low - margin), min(top, high + margin))
    axis.set_xlabel("epoch")
    axis.set_ylabel(metric)
    whole_ticks(axis.xaxis)
    lighten(axis)
    n_done = sum(run.state is RunState.DONE for run in runs)
    axis.set_title(
        f"mean and 95 % interval over repeats; {n_done} of {len(runs)} runs done",
        size=9,
    )
    if len(curves) > MOST_IN_LEGEND and _are_numbers([c.level for c in curves]):
        _colour_scale(figure, axis, [c.level for c in curves], by or "")
    elif len(curves) <= MOST_IN_LEGEND:
        axis.legend(frameon=False, fontsize=7, title=by, title_fontsize=8)
    return figure


def _draw_curve(axis: Axes, curve: Curve, metric: str, colour: Any) -> None:
    lines: dict[bool, list[Any]] = {True: [], False: []}
    dots = []
    for run, epochs, values in curve.singles(metric):
        points = list(zip(epochs, values, strict=True))
        lines[run.state is RunState.DONE].append(points)
        best = run.record.get("best_epoch")
        dots += [point for point in points if point[0] == best]
    for is_done, some in lines.items():
        style = "solid" if is_done else "dashed"
        axis.add_collection(
            LineCollection(some, colors=[colour], lw=0.5, alpha=0.5, linestyles=style)
        )
    axis.plot(*np.reshape(dots, (-1, 2)).T, "o", color=colour, ms=3, alpha=0.7, mew=0)
    axis.autoscale_view()
    label = level_text(curve.level)
    means = [found["mean"] for found in curve.statistics]
    axis.plot(curve.epochs, means, color=colour, lw=2, label=label)
    if curve.statistics and curve.statistics[0]["ci_low"] is not None:
        low, high = (
            [found[name] for found in curve.statistics]
            for name in ("ci_low", "ci_high")
        )
        axis.fill_between(curve.epochs, low, high, color=colour, alpha=0.2, lw=0)


def level_colours(levels: Sequence[Level]) -> list[Any]:
    """A colour for each level: of numbers by rank."""
    if _are_numbers(levels) and len(levels) > 2:
        return list(colormaps["viridis"](np.linspace(0, 0.9, len(levels))))
    if len(levels) <= 10:
        return [f"C{i}" for i in range(len(levels))]
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, len(levels))))


def _are_numbers(levels: Sequence[Level]) -> bool:
    return all(map(is_number, levels))


def _colour_scale(
    figure: Figure, axis: Axes, levels: Sequence[Level], label: str
) -> None:
    scale = ScalarMappable(Normalize(0, len(levels) - 1), colormaps["viridis"])
    bar = figure.colorbar(scale, ax=axis, label=label)
    places = np.linspace(0, len(levels) - 1, 6).round().astype(int)
    bar.set_ticks(places.tolist(), labels=[level_text(levels[i]) for i in places])


# --- the grid -----------------------------------------------------------------------


def plot_grid_heatmap(
    sweep: Source, x: str, y: str | None = None, metric: str = "val_acc"
) -> Figure:
    """Mean over repeats and all other axes at each pair of values; grey: missing.

    Args:
        sweep: The sweep, or its runs.
        x, y: Axes; no y: one row.
        metric: A metric column of `results()`.
    """
    scores = read_scores(runs_of(sweep), metric)
    found = grid_rows(scores, [x] if y is None else [x, y])
    columns = scores.levels(x)
    lines = scores.levels(y) if y is not None else [None]
    means = np.full((len(lines), len(columns)), np.nan)
    halves = np.full_like(means, np.nan)
    for row in found:
        place = (lines.index(row[y]) if y is not None else 0, columns.index(row[x]))
        means[place] = row["mean"]
        if row["ci_low"] is not None:
            halves[place] = row["ci_high"] - row["mean"]
    width = max(4.0, 0.9 * len(columns) + 2.2)
    figure, axes = new_figure(1, 1, (width, max(2.2, 0.6 * len(lines) + 1.4)))
    axis = axes[0, 0]
    low, high = finite_range(means)
    palette = colormaps["viridis"].with_extremes(bad=GREY)
    image = axis.imshow(means, cmap=palette, vmin=low, vmax=high, aspect="auto")
    for place in np.ndindex(means.shape):
        if np.isfinite(means[place]):
            dark = (means[place] - low) / (high - low) < 0.6
            text = f"{means[place]:.3g}"
            if np.isfinite(halves[place]):
                text += f"\n± {halves[place]:.2g}"
            colour = "white" if dark else "black"
            axis.text(
                *place[::-1], text, ha="center", va="center", size=7, color=colour
            )
    _level_ticks(axis, "x", columns)
    axis.set_xlabel(x)
    if y is None:
        axis.set_yticks([])
    else:
        _level_ticks(axis, "y", lines)
        axis.set_ylabel(y)
    figure.colorbar(image, ax=axis, label=metric)
    axis.set_title(f"mean ± half the 95 % interval; {scores.caption}", size=8)
    return figure


def _level_ticks(axis: Axes, which: Any, levels: Sequence[Level]) -> None:
    texts = [level_text(level) for level in levels]
    turned = which == "x" and sum(map(len, texts)) > 10 * len(texts)
    options: dict[str, Any] = {"rotation": 30, "ha": "right"} if turned else {}
    axis.set(**{f"{which}ticks": range(len(levels))})
    axis.set(**{f"{which}ticklabels": texts})
    for label in axis.get_xticklabels() if which == "x" else axis.get_yticklabels():
        label.set(size=8, **options)


def plot_parallel_coordinates(sweep: Source, metric: str = "val_acc") -> Figure:
    """A line for each grid point through its values and its mean over repeats.

    Texts are spread evenly; numbers are on a logarithmic scale where that spaces them
    more evenly.

    Args:
        sweep: The sweep, or its runs.
        metric: A metric column of `results()`.
    """
    scores = read_scores(runs_of(sweep), metric)
    points: dict[str, list[float]] = {}
    for row in scores.rows:
        points.setdefault(row.point, []).append(row.value)
    of_point = {row.point: row.levels for row in scores.rows}
    means = {point: mean_of(values) for point, values in points.items()}
    low, high = finite_range(np.array(list(means.values()) or [0.0]))
    names = [*scores.axes, metric]
    places = {axis: level_places(scores.levels(axis)) for axis in scores.axes}
    figure, axes = new_figure(1, 1, (max(5.0, 1.5 * len(names) + 1), 4.2))
    axis = axes[0, 0]
    lines = [
        [
            *((i, places[a][of_point[point][a]]) for i, a in enumerate(scores.axes)),
            (len(names) - 1, (mean - low) / (high - low)),
        ]
        for point, mean in sorted(means.items(), key=lambda item: item[1])
    ]
    shown = LineCollection(lines, cmap="viridis", lw=1.2, alpha=0.8)
    shown.set_array(np.array(sorted(means.values())))
    shown.set_clim(low, high)
    axis.add_collection(shown)
    for i, name in enumerate(scores.axes):
        _parallel_axis(axis, i, list(places[name].items()))
    ends = [(low, 0.0), ((low + high) / 2, 0.5), (high, 1.0)]
    _parallel_axis(axis, len(names) - 1, [(float(f"{v:.3g}"), p) for v, p in ends])
    axis.set_xlim(-0.3, len(names) - 0.3)
    axis.set_ylim(-0.05, 1.05)
    axis.set_xticks(range(len(names)), names, size=8)
    axis.set_yticks([])
    axis.spines[["left", "right", "top", "bottom"]].set_visible(False)
    figure.colorbar(shown, ax=axis, label=f"{metric}, mean over repeats")
    axis.set_title(f"{len(points)} grid points, {scores.caption}", size=9)
    return figure


def _parallel_axis(axis: Axes, i: int, ticks: Sequence[tuple[Level, float]]) -> None:
    axis.plot([i, i], [0, 1], color="0.4", lw=0.8, zorder=0)
    step = max(1, -(-len(ticks) // MOST_LABELLED))
    for level, place in ticks[::step]:
        axis.annotate(
            level_text(level),
            (i, place),
            (3, 0),
            textcoords="offset points",
            size=7,
            va="center",
            bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5},
        )


def level_places(levels: Sequence[Level]) -> dict[Level, float]:
    """Each level's place between 0 and 1."""
    n = len(levels)
    values: NDArray[np.float64] = np.arange(n, dtype=float)
    if _are_numbers(levels):
        values = np.array(levels, dtype=float)
        if (
            n > 2
            and values.min() > 0
            and _unevenness(np.log(values)) < _unevenness(values)
        ):
            values = np.log(values)
    span = values.max() - values.min() if n else 0.0
    places = (values - values.min()) / span if span else np.full(n, 0.5)
    return dict(zip(levels, places.tolist(), strict=True))


def _unevenness(values: NDArray[np.float64]) -> float:
    steps = np.diff(values)
    return float(steps.std() / steps.mean())


# --- axes ---------------------------------------------------------------------------


def plot_marginals(sweep: Source, metric: str = "val_acc") -> Figure:
    """Mean at each value of each axis, and below it the difference from the first.

    Both with 95 % intervals over repeats; `gridrun.analysis.factors.marginals`.

    Args:
        sweep: The sweep, or its runs.
        metric: A metric column of `results()`.
    """
    scores = read_scores(runs_of(sweep), metric)
    table = marginal_rows(scores)
    n = max(len(scores.axes), 1)
    figure, axes = new_figure(2, n, (max(4.5, 2.4 * n + 0.8), 4.6), sharey="row")
    for i, name in enumerate(scores.axes):
        rows = [row for row in table if row["axis"] == name]
        means = [_estimate(row, "mean", "ci_low") for row in rows]
        steps = [_estimate(row, "difference", "difference_ci_low") for row in rows]
        steps[:1] = [(0.0, math.nan)]
        _estimates(axes[0, i], means)
        _estimates(axes[1, i], steps)
        axes[1, i].axhline(0, color="0.6", lw=0.8, zorder=0)
        axes[0, i].set_xticks(range(len(rows)), [""] * len(rows))
        _level_ticks(axes[1, i], "x", [row["value"] for row in rows])
        axes[1, i].set_xlabel(name)
        axes[0, i].set_title(f"{rows[0]['n']} repeats", size=8)
    axes[0, 0].set_ylabel(metric)
    axes[1, 0].set_ylabel("difference from\nthe first value")
    if not scores.axes:
        for axis in axes.flat:
            axis.set_axis_off()
    figure.suptitle(f"mean and 95 % interval over repeats; {scores.caption}", size=9)
    return figure


def _estimate(row: Any, name: str, low: str) -> tuple[float, float]:
    """Mean and half the interval; NaN where there is none."""
    mean, end = (math.nan if row[key] is None else row[key] for key in (name, low))
    return mean, mean - end


def _estimates(axis: Axes, found: Sequence[tuple[float, float]]) -> None:
    places = range(len(found))
    means, halves = ([one[k] for one in found] for k in (0, 1))
    axis.plot(places, means, "o-", color="C0", lw=0.8, ms=4)
    known = [i for i in places if math.isfinite(halves[i])]
    axis.errorbar(
        known,
        [means[i] for i in known],
        [halves[i] for i in known],
        fmt="none",
        ecolor="C0",
        capsize=3,
    )
    axis.set_xlim(-0.5, len(found) - 0.5)
    lighten(axis)


def plot_importance(sweep: Source, metric: str = "val_acc") -> Figure:
    """Share of the metric's variance of each axis and pair of axes.

    `gridrun.analysis.factors.importance` says how they are computed.

    Args:
        sweep: The sweep, or its runs.
        metric: A metric column of `results()`.
    """
    scores = read_scores(runs_of(sweep), metric)
    found = importance(scores)
    terms = list(zip(found.table["term"], found.table["share"], strict=True))
    if len(terms) > MOST_TERMS:
        rest, terms = terms[-1], sorted(terms[:-1], key=lambda one: -one[1])
        others = math.fsum(share for _, share in terms[MOST_TERMS - 2 :])
        n_others = len(terms) - MOST_TERMS + 2
        terms = [*terms[: MOST_TERMS - 2], (f"{n_others} others", others), rest]
    figure, axes = new_figure(1, 1, (6.0, 0.28 * len(terms) + 1.2))
    axis = axes[0, 0]
    places = range(len(terms))
    shares = [share for _, share in terms]
    colours = ["0.7" if i == len(terms) - 1 else "C0" for i in places]
    axis.barh(places, np.nan_to_num(shares), color=colours)
    for i, share in enumerate(shares):
        axis.annotate(
            f"{share:.1%}",
            (max(np.nan_to_num(share), 0), i),
            (3, 0),
            textcoords="offset points",
            size=7,
            va="center",
        )
    axis.set_yticks(places, [term for term, _ in terms], size=8)
    axis.invert_yaxis()
    axis.set_xlim(right=max(0.01, *np.nan_to_num(shares)) * 1.15)
    axis.set_xlabel(f"share of the variance of {metric}")
    lighten(axis)
    how = "" if found.is_balanced else "unbalanced: type II; "
    axis.set_title(f"{how}{scores.caption}", size=8)
    return figure


def heatmap_axes(scores: Scores) -> tuple[str, str] | None:
    """The two axes with most effect together; None if there are fewer."""
    if len(scores.axes) < 2:
        return None
    table = importance(scores).table
    shares = dict(zip(table["term"], table["share"], strict=True))
    first, second = sorted(scores.axes, key=lambda a: -np.nan_to_num(shares[a]))[:2]
    return first, second
