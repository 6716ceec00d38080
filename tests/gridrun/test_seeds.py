"""Repeats by seeds and by bootstrap: who draws what, and what a run is."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import IMAGES as IMAGE_KEYS
from strategies import OF_MOVIE, completed, problems_of
from torch import Tensor

from gridrun.effects import check_effects, make_specs
from gridrun.planner import cohort_key
from gridrun.plugins import libraries
from gridrun.request import read_request
from gridrun.run import RunSpec, make_spec
from gridrun.store import RunFolder
from gridrun.sweep import Sweep, run_sweep
from gridrun.training.cohort import Interrupted
from gridrun.training.data import resample

RETINA, IMAGES = "torchdeepretina", "imgclass"
CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "exp_name": "s",
    "n_epochs": 2,
    "lr": 0.01,
    "executor": "serial",
    "workers": 1,
}
KEYS: dict[str, dict[str, Any]] = {
    RETINA: COMMON | dict(OF_MOVIE) | {"batch_size": 64},
    IMAGES: COMMON
    | {
        "model_type": "SmallNet",
        "dataset": "set",
        "img_shape": [1, 6, 6],
        "chans": [3],
        "ksizes": [3],
        "mid_dims": 5,
        "batch_size": 32,
    },
}
both_libraries = pytest.mark.parametrize("library", [RETINA, IMAGES])


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here pulls the plug, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def roots(
    tmp_path_factory: pytest.TempPathFactory,
    write_recording: Callable[..., Any],
    image_set: Path,
) -> dict[str, Path]:
    """The data of each library; the recording has 289 training windows."""
    root = tmp_path_factory.mktemp("seeds")
    write_recording(root / "rec" / "movie.h5", n_train=333)
    return {RETINA: root, IMAGES: image_set}


@dataclasses.dataclass(frozen=True)
class Trains:
    """Trains sweeps of a library in a folder of the test."""

    library: str
    data: Path
    root: Path

    def keys(self, **given: Any) -> dict[str, Any]:
        return {**KEYS[self.library], "data_root": str(self.data), **given}

    def specs(self, ranges: Any = None, **given: Any) -> list[RunSpec]:
        """The runs that a request would train."""
        return specs_of(self.keys(**given), ranges)

    def __call__(self, name: str, ranges: Any = None, **given: Any) -> Sweep:
        keys = self.keys(save_root=str(self.root / name), **given)
        return run_sweep(keys, ranges, quiet=True)

    def opened(self, hyps: Any) -> Any:
        """The data as a run sees them."""
        return libraries()[self.library].load_trainer().open_data(hyps, CPU)


def specs_of(hyperparams: Any, ranges: Any = None) -> list[RunSpec]:
    request = read_request(hyperparams, ranges)
    points = request.points()
    return make_specs(request, points, check_effects(request, points), 77)


@pytest.fixture
def sweeps(roots: dict[str, Path], tmp_path: Path, library: str) -> Trains:
    """How to train sweeps of the library."""
    return Trains(library, roots[library], tmp_path)


def bits(sweep: Sweep) -> list[dict[str, bytes]]:
    """The last weights of every run as comparable values."""
    states = [run.checkpoint("last")["model_state_dict"] for run in sweep.runs()]
    return [{n: t.numpy().tobytes() for n, t in state.items()} for state in states]


def places(split: Any) -> list[int]:
    """Where the samples of a split lie in the file."""
    found: list[int] = split.starts(torch.arange(len(split))).tolist()
    return found


# --- seeds ------------------------------------------------------------------------


@both_libraries
def test_each_repeat_has_the_seed_of_the_list(sweeps: Trains) -> None:
    """Repeat r has seeds[r]; all share the split of the first."""
    specs = sweeps.specs({"lr": [0.1, 0.2]}, seeds=[9, 4, 7])
    assert [spec.hyps.seed for spec in specs] == [9, 4, 7] * 2
    assert [spec.repeat for spec in specs] == [0, 1, 2] * 2
    assert {spec.hyps.split_seed for spec in specs} == {9}
    assert len({spec.point for spec in specs}) == 2
    assert len({spec.identity for spec in specs}) == 6


@both_libraries
def test_a_given_split_seed_wins_over_the_list(sweeps: Trains) -> None:
    """split_seed is the split's whatever the seeds are."""
    specs = sweeps.specs(seeds=[9, 4], split_seed=3)
    assert {spec.hyps.split_seed for spec in specs} == {3}


@both_libraries
def test_seeds_train_the_same_runs_as_seed(sweeps: Trains) -> None:
    """The list s, s + 1 is seed s with two repeats, bit for bit."""
    listed = bits(sweeps("listed", seeds=[5, 6]))
    counted = bits(sweeps("counted", seed=5, n_repeats=2))
    assert listed == counted
    assert listed[0] != listed[1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"seeds": [1, 2], "seed": 1}, "seed"),
        ({"seeds": [1, 2], "n_repeats": 2}, "n_repeats"),
        ({"seeds": [1, 2], "bootstrap": 2}, "bootstrap"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"seeds": []}, "distinct"),
        ({"seeds": [-1]}, "0 to"),
        ({"seeds": [2**31]}, "0 to"),
        ({"seeds": [1.5]}, "expected"),
        ({"seeds": [True]}, "expected"),
        ({"seeds": 3}, "expected"),
    ],
)
def test_wrong_lists_of_seeds_are_refused(given: dict[str, Any], told: str) -> None:
    """Seeds stand alone, distinct and in range."""
    base = {name: value for name, value in IMAGE_KEYS.items() if name != "seed"}
    assert told in problems_of(base, **given)["seeds"]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"bootstrap": 2, "n_repeats": 2}, "bootstrap"),
        ({"bootstrap": 2, "bootstrap_index": 0}, "bootstrap"),
        ({"bootstrap": -1}, "bootstrap"),
        ({"bootstrap": True}, "bootstrap"),
        ({"bootstrap_index": -1}, "bootstrap_index"),
        ({"seed": 2**31 - 1, "bootstrap": 2}, "seed"),
        ({"seed": 2**31 - 1, "n_repeats": 2}, "seed"),
    ],
)
def test_wrong_bootstraps_are_refused(given: dict[str, Any], key: str) -> None:
    """Replicates take the place of repeats, and their seeds must be in range."""
    assert key in problems_of(IMAGE_KEYS, **given)


def test_the_last_seeds_are_allowed() -> None:
    """Seed + repeat may reach 2³¹ - 1."""
    for name in ("n_repeats", "bootstrap"):
        hyps = completed(IMAGE_KEYS, seed=2**31 - 2, **{name: 2})
        last = make_spec(hyps, {}, 1, 2**31 - 2, ()).hyps
        assert last.seed == 2**31 - 1


# --- a run's own file -------------------------------------------------------------

WAYS: list[dict[str, Any]] = [
    {"seeds": [9, 4]},
    {"seed": 5, "n_repeats": 2},
    {"seed": 5, "bootstrap": 2},
    {"bootstrap": 2},
    {"seed": 5, "split_seed": 8, "bootstrap": 2, "shuffle": False},
]


@both_libraries
@pytest.mark.parametrize("way", WAYS)
def test_a_run_s_own_file_is_that_run(sweeps: Trains, way: dict[str, Any]) -> None:
    """It names one run of equal identity; trained elsewhere it ends the same."""
    sweep = sweeps("a", **way)
    numbers = sweep.folder.read()["requests"][0]["runs"]
    for run, expected in zip(sweep.runs(), bits(sweep), strict=True):
        own = run.folder.hyperparams
        (spec,) = specs_of(own)
        assert numbers[spec.identity] == run.number
        assert spec.hyps == run.hyps
        run_sweep(own, quiet=True)
        again = run_sweep(own, save_root=str(sweeps.root / str(run.number)), quiet=True)
        assert bits(again) == [expected]
    assert [len(run.record["attempts"]) for run in sweep.runs()] == [1, 1]


# --- bootstrap --------------------------------------------------------------------


@both_libraries
def test_a_row_of_replicates_names_them_all(sweeps: Trains) -> None:
    """Beside runs without bootstrap in the same sweep."""
    sweeps("a", seed=5)
    sweep = sweeps("a", seed=5, bootstrap=2)
    with (sweep.folder.path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["bootstrap_index"], row["val_loss_n"]) for row in rows]
    assert found == [("", "1"), ("[0, 1]", "2")]


@both_libraries
def test_a_bootstrap_is_so_many_runs(sweeps: Trains) -> None:
    """Replicate b has seed base + b, its index, and the common split."""
    specs = sweeps.specs(seed=5, bootstrap=3)
    found = [(spec.hyps.seed, spec.hyps.bootstrap_index) for spec in specs]
    assert found == [(5, 0), (6, 1), (7, 2)]
    assert {spec.hyps.split_seed for spec in specs} == {5}
    assert [spec.repeat for spec in specs] == [0, 1, 2]
    assert len({spec.identity for spec in specs}) == 3
    assert len({spec.point for spec in specs}) == 1
    assert all(spec.hyps.bootstrap == 0 for spec in specs)


@both_libraries
def test_a_replicate_draws_from_the_training_samples(sweeps: Trains) -> None:
    """As many as there are, with replacement; validation and test stay."""
    (plain,) = sweeps.specs(seed=5)
    whole = sweeps.opened(plain.hyps)
    available = set(places(whole.train))
    for spec in sweeps.specs(seed=5, bootstrap=2):
        data = sweeps.opened(spec.hyps)
        drawn = places(data.train)
        assert len(drawn) == len(whole.train)
        assert set(drawn) < available
        for name in ("val", "test"):
            assert places(getattr(data, name)) == places(getattr(whole, name))
        assert data.norm_stats == whole.norm_stats


@both_libraries
def test_drawn_samples_keep_their_targets(sweeps: Trains) -> None:
    """Inputs and targets of a draw are those of the sample at that place."""
    (plain,) = sweeps.specs(seed=5)
    whole = sweeps.opened(plain.hyps)
    (spec,) = sweeps.specs(seed=5, bootstrap_index=1)
    data = sweeps.opened(spec.hyps)
    at = {place: i for i, place in enumerate(places(whole.train))}
    rows = torch.tensor([at[place] for place in places(data.train)])
    expected = whole.train.batch(rows)
    found = data.train.batch(torch.arange(len(rows)))
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.targets, expected.targets)


@pytest.mark.parametrize("library", [RETINA])
def test_windows_are_drawn_in_stretches_of_100(sweeps: Trains) -> None:
    """Neighbours in time stay together, so that replicates vary as recordings do."""
    (spec,) = sweeps.specs(seed=5, bootstrap_index=0)
    drawn = places(sweeps.opened(spec.hyps).train)
    assert len(drawn) > 200
    for first in range(0, len(drawn), 100):
        stretch = drawn[first : first + 100]
        assert stretch == list(range(stretch[0], stretch[0] + len(stretch)))
    assert drawn[100] != drawn[99] + 1


@both_libraries
def test_draws_follow_split_seed_and_index_alone(sweeps: Trains) -> None:
    """Other seeds leave them, another split_seed or index does not."""

    def drawn(**given: Any) -> list[int]:
        keys = {"seed": 5, "split_seed": 8, "bootstrap_index": 0, "shuffle": False}
        (spec,) = sweeps.specs(**{**keys, **given})
        return places(sweeps.opened(spec.hyps).train)

    assert drawn() == drawn(seed=6) == drawn(lr=0.5, batch_size=9)
    assert drawn() != drawn(split_seed=9)
    assert drawn() != drawn(bootstrap_index=1)


@both_libraries
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_seed_of_the_draws_is_part_of_the_run(
    sweeps: Trains, shuffle: bool
) -> None:
    """Replicates of another split_seed are other runs, so it may be swept."""
    specs = sweeps.specs({"split_seed": [1, 2]}, bootstrap=2, seed=5, shuffle=shuffle)
    assert len({spec.identity for spec in specs}) == 4


@both_libraries
def test_replicates_of_grid_points_share_their_draws(sweeps: Trains) -> None:
    """Differences between grid points are not those of their samples."""
    specs = sweeps.specs({"lr": [0.1, 0.2]}, seed=5, bootstrap=2)
    drawn = [places(sweeps.opened(spec.hyps).train) for spec in specs]
    assert drawn[0] == drawn[2] != drawn[1] == drawn[3]
    streams = [cohort_key(spec.hyps) for spec in specs]
    assert streams[0] == streams[2] != streams[1] == streams[3]


@both_libraries
def test_replicates_train_in_company_as_alone(sweeps: Trains) -> None:
    """A sweep of replicates in one process is each of them by itself."""
    together = bits(sweeps("all", seed=5, bootstrap=3))
    assert together[0] != together[1] != together[2] != together[0]
    for b in (2, 1, 0):
        keys = {"seed": 5 + b, "split_seed": 5, "bootstrap_index": b}
        assert bits(sweeps(str(b), **keys)) == [together[b]]


@both_libraries
def test_the_draws_change_the_weights_and_not_the_start(sweeps: Trains) -> None:
    """With one seed two replicates differ; with no rate they end alike."""
    keys: dict[str, Any] = {"seed": 5, "split_seed": 5, "bnorm": False}
    ranges = {"bootstrap_index": [None, 0, 1]}
    a, b, c = bits(sweeps("a", ranges, **keys))
    assert a != b != c != a
    still = keys | {"lr": 1e-30, "optimizer": "SGD"}
    a, b, c = bits(sweeps("still", ranges, **still))
    assert a == b == c


@both_libraries
def test_the_summary_is_over_replicates(sweeps: Trains) -> None:
    """One row a grid point, of as many runs as there are replicates."""
    sweep = sweeps("a", {"lr": [0.01, 0.02]}, seed=5, bootstrap=3, n_epochs=1)
    with sweep.folder.summary.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["val_loss_n"] for row in rows] == ["3", "3"]
    assert all(float(row["val_loss_sd"]) > 0 for row in rows)


def stop_after(n_steps: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) >= n_steps


@both_libraries
@pytest.mark.parametrize("n_steps", [1, 3])
def test_an_interrupted_replicate_resumes_to_equal_bits(
    sweeps: Trains,
    make_folder: Callable[[Any], RunFolder],
    train: Any,
    last_state: Any,
    same: Any,
    n_steps: int,
) -> None:
    """Stopped within its first or a later epoch, it ends as if never stopped."""
    _, spec = sweeps.specs(seed=5, bootstrap=2, n_epochs=3)
    (whole,) = train([spec.hyps])
    half = make_folder(spec.hyps)
    with pytest.raises(Interrupted):
        train([spec.hyps], folders=[half], should_stop=stop_after(n_steps))
    train([spec.hyps], folders=[half])
    assert [one["state"] for one in half.read()["attempts"]] == ["interrupted", "done"]
    for part in ("model_state_dict", "optim_state_dict", "rng", "metrics"):
        assert same(last_state(whole)[part], last_state(half)[part]), part
    assert whole.read()["test"] == half.read()["test"]


# --- resample ---------------------------------------------------------------------

draws = given(
    n=st.integers(1, 400),
    stretch=st.integers(1, 120),
    seed=st.integers(0, 2**31 - 1),
    index=st.integers(0, 10**6),
)


@draws
def test_resamples_are_indices_as_many_as_there_are(
    n: int, stretch: int, seed: int, index: int
) -> None:
    """Length n, each from 0 to n - 1, int64, the same when asked again."""
    found = resample(n, stretch, seed, index)
    assert found.dtype == torch.int64
    assert found.shape == (n,)
    assert 0 <= int(found.min()) <= int(found.max()) < n
    assert torch.equal(found, resample(n, stretch, seed, index))


@draws
def test_stretches_are_consecutive(n: int, stretch: int, seed: int, index: int) -> None:
    """Only between stretches does the index do anything but count on."""
    found = resample(n, stretch, seed, index)
    for part in found.split(min(stretch, n)):
        assert torch.equal(part, part[0] + torch.arange(len(part)))


def frequencies(n: int, stretch: int, n_draws: int) -> Tensor:
    """How often each sample is drawn, per draw."""
    found = torch.zeros(n)
    for index in range(n_draws):
        found += torch.bincount(resample(n, stretch, 3, index), minlength=n)
    return found / n_draws


def test_single_draws_are_uniform() -> None:
    """Each of 40 samples is drawn once on average: 400 draws, s.d. of a mean 0.05."""
    found = frequencies(40, 1, 400)
    assert float((found - 1).abs().max()) < 0.25


def test_a_third_of_the_samples_is_left_out() -> None:
    """(1 - 1/n)^n of single draws, 0.366 for 200; s.d. of the mean of 100: 0.002."""
    shares = [1 - len(resample(200, 1, 3, i).unique()) / 200 for i in range(100)]
    assert sum(shares) / 100 == pytest.approx((1 - 1 / 200) ** 200, abs=0.012)


def test_stretches_start_anywhere_that_fits() -> None:
    """Of 12 samples in fours, the firsts are 0 to 8, each of them sometimes."""
    firsts = {int(resample(12, 4, 3, index)[0]) for index in range(200)}
    assert firsts == set(range(9))


def test_indices_and_seeds_draw_differently() -> None:
    """Twenty replicates of two seeds are forty different draws."""
    found = {
        tuple(resample(50, 1, seed, index).tolist())
        for seed in (1, 2)
        for index in range(20)
    }
    assert len(found) == 40
