"""What each swept key does to a metric, with statistics over repeats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gridrun.analysis.scores import Level, Score, Scores, pairs_of
from gridrun.analysis.tables import Row, cell, statistics
from gridrun.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Floats: TypeAlias = NDArray[np.float64]


def marginals(scores: Scores) -> pd.DataFrame:
    """Mean of the metric at each value of each axis, and its difference from the first.

    First the mean over all other axes within each repeat, of those combinations that
    are there at every value of the axis; then statistics over the repeats.

    Returns:
        A row per axis and value: axis, value, n (repeats), mean, sd, sem, ci_low,
        ci_high; difference, difference_ci_low, difference_ci_high, paired by repeat.
    """
    import pandas as pd

    steps = ["difference", "difference_ci_low", "difference_ci_high"]
    columns = ["axis", "value", *statistics([]), *steps]
    return pd.DataFrame(marginal_rows(scores), columns=columns)


def marginal_rows(scores: Scores) -> list[Row]:
    """The rows of `marginals`."""
    rows = []
    for axis in scores.axes:
        levels = scores.levels(axis)
        found = _of_complete_blocks(scores, axis, levels)
        for level in levels:
            means = [of_repeat[level] for of_repeat in found]
            paired = [of_repeat[level] - of_repeat[levels[0]] for of_repeat in found]
            step = statistics(paired if level != levels[0] else [])
            rows.append(
                {
                    "axis": axis,
                    "value": level,
                    **statistics(means),
                    "difference": step["mean"],
                    "difference_ci_low": step["ci_low"],
                    "difference_ci_high": step["ci_high"],
                }
            )
    return rows


def _of_complete_blocks(
    scores: Scores, axis: str, levels: Sequence[Level]
) -> list[dict[Level, float]]:
    """For each repeat: level to mean over the blocks that have all levels."""
    others = [name for name in scores.axes if name != axis]

    def block_and_level(row: Score) -> tuple[Hashable, Level]:
        return tuple(row.levels[name] for name in others), row.levels[axis]

    blocks: dict[tuple[Hashable, int], dict[Level, float]] = {}
    for (block, level), of_repeat in scores.by_repeat(block_and_level).items():
        for repeat, value in of_repeat.items():
            blocks.setdefault((block, repeat), {})[level] = value
    repeats: dict[int, list[dict[Level, float]]] = {}
    for (_, repeat), block_means in blocks.items():
        if len(block_means) == len(levels):
            repeats.setdefault(repeat, []).append(block_means)
    return [
        {level: math.fsum(b[level] for b in found) / len(found) for level in levels}
        for _, found in sorted(repeats.items())
    ]


def grid_means(scores: Scores, x: str, y: str | None = None) -> pd.DataFrame:
    """Mean over repeats and all other axes at each value of one or two axes.

    Args:
        scores: The metric.
        x, y: Axes; no y: one row of the grid.

    Returns:
        A row per pair of values: x, y, n (repeats), mean, sd, sem, ci_low, ci_high.

    Raises:
        ConfigError: For an unknown axis.
    """
    import pandas as pd

    names = [x] if y is None else [x, y]
    return pd.DataFrame(grid_rows(scores, names), columns=[*names, *statistics([])])


def grid_rows(scores: Scores, axes: Sequence[str]) -> list[Row]:
    """The rows of `grid_means`, for any number of axes."""
    for name in axes:
        check_axis(scores, name)
    places = {
        row.number: tuple(row.levels[name] for name in axes) for row in scores.rows
    }
    found = scores.by_repeat(lambda row: places[row.number])
    return [
        {
            **dict(zip(axes, place, strict=True)),
            **statistics(list(found[place].values())),
        }
        for place in dict.fromkeys(places.values())
    ]


def check_axis(scores: Scores, name: str) -> None:
    """Refuse what is no axis.

    Raises:
        ConfigError: With the axes there are.
    """
    known = scores.rows[0].levels if scores.rows else {}
    if name not in known:
        there = ", ".join(scores.axes) or "none"
        raise ConfigError(f"unknown axis {name!r}; axes of the sweep: {there}")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A metric at one place of the grid less that at another, paired by repeat.

    Args:
        metric: Which.
        mean: Of the differences a − b.
        ci: 95 % interval of the mean; None for a single pair.
        n: Pairs.
    """

    metric: str
    mean: float
    ci: tuple[float, float] | None
    n: int


def compare(scores: Scores, a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """Difference between two places of the grid; equal repeats share their seeds.

    Args:
        scores: The metric.
        a, b: Axis to value; means are taken over axes that are not named.

    Raises:
        ConfigError: For an unknown axis, or if no repeat has both.
    """
    sides = [_of_place(scores, place) for place in (a, b)]
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        raise ConfigError(f"no repeat is done at both {dict(a)} and {dict(b)}")
    stats = statistics([sides[0][repeat] - sides[1][repeat] for repeat in common])
    low, high = stats["ci_low"], stats["ci_high"]
    ci = None if low is None or high is None else (low, high)
    return Comparison(scores.metric, float(stats["mean"] or 0), ci, len(common))


def _of_place(scores: Scores, place: Mapping[str, Any]) -> dict[int, float]:
    for name in place:
        check_axis(scores, name)
    wanted = {name: cell(value) for name, value in place.items()}

    def is_there(row: Score) -> bool:
        return all(row.levels[name] == value for name, value in wanted.items())

    return scores.by_repeat(is_there).get(True, {})


# --- shares of variance -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Importance:
    """Shares of a metric's variance over the runs.

    Args:
        table: A row per axis and pair of axes, then what is left: term, share.
        is_balanced: Whether every combination has equally many runs: then the shares
            are an exact analysis of variance; else type-II sums of squares, of which
            the rest is what lies between repeats or cannot be told apart.
    """

    table: pd.DataFrame
    is_balanced: bool


def importance(scores: Scores) -> Importance:
    """Share of variance of each axis and each pair of axes; they sum to 1."""
    import pandas as pd

    y = np.array([row.value for row in scores.rows])
    codes = {axis: _codes(scores, axis) for axis in scores.axes}
    is_balanced = _is_balanced(list(codes.values()))
    find = _balanced_squares if is_balanced else _type_ii_squares
    squares = find(y, codes) if len(y) else {"rest": 0.0}
    total = float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0
    shares = {term: s / total if total else math.nan for term, s in squares.items()}
    table = pd.DataFrame(list(shares.items()), columns=["term", "share"])
    return Importance(table, is_balanced)


def _codes(scores: Scores, axis: str) -> NDArray[np.int64]:
    """(runs,) the place of each run's value among the levels of an axis."""
    places = {level: i for i, level in enumerate(scores.levels(axis))}
    return np.array([places[row.levels[axis]] for row in scores.rows], dtype=np.int64)


def _is_balanced(codes: Sequence[NDArray[np.int64]]) -> bool:
    if not codes:
        return True
    n_cells = math.prod(int(one.max()) + 1 for one in codes)
    _, counts = np.unique(np.stack(codes), axis=1, return_counts=True)
    return len(counts) == n_cells and len(set(counts.tolist())) == 1


def _balanced_squares(
    y: Floats, codes: Mapping[str, NDArray[np.int64]]
) -> dict[str, float]:
    centred = y - y.mean()
    mains = {axis: _group_means(centred, [one]) for axis, one in codes.items()}
    parts = dict(mains)
    for a, b in pairs_of(list(codes)):
        both = _group_means(centred, [codes[a], codes[b]])
        parts[f"{a} × {b}"] = both - mains[a] - mains[b]
    found = {term: float((part**2).sum()) for term, part in parts.items()}
    cells = _group_means(centred, list(codes.values()))
    if len(codes) > 2:
        higher = cells - np.sum(list(parts.values()), axis=0)
        found["three and more"] = float((higher**2).sum())
    return found | {"repeats": float(((centred - cells) ** 2).sum())}


def _group_means(y: Floats, codes: Sequence[NDArray[np.int64]]) -> Floats:
    """(runs,) mean of y over the runs of equal codes."""
    if not codes:
        return np.full_like(y, y.mean())
    _, groups = np.unique(np.stack(codes), axis=1, return_inverse=True)
    groups = groups.ravel()
    means: Floats = (np.bincount(groups, y) / np.bincount(groups))[groups]
    return means


def _type_ii_squares(
    y: Floats, codes: Mapping[str, NDArray[np.int64]]
) -> dict[str, float]:
    mains = {axis: _indicators(one) for axis, one in codes.items()}
    pairs = {
        f"{a} × {b}": _products(mains[a], mains[b]) for a, b in pairs_of(list(codes))
    }
    left = _squares_left(y)
    of_mains, of_all = left(mains.values()), left([*mains.values(), *pairs.values()])
    found = {}
    for axis in mains:
        others = [one for name, one in mains.items() if name != axis]
        found[axis] = left(others) - of_mains
    for pair in pairs:
        others = [one for name, one in pairs.items() if name != pair]
        found[pair] = left([*mains.values(), *others]) - of_all
    return found | {"rest": left([]) - sum(found.values())}


def _indicators(codes: NDArray[np.int64]) -> Floats:
    """(runs, levels − 1): 1 where a run has that level; none for the first."""
    found: Floats = (codes[:, None] == np.arange(1, codes.max() + 1)).astype(float)
    return found


def _products(a: Floats, b: Floats) -> Floats:
    """(runs, columns of a × columns of b)"""
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def _squares_left(y: Floats) -> Callable[[Any], float]:
    """A function of indicator blocks: squares that their best fit to y leaves."""

    def left(blocks: Any) -> float:
        x = np.concatenate([np.ones((len(y), 1)), *blocks], axis=1)
        weights, *_ = np.linalg.lstsq(x, y, rcond=None)
        return float(((y - x @ weights) ** 2).sum())

    return left
