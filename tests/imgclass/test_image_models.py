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
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import LinearStackedConv2d

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
}
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


@pytest.mark.parametrize("bn_moment", [0.1, 0.7])
def test_norms_have_the_reference_s_constants(make: Build, bn_moment: float) -> None:
    """Norm eps is 1e-5 and momentum the key bn_moment."""
    model = make("Tiny10", width=2, bn_moment=bn_moment)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 8
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, bn_moment)}


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


@pytest.mark.parametrize("place", [None, 0, 1, 2])
def test_each_dropout_acts_in_training_only(make: Build, place: int | None) -> None:
    """Every entry of drop_ps alone makes training vary, and leaves evaluation."""
    drop_ps = [0.5 if i == place else 0.0 for i in range(3)]
    model = make("SmallNet", **SMALL_NET, drop_ps=drop_ps)
    usual = make("SmallNet", **SMALL_NET)
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), usual.eval()(images()))
        model.train()
        varies = not torch.equal(model(images()), model(images()))
    assert varies is (place is not None)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("Tiny10", {"width": 16}),
        ("PlainN", {"width": 16}),
        ("SmallNet", {"chans": [8, 8], "ksizes": [5, 3], "mid_dims": 32}),
        (
            "SmallNet",
            {"chans": [8, 8], "ksizes": [5, 3], "mid_dims": 32, "stackconvs": True},
        ),
    ],
)
def test_the_loss_of_fixed_samples_falls(
    make: Build, model: str, keys: dict[str, Any]
) -> None:
    """30 Adam steps at 1e-3 on 64 digits lower the training loss by ≥ 20 %."""
    with h5py.File(DIGITS) as file:
        x = torch.from_numpy(file["train/images"][:64]).float() / 255 - 0.3
        y = torch.from_numpy(file["train/labels"][:64])
    net = make(model, img_shape=[1, 16, 16], **keys).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(31):
        loss = F.cross_entropy(net(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[30] < 0.8 * losses[0]
