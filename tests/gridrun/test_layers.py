"""Noise, norms and activations against their definitions; what all layers share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import gridrun.nn
from gridrun.nn import (
    AbsBatchNorm1d,
    AbsBatchNorm2d,
    Dropout,
    EitherMethod,
    FlatBatchNorm,
    GaussianNoise,
    GrabUnits,
    LinearStackedConv2d,
    OneHot,
    ParametricSoftplus,
    RandomModule,
    ShakeShake,
    ValidConv2d,
)


def seeded(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def maps(*shape: int, seed: int = 1) -> Tensor:
    """Random maps in float64, equal at every call."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# --- random layers ----------------------------------------------------------------


@pytest.mark.parametrize("std", [0.05, 2.0])
def test_noise_has_its_standard_deviation(std: float) -> None:
    """Over 400,000 values noise has mean 0 and the absolute s.d. within 1 %."""
    layer = GaussianNoise(std)
    layer.generator = seeded()
    x = torch.full((400_000,), 3.0)
    noise = (layer(x) - x).double()
    assert noise.std().item() == pytest.approx(std, rel=0.01)
    assert abs(noise.mean().item()) < 5 * std / math.sqrt(400_000)


def test_noise_is_normal() -> None:
    """Shares beyond one and two s.d. are those of the normal law."""
    layer = GaussianNoise(1.0)
    layer.generator = seeded()
    noise = layer(torch.zeros(400_000)).abs()
    for bound in (1.0, 2.0):
        expected = math.erfc(bound / math.sqrt(2))
        assert (noise > bound).double().mean().item() == pytest.approx(
            expected, rel=0.02
        )


@pytest.mark.parametrize("layer", [GaussianNoise(0.5), Dropout(0.5)])
def test_random_layers_are_the_identity_in_evaluation(layer: RandomModule) -> None:
    """In evaluation the very same tensor comes back, and nothing is drawn."""
    layer.generator = seeded()
    before = layer.generator.get_state()
    x = torch.ones(4)
    assert layer.eval()(x) is x
    assert torch.equal(layer.generator.get_state(), before)
    layer.train()


@pytest.mark.parametrize("layer", [GaussianNoise(0.0), Dropout(0.0)])
def test_switched_off_layers_draw_nothing(layer: RandomModule) -> None:
    """With std or p 0 training leaves x and both generators alone."""
    layer.generator = seeded()
    before, before_global = layer.generator.get_state(), torch.get_rng_state()
    x = torch.ones(4)
    assert torch.equal(layer.train()(x), x)
    assert torch.equal(layer.generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), before_global)


@pytest.mark.parametrize("layer", [GaussianNoise(0.5), Dropout(0.5)])
def test_random_layers_draw_from_their_own_generator(layer: RandomModule) -> None:
    """With one torch's global generator is untouched; draws repeat by its seed."""
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        layer.generator = seeded(seed)
        drawn.append(layer.train()(torch.ones(50)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", [GaussianNoise(0.5), Dropout(0.5)])
def test_random_layers_have_no_state(layer: RandomModule) -> None:
    """They have neither parameters nor buffers."""
    assert not layer.state_dict()
    assert not list(layer.parameters())


def test_random_layers_do_not_change_their_input() -> None:
    """x itself is left as it was."""
    x = torch.ones(100)
    for layer in (GaussianNoise(0.5), Dropout(0.5)):
        layer.train()(x)
    assert torch.equal(x, torch.ones(100))


def test_double_noise_is_drawn_in_double() -> None:
    """In float64 noise is no rounded float32 number."""
    noise = GaussianNoise(1.0)(torch.zeros(50, dtype=torch.float64))
    assert (noise != noise.float().double()).any()


@pytest.mark.parametrize("p", [0.1, 0.7])
def test_dropout_zeroes_its_share_and_scales_the_rest(p: float) -> None:
    """A share p is exactly zero, the rest x / (1 - p)."""
    layer = Dropout(p)
    layer.generator = seeded()
    y = layer(torch.full((200_000,), 2.0, dtype=torch.float64))
    zero = y == 0
    assert zero.double().mean().item() == pytest.approx(p, abs=0.005)
    torch.testing.assert_close(y[~zero], torch.full_like(y[~zero], 2 / (1 - p)))


def test_dropout_gradients_are_its_mask() -> None:
    """Zeroed values get no gradient, the others 1 / (1 - p)."""
    layer = Dropout(0.4)
    layer.generator = seeded()
    x = torch.ones(100, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


# --- batch norms ------------------------------------------------------------------

NORMS = [
    (AbsBatchNorm1d, nn.BatchNorm1d, (6, 4)),
    (AbsBatchNorm2d, nn.BatchNorm2d, (6, 4, 3, 2)),
]


@pytest.mark.parametrize(("kind", "usual", "shape"), NORMS)
def test_abs_batch_norm_is_batch_norm_of_the_absolute_weight(
    kind: type[nn.BatchNorm2d], usual: type[nn.Module], shape: tuple[int, ...]
) -> None:
    """With |weight| torch's own norm gives equal outputs and statistics, both modes."""
    norm = kind(4, 1e-3, 0.2).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([-2.0, 0.5, -0.1, 1.0]))
        norm.bias.copy_(torch.tensor([1.0, -1.0, 0.0, 3.0]))
    other = usual(4, eps=1e-3, momentum=0.2).double()
    other.load_state_dict(norm.state_dict())
    with torch.no_grad():
        other.weight.abs_()
    for seed in (1, 2):
        x = maps(*shape, seed=seed)
        torch.testing.assert_close(norm(x), other(x), rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(norm, name), getattr(other, name)), name
    norm.eval()
    other.eval()
    x = maps(*shape, seed=3)
    torch.testing.assert_close(norm(x), other(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "usual", "shape"), NORMS)
def test_signs_of_the_weight_change_nothing(
    kind: type[nn.BatchNorm2d], usual: type[nn.Module], shape: tuple[int, ...]
) -> None:
    """Flipping the signs of some weights leaves every output as it was."""
    norm = kind(4, 1e-3, 0.2).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.5, 0.1, 1.0]))
        x = maps(*shape)
        before = norm(x)
        norm.weight.mul_(torch.tensor([-1.0, 1.0, -1.0, -1.0]))
        assert torch.equal(norm(x), before)


@pytest.mark.parametrize(("kind", "usual", "shape"), NORMS)
def test_abs_batch_norm_has_two_parameters_per_feature(
    kind: type[nn.BatchNorm2d], usual: type[nn.Module], shape: tuple[int, ...]
) -> None:
    """Weight and bias are the parameters, statistics and count the buffers."""
    norm = kind(4, 1e-3, 0.2)
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"]
    assert {name for name, _ in norm.named_buffers()} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize(("kind", "usual", "shape"), NORMS)
def test_the_wrong_number_of_dimensions_is_refused(
    kind: type[nn.BatchNorm2d], usual: type[nn.Module], shape: tuple[int, ...]
) -> None:
    """A norm of maps takes no vectors of five dimensions, nor the other way round."""
    with pytest.raises(ValueError, match="expected"):
        kind(4, 1e-3, 0.2)(torch.zeros(2, 4, 1, 1, 1))


def test_flat_batch_norm_is_per_unit() -> None:
    """Every unit of a map has mean 0 and variance var/(var + eps) over the batch."""
    norm = FlatBatchNorm(AbsBatchNorm1d(3 * 2 * 4, 1e-3, 0.5)).double()
    x = maps(7, 3, 2, 4) * 5 + 2
    y = norm(x).detach().numpy()
    values = x.numpy()
    expected = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-3)
    assert y.shape == x.shape
    np.testing.assert_allclose(y, expected, rtol=1e-10)


def test_flat_batch_norm_keeps_statistics_of_each_unit() -> None:
    """Running means are half of each unit's mean after one step of momentum .5."""
    norm = FlatBatchNorm(AbsBatchNorm1d(3 * 2 * 4, 1e-3, 0.5)).double()
    x = maps(7, 3, 2, 4)
    norm(x)
    expected = 0.5 * x.numpy().mean(0).ravel()
    np.testing.assert_allclose(norm.norm.running_mean.numpy(), expected, rtol=1e-12)


def test_norm_per_channel_is_over_batch_and_space() -> None:
    """AbsBatchNorm2d has one mean and variance per channel."""
    norm = AbsBatchNorm2d(3, 1e-3, 0.5).double()
    x = maps(7, 3, 2, 4)
    values = x.numpy()
    axes = (0, 2, 3)
    mean, var = values.mean(axes, keepdims=True), values.var(axes, keepdims=True)
    np.testing.assert_allclose(
        norm(x).detach().numpy(), (values - mean) / np.sqrt(var + 1e-3), rtol=1e-10
    )


# --- activations ------------------------------------------------------------------


def test_parametric_softplus_is_its_formula() -> None:
    """|a|·ln(1 + e^(b·x)) per unit in numpy, far out on both sides too."""
    layer = ParametricSoftplus(5).double()
    a = np.array([0.2, -1.5, 3.0, 0.0, 1.0])
    b = np.array([5.0, 2.0, -0.7, 1.0, 0.0])
    with torch.no_grad():
        layer.a.copy_(torch.from_numpy(a))
        layer.b.copy_(torch.from_numpy(b))
    x = np.concatenate(
        [np.random.default_rng(0).normal(0, 3, (50, 5)), [[-200.0] * 5, [200.0] * 5]]
    )
    found = layer(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(
        found, np.abs(a) * np.logaddexp(0, b * x), rtol=1e-8, atol=1e-15
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parametric_softplus_is_a_rate(dtype: torch.dtype) -> None:
    """Outputs are ≥ 0 for a and b of both signs."""
    layer = ParametricSoftplus(4).to(dtype)
    with torch.no_grad():
        layer.a.copy_(torch.tensor([0.2, -0.2, 2.0, -2.0]))
        layer.b.copy_(torch.tensor([5.0, 5.0, -5.0, -5.0]))
    y = layer(maps(100, 4).to(dtype) * 10)
    assert (y >= 0).all()
    assert (y.max(0).values > 1).all()


def test_parametric_softplus_starts_at_the_published_values() -> None:
    """2U trainable scalars: a all .2, b all 5."""
    layer = ParametricSoftplus(7)
    assert {name: p.tolist() for name, p in layer.named_parameters()} == {
        "a": pytest.approx([0.2] * 7),
        "b": [5.0] * 7,
    }
    assert not list(layer.buffers())


def test_parametric_softplus_has_correct_gradients() -> None:
    """Numeric and analytic gradients agree in x, a and b, for a of both signs."""
    layer = ParametricSoftplus(2).double()

    def function(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = functional_call(layer, {"a": a, "b": b}, (x,))
        return y

    a, b = torch.tensor([0.3, -0.4]).double(), torch.tensor([5.0, -2.0]).double()
    given = [one.requires_grad_() for one in (maps(3, 2), a, b)]
    assert torch.autograd.gradcheck(function, given)


# --- what all layers share --------------------------------------------------------


def by_fourier(layer: EitherMethod) -> EitherMethod:
    """The layer, to be computed by Fourier transform."""
    layer.method = "fourier"
    return layer


SAMPLES: dict[type[nn.Module], tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    AbsBatchNorm1d: (lambda: AbsBatchNorm1d(4, 1e-3, 0.2), (6, 4)),
    AbsBatchNorm2d: (lambda: AbsBatchNorm2d(4, 1e-3, 0.2), (6, 4, 3, 2)),
    Dropout: (lambda: Dropout(0.4), (6, 4)),
    FlatBatchNorm: (
        lambda: FlatBatchNorm(AbsBatchNorm1d(24, 1e-3, 0.2)),
        (6, 4, 3, 2),
    ),
    GaussianNoise: (lambda: GaussianNoise(0.3), (6, 4)),
    GrabUnits: (lambda: GrabUnits([(1, 2), (5, 5)], [3], [1, 7, 8]), (6, 2, 5, 6)),
    LinearStackedConv2d: (
        lambda: LinearStackedConv2d(2, 3, 6, 2, 1, drop_p=0.3),
        (6, 2, 9, 9),
    ),
    OneHot: (lambda: OneHot(3, 4, 5, True), (6, 3, 4, 5)),
    ParametricSoftplus: (lambda: ParametricSoftplus(4), (6, 4)),
    ShakeShake: (lambda: ShakeShake(lambda: nn.Conv2d(2, 3, 3), 2), (6, 2, 6, 6)),
    ValidConv2d: (lambda: by_fourier(ValidConv2d(2, 3, 4)), (6, 2, 7, 9)),
}
each_layer = pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
each_mode = pytest.mark.parametrize("training", [True, False])
each_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def sample(kind: type[nn.Module], seed: int, dtype: torch.dtype) -> tuple[Any, Tensor]:
    """A layer with random parameters of both signs, and an input."""
    make, shape = SAMPLES[kind]
    torch.manual_seed(seed)
    layer = make().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    return layer, maps(*shape).to(dtype)


def called(layer: nn.Module, call: Callable[[], Tensor], training: bool) -> Tensor:
    """The output of a call with all random layers seeded anew."""
    layer.train(training)
    generator = seeded()
    for module in layer.modules():
        if isinstance(module, RandomModule):
            module.generator = generator
    return call().detach()


def copies(layer: nn.Module) -> dict[str, Tensor]:
    """Copies of a layer's state, detached."""
    return {name: value.clone() for name, value in layer.state_dict().items()}


def test_every_layer_has_a_sample() -> None:
    """The tests below know every layer that the package offers."""
    offered = {getattr(gridrun.nn, name) for name in gridrun.nn.__all__}
    classes = {one for one in offered if isinstance(one, type)}
    layers = {one for one in classes if issubclass(one, nn.Module)}
    assert layers - {RandomModule, EitherMethod} == set(SAMPLES)


@each_layer
@each_mode
@each_type
def test_layers_keep_the_type(
    kind: type[nn.Module], training: bool, dtype: torch.dtype
) -> None:
    """Outputs and all floating gradients have the module's type and are finite."""
    layer, x = sample(kind, 0, dtype)
    x.requires_grad_()
    y = layer.train(training)(x)
    y.square().sum().backward()
    found = [y, x.grad, *(parameter.grad for parameter in layer.parameters())]
    assert all(one.dtype is dtype and one.isfinite().all() for one in found)


@each_layer
def test_single_precision_is_double_precision_rounded(kind: type[nn.Module]) -> None:
    """In evaluation float32 agrees with float64 to 1e-5."""
    layer, x = sample(kind, 0, torch.float32)
    with torch.no_grad():
        single = layer.eval()(x)
        double = layer.double()(x.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


@each_layer
@each_mode
@each_type
def test_layers_are_functions_of_their_state(
    kind: type[nn.Module], training: bool, dtype: torch.dtype
) -> None:
    """Called with another's state a layer gives the other's output and statistics."""
    layer, x = sample(kind, 0, dtype)
    other, _ = sample(kind, 1, dtype)
    state, own = copies(other), copies(layer)
    found = called(layer, lambda: functional_call(layer, state, (x,)), training)
    assert torch.equal(found, called(other, lambda: other(x), training))
    for name, value in other.state_dict().items():
        assert torch.equal(state[name], value), name
    for name, value in layer.state_dict().items():
        assert torch.equal(own[name], value), name


@each_layer
@each_mode
@each_type
def test_states_make_a_fresh_layer_the_same(
    kind: type[nn.Module], training: bool, dtype: torch.dtype
) -> None:
    """Loaded strictly into a fresh layer a used one's state gives the same bits."""
    layer, x = sample(kind, 0, dtype)
    layer.train()(x * 2 + 1)
    state = copies(layer)
    assert all(isinstance(value, Tensor) for value in state.values())
    fresh = SAMPLES[kind][0]().to(dtype)
    fresh.load_state_dict(state, strict=True)
    found = called(fresh, lambda: fresh(x), training)
    assert torch.equal(found, called(layer, lambda: layer(x), training))
    assert fresh.state_dict().keys() == state.keys()


@each_layer
def test_layers_can_be_stacked(kind: type[nn.Module]) -> None:
    """vmap over stacked states gives each layer's own output, in evaluation."""
    layers = [sample(kind, seed, torch.float64)[0].eval() for seed in range(3)]
    x = sample(kind, 0, torch.float64)[1]
    expected = torch.stack([layer(x) for layer in layers]).detach()
    parameters, buffers = stack_module_state(layers)
    state = {**parameters, **buffers}

    def evaluate(i: Tensor, one: dict[str, Tensor]) -> Tensor:
        y: Tensor = functional_call(layers[0], one, (x,))
        return y

    found = vmap(evaluate)(torch.arange(3), state).detach()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@each_layer
def test_samples_do_not_mix_in_evaluation(kind: type[nn.Module]) -> None:
    """In evaluation an output depends on its own sample alone, and repeats."""
    layer, x = sample(kind, 0, torch.float64)
    layer.eval()
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(layer(x), y)
        torch.testing.assert_close(layer(x[:1]), y[:1], rtol=1e-12, atol=1e-12)


@each_layer
@each_mode
def test_layers_leave_their_input_as_it_was(
    kind: type[nn.Module], training: bool
) -> None:
    """No layer writes into x."""
    layer, x = sample(kind, 0, torch.float64)
    before = x.clone()
    layer.train(training)(x)
    assert torch.equal(x, before)
