"""Hyperparameters: strict JSON, strict types, messages, completion, overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import BASES, IMAGES, RETINA, completed, json_values, problems_of

from gridrun.config import (
    Variant,
    complete,
    data_root,
    defaults_of,
    get_nested,
    parse_override,
    read_json,
    resolve_paths,
    set_nested,
    suggest,
)
from gridrun.config.variant import differences, varied
from gridrun.errors import ConfigError
from gridrun.plugins import libraries

SCHEMAS = {name: libraries()[name].schema for name in BASES}
OPTIONAL = [
    pytest.param(library, name, id=f"{library}-{name}")
    for library, schema in SCHEMAS.items()
    for name in defaults_of(schema)
    if name not in schema.model_defaults(str(BASES[library]["model_type"]))
]


def refusal(path: Path) -> str:
    """What is said of a file that cannot be read as JSON."""
    with pytest.raises(ConfigError) as caught:
        read_json(path)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A path for a JSON file."""
    return tmp_path / "hyperparams.json"


# --- strict JSON ------------------------------------------------------------------


@given(json_values)
def test_json_comes_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """What json.dumps writes is read without problems."""
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert read_json(path) == (data, [])


def test_duplicate_keys_are_problems(file: Path) -> None:
    """Each key that stands twice is told, nested ones too."""
    file.write_text('{"lr": 1, "lr": 1, "optimizer_args": {"eps": 1, "eps": 2}}')
    assert {key for key, _ in read_json(file)[1]} == {"lr", "eps"}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e309", "-1e999"])
def test_numbers_that_are_not_finite_are_problems(file: Path, number: str) -> None:
    """NaN and infinities are told with their key, however they are written."""
    file.write_text(f'{{"lr": 1, "l2": {number}}}')
    ((key, message),) = read_json(file)[1]
    assert key == "l2"
    assert "not a finite number" in message


def test_nested_infinities_name_the_outermost_key(file: Path) -> None:
    """An infinity in a list or object is told under the hyperparameter."""
    file.write_text('{"optimizer_args": {"betas": [0.9, NaN]}}')
    assert [key for key, _ in read_json(file)[1]] == ["optimizer_args"]


def test_a_byte_order_mark_is_no_error(file: Path) -> None:
    """Files that Windows editors saved are read."""
    file.write_bytes(b'\xef\xbb\xbf{"lr": 1}')
    assert read_json(file) == ({"lr": 1}, [])


def test_bytes_that_are_not_utf8_are_refused(file: Path) -> None:
    """Another encoding is told with the position of the first wrong byte."""
    file.write_bytes(b'{"a": "\xe9"}')
    assert "not UTF-8 text (byte 7)" in refusal(file)


def test_wrong_json_is_told_by_line_and_column(file: Path) -> None:
    """A syntax error says where."""
    file.write_text('{\n  "lr": 1,\n}')
    assert "line 3, column 1" in refusal(file)


@pytest.mark.parametrize("text", ["", "{", '{"lr": 1} {}', "{'lr': 1}", '{"lr": .1}'])
def test_other_than_one_json_value_is_refused(file: Path, text: str) -> None:
    """Empty, cut or loosely written files are no JSON."""
    file.write_text(text)
    assert refusal(file).startswith(f"{file}: not valid JSON")


@pytest.mark.parametrize("depth", [1500, 200_000])
def test_nesting_beyond_all_sense_is_refused(file: Path, depth: int) -> None:
    """Deep nesting is an error of the file, not of the interpreter."""
    file.write_text("[" * depth + "]" * depth)
    assert "nested too deeply" in refusal(file)


def test_an_integer_of_5000_digits_is_refused(file: Path) -> None:
    """Integers that Python will not read are an error of the file."""
    file.write_text("1" * 5000)
    assert refusal(file).startswith(f"{file}: ")


def test_a_missing_file_is_told(file: Path) -> None:
    """The path is named."""
    assert refusal(file) == f"{file}: no such file"


def test_a_folder_is_told(tmp_path: Path) -> None:
    """A folder in place of a file is called that."""
    assert refusal(tmp_path).startswith(f"{tmp_path}: is a folder")


def test_a_file_below_a_file_is_told(file: Path) -> None:
    """A path that goes through a file is an error for people."""
    file.write_text("{}")
    assert refusal(file / "x.json").startswith(f"{file / 'x.json'}: ")


# --- strict types -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("batch_size", True, "an integer ≥ 1"),
        ("batch_size", 8.0, "an integer ≥ 1"),
        ("batch_size", "8", "an integer ≥ 1"),
        ("batch_size", 0, "an integer ≥ 1"),
        ("batch_size", None, "an integer ≥ 1"),
        ("lr", True, "a number > 0"),
        ("lr", "0.1", "a number > 0"),
        ("lr", 0, "a number > 0"),
        ("lr", 10**400, "a number > 0"),
        ("lr", float("nan"), "a number > 0"),
        ("lr", float("inf"), "a number > 0"),
        ("val_p", 1, "a number > 0 and < 1"),
        ("shuffle", 1, "true or false"),
        ("shuffle", "true", "true or false"),
        ("dataset", 5, "the name of a folder"),
        ("dataset", "a/b", "the name of a folder"),
        ("dataset", "..", "the name of a folder"),
        ("dataset", "", "the name of a folder"),
        ("val_loc", "start", 'one of "beginning", "middle", "end"'),
        ("chans", 8, "a list, each an integer ≥ 1"),
        ("chans", [8, 0], "a list, each an integer ≥ 1"),
        ("chans", [8, True], "a list, each an integer ≥ 1"),
        ("chans", (8, 8), "a list, each an integer ≥ 1"),
        ("img_shape", [1, 8], "a list of 3, each an integer ≥ 1"),
        ("optimizer_args", [], "an object"),
        ("seed", -1, "an integer ≥ 0 and ≤ 2147483647"),
        ("seed", 2**31, "an integer ≥ 0 and ≤ 2147483647"),
        ("seed", 0.0, "an integer ≥ 0 and ≤ 2147483647"),
        ("workers", 0, "an integer ≥ 1"),
        ("workers", "many", '"auto" or an integer'),
        ("cohort_size", 0, "an integer ≥ 1"),
        ("threads", 0, "an integer ≥ 1"),
        ("device", "gpu", '"cuda"'),
        ("skip_nums", [-1], "≥ 0"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(
    key: str, value: Any, expected: str
) -> None:
    """The message says in words what the key takes."""
    problems = problems_of(IMAGES, **{key: value})
    assert list(problems) == [key]
    assert expected in problems[key]


def test_the_message_holds_the_given_value() -> None:
    """What was found is shown as JSON."""
    assert 'got ["a", null]' in problems_of(IMAGES, chans=["a", None])["chans"]


def test_a_long_value_is_cut_in_the_message() -> None:
    """A list of thousands does not flood the terminal."""
    assert len(problems_of(IMAGES, chans=[0] * 5000)["chans"]) < 200


def test_an_integer_is_taken_for_a_float() -> None:
    """`"lr": 1` is a learning rate, and the same as 1.0."""
    lr = completed(IMAGES, lr=1).lr
    assert (type(lr), lr) == (float, 1.0)


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "a/b", "a\n", "é", "x" * 101])
def test_an_unsafe_exp_name_is_refused(name: str) -> None:
    """The name of a sweep is safe as a folder's name everywhere."""
    assert list(problems_of(IMAGES, exp_name=name)) == ["exp_name"]


@pytest.mark.parametrize("name", ["test", "a_b", "-x", "1.0", "A-b.c_d", "x" * 100])
def test_any_safe_exp_name_is_taken(name: str) -> None:
    """No name is special."""
    assert completed(IMAGES, exp_name=name).exp_name == name


@pytest.mark.parametrize("name", ["exp_name", "model_type", "dataset", "lr"])
def test_a_missing_required_key_says_what_it_takes(name: str) -> None:
    """A required key is named with its expectation."""
    values = {key: value for key, value in IMAGES.items() if key != name}
    _, problems = complete(values, SCHEMAS["imgclass"])
    ((key, message),) = problems
    assert key == name
    assert message.startswith("required (")


def test_all_problems_are_told_together() -> None:
    """Wrong types, unknown keys and missing keys do not hide one another."""
    _, problems = complete({"lr": "x", "foo": 1}, SCHEMAS["imgclass"])
    assert {"lr", "foo", "exp_name", "batch_size"} <= {key for key, _ in problems}


@given(json_values)
def test_any_value_of_a_key_is_taken_or_told(value: Any) -> None:
    """No JSON value of an object-valued key raises."""
    for key in ("chans", "optimizer_args", "monitor", "cells", "lr"):
        values = {**RETINA, key: value}
        hyps, problems = complete(values, SCHEMAS["torchdeepretina"])
        assert (hyps is None) == bool(problems)


# --- unknown keys -----------------------------------------------------------------


def test_a_misspelt_key_is_told_with_the_nearest() -> None:
    """An unknown key suggests the one that was probably meant."""
    message = problems_of(IMAGES, batchsize=8)["batchsize"]
    assert message == "unknown hyperparameter (did you mean 'batch_size'?)"


def test_a_key_like_none_lists_some() -> None:
    """Without a near one, known keys are listed."""
    message = problems_of(IMAGES, qqqq=1)["qqqq"]
    assert message.startswith("unknown hyperparameter; ")
    assert "known: " in message


@pytest.mark.parametrize(
    ("base", "key", "library"),
    [(IMAGES, "softplus", "torchdeepretina"), (RETINA, "width", "imgclass")],
)
def test_a_key_of_the_other_library_says_so(base: Any, key: str, library: str) -> None:
    """The message names the library that has the key."""
    assert f"a key of {library}" in problems_of(base, **{key: 1})[key]


@pytest.mark.parametrize("key", ["", "$sweep", "lr ", "LR", "\ud800", "a.b"])
def test_any_odd_key_is_an_unknown_hyperparameter(key: str) -> None:
    """No text as a key raises anything but this problem."""
    assert problems_of(IMAGES, **{key: 1})[key].startswith("unknown hyperparameter")


def test_suggestions_take_a_prefix() -> None:
    """A beginning is enough for a suggestion."""
    assert suggest("lib", ["library_of_models"]) == (
        " (did you mean 'library_of_models'?)"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("early_stop_min_delta", 0), ("semantic_scale", 10)]
)
def test_a_default_may_be_written_as_an_integer(key: str, value: int) -> None:
    """0 is 0.0."""
    assert getattr(completed(RETINA, **{key: value}), key) == value


# --- completion -------------------------------------------------------------------


@pytest.mark.parametrize(("library", "name"), OPTIONAL)
def test_every_default_may_be_given(library: str, name: str) -> None:
    """Writing a default into the file changes nothing."""
    default = defaults_of(SCHEMAS[library])[name]
    left_out = (name, "chans", "ksizes", "img_shape")
    base = {key: v for key, v in BASES[library].items() if key not in left_out}
    expected, _ = complete(base, SCHEMAS[library])
    assert expected is not None
    assert complete({**base, name: default}, SCHEMAS[library])[0] == expected


@pytest.mark.parametrize("library", BASES)
def test_a_completed_configuration_completes_to_itself(library: str) -> None:
    """A run's own hyperparams.json is a valid input that means the same."""
    hyps = completed(BASES[library], scheduler="CosineAnnealingLR")
    again = completed(json.loads(json.dumps(hyps.model_dump(mode="json"))))
    assert again == hyps


def test_changing_one_configuration_leaves_the_defaults() -> None:
    """Default lists and objects are copies."""
    completed(RETINA).optimizer_args["eps"] = 1
    assert completed(RETINA).optimizer_args == {}


def test_n_layers_follows_from_chans() -> None:
    """The ganglion layer counts."""
    assert completed(RETINA, chans=[2, 2], ksizes=[3, 3]).n_layers == 3


@pytest.mark.parametrize(("bnorm", "gc_bias"), [(True, False), (False, True)])
def test_gc_bias_follows_from_bnorm(bnorm: bool, gc_bias: bool) -> None:
    """The final layer has a bias exactly if no batch norm follows."""
    assert completed(RETINA, bnorm=bnorm).gc_bias is gc_bias


def test_a_given_gc_bias_stays() -> None:
    """What is given is not derived."""
    assert completed(RETINA, gc_bias=True).gc_bias is True


def test_vary_model_stacks_convolutions_unless_told() -> None:
    """A model's own default yields to what is given."""
    assert completed(RETINA).stackconvs is True
    assert completed(RETINA, stackconvs=False).stackconvs is False


def test_small_net_lists_follow_from_chans() -> None:
    """Paddings are 0, strides 1, dropout 0 at each place, and the middle is 128."""
    hyps = completed(IMAGES, chans=[4, 4], ksizes=[3, 3])
    assert (hyps.paddings, hyps.strides) == ([0, 0], [1, 1])
    assert (hyps.drop_ps, hyps.mid_dims) == ([0, 0, 0], 128)


def test_lists_of_small_net_stay_null_for_other_models() -> None:
    """A model that does not read a list gets none."""
    hyps = completed(IMAGES, model_type="Tiny10")
    assert (hyps.paddings, hyps.drop_ps, hyps.mid_dims) == (None, None, None)


@pytest.mark.parametrize(
    ("scheduler", "args"),
    [
        ("CosineAnnealingLR", {"T_max": 2}),
        ("ReduceLROnPlateau", {"factor": 0.5, "patience": 8}),
        ("MultiStepLR", {"milestones": [10, 20, 30]}),
        ("ExponentialLR", {}),
        (None, None),
    ],
)
def test_scheduler_args_have_a_default_by_class(
    scheduler: str | None, args: dict[str, Any] | None
) -> None:
    """Null becomes the usual arguments of the scheduler."""
    assert completed(IMAGES, scheduler=scheduler).scheduler_args == args


def test_given_scheduler_args_replace_the_usual() -> None:
    """An empty object means torch's own defaults."""
    hyps = completed(IMAGES, scheduler="ReduceLROnPlateau", scheduler_args={})
    assert hyps.scheduler_args == {}


@pytest.mark.parametrize(("inner", "key"), [("lr", "lr"), ("weight_decay", "l2")])
def test_optimizer_args_are_read_as_keys(inner: str, key: str) -> None:
    """lr and weight_decay in optimizer_args are the keys lr and l2."""
    base = {k: v for k, v in IMAGES.items() if k != "lr"}
    args = {"lr": 0.5, "eps": 1e-3} | {inner: 0.25}
    hyps = completed(base, optimizer_args=args)
    assert getattr(hyps, key) == 0.25
    assert hyps.optimizer_args == {"eps": 1e-3}


@pytest.mark.parametrize(("inner", "key"), [("lr", "lr"), ("weight_decay", "l2")])
def test_a_setting_given_twice_is_refused(inner: str, key: str) -> None:
    """The key and its twin in optimizer_args are one too many."""
    problems = problems_of(IMAGES, optimizer_args={inner: 0.1}, **{key: 0.1})
    assert f"{inner} is the key {key}" in problems["optimizer_args"]


def test_a_wrong_lr_in_optimizer_args_is_refused() -> None:
    """It is checked like the key."""
    base = {k: v for k, v in IMAGES.items() if k != "lr"}
    assert "expected a number > 0" in problems_of(base, optimizer_args={"lr": 0})["lr"]


def test_completion_leaves_what_it_was_given() -> None:
    """The caller's objects are not changed."""
    given = {**IMAGES, "optimizer_args": {"weight_decay": 0.1}}
    complete(given, SCHEMAS["imgclass"])
    assert given["optimizer_args"] == {"weight_decay": 0.1}


# --- contradictions ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "given", "key"),
    [
        (RETINA, {"n_layers": 3}, "n_layers"),
        (RETINA, {"ksizes": []}, "ksizes"),
        (RETINA, {"ksizes": [3, 3, 3]}, "ksizes"),
        (RETINA, {"convgc": True}, "ksizes"),
        (RETINA, {"cells": []}, "cells"),
        (RETINA, {"cells": [1, 1]}, "cells"),
        (RETINA, {"softplus": False}, "softplus"),
        (RETINA, {"batch_size": 1}, "batch_size"),
        (IMAGES, {"batch_size": 1}, "batch_size"),
        (IMAGES, {"chans": [], "ksizes": []}, "chans"),
        (IMAGES, {"ksizes": [3, 3]}, "ksizes"),
        (IMAGES, {"paddings": [0, 0]}, "paddings"),
        (IMAGES, {"strides": []}, "strides"),
        (IMAGES, {"drop_ps": [0.5]}, "drop_ps"),
        (IMAGES, {"augment": ["flip", "flip"]}, "augment"),
        (IMAGES, {"seed": 2**31 - 1, "n_repeats": 2}, "seed"),
    ],
)
def test_impossible_combinations_are_refused(base: Any, given: Any, key: str) -> None:
    """The key to mend is named."""
    assert list(problems_of(base, **given)) == [key]


@pytest.mark.parametrize(
    ("base", "given"),
    [
        (RETINA, {"n_layers": 2}),
        (RETINA, {"ksizes": [5, 4]}),
        (RETINA, {"convgc": True, "ksizes": [5, 4]}),
        (RETINA, {"chans": [], "ksizes": []}),
        (RETINA, {"cells": [2, 0]}),
        (RETINA, {"softplus": False, "log_poisson": True}),
        (RETINA, {"softplus": False, "lossfxn": "MSELoss"}),
        (RETINA, {"batch_size": 1, "bnorm": False}),
        (IMAGES, {"seed": 2**31 - 1}),
        (IMAGES, {"model_type": "Tiny10", "ksizes": [3, 3, 3]}),
    ],
)
def test_possible_combinations_are_taken(base: Any, given: Any) -> None:
    """The neighbours of what is refused are allowed."""
    assert problems_of(base, **given) == {}


# --- monitor ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [
        ("val_loss", ("val_loss", "min")),
        ("val_acc", ("val_acc", "max")),
        ("loss", ("loss", "min")),
        ("val_acc:min", ("val_acc", "min")),
        ("val_loss:max", ("val_loss", "max")),
        ("l1_term:min", ("l1_term", "min")),
    ],
)
def test_monitor_says_metric_and_mode(monitor: str, expected: tuple[str, str]) -> None:
    """Losses fall, accuracy rises, and `:max` or `:min` wins."""
    assert completed(IMAGES, monitor=monitor, l1=0.1).monitor_mode() == expected


def test_monitor_is_val_loss_unless_told() -> None:
    """The default of both libraries."""
    assert completed(RETINA).monitor == completed(IMAGES).monitor == "val_loss"


@pytest.mark.parametrize(
    ("monitor", "text"),
    [
        ("val_los", "did you mean 'val_loss'"),
        ("", "known: loss, val_acc, val_loss"),
        ("l1_term:min", "unknown metric 'l1_term'"),
        ("lr:min", "unknown metric 'lr'"),
        ("val_loss:mean", "val_loss:max or val_loss:min"),
        ("val_loss:", "val_loss:max or val_loss:min"),
    ],
)
def test_a_wrong_monitor_is_refused(monitor: str, text: str) -> None:
    """Unknown metrics and modes are told; l1 is a metric only where l1 > 0."""
    assert text in problems_of(IMAGES, monitor=monitor)["monitor"]


def test_a_term_needs_a_mode() -> None:
    """Nothing says whether a loss term should rise or fall."""
    problems = problems_of(IMAGES, monitor="l1_term", l1=0.1)
    assert "l1_term:max or l1_term:min" in problems["monitor"]


# --- overrides --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=0.1", ("lr", 0.1)),
        (" lr =1e-3", ("lr", 1e-3)),
        ("bnorm=false", ("bnorm", False)),
        ("chans=[8, 8]", ("chans", [8, 8])),
        ("seed=null", ("seed", None)),
        ("dataset=digits", ("dataset", "digits")),
        ('dataset="digits"', ("dataset", "digits")),
        ("dataset=16", ("dataset", "16")),
        ("dataset=1e3", ("dataset", "1e3")),
        ("dataset=null", ("dataset", "null")),
        ("dataset=true", ("dataset", "true")),
        ("dataset=a=b", ("dataset", "a=b")),
        ("dataset=", ("dataset", "")),
        ("workers=2", ("workers", 2)),
        ("workers=auto", ("workers", "auto")),
        ("optimizer_args.betas=[0.5, 0.9]", ("optimizer_args.betas", [0.5, 0.9])),
        ("unknown=1", ("unknown", 1)),
    ],
)
def test_an_override_is_typed_by_the_schema(text: str, expected: Any) -> None:
    """JSON where the key takes it, text where the key takes text."""
    assert parse_override(text, SCHEMAS["imgclass"]) == expected


@pytest.mark.parametrize("value", ["NaN", "exp", "null"])
def test_any_text_is_a_name(value: str) -> None:
    """A text key takes what looks like a number or a constant."""
    expected = ("exp_name", value)
    assert parse_override(f"exp_name={value}", SCHEMAS["imgclass"]) == expected


def test_a_wrong_type_stays_for_the_check_of_types() -> None:
    """A value that fits neither as JSON nor as text is kept as JSON."""
    assert parse_override("lr=[1]", SCHEMAS["imgclass"]) == ("lr", [1])


@pytest.mark.parametrize("text", ["lr", "=1", " =1", "", "--quiet"])
def test_an_override_without_key_and_sign_is_refused(text: str) -> None:
    """The message says what was expected."""
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_override(text, SCHEMAS["imgclass"])


@pytest.mark.parametrize("text", ["lr=NaN", "lr=1e999", 'optimizer_args={"a":1,"a":2}'])
def test_an_override_is_strict_json(text: str) -> None:
    """The rules of the files hold on the command line."""
    with pytest.raises(ConfigError, match=r"command line: \w+: "):
        parse_override(text, SCHEMAS["imgclass"])


def test_nested_values_are_set_without_changing_the_original() -> None:
    """`a.b` replaces one entry in a copy of the object."""
    inner = {"eps": 1, "betas": [0.9, 0.99]}
    values: dict[str, Any] = {"optimizer_args": inner}
    set_nested(values, "optimizer_args.eps", 2)
    assert values == {"optimizer_args": {"eps": 2, "betas": [0.9, 0.99]}}
    assert inner["eps"] == 1


def test_objects_on_the_way_are_made() -> None:
    """Missing and null objects become objects."""
    values: dict[str, Any] = {"a": None}
    set_nested(values, "a.b.c", 1)
    assert get_nested(values, "a.b.c") == 1


def test_a_value_on_the_way_is_refused() -> None:
    """`lr.x` cannot be set where lr is a number."""
    with pytest.raises(TypeError, match="lr is not an object"):
        set_nested({"lr": 1}, "lr.x", 2)


# --- paths ------------------------------------------------------------------------


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """`..` and `.` are resolved, other keys are left alone."""
    given = {"data_root": "../data", "save_root": ".", "dataset": "../data"}
    found = resolve_paths(given, SCHEMAS["imgclass"], tmp_path / "scripts")
    assert found == {
        "data_root": str(tmp_path / "data"),
        "save_root": str(tmp_path / "scripts"),
        "dataset": "../data",
    }


def test_absolute_paths_and_null_stay(tmp_path: Path) -> None:
    """Only relative texts are changed."""
    given = {"data_root": str(tmp_path), "save_root": None}
    assert resolve_paths(given, SCHEMAS["imgclass"], Path("/elsewhere")) == given


def test_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~/data` does not depend on the file that names it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    found = resolve_paths({"data_root": "~/x"}, SCHEMAS["imgclass"], Path("/elsewhere"))
    assert found == {"data_root": str(tmp_path / "x")}


def test_data_root_comes_from_key_environment_or_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key wins over GRIDRUN_DATA, which wins over the default; each is named."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GRIDRUN_DATA", raising=False)
    default = str(tmp_path / "experiments" / "data")
    assert data_root(None) == (default, "the default data_root")
    monkeypatch.setenv("GRIDRUN_DATA", str(tmp_path / "env"))
    assert data_root(None) == (str(tmp_path / "env"), "GRIDRUN_DATA")
    assert data_root("/given") == ("/given", "data_root")


def test_contradictions_are_told_beside_wrong_types() -> None:
    """A wrong type in one key does not hide what is wrong with others."""
    problems = problems_of(IMAGES, lr="x", monitor="foo", workers=0)
    assert set(problems) == {"lr", "monitor", "workers"}


def test_what_hangs_on_a_wrong_key_is_not_told() -> None:
    """Kernel sizes are not measured against channels that cannot be read."""
    assert set(problems_of(RETINA, chans="x", ksizes=[3] * 7)) == {"chans"}


# --- configurations that share what they have in common ---------------------------


@given(st.floats(1e-6, 1), st.integers(1, 9), st.lists(st.integers(1, 9)))
def test_a_variant_is_the_configuration_it_was_made_of(
    lr: float, n_epochs: int, chans: list[int]
) -> None:
    """Whatever the base, and only what differs is held."""
    base = completed(IMAGES)
    hyps = base.model_copy(update={"lr": lr, "n_epochs": n_epochs, "chans": chans})
    variant = Variant.of(hyps, base)
    assert variant.hyps == hyps
    assert variant.hyps.model_dump_json() == hyps.model_dump_json()
    assert set(variant.changes) <= {"lr", "n_epochs", "chans"}


@given(st.dictionaries(st.sampled_from("abc"), json_values), st.data())
def test_a_mapping_that_shares_is_equal(
    values: dict[str, Any], data: st.DataObject
) -> None:
    """Also where the keys are others than the base's."""
    base = data.draw(st.dictionaries(st.sampled_from("abc"), json_values))
    found = varied(values, base)
    assert json.dumps(dict(found), sort_keys=True) == json.dumps(values, sort_keys=True)


@pytest.mark.parametrize(("value", "other"), [(1, True), (1, 1.0), ([0], [False])])
def test_equal_values_of_other_types_differ(value: object, other: object) -> None:
    """JSON writes them differently, and a run's identity is its JSON."""
    assert differences({"a": value}, {"a": other}) == {"a": value}
