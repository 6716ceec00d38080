"""Image classifiers: counts, shapes, and what holds for every model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from strategies import problems_of
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import (
    Dropout,
    LinearStackedConv2d,
    RandomModule,
    ShakeShake,
    collapse_stacks,
)
from gridrun.plugins import libraries

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "golden" / "parameter_counts.json").read_text())
COUNTS = {row["name"]: row for row in GOLDEN["imgclass"]}
DIGITS = TESTS.parent / "data" / "digits16" / "images.h5"
SMALL_NET: dict[str, Any] = {
    "img_shape": [3, 12, 12],
    "chans": [3, 4],
    "ksizes": [5, 3],
    "strides": [2, 1],
    "paddings": [2, 0],
    "mid_dims": 6,
}
ALEX_NET: dict[str, Any] = {"img_shape": [3, 12, 12], "mid_dims": 5}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SmallNet": ("SmallNet", SMALL_NET),
    "SmallNet stacked": ("SmallNet", SMALL_NET | {"stackconvs": True}),
    "SmallNet dropout": ("SmallNet", SMALL_NET | {"drop_ps": [0.1, 0.2, 0.3]}),
    "SmallNet no norm": ("SmallNet", SMALL_NET | {"bnorm": False}),
    "Tiny10": ("Tiny10", {"img_shape": [3, 12, 12], "width": 3}),
    "Tiny10 no norm": (
        "Tiny10",
        {"img_shape": [3, 12, 12], "width": 3, "bnorm": False},
    ),
    "PlainN": ("PlainN", {"img_shape": [3, 12, 12], "width": 3, "plain_n": 2}),
    "PlainN shakes": ("PlainN", {"img_shape": [3, 12, 12], "width": 3, "n_shakes": 3}),
    "Tiny10 shakes": ("Tiny10", {"img_shape": [3, 12, 12], "width": 3, "n_shakes": 2}),
    "SmallNet shakes": ("SmallNet", SMALL_NET | {"stackconvs": True, "n_shakes": 2}),
    "AlexNet": ("AlexNet", ALEX_NET),
    "AlexNet no norm": (
        "AlexNet",
        ALEX_NET | {"bnorm": False, "locrespnorm": True, "drop_ps": [0.3, 0.4]},
    ),
    "AlexNet shakes": (
        "AlexNet",
        ALEX_NET | {"stackconvs": True, "n_shakes": 2, "locrespnorm": True},
    ),
}
SMALLEST: dict[str, dict[str, Any]] = {
    "AlexNet": ALEX_NET,
    "PlainN": {"img_shape": [3, 12, 12], "width": 3},
    "SmallNet": SMALL_NET,
    "Tiny10": {"img_shape": [3, 12, 12], "width": 3},
}
MODELS = libraries()["imgclass"].model_names
Build = Callable[..., Any]


@pytest.fixture
def make(build: Build) -> Build:
    """Function (model, seed, **keys) that builds an image model of 10 classes."""
    return lambda model, seed=0, n_units=10, **keys: build(
        "imgclass", model, n_units, None, seed, **keys
    )


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, make: Build) -> Any:
    """Each small variant of each model."""
    model, keys = VARIANTS[request.param]
    return make(model, **keys)


def images(n: int = 4, shape: tuple[int, int, int] = (3, 12, 12)) -> Tensor:
    """n normalised images, equal at every call."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(8))


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """All convolutions in order."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def maps_of(model: Any, x: Tensor, kind: Any = nn.Conv2d) -> list[int]:
    """Sides of the maps that layers of a kind give."""
    sides: list[int] = []

    def keep(module: nn.Module, given: Any, result: Tensor) -> None:
        assert result.shape[2] == result.shape[3]
        sides.append(result.shape[2])

    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(keep)
    model.eval()(x)
    return sides


def executed(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """The layers without layers of their own, in the order in which they run."""
    found: list[nn.Module] = []

    def keep(module: nn.Module, given: Any, result: Tensor) -> None:
        found.append(module)

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(keep)
    model.eval()(x)
    return found


def randomise(model: nn.Module) -> None:
    """Give norms and biases values that are not their initial 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)


def attach(model: nn.Module, seed: int) -> None:
    """Give every random layer one generator of a seed."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, RandomModule):
            module.generator = generator


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_variants(model: str) -> None:
    """What holds for every model is tested for each of the library."""
    assert model in SMALLEST
    keys = [keys for kind, keys in VARIANTS.values() if kind == model]
    assert {given.get("bnorm", True) for given in keys} >= {True}
    assert any(given.get("n_shakes", 1) > 1 for given in keys)


# --- counts and shapes ------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(build: Build, name: str) -> None:
    """Every configuration of the reference has its number of parameters."""
    row = COUNTS[name]
    model = build(
        "imgclass", row["model"], row["n_units"], device="meta", **row["keys"]
    )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == row["count"]


TRACED = [
    ("Tiny10", {}, [32, 32, 16, 16, 16, 8, 6, 6]),
    ("PlainN", {"plain_n": 1}, [32, 32, 16, 16, 16, 8, 6, 6]),
    ("PlainN", {"plain_n": 2}, [32] * 5 + [16] * 6 + [8] * 2 + [6] * 3),
    ("PlainN", {"plain_n": 3}, [32] * 8 + [16] * 9 + [8] * 3 + [6] * 4),
]


@pytest.mark.parametrize(("model", "keys", "expected"), TRACED)
def test_maps_of_plain_networks(
    make: Build, model: str, keys: dict[str, Any], expected: list[int]
) -> None:
    """Maps of 32×32 images have the sides of the papers' tables."""
    assert maps_of(make(model, width=2, **keys), images(1, (3, 32, 32))) == expected


@pytest.mark.parametrize("plain_n", [1, 2, 4])
def test_plain_n_has_8n_convolutions(make: Build, plain_n: int) -> None:
    """Of its 8n convolutions the last n are 1×1 without padding."""
    convs = convolutions(make("PlainN", plain_n=plain_n, width=2))
    sides = [conv.kernel_size[0] for conv in convs]
    assert sides == [3] * (7 * plain_n) + [1] * plain_n
    assert [conv.padding[0] for conv in convs] == [1] * (7 * plain_n - 1) + [0] * (
        plain_n + 1
    )
    assert sum(conv.stride[0] == 2 for conv in convs) == 2


def test_published_widths(build: Build) -> None:
    """Without width the channels are those of tables E.1 and E.2."""
    tiny, plain = (
        build("imgclass", model, 10, device="meta") for model in ("Tiny10", "PlainN")
    )
    widths = [[conv.out_channels for conv in convolutions(m)] for m in (tiny, plain)]
    assert widths[0] == [16, 16, 32, 32, 32, 64, 64, 64]
    assert widths[1] == [96] * 3 + [192] * 5


@pytest.mark.parametrize("stackconvs", [False, True])
@pytest.mark.parametrize(
    ("keys", "side"),
    [
        ({"ksizes": [5, 3]}, 26),
        ({"ksizes": [5, 3], "strides": [2, 2], "paddings": [2, 1]}, 8),
        ({"chans": [2] * 5, "ksizes": [5] * 5}, 12),
        ({"ksizes": [6, 4], "strides": [3, 1], "paddings": [1, 0]}, 7),
    ],
)
def test_maps_of_smallnet_stacked_or_not(
    make: Build, keys: dict[str, Any], side: int, stackconvs: bool
) -> None:
    """The last map has the reference's side; stacks keep stride and padding."""
    given = {"chans": [2, 2], "mid_dims": 2, "stackconvs": stackconvs, **keys}
    model = make("SmallNet", **given)
    found = maps_of(model, images(1, (3, 32, 32)), nn.BatchNorm2d)
    assert found[-1] == side
    stacks = [m for m in model.modules() if isinstance(m, LinearStackedConv2d)]
    assert len(stacks) == (sum(k > 3 for k in keys["ksizes"]) if stackconvs else 0)


@pytest.mark.parametrize("model", ["Tiny10", "PlainN"])
def test_nine_pixels_are_the_least(make: Build, model: str) -> None:
    """Sides of 9 work, sides of 8 are refused with layer and sizes."""
    kept = make(model, img_shape=[1, 9, 9], width=2)
    assert kept.eval()(images(2, (1, 9, 9))).shape == (2, 10)
    with pytest.raises(ConfigError) as caught:
        make(model, img_shape=[1, 8, 8], width=2)
    texts = ["img_shape", model, "convolution 6", "3×3", "2×2"]
    assert all(text in str(caught.value) for text in texts)


def test_a_smallnet_kernel_larger_than_its_map_is_refused(make: Build) -> None:
    """The error names the convolution, the kernel, the map and the padding."""
    with pytest.raises(ConfigError) as caught:
        make("SmallNet", img_shape=[1, 6, 8], chans=[2, 2], ksizes=[5, 4])
    texts = ["SmallNet", "convolution 1", "4×4", "2×4", "padding 0"]
    assert all(text in str(caught.value) for text in texts)


def test_padding_counts_towards_the_map(make: Build) -> None:
    """With enough padding the same kernels fit."""
    keys = {"img_shape": [1, 6, 8], "chans": [2, 2], "ksizes": [5, 4]}
    model = make("SmallNet", paddings=[0, 1], mid_dims=2, **keys)
    assert model.eval()(images(2, (1, 6, 8))).shape == (2, 10)


ALEX_MAPS = {
    224: [55, 27, 27, 13, 13, 13, 13, 6],
    63: [15, 7, 7, 3, 3, 3, 3, 1],
    32: [7, 3, 3, 1, 1, 1, 1],
    15: [3, 1, 1, 1, 1, 1],
    14: [2, 2, 2, 2, 2],
    8: [1, 1, 1, 1, 1],
    7: [1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("stackconvs", [False, True])
@pytest.mark.parametrize("side", ALEX_MAPS)
def test_maps_of_alexnet(build: Build, side: int, stackconvs: bool) -> None:
    """Convolutions and pools have the paper's maps; no pool below a map of 3."""
    keys = {"img_shape": [3, side, side], "mid_dims": 16, "stackconvs": stackconvs}
    model = build("imgclass", "AlexNet", 10, device="meta", **keys)
    x = torch.empty(2, 3, side, side, device="meta")
    assert maps_of(model, x, (nn.BatchNorm2d, nn.MaxPool2d)) == ALEX_MAPS[side]


def test_alexnet_runs_at_any_side_with_one_count(make: Build) -> None:
    """Sides 7 to 224, square or not, have equal parameters and outputs per class."""
    counts = set()
    for height, width in [(7, 7), (8, 8), (32, 32), (63, 63), (224, 224), (7, 40)]:
        model = make("AlexNet", img_shape=[3, height, width], mid_dims=4).eval()
        counts.add(sum(p.numel() for p in model.parameters()))
        with torch.no_grad():
            logits = model(images(1, (3, height, width)))
        assert logits.shape == (1, 10)
        assert torch.isfinite(logits).all()
    assert len(counts) == 1


@pytest.mark.parametrize("shape", [(6, 6), (6, 40), (40, 6)])
def test_six_pixels_are_too_few_for_alexnet(
    make: Build, shape: tuple[int, int]
) -> None:
    """The error names the convolution, its kernel, the map and the padding."""
    with pytest.raises(ConfigError) as caught:
        make("AlexNet", img_shape=[3, *shape], mid_dims=4)
    texts = ["img_shape", "AlexNet", "convolution 0", "11×11", "padding 2"]
    texts.append(f"{shape[0]}×{shape[1]}")
    assert all(text in str(caught.value) for text in texts)


@pytest.mark.parametrize("stackconvs", [False, True])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("side", [(12, 12), (13, 13), (12, 17), (25, 14)])
def test_images_need_not_be_square_or_even(
    make: Build, model: str, side: tuple[int, int], stackconvs: bool
) -> None:
    """Batches of four, and of one in evaluation, give (B, U)."""
    keys = {**SMALLEST[model], "img_shape": [3, *side], "stackconvs": stackconvs}
    net = make(model, **keys)
    x = images(4, (3, *side))
    assert net.train()(x).shape == (4, 10)
    assert net.eval()(x[:1]).shape == (1, 10)


@pytest.mark.parametrize(
    ("given", "name", "n_expected"),
    [
        ({"model_type": "AlexNet", "drop_ps": [0.1]}, "drop_ps", 2),
        ({"model_type": "AlexNet", "drop_ps": [0.1] * 3}, "drop_ps", 2),
        ({"drop_ps": [0.1]}, "drop_ps", 2),
        ({"chans": [3, 4], "ksizes": [3, 3], "drop_ps": [0.1] * 2}, "drop_ps", 3),
        ({"ksizes": [3, 3]}, "ksizes", 1),
        ({"paddings": []}, "paddings", 1),
        ({"strides": [1, 1]}, "strides", 1),
    ],
)
def test_lists_of_another_length_are_refused(
    given: dict[str, Any], name: str, n_expected: int
) -> None:
    """The problem names the key, what was expected and what was given."""
    problems = problems_of(**given)
    assert set(problems) == {name}
    assert problems[name].startswith(f"expected {n_expected} values for ")
    assert problems[name].endswith(f"got {len(given[name])}")


def test_output_is_images_by_classes(variant: Any) -> None:
    """Logits are (B, U)."""
    assert variant(images()).shape == (4, 10)


def test_the_number_of_classes_is_the_data_s(make: Build) -> None:
    """U comes from the data."""
    assert make("Tiny10", n_units=7, width=2)(images(2, (3, 32, 32))).shape == (2, 7)


# --- the function -----------------------------------------------------------------


def test_tiny10_and_plain_8_plus_2_of_one_width_are_one_network(make: Build) -> None:
    """At equal width Tiny10 and PlainN with n = 1 give equal outputs."""
    keys = {"img_shape": [3, 12, 12], "width": 4}
    tiny, plain = (make(model, **keys).eval() for model in ("Tiny10", "PlainN"))
    with torch.no_grad():
        assert torch.equal(tiny(images()), plain(images()))


def test_smallnet_agrees_with_the_formula(make: Build) -> None:
    """Blocks are conv, norm, ReLU; then linear, leaky ReLU, linear."""
    model = make("SmallNet", **SMALL_NET).double().eval()
    generator = torch.Generator().manual_seed(1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                t.copy_(torch.rand(t.shape, generator=generator) + 0.2)
    x = images().double().numpy()
    for conv, norm in zip(convolutions(model), norms, strict=True):
        x = loop_convolution(x, conv)
        w, b, mean, var = (
            t.detach().numpy()[:, None, None]
            for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * w + b, 0)
    for linear in (model.hidden, model.logits):
        x = x.reshape(len(x), -1) @ linear.weight.detach().numpy().T
        x += linear.bias.detach().numpy()
        x = np.where(x > 0, x, 0.01 * x) if linear is model.hidden else x
    with torch.no_grad():
        np.testing.assert_allclose(model(images().double()).numpy(), x, rtol=1e-10)


def loop_convolution(x: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    """A convolution by loops over output positions."""
    (k, _), (stride, _), pad = conv.kernel_size, conv.stride, int(conv.padding[0])
    kernels, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    side = (padded.shape[2] - k) // stride + 1
    out = np.empty((len(x), len(kernels), side, side))
    for r in range(side):
        for c in range(side):
            part = padded[
                :, :, r * stride : r * stride + k, c * stride : c * stride + k
            ]
            out[:, :, r, c] = np.einsum("nikl,oikl->no", part, kernels) + bias
    return out


def test_collapsed_stacks_give_equal_outputs(make: Build) -> None:
    """Replacing every stack by its one convolution leaves eval output unchanged."""
    keys = SMALL_NET | {"ksizes": [5, 4], "stackconvs": True}
    model = make("SmallNet", **keys).double().eval()
    x = images().double()
    with torch.no_grad():
        before = model(x)
        for block in model.blocks:
            if isinstance(block, nn.Sequential):
                assert isinstance(block[0], LinearStackedConv2d)
                block[0] = block[0].collapse()
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("Tiny10", (8, 0)), ("PlainN", (8, 0)), ("AlexNet", (5, 2)), ("SmallNet", (2, 0))],
)
@pytest.mark.parametrize("bn_moment", [0.1, 0.7])
def test_norms_have_the_reference_s_constants(
    make: Build, model: str, expected: tuple[int, int], bn_moment: float
) -> None:
    """Norm eps is 1e-5, momentum the key bn_moment; without bnorm there is none."""
    kinds = (nn.BatchNorm2d, nn.BatchNorm1d)
    net = make(model, **SMALLEST[model], bn_moment=bn_moment)
    norms = [m for m in net.modules() if isinstance(m, kinds)]
    assert tuple(sum(isinstance(m, k) for m in norms) for k in kinds) == expected
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, bn_moment)}
    bare = make(model, **SMALLEST[model], bnorm=False)
    assert not any(isinstance(m, kinds) for m in bare.modules())


def explicit_response_norm(x: np.ndarray) -> np.ndarray:
    """x / (2 + 1e-4 Σ x²)^0.75 over five neighbouring channels."""
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        neighbours = x[:, max(0, c - 2) : c + 3]
        out[:, c] = x[:, c] / (2 + 1e-4 * (neighbours**2).sum(1)) ** 0.75
    return out


def alexnet_by_hand(model: Any, x: Tensor, bnorm: bool, locrespnorm: bool) -> Tensor:
    """Logits of AlexNet in evaluation, from its tensors in order."""
    tensors = iter(model.state_dict().values())

    def take(n: int) -> list[Tensor]:
        return [next(tensors) for _ in range(n)]

    def normed(y: Tensor) -> Tensor:
        if not bnorm:
            return y
        w, b, mean, var, _ = (t.view(1, -1, *[1] * (y.dim() - 2)) for t in take(5))
        return (y - mean) / (var + 1e-5).sqrt() * w + b

    for i, (stride, padding) in enumerate([(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]):
        x = normed(F.conv2d(x, *take(2), stride=stride, padding=padding)).relu()
        if locrespnorm and i < 2:
            x = torch.from_numpy(explicit_response_norm(x.numpy()))
        if i in (0, 1, 4):
            x = F.max_pool2d(x, 3, 2)
    x = F.adaptive_avg_pool2d(x, 6).flatten(1)
    for _ in range(2):
        x = normed(F.linear(x, *take(2))).relu()
    return F.linear(x, *take(2))


@pytest.mark.parametrize("locrespnorm", [False, True])
@pytest.mark.parametrize("bnorm", [True, False])
def test_alexnet_agrees_with_the_formula(
    make: Build, bnorm: bool, locrespnorm: bool
) -> None:
    """In float64 it is the paper's network, response norm and all."""
    keys = {"img_shape": [3, 140, 240], "mid_dims": 5}
    model = make("AlexNet", bnorm=bnorm, locrespnorm=locrespnorm, **keys)
    model = model.double().eval()
    randomise(model)
    x = 20 * images(2, (3, 140, 240)).double()
    with torch.no_grad():
        expected = alexnet_by_hand(model, x, bnorm, locrespnorm)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_locrespnorm_changes_outputs_but_not_the_count(make: Build) -> None:
    """It has no parameters, no buffers, and another function."""
    with_norm, without = (
        make("AlexNet", **ALEX_NET, locrespnorm=value).eval() for value in (True, False)
    )
    a, b = with_norm.state_dict(), without.state_dict()
    assert [t.shape for t in a.values()] == [t.shape for t in b.values()]
    assert all(map(torch.equal, a.values(), b.values()))
    with torch.no_grad():
        assert not torch.allclose(with_norm(images()), without(images()))


def names_of(layers: list[nn.Module]) -> list[Any]:
    """Kinds of layers; of dropout its probability."""
    return [m.p if isinstance(m, Dropout) else type(m).__name__ for m in layers]


def test_order_of_alexnet(make: Build) -> None:
    """Response norm after ReLU before pooling; dropout before each hidden linear."""
    keys = {"img_shape": [3, 63, 63], "mid_dims": 4, "locrespnorm": True}
    model = make("AlexNet", drop_ps=[0.25, 0.5], **keys)
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    expected = [*block, "LocalResponseNorm", "MaxPool2d"] * 2
    expected += [*block * 3, "MaxPool2d", "AdaptiveAvgPool2d"]
    expected += [0.25, *hidden, 0.5, *hidden, "Linear"]
    assert names_of(executed(model, images(2, (3, 63, 63)))) == expected


def test_order_of_smallnet(make: Build) -> None:
    """Dropout after each convolution's ReLU and after the hidden linear layer."""
    model = make("SmallNet", **SMALL_NET, drop_ps=[0.1, 0.2, 0.3])
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    expected = [*block, 0.1, *block, 0.2, "Linear", "LeakyReLU", 0.3, "Linear"]
    assert names_of(executed(model, images())) == expected


@pytest.mark.parametrize("n_shakes", [1, 2])
def test_collapsing_alexnet_leaves_its_function(make: Build, n_shakes: int) -> None:
    """Stacks of every branch equal their one convolution in evaluation."""
    keys = {"img_shape": [3, 63, 31], "mid_dims": 5, "n_shakes": n_shakes}
    model = make("AlexNet", **keys, stackconvs=True, locrespnorm=True)
    model = model.double().eval()
    randomise(model)
    stacks = [m for m in model.modules() if isinstance(m, LinearStackedConv2d)]
    assert len(stacks) == 2 * n_shakes
    x = images(2, (3, 63, 31)).double()
    with torch.no_grad():
        before = model(x)
        collapse_stacks(model)
        torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
    assert len(convolutions(model)) == 5 * n_shakes


# --- Shake-Shake ------------------------------------------------------------------


def shakes(model: nn.Module) -> list[ShakeShake]:
    """All Shake-Shake layers in order."""
    return [module for module in model.modules() if isinstance(module, ShakeShake)]


def whole_convolutions(model: nn.Module) -> list[Any]:
    """Convolutions and stacks in order, each whole."""
    inner = {
        id(conv)
        for stack in model.modules()
        if isinstance(stack, LinearStackedConv2d)
        for conv in stack.convs
    }
    kinds = (nn.Conv2d, LinearStackedConv2d)
    return [m for m in model.modules() if isinstance(m, kinds) and id(m) not in inner]


def geometry(conv: Any) -> Any:
    """Kind, kernels, strides, paddings, channels and biases."""
    parts = conv.convs if isinstance(conv, LinearStackedConv2d) else [conv]
    return type(conv), [
        (
            c.in_channels,
            c.out_channels,
            c.kernel_size,
            c.stride,
            c.padding,
            c.bias is None,
        )
        for c in parts
    ]


@pytest.fixture(params=[(m, s) for m in MODELS for s in (False, True)], ids=str)
def shaken(request: pytest.FixtureRequest, make: Build) -> tuple[Any, Any]:
    """Each model without and with two branches, plain and stacked."""
    model, stackconvs = request.param
    keys = {**SMALLEST[model], "stackconvs": stackconvs}
    return make(model, **keys), make(model, **keys, n_shakes=2)


@pytest.mark.parametrize("model", MODELS)
def test_one_shake_is_none(make: Build, model: str) -> None:
    """n_shakes 1 gives the state and outputs of a model without the key."""
    usual, one = (
        make(model, **SMALLEST[model]),
        make(model, **SMALLEST[model], n_shakes=1),
    )
    assert shakes(one) == []
    a, b = usual.state_dict(), one.state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)
    with torch.no_grad():
        assert torch.equal(usual.train()(images()), one.train()(images()))


def test_only_convolutions_are_wrapped(shaken: tuple[Any, Any]) -> None:
    """Each is, with all it is of; norms and activations stay outside, and single."""
    plain, shaky = shaken
    expected = [geometry(conv) for conv in whole_convolutions(plain)]
    found = [[geometry(branch) for branch in one.branches] for one in shakes(shaky)]
    assert found == [[one, one] for one in expected]
    assert len(whole_convolutions(shaky)) == 2 * len(expected)
    outside = (nn.BatchNorm2d, nn.BatchNorm1d, nn.Linear, nn.ReLU, nn.MaxPool2d)
    for kind in outside:
        numbers = [sum(isinstance(m, kind) for m in net.modules()) for net in shaken]
        assert numbers[0] == numbers[1]


def test_branches_are_initialised_independently(shaken: tuple[Any, Any]) -> None:
    """No branch is a copy of another, weights or biases."""
    for layer in shakes(shaken[1]):
        one, other = layer.branches
        pairs = list(zip(one.parameters(), other.parameters(), strict=True))
        assert pairs
        assert not any(torch.equal(a, b) for a, b in pairs)


def test_shaking_is_random_in_training_only(shaken: tuple[Any, Any]) -> None:
    """Each generator has its own mixture; evaluation needs none."""
    _, model = shaken
    outputs = []
    with torch.no_grad():
        for seed in (1, 1, 2):
            attach(model, seed)
            model.train()
            for module in model.modules():  # so that only the shakes differ
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.eval()
            outputs.append((model(images()), model.eval()(images())))
    (one, calm), (again, calm_again), (other, calm_other) = outputs
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(calm, calm_again)
    assert torch.equal(calm, calm_other)
    assert not torch.equal(one, calm)


def test_equal_images_are_shaken_apart(shaken: tuple[Any, Any]) -> None:
    """Every image of a batch has its own mixture."""
    layer = shakes(shaken[1])[0].train()
    with torch.no_grad():
        mixed = layer(images()[:1].repeat(3, 1, 1, 1))
    assert not torch.allclose(mixed[0], mixed[1])
    assert not torch.allclose(mixed[1], mixed[2])


def test_equal_branches_are_the_plain_model(shaken: tuple[Any, Any]) -> None:
    """With one set of weights in every branch no mixture makes a difference."""
    plain, shaky = (net.double() for net in shaken)
    pairs = zip(whole_convolutions(plain), shakes(shaky), strict=True)
    for conv, layer in pairs:
        for branch in layer.branches:
            branch.load_state_dict(conv.state_dict())
    kinds = (nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    layers = [[m for m in net.modules() if isinstance(m, kinds)] for net in shaken]
    for a, b in zip(*layers, strict=True):
        b.load_state_dict(a.state_dict())
    x = images().double()
    with torch.no_grad():
        for mode in (True, False):
            a, b = plain.train(mode)(x), shaky.train(mode)(x)
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


# --- rules for every model --------------------------------------------------------


def test_eval_twice_is_equal(variant: Any) -> None:
    """Evaluation is deterministic."""
    variant.eval()
    with torch.no_grad():
        assert torch.equal(variant(images()), variant(images()))


def test_sample_0_does_not_depend_on_the_batch(variant: Any) -> None:
    """In evaluation an image's logits are the same alone and among others."""
    variant.eval()
    with torch.no_grad():
        alone, among = variant(images()[:1]), variant(images())
    torch.testing.assert_close(alone[0], among[0], rtol=0, atol=1e-6)


def test_every_parameter_gets_a_finite_gradient(variant: Any) -> None:
    """After one training step no gradient is missing, NaN or infinite."""
    optimizer = torch.optim.Adam(variant.parameters(), lr=0.01)
    F.cross_entropy(variant.train()(images()), torch.arange(4)).backward()
    optimizer.step()
    for name, parameter in variant.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert torch.isfinite(parameter).all(), name
        assert parameter.dim() == 1 or parameter.grad.any(), name


def test_state_dict_holds_only_architecture(variant: Any) -> None:
    """A state dict has tensors only, of shapes that no batch enters."""
    before = {name: t.shape for name, t in variant.state_dict().items()}
    variant.train()(images(4))
    variant.eval()(images(3))
    after = variant.state_dict()
    assert {name: t.shape for name, t in after.items()} == before
    assert all(isinstance(tensor, Tensor) for tensor in after.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_save_and_load_gives_equal_outputs(make: Build, name: str) -> None:
    """A model built with another seed and loaded strictly is the saved one."""
    kind, keys = VARIANTS[name]
    model, other = (make(kind, seed, **keys) for seed in (0, 1))
    model.train()(images())
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), other.eval()(images()))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_seed_decides_the_initial_state(make: Build, name: str) -> None:
    """Equal seeds give equal states, the next seed another."""
    kind, keys = VARIANTS[name]
    one, again, other = (make(kind, seed, **keys).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_double_precision_is_kept(variant: Any) -> None:
    """In float64 outputs and gradients are float64, and outputs about the same."""
    with torch.no_grad():
        single = variant.eval()(images())
    variant.double()
    double = variant(images().double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)
    variant.train()(images().double()).sum().backward()
    assert {p.grad.dtype for p in variant.parameters()} == {torch.float64}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_is_a_function_of_its_state(make: Build, name: str, mode: bool) -> None:
    """Called with another's state it gives the other's output and stays as it was."""
    kind, keys = VARIANTS[name]
    model, other = (make(kind, seed, **keys).train(mode) for seed in (0, 1))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = {name: t.clone() for name, t in other.state_dict().items()}
    outputs = []
    for call in (
        lambda: torch.func.functional_call(model, state, (images(),)),
        lambda: other(images()),
    ):
        attach(model, 3)
        attach(other, 3)
        with torch.no_grad():
            outputs.append(call())
    assert torch.equal(*outputs)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ran = other.state_dict()
    assert all(torch.equal(state[name], ran[name]) for name in state)


@pytest.mark.parametrize(
    ("kind", "place"),
    [("SmallNet", place) for place in (None, 0, 1, 2)]
    + [("AlexNet", place) for place in (None, 0, 1)],
)
def test_each_dropout_acts_in_training_only(
    make: Build, kind: str, place: int | None
) -> None:
    """Every entry of drop_ps alone makes training vary, and leaves evaluation."""
    n_places = {"SmallNet": 3, "AlexNet": 2}[kind]
    drop_ps = [0.5 if i == place else 0.0 for i in range(n_places)]
    model = make(kind, **SMALLEST[kind], drop_ps=drop_ps)
    usual = make(kind, **SMALLEST[kind])
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), usual.eval()(images()))
        model.train()
        varies = not torch.equal(model(images()), model(images()))
    assert varies is (place is not None)


LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Tiny10": ("Tiny10", {"width": 16}),
    "PlainN": ("PlainN", {"width": 16}),
    "AlexNet": ("AlexNet", {"mid_dims": 32}),
    "AlexNet locrespnorm": ("AlexNet", {"mid_dims": 32, "locrespnorm": True}),
    "SmallNet": ("SmallNet", {"chans": [8, 8], "ksizes": [5, 3], "mid_dims": 32}),
    "SmallNet stacked": (
        "SmallNet",
        {"chans": [8, 8], "ksizes": [5, 3], "mid_dims": 32, "stackconvs": True},
    ),
}


@pytest.mark.parametrize(("n_shakes", "share"), [(1, 0.8), (2, 1.0)])
@pytest.mark.parametrize("name", LEARNERS)
def test_the_loss_of_fixed_samples_falls(
    make: Build, name: str, n_shakes: int, share: float
) -> None:
    """30 Adam steps at 1e-3 on 64 digits lower the training loss by ≥ 20 %.

    With two branches it falls.
    """
    with h5py.File(DIGITS) as file:
        x = torch.from_numpy(file["train/images"][:64]).float() / 255 - 0.3
        y = torch.from_numpy(file["train/labels"][:64])
    model, keys = LEARNERS[name]
    net = make(model, img_shape=[1, 16, 16], n_shakes=n_shakes, **keys).train()
    attach(net, 5)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(31):
        loss = F.cross_entropy(net(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[30] < share * losses[0]


def test_every_model_learns() -> None:
    """No model of the library is left out above."""
    assert {model for model, _ in LEARNERS.values()} == set(MODELS)
