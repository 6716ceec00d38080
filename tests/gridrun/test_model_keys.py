"""Every key of every model: it acts as the reference says, or is reported inactive."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from strategies import BASES

from gridrun.config import Hyperparams, complete, key, keys_of
from gridrun.effects import check_effects, make_specs
from gridrun.errors import ConfigError
from gridrun.plugins import libraries, reads
from gridrun.request import read_request
from gridrun.training.data import DataInfo
from gridrun.training.losses import class_loss
from gridrun.training.models import build_model
from gridrun.training.seeding import RunRandom
from torchdeepretina.trainer import RetinaTrainer, criterion

REFUSED = "refused"
N_UNITS = 2
CENTERS = [(5, 7), (7, 6)]

HIDDEN: dict[str, Any] = {
    "img_shape": [6, 14, 14],
    "chans": [3, 4],
    "ksizes": [5, 4, 3],
}
SMALL: dict[str, dict[str, Any]] = {
    "BNCNN": HIDDEN,
    "LinearStackedBNCNN": HIDDEN,
    "VaryModel": HIDDEN,
    "RetinotopicModel": HIDDEN,
    "LN": {"img_shape": [6, 14, 14]},
    "McIntosh2016": HIDDEN | {"ksizes": [5, 4]},
    "Tiny10": {"img_shape": [3, 12, 12], "width": 3},
    "PlainN": {"img_shape": [3, 12, 12], "width": 3},
    "AlexNet": {"img_shape": [3, 12, 12], "mid_dims": 4},
    "SmallNet": {
        "img_shape": [3, 12, 12],
        "chans": [3, 4],
        "ksizes": [5, 3],
        "strides": [2, 1],
        "paddings": [2, 0],
        "mid_dims": 6,
    },
}


class Case(NamedTuple):
    """One change of one key.

    Args:
        value: The new value.
        first: The first of the facts of `observed` that changes; None: none does, and
            the key is reported inactive or its values mean the same; or REFUSED.
        context: What else differs from the small configuration, before and after.
        linked: Keys that must change together with this one.
    """

    value: Any
    first: str | None
    context: Mapping[str, Any] = {}
    linked: Mapping[str, Any] = {}


ONE_LAYER = {"chans": [], "ksizes": [3]}
STACKED = {"stackconvs": True}
# per library: what each key does in the models that read it
CASES: dict[str, dict[str, list[Case]]] = {
    "general": {},
    "torchdeepretina": {
        "n_layers": [
            Case(2, REFUSED),
            Case(2, "shapes", linked={"chans": [3], "ksizes": [5, 4]}),
        ],
        "chans": [Case([3, 5], "shapes"), Case([2, 4], "shapes")],
        "ksizes": [
            Case([4, 4, 3], "shapes"),
            Case([5, 4, 2], None),
            Case([5, 4], None),
            Case([5, 4, 2], "shapes", {"convgc": True}),
        ],
        "bnorm": [Case(False, "shapes")],
        "bnorm_d": [Case(2, "shapes"), Case(2, None, {"bnorm": False})],
        "bn_moment": [
            Case(0.5, "after"),
            Case(0.5, "after", {"bnorm_d": 2}),
            Case(0.5, None, {"bnorm": False}),
        ],
        "bias": [Case(False, "shapes")],
        "gc_bias": [Case(True, "shapes"), Case(False, None)],
        "softplus": [
            Case(False, REFUSED),
            Case(False, "eval", {"log_poisson": True}),
            Case(False, "eval", {"lossfxn": "MSELoss"}),
        ],
        "output_scale": [
            Case("std", "rates"),
            Case("std", "rates", {"log_poisson": True}),
            Case("std", "rates", {"lossfxn": "MSELoss"}),
        ],
        "stackconvs": [
            Case(True, "shapes", {"stackconvs": False}),
            Case(True, None, {"stackconvs": False, "ksizes": [3, 2, 3]}),
            Case(
                True,
                None,
                {"stackconvs": False, "convgc": True, "ksizes": [3, 3, 5]},
            ),
        ],
        "drop_p": [
            Case(0.5, "train", STACKED),
            Case(0.5, "train", STACKED | {"ksizes": [3, 5, 3]}),
            Case(0.5, "train", STACKED | {"ksizes": [4, 3, 3]}),
            Case(0.5, None, {"stackconvs": False}),
            Case(0.5, None, STACKED | {"ksizes": [3, 3, 3]}),
            Case(0.5, None, STACKED | {"convgc": True, "ksizes": [3, 3, 5]}),
        ],
        "convgc": [Case(True, "shapes"), Case(True, "shapes", {"bnorm": False})],
        "rand_onehot": [Case(True, "initial")],
        "noise": [Case(0.5, "train"), Case(0, "train"), Case(1, "train", STACKED)],
        "img_shape": [Case([5, 14, 14], "shapes")],
        "lossfxn": [
            Case("MSELoss", "loss"),
            Case("MSELoss", "rates", {"log_poisson": True}),
        ],
        "log_poisson": [Case(True, "rates"), Case(True, None, {"lossfxn": "MSELoss"})],
    },
    "imgclass": {
        "chans": [Case([3, 5], "shapes"), Case([2, 4], "shapes")],
        "ksizes": [Case([4, 3], "shapes"), Case([5, 2], "shapes")],
        "paddings": [
            Case([1, 0], "shapes"),
            Case([2, 1], "shapes"),
            Case([0, 0], None, {"paddings": None}),
        ],
        "strides": [
            Case([1, 1], "shapes"),
            Case([2, 2], "shapes"),
            Case([1, 1], None, {"strides": None}),
        ],
        "mid_dims": [Case(7, "shapes")],
        "width": [Case(4, "shapes")],
        "plain_n": [Case(2, "shapes")],
        "n_shakes": [Case(2, "shapes"), Case(2, "shapes", {"bnorm": False})],
        "locrespnorm": [Case(True, "eval"), Case(True, "eval", {"bnorm": False})],
        "bnorm": [Case(False, "shapes")],
        "bn_moment": [Case(0.5, "after"), Case(0.5, None, {"bnorm": False})],
        "stackconvs": [
            Case(True, "shapes"),
            Case(True, None, {"ksizes": [3, 2]}),
        ],
        "drop_ps": [
            Case([0.5, 0.0, 0.0], "train"),
            Case([0.0, 0.5, 0.0], "train"),
            Case([0.0, 0.0, 0.5], "train"),
            Case([0.0, 0.0, 0.0], None),
        ],
        "img_shape": [Case([2, 12, 12], "shapes")],
    },
}
# keys that mean something else in one model, and what only that model can show
IN_MODEL: dict[tuple[str, str], list[Case]] = {
    ("LinearStackedBNCNN", "stackconvs"): [Case(False, REFUSED)],
    ("LinearStackedBNCNN", "drop_p"): [
        case
        for case in CASES["torchdeepretina"]["drop_p"]
        if case.context["stackconvs"]
    ],
    ("RetinotopicModel", "ksizes"): [
        Case([4, 4, 3], "shapes"),
        Case([5, 4, 2], "shapes"),
        Case([5, 4], REFUSED),
    ],
    ("RetinotopicModel", "stackconvs"): [
        Case(True, "shapes", {"stackconvs": False}),
        Case(True, None, {"stackconvs": False, "ksizes": [3, 2, 5]}),
    ],
    ("RetinotopicModel", "drop_p"): [
        Case(0.5, "train", STACKED),
        Case(0.5, None, {"stackconvs": False}),
        Case(0.5, None, STACKED | {"ksizes": [3, 3, 5]}),
    ],
    ("LN", "gc_bias"): [Case(False, "shapes"), Case(True, None)],
    ("McIntosh2016", "gc_bias"): [Case(False, "shapes"), Case(True, None)],
    ("McIntosh2016", "ksizes"): [
        Case([4, 4], "shapes"),
        Case([5, 3], "shapes"),
        Case([5, 4, 2], None),
    ],
    ("McIntosh2016", "noise"): [Case(0.5, "train"), Case(0, "train")],
    ("AlexNet", "stackconvs"): [
        Case(True, "shapes"),
        Case(True, "shapes", {"ksizes": [3, 3]}),
    ],
    ("AlexNet", "drop_ps"): [
        Case([0.5, 0.0], "train"),
        Case([0.0, 0.5], "train"),
        Case([0.0, 0.0], None),
    ],
    ("SmallNet", "mid_dims"): [
        Case(7, "shapes"),
        Case(128, None, {"mid_dims": None}),
    ],
} | {
    (model, name): CASES["torchdeepretina"][name] + more
    for model in ("VaryModel", "RetinotopicModel")
    for name, more in {
        "bnorm_d": [Case(2, None, ONE_LAYER)],
        "bn_moment": [Case(0.5, "after", ONE_LAYER)],
        "bias": [Case(False, None, ONE_LAYER)],
        "noise": [Case(0.5, None, ONE_LAYER)],
        "gc_bias": [Case(True, "shapes", ONE_LAYER)],
    }.items()
}


def library_names(library: str) -> tuple[str, ...]:
    """Names of the models of a library."""
    return libraries()[library].model_names


def reads_of(model: str) -> frozenset[str]:
    """The keys that the constructor of a model takes."""
    (library,) = (one for one in libraries().values() if model in one.model_names)
    return reads(library.model(model))


def enumerated(schema: type[Hyperparams], model: str) -> set[str]:
    """The keys of a schema that may act in a model."""
    keys = keys_of(schema)
    in_group = {name for name, facts in keys.items() if facts.group == "model"}
    return (in_group | (reads_of(model) & set(keys))) - {"model_type"}


def cases_of(library: str, model: str, name: str) -> list[Case]:
    """The changes of a key in a model; one without effect where it is not read."""
    if name != "img_shape" and name not in reads_of(model):
        plain = [case for case in CASES[library].get(name, ()) if not case.linked]
        return [Case(plain[0].value, None)] if plain else []
    return IN_MODEL.get((model, name), CASES[library].get(name, []))


def without_cases(library: str, schema: type[Hyperparams]) -> set[tuple[str, str]]:
    """The pairs of model and key that nothing below tests."""
    return {
        (model, name)
        for model in library_names(library)
        for name in enumerated(schema, model)
        if model not in SMALL or not cases_of(library, model, name)
    }


PAIRS = [
    (library, model, name)
    for library in libraries()
    for model in library_names(library)
    for name in sorted(enumerated(libraries()[library].schema, model))
]
ALL_CASES = [
    pytest.param(library, model, name, case, id=f"{model}-{name}-{i}")
    for library, model, name in PAIRS
    for i, case in enumerate(cases_of(library, model, name))
]


def selected(keep: Callable[[Case], bool]) -> list[Any]:
    """The parameter sets whose case passes."""
    return [given for given in ALL_CASES if keep(cast(Case, given.values[3]))]


def configuration(library: str, model: str, *given: Mapping[str, Any]) -> Any:
    """Keys of a small model, later ones winning."""
    keys: dict[str, Any] = {**BASES[library], "model_type": model, "batch_size": 6}
    for name in ("chans", "ksizes", "img_shape"):
        del keys[name]
    for one in (SMALL[model], *given):
        keys |= one
    return keys


def completed(library: str, keys: Mapping[str, Any]) -> Any:
    """The checked configuration."""
    hyps, problems = complete(keys, libraries()[library].schema)
    assert hyps is not None, problems
    return hyps


def is_right(library: str, keys: Mapping[str, Any]) -> bool:
    """Whether the keys do not contradict each other."""
    return complete(keys, libraries()[library].schema)[0] is not None


def both(library: str, model: str, name: str, case: Case) -> tuple[Any, Any]:
    """The keys before and after a change."""
    before = configuration(library, model, case.context)
    return before, {**before, name: case.value, **case.linked}


def observed(library: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """What a model shows in one training step, the earlier facts first."""
    return _observed(library, json.dumps(keys, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _observed(library: str, keys: str) -> dict[str, Any]:
    hyps = completed(library, json.loads(keys))
    is_retina = library == "torchdeepretina"
    fixed = torch.Generator().manual_seed(3)
    channels, height, width = hyps.img_shape
    x = torch.randn(6, 6, 14, 14, generator=fixed)[:, :channels, :height, :width]
    rates = torch.rand(6, N_UNITS, generator=fixed) * 8
    torch.manual_seed(1)
    info = DataInfo(N_UNITS, {}, {}, (), CENTERS if is_retina else None)
    model: Any = build_model(libraries()[library], hyps, info)
    facts: dict[str, Any] = {
        "shapes": [list(parameter.shape) for parameter in model.parameters()],
        "initial": values_of(model.parameters()),
    }
    if is_retina:
        data: Any = SimpleNamespace(train=SimpleNamespace(targets=rates))
        RetinaTrainer.prepare_model(model, data)
    random = RunRandom(4, torch.device("cpu"))
    random.attach(model)
    with torch.no_grad():
        facts["eval"] = model.eval()(x)
    with random.active():
        z = model.train()(x)
    facts["train"] = z.detach()
    facts["rates"] = (model.link(z) if is_retina else z).detach()
    if is_retina:
        loss = criterion(model, hyps.lossfxn, z, rates)
    else:
        loss = class_loss(hyps.lossfxn, z, torch.arange(6) % N_UNITS)
    facts["loss"] = loss.detach()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    facts["after"] = values_of(model.state_dict().values())
    facts["running means"] = values_of(
        tensor for name, tensor in model.named_buffers() if "running_mean" in name
    )
    with torch.no_grad():
        facts["eval after"] = model.eval()(x)
    return facts


def values_of(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Copies, in order."""
    return [tensor.detach().clone() for tensor in tensors]


# --- what is enumerated -----------------------------------------------------------


@pytest.mark.parametrize("library", libraries())
def test_every_key_of_every_model_is_tested_below(library: str) -> None:
    """A new model or key without an entry in the tables is noticed."""
    assert without_cases(library, libraries()[library].schema) == set()


@pytest.mark.parametrize("library", libraries())
def test_the_tables_hold_nothing_else(library: str) -> None:
    """No entry outlives its key or its model."""
    models = library_names(library)
    known = {
        name for m in models for name in enumerated(libraries()[library].schema, m)
    }
    assert set(CASES[library]) == known
    assert set(SMALL) == {m for one in libraries() for m in library_names(one)}
    assert set(IN_MODEL) <= {(model, name) for _, model, name in PAIRS}


@pytest.mark.parametrize("library", libraries())
def test_a_new_key_that_nothing_reads_is_noticed(library: str) -> None:
    """A key added to a schema lacks an entry in every model."""
    schema = libraries()[library].schema
    extended = type(
        "Extended",
        (schema,),
        {
            "__annotations__": {"novelty": int},
            "__module__": __name__,
            "novelty": key(0, "acts on nothing", group="model"),
        },
    )
    assert without_cases(library, extended) == {
        (model, "novelty") for model in library_names(library)
    }


@pytest.mark.parametrize("library", libraries())
def test_constructors_take_keys_only(library: str) -> None:
    """Beside the keys a model takes the number of units and their centres."""
    schema = libraries()[library].schema
    for model in library_names(library):
        others = reads_of(model) - set(keys_of(schema))
        assert "n_units" in others
        assert others <= {"n_units", "centers"}


@pytest.mark.parametrize(("library", "model", "name"), PAIRS)
def test_a_key_that_is_read_acts_somewhere(library: str, model: str, name: str) -> None:
    """What a constructor takes changes the model in some context."""
    firsts = {case.first for case in cases_of(library, model, name)}
    is_read = name in reads_of(model)
    if (model, name) == ("LinearStackedBNCNN", "stackconvs"):
        assert firsts == {REFUSED}
    else:
        assert bool(firsts - {None, REFUSED}) is is_read


# --- what a key does --------------------------------------------------------------


def is_change(case: Case) -> bool:
    """Whether something must change."""
    return case.first not in (None, REFUSED)


@pytest.mark.parametrize(("library", "model", "name", "case"), selected(is_change))
def test_an_active_key_changes_what_the_reference_says(
    library: str,
    model: str,
    name: str,
    case: Case,
    same: Callable[[Any, Any], bool],
) -> None:
    """A fact of its own changes, and none of the facts before it."""
    before, after = both(library, model, name, case)
    for keys in (before, after):
        assert name not in completed(library, keys).inactive(reads_of(model))
    one, other = observed(library, before), observed(library, after)
    changed = [fact for fact in one if not same(one[fact], other[fact])]
    assert changed[:1] == [case.first]


@pytest.mark.parametrize(
    ("library", "model", "name", "case"), selected(lambda case: case.first is None)
)
def test_an_inactive_key_changes_nothing(
    library: str,
    model: str,
    name: str,
    case: Case,
    same: Callable[[Any, Any], bool],
) -> None:
    """Said to act on nothing, or to mean the same, it leaves every bit."""
    before, after = both(library, model, name, case)
    assert before.get(name, ...) != after[name]
    one, other = completed(library, before), completed(library, after)
    is_inactive = name in one.inactive(reads_of(model))
    assert is_inactive is (name in other.inactive(reads_of(model)))
    assert is_inactive or one.identity_value(name) == other.identity_value(name)
    assert same(observed(library, before), observed(library, after))


CONTEXTS: dict[str, list[dict[str, Any]]] = {
    "torchdeepretina": [
        {"bnorm": False},
        {"bnorm": False, "convgc": True},
        {"lossfxn": "MSELoss"},
        {"stackconvs": False},
        {"stackconvs": True, "ksizes": [3, 5, 3]},
        {"stackconvs": True, "ksizes": [3, 2, 5]},
        {"stackconvs": True, "convgc": True, "ksizes": [3, 2, 5]},
        ONE_LAYER,
    ],
    "imgclass": [
        {"bnorm": False},
        {"ksizes": [3, 3]},
        {"stackconvs": True, "ksizes": [3, 5]},
        {"n_shakes": 2},
        {"locrespnorm": True},
    ],
}


@pytest.mark.parametrize(
    ("library", "model", "context"),
    [
        pytest.param(library, model, context, id=f"{model}-{i}")
        for library in libraries()
        for model in library_names(library)
        for i, context in enumerate(CONTEXTS[library])
        if is_right(library, configuration(library, model, context))
    ],
)
def test_what_is_reported_inactive_changes_nothing(
    library: str,
    model: str,
    context: Mapping[str, Any],
    same: Callable[[Any, Any], bool],
) -> None:
    """Whatever the other keys, a key that is said to act on nothing does not."""
    before = configuration(library, model, context)
    reasons = completed(library, before).inactive(reads_of(model))
    for name in sorted(set(reasons) & reads_of(model)):
        for case in cases_of(library, model, name):
            after = {**before, name: case.value}
            if is_right(library, after):
                one, other = observed(library, before), observed(library, after)
                assert same(one, other), name


@pytest.mark.parametrize(
    ("library", "model", "name", "case"),
    [given for given in selected(is_change) if given.values[2] == "bn_moment"],
)
def test_bn_moment_acts_in_every_norm(
    library: str, model: str, name: str, case: Case
) -> None:
    """After one step each running mean is m times that of the batch."""
    means = []
    for keys in both(library, model, name, case):
        m = completed(library, keys).bn_moment
        means.append([mean / m for mean in observed(library, keys)["running means"]])
    assert means[0]
    for one, other in zip(*means, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("library", "model", "name", "case"), selected(lambda case: case.first == REFUSED)
)
def test_a_contradiction_is_refused(
    library: str, model: str, name: str, case: Case
) -> None:
    """A value that the others rule out is a problem of its key."""
    before, after = both(library, model, name, case)
    completed(library, before)
    hyps, problems = complete(after, libraries()[library].schema)
    assert hyps is None
    assert {key for key, _ in problems} == {name}


@pytest.mark.parametrize(
    ("library", "model", "name"),
    [pair for pair in PAIRS if pair[2] not in reads_of(pair[1])],
)
def test_a_key_that_a_model_does_not_read_is_reported(
    library: str, model: str, name: str
) -> None:
    """The reason names the model."""
    hyps = completed(library, configuration(library, model))
    assert hyps.inactive(reads_of(model))[name] == f"{model} does not use it"


@pytest.mark.parametrize(("library", "model"), sorted({p[:2] for p in PAIRS}))
def test_the_reason_does_not_depend_on_other_conditions(
    library: str, model: str
) -> None:
    """That the model does not use a key is said before what else the key needs."""
    context: dict[str, Any] = {"bnorm": False}
    if library == "torchdeepretina":
        context |= {"lossfxn": "MSELoss", "softplus": False}
    hyps = completed(library, configuration(library, model, context))
    reasons = hyps.inactive(reads_of(model))
    unread = {name for lib, kind, name in PAIRS if (lib, kind) == (library, model)}
    unread -= reads_of(model)
    assert {reasons[name] for name in unread} <= {f"{model} does not use it"}


# --- sweeps -----------------------------------------------------------------------


def swept(library: str, model: str, name: str, case: Case) -> list[str]:
    """Identities of the runs of a sweep over a key's value before and after."""
    before, after = both(library, model, name, case)
    first = completed(library, before).model_dump()[name]
    values = [before.get(name, first), after[name]]
    request = read_request({**before, "library": library}, {name: values})
    points = request.points()
    effects = check_effects(request, points)
    return [spec.identity for spec in make_specs(request, points, effects, 0)]


@pytest.mark.parametrize(
    ("library", "model", "name", "case"),
    selected(lambda case: is_change(case) and not case.linked),
)
def test_an_active_key_may_be_swept(
    library: str, model: str, name: str, case: Case
) -> None:
    """Its grid points are distinct runs."""
    assert len(set(swept(library, model, name, case))) == 2


@pytest.mark.parametrize(
    ("library", "model", "name", "case"), selected(lambda case: case.first is None)
)
def test_a_sweep_of_an_inactive_key_is_refused(
    library: str, model: str, name: str, case: Case
) -> None:
    """The grid would train the same model twice."""
    with pytest.raises(ConfigError) as caught:
        swept(library, model, name, case)
    (problem,) = caught.value.problems
    hyps = completed(library, both(library, model, name, case)[0])
    reason = hyps.inactive(reads_of(model)).get(name)
    if reason:
        assert problem.endswith(f"{name}: has no effect: {reason}")
    else:
        assert "two grid points would train the same runs" in problem
