"""Noise, batch norms and unit places, each against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gridrun.errors import ConfigError
from gridrun.nn import (
    AbsBatchNorm1d,
    AbsBatchNorm2d,
    Dropout,
    FlatBatchNorm,
    GaussianNoise,
    GrabUnits,
    RandomModule,
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


# --- units at places --------------------------------------------------------------

PLACES = [
    ((15, 11, 11), (25, 25), (8, 8)),
    ((15, 11, 11), (17, 32), (0, 15)),
    ((15, 11, 11), (0, 0), (0, 0)),
    ((15, 11, 11), (49, 49), (15, 15)),
    ((15, 11, 11), (32, 33), (15, 15)),
    ((15, 11, 11), (16, 18), (0, 1)),
    ((15, 12, 9), (25, 25), (9, 9)),
]


@pytest.mark.parametrize(("ksizes", "center", "place"), PLACES)
def test_places_of_the_reference(
    ksizes: tuple[int, ...], center: tuple[int, int], place: tuple[int, int]
) -> None:
    """A centre of a 50×50 image is read where the reference says, borders clipped."""
    grab = GrabUnits([center], ksizes, [40, 50, 50])
    side = 50 - sum(k - 1 for k in ksizes)
    grid = torch.arange(side * side, dtype=torch.float64).view(1, 1, side, side)
    assert divmod(int(grab(grid)), side) == place


def test_unit_u_reads_channel_u() -> None:
    """Each unit reads its own channel at its own place, for every sample."""
    grab = GrabUnits([(1, 2), (4, 3), (2, 4)], [3], [1, 7, 6])
    x = maps(2, 3, 5, 4)
    expected = torch.stack([x[:, 0, 0, 1], x[:, 1, 3, 2], x[:, 2, 1, 3]], 1)
    assert torch.equal(grab(x), expected)


def test_rows_and_columns_have_their_own_limits() -> None:
    """In an image that is not square each axis is clipped by its own side."""
    grab = GrabUnits([(9, 19), (0, 0)], [5], [1, 10, 20])
    assert grab.rows.tolist() == [5, 0]
    assert grab.columns.tolist() == [15, 0]


@pytest.mark.parametrize(
    ("center", "rows", "columns"),
    [((20, 30), (3, 37), (13, 47)), ((25, 25), (8, 42), (8, 42))],
)
def test_the_input_gradient_spans_the_receptive_field(
    center: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """A unit sees exactly its 35×35 pixels, whose middle is its centre."""
    convs = nn.Sequential(*(nn.Conv2d(1, 1, k) for k in (15, 11, 11)))
    for conv in convs:
        nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 50, 50, requires_grad=True)
    GrabUnits([center], [15, 11, 11], [1, 50, 50])(convs(x)).sum().backward()
    assert x.grad is not None
    seen = x.grad[0, 0].nonzero()
    assert tuple(seen.min(0).values.tolist()) == (rows[0], columns[0])
    assert tuple(seen.max(0).values.tolist()) == (rows[1], columns[1])
    assert len(seen) == 35 * 35


@pytest.mark.parametrize("center", [(50, 3), (3, 50), (-1, 3), (3, -1)])
def test_a_centre_outside_the_image_is_refused(center: tuple[int, int]) -> None:
    """The error names unit, centre and image."""
    with pytest.raises(ConfigError) as caught:
        GrabUnits([(3, 3), center], [15], [40, 50, 50])
    assert all(text in str(caught.value) for text in ("unit 1", str(center), "50×50"))


def test_places_move_with_the_module_and_stay_out_of_the_state() -> None:
    """Index tensors are buffers, and not part of the state dict."""
    grab = GrabUnits([(3, 3)], [3], [1, 8, 8])
    assert {name for name, _ in grab.named_buffers()} == {"rows", "columns"}
    assert not grab.state_dict()
