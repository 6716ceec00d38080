"""Learning curves: a metric of every epoch, over repeats."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gridrun.analysis.scores import (
    Level,
    in_order,
    level_text,
    mean_of,
    read_levels,
)
from gridrun.analysis.tables import NOT_METRICS, RunSummary, check_metric, statistics
from gridrun.errors import ConfigError
from gridrun.run import RunState

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Curve:
    """Runs that share a value of an axis.

    Args:
        level: That value; of single grid points a text.
        runs: All of them that have finished an epoch.
        epochs: Those that every run that is done has reached.
        statistics: Of each of these epochs: mean over the runs that are done within
            each repeat, then n, mean, sd, sem and 95 % interval over the repeats.
    """

    level: Level
    runs: Sequence[RunSummary]
    epochs: Sequence[int]
    statistics: Sequence[dict[str, Any]]

    def singles(self, metric: str) -> list[tuple[RunSummary, list[int], list[float]]]:
        """Each run with its epochs and the metric's values."""
        return [(run, *_values(run, metric)) for run in self.runs]


def learning_curves(
    runs: Sequence[RunSummary], metric: str, by: str | None = None
) -> list[Curve]:
    """A curve for each value of an axis.

    Args:
        runs: Of a sweep.
        metric: A column of metrics.csv.
        by: The axis; None: a curve for each grid point.

    Raises:
        ConfigError: For an unknown metric or axis.
        StoreError: If no run has finished an epoch.
    """
    known = dict.fromkeys(
        name
        for run in runs
        for row in run.epochs[-1:]
        for name in row
        if name not in NOT_METRICS
    )
    check_metric(metric, list(known))
    axes, levels = read_levels(runs)
    if by is not None and not all(by in row for row in levels):
        raise ConfigError(
            f"unknown axis {by!r}; axes of the sweep: {', '.join(axes) or 'none'}"
        )
    groups: dict[Level, list[RunSummary]] = {}
    for run, row in zip(runs, levels, strict=True):
        if by is None:
            parts = [f"{axis} {level_text(row[axis])}" for axis in axes]
            level: Level = ", ".join(parts) or "all runs"
        else:
            level = row[by]
        if _values(run, metric)[0]:
            groups.setdefault(level, []).append(run)
    return [_curve(level, groups[level], metric) for level in in_order(groups)]


def curve_table(curves: Sequence[Curve]) -> pd.DataFrame:
    """The numbers of curves: level, epoch, n, mean, sd, sem, ci_low, ci_high."""
    import pandas as pd

    rows = [
        {"level": curve.level, "epoch": epoch, **found}
        for curve in curves
        for epoch, found in zip(curve.epochs, curve.statistics, strict=True)
    ]
    return pd.DataFrame(rows, columns=["level", "epoch", *statistics([])])


def _curve(level: Level, runs: Sequence[RunSummary], metric: str) -> Curve:
    done = [run for run in runs if run.state is RunState.DONE]
    values = [dict(zip(*_values(run, metric), strict=True)) for run in done]
    common = set.intersection(*map(set, values)) if values else set()
    found = []
    for epoch in sorted(common):
        repeats: dict[int, list[float]] = {}
        for run, of_run in zip(done, values, strict=True):
            repeats.setdefault(run.record["repeat"], []).append(of_run[epoch])
        found.append(statistics([mean_of(one) for one in repeats.values()]))
    return Curve(level, runs, sorted(common), found)


def _values(run: RunSummary, metric: str) -> tuple[list[int], list[float]]:
    """Epochs that have the metric, and its values."""
    rows = [row for row in run.epochs if metric in row]
    return [int(row["epoch"]) for row in rows], [row[metric] for row in rows]
