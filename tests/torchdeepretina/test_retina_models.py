"""Retina models: counts, shapes, and what holds for every model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import LinearStackedConv2d
from torchdeepretina.models import VaryModel

GOLDEN = Path(__file__).parents[1] / "golden" / "parameter_counts.json"
COUNTS = {row["name"]: row for row in json.loads(GOLDEN.read_text())["torchdeepretina"]}
SMALL: dict[str, Any] = {
    "img_shape": [6, 14, 14],
    "chans": [3, 4],
    "ksizes": [5, 4, 3],
    "noise": 0.1,
}
CENTERS = [(5, 7), (7, 6)]
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "plain": {"stackconvs": False},
    "convgc": {"convgc": True, "bnorm_d": 2},
    "no norm": {"bnorm": False, "convgc": True},
    "dropout": {"drop_p": 0.2, "bias": False, "gc_bias": True},
    "one layer": {"chans": [], "ksizes": []},
    "log rate": {"softplus": False, "log_poisson": True},
}
Build = Callable[..., Any]


@pytest.fixture
def small(build: Build) -> Build:
    """Function that builds a small VaryModel."""

    def make(seed: int = 0, **keys: Any) -> Any:
        given = {**SMALL, **keys}
        return build("torchdeepretina", "VaryModel", 2, CENTERS, seed, **given)

    return make


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, small: Build) -> Any:
    """Each small variant of the model."""
    return small(**VARIANTS[request.param])


def windows(n: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """n normalised windows, equal at every call."""
    generator = torch.Generator().manual_seed(8)
    return torch.randn(n, 6, 14, 14, generator=generator).to(dtype)


def disturb(model: nn.Module) -> None:
    """Give norms and biases values that are not their initial 0 and 1."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def numbers(module: nn.Module) -> int:
    """Trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


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
    ({}, [36, 26]),
    ({"convgc": True}, [36, 26, 16]),
    ({"ksizes": [15, 12, 9], "convgc": True}, [36, 25, 17]),
    ({"ksizes": [15, 9]}, [36, 28]),
    (
        {"chans": [8, 8, 8], "ksizes": [11, 9, 7, 7], "convgc": True},
        [40, 32, 26, 20],
    ),
]


@pytest.mark.parametrize("stackconvs", [True, False])
@pytest.mark.parametrize(("keys", "expected"), MAPS)
def test_map_sizes(
    build: Build, keys: dict[str, Any], expected: list[int], stackconvs: bool
) -> None:
    """Maps of 50×50 images have the sides of the reference, stacked or not."""
    given = {"stackconvs": stackconvs, "bnorm_d": 2, **keys}
    model = build("torchdeepretina", "VaryModel", 3, [(25, 25)] * 3, **given)
    sides: list[tuple[int, ...]] = []
    watched = list(model.layers)
    if given.get("convgc"):
        watched.append(model.ganglion)
    for module in watched:
        module.register_forward_hook(lambda *args: sides.append(args[2].shape[2:]))
    model.eval()(torch.zeros(1, 40, 50, 50))
    assert sides == [(side, side) for side in expected]


def test_output_is_samples_by_units(variant: Any) -> None:
    """z is (B, U), and so are the rates."""
    z = variant(windows())
    assert z.shape == (5, 2)
    assert variant.link(z).shape == (5, 2)


def test_hidden_blocks_are_called_layers(small: Build) -> None:
    """Blocks are layers.0, layers.1, ... as pruning names them."""
    names = {name for name, _ in small().named_modules()}
    assert {"layers.0", "layers.1"} <= names
    assert "layers.2" not in names


IMPOSSIBLE = [
    ({"ksizes": [15, 4, 3]}, ["ksizes", "layers.0", "15×15", "14×14"]),
    ({"ksizes": [10, 6, 3]}, ["ksizes", "layers.1", "6×6", "5×5"]),
    ({"ksizes": [10, 4, 3], "convgc": True}, ["ksizes", "ganglion", "3×3", "2×2"]),
    ({"img_shape": [6, 4, 14]}, ["ksizes", "layers.0", "5×5", "4×14"]),
]


@pytest.mark.parametrize(("keys", "texts"), IMPOSSIBLE)
def test_impossible_shapes_are_refused(
    small: Build, keys: dict[str, Any], texts: list[str]
) -> None:
    """A kernel larger than its map is refused with key, layer and both sizes."""
    with pytest.raises(ConfigError) as caught:
        small(**keys)
    assert all(text in str(caught.value) for text in texts)


@pytest.mark.parametrize("ksizes", [[10, 5, 3], [5, 10, 3], [14]])
def test_a_map_of_one_pixel_is_allowed(small: Build, ksizes: list[int]) -> None:
    """Maps may shrink to 1×1."""
    chans = [3] * len(ksizes[:2])
    model = small(chans=chans, ksizes=ksizes[:2])
    assert model.eval()(windows()).shape == (5, 2)


def test_convgc_needs_centres(build: Build) -> None:
    """Without centres a convolutional ganglion layer is refused, with the way out."""
    with pytest.raises(ConfigError, match=r"convgc: .*centres.*convgc false"):
        build("torchdeepretina", "VaryModel", 2, None, convgc=True, **SMALL)


def test_n_layers_must_agree_with_chans() -> None:
    """The constructor refuses n_layers that is not one more than chans."""
    with pytest.raises(ConfigError, match="n_layers: 3 for 1"):
        VaryModel(
            img_shape=[6, 14, 14],
            n_units=2,
            n_layers=3,
            chans=[3],
            ksizes=[5],
            bnorm=True,
            bnorm_d=1,
            bn_moment=0.1,
            bias=True,
            gc_bias=False,
            softplus=True,
            output_scale="none",
            noise=0.0,
            stackconvs=True,
            drop_p=0.0,
            convgc=False,
            lossfxn="PoissonNLLLoss",
            log_poisson=False,
        )


@pytest.mark.parametrize("bnorm", [True, False])
def test_bnorm_is_everywhere_or_nowhere(small: Build, bnorm: bool) -> None:
    """Without bnorm no norm is left, with it one follows each linear map."""
    kinds = [type(module).__name__ for module in small(bnorm=bnorm).modules()]
    assert kinds.count("AbsBatchNorm1d") == (3 if bnorm else 0)


def test_norms_have_the_reference_s_constants(small: Build) -> None:
    """Norm eps is 1e-3 and momentum the key bn_moment."""
    norms = [m for m in small(bn_moment=0.3).modules() if isinstance(m, nn.BatchNorm1d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.3)}
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


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
    small: Build, keys: dict[str, Any], has_bias: bool
) -> None:
    """gc_bias null is true exactly when no batch norm follows."""
    dense = small(convgc=False, **keys).ganglion[1]
    convolutional = small(convgc=True, **keys).ganglion
    assert (dense.bias is not None) is has_bias
    assert (convolutional.bias is not None) is has_bias


# --- the function -----------------------------------------------------------------


def correlate(maps: np.ndarray, kernels: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Valid convolution as networks have it, by scipy."""
    out = [
        sum(
            signal.correlate2d(m, k, "valid") for m, k in zip(maps, kernel, strict=True)
        )
        for kernel in kernels
    ]
    return np.stack(out) + bias[:, None, None]


def normalised(x: np.ndarray, norm: Any) -> np.ndarray:
    """Batch norm with running statistics and |weight|, over the first axis of x."""
    weight, bias, mean, var = (
        t.detach().numpy().reshape(-1, *[1] * (x.ndim - 1))
        for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    return (x - mean) / np.sqrt(var + 1e-3) * np.abs(weight) + bias


@pytest.mark.parametrize("convgc", [False, True])
@pytest.mark.parametrize("bnorm_d", [1, 2])
def test_forward_agrees_with_scipy(small: Build, convgc: bool, bnorm_d: int) -> None:
    """Blocks are conv, norm, ReLU; then ganglion layer, norm, softplus."""
    model = small(stackconvs=False, convgc=convgc, bnorm_d=bnorm_d).double().eval()
    disturb(model)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.weight.mul_(-1)
    x = windows(1, torch.float64)
    maps = x[0].numpy()
    for block in model.layers:
        conv = block.conv
        maps = correlate(maps, conv.weight.detach().numpy(), conv.bias.detach().numpy())
        if bnorm_d == 1:
            maps = normalised(maps.ravel(), block.norm.norm).reshape(maps.shape)
        else:
            maps = normalised(maps, block.norm)
        maps = np.maximum(maps, 0)
    if convgc:
        places = [(1, 3), (3, 2)]  # RF 10: centres (5, 7), (7, 6) less 4
        grid = correlate(maps, model.ganglion.weight.detach().numpy(), np.zeros(2))
        raw = np.array([grid[u, r, c] for u, (r, c) in enumerate(places)])
    else:
        raw = model.ganglion[1].weight.detach().numpy() @ maps.ravel()
    expected = np.log1p(np.exp(normalised(raw, model.norm)))
    with torch.no_grad():
        np.testing.assert_allclose(model(x)[0].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("keys", [{}, {"convgc": True, "bnorm_d": 2}])
def test_collapsed_stacks_give_equal_outputs(
    small: Build, keys: dict[str, Any]
) -> None:
    """Replacing every stack by its one convolution leaves eval output unchanged."""
    model = small(drop_p=0.3, **keys).eval()
    disturb(model)
    with torch.no_grad():
        before = model(windows())
        for block in model.layers:
            assert isinstance(block.conv, LinearStackedConv2d)
            block.conv = block.conv.collapse()
        after = model(windows())
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_running_statistics_move_by_bn_moment(small: Build) -> None:
    """After one step statistics have moved by m towards the batch's, per unit."""
    model = small(bn_moment=0.25, stackconvs=False, noise=0.0).train()
    x = windows()
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


def test_noise_is_added_after_the_norm(small: Build) -> None:
    """Units far above zero vary by the norm's variance of 1 plus the noise's of 4."""
    block = small(noise=2.0, stackconvs=False).train().layers[0]
    x = torch.randn(2000, 6, 14, 14, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        block.norm.norm.bias.fill_(100.0)
        variance = block(x).double().var(0).mean().item()
    assert variance == pytest.approx(5, rel=0.02)


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
    """In evaluation a sample's output is the same alone and among others."""
    variant.eval()
    with torch.no_grad():
        alone, among = variant(windows()[:1]), variant(windows())
    torch.testing.assert_close(alone[0], among[0], rtol=0, atol=1e-6)


def test_every_parameter_gets_a_finite_gradient(variant: Any) -> None:
    """After one training step no gradient is missing, NaN or infinite."""
    variant.train()
    optimizer = torch.optim.Adam(variant.parameters(), lr=0.01)
    variant.link(variant(windows())).sum().backward()
    optimizer.step()
    for name, parameter in variant.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_state_dict_holds_only_architecture(variant: Any) -> None:
    """A state dict has tensors only, of shapes that no batch enters."""
    before = {name: t.shape for name, t in variant.state_dict().items()}
    variant.train()(windows(5))
    variant.eval()(windows(3))
    after = variant.state_dict()
    assert {name: t.shape for name, t in after.items()} == before
    assert all(isinstance(tensor, Tensor) for tensor in after.values())


def test_running_statistics_are_buffers(variant: Any) -> None:
    """No running statistic is a parameter."""
    names = {name for name, _ in variant.named_parameters()}
    assert not [n for n in names if "running" in n or "tracked" in n or "scale" in n]


@pytest.mark.parametrize("name", VARIANTS)
def test_save_and_load_gives_equal_outputs(small: Build, name: str) -> None:
    """A model built with another seed and loaded strictly is the saved one."""
    model, other = (small(seed=seed, **VARIANTS[name]) for seed in (0, 1))
    model.train()(windows())
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    with torch.no_grad():
        assert torch.equal(model.eval()(windows()), other.eval()(windows()))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_seed_decides_the_initial_state(small: Build, name: str) -> None:
    """Equal seeds give equal states, the next seed another."""
    one, again, other = (
        small(seed=s, **VARIANTS[name]).state_dict() for s in (0, 0, 1)
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "keys", [{"noise": 0.3}, {"noise": 0.0, "drop_p": 0.3}, {"noise": 0.0}]
)
def test_noise_and_dropout_act_in_training_only(
    small: Build, keys: dict[str, Any]
) -> None:
    """Training outputs vary exactly if one of them is on; evaluation never does."""
    model = small(**keys).train()
    with torch.no_grad():
        varies = not torch.equal(model(windows()), model(windows()))
        model.eval()
        assert torch.equal(model(windows()), model(windows()))
    assert varies is (keys != {"noise": 0.0})


def test_switching_noise_or_dropout_leaves_eval_alone(small: Build) -> None:
    """At equal weights evaluation does not depend on noise or drop_p."""
    outputs = []
    for keys in ({"noise": 0.0}, {"noise": 2.0}, {"drop_p": 0.5}):
        with torch.no_grad():
            outputs.append(small(**keys).eval()(windows()))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("softplus", [True, False])
def test_rates_are_never_negative(small: Build, softplus: bool) -> None:
    """link gives rates ≥ 0 for every Poisson model."""
    model = small(softplus=softplus, log_poisson=not softplus).eval()
    disturb(model)
    with torch.no_grad():
        rates = model.link(model(windows() * 30))
    assert (rates >= 0).all()
    assert torch.isfinite(rates).all()
