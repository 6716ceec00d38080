"""Requests: both files and overrides, checked completely before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from strategies import BASES, IMAGES, RETINA

from gridrun.config import defaults_of, keys_of
from gridrun.effects import Effects, check_data, check_effects, make_specs
from gridrun.errors import ConfigError, DataError, GridrunError
from gridrun.plan import number_runs, plan_sweep
from gridrun.plugins import libraries
from gridrun.request import Request, read_request
from gridrun.run import RunSpec
from gridrun.sweep import run_sweep

# hyperparameter reference, sections 1 and 6b
NEVER_SWEPT = [
    "library",
    "exp_name",
    "n_repeats",
    "starting_exp_num",
    "skip_nums",
    "save_every_epoch",
    "n_workers",
    "data_root",
    "seeds",
    "bootstrap",
    "log_frequency",
    "log_loss",
    "log_grad",
    "val_example_indices",
    "val_example_subset",
    "show_plots",
    "verbose",
    "trackers",
    "tracker_args",
    "diagnostics",
    "save_root",
    "plugins",
    "executor",
    "executor_args",
    "workers",
    "cohort_size",
    "spectra_cache_mib",
    "max_attempts",
    "hang_timeout_s",
    "claim_timeout_s",
    "threads",
    "device",
    "engine",
    "conv_method",
]


def refused(*asked: Any) -> list[str]:
    """The problems of a request that is refused without looking at the models."""
    with pytest.raises(ConfigError) as caught:
        read_request(*asked).points()
    return list(caught.value.problems)


def ask(base: Any, ranges: Any = None, *overrides: str) -> tuple[Request, Effects]:
    """A request and which of its keys act."""
    request = read_request(base, ranges, overrides)
    return request, check_effects(request, request.points())


def refused_effects(base: Any, ranges: Any = None) -> list[str]:
    """The problems of a request whose keys do not all act."""
    with pytest.raises(ConfigError) as caught:
        ask(base, ranges)
    return list(caught.value.problems)


def specs_of(base: Any, ranges: Any = None, base_seed: int = 100) -> list[RunSpec]:
    """The runs of a request."""
    request, effects = ask(base, ranges)
    return make_specs(request, request.points(), effects, base_seed)


def check(base: Any, ranges: Any = None) -> tuple[str, ...]:
    """Check a request against its data; gives the notices."""
    request = read_request(base, ranges)
    return check_data(request, request.points())


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Function that writes a JSON file into the test's folder."""

    def write_file(name: str, content: Any) -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_file


# --- reading ----------------------------------------------------------------------


def test_files_and_objects_mean_the_same(write: Callable[..., Path]) -> None:
    """A request may be given as paths or as content."""
    base, ranges = {**IMAGES, "save_root": "/x", "data_root": "/y"}, {"lr": [0.1, 0.2]}
    given = read_request(base, ranges).points()
    assert read_request(write("a.json", base), write("b.json", ranges)).points() == (
        given
    )


def test_no_ranges_are_one_point() -> None:
    """hyperranges.json may be left out."""
    (point,) = read_request(IMAGES).points()
    assert (point.axes, point.hyps.lr) == ({}, 0.01)


def test_swept_values_win_over_the_base() -> None:
    """A key in both files has the values of the ranges."""
    points = read_request(IMAGES, {"lr": [0.1, 0.2]}).points()
    assert [point.hyps.lr for point in points] == [0.1, 0.2]


def test_a_required_key_may_stand_in_the_ranges() -> None:
    """What every grid point gives is not missing from the base."""
    base = {key: value for key, value in IMAGES.items() if key != "lr"}
    assert [p.hyps.lr for p in read_request(base, {"lr": [0.5]}).points()] == [0.5]


def test_dotted_keys_reach_into_objects() -> None:
    """One entry of an object is swept, the others stay."""
    base = {**IMAGES, "optimizer_args": {"eps": 1, "amsgrad": True}}
    points = read_request(base, {"optimizer_args.eps": [2]}).points()
    assert points[0].hyps.optimizer_args == {"eps": 2, "amsgrad": True}


def test_a_swept_lr_of_the_optimizer_is_lr() -> None:
    """optimizer_args.lr as an axis is read as the key lr."""
    base = {key: value for key, value in IMAGES.items() if key != "lr"}
    points = read_request(base, {"optimizer_args.lr": [0.1, 0.2]}).points()
    assert [(p.hyps.lr, p.hyps.optimizer_args) for p in points] == [
        (0.1, {}),
        (0.2, {}),
    ]


def test_overrides_win_over_the_file_and_options_over_all() -> None:
    """Option before override before file."""
    request = read_request(
        {**IMAGES, "workers": 1, "threads": 1},
        None,
        ["workers=2", "threads=2"],
        {"workers": 3},
    )
    (point,) = request.points()
    assert (point.hyps.workers, point.hyps.threads) == (3, 2)


def test_nested_overrides_change_one_entry() -> None:
    """`a.b=v` keeps the other entries of a."""
    base = {**IMAGES, "optimizer_args": {"eps": 1, "amsgrad": True}}
    (point,) = read_request(base, None, ["optimizer_args.eps=2"]).points()
    assert point.hyps.optimizer_args == {"eps": 2, "amsgrad": True}


def test_paths_are_relative_to_the_file_that_names_them(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's paths do not depend on where the command was given; an override's do."""
    monkeypatch.chdir(tmp_path)
    file = write("project/a.json", {**IMAGES, "data_root": "../data"})
    (point,) = read_request("project/a.json", None, ["save_root=runs"]).points()
    assert file.parent == tmp_path / "project"
    assert point.hyps.data_root == str(tmp_path / "data")
    assert point.hyps.save_root == str(tmp_path / "runs")


def test_the_caller_keeps_its_objects() -> None:
    """Reading changes nothing that was given."""
    base, ranges = {**IMAGES, "optimizer_args": {"eps": 1}}, {"lr": [1]}
    read_request(base, ranges, ["optimizer_args.eps=2", "seed=9"]).points()
    assert (base["optimizer_args"], base["seed"], ranges) == (
        {"eps": 1},
        5,
        {"lr": [1]},
    )


# --- problems ---------------------------------------------------------------------


def test_all_problems_of_both_files_are_told_at_once(
    write: Callable[..., Path],
) -> None:
    """Each line names its file and key."""
    base = write("base.json", {**IMAGES, "batch_size": "8", "colour": 1})
    ranges = write("ranges.json", {"lr": [0.1, -1], "l2": 3, "n_repeats": [1]})
    problems = refused(base, ranges)
    starts = [": ".join(problem.split(": ")[:2]) for problem in problems]
    assert sorted(starts) == sorted(
        [
            f"{base}: batch_size",
            f"{base}: colour",
            f"{ranges}: lr",
            f"{ranges}: l2",
            f"{ranges}: n_repeats",
        ]
    )


def test_wrong_json_in_one_file_does_not_hide_the_other(
    write: Callable[..., Path],
) -> None:
    """Broken ranges and a wrong base are told together, without follow-ups."""
    base = write("base.json", {**IMAGES, "batch_size": 0})
    ranges = write("ranges.json", '{"lr": [0.1,]}')
    problems = refused(base, ranges)
    assert [problem.split(": ")[0] for problem in problems] == [str(ranges), str(base)]


def test_a_malformed_axis_is_not_also_a_missing_key() -> None:
    """One mistake is one line: lr is there, only wrongly written."""
    base = {key: value for key, value in IMAGES.items() if key != "lr"}
    (problem,) = refused(base, {"lr": 0.1})
    assert problem.startswith("hyperranges: lr: expected a list of values")


def test_a_number_that_is_not_finite_is_told_once(write: Callable[..., Path]) -> None:
    """The strict reading has said it; the check of types need not repeat it."""
    text = json.dumps({**IMAGES, "lr": 0}).replace('"lr": 0', '"lr": 1e999')
    file = write("base.json", text)
    assert refused(file) == [f"{file}: lr: inf is not a finite number"]


def test_both_files_missing_are_told_together(tmp_path: Path) -> None:
    """Two wrong paths need one attempt."""
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert refused(a, b) == [f"{a}: no such file", f"{b}: no such file"]


@pytest.mark.parametrize("content", [[], 1, None, "text"])
def test_a_base_that_is_no_object_is_refused(
    write: Callable[..., Path], content: Any
) -> None:
    """hyperparams.json holds an object."""
    file = write("base.json", json.dumps(content))
    assert refused(file) == [f"{file}: expected an object of key: value"]


def test_duplicate_keys_are_refused(write: Callable[..., Path]) -> None:
    """A key may stand once, in either file."""
    base = write("base.json", json.dumps(dict(IMAGES))[:-1] + ', "lr": 1}')
    ranges = write("ranges.json", '{"l2": [0], "l2": [1]}')
    problems = refused(base, ranges)
    assert problems == [
        f"{base}: lr: stands twice; keep one",
        f"{ranges}: l2: stands twice; keep one",
    ]


def test_a_problem_is_told_once() -> None:
    """A wrong base value is not repeated for every grid point."""
    problems = refused({**IMAGES, "batch_size": 0}, {"lr": [0.1, 0.2], "seed": [0, 1]})
    assert len(problems) == 1


def test_a_thousand_problems_are_not_all_told() -> None:
    """A wrong list of values stays readable."""
    assert len(refused(IMAGES, {"lr": [-i for i in range(1, 1000)]})) < 50


def test_the_command_line_is_named_for_its_values() -> None:
    """An override is blamed, not the file."""
    (problem,) = refused(IMAGES, None, ["batch_size=0"])
    assert problem.startswith("command line: batch_size: expected an integer ≥ 1")


@pytest.mark.parametrize("override", ["oops", "lr.x=1", "lr=NaN", ".=3", "lr.=3"])
def test_a_malformed_override_is_told_with_the_rest(override: str) -> None:
    """It does not hide what is wrong with the files."""
    problems = refused({**IMAGES, "batch_size": 0}, None, [override])
    assert [problem.split(": ")[0] for problem in problems] == [
        "command line",
        "hyperparams",
    ]


def test_run_sweep_is_named_for_its_arguments() -> None:
    """Not a command line that is not there."""
    with pytest.raises(ConfigError, match="run_sweep: wrkers: unknown hyperparameter"):
        run_sweep(IMAGES, wrkers=1)


def test_an_override_stands_once() -> None:
    """As a key of a file does."""
    (problem,) = refused(IMAGES, None, ["lr=0.1", "lr=0.2"])
    assert problem == "command line: lr: stands twice; keep one"


def test_an_absent_folder_of_plugins_is_all_that_is_told() -> None:
    """The names in it are not called unknown."""
    (problem,) = refused({**IMAGES, "plugins": "absent", "model_type": "Own"})
    assert "plugins: no folder" in problem


def test_nan_inside_an_object_is_refused() -> None:
    """Content given in Python obeys the rules of the files."""
    (problem,) = refused({**IMAGES, "optimizer_args": {"eps": float("nan")}})
    assert "optimizer_args" in problem


def test_an_unknown_home_is_refused() -> None:
    """`~nobody` is a wrong path, not a fault of the program."""
    (problem,) = refused({**IMAGES, "data_root": "~no-such-user/data"})
    assert "data_root" in problem


# --- axes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEVER_SWEPT)
def test_keys_without_identity_are_never_swept(name: str) -> None:
    """Values that change no result make no grid points."""
    default = defaults_of(libraries()["imgclass"].schema).get(name, "name")
    (problem,) = refused(IMAGES, {name: [default]})
    assert problem.startswith(f"hyperranges: {name}: cannot be swept")


@pytest.mark.parametrize("library", BASES)
def test_every_other_key_may_be_swept(library: str) -> None:
    """The list of the reference is complete."""
    facts = keys_of(libraries()[library].schema)
    kept = {name for name, fact in facts.items() if not fact.sweepable}
    assert kept == set(NEVER_SWEPT)


@pytest.mark.parametrize("override", ["lr=0.5", "lr=0.1"])
def test_an_override_of_a_swept_key_is_refused(override: str) -> None:
    """A value that the ranges would overwrite is not ignored."""
    (problem,) = refused(IMAGES, {"lr": [0.1, 0.2]}, [override])
    assert problem.startswith("command line: lr: is swept in hyperranges")


@pytest.mark.parametrize(
    ("axis", "override"),
    [
        ("optimizer_args.eps", "optimizer_args.eps=1"),
        ("optimizer_args", "optimizer_args.eps=1"),
        ("optimizer_args.eps", 'optimizer_args={"eps": 1}'),
    ],
)
def test_an_override_of_a_swept_entry_is_refused(axis: str, override: str) -> None:
    """Nested keys are not ignored either."""
    value: Any = {"eps": 2} if axis == "optimizer_args" else 2
    problems = refused(IMAGES, {axis: [value]}, [override])
    assert problems[0].startswith("command line: ")


def test_an_override_beside_a_swept_entry_is_taken() -> None:
    """Another entry of the same object may be given."""
    ranges = {"optimizer_args.eps": [1]}
    (point,) = read_request(IMAGES, ranges, ["optimizer_args.amsgrad=true"]).points()
    assert point.hyps.optimizer_args == {"eps": 1, "amsgrad": True}


@pytest.mark.parametrize(
    ("base", "given", "axis", "reason"),
    [
        (IMAGES, {}, {"width": [1, 2]}, "SmallNet does not use it"),
        (IMAGES, {"bnorm": False}, {"bn_moment": [0.1, 0.2]}, "needs bnorm true"),
        (IMAGES, {"shuffle": False}, {"split_seed": [1, 2]}, "needs shuffle true"),
        (IMAGES, {}, {"val_loc": ["end", "middle"]}, "needs shuffle false"),
        (IMAGES, {}, {"stackconvs": [True, False]}, "kernel larger than 3"),
        (RETINA, {}, {"split_seed": [1, 2]}, "split in time"),
        (RETINA, {"ksizes": [3]}, {"stackconvs": [True, False]}, "larger than 3"),
        (RETINA, {"stackconvs": False}, {"drop_p": [0, 0.5]}, "needs stackconvs"),
        (RETINA, {"bnorm": False}, {"bnorm_d": [1, 2]}, "needs bnorm true"),
        (RETINA, {"lossfxn": "MSELoss"}, {"log_poisson": [True, False]}, "Poisson"),
        (RETINA, {"chans": [], "ksizes": []}, {"noise": [0, 1]}, "hidden layer"),
    ],
)
def test_a_swept_key_without_effect_is_refused(
    base: Any, given: Any, axis: Mapping[str, Any], reason: str
) -> None:
    """The grid would train identical models; the message says why."""
    problems = refused_effects({**base, **given}, axis)
    assert problems[0].startswith(f"hyperranges: {next(iter(axis))}: has no effect: ")
    assert reason in problems[0]


def test_a_key_that_acts_somewhere_may_be_swept() -> None:
    """Linked with the key that switches it on, it makes distinct runs."""
    ranges = {"bnorm, bn_moment": [[True, 0.1], [True, 0.2], [False, 0.1]]}
    assert len(specs_of(IMAGES, ranges)) == 3


def test_equal_grid_points_are_refused_with_the_reason() -> None:
    """A product in which a key acts at some points only repeats others."""
    ranges = {"bnorm": [True, False], "bn_moment": [0.1, 0.2]}
    (problem,) = refused_effects(IMAGES, ranges)
    assert problem.startswith("hyperranges: bn_moment: two grid points")
    assert "bn_moment (needs bnorm true). Link the keys instead" in problem


@pytest.mark.parametrize(
    ("given", "ranges"),
    [
        ({}, {"lr": [0.1, 0.1]}),
        ({}, {"lr": [1, 1.0]}),
        ({}, {"gc_bias": [None, False]}),
        ({"scheduler": "StepLR"}, {"scheduler_args.step_size": [2, 2]}),
        (
            {"scheduler": "MultiStepLR"},
            {"scheduler_args": [None, {"milestones": [10, 20, 30]}]},
        ),
    ],
)
def test_values_that_mean_the_same_are_refused(given: Any, ranges: Any) -> None:
    """Grid points are compared by their final values."""
    (problem,) = refused_effects({**RETINA, **given}, ranges)
    assert "two grid points would train the same runs" in problem


def test_duplicates_of_a_union_are_no_error() -> None:
    """They are dropped before grid points are compared."""
    union = [{"lr": [0.1, 0.2]}, {"lr": [0.2, 0.3]}]
    assert [spec.hyps.lr for spec in specs_of(IMAGES, union)] == [0.1, 0.2, 0.3]


def test_an_unknown_optimizer_is_refused_with_the_nearest() -> None:
    """Names and arguments are checked for every grid point."""
    ranges = {"optimizer": ["Adam", "SDG"]}
    (problem,) = refused_effects(IMAGES, ranges)
    assert problem.startswith("hyperranges: optimizer: unknown 'SDG' (did you mean")


def test_wrong_arguments_of_optimizer_and_scheduler_are_told_together() -> None:
    """One attempt shows both."""
    given = {"optimizer_args": {"beta": 1}, "scheduler": "StepLR"}
    given["scheduler_args"] = {"steps": 1}
    problems = refused_effects({**IMAGES, **given})
    assert [problem.split(": ")[1] for problem in problems] == [
        "optimizer_args",
        "scheduler_args",
    ]


# --- libraries and models ---------------------------------------------------------


@pytest.mark.parametrize(("library", "base"), BASES.items())
def test_the_model_chooses_the_library(library: str, base: Any) -> None:
    """Keys are those of the library that has model_type."""
    assert read_request(base).library.name == library


def test_a_swept_model_chooses_the_library() -> None:
    """model_type may stand in the ranges alone."""
    base = {key: value for key, value in IMAGES.items() if key != "model_type"}
    request = read_request(base, {"model_type": ["Tiny10", "SmallNet"]})
    assert request.library.name == "imgclass"


def test_an_unknown_model_is_told_with_the_nearest() -> None:
    """Keys are still checked, by the library whose keys they are."""
    problems = refused({**RETINA, "model_type": "VaryModle", "bnorm_d": 3})
    assert any(
        "unknown model 'VaryModle' (did you mean 'VaryModel'?)" in p for p in problems
    )
    assert any(": bnorm_d: expected" in problem for problem in problems)


def test_models_of_two_libraries_are_refused() -> None:
    """A sweep has one library."""
    problems = refused(IMAGES, {"model_type": ["SmallNet", "VaryModel"]})
    assert "VaryModel is a model of torchdeepretina" in problems[0]


def test_a_library_without_the_model_is_refused() -> None:
    """The key library does not override whose model it is."""
    problems = refused({**RETINA, "library": "imgclass"})
    assert any("VaryModel is a model of torchdeepretina" in text for text in problems)


def test_an_unknown_library_is_told_with_the_nearest() -> None:
    """A misspelt library does not hide behind the model's."""
    problems = refused({**IMAGES, "library": "imgclas"})
    assert problems == [
        "hyperparams: library: unknown library 'imgclas' (did you mean 'imgclass'?)"
    ]


@pytest.mark.parametrize("value", [None, 5, ["SmallNet"], {}])
def test_a_model_type_that_is_no_text_is_refused(value: Any) -> None:
    """Of either file, without a traceback."""
    assert refused({**IMAGES, "model_type": value})
    assert refused(IMAGES, {"model_type": [value]})


# --- number of runs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_repeats", "lengths"), [(1, [1000, 1000, 1000]), (10**7, [2])]
)
def test_too_many_runs_are_refused_before_expansion(
    n_repeats: int, lengths: list[int]
) -> None:
    """10^9 grid points are counted, not made."""
    keys = ("lr", "l1", "l2")
    ranges = {key: list(range(1, n + 1)) for key, n in zip(keys, lengths, strict=False)}
    (problem,) = refused({**IMAGES, "n_repeats": n_repeats}, ranges)
    assert "runs, more than 10,000,000" in problem
    assert len(problem) < 500


def test_a_sample_of_too_many_points_is_taken() -> None:
    """What counts is the number of runs to train."""
    ranges: dict[str, Any] = {key: list(range(1, 1001)) for key in ("lr", "l1", "l2")}
    ranges["$sweep"] = {"method": "random", "num_samples": 3}
    assert len(read_request(IMAGES, ranges).points()) == 3


# --- runs -------------------------------------------------------------------------


def test_repeats_are_innermost() -> None:
    """Runs come in grid order, the repeats of a point side by side."""
    specs = specs_of({**IMAGES, "n_repeats": 2}, {"lr": [0.1, 0.2]})
    order = [(spec.hyps.lr, spec.repeat, spec.hyps.seed) for spec in specs]
    assert order == [(0.1, 0, 5), (0.1, 1, 6), (0.2, 0, 5), (0.2, 1, 6)]


def test_a_null_seed_takes_the_base_seed_of_the_sweep() -> None:
    """All grid points start from the same one."""
    specs = specs_of({**IMAGES, "seed": None, "n_repeats": 2}, {"lr": [0.1, 0.2]})
    assert [spec.hyps.seed for spec in specs] == [100, 101, 100, 101]


def test_overlapping_seeds_are_refused() -> None:
    """Two runs of equal settings and seed would be the same run."""
    with pytest.raises(ConfigError, match=r"hyperranges: seed: .*overlap.* seed 1;"):
        specs_of({**RETINA, "n_repeats": 2}, {"seed": [0, 1]})


def test_seeds_n_repeats_apart_are_taken() -> None:
    """Every run has another seed."""
    specs = specs_of({**RETINA, "n_repeats": 2}, {"seed": [0, 2]})
    assert [spec.hyps.seed for spec in specs] == [0, 1, 2, 3]


def test_runs_record_final_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's own file finds its data and its place from anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRIDRUN_DATA", str(tmp_path / "data"))
    (spec,) = specs_of(IMAGES)
    assert spec.hyps.data_root == str(tmp_path / "data")
    assert spec.hyps.save_root == str(tmp_path)


# --- notices ----------------------------------------------------------------------


def test_a_fixed_key_without_effect_gets_a_notice() -> None:
    """It says file, key and reason, and nothing is refused."""
    _, effects = ask({**IMAGES, "width": 3})
    assert effects.notices == (
        "hyperparams: width has no effect: SmallNet does not use it",
    )


def test_an_override_without_effect_is_named_as_such() -> None:
    """The notice names where the value came from."""
    _, effects = ask(IMAGES, None, "width=3")
    assert effects.notices[0].startswith("command line: width has no effect")


@pytest.mark.parametrize("given", [{"width": None}, {"plain_n": 1}, {"val_loc": "end"}])
def test_a_default_without_effect_gets_none(given: dict[str, Any]) -> None:
    """Writing a default is no mistake."""
    assert ask({**IMAGES, **given})[1].notices == ()


def test_scheduler_args_without_a_scheduler_get_a_notice() -> None:
    """A forgotten scheduler is told."""
    _, effects = ask({**IMAGES, "scheduler_args": {"gamma": 0.5}})
    assert "scheduler_args has no effect: needs a scheduler" in effects.notices[0]


def test_a_key_that_acts_at_one_point_gets_none() -> None:
    """A notice is for keys that act nowhere."""
    _, effects = ask({**IMAGES, "bn_moment": 0.5}, {"bnorm": [True, False]})
    assert effects.notices == ()


@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
def test_a_runs_own_file_gives_no_notices(base: Any) -> None:
    """It holds every key, acting or not, and trains the same run."""
    (spec,) = specs_of({**base, "bnorm": False, "bn_moment": 0.5})
    own = json.loads(json.dumps(spec.hyps.model_dump(mode="json")))
    assert ask(own)[1].notices == ()
    assert [again.identity for again in specs_of(own)] == [spec.identity]


# --- data and models --------------------------------------------------------------


@pytest.fixture
def images(image_set: Path) -> dict[str, Any]:
    """A base that fits the small image set."""
    root = {"data_root": str(image_set), "dataset": "set", "img_shape": [1, 6, 6]}
    return {**IMAGES, **root}


@pytest.fixture
def retina(recording: Path) -> dict[str, Any]:
    """A base that fits the small recording."""
    return {**RETINA, "data_root": str(recording), "dataset": "rec"}


def test_what_fits_passes(images: dict[str, Any], retina: dict[str, Any]) -> None:
    """The bases of the following tests are right, without a notice."""
    assert check(images, {"chans": [[2], [3]]}) == ()
    assert check(retina, {"noise": [0.1, 0.2]}) == ()


def test_a_kernel_larger_than_its_map_names_layer_and_sizes(
    retina: dict[str, Any],
) -> None:
    """The retina's second layer does not fit; the ranges are named."""
    axes = {"chans, ksizes": [[[2], [5]], [[2, 2], [5, 5]]]}
    with pytest.raises(ConfigError) as caught:
        check(retina, axes)
    (problem,) = caught.value.problems
    assert problem.startswith("hyperranges: ksizes: layers.1 ")
    assert "5×5" in problem
    assert "4×4" in problem


def test_images_smaller_than_a_kernel_are_refused(images: dict[str, Any]) -> None:
    """The image library names its sizes, too."""
    with pytest.raises(ConfigError, match=r"7×7 .* 6×6"):
        check({**images, "ksizes": [7]})


def test_one_model_error_is_told_once(images: dict[str, Any]) -> None:
    """Grid points with the same model give one line."""
    with pytest.raises(ConfigError) as caught:
        check({**images, "ksizes": [7]}, {"lr": [0.1, 0.2], "l2": [0, 1]})
    assert len(caught.value.problems) == 1


def test_a_missing_data_set_lists_those_there(images: dict[str, Any]) -> None:
    """The message names the folders of the data root."""
    with pytest.raises(DataError, match="set"):
        check({**images, "dataset": "sett"})


def test_a_wrong_shape_shows_both(images: dict[str, Any]) -> None:
    """The configured and the recorded shape are in the message."""
    with pytest.raises(DataError) as caught:
        check({**images, "img_shape": [3, 9, 9]})
    assert "[3, 9, 9]" in str(caught.value)
    assert "[1, 6, 6]" in str(caught.value)


def test_every_missing_data_set_is_told(images: dict[str, Any]) -> None:
    """Two wrong names of an axis need one attempt."""
    with pytest.raises(DataError) as caught:
        check(images, {"dataset": ["set", "one", "two"]})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("given", "ranges"),
    [
        pytest.param({"batch_size": 0}, None, id="type"),
        pytest.param({"colour": 1}, None, id="unknown key"),
        pytest.param({}, {"lr": []}, id="ranges"),
        pytest.param({}, {"width": [1, 2]}, id="no effect"),
        pytest.param({}, {"lr": [1, 1]}, id="equal points"),
        pytest.param({}, {"threads": [1, 2]}, id="never swept"),
        pytest.param({"optimizer": "Adamm"}, None, id="optimizer"),
        pytest.param({"ksizes": [7]}, None, id="kernel"),
        pytest.param({"dataset": "none"}, None, id="data"),
        pytest.param({"img_shape": [3, 6, 6]}, None, id="shape"),
        pytest.param({"device": "cuda:77"}, None, id="device"),
        pytest.param({"n_repeats": 2}, {"seed": [0, 1], "split_seed": [3]}, id="seeds"),
        pytest.param({"skip_nums": [3]}, None, id="skip_nums"),
        pytest.param({"n_repeats": 10**8}, None, id="too many"),
    ],
)
def test_nothing_is_written_on_refusal(
    images: dict[str, Any], tmp_path: Path, given: Any, ranges: Any
) -> None:
    """Whatever is wrong, no folder appears."""
    base = {**images, "save_root": str(tmp_path), **given}
    with pytest.raises(GridrunError):
        number_runs(plan_sweep(read_request(base, ranges)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_sweep_is_refused(
    images: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing is mixed into somebody's files."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"exp_name: .* is no sweep .*thesis.tex"):
        plan_sweep(read_request({**images, "save_root": str(tmp_path)}))


def test_a_file_of_the_sweeps_name_is_refused(
    images: dict[str, Any], tmp_path: Path
) -> None:
    """A file cannot become the sweep's folder."""
    (tmp_path / "sweep").touch()
    with pytest.raises(ConfigError, match=r"exp_name: .* is a file"):
        plan_sweep(read_request({**images, "save_root": str(tmp_path)}))


def test_every_request_has_its_numbers_before_anything_is_written(
    images: dict[str, Any], tmp_path: Path
) -> None:
    """skip_nums leaves a run out without renumbering the others."""
    given = {"save_root": str(tmp_path), "n_repeats": 3, "skip_nums": [1]}
    plan = plan_sweep(read_request({**images, **given, "starting_exp_num": 0}))
    assert [run.number for run in number_runs(plan).runs] == [0, 2]
    assert list(tmp_path.iterdir()) == []
