"""Cohorts: which runs train side by side, and how they are shared out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import IMAGES, RETINA, completed

from gridrun.config import Hyperparams
from gridrun.planner import LARGEST_AUTO_COHORT, Job, cohort_key, plan_cohorts


def many(n_runs: int, **given: Any) -> list[Hyperparams]:
    """Runs that differ in a key that no batch depends on."""
    return [completed(IMAGES, lr=i + 1, **given) for i in range(n_runs)]


def shared(base: Any, **given: Any) -> bool:
    """Whether a run and the same with other settings share a stream of batches."""
    return plan_cohorts([completed(base), completed(base, **given)], 1) == [[0, 1]]


@st.composite
def mixed_runs(draw: st.DrawFn) -> list[Hyperparams]:
    """Runs of several seeds and batch sizes, in any order."""
    keys = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(8, 9)), max_size=20))
    return [completed(IMAGES, seed=seed, batch_size=size) for seed, size in keys]


sizes = st.integers(1, 10) | st.just("auto")


# --- who trains together ----------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "given"),
    [
        (IMAGES, {"lr": 0.5}),
        (IMAGES, {"n_epochs": 9}),
        (IMAGES, {"optimizer": "SGD"}),
        (IMAGES, {"chans": [7]}),
        (IMAGES, {"model_type": "Tiny10"}),
        (IMAGES, {"lossfxn": "MSELoss"}),
        (RETINA, {"bnorm": False}),
        (RETINA, {"noise": 0.5}),
    ],
)
def test_models_and_optimizers_may_differ(base: Any, given: dict[str, Any]) -> None:
    """What no batch depends on does not part runs."""
    assert shared(base, **given)


@pytest.mark.parametrize(
    ("base", "given"),
    [
        (IMAGES, {"seed": 6}),
        (IMAGES, {"split_seed": 6}),
        (IMAGES, {"batch_size": 9}),
        (IMAGES, {"shuffle": False}),
        (IMAGES, {"augment": []}),
        (IMAGES, {"img_shape": [3, 8, 8]}),
        (IMAGES, {"dataset": "other"}),
        (IMAGES, {"data_root": "/elsewhere"}),
        (IMAGES, {"val_p": 0.5}),
        (IMAGES, {"val_loc": "middle"}),
        (IMAGES, {"threads": 2}),
        (IMAGES, {"device": "cpu"}),
        (IMAGES, {"engine": "solo"}),
        (IMAGES, {"conv_method": "direct"}),
        (RETINA, {"stim_type": "other"}),
        (RETINA, {"cells": [0]}),
        (RETINA, {"response_type": "binned"}),
        (RETINA, {"target_offset": 0}),
        (RETINA, {"n_skip_frames": 5}),
        (RETINA, {"stim_storage": "float16"}),
        (RETINA, {"img_shape": [5, 8, 8]}),
    ],
)
def test_other_batches_or_bits_part_runs(base: Any, given: dict[str, Any]) -> None:
    """Data, split, order, batch size and guarded keys must be the same."""
    assert not shared(base, **given)


def test_libraries_never_share() -> None:
    """Data of one library are nothing to the other."""
    assert cohort_key(completed(IMAGES)) != cohort_key(completed(RETINA))


@given(mixed_runs(), st.integers(1, 6), sizes)
def test_cohorts_join_equal_keys_only(
    runs: list[Hyperparams], n_workers: int, size: int | str
) -> None:
    """All runs of a cohort share seed and batch size."""
    for cohort in plan_cohorts(runs, n_workers, size):
        assert len({(runs[i].seed, runs[i].batch_size) for i in cohort}) == 1


# --- how many ---------------------------------------------------------------------


@given(mixed_runs(), st.integers(1, 6), sizes)
def test_every_run_is_in_exactly_one_cohort(
    runs: list[Hyperparams], n_workers: int, size: int | str
) -> None:
    """Nothing is lost, nothing is trained twice, and no cohort is empty."""
    cohorts = plan_cohorts(runs, n_workers, size)
    assert sorted(i for cohort in cohorts for i in cohort) == list(range(len(runs)))
    assert all(cohorts)


@given(mixed_runs(), st.integers(1, 6), sizes)
def test_cohorts_keep_the_order_of_the_grid(
    runs: list[Hyperparams], n_workers: int, size: int | str
) -> None:
    """Runs within a cohort, and cohorts of equal work by their first run."""
    cohorts = plan_cohorts(runs, n_workers, size)
    assert all(cohort == sorted(cohort) for cohort in cohorts)
    assert cohorts == sorted(cohorts, key=lambda one: (-len(one), one))


@given(mixed_runs(), st.integers(1, 6), st.integers(1, 10))
def test_cohort_size_is_respected(
    runs: list[Hyperparams], n_workers: int, size: int
) -> None:
    """No cohort is larger than asked for, whatever the number of workers."""
    assert all(len(one) <= size for one in plan_cohorts(runs, n_workers, size))


@given(mixed_runs(), st.integers(1, 6))
def test_no_worker_gets_more_than_its_share_at_once(
    runs: list[Hyperparams], n_workers: int
) -> None:
    """auto: no cohort is larger than an equal share of all runs."""
    share = math.ceil(len(runs) / n_workers)
    assert all(len(one) <= share for one in plan_cohorts(runs, n_workers))


@pytest.mark.parametrize("n_runs", [1, 3, 4, 5, 8, 9, 20, 33])
@pytest.mark.parametrize("n_workers", [1, 2, 4, 16])
def test_auto_gives_every_worker_something(n_runs: int, n_workers: int) -> None:
    """There are as many cohorts as workers, where there are as many runs."""
    assert len(plan_cohorts(many(n_runs), n_workers)) >= min(n_runs, n_workers)


def test_auto_cohorts_have_a_largest_size() -> None:
    """Memory does not grow with the grid."""
    cohorts = plan_cohorts(many(100), 1)
    assert max(map(len, cohorts)) <= LARGEST_AUTO_COHORT


def ends(cohorts: list[list[int]], work: list[float], n_workers: int) -> list[float]:
    """When each worker is done, if the next cohort goes to whoever is free."""
    times = [0.0] * n_workers
    for cohort in cohorts:
        times[times.index(min(times))] += sum(work[i] for i in cohort)
    return sorted(times)


@pytest.mark.parametrize(
    ("n_seeds", "per_seed", "n_workers", "expected"),
    [
        (3, 4, 2, [6, 6]),
        (2, 12, 2, [12, 12]),
        (1, 24, 2, [12, 12]),
        (5, 3, 4, [3, 4, 4, 4]),
        (1, 3, 2, [1, 2]),
        (3, 1, 2, [1, 2]),
    ],
)
def test_workers_end_together(
    n_seeds: int, per_seed: int, n_workers: int, expected: list[int]
) -> None:
    """Groups are cut where whole ones would leave a worker idle."""
    runs = [one for seed in range(n_seeds) for one in many(per_seed, seed=seed)]
    cohorts = plan_cohorts(runs, n_workers)
    assert ends(cohorts, [1.0] * len(runs), n_workers) == expected


def test_a_group_is_not_cut_for_nothing() -> None:
    """Three runs for two workers are 2 and 1: a third cohort would share less."""
    assert [len(one) for one in plan_cohorts(many(3), 2)] == [2, 1]


def test_long_runs_start_first() -> None:
    """Else the last worker would begin a long run when the others end."""
    runs = [completed(IMAGES, seed=i, n_epochs=n) for i, n in enumerate([1, 9, 2, 8])]
    assert plan_cohorts(runs, 2) == [[1], [3], [2], [0]]


@given(mixed_runs(), st.integers(1, 6))
def test_the_balance_is_near_the_best(runs: list[Hyperparams], n_workers: int) -> None:
    """No worker has more than its share and one run of others'."""
    times = ends(plan_cohorts(runs, n_workers), [1.0] * len(runs), n_workers)
    assert times[-1] <= max(1, len(runs) / n_workers) * 1.05 + 1


def test_parts_of_a_group_are_even() -> None:
    """Nine runs in cohorts of at most eight are 5 and 4, not 8 and 1."""
    assert [len(one) for one in plan_cohorts(many(9), 1, 8)] == [5, 4]


def test_no_runs_are_no_cohorts() -> None:
    """A finished sweep has nothing to plan."""
    assert plan_cohorts([], 4) == []


# --- jobs -------------------------------------------------------------------------


@pytest.fixture
def job() -> Job:
    """A cohort of two runs."""
    hyps = ({"n_epochs": 3}, {"n_epochs": 4})
    return Job("imgclass", ("a", "b"), hyps, threads=2, device="auto")


def test_a_job_counts_the_epochs_of_all_its_runs(job: Job) -> None:
    """Progress is told in epochs of runs."""
    assert job.n_epochs == 7


def test_a_job_splits_into_its_runs(job: Job) -> None:
    """Each run keeps its own configuration."""
    singles = job.singles()
    assert [(one.folders, one.hyps) for one in singles] == [
        (("a",), ({"n_epochs": 3},)),
        (("b",), ({"n_epochs": 4},)),
    ]
    assert {(one.threads, one.device) for one in singles} == {(2, "auto")}


def test_a_job_moves_to_another_device(job: Job) -> None:
    """Only the device differs."""
    moved = job.on("cuda:1")
    assert (moved.device, moved.folders, job.device) == ("cuda:1", ("a", "b"), "auto")
