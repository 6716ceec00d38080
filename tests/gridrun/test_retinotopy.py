"""Units at places: receptive fields, probabilities of positions, semantic loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gridrun.errors import ConfigError
from gridrun.nn import GrabUnits, OneHot, central_place, field_side, semantic_loss


def seeded(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def maps(*shape: int, seed: int = 1) -> Tensor:
    """Random maps in float64, equal at every call."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


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


KERNELS = [(15, 11, 11), (15, 12, 9), (5, 4, 3), (7,), (1,), (2,)]
SEEN_FROM = [(25, 25), (20, 30), (17, 32), (0, 0), (49, 49), (3, 46), (48, 1)]


def positive_convolutions(ksizes: Sequence[int]) -> nn.Sequential:
    """Valid convolutions of two inner channels whose weights are all > 0, float64."""
    sides = [1, *([2] * (len(ksizes) - 1)), 1]
    convs = nn.Sequential(
        *(nn.Conv2d(a, b, k) for a, b, k in zip(sides, sides[1:], ksizes, strict=False))
    )
    for parameter in convs.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0, generator=seeded())
    return convs.double()


def span(center: int, size: int, field: int) -> tuple[int, int]:
    """First and last pixel of the field nearest to a centre, by trying them all."""
    first = min(
        range(size - field + 1),
        key=lambda start: (abs(start + (field - 1) / 2 - center), -start),
    )
    return first, first + field - 1


@pytest.mark.parametrize("ksizes", KERNELS)
@pytest.mark.parametrize("center", SEEN_FROM)
def test_a_unit_sees_the_field_nearest_to_its_centre(
    ksizes: tuple[int, ...], center: tuple[int, int]
) -> None:
    """The input gradient is > 0 in exactly the RF×RF pixels nearest to the centre."""
    x = torch.zeros(1, 1, 50, 50, dtype=torch.float64, requires_grad=True)
    grab = GrabUnits([center], ksizes, [1, 50, 50])
    grab(positive_convolutions(ksizes)(x)).sum().backward()
    field = 1 + sum(k - 1 for k in ksizes)
    rows, columns = (span(at, 50, field) for at in center)
    expected = torch.zeros(50, 50, dtype=torch.bool)
    expected[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    assert x.grad is not None
    assert torch.equal(x.grad[0, 0] > 0, expected)


@pytest.mark.parametrize("ksizes", [(15, 11, 11), (5, 3), (7,), (1,)])
@pytest.mark.parametrize("center", [(25, 25), (20, 30), (31, 18)])
def test_an_impulse_at_the_centre_is_answered_most(
    ksizes: tuple[int, ...], center: tuple[int, int]
) -> None:
    """With kernels peaked in the middle the unit reads the map's one maximum."""
    x = torch.zeros(1, 1, 50, 50, dtype=torch.float64)
    x[0, 0, center[0], center[1]] = 1
    for side in ksizes:
        row = 1.0 + (side // 2) - (torch.arange(side) - side // 2).abs().double()
        x = nn.functional.conv2d(x, torch.outer(row, row)[None, None])
    read = GrabUnits([center], ksizes, [1, 50, 50])(x).item()
    assert read == x.max().item()
    assert (x == read).sum() == 1


@given(st.data())
def test_central_places_are_the_nearest_fields(data: st.DataObject) -> None:
    """Of all fields the nearest is taken, and exact says that it is centred."""
    size = data.draw(st.integers(1, 60))
    field = data.draw(st.integers(1, size))
    center = data.draw(st.integers(0, size - 1))
    place, exact = central_place(center, size, field)
    assert place == span(center, size, field)[0]
    off_centre = place + (field - 1) / 2 - center
    assert exact == (off_centre == (0 if field % 2 else 0.5))


@pytest.mark.parametrize(
    ("ksizes", "field"),
    [((15, 11, 11), 35), ((15, 12, 9), 34), ((5, 4, 3), 10), ((7,), 7), ((), 1)],
)
def test_field_sides_are_the_pixels_that_one_position_needs(
    ksizes: tuple[int, ...], field: int
) -> None:
    """An image of the field's side gives a map of exactly one position."""
    assert field_side(ksizes) == field
    x = torch.zeros(1, 1, field, field, dtype=torch.float64)
    assert positive_convolutions(ksizes)(x).shape[2:] == (1, 1)


def test_gradients_go_to_the_places_alone() -> None:
    """Only what a unit reads gets a gradient, and all of it."""
    x = maps(2, 3, 5, 4).requires_grad_()
    grab = GrabUnits([(1, 2), (4, 3), (2, 4)], [3], [1, 7, 6])
    c = maps(2, 3, seed=2)
    (grab(x) * c).sum().backward()
    expected = torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    for unit, (row, column) in enumerate([(0, 1), (3, 2), (1, 3)]):
        expected[:, unit, row, column] = c[:, unit]
    assert torch.equal(x.grad, expected)


def test_borders_of_the_image_are_inside() -> None:
    """The four corner pixels are allowed centres."""
    corners = [(0, 0), (0, 8), (6, 0), (6, 8)]
    grab = GrabUnits(corners, [3], [1, 7, 9])
    assert grab.rows.tolist() == [0, 0, 4, 4]
    assert grab.columns.tolist() == [0, 6, 0, 6]


# --- probabilities of positions ---------------------------------------------------


@pytest.mark.parametrize("rand_onehot", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_of_each_unit(rand_onehot: bool, dtype: torch.dtype) -> None:
    """Rows are > 0 and sum to 1, zero weights and signs notwithstanding."""
    torch.manual_seed(0)
    layer = OneHot(4, 17, 17, rand_onehot).to(dtype)
    with torch.no_grad():
        layer.weight[0, ::3] = 0
        layer.weight[1, ::2] *= -3
        layer.weight[2] = 0
    p = layer.probabilities()
    assert p.shape == (4, 289)
    assert p.dtype is dtype
    assert (p > 0).all()
    ones = torch.ones(4, dtype=dtype)
    torch.testing.assert_close(p.sum(1), ones, rtol=0, atol=1e-5)
    if dtype is torch.float64:
        torch.testing.assert_close(p.sum(1), ones, rtol=0, atol=1e-13)


def test_probabilities_are_their_definition() -> None:
    """p = (|w| + 1e-7) / Σ (|w| + 1e-7) in numpy, for weights of every size."""
    layer = OneHot(3, 2, 2, True).double()
    w = np.array([[1, -2, 0, 5], [1e-7, 0, -3e-7, 0], [0, 0, 0, 0]])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(w))
    sizes = np.abs(w) + 1e-7
    expected = sizes / sizes.sum(1)[:, None]
    found = layer.probabilities().detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (16, 16), (5, 17)])
def test_constant_weights_give_the_spatial_mean(height: int, width: int) -> None:
    """Without rand_onehot w and p are 1/(H·W) and the output is the mean."""
    layer = OneHot(3, height, width, False)
    assert layer.weight.shape == (3, height * width)
    assert torch.equal(layer.weight, torch.full_like(layer.weight, 1 / height / width))
    p = layer.double().probabilities()
    assert torch.equal(p, p[:1, :1].expand_as(p))
    assert p[0, 0].item() == pytest.approx(1 / (height * width), rel=1e-14)
    x = maps(6, 3, height, width)
    torch.testing.assert_close(layer(x), x.mean((2, 3)), rtol=1e-12, atol=1e-14)


def test_random_weights_are_uniform_between_0_and_1() -> None:
    """With rand_onehot the weights have U(0, 1)'s range, mean and variance."""
    torch.manual_seed(0)
    weight = OneHot(20, 40, 50, True).weight.detach().double()
    assert weight.min() >= 0
    assert weight.max() < 1
    assert not torch.equal(weight[0], weight[1])
    assert weight.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert weight.var().item() == pytest.approx(1 / 12, rel=0.02)


def test_random_weights_come_from_the_seed() -> None:
    """The same seed gives the same weights, the next seed others."""
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(OneHot(2, 3, 4, True).weight.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_constant_weights_draw_nothing() -> None:
    """Without rand_onehot torch's generator is left as it was."""
    before = torch.get_rng_state()
    OneHot(2, 3, 4, False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [1e6, -1e6])
def test_one_large_weight_is_the_unit_s_place(size: float) -> None:
    """The output goes to the value at the large weight, in row-major order."""
    layer = OneHot(3, 4, 5, True).double()
    places = [(0, 0), (3, 1), (1, 4)]
    with torch.no_grad():
        for unit, (row, column) in enumerate(places):
            layer.weight[unit, row * 5 + column] = size
    x = maps(6, 3, 4, 5)
    expected = torch.stack([x[:, u, r, c] for u, (r, c) in enumerate(places)], 1)
    torch.testing.assert_close(layer(x).detach(), expected, rtol=0, atol=1e-3)


def test_signs_of_the_weights_are_irrelevant() -> None:
    """Flipping the signs of some weights leaves every bit of the output."""
    layer = OneHot(3, 4, 5, True).double()
    x = maps(6, 3, 4, 5)
    before = layer(x)
    with torch.no_grad():
        layer.weight[:, ::2] *= -1
    assert torch.equal(layer(x), before)


def test_a_unit_s_mean_is_over_its_own_channel() -> None:
    """The output is the explicit sum over rows and columns of p·x, unit by unit."""
    layer = OneHot(2, 3, 4, True).double()
    x = maps(5, 2, 3, 4)
    y = layer(x).detach()
    p = layer.probabilities().detach().view(2, 3, 4)
    assert y.shape == (5, 2)
    for image in range(5):
        for unit in range(2):
            expected = (p[unit].numpy() * x[image, unit].numpy()).sum()
            assert y[image, unit].item() == pytest.approx(expected, rel=1e-12)


def test_the_weight_is_the_only_parameter() -> None:
    """U·H·W trainable scalars and no buffers."""
    layer = OneHot(5, 17, 17, True)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer.weight.numel() == 1445
    assert list(layer.state_dict()) == ["weight"]


def test_gradients_of_the_probabilities_are_correct() -> None:
    """Numeric and analytic gradients agree in weights of both signs and in x."""
    layer = OneHot(2, 2, 3, True).double()

    def function(weight: Tensor, x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x,))
        return y

    weight = (maps(2, 6).sign() * (maps(2, 6).abs() + 0.1)).requires_grad_()
    given_x = maps(2, 2, 2, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(function, (weight, given_x))


# --- semantic loss ----------------------------------------------------------------


def by_enumeration(rows: np.ndarray) -> float:
    """The loss by summing the chances of all assignments with exactly one true."""
    total = 0.0
    for p in rows:
        chance = 0.0
        for bits in range(2 ** len(p)):
            true = (bits >> np.arange(len(p))) % 2 == 1
            if true.sum() == 1:
                chance += np.where(true, p, 1 - p).prod()
        total -= math.log(chance)
    return total


def by_products(rows: Tensor) -> Tensor:
    """The loss in its O(L²) product form, differentiable."""
    n = rows.shape[1]
    own = torch.eye(n, dtype=torch.bool)
    chances = torch.where(own, rows[:, None, :], 1 - rows[:, None, :]).prod(-1)
    return -chances.sum(1).log().sum()


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_that_of_all_assignments(n: int, normalised: bool) -> None:
    """For up to 12 positions enumerating 2ⁿ assignments gives the same to 1e-10."""
    random = np.random.default_rng(n)
    rows = random.uniform(0.01, 0.99, (3, n))
    if normalised and n > 1:
        rows /= rows.sum(1, keepdims=True)
    found = semantic_loss(torch.from_numpy(rows)).item()
    assert found == pytest.approx(by_enumeration(rows), rel=0, abs=1e-10)


@given(st.lists(st.floats(1e-3, 0.999), min_size=1, max_size=8))
def test_the_loss_is_its_product_form(row: list[float]) -> None:
    """Value and gradient are those of the products, for any probabilities."""
    p, other = (
        torch.tensor([row], dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    found, expected = semantic_loss(p), by_products(other)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    found.backward()
    expected.backward()
    torch.testing.assert_close(p.grad, other.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [2, 3, 4, 256, 289, 10_000])
def test_the_loss_of_equal_probabilities(n: int) -> None:
    """Uniform over L positions it is -(L - 1) ln(1 - 1/L)."""
    row = torch.full((1, n), 1 / n, dtype=torch.float64)
    expected = -(n - 1) * math.log1p(-1 / n)
    assert semantic_loss(row).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.5] * 2, 0.693147),
        ([0.25] * 4, 0.863046),
        ([1 / 256] * 256, 0.998044),
        ([1 / 289] * 289, 0.998268),
        ([0.9, 0.1], 0.198451),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_the_reference(
    row: list[float], expected: float, dtype: torch.dtype
) -> None:
    """The values that the reference gives, in both precisions."""
    found = semantic_loss(torch.tensor([row], dtype=dtype))
    assert found.dtype is dtype
    tolerance = 6e-7 if dtype is torch.float64 else 5e-6
    assert found.item() == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("n", [1, 2, 289, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_true_position_costs_nothing(n: int, dtype: torch.dtype) -> None:
    """One-hot rows have a loss between 0 and 1e-4."""
    row = torch.zeros(1, n, dtype=dtype)
    row[0, n // 2] = 1
    assert 0 <= semantic_loss(row).item() < 1e-4


def test_no_or_two_true_positions_cost_much() -> None:
    """All zeros cost -ln(L·1e-12), and two ones more than ten."""
    nothing = torch.zeros(1, 10, dtype=torch.float64)
    assert semantic_loss(nothing).item() == pytest.approx(-math.log(1e-11), rel=1e-9)
    two = nothing.clone()
    two[0, :2] = 1
    assert semantic_loss(two).item() > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["uniform", "one-hot", "zeros", "ones", "random"])
def test_ten_thousand_positions_stay_finite(kind: str, dtype: torch.dtype) -> None:
    """Loss and gradient are finite for exact zeros and ones too."""
    rows = torch.zeros(2, 10_000, dtype=dtype)
    if kind == "one-hot":
        rows[:, 17] = 1
    elif kind == "random":
        rows.uniform_(generator=seeded())
    else:
        rows += {"uniform": 1e-4, "zeros": 0.0, "ones": 1.0}[kind]
    rows.requires_grad_()
    loss = semantic_loss(rows)
    loss.backward()
    assert math.isfinite(loss.item())
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("rand_onehot", [True, False])
def test_gradients_reach_the_weights_of_every_position(rand_onehot: bool) -> None:
    """Through OneHot the gradient is finite, and not 0 where weights are random."""
    torch.manual_seed(0)
    layer = OneHot(3, 17, 17, rand_onehot)
    semantic_loss(layer.probabilities()).backward()
    assert layer.weight.grad.isfinite().all()
    if rand_onehot:
        assert (layer.weight.grad != 0).all()


def test_descending_the_loss_makes_one_hot_rows() -> None:
    """Minimised through OneHot alone, each unit's largest probability goes to 1."""
    torch.manual_seed(0)
    layer = OneHot(3, 4, 4, True).double()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        semantic_loss(layer.probabilities()).backward()
        optimizer.step()
    assert (layer.probabilities().max(1).values > 0.9).all()


def test_losses_are_summed_over_units() -> None:
    """The loss of several rows is the sum of each row's own."""
    rows = maps(5, 7).sigmoid()
    alone = sum(semantic_loss(row[None]).item() for row in rows)
    assert semantic_loss(rows).item() == pytest.approx(alone, rel=1e-12)
    assert semantic_loss(rows).shape == ()


class CountedOperations(TorchDispatchMode):
    """Counts the operations that torch runs inside."""

    n_operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n_operations += 1
        return function(*args, **(kwargs or {}))


def operations(n_units: int, n_places: int) -> int:
    """Operations of loss and backward for rows of equal probabilities."""
    rows = torch.full((n_units, n_places), 1 / n_places, requires_grad=True)
    with CountedOperations() as counted:
        semantic_loss(rows).backward()
    return counted.n_operations


def test_the_loss_loops_over_nothing() -> None:
    """The number of operations is the same for 2 and 300 positions, 1 and 20 units."""
    assert operations(1, 2) == operations(1, 300) == operations(20, 300) > 0
