"""Random generators: one per run and use, and none left changed."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gridrun.nn import Dropout, GaussianNoise
from gridrun.training import checkpoint as checkpoints
from gridrun.training.seeding import (
    USES,
    RunRandom,
    derive_seed,
    epoch_order,
    generator,
    kept_globals,
    random_subset,
    seeded_globals,
)

CPU = torch.device("cpu")


def draw() -> list[float]:
    """A number of each global generator, normal ones included."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.random()),
        float(np.random.standard_normal()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def seed_globals(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_uses_are_independent_streams() -> None:
    """No two uses of a seed, and no two seeds of a use, begin alike."""
    firsts = {
        tuple(torch.randint(2**40, (4,), generator=generator(seed, use)).tolist())
        for seed in range(20)
        for use in USES
    }
    assert len(firsts) == 20 * len(USES)


def test_streams_of_uses_do_not_correlate() -> None:
    """Numbers of different uses and of neighbouring seeds are uncorrelated."""
    streams = [
        torch.randn(20_000, generator=generator(seed, use))
        for seed in (0, 1)
        for use in USES
    ]
    r = np.corrcoef(torch.stack(streams).numpy()) - np.eye(len(streams))
    assert np.abs(r).max() < 5 / np.sqrt(20_000)


@given(st.integers(0, 2**31 - 1), st.text(max_size=8))
def test_derived_seeds_are_valid_and_repeat(seed: int, use: str) -> None:
    """A derived seed depends on seed and use alone and fits 63 bits."""
    assert derive_seed(seed, use) == derive_seed(seed, use)
    assert 0 <= derive_seed(seed, use) < 2**63
    assert derive_seed(seed, use) != derive_seed(seed + 1, use)


def test_derived_seeds_are_fixed() -> None:
    """Seeds stay what they are between versions, or no run could be repeated."""
    assert derive_seed(0, "noise") == 3_971_669_226_481_448_629


@given(st.integers(0, 300), st.integers(0, 2**31 - 1), st.integers(1, 50))
def test_an_epoch_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    """Every sample stands in the order once, and the order repeats."""
    order = epoch_order(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, epoch_order(seed, epoch, n))


def test_epoch_orders_differ_by_epoch_and_seed() -> None:
    """No two of ten epochs and ten seeds have one order."""
    orders = {
        tuple(epoch_order(seed, epoch, 50).tolist())
        for seed in range(10)
        for epoch in range(1, 11)
    }
    assert len(orders) == 100


def test_orders_leave_the_global_generator_alone() -> None:
    """Drawing orders and subsets takes nothing from torch's generator."""
    before = torch.get_rng_state()
    epoch_order(1, 1, 100)
    random_subset(1, 100, 10)
    assert torch.equal(before, torch.get_rng_state())


@given(st.integers(0, 1000), st.integers(1, 200), st.data())
def test_a_random_subset_is_sorted_and_distinct(
    seed: int, n: int, data: st.DataObject
) -> None:
    """A subset has the asked number of distinct samples in order, and repeats."""
    n_chosen = data.draw(st.integers(0, n))
    chosen = random_subset(seed, n, n_chosen).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == n_chosen
    assert all(0 <= index < n for index in chosen)
    assert chosen == random_subset(seed, n, n_chosen).tolist()


def test_random_subsets_are_uniform() -> None:
    """Over many seeds every sample is chosen about equally often."""
    counts = np.zeros(20)
    for seed in range(2000):
        counts[random_subset(seed, 20, 5).numpy()] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_seeded_globals_seed_by_seed_and_use() -> None:
    """Inside, numbers repeat for equal seed and use and differ for others."""
    drawn = []
    for seed, use in ((1, "init"), (1, "init"), (2, "init"), (1, "other")):
        with seeded_globals(seed, use):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))
    assert all(a != b for a, b in zip(drawn[0], drawn[3], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_seeded_globals_put_everything_back(fails: bool) -> None:
    """Afterwards, also after an error, python, numpy and torch go on as before."""
    seed_globals(3)
    draw()  # leaves half a pair of normal numbers in store
    random.gauss(0, 1)
    expected_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    outcome = pytest.raises(KeyError) if fails else contextlib.nullcontext()
    with outcome, seeded_globals(1, "init"):
        draw()
        if fails:
            raise KeyError
    assert_states(expected_state)


def assert_states(expected: Any) -> None:
    """Fail unless the three global states are these."""
    assert random.getstate() == expected[0]
    name, keys, *rest = np.random.get_state()
    other_name, other_keys, *other_rest = expected[1]
    assert (name, rest) == (other_name, other_rest)
    assert np.array_equal(keys, other_keys)
    assert torch.equal(torch.get_rng_state(), expected[2])


@pytest.mark.parametrize("fails", [False, True])
def test_an_active_run_leaves_the_outside_alone(fails: bool) -> None:
    """A run's turns, also one that fails, change no global state outside them."""
    seed_globals(4)
    draw()
    expected = random.getstate(), np.random.get_state(), torch.get_rng_state()
    run = RunRandom(1, CPU)
    outcome = pytest.raises(KeyError) if fails else contextlib.nullcontext()
    with outcome, kept_globals(), run.active():
        draw()
        if fails:
            raise KeyError
    assert_states(expected)


def test_a_run_s_turns_are_one_stream() -> None:
    """Draws in two turns do not depend on who draws between them."""
    whole = RunRandom(1, CPU)
    expected = []
    for _ in range(2):
        with whole.active():
            expected.append(draw())
    assert expected[0] != expected[1]
    run, found = RunRandom(1, CPU), []
    for _ in range(2):
        with run.active():
            found.append(draw())
        seed_globals(99)
        with RunRandom(2, CPU).active():
            draw()
    assert found == expected


def test_runs_of_other_seeds_draw_other_numbers() -> None:
    """The global generators inside a run come from its seed."""
    drawn = []
    for seed in (1, 1, 2):
        with RunRandom(seed, CPU).active():
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


def test_a_state_goes_through_a_checkpoint() -> None:
    """Saved as bytes and loaded into another run, every stream goes on equally."""
    run = RunRandom(1, CPU)
    with run.active():
        draw()
        random.gauss(0, 1)
    for one in run.generators.values():
        torch.randn(3, generator=one)
    content = checkpoints.to_bytes({"model_state_dict": {}, "rng": run.state()})
    other = RunRandom(2, CPU)
    other.load_state(checkpoints.from_bytes(content, "test")["rng"])
    for use in USES:
        one, two = (torch.randn(9, generator=r.generators[use]) for r in (run, other))
        assert torch.equal(one, two), use
    drawn = []
    for each in (run, other):
        with each.active():
            drawn.append([draw(), draw()])
    assert drawn[0] == drawn[1]


def test_a_saved_state_does_not_move_on() -> None:
    """A state taken is a copy: later draws leave it as it was."""
    run = RunRandom(1, CPU)
    state = run.state()
    with run.active():
        first = draw()
    noise = torch.randn(3, generator=run.generators["noise"])
    run.load_state(state)
    with run.active():
        assert draw() == first
    assert torch.equal(torch.randn(3, generator=run.generators["noise"]), noise)


def test_layers_get_the_generator_of_their_use() -> None:
    """Noise layers draw from noise, dropout from dropout, wherever they stand."""
    run = RunRandom(1, CPU)
    inner, outer, drop = GaussianNoise(1.0), GaussianNoise(1.0), Dropout(0.5)
    run.attach(torch.nn.Sequential(torch.nn.Sequential(inner), outer, drop))
    assert inner.generator is outer.generator is run.generators["noise"]
    assert drop.generator is run.generators["dropout"]
