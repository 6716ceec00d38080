"""Ranges to grid points: forms, order, sampling, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import json_values, key_names, ranges

from gridrun.grid import axis_keys, parse_ranges, points


def expand(content: Any) -> list[dict[str, Any]]:
    """The points of ranges that must be right."""
    grids, problems = parse_ranges(content)
    assert not problems
    return points(grids)


def problems_of(content: Any) -> dict[str, str]:
    """Key to message of what is wrong with ranges."""
    return dict(parse_ranges(content)[1])


def values_of(rule: Any) -> list[Any]:
    """The values that a generating rule gives one axis."""
    return [point["lr"] for point in expand({"lr": rule})]


# --- order and forms --------------------------------------------------------------


def test_no_ranges_are_one_point() -> None:
    """An empty object is a grid of one point without swept keys."""
    assert expand({}) == [{}]


def test_last_key_is_fastest() -> None:
    """The product runs through the last key's values first."""
    product = [(p["b"], p["a"]) for p in expand({"b": [1, 2], "a": [3, 4, 5]})]
    assert product == [(1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)]


def test_points_list_keys_in_the_order_of_the_file() -> None:
    """Each point names its keys as the ranges do, linked ones included."""
    (point,) = expand({"z": [1], "c, b": [[2, 3]], "a": [4]})
    assert list(point) == ["z", "c", "b", "a"]


def test_values_keep_their_order() -> None:
    """Values are tried as listed, never sorted."""
    assert values_of([3, 1, 2]) == [3, 1, 2]


def test_values_may_be_lists_objects_and_null() -> None:
    """A value of an axis is any JSON value, taken whole."""
    assert values_of([[8, 8], {"a": 1}, None]) == [[8, 8], {"a": 1}, None]


def test_linked_keys_move_together() -> None:
    """Linked keys make one axis: their values do not form a product."""
    linked = expand({"chans,ksizes": [[[8], [5]], [[8, 8], [5, 3]]], "lr": [1]})
    assert [(p["chans"], p["ksizes"]) for p in linked] == [
        ([8], [5]),
        ([8, 8], [5, 3]),
    ]


def test_spaces_around_linked_keys_do_not_count() -> None:
    """`a , b` names the keys a and b."""
    assert expand({" a , b": [[1, 2]]}) == [{"a": 1, "b": 2}]


def test_axis_keys_name_every_swept_key_once() -> None:
    """The keys of a union come in order of first appearance."""
    grids, _ = parse_ranges([{"b": [1], "c, a": [[1, 2]]}, {"a": [1], "d": [1]}])
    assert axis_keys(grids) == ("b", "c", "a", "d")


# --- generated values -------------------------------------------------------------


def test_linear_values_are_evenly_spaced() -> None:
    """`linear` gives count values with equal differences."""
    assert values_of({"linear": [0, 1, 5]}) == [0, 0.25, 0.5, 0.75, 1]


def test_log_values_have_equal_ratios_and_read_well() -> None:
    """`log` gives powers of ten as people write them, without rounding dust."""
    assert values_of({"log": [1e-4, 1e-1, 4]}) == [1e-4, 1e-3, 1e-2, 1e-1]


def test_falling_values_are_allowed() -> None:
    """First may be larger than last."""
    assert values_of({"linear": [3, 1, 3]}) == [3, 2, 1]


@pytest.mark.parametrize("kind", ["linear", "log"])
def test_integers_stay_integers(kind: str) -> None:
    """Whole values between whole ends are integers, so that integer keys take them."""
    values = values_of({kind: [1, 9, 3]})
    assert [type(value) for value in values] == [int, int, int]


def test_whole_values_between_floats_stay_floats() -> None:
    """Ends written as floats give floats."""
    values = values_of({"linear": [1.0, 3.0, 3]})
    assert [type(value) for value in values] == [float, float, float]


@given(
    st.sampled_from(["linear", "log"]),
    st.floats(1e-6, 1e6),
    st.floats(1e-6, 1e6),
    st.integers(2, 30),
)
def test_generated_ends_are_exact(
    kind: str, first: float, last: float, count: int
) -> None:
    """First and last come back bit for bit, with count values in all."""
    values = values_of({kind: [first, last, count]})
    assert (values[0], values[-1], len(values)) == (first, last, count)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 30))
def test_log_values_follow_the_formula(first: float, last: float, count: int) -> None:
    """Value i is first·(last/first)^(i/(count-1)), to 11 digits."""
    values = values_of({"log": [first, last, count]})
    expected = [first * (last / first) ** (i / (count - 1)) for i in range(count)]
    assert values == pytest.approx(expected, rel=1e-11)


# --- unions -----------------------------------------------------------------------


def test_union_follows_the_order_of_its_grids() -> None:
    """The points of the first grid come first."""
    assert expand([{"a": [2]}, {"a": [1]}]) == [{"a": 2}, {"a": 1}]


def test_duplicates_in_a_union_are_dropped() -> None:
    """A point that two grids hold is one point, whatever the order of its keys."""
    union = [{"a": [1, 2], "b": [3]}, {"b": [3, 4], "a": [2]}]
    assert expand(union) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


def test_true_and_one_are_two_values_of_a_union() -> None:
    """Only exact duplicates go: true is not 1."""
    assert len(expand([{"a": [True]}, {"a": [1]}])) == 2


def test_objects_that_differ_in_key_order_are_duplicates() -> None:
    """The order of the keys of a JSON object means nothing."""
    union = [{"a": [{"x": 1, "y": 2}]}, {"a": [{"y": 2, "x": 1}]}]
    assert len(expand(union)) == 1


# --- counting and sampling --------------------------------------------------------


def test_a_huge_grid_is_counted_without_expansion() -> None:
    """10^9 points are counted from the lengths of the axes."""
    (grid,), _ = parse_ranges({name: list(range(1000)) for name in "abc"})
    assert grid.n_points == 10**9


def test_a_few_points_of_a_huge_grid_can_be_drawn() -> None:
    """Sampling does not expand the grid, even where its size exceeds 64 bits."""
    huge = {f"k{i}": list(range(10)) for i in range(25)}
    option = {"method": "random", "num_samples": 5}
    drawn = [tuple(p.values()) for p in expand({**huge, "$sweep": option})]
    assert len(drawn) == 5
    assert drawn == sorted(set(drawn))


def test_method_grid_is_the_whole_grid() -> None:
    """`"method": "grid"` says what is so anyway."""
    assert expand({"a": [1, 2], "$sweep": {"method": "grid"}}) == [{"a": 1}, {"a": 2}]


@given(ranges(), st.integers(0, 2**40), st.data())
def test_random_points_are_distinct_points_in_grid_order(
    content: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    """A sample is drawn without replacement and kept in the order of the grid."""
    whole = expand(content)
    count = data.draw(st.integers(1, len(whole)))
    option = {"method": "random", "num_samples": count, "seed": seed}
    positions = [whole.index(p) for p in expand({**content, "$sweep": option})]
    assert positions == sorted(set(positions))
    assert len(positions) == count


def test_random_points_depend_on_the_seed_alone() -> None:
    """The same seed draws the same points, another seed others; 0 if none is given."""

    def draw(**seed: int) -> list[dict[str, Any]]:
        option = {"method": "random", "num_samples": 5, **seed}
        return expand({"a": list(range(1000)), "$sweep": option})

    assert draw(seed=0) == draw(seed=0) == draw()
    assert draw(seed=1) != draw(seed=0)


# --- properties -------------------------------------------------------------------


@given(ranges())
def test_number_of_points_is_the_product_of_the_axes(content: dict[str, Any]) -> None:
    """Counted and expanded sizes both equal the product of the axes' lengths."""
    expected = math.prod(map(len, content.values()))
    (grid,), _ = parse_ranges(content)
    assert len(expand(content)) == grid.n_points == expected


@given(ranges())
def test_points_are_distinct(content: dict[str, Any]) -> None:
    """Axes with distinct values give no point twice."""
    everything = [tuple(sorted(point.items())) for point in expand(content)]
    assert len(set(everything)) == len(everything)


@given(st.lists(ranges(), min_size=2, max_size=3))
def test_points_of_a_union_are_distinct(contents: list[dict[str, Any]]) -> None:
    """Union points are those of its grids, each once."""
    alone = [tuple(sorted(p.items())) for one in contents for p in expand(one)]
    united = [tuple(sorted(point.items())) for point in expand(contents)]
    assert united == list(dict.fromkeys(alone))


@given(json_values)
def test_any_json_is_read_or_refused(content: Any) -> None:
    """No content of a ranges file raises anything but named problems."""
    grids, problems = parse_ranges(content)
    assert problems or points(grids)


@given(key_names, json_values)
def test_any_axis_is_read_or_refused_by_its_name(name: str, values: Any) -> None:
    """What is wrong with an axis is told under its key."""
    grids, problems = parse_ranges({name: values})
    assert [key for key, _ in problems] in ([], [name])
    assert problems or len(points(grids)) == grids[0].n_points


# --- what is refused --------------------------------------------------------------


@pytest.mark.parametrize("content", [None, 1, "lr", True, [], [[]], [{"lr": [1]}, 2]])
def test_ranges_that_are_no_object_are_refused(content: Any) -> None:
    """The file holds an object, or a list of at least one."""
    assert list(problems_of(content)) == [""]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(0.1, id="a number"),
        pytest.param("auto", id="a text"),
        pytest.param(None, id="null"),
        pytest.param([], id="no value"),
        pytest.param({}, id="no rule"),
        pytest.param({"values": [1, 2]}, id="unknown rule"),
        pytest.param({"log": [1, 2, 3], "linear": [1, 2, 3]}, id="two rules"),
        pytest.param({"linear": 5}, id="no list"),
        pytest.param({"linear": [0, 1]}, id="two numbers"),
        pytest.param({"linear": [0, 1, 2, 3]}, id="four numbers"),
        pytest.param({"linear": [0, "1", 3]}, id="text for a number"),
        pytest.param({"linear": [False, 1, 3]}, id="bool for a number"),
        pytest.param({"linear": [0, 1, 1]}, id="count 1"),
        pytest.param({"linear": [0, 1, 2.0]}, id="count not whole"),
        pytest.param({"linear": [0, 1, 10**9]}, id="count too large"),
        pytest.param({"log": [0, 1, 3]}, id="log from zero"),
        pytest.param({"log": [1, -1, 3]}, id="log to a negative"),
        pytest.param({"linear": [0, 10**400, 3]}, id="linear beyond float"),
        pytest.param({"log": [1, 10**400, 30]}, id="log beyond float"),
    ],
)
def test_a_malformed_axis_is_refused_by_name(values: Any) -> None:
    """Anything but a non-empty list or a complete rule names its key."""
    assert list(problems_of({"lr": values})) == ["lr"]


@pytest.mark.parametrize("name", ["", ",", "a,", ",a", "a,,b"])
def test_an_empty_key_name_is_refused(name: str) -> None:
    """Every linked name must be there."""
    assert "empty" in problems_of({name: [[1, 2]]})[name]


@pytest.mark.parametrize(
    "values", [[1, 2], [[1]], [[1, 2, 3]], [[1, 2], [1]], {"linear": [0, 1, 3]}]
)
def test_linked_keys_need_one_value_each(values: Any) -> None:
    """A combination that is no list of as many values names the linked keys."""
    assert list(problems_of({"a, b": values})) == ["a, b"]


def test_the_wrong_combination_is_counted_from_one() -> None:
    """The message says which of the combinations is wrong."""
    assert "value 2" in problems_of({"a, b": [[1, 2], [1]]})["a, b"]


@pytest.mark.parametrize(
    "content", [{"a": [1], "a, b": [[1, 2]]}, {"a, a": [[1, 2]]}, {"a": [1], " a": [2]}]
)
def test_a_key_on_two_axes_is_refused(content: Any) -> None:
    """A key may be swept once."""
    assert "two axes" in problems_of(content)["a"]


def test_a_key_inside_a_swept_key_is_refused() -> None:
    """`a.b` and `a` would overwrite each other."""
    assert list(problems_of({"a.b": [1], "a": [{}]})) == ["a.b"]


def test_all_problems_are_told_together() -> None:
    """One malformed axis does not hide another."""
    assert set(problems_of({"a": 1, "b": [1], "c": []})) == {"a", "c"}


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(None, id="null"),
        pytest.param([], id="a list"),
        pytest.param({}, id="no method"),
        pytest.param({"method": "bayes"}, id="unknown method"),
        pytest.param({"method": ["random"], "num_samples": 1}, id="method in a list"),
        pytest.param({"method": "random"}, id="no num_samples"),
        pytest.param({"method": "random", "num_samples": 0}, id="no sample"),
        pytest.param({"method": "random", "num_samples": 1.0}, id="float"),
        pytest.param({"method": "random", "num_samples": True}, id="bool"),
        pytest.param({"method": "random", "num_samples": 4}, id="more than points"),
        pytest.param({"method": "random", "num_samples": 1, "seed": -1}, id="seed < 0"),
        pytest.param({"method": "random", "num_samples": 1, "seed": "1"}, id="text"),
        pytest.param({"method": "random", "num_samples": 1, "n": 1}, id="unknown"),
        pytest.param({"method": "grid", "num_samples": 1}, id="samples of grid"),
    ],
)
def test_a_malformed_sweep_option_is_refused(option: Any) -> None:
    """Anything but a complete `$sweep` is told under that name."""
    assert list(problems_of({"a": [1, 2, 3], "$sweep": option})) == ["$sweep"]
