"""Retina models, each class on its own: structure, function, maps, causality."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal, stats
from torch import Tensor, nn

from gridrun.config import complete
from gridrun.nn import (
    AbsBatchNorm1d,
    AbsBatchNorm2d,
    FlatBatchNorm,
    LinearStackedConv2d,
    collapse_stacks,
)
from gridrun.plugins import libraries
from gridrun.training.data import DataInfo
from gridrun.training.models import build_model
from torchdeepretina import datas
from torchdeepretina.trainer import RetinaTrainer

LIBRARY = libraries()["torchdeepretina"]
SMALL: dict[str, Any] = {
    "img_shape": [6, 14, 14],
    "chans": [3, 4],
    "ksizes": [5, 4, 3],
    "noise": 0.1,
}
CENTERS = [(5, 7), (7, 6)]
PLACES = [(1, 3), (3, 2)]  # field of 10 pixels: centres less 4
MAP_MODELS = ("BNCNN", "LinearStackedBNCNN", "VaryModel")
STACKED = (*MAP_MODELS, "RetinotopicModel")
Build = Callable[..., Any]


@pytest.fixture(scope="module")
def make(build: Build) -> Build:
    """Function (model, seed, **keys) that builds a small retina model of 2 cells."""

    def small(model: str, seed: int = 0, **keys: Any) -> Any:
        given = {**SMALL, **keys}
        centers = given.pop("centers", CENTERS)
        return build("torchdeepretina", model, 2, centers, seed, **given)

    return small


def windows(n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    """n normalised windows, equal at every call."""
    generator = torch.Generator().manual_seed(8)
    return torch.randn(n, 6, 14, 14, generator=generator).to(dtype)


def disturb(model: nn.Module, signed: bool = False) -> None:
    """Give norms, biases and one-hot weights values that are not their initial ones.

    Signed: every second scale of the norms and of the output is negative.
    """
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or name.endswith("mask"):
                continue  # masks are ones, until pruned
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                if signed and name.endswith(("norm.weight", "nonlinearity.a")):
                    tensor[::2] *= -1
            elif name == "onehot.weight":
                tensor.copy_(torch.randn(tensor.shape, generator=generator))


def array(tensor: Any) -> np.ndarray:
    """Values as numpy has them."""
    values: np.ndarray = tensor.detach().numpy()
    return values


# --- structure --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "bnorm_d", "kinds"),
    [
        ("BNCNN", 1, [nn.BatchNorm1d] * 3),
        ("BNCNN", 2, [nn.BatchNorm2d] * 2 + [nn.BatchNorm1d]),
        ("LinearStackedBNCNN", 1, [AbsBatchNorm1d] * 3),
        ("LinearStackedBNCNN", 2, [AbsBatchNorm2d] * 2 + [AbsBatchNorm1d]),
        ("VaryModel", 1, [AbsBatchNorm1d] * 3),
        ("VaryModel", 2, [AbsBatchNorm2d] * 2 + [AbsBatchNorm1d]),
        ("RetinotopicModel", 1, [AbsBatchNorm1d] * 2 + [AbsBatchNorm2d]),
        ("RetinotopicModel", 2, [AbsBatchNorm2d] * 3),
        ("LN", 1, []),
        ("McIntosh2016", 1, []),
    ],
)
def test_batch_norm_follows_each_linear_map_of_its_models(
    make: Build, model: str, bnorm_d: int, kinds: list[type]
) -> None:
    """Each class has its norms, with eps 1e-3 and momentum bn_moment, or none."""
    keys = {"ksizes": [5, 4]} if model == "McIntosh2016" else {}
    built = make(model, bnorm=True, bnorm_d=bnorm_d, bn_moment=0.3, **keys)
    norms: list[Any] = [
        module
        for module in built.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    assert [type(norm) for norm in norms] == kinds
    n_flat = sum(isinstance(m, FlatBatchNorm) for m in built.modules())
    assert n_flat == (2 if kinds and bnorm_d == 1 else 0)
    for norm in norms:
        assert (norm.eps, norm.momentum) == (1e-3, 0.3)
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


@pytest.mark.parametrize("model", STACKED)
def test_without_bnorm_no_norm_is_left(make: Build, model: str) -> None:
    """bnorm false takes the ganglion layer's too."""
    kinds = [type(module).__name__ for module in make(model, bnorm=False).modules()]
    assert not [kind for kind in kinds if "BatchNorm" in kind]


@pytest.mark.parametrize("gc_bias", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stackconvs", [True, False])
@pytest.mark.parametrize("model", ["VaryModel", "BNCNN", "RetinotopicModel"])
def test_biases_are_where_the_keys_say(
    make: Build, model: str, stackconvs: bool, bias: bool, gc_bias: bool
) -> None:
    """Hidden convolutions follow bias, at the end of a stack; the last map gc_bias."""
    for convgc in (True, False):
        keys = {"convgc": convgc, "stackconvs": stackconvs}
        built = make(model, bias=bias, gc_bias=gc_bias, **keys)
        names = {name for name, _ in built.named_parameters() if "norm" not in name}
        last = "conv.convs.1.bias" if stackconvs else "conv.bias"
        expected = {f"layers.{i}.{last}" for i in range(2) if bias}
        if gc_bias:
            is_map = convgc or model == "RetinotopicModel"
            expected.add("ganglion.bias" if is_map else "ganglion.1.bias")
        assert {name for name in names if name.endswith("bias")} == expected


@pytest.mark.parametrize(
    ("keys", "has_bias"),
    [
        ({}, False),
        ({"bnorm": False}, True),
        ({"gc_bias": True}, True),
        ({"gc_bias": False, "bnorm": False}, False),
    ],
)
def test_the_ganglion_bias_follows_the_norm(
    make: Build, keys: dict[str, Any], has_bias: bool
) -> None:
    """gc_bias null is true exactly when no batch norm follows."""
    dense = make("VaryModel", convgc=False, **keys).ganglion[1]
    convolutional = make("VaryModel", convgc=True, **keys).ganglion
    retinotopic = make("RetinotopicModel", **keys).ganglion
    assert (dense.bias is not None) is has_bias
    assert (convolutional.bias is not None) is has_bias
    assert (retinotopic.bias is not None) is has_bias


@pytest.mark.parametrize("model", LIBRARY.model_names)
def test_the_ganglion_layer_is_never_stacked(make: Build, model: str) -> None:
    """Only hidden convolutions are stacks, and only where stackconvs is read."""
    built = make(model, convgc=True, stackconvs=True)
    stacks = [n for n, m in built.named_modules() if isinstance(m, LinearStackedConv2d)]
    assert stacks == (["layers.0.conv", "layers.1.conv"] if model in STACKED else [])


@pytest.mark.parametrize("model", ["BNCNN", "RetinotopicModel", "LN"])
def test_weights_start_as_pytorch_has_them(make: Build, model: str) -> None:
    """Convolutions and linear maps are uniform within 1/√fan-in, biases too."""
    keys: dict[str, Any] = {"img_shape": [8, 20, 20], "chans": [8, 8]}
    built = make(model, **keys, stackconvs=False, gc_bias=True)
    for module in built.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            found = module.weight.abs().max().item()
            assert 0.95 * bound < found <= bound
            assert module.bias is not None
            assert 0 < module.bias.abs().max() <= bound


def test_mcintosh_starts_normal_with_s_d_0_05(build: Build) -> None:
    """Weights are N(0, .05) in every layer, biases 0, the softplus .2 and 5."""
    model = build("torchdeepretina", "McIntosh2016", 5)
    for layer in (model.layers[0].conv, model.layers[1].conv, model.ganglion[1]):
        weights = array(layer.weight).ravel()
        assert stats.kstest(weights, stats.norm(0, 0.05).cdf).pvalue > 1e-3
        assert (layer.bias == 0).all()
    assert model.nonlinearity.a.tolist() == pytest.approx([0.2] * 5)
    assert model.nonlinearity.b.tolist() == [5] * 5


# --- the function -----------------------------------------------------------------


def correlate(maps: np.ndarray, conv: Any) -> np.ndarray:
    """Valid convolution as networks have it, by scipy."""
    out = [
        sum(
            signal.correlate2d(m, k, "valid") for m, k in zip(maps, kernel, strict=True)
        )
        for kernel in array(conv.weight)
    ]
    biases = np.zeros(len(out)) if conv.bias is None else array(conv.bias)
    return np.stack(out) + biases[:, None, None]


def normalised(x: np.ndarray, norm: Any, signed: bool = False) -> np.ndarray:
    """Batch norm by running statistics over the first axis of x, of |weight|."""
    weight, bias, mean, var = (
        array(t).reshape(-1, *[1] * (x.ndim - 1))
        for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight if signed else np.abs(weight)
    return (x - mean) / np.sqrt(var + 1e-3) * scale + bias


def hidden(
    model: Any, x: np.ndarray, bnorm_d: int | None, signed: bool = False
) -> np.ndarray:
    """Maps after the hidden blocks: convolution, norm, ReLU."""
    for block in model.layers:
        x = correlate(x, block.conv)
        if bnorm_d == 1:
            x = normalised(x.ravel(), block.norm.norm, signed).reshape(x.shape)
        elif bnorm_d == 2:
            x = normalised(x, block.norm, signed)
        x = np.maximum(x, 0)
    return x


def softplus(x: np.ndarray) -> np.ndarray:
    """ln(1 + e^x)."""
    return np.logaddexp(0, x)


def assert_outputs(model: Any, reference: Callable[[np.ndarray], np.ndarray]) -> None:
    """The model gives what the reference does, window for window."""
    with torch.no_grad():
        found = model(windows(2)).numpy()
    expected = [reference(x) for x in windows(2).numpy()]
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("convgc", [False, True])
@pytest.mark.parametrize("bnorm_d", [1, 2])
@pytest.mark.parametrize("name", ["BNCNN", "VaryModel"])
def test_forward_agrees_with_scipy(
    make: Build, name: str, convgc: bool, bnorm_d: int
) -> None:
    """Blocks are conv, norm, ReLU; then ganglion layer, norm, softplus.

    The norm of BNCNN is ordinary, that of the others takes the scale's magnitude.
    """
    model = make(name, stackconvs=False, convgc=convgc, bnorm_d=bnorm_d)
    model.double().eval()
    disturb(model, signed=True)
    signed = name == "BNCNN"

    def reference(x: np.ndarray) -> np.ndarray:
        maps = hidden(model, x, bnorm_d, signed)
        if convgc:
            grid = correlate(maps, model.ganglion)
            raw = np.array([grid[u, r, c] for u, (r, c) in enumerate(PLACES)])
        else:
            raw = array(model.ganglion[1].weight) @ maps.ravel()
        return softplus(normalised(raw, model.norm, signed))

    assert_outputs(model, reference)


@pytest.mark.parametrize("is_rectified", [True, False])
@pytest.mark.parametrize("bnorm_d", [1, 2, None])
def test_retinotopic_forward_agrees_with_scipy(
    make: Build, bnorm_d: int | None, is_rectified: bool
) -> None:
    """The map has one channel for each cell, its norm and softplus; then the mean."""
    keys: dict[str, Any] = {"bnorm": False} if bnorm_d is None else {"bnorm_d": bnorm_d}
    keys |= {"softplus": is_rectified, "lossfxn": "MSELoss"}
    model = make("RetinotopicModel", stackconvs=False, gc_bias=True, **keys)
    model.double().eval()
    disturb(model, signed=True)
    sizes = np.abs(array(model.onehot.weight)) + 1e-7
    p = sizes / sizes.sum(1, keepdims=True)

    def reference(x: np.ndarray) -> np.ndarray:
        grid = correlate(hidden(model, x, bnorm_d), model.ganglion)
        if bnorm_d is not None:
            grid = normalised(grid, model.norm)
        rates = softplus(grid) if is_rectified else grid
        means: np.ndarray = (p * rates.reshape(2, -1)).sum(1)
        return means

    assert_outputs(model, reference)


@pytest.mark.parametrize("gc_bias", [True, False])
@pytest.mark.parametrize("is_rectified", [True, False])
def test_ln_forward_agrees_with_numpy(
    make: Build, is_rectified: bool, gc_bias: bool
) -> None:
    """One linear filter of the whole window for each cell, then softplus."""
    keys = {"softplus": is_rectified, "lossfxn": "MSELoss", "gc_bias": gc_bias}
    model = make("LN", **keys).double()

    def reference(x: np.ndarray) -> np.ndarray:
        layer = model.ganglion[1]
        raw = np.tensordot(array(layer.weight).reshape(2, 6, 14, 14), x, 3)
        raw = raw + (array(layer.bias) if gc_bias else 0)
        return softplus(raw) if is_rectified else raw

    assert_outputs(model, reference)


@pytest.mark.parametrize("keys", [{}, {"softplus": False}, {"bias": False}])
def test_mcintosh_forward_agrees_with_scipy(make: Build, keys: dict[str, Any]) -> None:
    """Two blocks without norm, a dense layer, then |a| softplus(b raw)."""
    model = make("McIntosh2016", ksizes=[5, 4], **keys).double().eval()
    disturb(model, signed=True)

    def reference(x: np.ndarray) -> np.ndarray:
        layer = model.ganglion[1]
        maps = hidden(model, x, None).ravel()
        raw = array(layer.weight) @ maps + array(layer.bias)
        a, b = (array(p) for p in (model.nonlinearity.a, model.nonlinearity.b))
        return np.abs(a) * softplus(b * raw)

    assert_outputs(model, reference)


@pytest.mark.parametrize("convgc", [False, True])
@pytest.mark.parametrize("bnorm_d", [1, 2])
def test_bncnn_is_vary_model_while_scales_are_positive(
    make: Build, convgc: bool, bnorm_d: int
) -> None:
    """Equal weights give equal outputs, in training and evaluation."""
    keys = {"stackconvs": False, "noise": 0.0, "convgc": convgc, "bnorm_d": bnorm_d}
    signed, absolute = (make(n, **keys).double() for n in ("BNCNN", "VaryModel"))
    disturb(signed)
    absolute.load_state_dict(signed.state_dict())
    with torch.no_grad():
        for is_training in (True, False):
            one, other = (m.train(is_training) for m in (signed, absolute))
            torch.testing.assert_close(
                one(windows()), other(windows()), rtol=1e-12, atol=1e-12
            )


@pytest.mark.parametrize("place", ["layers.0.norm", "layers.1.norm", "norm"])
def test_the_scale_of_bncnn_has_a_sign(make: Build, place: str) -> None:
    """A negative scale of any norm changes its output, and none of the others'."""
    for name, has_sign in (
        ("BNCNN", True),
        ("LinearStackedBNCNN", False),
        ("VaryModel", False),
        ("RetinotopicModel", False),
    ):
        model = make(name, bnorm_d=2).double().eval()
        disturb(model)
        with torch.no_grad():
            before = model(windows())
            model.get_submodule(place).weight.neg_()
            assert torch.equal(model(windows()), before) is not has_sign


@pytest.mark.parametrize("convgc", [False, True])
def test_linear_stacked_bncnn_is_a_vary_model_of_three_layers(
    make: Build, convgc: bool
) -> None:
    """Equal weights give equal outputs bit for bit."""
    names = ("LinearStackedBNCNN", "VaryModel")
    one, other = (make(name, seed, convgc=convgc) for seed, name in enumerate(names))
    disturb(one, signed=True)
    other.load_state_dict(one.state_dict())
    x = windows(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(one.eval()(x), other.eval()(x))


def test_running_statistics_move_by_bn_moment(make: Build) -> None:
    """After one step statistics have moved by m towards the batch's, per unit."""
    model = make("VaryModel", bn_moment=0.25, stackconvs=False, noise=0.0).train()
    x = windows(dtype=torch.float32)
    with torch.no_grad():
        model(x)
        conv, norm = model.layers[0].conv, model.layers[0].norm.norm
        values = conv(x).flatten(1).double()
    expected_mean = 0.25 * values.mean(0)
    expected_var = 0.75 + 0.25 * values.var(0, correction=1)
    torch.testing.assert_close(
        norm.running_mean.double(), expected_mean, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        norm.running_var.double(), expected_var, rtol=1e-5, atol=1e-6
    )
    assert int(norm.num_batches_tracked) == 1


def test_noise_is_added_after_the_norm(make: Build) -> None:
    """Units far above zero vary by the norm's variance of 1 plus the noise's of 4."""
    block = make("VaryModel", noise=2.0, stackconvs=False).train().layers[0]
    x = torch.randn(2000, 6, 14, 14, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        block.norm.norm.bias.fill_(100.0)
        variance = block(x).double().var(0).mean().item()
    assert variance == pytest.approx(5, rel=0.02)


def test_noise_of_mcintosh_is_added_before_the_relu(make: Build) -> None:
    """Units at 0 give the mean of rectified noise, σ/√(2π), never a negative."""
    model = make("McIntosh2016", ksizes=[5, 4], noise=2.0).train()
    with torch.no_grad():
        y = model.layers[0](torch.zeros(2000, 6, 14, 14))
    assert y.min() == 0
    assert y.mean().item() == pytest.approx(2 / np.sqrt(2 * np.pi), rel=0.02)


# --- stacks -----------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{}, {"convgc": True, "bnorm_d": 2, "bias": False}])
@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
def test_collapsed_stacks_give_equal_outputs(
    make: Build, name: str, keys: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    """One convolution in place of each stack leaves evaluation unchanged.

    What is left is the plain model: its names, its shapes, its outputs.
    """
    stacked = {"stackconvs": True, "drop_p": 0.3, "ksizes": [7, 6, 3]}
    model = make(name, **stacked, **keys).to(dtype).eval()
    plain = "BNCNN" if name == "BNCNN" else "VaryModel"
    plain = name if name == "RetinotopicModel" else plain
    disturb(model)
    with torch.no_grad():
        before = model(windows(dtype=dtype))
        collapse_stacks(model)
        after = model(windows(dtype=dtype))
        assert not any(isinstance(m, LinearStackedConv2d) for m in model.modules())
        torch.testing.assert_close(after, before, rtol=tolerance, atol=tolerance / 10)
        other = make(plain, **stacked | {"stackconvs": False}, **keys).to(dtype).eval()
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(other(windows(dtype=dtype)), after)


# --- maps -------------------------------------------------------------------------


MAPPED: dict[str, dict[str, Any]] = {
    "norm per unit": {},
    "norm per channel": {"bnorm_d": 2},
    "no norm": {"bnorm": False},
    "log rate": {"softplus": False, "log_poisson": True},
}


@pytest.mark.parametrize("keys", MAPPED.values(), ids=MAPPED)
@pytest.mark.parametrize("name", MAP_MODELS)
def test_each_cell_reads_its_place_of_the_tiled_map(
    make: Build, name: str, keys: dict[str, Any]
) -> None:
    """tiled[:, u, r, c] is what cell u gives if centred on that place's field."""
    model = make(name, convgc=True, **keys).double().eval()
    disturb(model, signed=True)
    with torch.no_grad():
        tiled = model.tiled_forward(windows())
        assert tiled.shape == (5, 2, 5, 5)
        for unit, (row, column) in enumerate(PLACES):
            z = model(windows())[:, unit]
            torch.testing.assert_close(
                tiled[:, unit, row, column], z, rtol=1e-12, atol=0
            )
        for row, column in [(0, 0), (0, 4), (2, 1), (4, 3)]:
            centers = [(row + 4, column + 4)] * 2
            moved = make(name, convgc=True, centers=centers, **keys).double().eval()
            moved.load_state_dict(model.state_dict())
            torch.testing.assert_close(
                moved(windows()), tiled[:, :, row, column], rtol=1e-12, atol=0
            )


@pytest.mark.parametrize("keys", MAPPED.values(), ids=MAPPED)
def test_retinotopic_output_is_the_mean_of_its_map(
    make: Build, keys: dict[str, Any]
) -> None:
    """The probabilities' sum over the tiled map is the forward pass."""
    model = make("RetinotopicModel", rand_onehot=True, **keys).double().eval()
    disturb(model, signed=True)
    with torch.no_grad():
        tiled = model.tiled_forward(windows())
        assert tiled.shape == (5, 2, 5, 5)
        p = model.onehot.probabilities().view(2, 5, 5)
        expected = (p * tiled).sum((-2, -1))
        torch.testing.assert_close(model(windows()), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rand_onehot", [False, True])
def test_one_hot_weights_start_equal_or_random(make: Build, rand_onehot: bool) -> None:
    """rand_onehot false gives the map's mean, true U(0, 1) weights of the seed."""
    model = make("RetinotopicModel", rand_onehot=rand_onehot).double().eval()
    weight = model.onehot.weight
    with torch.no_grad():
        mean = model.tiled_forward(windows()).mean((2, 3))
        is_mean = torch.allclose(model(windows()), mean, rtol=1e-6)
    assert is_mean is not rand_onehot
    assert weight.shape == (2, 25)
    assert ((weight >= 0) & (weight < 1)).all()


def test_one_large_weight_reads_that_place(make: Build) -> None:
    """A one-hot weight of 1 among zeros makes the output the map's value there."""
    model = make("RetinotopicModel").double().eval()
    with torch.no_grad():
        model.onehot.weight.zero_()
        model.onehot.weight.view(2, 5, 5)[0, 1, 4] = 1
        model.onehot.weight.view(2, 5, 5)[1, 3, 0] = -1
        tiled = model.tiled_forward(windows())
        expected = torch.stack([tiled[:, 0, 1, 4], tiled[:, 1, 3, 0]], 1)
        torch.testing.assert_close(model(windows()), expected, rtol=1e-4, atol=1e-5)


SIDES = (21, 24)
KERNELS = [
    ("BNCNN", [5, 3, 3]),
    ("BNCNN", [3, 1, 7]),
    ("LinearStackedBNCNN", [7, 5, 1]),
    ("LinearStackedBNCNN", [5, 4, 4]),
    ("VaryModel", [5, 4, 3]),
    ("VaryModel", [9]),
    ("VaryModel", [3, 5, 5, 3]),
]


def last_convolution(block: Any) -> Any:
    """The convolution of a block that has its bias."""
    is_stack = isinstance(block.conv, LinearStackedConv2d)
    return block.conv.convs[-1] if is_stack else block.conv


@pytest.mark.parametrize(("name", "ksizes"), KERNELS)
def test_the_field_of_a_cell_is_centred_on_its_centre(
    make: Build, name: str, ksizes: list[int]
) -> None:
    """The input gradient spans the receptive field around the centre, no pixel more.

    At a border it is the nearest field that lies in the image.
    """
    field = 1 + sum(side - 1 for side in ksizes)
    before = (field - 1) // 2
    centers = [(10, 11), (11, 13), (0, 0), (20, 23), (3, 12), (10, 22)]
    for first in range(0, len(centers), 2):
        pair = centers[first : first + 2]
        keys: dict[str, Any] = {
            "img_shape": [3, *SIDES],
            "chans": [3] * (len(ksizes) - 1),
            "ksizes": ksizes,
            "convgc": True,
            "bnorm": False,
            "softplus": False,
            "lossfxn": "MSELoss",
            "centers": pair,
        }
        model = make(name, **keys).double().eval()
        with torch.no_grad():
            for block in model.layers:  # all ReLU are open
                last_convolution(block).bias += 9
        x = torch.zeros(1, 3, *SIDES, dtype=torch.float64, requires_grad=True)
        for unit, center in enumerate(pair):
            (gradient,) = torch.autograd.grad(model(x)[0, unit], x)
            expected = torch.zeros(SIDES, dtype=torch.bool)
            top, left = (
                min(max(at - before, 0), size - field)
                for at, size in zip(center, SIDES, strict=True)
            )
            expected[top : top + field, left : left + field] = True
            for frame in gradient[0]:
                assert torch.equal(frame.abs() > 1e-12 * frame.abs().max(), expected)


# --- notices ----------------------------------------------------------------------


def told(model: str, centers: list[tuple[int, int]] | None, **keys: Any) -> list[str]:
    """Notices of a small configuration for cells 7, 3, 9 and 4 of these centres."""
    given = {"exp_name": "e", "dataset": "d", "stim_type": "s", "batch_size": 2}
    given |= {"n_epochs": 1, "lr": 0.1, "model_type": model, **SMALL}
    given |= {"img_shape": [6, 14, 16], "convgc": True, **keys}
    hyps, problems = complete(given, LIBRARY.schema)
    assert hyps is not None, problems
    cells = [7, 3, 9, 4][: len(centers or [])]
    info = DataInfo(4, {"cells": cells}, {}, (), centers, notices=("of the data",))
    return list(RetinaTrainer.notices(hyps, info))


INSIDE = [(4, 4), (8, 10), (4, 10), (6, 7)]  # field of 10 in 14 × 16: 4–8, 4–10
BESIDE = [(4, 4), (3, 10), (6, 11), (8, 10)]


@pytest.mark.parametrize("name", MAP_MODELS)
def test_clipped_cells_are_noticed_by_number(name: str) -> None:
    """Cells whose field leaves the image are named as recorded, and only they."""
    data, clipped = told(name, BESIDE)
    assert data == "of the data"
    assert "3 (3, 10), 9 (6, 11)" in clipped
    assert "[5, 4, 3]" in clipped
    assert "10×10" in clipped
    assert "7 (" not in clipped
    assert "4 (" not in clipped


def test_a_clipped_cell_is_one_that_reads_beside_its_centre() -> None:
    """For every centre there is a notice exactly if the read field is not around it."""
    for row in range(14):
        for column in range(16):
            notices = told("VaryModel", [(row, column)])
            is_clipped = not (4 <= row <= 8 and 4 <= column <= 10)
            assert (len(notices) == 2) is is_clipped


@pytest.mark.parametrize("name", MAP_MODELS)
def test_cells_at_home_are_not_noticed(name: str) -> None:
    """With every field inside the image the data's own notices are all."""
    assert told(name, INSIDE) == ["of the data"]
    assert told(name, BESIDE, ksizes=[3, 3, 2]) == ["of the data"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *[(name, {"convgc": False}) for name in MAP_MODELS],
        *[("RetinotopicModel", {"convgc": convgc}) for convgc in (True, False)],
        *[("LN", {"convgc": convgc}) for convgc in (True, False)],
        ("McIntosh2016", {"convgc": True}),
    ],
)
@pytest.mark.parametrize("centers", [BESIDE, None])
def test_models_that_read_no_centres_notice_none(
    name: str, keys: dict[str, Any], centers: Any
) -> None:
    """Dense and retinotopic models clip nothing, whatever convgc says."""
    assert told(name, centers, **keys) == ["of the data"]


# --- causality --------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("model_type", ["LN", "VaryModel"])
def test_an_output_depends_on_its_window_alone(
    tmp_path: Path,
    write_recording: Any,
    retina_hyps: Any,
    model_type: str,
    split: str,
) -> None:
    """Any other frame leaves a sample's output as it was, bit for bit."""
    arrays = write_recording(tmp_path / "rec" / "movie.h5")
    hyps = retina_hyps(tmp_path, model_type=model_type)
    data = datas.open_data(hyps, torch.device("cpu"))
    torch.manual_seed(0)
    model = build_model(LIBRARY, hyps, data.info).eval()
    samples: Any = getattr(data, split)
    n_frames = len(arrays["test/stimulus" if split == "test" else "train/stimulus"])
    n_lags, n_samples = hyps.img_shape[0], len(samples)
    for i in (0, n_samples // 2, n_samples - 1):
        index = torch.tensor([i])
        # the last sample predicts the last bin, one after its window
        first = n_frames - n_lags - 1 - (n_samples - 1 - i)
        with torch.no_grad():
            before = model(samples.batch(index).inputs)
            for frame in range(n_frames):
                stimulus = samples.stimulus.clone()
                stimulus[frame] = 255 - stimulus[frame]
                changed = dataclasses.replace(samples, stimulus=stimulus)
                is_equal = torch.equal(model(changed.batch(index).inputs), before)
                assert is_equal is not (first <= frame < first + n_lags), frame


def test_the_future_is_not_in_the_file_s_past(
    tmp_path: Path, write_recording: Any, retina_hyps: Any
) -> None:
    """A test movie that differs from frame 20 on gives equal outputs before it."""
    hyps = retina_hyps(tmp_path, model_type="LN")
    path = tmp_path / "rec" / "movie.h5"
    arrays = write_recording(path)
    torch.manual_seed(0)
    frames = arrays["test/stimulus"].copy()
    frames[20:] = 255 - frames[20:]
    info = datas.inspect_data(hyps)
    model = build_model(LIBRARY, hyps, info).eval()
    outputs = []
    for changes in ({}, {"test/stimulus": frames}):
        write_recording(path, changes=changes)
        test = datas.open_data(hyps, torch.device("cpu")).test
        with torch.no_grad():
            outputs.append(model(test.batch(torch.arange(len(test))).inputs))
    last = 20 - hyps.img_shape[0]  # its window ends with frame 19
    assert torch.equal(outputs[0][: last + 1], outputs[1][: last + 1])
    assert not (outputs[0][last + 1 :] == outputs[1][last + 1 :]).all(1).any()
