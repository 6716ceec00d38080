"""Shake-Shake: the law of its weights, its two passes, and where it draws from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from gridrun.nn import LinearStackedConv2d, ShakeShake


class Held(nn.Module):
    """A branch whose output is its parameter, for every x."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The parameter itself."""
        return self.value


class Factor(nn.Module):
    """A branch k·x with one parameter k."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """k times x."""
        return self.k * x


def seeded(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def maps(*shape: int, seed: int = 1) -> Tensor:
    """Random maps in float64, equal at every call."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def shake(branches: Sequence[nn.Module], seed: int = 0) -> ShakeShake:
    """A layer of given branches with a generator of its own."""
    made = iter(branches)
    layer = ShakeShake(lambda: next(made), len(branches))
    layer.generator = seeded(seed)
    return layer


def units(n: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Held]:
    """n branches; branch i is 1 in channel i of every image and 0 elsewhere."""
    batch, *space = shape
    values = torch.zeros(n, batch, n, *space, dtype=dtype)
    values[range(n), :, range(n)] = 1
    return [Held(value) for value in values]


def both_weights(
    n: int,
    n_images: int,
    seed: int = 0,
    space: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Forward and backward weights of one pass, (n_images, n, *space) each."""
    layer = shake(units(n, (n_images, *space), dtype), seed)
    y = layer(torch.zeros(n_images, dtype=dtype))
    y.sum().backward()
    gradients = [branch.value.grad[:, 0] for branch in layer.branches]
    return y.detach(), torch.stack(gradients, 1)


def drawn_by_hand(n: int, n_images: int, generator: torch.Generator) -> Tensor:
    """Normalised exponentials, (n, n_images)."""
    draws = torch.empty(n, n_images, dtype=torch.float64)
    draws.exponential_(generator=generator)
    return draws / draws.sum(0)


# --- the law of the weights -------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5])
def test_weights_of_every_image_sum_to_one(n: int) -> None:
    """Forward and backward weights are > 0 and sum to 1 for each image."""
    for weights in both_weights(n, 1000):
        assert (weights > 0).all()
        torch.testing.assert_close(
            weights.sum(1), torch.ones(1000, dtype=torch.float64), rtol=0, atol=1e-14
        )


@pytest.mark.parametrize("n", [2, 3, 5])
def test_images_of_a_batch_have_their_own_weights(n: int) -> None:
    """No two images share a weight, in neither pass."""
    for weights in both_weights(n, 1000):
        for branch in weights.T:
            assert len(branch.unique()) == 1000


@pytest.mark.parametrize("space", [(3,), (2, 3)])
def test_an_image_has_one_weight_for_all_its_pixels(space: tuple[int, ...]) -> None:
    """Within an image and a branch weights are the same everywhere."""
    for weights in both_weights(3, 4, space=space):
        flat = weights.flatten(2)
        assert torch.equal(flat, flat[..., :1].expand_as(flat))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_weights_have_the_moments_of_the_simplex(n: int) -> None:
    """Mean 1/n and variance (n - 1)/(n²(n + 1)) for every branch and both passes."""
    for weights in both_weights(n, 40_000):
        variance = (n - 1) / (n**2 * (n + 1))
        error = (variance / 40_000) ** 0.5
        for branch in weights.T:
            assert branch.mean().item() == pytest.approx(1 / n, abs=5 * error)
            assert branch.var().item() == pytest.approx(variance, rel=0.04)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_weights_are_uniform_on_the_simplex(n: int) -> None:
    """A weight has the law Beta(1, n - 1); so has a sum of k the law Beta(k, n - k)."""
    for weights in both_weights(n, 20_000):
        for k in range(1, n):
            law = stats.beta(k, n - k)
            assert stats.kstest(weights[:, :k].sum(1).numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("n", [2, 3])
def test_the_passes_have_independent_weights(n: int) -> None:
    """Forward and backward weights are uncorrelated, of one branch and of two."""
    forward, backward = both_weights(n, 40_000)
    found = np.corrcoef(forward.T.numpy(), backward.T.numpy())[:n, n:]
    assert np.abs(found).max() < 5 / 40_000**0.5


def test_every_pass_has_new_weights() -> None:
    """Two calls in training mix differently."""
    layer = shake(units(2, (50,), torch.float64))
    x = torch.zeros(50)
    assert (layer(x) != layer(x)).all()


# --- the two passes ---------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
def test_both_weights_are_those_drawn_by_hand(n: int) -> None:
    """The seed's normalised exponentials: first the forward's, then the backward's."""
    generator = seeded(7)
    for found in both_weights(n, 20, seed=7):
        by_hand = drawn_by_hand(n, 20, generator)
        torch.testing.assert_close(found, by_hand.T, rtol=1e-14, atol=0)


def test_the_output_is_the_weighted_sum_of_the_branches() -> None:
    """y = Σ α_i k_i x, image by image."""
    factors = (2.0, -1.0, 5.0)
    x = maps(6, 4, 3, 3)
    y = shake([Factor(k) for k in factors])(x).detach()
    alpha = drawn_by_hand(3, 6, seeded())
    for image in range(6):
        mixed = sum(alpha[i, image] * k for i, k in enumerate(factors))
        torch.testing.assert_close(y[image], mixed * x[image], rtol=1e-13, atol=1e-13)


def test_gradients_are_shared_out_by_the_backward_weights() -> None:
    """∂L/∂x = c Σ β_i k_i and ∂L/∂k_i = Σ c β_i x, with β the second draw, not α."""
    factors = (2.0, -1.0, 5.0)
    layer = shake([Factor(k) for k in factors])
    x, c = maps(6, 4).requires_grad_(), maps(6, 4, seed=2)
    (layer(x) * c).sum().backward()
    generator = seeded()
    alpha, beta = (drawn_by_hand(3, 6, generator) for _ in range(2))
    k = torch.tensor(factors, dtype=torch.float64)
    expected = c * (beta.T @ k)[:, None]
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-12)
    assert (x.grad - c * (alpha.T @ k)[:, None]).abs().max() > 0.1
    for i, branch in enumerate(layer.branches):
        by_hand = (c * beta[i][:, None] * x.detach()).sum()
        torch.testing.assert_close(branch.k.grad, by_hand, rtol=1e-12, atol=1e-12)


def test_gradients_of_convolutions_are_those_of_a_sum_by_backward_weights() -> None:
    """Every parameter's gradient equals autograd's of Σ β_i f_i(x)."""
    torch.manual_seed(0)
    layer = shake([nn.Conv2d(2, 3, 3).double() for _ in range(3)])
    x, c = maps(4, 2, 6, 6), maps(4, 3, 4, 4, seed=2)
    (layer(x) * c).sum().backward()
    generator = seeded()
    _, beta = (drawn_by_hand(3, 4, generator) for _ in range(2))
    y = sum(
        b[:, None, None, None] * f(x) for b, f in zip(beta, layer.branches, strict=True)
    )
    expected = torch.autograd.grad((y * c).sum(), list(layer.parameters()))
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)


# --- evaluation -------------------------------------------------------------------


def test_evaluation_is_the_mean_of_the_branches() -> None:
    """In evaluation y = Σ f_i(x)/n, equal at every call."""
    torch.manual_seed(0)
    layer = shake([nn.Conv2d(2, 3, 3).double() for _ in range(3)]).eval()
    x = maps(4, 2, 6, 6)
    with torch.no_grad():
        y = layer(x)
        mean = sum(branch(x) for branch in layer.branches) / 3
        torch.testing.assert_close(y, mean, rtol=1e-14, atol=1e-14)
        assert torch.equal(layer(x), y)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_evaluation_shares_gradients_out_evenly(n: int) -> None:
    """In evaluation every branch gets 1/n of the gradient."""
    layer = shake(units(n, (4,), torch.float64)).eval()
    c = maps(4, n)
    (layer(torch.zeros(4)) * c).sum().backward()
    for branch in layer.branches:
        torch.testing.assert_close(branch.value.grad, c / n, rtol=1e-14, atol=1e-14)


def test_evaluation_has_correct_gradients() -> None:
    """Numeric and analytic gradients agree in x and in the parameters."""
    torch.manual_seed(0)
    layer = shake([nn.Conv2d(2, 2, 2).double() for _ in range(2)]).eval()
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return y

    given = (maps(2, 2, 3, 3).requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(function, given)


# --- generators -------------------------------------------------------------------


def test_weights_repeat_by_the_generator_s_seed() -> None:
    """Outputs and gradients of a seed are the same bits; another seed gives others."""
    first, again, other = (both_weights(3, 20, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_with_a_generator_the_global_one_is_untouched() -> None:
    """The forward pass draws from its own generator alone, the backward from none."""
    before = torch.get_rng_state()
    layer = shake([Factor(1.0), Factor(2.0)])
    start = layer.generator.get_state()
    y = layer(maps(5, 4))
    drawn = layer.generator.get_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(drawn, start)
    assert torch.equal(layer.generator.get_state(), drawn)


def test_without_a_generator_weights_come_from_the_global_one() -> None:
    """Seeding torch seeds the weights."""
    layer = shake([Factor(1.0), Factor(2.0)])
    layer.generator = None
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(layer(maps(5, 4)).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_evaluation_draws_nothing() -> None:
    """In evaluation both generators are left as they were, backward included."""
    layer = shake([Factor(1.0), Factor(2.0)]).eval()
    before, before_global = layer.generator.get_state(), torch.get_rng_state()
    layer(maps(5, 4)).sum().backward()
    assert torch.equal(layer.generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), before_global)


# --- parameters and types ---------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("kind", [nn.Conv2d, LinearStackedConv2d])
def test_branches_are_n_independent_convolutions(kind: type[nn.Module], n: int) -> None:
    """n times the parameters of one, no two equal, nothing else in the state."""
    torch.manual_seed(0)
    layer = ShakeShake(lambda: kind(2, 3, 5), n)
    count = sum(p.numel() for p in layer.parameters())
    assert count == n * sum(p.numel() for p in kind(2, 3, 5).parameters())
    firsts = [next(branch.parameters()) for branch in layer.branches]
    for i, first in enumerate(firsts):
        assert not any(torch.equal(first, other) for other in firsts[:i])
    assert layer.state_dict().keys() == dict(layer.named_parameters()).keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_types_are_kept(dtype: torch.dtype, training: bool) -> None:
    """Outputs and gradients have the branches' type."""
    layer = shake(units(2, (4,), dtype)).train(training)
    y = layer(torch.zeros(4, dtype=dtype))
    y.sum().backward()
    assert y.dtype is dtype
    assert all(branch.value.grad.dtype is dtype for branch in layer.branches)


def test_double_weights_are_drawn_in_double() -> None:
    """In float64 weights are no rounded float32 numbers."""
    for weights in both_weights(2, 50):
        assert (weights != weights.float().double()).any()


# --- functional transforms --------------------------------------------------------


def test_functional_gradients_are_autograd_s() -> None:
    """torch.func.grad over a functional call gives the same bits as backward."""
    torch.manual_seed(0)
    layer = shake([nn.Conv2d(2, 3, 3).double() for _ in range(2)])
    x = maps(4, 2, 6, 6)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()

    found = grad(loss)({k: v.detach() for k, v in layer.named_parameters()})
    layer.generator = seeded()
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert torch.equal(found[name], parameter.grad), name


def test_stacked_models_agree_with_single_ones_in_evaluation() -> None:
    """vmap over stacked parameters gives each model's own output and gradients."""
    torch.manual_seed(0)
    layers = [
        shake([nn.Conv2d(2, 3, 3).double() for _ in range(2)]).eval() for _ in range(3)
    ]
    x = maps(4, 2, 6, 6)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layers[0], parameters, (x,)).square().sum()

    parameters = {k: v.detach() for k, v in stack_module_state(layers)[0].items()}
    found, losses = vmap(grad(loss))(parameters), vmap(loss)(parameters)
    for i, layer in enumerate(layers):
        alone = layer(x).square().sum()
        alone.backward()
        torch.testing.assert_close(losses[i], alone.detach(), rtol=1e-12, atol=0)
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(
                found[name][i], parameter.grad, rtol=1e-11, atol=1e-12
            )


def test_stacked_models_draw_their_own_weights() -> None:
    """Under vmap every model and image has weights of its own, in both passes."""
    layers = [shake(units(3, (5,), torch.float64)) for _ in range(4)]
    x = torch.zeros(5)

    def mixed(parameters: dict[str, Tensor]) -> Tensor:
        y: Tensor = functional_call(layers[0], parameters, (x,))
        return y

    parameters = {k: v.detach() for k, v in stack_module_state(layers)[0].items()}
    forward = vmap(mixed, randomness="different")(parameters)
    summed = grad(lambda given: mixed(given).sum())
    gradients = vmap(summed, randomness="different")(parameters)
    backward = torch.stack([g[..., 0] for g in gradients.values()], -1)
    for weights in (forward, backward):
        assert weights.shape == (4, 5, 3)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert len(weights.unique()) == weights.numel()
