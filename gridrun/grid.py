"""Ranges to an ordered grid of points: pure, no files, no schema."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gridrun.config.messages import shown

MAX_RUNS = 10**7
SWEEP_OPTION = "$sweep"


@dataclasses.dataclass(frozen=True)
class Axis:
    """Keys that move together, with their values position by position.

    Args:
        keys: One name, or several that are linked; dots reach nested settings.
        values: For each position, one value per key.
    """

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A product of axes, the last one fastest; optionally a random part of it."""

    axes: tuple[Axis, ...] = ()
    num_samples: int | None = None
    sample_seed: int = 0

    @property
    def n_points(self) -> int:
        """Number of grid points, counted without expanding."""
        return self.n_whole if self.num_samples is None else self.num_samples

    @property
    def n_whole(self) -> int:
        """Number of points of the product, drawn or not."""
        return math.prod(len(axis.values) for axis in self.axes)

    def points(self) -> Iterator[dict[str, Any]]:
        """Grid points in order, each as key to value."""
        for index in self._indices():
            yield self._point(index)

    def _indices(self) -> Sequence[int]:
        if self.num_samples is None:
            return range(self.n_whole)
        return _draw(self.n_whole, self.num_samples, self.sample_seed)

    def _point(self, index: int) -> dict[str, Any]:
        chosen: list[tuple[Axis, int]] = []
        for axis in reversed(self.axes):
            index, position = divmod(index, len(axis.values))
            chosen.append((axis, position))
        return {
            name: value
            for axis, position in reversed(chosen)
            for name, value in zip(axis.keys, axis.values[position], strict=True)
        }


def _draw(n_whole: int, n_drawn: int, seed: int) -> list[int]:
    """Different indices below n_whole, in increasing order."""
    generator = random.Random(seed)
    if n_whole <= sys.maxsize:
        return sorted(generator.sample(range(n_whole), n_drawn))
    drawn: set[int] = set()
    while len(drawn) < n_drawn:
        drawn.add(generator.randrange(n_whole))
    return sorted(drawn)


def axis_keys(grids: Sequence[Grid]) -> tuple[str, ...]:
    """All swept keys, in order of first appearance."""
    names = (name for grid in grids for axis in grid.axes for name in axis.keys)
    return tuple(dict.fromkeys(names))


def points(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """The points of a union of grids; later exact duplicates are dropped."""
    everything = itertools.chain.from_iterable(grid.points() for grid in grids)
    if len(grids) == 1:
        return list(everything)
    unique: dict[str, dict[str, Any]] = {}
    for point in everything:
        unique.setdefault(json.dumps(point, sort_keys=True), point)
    return list(unique.values())


def parse_ranges(data: object) -> tuple[tuple[Grid, ...], list[tuple[str, str]]]:
    """Read the content of hyperranges.json.

    Args:
        data: An object key -> list of values, or a list of such objects (a union).

    Returns:
        The grids, and a (key, message) for everything that is wrong.
    """
    objects = data if isinstance(data, list) else [data]
    if not objects:
        return (), [("", "an empty list of grids; {} means one grid point")]
    grids: list[Grid] = []
    problems: list[tuple[str, str]] = []
    for one in objects:
        if not isinstance(one, dict):
            problems.append(
                ("", "expected an object of key: list of values, or a list of such")
            )
            continue
        grid, wrong = _parse_grid(one)
        grids.append(grid)
        problems += wrong
    return tuple(grids), problems


def _parse_grid(data: Mapping[str, Any]) -> tuple[Grid, list[tuple[str, str]]]:
    axes: list[Axis] = []
    problems: list[tuple[str, str]] = []
    for name, values in data.items():
        if name == SWEEP_OPTION:
            continue
        try:
            axes.append(_parse_axis(name, values))
        except ValueError as error:
            problems.append((name, str(error)))
    problems += _clashes(axes)
    grid = Grid(tuple(axes))
    if SWEEP_OPTION in data and not problems:
        try:
            grid = _sampled(grid, data[SWEEP_OPTION])
        except ValueError as error:
            problems.append((SWEEP_OPTION, str(error)))
    return grid, problems


def _clashes(axes: Sequence[Axis]) -> list[tuple[str, str]]:
    problems = []
    names = [name for axis in axes for name in axis.keys]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append((name, "is swept by two axes; keep one"))
        outer = name.partition(".")[0]
        if outer != name and outer in names:
            problems.append((name, f"lies inside {outer}, which is swept too"))
    return problems


def _parse_axis(name: str, values: object) -> Axis:
    keys = tuple(part.strip() for part in name.split(","))
    if not all(keys):
        raise ValueError("an empty key name")
    if isinstance(values, dict):
        if len(keys) > 1:
            raise ValueError("linked keys take a list of combinations")
        values = _generated(values)
    if not isinstance(values, list):
        raise ValueError(
            "expected a list of values; for one fixed value use hyperparams.json"
        )
    if not values:
        raise ValueError("the list of values is empty")
    if len(keys) == 1:
        return Axis(keys, tuple((value,) for value in values))
    for position, combination in enumerate(values, 1):
        if not isinstance(combination, list) or len(combination) != len(keys):
            raise ValueError(
                f"value {position}: expected a list of {len(keys)}, "
                "one value for each linked key"
            )
    return Axis(keys, tuple(tuple(combination) for combination in values))


def _generated(rule: Mapping[str, Any]) -> list[float]:
    """Values of {"log": [first, last, count]} or {"linear": [...]}."""
    if set(rule) not in ({"log"}, {"linear"}):
        raise ValueError(
            'expected {"log": [first, last, count]} or {"linear": [first, last, count]}'
        )
    ((kind, numbers),) = rule.items()
    if (
        not isinstance(numbers, list)
        or len(numbers) != 3
        or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers)
    ):
        raise ValueError(f"{kind}: expected [first, last, count], three numbers")
    first, last, count = numbers
    if not isinstance(count, int) or count < 2:
        raise ValueError(f"{kind}: expected a count of at least 2, got {shown(count)}")
    if count > MAX_RUNS:
        raise ValueError(f"{kind}: more than {MAX_RUNS:,} values")
    if kind == "log" and (first <= 0 or last <= 0):
        raise ValueError("log: first and last must be > 0")
    try:
        return [_generate(kind, first, last, i / (count - 1)) for i in range(count)]
    except OverflowError:
        raise ValueError(f"{kind}: numbers beyond {sys.float_info.max:.0e}") from None


def _generate(kind: str, first: float, last: float, share: float) -> float:
    """One value, written with at most 12 significant digits: 0.001, not 0.00100..02."""
    if share in (0, 1):
        return last if share else first
    if kind == "log":
        value = math.exp(math.log(first) * (1 - share) + math.log(last) * share)
    else:
        value = first * (1 - share) + last * share
    value = float(f"{value:.12g}")
    whole = isinstance(first, int) and isinstance(last, int) and value.is_integer()
    return int(value) if whole else value


def _sampled(grid: Grid, option: object) -> Grid:
    known = {"method", "num_samples", "seed"}
    if not isinstance(option, dict) or option.get("method") not in ("random", "grid"):
        raise ValueError(
            'expected {"method": "random", "num_samples": 20, "seed": 0} '
            'or {"method": "grid"}'
        )
    if unknown := sorted(set(option) - known):
        raise ValueError(
            f"unknown option {unknown[0]!r}; known: {shown(sorted(known))}"
        )
    if option["method"] == "grid":
        if len(option) > 1:
            raise ValueError('num_samples and seed need "method": "random"')
        return grid
    count, seed = option.get("num_samples"), option.get("seed", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"num_samples: expected an integer ≥ 1, got {shown(count)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: expected an integer ≥ 0, got {shown(seed)}")
    if count > grid.n_points:
        raise ValueError(
            f"num_samples: {count} of a grid that has {grid.n_points} points"
        )
    return dataclasses.replace(grid, num_samples=count, sample_seed=seed)
