"""One metric of a sweep's finished runs, by what was swept and by repeat."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from gridrun.analysis import tables
from gridrun.analysis.tables import RunSummary
from gridrun.run import RunState

K = TypeVar("K", bound=Hashable)
Level = Any  # a value of an axis as tables show it: a number, a text, None


@dataclasses.dataclass(frozen=True)
class Score:
    """One run's.

    Args:
        number: Of the run.
        point: Equal for the repeats of a grid point.
        repeat: Its replicate index.
        levels: Axis to value; axes that move together are also one, named "a, b".
        value: Of the metric.
    """

    number: int
    point: str
    repeat: int
    levels: Mapping[str, Level]
    value: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """Those of a sweep.

    Args:
        metric: A metric column of `results()`.
        axes: What varies; axes that move together are one.
        rows: Of the runs that are done and have the metric.
        left_out: How many runs are not among them, by state.
    """

    metric: str
    axes: tuple[str, ...]
    rows: tuple[Score, ...]
    left_out: Mapping[str, int]

    def levels(self, axis: str) -> list[Level]:
        """Values of an axis: numbers by size, others in the order of the runs."""
        return in_order(row.levels[axis] for row in self.rows)

    def by_repeat(self, key: Callable[[Score], K]) -> dict[K, dict[int, float]]:
        """Mean of each group of runs within each repeat.

        Args:
            key: Tells a run's group.
        """
        groups: dict[K, dict[int, list[float]]] = {}
        for row in self.rows:
            groups.setdefault(key(row), {}).setdefault(row.repeat, []).append(row.value)
        return {
            group: {repeat: mean_of(values) for repeat, values in sorted(found.items())}
            for group, found in groups.items()
        }

    @property
    def caption(self) -> str:
        """How many runs are shown, and which are not."""
        text = f"{len(self.rows)} runs"
        if self.left_out:
            parts = ", ".join(f"{n} {state}" for state, n in self.left_out.items())
            text += f"; left out: {parts}"
        return text


def read_scores(runs: Sequence[RunSummary], metric: str) -> Scores:
    """A metric of runs that are done.

    Args:
        runs: Of a sweep.
        metric: A metric column of `results()`.

    Raises:
        ConfigError: For an unknown metric.
        StoreError: If nothing is recorded yet.
    """
    tables.check_metric(metric, tables.metric_columns(runs))
    axes, levels = read_levels(runs)
    rows = []
    left_out: Counter[str] = Counter()
    for run, of_run in zip(runs, levels, strict=True):
        value = run.metrics().get(metric)
        if run.state is not RunState.DONE:
            left_out[run.state.value] += 1
        elif value is None or not math.isfinite(value):
            left_out[f"without {metric}"] += 1
        else:
            number, repeat = run.record["number"], run.record["repeat"]
            rows.append(Score(number, run.point, repeat, of_run, value))
    return Scores(metric, tuple(axes), tuple(rows), dict(left_out))


def read_levels(
    runs: Sequence[RunSummary],
) -> tuple[list[str], list[dict[str, Level]]]:
    """What varies between runs, and its values.

    Returns:
        The axes with several values, those that move together as one named "a, b";
        each run's value of these and of all swept keys.
    """
    names = tables.axis_names(runs)
    levels = [
        {name: tables.cell(tables.axis_value(run, name)) for name in names}
        for run in runs
    ]
    axes = []
    for group in linked(names, levels):
        label = ", ".join(group)
        for row in levels if len(group) > 1 else ():
            row[label] = " · ".join(level_text(row[name]) for name in group)
        axes.append(label)
    return [axis for axis in axes if len({row[axis] for row in levels}) > 1], levels


def in_order(levels: Iterable[Level]) -> list[Level]:
    """Each level once: numbers by size, others as they come."""
    found = list(dict.fromkeys(levels))
    return sorted(found) if all(map(is_number, found)) else found


def linked(
    names: Sequence[str], rows: Iterable[Mapping[str, Level]]
) -> list[tuple[str, ...]]:
    """Axes in groups that move together: each value of one goes with one of the other.

    Args:
        names: The axes.
        rows: Values by axis.
    """
    rows = list(rows)
    groups: list[tuple[str, ...]] = []
    for name in names:
        for i, group in enumerate(groups):
            pairs = {(row[group[0]], row[name]) for row in rows}
            firsts, seconds = ({pair[k] for pair in pairs} for k in (0, 1))
            if len(pairs) == len(firsts) == len(seconds) > 1:
                groups[i] = (*group, name)
                break
        else:
            groups.append((name,))
    return groups


def is_number(level: Level) -> bool:
    """Whether a level is a number, and no truth value."""
    return isinstance(level, int | float) and not isinstance(level, bool)


def level_text(level: Level) -> str:
    """A level for people."""
    if isinstance(level, float):
        return f"{level:.6g}"
    return json.dumps(level) if level is None or isinstance(level, bool) else str(level)


def mean_of(values: Sequence[float]) -> float:
    """The mean, exactly rounded."""
    return math.fsum(values) / len(values)


def pairs_of(axes: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of axes."""
    return list(itertools.combinations(axes, 2))
