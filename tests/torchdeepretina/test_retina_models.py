"""Retina models: counts, shapes, and what holds for every model."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import RETINA, completed, problems_of
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.plugins import libraries, reads
from torchdeepretina.trainer import criterion

LIBRARY = libraries()["torchdeepretina"]
MODELS = LIBRARY.model_names
GOLDEN = Path(__file__).parents[1] / "golden" / "parameter_counts.json"
COUNTS = {row["name"]: row for row in json.loads(GOLDEN.read_text())["torchdeepretina"]}
HIDDEN: dict[str, Any] = {
    "img_shape": [6, 14, 14],
    "chans": [3, 4],
    "ksizes": [5, 4, 3],
    "noise": 0.1,
}
SMALL: dict[str, dict[str, Any]] = {
    "BNCNN": HIDDEN,
    "LinearStackedBNCNN": HIDDEN,
    "VaryModel": HIDDEN,
    "RetinotopicModel": HIDDEN,
    "LN": {"img_shape": [6, 14, 14]},
    "McIntosh2016": HIDDEN | {"ksizes": [5, 4]},
}
CENTERS = [(5, 7), (7, 6)]
LOG_RATE: dict[str, Any] = {"softplus": False, "log_poisson": True}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "BNCNN": ("BNCNN", {}),
    "BNCNN convgc": ("BNCNN", {"convgc": True, "bnorm_d": 2}),
    "BNCNN no norm": ("BNCNN", {"bnorm": False, "convgc": True}),
    "BNCNN stacked": ("BNCNN", {"stackconvs": True, "drop_p": 0.2, "bias": False}),
    "BNCNN log rate": ("BNCNN", LOG_RATE),
    "LinearStackedBNCNN": ("LinearStackedBNCNN", {}),
    "LinearStackedBNCNN convgc": (
        "LinearStackedBNCNN",
        {"convgc": True, "bnorm_d": 2, "drop_p": 0.2},
    ),
    "LinearStackedBNCNN no norm": (
        "LinearStackedBNCNN",
        {"bnorm": False, "bias": False, "gc_bias": False, "lossfxn": "MSELoss"},
    ),
    "VaryModel": ("VaryModel", {}),
    "VaryModel plain": ("VaryModel", {"stackconvs": False}),
    "VaryModel convgc": ("VaryModel", {"convgc": True, "bnorm_d": 2}),
    "VaryModel no norm": ("VaryModel", {"bnorm": False, "convgc": True}),
    "VaryModel dropout": (
        "VaryModel",
        {"drop_p": 0.2, "bias": False, "gc_bias": True},
    ),
    "VaryModel one layer": ("VaryModel", {"chans": [], "ksizes": []}),
    "VaryModel four layers": (
        "VaryModel",
        {"chans": [3, 2, 3], "ksizes": [5, 4, 3, 3], "convgc": True},
    ),
    "VaryModel log rate": ("VaryModel", LOG_RATE),
    "RetinotopicModel": ("RetinotopicModel", {}),
    "RetinotopicModel random": (
        "RetinotopicModel",
        {"rand_onehot": True, "bnorm_d": 2, "drop_p": 0.2},
    ),
    "RetinotopicModel plain": (
        "RetinotopicModel",
        {"stackconvs": False, "gc_bias": True, "bias": False},
    ),
    "RetinotopicModel no norm": ("RetinotopicModel", {"bnorm": False}),
    "RetinotopicModel one layer": ("RetinotopicModel", {"chans": [], "ksizes": [5]}),
    "RetinotopicModel log rate": ("RetinotopicModel", LOG_RATE),
    "LN": ("LN", {}),
    "LN no bias": ("LN", {"gc_bias": False, "output_scale": "std"}),
    "LN log rate": ("LN", LOG_RATE),
    "LN squares": ("LN", {"softplus": False, "lossfxn": "MSELoss"}),
    "McIntosh2016": ("McIntosh2016", {}),
    "McIntosh2016 no noise": ("McIntosh2016", {"noise": 0.0, "gc_bias": False}),
    "McIntosh2016 no bias": ("McIntosh2016", {"bias": False, "lossfxn": "MSELoss"}),
    "McIntosh2016 log rate": ("McIntosh2016", LOG_RATE),
}
HAS_HIDDEN = tuple(model for model in SMALL if "chans" in SMALL[model])
TWO_HIDDEN = ("BNCNN", "LinearStackedBNCNN", "McIntosh2016")
Build = Callable[..., Any]


@pytest.fixture(scope="module")
def make(build: Build) -> Build:
    """Function (model, seed, **keys) that builds a small retina model of 2 cells."""

    def small(model: str, seed: int = 0, **keys: Any) -> Any:
        given = {**SMALL[model], **keys}
        device, centers = given.pop("device", "cpu"), given.pop("centers", CENTERS)
        return build("torchdeepretina", model, 2, centers, seed, device, **given)

    return small


@pytest.fixture
def small(make: Build) -> Build:
    """Function (seed, **keys) that builds a small VaryModel."""
    return lambda seed=0, **keys: make("VaryModel", seed, **keys)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, make: Build) -> Any:
    """Each small variant of each model."""
    model, keys = VARIANTS[request.param]
    return make(model, **keys)


def windows(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """n normalised windows, equal at every call."""
    generator = torch.Generator().manual_seed(8)
    return torch.randn(n, 6, 14, 14, generator=generator).to(dtype)


def disturb(model: nn.Module) -> None:
    """Give norms and biases values that are not their initial 0 and 1."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        buffers = [b for n, b in model.named_buffers() if not n.endswith("mask")]
        for tensor in [*model.parameters(), *buffers]:
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def numbers(module: nn.Module) -> int:
    """Trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def problems(model: str, **keys: Any) -> dict[str, str]:
    """Key to message of what is wrong with a small configuration of a model."""
    return problems_of(RETINA, **{"model_type": model, **SMALL[model], **keys})


def arguments(model: str, **changes: Any) -> dict[str, Any]:
    """Arguments of a model's constructor, none of them checked."""
    values = completed(RETINA, model_type=model, **SMALL[model]).model_dump()
    values |= {"n_units": 2, "centers": CENTERS, **changes}
    return {name: values[name] for name in reads(LIBRARY.model(model))}


def test_every_model_is_tested_here() -> None:
    """Each class of the library has small keys, variants and a default count."""
    assert set(SMALL) == set(MODELS)
    assert {model for model, _ in VARIANTS.values()} == set(MODELS)
    defaults = {row["model"] for row in COUNTS.values() if not row["keys"]}
    assert defaults == set(MODELS)


# --- counts and shapes ------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(build: Build, name: str) -> None:
    """Every configuration of the reference has its number of parameters."""
    row = COUNTS[name]
    n_units, centers = row["n_units"], [(5, 5)] * row["n_units"]
    model = build(
        "torchdeepretina",
        row["model"],
        n_units,
        centers,
        device="meta",
        **row["keys"],
    )
    assert numbers(model) == row["count"]


MAPS = [
    ("BNCNN", {}, [36, 26]),
    ("BNCNN", {"convgc": True, "stackconvs": True}, [36, 26, 16]),
    ("LinearStackedBNCNN", {"convgc": True}, [36, 26, 16]),
    ("RetinotopicModel", {"ksizes": [15, 12, 9]}, [36, 25, 17]),
    ("RetinotopicModel", {"stackconvs": False}, [36, 26, 16]),
    ("McIntosh2016", {}, [36, 28]),
    *[
        ("VaryModel", {"stackconvs": stackconvs, **keys}, sides)
        for stackconvs in (True, False)
        for keys, sides in [
            ({}, [36, 26]),
            ({"convgc": True}, [36, 26, 16]),
            ({"ksizes": [15, 12, 9], "convgc": True}, [36, 25, 17]),
            ({"ksizes": [15, 9]}, [36, 28]),
            (
                {"chans": [8, 8, 8], "ksizes": [11, 9, 7, 7], "convgc": True},
                [40, 32, 26, 20],
            ),
        ]
    ],
]


@pytest.mark.parametrize(("name", "keys", "expected"), MAPS)
def test_map_sizes(
    build: Build, name: str, keys: dict[str, Any], expected: list[int]
) -> None:
    """Maps of 50×50 images have the sides of the reference, stacked or not."""
    given = {"bnorm_d": 2, **keys}
    model = build("torchdeepretina", name, 3, [(25, 25)] * 3, **given)
    sides: list[tuple[int, ...]] = []
    watched, forward = list(model.layers), model
    if isinstance(model.ganglion, nn.Conv2d):
        watched.append(model.ganglion)
        forward = model.tiled_forward
    for module in watched:
        module.register_forward_hook(lambda *args: sides.append(args[2].shape[2:]))
    model.eval()
    forward(torch.zeros(1, 40, 50, 50))
    assert sides == [(side, side) for side in expected]


def test_output_is_samples_by_units(variant: Any) -> None:
    """z is (B, U), and so are the rates."""
    z = variant(windows())
    assert z.shape == (5, 2)
    assert variant.link(z).shape == (5, 2)


@pytest.mark.parametrize("size", [(13, 13), (13, 16), (20, 12)])
@pytest.mark.parametrize("name", VARIANTS)
def test_images_of_any_size_one_at_a_time(
    make: Build, name: str, size: tuple[int, int]
) -> None:
    """Odd, even and oblong images give (B, U), also a batch of one in evaluation."""
    kind, keys = VARIANTS[name]
    model = make(kind, **keys, img_shape=[5, *size]).eval()
    for n in (1, 3):
        assert model(torch.zeros(n, 5, *size)).shape == (n, 2)


@pytest.mark.parametrize("model", HAS_HIDDEN)
def test_hidden_blocks_are_called_layers(make: Build, model: str) -> None:
    """Blocks are layers.0, layers.1, ... as pruning names them."""
    names = {name for name, _ in make(model).named_modules()}
    assert {"layers.0", "layers.1"} <= names
    assert "layers.2" not in names


@pytest.mark.parametrize("name", VARIANTS)
def test_models_are_built_on_any_device(make: Build, name: str) -> None:
    """Nothing is created on a device of the model's own choice."""
    kind, keys = VARIANTS[name]
    model = make(kind, device="meta", **keys)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# --- what is refused --------------------------------------------------------------


MAP_MODELS = ("BNCNN", "LinearStackedBNCNN", "VaryModel")
IMPOSSIBLE = [
    ({"ksizes": [15, 4, 3]}, HAS_HIDDEN, ["layers.0", "15×15", "14×14"]),
    ({"ksizes": [10, 6, 3]}, HAS_HIDDEN, ["layers.1", "6×6", "5×5"]),
    ({"img_shape": [6, 4, 14]}, HAS_HIDDEN, ["layers.0", "5×5", "4×14"]),
    ({"img_shape": [6, 14, 7]}, HAS_HIDDEN, ["layers.1", "4×4", "10×3"]),
    (
        {"ksizes": [10, 4, 3], "convgc": True},
        (*MAP_MODELS, "RetinotopicModel"),
        ["ganglion layer", "3×3", "2×2"],
    ),
]


@pytest.mark.parametrize(
    ("model", "keys", "texts"),
    [
        pytest.param(model, keys, texts, id=f"{model}-{texts[0]}-{texts[2]}")
        for keys, models, texts in IMPOSSIBLE
        for model in models
    ],
)
def test_impossible_shapes_are_refused(
    make: Build, model: str, keys: dict[str, Any], texts: list[str]
) -> None:
    """A kernel larger than its map is refused with key, layer and both sizes."""
    with pytest.raises(ConfigError) as caught:
        make(model, **keys)
    message = str(caught.value)
    assert message.startswith("ksizes: ")
    assert all(text in message for text in texts)


@pytest.mark.parametrize(
    ("model", "convgc", "least"),
    [
        *[(model, False, 8) for model in (*MAP_MODELS, "McIntosh2016")],
        *[(model, True, 10) for model in MAP_MODELS],
        ("RetinotopicModel", False, 10),
        ("LN", False, 1),
    ],
)
def test_exactly_images_below_the_field_are_refused(
    make: Build, model: str, convgc: bool, least: int
) -> None:
    """Maps may shrink to 1×1: the image needs the receptive field's side, no more."""
    built = set()
    sides = range(max(least - 2, 1), least + 2)
    keys = {"convgc": convgc, "centers": [(0, 0)] * 2, "device": "meta"}
    for height in sides:
        for width in sides:
            try:
                make(model, img_shape=[6, height, width], **keys)
            except ConfigError:
                continue
            built.add((height, width))
    assert built == {(h, w) for h in sides for w in sides if min(h, w) >= least}


@pytest.mark.parametrize("ksizes", [[10, 5, 3], [5, 10, 3], [14]])
def test_a_map_of_one_pixel_is_allowed(small: Build, ksizes: list[int]) -> None:
    """Maps may shrink to 1×1."""
    chans = [3] * len(ksizes[:2])
    model = small(chans=chans, ksizes=ksizes[:2])
    assert model.eval()(windows()).shape == (5, 2)


@pytest.mark.parametrize("model", MAP_MODELS)
def test_convgc_needs_centres(make: Build, model: str) -> None:
    """Without centres a convolutional ganglion layer is refused, with the way out."""
    with pytest.raises(ConfigError, match=r"convgc: .*centres.*convgc false"):
        make(model, centers=None, convgc=True)


@pytest.mark.parametrize("model", MODELS)
def test_without_convgc_no_centres_are_needed(make: Build, model: str) -> None:
    """Data without centres are enough for a dense or retinotopic model."""
    assert make(model, centers=None).eval()(windows()).shape == (5, 2)


WRONG_NUMBERS = [
    *[
        (model, {"chans": chans, "ksizes": [3] * len(chans)}, "chans", "two hidden")
        for model in TWO_HIDDEN
        for chans in ([], [3], [3, 4, 5])
    ],
    *[
        (model, {"n_layers": n_layers}, "n_layers", str(n_layers))
        for model in ("VaryModel", "RetinotopicModel")
        for n_layers in (1, 2, 4)
    ],
    *[
        (model, {"ksizes": ksizes}, "ksizes", f"got {len(ksizes)}")
        for model in HAS_HIDDEN
        for ksizes in ([], [5], [5, 4, 3, 2])
    ],
    *[
        (model, {"ksizes": [5, 4], "convgc": True}, "ksizes", "expected 3")
        for model in (*MAP_MODELS, "RetinotopicModel")
    ],
    ("LinearStackedBNCNN", {"stackconvs": False}, "stackconvs", "BNCNN"),
]


@pytest.mark.parametrize(("model", "keys", "key", "text"), WRONG_NUMBERS)
def test_wrong_numbers_are_refused(
    model: str, keys: dict[str, Any], key: str, text: str
) -> None:
    """Lists of a wrong length are told before anything is built, and by the class."""
    found = problems(model, **keys)
    assert list(found) == [key]
    assert text in found[key]
    with pytest.raises(ConfigError, match=f"^{key}: "):
        LIBRARY.model(model)(**arguments(model, **keys))


@pytest.mark.parametrize("model", MODELS)
def test_right_numbers_are_taken(model: str) -> None:
    """The same arguments unchanged have no problem and build a model."""
    assert problems(model) == {}
    assert problems(model, ksizes=[5, 4, 3]) == {}
    assert isinstance(LIBRARY.model(model)(**arguments(model)), nn.Module)


@pytest.mark.parametrize("model", ["LN", "McIntosh2016", *MAP_MODELS])
def test_tiled_forward_is_refused_without_a_map(make: Build, model: str) -> None:
    """A dense model says that it has no map, and what has one."""
    dense = make(model).eval()
    with pytest.raises(ConfigError, match=rf"tiled_forward: {model} .*convgc true"):
        dense.tiled_forward(windows())


# --- keys -------------------------------------------------------------------------


PUBLISHED: dict[str, dict[str, Any]] = {
    "BNCNN": {"stackconvs": False, "chans": [8, 8], "ksizes": [15, 11, 11]},
    "LinearStackedBNCNN": {"stackconvs": True, "chans": [8, 8]},
    "VaryModel": {"stackconvs": True, "convgc": False, "n_layers": 3},
    "RetinotopicModel": {"stackconvs": True, "rand_onehot": False, "n_layers": 3},
    "LN": {"stackconvs": False, "softplus": True},
    "McIntosh2016": {"chans": [16, 8], "ksizes": [15, 9], "noise": 0.1},
}


@pytest.mark.parametrize("model", MODELS)
def test_defaults_of_each_model(model: str) -> None:
    """Keys that are not given have the values of the reference."""
    keys = ("chans", "ksizes", "img_shape")
    given = {name: RETINA[name] for name in RETINA if name not in keys}
    values = completed(given, model_type=model).model_dump()
    assert values["img_shape"] == [40, 50, 50]
    assert {name: values[name] for name in PUBLISHED[model]} == PUBLISHED[model]
    if model != "McIntosh2016":
        assert values["noise"] == 0.05


def test_given_keys_replace_the_model_s_own() -> None:
    """What is given wins over the default that a model brings."""
    given = {"chans": [3, 4], "ksizes": [5, 4], "noise": 0.3}
    hyps: Any = completed(RETINA, model_type="McIntosh2016", **given)
    assert (hyps.chans, hyps.ksizes, hyps.noise) == ([3, 4], [5, 4], 0.3)


@pytest.mark.parametrize("bnorm", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_gc_bias_null_follows_the_norm_that_is_there(model: str, bnorm: bool) -> None:
    """It is true without batch norm, and so always for LN and McIntosh2016."""
    expected = model in ("LN", "McIntosh2016") or not bnorm
    hyps: Any = completed(RETINA, model_type=model, **SMALL[model], bnorm=bnorm)
    assert hyps.gc_bias is expected


@pytest.mark.parametrize("model", MODELS)
def test_single_sample_batches_need_a_model_without_norm(model: str) -> None:
    """batch_size 1 is refused exactly where batch norm would see one sample."""
    found = problems(model, batch_size=1)
    assert list(found) == ([] if model in ("LN", "McIntosh2016") else ["batch_size"])
    assert problems(model, batch_size=1, bnorm=False) == {}


@pytest.mark.parametrize("model", MODELS)
def test_negative_rates_are_refused(model: str) -> None:
    """softplus false needs a log rate or squares, but McIntosh2016 rectifies itself."""
    found = problems(model, softplus=False)
    assert list(found) == ([] if model == "McIntosh2016" else ["softplus"])
    assert problems(model, **LOG_RATE) == {}
    assert problems(model, softplus=False, lossfxn="MSELoss") == {}


@pytest.mark.parametrize("model", MODELS)
def test_rates_above_one_are_noticed(model: str) -> None:
    """A softplus inside the exponential is told, McIntosh2016's own too."""

    def noticed(**keys: Any) -> list[str]:
        given = {"model_type": model, **SMALL[model], "log_poisson": True, **keys}
        hyps: Any = completed(RETINA, **given)
        return [name for name, _ in hyps.notices()]

    assert noticed() == ["log_poisson"]
    assert noticed(lossfxn="MSELoss") == []
    rectified = ["log_poisson"] if model == "McIntosh2016" else []
    assert noticed(softplus=False) == rectified


# --- rules for every model --------------------------------------------------------


def test_eval_twice_is_equal(variant: Any) -> None:
    """Evaluation is deterministic."""
    variant.eval()
    with torch.no_grad():
        assert torch.equal(variant(windows()), variant(windows()))


def test_eval_changes_nothing(variant: Any) -> None:
    """A forward pass in evaluation leaves every buffer as it was."""
    variant.eval()
    before = {name: t.clone() for name, t in variant.state_dict().items()}
    variant(windows())
    assert all(torch.equal(t, before[name]) for name, t in variant.state_dict().items())


def test_sample_0_does_not_depend_on_the_batch(variant: Any) -> None:
    """In evaluation a sample's output is the same alone and among any others."""
    disturb(variant)
    variant.eval()
    with torch.no_grad():
        alone, among = variant(windows()[:1]), variant(windows())
        loud = variant(torch.cat([windows()[:1], 100 * windows()[1:]]))
    torch.testing.assert_close(alone[0], among[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone[0], loud[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns(make: Build, name: str) -> None:
    """One step gives each a finite gradient, 0 only for a bias below a batch norm."""
    kind, keys = VARIANTS[name]
    model = make(kind, **keys).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    targets = torch.rand(5, 2, generator=torch.Generator().manual_seed(1)) * 20
    loss = keys.get("lossfxn", "PoissonNLLLoss")
    criterion(model, loss, model(windows()), targets).backward()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer.step()
    has_norm = any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()
    )
    for place, parameter in model.named_parameters():
        assert parameter.requires_grad, place
        assert parameter.grad is not None, place
        assert torch.isfinite(parameter.grad).all(), place
        if not (has_norm and place.endswith("bias") and "norm" not in place):
            assert parameter.grad.any(), place
            assert not torch.equal(parameter, before[place]), place


@pytest.mark.parametrize("model", MODELS)
def test_every_frame_of_the_window_is_seen(make: Build, model: str) -> None:
    """Each frame, the oldest and the newest too, has a gradient in each cell."""
    seen = make(model).eval()
    x = windows().requires_grad_()
    for unit in range(2):
        (gradient,) = torch.autograd.grad(seen(x)[:, unit].sum(), x)
        assert (gradient.abs().amax((0, 2, 3)) > 0).all()


def test_state_dict_holds_only_architecture(variant: Any) -> None:
    """A state dict has tensors only, of shapes that no batch enters."""
    before = {name: t.shape for name, t in variant.state_dict().items()}
    variant.train()(windows(5))
    variant.eval()(windows(3))
    after = variant.state_dict()
    assert {name: t.shape for name, t in after.items()} == before
    assert all(isinstance(tensor, Tensor) for tensor in after.values())


def test_running_statistics_are_buffers(variant: Any) -> None:
    """No running statistic is a parameter, and the output's scale is none."""
    names = {name for name, _ in variant.named_parameters()}
    assert not [n for n in names if "running" in n or "tracked" in n or "scale" in n]
    assert variant.state_dict()["output_scale"].tolist() == [1, 1]


@pytest.mark.parametrize("name", VARIANTS)
def test_save_and_load_gives_equal_outputs(make: Build, name: str) -> None:
    """A model built with another seed and loaded strictly is the saved one."""
    kind, keys = VARIANTS[name]
    model, other = (make(kind, seed, **keys) for seed in (0, 1))
    model.train()(windows())
    disturb(model)
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    with torch.no_grad():
        z = model.eval()(windows())
        assert torch.equal(z, other.eval()(windows()))
        assert torch.equal(model.link(z), other.link(z))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_functional_call_is_the_model_of_that_state(make: Build, name: str) -> None:
    """Parameters and buffers of another seed, put in, give that one's output."""
    kind, keys = VARIANTS[name]
    model, other = (make(kind, seed, **keys).eval() for seed in (0, 1))
    disturb(other)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    with torch.no_grad():
        before = model(windows())
        called = torch.func.functional_call(model, state, (windows(),))
        assert torch.equal(called, other(windows()))
        assert torch.equal(model(windows()), before)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_seed_decides_the_initial_state(make: Build, name: str) -> None:
    """Equal seeds give equal states, the next seed another."""
    kind, keys = VARIANTS[name]
    one, again, other = (make(kind, seed, **keys).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    drawn = [key for key in one if one[key].dim() > 1 and "onehot" not in key]
    assert drawn
    assert not any(torch.equal(one[key], other[key]) for key in drawn)


def test_double_precision_is_the_same_function(variant: Any) -> None:
    """float32 and float64 stay what they are and agree to float32's digits."""
    disturb(variant)
    variant.eval()
    with torch.no_grad():
        single = variant(windows())
        rate = variant.link(single)
        variant.double()
        double = variant(windows(dtype=torch.float64))
    assert {single.dtype, rate.dtype} == {torch.float32}
    assert {double.dtype, variant.link(double).dtype} == {torch.float64}
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        rate.double(), variant.link(double), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "keys", [{"noise": 0.3}, {"noise": 0.0, "drop_p": 0.3}, {"noise": 0.0}]
)
@pytest.mark.parametrize("model", MODELS)
def test_noise_and_dropout_act_in_training_only(
    make: Build, model: str, keys: dict[str, Any]
) -> None:
    """Training outputs vary exactly if one of them is on; evaluation never does."""
    built = make(model, **keys).train()
    with torch.no_grad():
        varies = not torch.equal(built(windows()), built(windows()))
        built.eval()
        assert torch.equal(built(windows()), built(windows()))
    has_dropout = "drop_p" in keys and model in (
        "LinearStackedBNCNN",
        "VaryModel",
        "RetinotopicModel",
    )
    assert varies is (has_dropout or (keys["noise"] > 0 and model != "LN"))


@pytest.mark.parametrize("model", HAS_HIDDEN)
def test_switching_noise_or_dropout_leaves_eval_alone(make: Build, model: str) -> None:
    """At equal weights evaluation does not depend on noise or drop_p."""
    outputs = []
    for keys in ({"noise": 0.0}, {"noise": 2.0}, {"drop_p": 0.5}):
        with torch.no_grad():
            outputs.append(make(model, **keys).eval()(windows()))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


# --- output rule ------------------------------------------------------------------


POISSON, SQUARES = "PoissonNLLLoss", "MSELoss"
RULES = {
    "softplus": (POISSON, True, False),
    "log rate": (POISSON, False, True),
    "softplus and log rate": (POISSON, True, True),
    "squares": (SQUARES, True, False),
    "squares without softplus": (SQUARES, False, True),
}
GAINS = np.array([0.25, 7.0])


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Keys of each row of the reference's table."""
    loss, softplus, log_poisson = RULES[request.param]
    return {"lossfxn": loss, "softplus": softplus, "log_poisson": log_poisson}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_rates_and_loss_follow_the_table(
    make: Build, model: str, scaled: bool, rule: dict[str, Any]
) -> None:
    """The loss takes z, times the gain, or plus its logarithm; link makes the rate."""
    built = make(model, **rule, output_scale="std" if scaled else "none")
    built.double().eval()
    gains = GAINS if scaled else np.ones(2)
    built.output_scale.copy_(torch.from_numpy(gains))
    targets = np.random.default_rng(2).gamma(1.0, 5.0, (5, 2))
    with torch.no_grad():
        z = built(windows(dtype=torch.float64))
        loss = criterion(built, rule["lossfxn"], z, torch.from_numpy(targets)).item()
    value, y = z.numpy(), targets
    if rule["lossfxn"] == SQUARES:
        taken = rate = value * gains
        expected = ((rate - y) ** 2).mean()
    elif rule["log_poisson"]:
        taken, rate = value + np.log(gains), gains * np.exp(value)
        expected = (rate - y * taken).mean()
    else:
        taken = rate = value * gains
        expected = (rate - y * np.log(rate + 1e-8)).mean()
    np.testing.assert_allclose(built.scaled(z).numpy(), taken, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(built.link(z).numpy(), rate, rtol=1e-12)
    assert loss == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("model", ["BNCNN", "LinearStackedBNCNN", "VaryModel", "LN"])
def test_z_is_the_softplus_of_the_last_map(
    make: Build, model: str, rule: dict[str, Any]
) -> None:
    """With softplus z = ln(1 + e^raw) of the model that has none."""
    one = make(model, **rule).double().eval()
    raw = make(model, softplus=False, lossfxn=SQUARES).double().eval()
    disturb(one)
    raw.load_state_dict(one.state_dict())
    x = 10 * windows(dtype=torch.float64)
    with torch.no_grad():
        z, before = one(x).numpy(), raw(x).numpy()
    assert (before < 0).any()
    expected = np.log1p(np.exp(before)) if rule["softplus"] else before
    np.testing.assert_allclose(z, expected, rtol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_poisson_rates_are_never_negative(
    make: Build, model: str, scaled: bool, rule: dict[str, Any]
) -> None:
    """link gives rates ≥ 0, and no rate below the gain if softplus meets exp."""
    built = make(model, **rule, output_scale="std" if scaled else "none").eval()
    disturb(built)
    with torch.no_grad():
        rates = built.link(built(windows() * 30))
    if rule["lossfxn"] == POISSON:
        assert (rates >= 0).all()
        rectified = rule["softplus"] or model == "McIntosh2016"
        if rule["log_poisson"] and rectified:
            assert (rates >= built.output_scale * (1 - 1e-6)).all()
    elif not rule["softplus"] and model != "McIntosh2016":
        assert (rates < 0).any()


@pytest.mark.parametrize("model", MODELS)
def test_training_and_evaluation_compute_the_same(
    make: Build, model: str, rule: dict[str, Any]
) -> None:
    """Without noise, dropout and batch norm the two modes give equal numbers."""
    built = make(model, **rule, noise=0.0, bnorm=False, output_scale="std")
    disturb(built)
    with torch.no_grad():
        trained = built.train()(windows())
        evaluated = built.eval()(windows())
        assert torch.equal(trained, evaluated)
        rates = built.link(evaluated)
        assert torch.equal(rates, built.train().link(trained))
    assert math.isfinite(float(rates.sum()))
