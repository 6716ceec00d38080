"""Runs: identity, grid points, repeats and folder names."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BASES, IMAGES, RETINA, completed, exp_names, json_values

from gridrun.config import Hyperparams, keys_of
from gridrun.run import MAX_NAME_LENGTH, RunSpec, RunState, identity, make_spec

# one other value of each key that acts; what is missing here is not built yet
OTHER: dict[str, dict[str, Any]] = {
    "torchdeepretina": {
        "library": "torchdeepretina",
        "seed": 6,
        "split_seed": 6,
        "model_type": "LN",
        "n_layers": 2,
        "chans": [4],
        "ksizes": [4],
        "bnorm": False,
        "bnorm_d": 2,
        "bn_moment": 0.5,
        "bias": False,
        "gc_bias": True,
        "softplus": False,
        "output_scale": "std",
        "stackconvs": False,
        "drop_p": 0.5,
        "convgc": True,
        "rand_onehot": True,
        "noise": 0.5,
        "img_shape": [5, 8, 8],
        "dataset": "other",
        "stim_type": "other",
        "cells": [0],
        "response_type": "binned",
        "target_offset": 0,
        "n_skip_frames": 1,
        "stim_storage": "float16",
        "shuffle": False,
        "val_p": 0.5,
        "val_loc": "middle",
        "lossfxn": "MSELoss",
        "log_poisson": True,
        "batch_size": 9,
        "n_epochs": 3,
        "lr": 0.02,
        "l2": 0.5,
        "l1": 0.5,
        "optimizer": "SGD",
        "optimizer_args": {"eps": 0.5},
        "scheduler": "ExponentialLR",
        "scheduler_args": {"gamma": 0.5},
        "monitor": "val_acc",
        "early_stop_patience": 1,
        "early_stop_min_delta": 0.5,
        "normalizer": "none",
        "train_loop": "retinotopic_loop",
        "semantic_scale": 1.0,
        "semantic_l1": 1.0,
        "prune": True,
        "prune_layers": ["layers.0"],
        "prune_intvl": 2,
        "prune_tolerance": 0.5,
        "alpha_steps": 2,
        "intg_bsize": 5,
        "zero_bias": False,
        "reset_sd": True,
        "reset_lr": True,
        "abssum": True,
        "altn_layers": True,
        "bootstrap_index": 0,
        "init_weights_path": f"/absent/init_weights/{64 * '0'}.pt",
        "precision": "float64",
        "grad_clip": 1.0,
        "train_set_size": 9,
        "val_set_size": 9,
        "model_args": {"a": 1},
        "dataset_args": {"a": 1},
        "val_set": "other/movie",
        "distorter": "jitter",
        "distorter_args": {"pixels": 1},
        "augmenters": ["other"],
        "use_preset": True,
        "loss_space": "original",
        "eval_space": "original",
    },
    "imgclass": {
        "paddings": [1],
        "strides": [2],
        "mid_dims": 7,
        "width": 7,
        "plain_n": 2,
        "n_shakes": 2,
        "locrespnorm": True,
        "stackconvs": True,
        "drop_ps": [0.5, 0.5],
        "augment": [],
        "normalizer": "none",
    },
}
ACTING = [
    pytest.param(library, name, id=f"{library}-{name}")
    for library, others in OTHER.items()
    for name in others
    if name != "n_layers"  # follows from chans, never differs alone
]


def spec_of(hyps: Hyperparams, repeat: int = 0, **axes: Any) -> RunSpec:
    """A run all of whose keys act."""
    assert hyps.seed is not None
    return make_spec(hyps, axes, repeat, hyps.seed, ())


def identity_of(base: Any = IMAGES, **given: Any) -> str:
    """Identity of a configuration all of whose keys act."""
    return identity(completed(base, **given), ())


# --- identity ---------------------------------------------------------------------


@given(st.randoms())
def test_identity_does_not_depend_on_the_order_of_keys(order: random.Random) -> None:
    """The same settings in another order are the same run, in objects too."""
    args = [("eps", 0.1), ("betas", [0.5, 0.9])]
    items = [*RETINA.items(), ("optimizer_args", dict(args))]
    shuffled = [*RETINA.items(), ("optimizer_args", dict(reversed(args)))]
    order.shuffle(shuffled)
    assert identity_of(dict(shuffled)) == identity_of(dict(items))


def test_identity_is_a_sha256() -> None:
    """64 hexadecimal digits."""
    assert re.fullmatch("[0-9a-f]{64}", identity_of())


@pytest.mark.parametrize(("library", "name"), ACTING)
def test_identity_changes_with_every_key_that_acts(library: str, name: str) -> None:
    """Another value of one key is another run."""
    hyps = completed(BASES[library])
    other = hyps.model_copy(update={name: OTHER[library][name]})
    assert identity(other, ()) != identity(hyps, ())


def test_every_key_that_acts_is_tried_above() -> None:
    """A key added to a schema must be added to these tests."""
    retina = type(completed(RETINA))
    images = type(completed(IMAGES))
    tried = set(OTHER["torchdeepretina"]) | set(OTHER["imgclass"])
    acting = {
        name
        for schema in (retina, images)
        for name, facts in keys_of(schema).items()
        if facts.identity == "yes"
    }
    assert acting <= tried


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exp_name", "other"),
        ("n_repeats", 7),
        ("bootstrap", 3),
        ("n_workers", 2),
        ("save_every_epoch", True),
        ("starting_exp_num", 3),
        ("skip_nums", [1]),
        ("data_root", "/elsewhere"),
        ("save_root", "/elsewhere"),
        ("executor", "serial"),
        ("workers", 3),
        ("cohort_size", 2),
        ("max_attempts", 9),
        ("hang_timeout_s", 5.0),
        ("threads", 4),
        ("device", "cpu"),
        ("engine", "solo"),
        ("conv_method", "direct"),
    ],
)
def test_identity_ignores_what_changes_no_result(name: str, value: Any) -> None:
    """Where, when and how fast a run is trained is not what it is."""
    assert identity_of(IMAGES, **{name: value}) == identity_of()


def test_identity_leaves_out_inactive_keys() -> None:
    """A key that does not act does not make another run."""
    one, two = completed(IMAGES, width=1), completed(IMAGES, width=2)
    assert identity(one, ["width"]) == identity(two, ["width"])


def test_an_unread_ganglion_kernel_is_not_part_of_a_run() -> None:
    """Without convgc the last kernel size does nothing."""
    assert identity_of(RETINA, ksizes=[5, 9]) == identity_of(RETINA, ksizes=[5])


def test_a_whole_number_is_the_same_run_as_its_float() -> None:
    """`1` and `1.0` are one learning rate."""
    assert identity_of(IMAGES, lr=1) == identity_of(IMAGES, lr=1.0)


@pytest.mark.parametrize("library", BASES)
def test_a_recorded_run_has_the_identity_of_its_spec(library: str) -> None:
    """What is written into hyperparams.json gives the same identity again."""
    spec = spec_of(completed(BASES[library], n_repeats=3), repeat=2)
    written = json.loads(json.dumps(spec.hyps.model_dump(mode="json")))
    assert identity(completed(written), ()) == spec.identity


# --- repeats ----------------------------------------------------------------------


def test_a_repeat_has_its_own_seed_and_the_common_split() -> None:
    """Repeat r has seed base + r; the split follows the base alone."""
    hyps = spec_of(completed(IMAGES, seed=5, n_repeats=3), repeat=2).hyps
    assert (hyps.seed, hyps.split_seed) == (7, 5)


def test_the_base_seed_stands_in_for_null() -> None:
    """A null seed is settled by the sweep and recorded."""
    hyps = make_spec(completed(IMAGES, seed=None), {}, 1, 100, ()).hyps
    assert (hyps.seed, hyps.split_seed) == (101, 100)


def test_a_given_split_seed_stays() -> None:
    """split_seed does not follow the seed once it is given."""
    assert spec_of(completed(IMAGES, split_seed=9), repeat=1).hyps.split_seed == 9


def test_a_run_alone_is_one_repeat_with_any_number() -> None:
    """A run's own file trains that run, not the sweep it came from."""
    hyps = completed(IMAGES, n_repeats=4, starting_exp_num=8, skip_nums=[9])
    own = spec_of(hyps, repeat=1).hyps
    assert (own.n_repeats, own.starting_exp_num, own.skip_nums) == (1, None, None)


def test_repeats_are_different_runs_of_one_grid_point() -> None:
    """Seeds tell repeats apart; the point is what they share."""
    repeats = [spec_of(completed(IMAGES), repeat=r) for r in range(3)]
    assert len({spec.identity for spec in repeats}) == 3
    assert len({spec.point for spec in repeats}) == 1


def test_grid_points_have_different_points() -> None:
    """Runs that differ in a swept key are of different grid points."""
    specs = [spec_of(completed(IMAGES, lr=lr), lr=lr) for lr in (0.1, 0.2)]
    assert specs[0].point != specs[1].point


@pytest.mark.parametrize("name", ["seed", "split_seed"])
def test_a_swept_seed_makes_grid_points(name: str) -> None:
    """Seeds that are an axis are compared like any axis."""
    values = ({name: 1}, {name: 2})
    specs = [spec_of(completed(IMAGES, **one), **one) for one in values]
    assert specs[0].point != specs[1].point


def test_repeats_of_a_swept_seed_share_their_point() -> None:
    """The repeat's offset is not part of the axis value."""
    specs = [spec_of(completed(IMAGES, seed=10), repeat=r, seed=10) for r in (0, 1)]
    assert specs[0].point == specs[1].point


# --- folder names -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "name"),
    [
        ({}, "sweep_3"),
        ({"lr": 0.0001, "bnorm": True}, "sweep_3_lr0.0001_bnormTrue"),
        ({"chans": [8, 16]}, "sweep_3_chans8-16"),
        ({"chans": []}, "sweep_3_chans"),
        ({"optimizer_args.eps": 1e-8}, "sweep_3_optimizer_args.eps1e-08"),
        ({"optimizer_args": {"eps": 0.1}}, "sweep_3_optimizer_argseps0.1"),
        ({"cells": "a b/c"}, "sweep_3_cellsa-b-c"),
        ({"seed": None}, "sweep_3_seedNone"),
    ],
)
def test_a_folder_is_named_by_the_axes(axes: dict[str, Any], name: str) -> None:
    """Experiment, number, then each swept key with its value."""
    assert spec_of(completed(IMAGES), **axes).folder_name(3) == name


@given(
    exp_names,
    st.integers(0, 10**7),
    st.dictionaries(st.text(max_size=20), json_values, max_size=4),
)
def test_folder_names_are_safe(exp_name: str, number: int, axes: Any) -> None:
    """Only plain characters, bounded length, and the number where it is looked for."""
    spec = make_spec(completed(IMAGES, exp_name=exp_name), axes, 0, 0, ())
    name = spec.folder_name(number)
    assert re.fullmatch(r"[A-Za-z0-9._+-]+", name)
    assert len(name) <= MAX_NAME_LENGTH
    start = f"{exp_name}_{number}"
    assert name == start or name.startswith(f"{start}_")


def test_folders_of_many_axes_are_told_apart_by_number() -> None:
    """A cut name still holds the number."""
    spec = spec_of(completed(IMAGES), **{f"axis{i}": [0.5] * 9 for i in range(20)})
    assert spec.folder_name(3)[:8] == "sweep_3_"
    assert spec.folder_name(3) != spec.folder_name(4)


# --- states -----------------------------------------------------------------------


def test_final_states_are_those_that_nobody_continues() -> None:
    """Done, failed and diverged runs are left alone unless asked for."""
    final = [state.value for state in RunState if state.is_final]
    assert final == ["done", "failed", "diverged"]


def test_replicates_are_a_grid_point_of_their_own() -> None:
    """Runs on resampled data are not pooled with those on all of it."""
    hyps = completed(IMAGES, n_repeats=1)
    ordinary = make_spec(hyps, {}, 0, 5, ())
    drawn = hyps.model_copy(update={"bootstrap": 2})
    first, second = (make_spec(drawn, {}, repeat, 5, ()) for repeat in (0, 1))
    assert first.point == second.point != ordinary.point
    again = make_spec(first.hyps, {}, 0, 5, ())
    assert (again.point, again.identity) == (first.point, first.identity)
