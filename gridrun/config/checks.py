"""A configuration completed by its schema and checked, without torch."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from gridrun.config.keys import Hyperparams
from gridrun.config.messages import expectation, shown, suggest

H = TypeVar("H", bound=Hyperparams)
# what other tools call our keys
SYNONYMS = {
    "name": "exp_name",
    "experiment_name": "exp_name",
    "n_repetitions": "n_repeats",
    "model": "model_type",
    "train_set": "dataset",
    "loss": "lossfxn",
    "loss_function": "lossfxn",
    "criterion": "lossfxn",
    "learning_rate": "lr",
    "weight_decay": "l2",
    "epochs": "n_epochs",
    "num_epochs": "n_epochs",
    "max_epochs": "n_epochs",
    "batchsize": "batch_size",
    "target_device": "device",
    "channels": "chans",
    "kernel_sizes": "ksizes",
    "dropout": "drop_p",
    "patience": "early_stop_patience",
    "num_workers": "n_workers",
}
# names of the dictionaries of an Experiment that stand for no key
ONLY_IN_PYTHON = ("interest_keys", "scheduler_requires_metric")
# keys whose value may be {"class", "args"}, and the keys that hold the arguments
CLASS_KEYS = {
    "model_type": "model_args",
    "dataset": "dataset_args",
    "optimizer": "optimizer_args",
    "scheduler": "scheduler_args",
    "distorter": "distorter_args",
}


@functools.cache
def json_schema(schema: type[Hyperparams]) -> dict[str, Any]:
    """The JSON Schema of a library's hyperparameters."""
    return schema.model_json_schema()


def _field_expectation(schema: type[Hyperparams], name: str) -> str:
    return expectation(json_schema(schema)["properties"][name])


def complete(
    values: Mapping[str, Any], schema: type[H]
) -> tuple[H | None, list[tuple[str, str]]]:
    """Complete one configuration by defaults and check all that needs no model.

    Args:
        values: Key to value, as given.
        schema: The library's hyperparameters.

    Returns:
        The configuration with final values, or None; and every (key, message).
    """
    given = dict(values)
    problems = lift_classes(given) + _lift_optimizer_args(given)
    for name in ("lossfxn", "normalizer"):  # a class without arguments is its name
        entry = given.get(name)
        if isinstance(entry, dict) and {"args": {}, **entry} == {
            "class": entry.get("class"),
            "args": {},
        }:
            given[name] = entry["class"]
    model_type = given.get("model_type")
    if isinstance(model_type, str):
        given = {**copy.deepcopy(dict(schema.model_defaults(model_type))), **given}
    unknown = [name for name in given if name not in schema.model_fields]
    problems += [(name, unknown_key(name, schema)) for name in unknown]
    for name in unknown:
        del given[name]
    try:
        hyps = schema.model_validate(given)
    except ValidationError as error:
        wrong = _readable(error, given, schema)
        return None, problems + wrong + _beside(given, dict(wrong), schema)
    problems += hyps.problems()
    if problems:
        return None, problems
    return hyps.model_copy(update=hyps.resolved()), []


def lift_classes(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Read `{"class", "args"}` as the name of a class and the key of its arguments.

    Where the key of its arguments stands beside it, as a range or an override of one
    of them needs it, both are joined; of an argument in both, that of the key counts.
    What was read once is left as it is.

    Args:
        values: Key to value; changed, but not what it holds.

    Returns:
        (key, message) of what is wrong.
    """
    problems = []
    for name, own in CLASS_KEYS.items():
        given = values.get(name)
        if not isinstance(given, dict):
            continue
        kind, args = given.get("class"), given.get("args") or {}
        is_sound = isinstance(kind, str) and isinstance(args, dict)
        if not is_sound or set(given) - {"class", "args"}:
            text = f'expected a name or {{"class", "args"}}, got {shown(given)}'
            problems.append((name, text))
            continue
        values[name] = kind
        beside = values.get(own) or {}
        if not isinstance(beside, dict):
            continue  # told as a value that is no object
        for inner in args.keys() & beside.keys():
            if _lacks_entries(beside[inner], args[inner]):
                text = f"{inner} has more entries in {name}; give all in one of them"
                problems.append((own, text))
        if args:
            values[own] = {**args, **beside}
    return problems


def given_twice(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, message) of arguments that stand in `{"class", "args"}` and beside it."""
    problems = []
    for name, own in CLASS_KEYS.items():
        given, beside = values.get(name), values.get(own)
        args = given.get("args") if isinstance(given, dict) else None
        if not isinstance(args, dict) or not isinstance(beside, dict):
            continue
        for inner in sorted(args.keys() & beside.keys()):
            if args[inner] != beside[inner]:
                text = f"{inner} is {shown(beside[inner])}, and {shown(args[inner])}"
                problems.append((own, f"{text} in args of {name}; keep one"))
    return problems


def _lacks_entries(value: Any, other: Any) -> bool:
    """Whether both are objects and the first lacks an entry that the other has."""
    if not isinstance(value, dict) or not isinstance(other, dict):
        return False
    return any(
        name not in value or _lacks_entries(value[name], inner)
        for name, inner in other.items()
    )


def _lift_optimizer_args(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Read lr and weight_decay of optimizer_args as the keys lr and l2."""
    problems = []
    args = values.get("optimizer_args")
    if isinstance(args, dict):
        for inner, name in (("lr", "lr"), ("weight_decay", "l2")):
            if inner not in args:
                continue
            if name in values:
                problems.append(
                    (
                        "optimizer_args",
                        f"{inner} is the key {name}, which is given too; keep one",
                    )
                )
            else:
                values[name] = args[inner]
        kept = {k: v for k, v in args.items() if k not in ("lr", "weight_decay")}
        values["optimizer_args"] = kept
    return problems


def _beside(
    given: Mapping[str, Any], wrong: Mapping[str, str], schema: type[Hyperparams]
) -> list[tuple[str, str]]:
    """Contradictions between the other keys, where some have a wrong type.

    The wrong ones are stood in for; what would speak of them is left out.
    """
    properties = json_schema(schema)["properties"]
    standins = {"string": "x", "integer": 2, "number": 1.0}
    sound = {name: value for name, value in given.items() if name not in wrong}
    for name in wrong:
        if schema.model_fields[name].is_required():
            sound[name] = standins.get(properties[name].get("type", ""))
    try:
        hyps = schema.model_validate(sound)
    except ValidationError:
        return []
    return [
        (name, message)
        for name, message in hyps.problems()
        if name not in wrong and not any(other in message for other in wrong)
    ]


def _is_same(value: Any, other: object) -> bool:
    """Equal, where true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _readable(
    error: ValidationError, given: Mapping[str, Any], schema: type[Hyperparams]
) -> list[tuple[str, str]]:
    problems: dict[str, str] = {}
    for item in error.errors():
        name = str(item["loc"][0])
        if item["type"] == "missing":
            problems[name] = f"required ({_field_expectation(schema, name)})"
        else:
            expected = _field_expectation(schema, name)
            problems[name] = f"expected {expected}; got {shown(given.get(name))}"
    return list(problems.items())


def unknown_key(name: str, schema: type[Hyperparams]) -> str:
    """What to say of a key that the schema lacks."""
    from gridrun.plugins import libraries

    if name in ONLY_IN_PYTHON:
        return "of gridrun.Experiment in Python only; leave it out"
    others = [
        library.name
        for library in libraries().values()
        if library.schema is not schema and name in library.schema.model_fields
    ]
    if others:
        return f"a key of {' and '.join(others)}, not of this model's library"
    words = {
        word: ours for word, ours in SYNONYMS.items() if ours in schema.model_fields
    }
    words |= {known: known for known in schema.model_fields}
    near = difflib.get_close_matches(name, words, n=1)
    if near:
        return f"unknown hyperparameter (did you mean {words[near[0]]!r}?)"
    return f"unknown hyperparameter{suggest(name, schema.model_fields)}"
