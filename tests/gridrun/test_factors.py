"""Statistics over the axes of a grid, against sums by hand and simulations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import write_run, write_sweep

from gridrun.analysis.curves import curve_table, learning_curves
from gridrun.analysis.factors import compare, grid_means, importance, marginals
from gridrun.analysis.scores import Score, Scores, linked, read_scores
from gridrun.analysis.sweep import load_sweep
from gridrun.analysis.tables import read_runs, statistics
from gridrun.errors import ConfigError
from gridrun.store import SweepFolder

Value = Callable[..., float]


def make_scores(
    axes: dict[str, Sequence[Any]],
    n_repeats: int,
    value: Value,
    skip: Sequence[int] = (),
) -> Scores:
    """Scores of a full grid; `value` gets the levels and the repeat.

    Args:
        axes: Axis to levels.
        n_repeats: Of each grid point.
        value: Of one run.
        skip: Numbers of runs that are not there.
    """
    rows = []
    places = itertools.product(*axes.values(), range(n_repeats))
    for number, (*levels, repeat) in enumerate(places):
        of_run = dict(zip(axes, levels, strict=True))
        score = value(*levels, repeat)
        if number not in skip:
            rows.append(Score(number, str(levels), repeat, of_run, score))
    return Scores("val_acc", tuple(axes), tuple(rows), {})


def shares(scores: Scores) -> dict[str, float]:
    """Term to share of variance."""
    return dict(importance(scores).table.itertuples(index=False))


# --- importance ---------------------------------------------------------------------


def test_shares_of_an_additive_table_are_exact() -> None:
    """Variances of the effects, by hand."""
    a, b = {1: 0.0, 2: 3.0, 3: 9.0}, {"x": 1.0, "y": 5.0}
    scores = make_scores({"a": [1, 2, 3], "b": "xy"}, 2, lambda i, j, _: a[i] + b[j])
    of_a, of_b = np.var(list(a.values())), np.var(list(b.values()))
    wanted = {"a": of_a / (of_a + of_b), "b": of_b / (of_a + of_b)}
    found = shares(scores)
    assert found == pytest.approx(wanted | {"a × b": 0, "repeats": 0}, abs=1e-12)
    assert importance(scores).is_balanced


def test_shares_of_a_table_with_interaction_and_repeats_are_exact() -> None:
    """Effects that are orthogonal by construction: each has its own square."""
    sign = {0: -1.0, 1: 1.0}

    def value(i: int, j: int, k: int, r: int) -> float:
        main = 2 * sign[i] + sign[j]
        pair, three = 3 * sign[i] * sign[k], 0.5 * sign[i] * sign[j] * sign[k]
        return main + pair + three + 0.25 * sign[r]

    scores = make_scores({key: [0, 1] for key in "abc"}, 2, value)
    squares = {"a": 4.0, "b": 1.0, "c": 0.0, "a × b": 0.0, "a × c": 9.0, "b × c": 0.0}
    squares |= {"three and more": 0.25, "repeats": 0.0625}
    total = sum(squares.values())
    wanted = {term: one / total for term, one in squares.items()}
    assert shares(scores) == pytest.approx(wanted, abs=1e-12)


def test_shares_of_an_unbalanced_grid_are_of_type_ii() -> None:
    """Each effect beside all others of its order; solved by projections here."""
    random = np.random.default_rng(1)
    scores = make_scores(
        {"a": [1, 2, 3], "b": [1, 2]}, 3, lambda i, j, _: i + random.normal(), [0, 7]
    )
    y = np.array([row.value for row in scores.rows])
    levels = np.array([[row.levels[n] for n in "ab"] for row in scores.rows])
    one = np.ones((len(y), 1))
    a, b = (levels[:, [k]] == np.unique(levels[:, k]) for k in (0, 1))
    both = (a[:, :, None] & b[:, None, :]).reshape(len(y), -1)

    def left(*blocks: Any) -> float:
        x = np.concatenate([one, *blocks], axis=1).astype(float)
        return float(y @ (np.eye(len(y)) - x @ np.linalg.pinv(x)) @ y)

    squares = {"a": left(b) - left(a, b), "b": left(a) - left(a, b)}
    squares["a × b"] = left(a, b) - left(a, b, both)
    squares["rest"] = left() - sum(squares.values())
    wanted = {term: one / left() for term, one in squares.items()}
    assert shares(scores) == pytest.approx(wanted, abs=1e-10)
    assert not importance(scores).is_balanced


@given(st.integers(0, 10_000), st.integers(1, 3), st.sets(st.integers(0, 11)))
def test_shares_sum_to_one(seed: int, n_repeats: int, skip: set[int]) -> None:
    """Of balanced and unbalanced grids."""
    random = np.random.default_rng(seed)
    axes = {"a": [1, 2], "b": [1, 2, 3], "c": [0, 1]}
    scores = make_scores(axes, n_repeats, lambda *_: random.normal(), list(skip))
    found = {axis for axis in axes if len(scores.levels(axis)) > 1}
    if found == set(axes) and len(scores.rows) > 1:
        assert math.fsum(shares(scores).values()) == pytest.approx(1, abs=1e-9)


def test_an_axis_without_effect_has_its_chance_share() -> None:
    """(levels − 1) of (runs − 1) degrees of freedom, on average."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        scores = make_scores({"a": [1, 2, 3, 4]}, 6, lambda *_: random.normal())
        found.append(shares(scores)["a"])
    assert np.mean(found) == pytest.approx(3 / 23, rel=0.1)


def test_equal_scores_have_no_shares() -> None:
    """Nothing to divide."""
    found = shares(make_scores({"a": [1, 2]}, 2, lambda *_: 0.5))
    assert all(math.isnan(share) for share in found.values())


# --- marginals ----------------------------------------------------------------------


def test_marginals_average_within_repeats_first() -> None:
    """Mean, interval and paired difference, by hand."""
    scores = make_scores(
        {"a": [1, 2], "b": [10, 20]}, 3, lambda a, b, r: a + b + 0.5 * r + 0.1 * a * r
    )
    table = marginals(scores).set_index(["axis", "value"])
    of_repeats = [2 + 15 + 0.7 * r for r in range(3)]
    row = table.loc[("a", 2)]
    assert row[["n", "mean", "ci_low"]].tolist() == pytest.approx(
        [3, np.mean(of_repeats), statistics(of_repeats)["ci_low"]]
    )
    steps = [1 + 0.1 * r for r in range(3)]
    found = row[["difference", "difference_ci_low", "difference_ci_high"]]
    wanted = statistics(steps)
    assert found.tolist() == pytest.approx(
        [wanted[name] for name in ("mean", "ci_low", "ci_high")]
    )
    assert math.isnan(table.loc[("a", 1), "difference"])


def test_marginals_are_of_complete_blocks_only() -> None:
    """A missing run takes its partner along, not the other repeats."""
    effect = {1: 0.0, 2: 1.0}
    block = {10: 0.0, 20: 100.0}
    axes = {"a": [1, 2], "b": [10, 20]}
    scores = make_scores(axes, 2, lambda a, b, r: effect[a] + block[b] + r, [2])
    table = marginals(scores).set_index(["axis", "value"])
    # repeat 0 of a=1, b=20 is missing: of repeat 0 only b=10 counts
    assert table.loc[("a", 1), "mean"] == pytest.approx((0 + (0 + 100) / 2 + 1) / 2)
    assert table.loc[("a", 2), "difference"] == pytest.approx(1)
    assert table.loc[("a", 2), "difference_ci_low"] == pytest.approx(1)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """2,000 simulated sweeps of five repeats."""
    random = np.random.default_rng(2)
    n_covered = 0
    for _ in range(2000):
        stats = statistics(random.normal(3, 2, 5).tolist())
        low, high = stats["ci_low"], stats["ci_high"]
        assert low is not None
        assert high is not None
        n_covered += low <= 3 <= high
    assert 0.93 <= n_covered / 2000 <= 0.97


# --- places of the grid -------------------------------------------------------------


def test_grid_means_average_the_other_axes() -> None:
    """A row per pair of values."""
    axes = {"a": [1, 2], "b": [10, 20], "c": [100, 300]}
    scores = make_scores(axes, 2, lambda a, b, c, r: a + b + c + r)
    table = grid_means(scores, "a", "b")
    assert table[["a", "b", "n", "mean"]].to_numpy().tolist() == [
        [a, b, 2, a + b + 200.5] for a in (1, 2) for b in (10, 20)
    ]
    with pytest.raises(ConfigError, match=r"unknown axis 'd'; .*: a, b, c"):
        grid_means(scores, "a", "d")


def test_a_comparison_is_paired_by_repeat() -> None:
    """What repeats share drops out; a repeat that one side lacks is left out."""
    scores = make_scores({"a": [1, 2]}, 3, lambda a, r: 10 * r + a, [5])
    found = compare(scores, {"a": 2}, {"a": 1})
    assert (found.n, found.mean) == (2, pytest.approx(1))
    assert found.ci == pytest.approx((1, 1))
    with pytest.raises(ConfigError, match="no repeat is done at both"):
        compare(scores, {"a": 2}, {"a": 7})


# --- from run folders ---------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two values that move together, by two repeats; one run failed, one goes on."""
    path = write_sweep(tmp_path / "sweep")
    for i, (lr, size) in enumerate([(0.1, 8), (0.01, 4)]):
        axes = {"lr": lr, "batch_size": size}
        write_run(path, 2 * i, axes, 0, val_acc=[0.1, 0.5 + i / 10, 0.4])
        write_run(path, 2 * i + 1, axes, 1, val_acc=[0.2, 0.6 + i / 10])
    axes = {"lr": 0.1, "batch_size": 8}
    write_run(path, 4, axes, 2, "failed", val_acc=[0.9])
    write_run(path, 5, axes, 3, "pending")
    return path


def test_scores_are_of_runs_that_are_done(sweep: Path) -> None:
    """The others are counted; axes that move together are one."""
    scores = read_scores(read_runs(SweepFolder(sweep)), "val_acc")
    assert scores.axes == ("lr, batch_size",)
    assert scores.levels("lr, batch_size") == ["0.1 · 8", "0.01 · 4"]
    assert scores.left_out == {"failed": 1, "pending": 1}
    assert [row.value for row in scores.rows] == [0.5, 0.6, 0.6, 0.7]
    found = load_sweep(sweep).compare({"lr": 0.01}, {"lr": 0.1}, "val_acc")
    assert (found.mean, found.n) == (pytest.approx(0.1), 2)


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([(1, 10), (2, 20)], [("a", "b")]),
        ([(1, 10), (1, 20), (2, 10)], [("a",), ("b",)]),
        ([(1, 10), (2, 10)], [("a",), ("b",)]),
        ([(1, 10), (1, 10)], [("a",), ("b",)]),
    ],
)
def test_axes_that_move_together(
    rows: list[tuple[int, int]], groups: list[tuple[str, ...]]
) -> None:
    """Each value of one with one value of the other."""
    named = [dict(zip("ab", row, strict=True)) for row in rows]
    assert linked(["a", "b"], named) == groups


def test_a_curve_goes_as_far_as_all_runs_that_are_done(sweep: Path) -> None:
    """Mean over repeats; unfinished runs are shown, not averaged."""
    runs = read_runs(SweepFolder(sweep))
    first, second = learning_curves(runs, "val_acc", "lr")
    assert (first.level, second.level) == (0.01, 0.1)
    assert list(second.epochs) == [1, 2]
    assert [one["mean"] for one in second.statistics] == pytest.approx([0.15, 0.55])
    assert len(second.runs) == 3
    table = curve_table([first, second])
    assert table["mean"].tolist() == pytest.approx([0.15, 0.65, 0.15, 0.55])
    with pytest.raises(ConfigError, match="unknown axis 'l1'"):
        learning_curves(runs, "val_acc", "l1")
    with pytest.raises(ConfigError, match="unknown metric"):
        learning_curves(runs, "val_ac", "lr")
