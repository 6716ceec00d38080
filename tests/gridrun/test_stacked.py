"""Stacks of small convolutions: what they are made of and that they equal one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor, nn
from torch.nn import functional as F

from gridrun.errors import ConfigError
from gridrun.nn import LinearStackedConv2d, ShakeShake, collapse_stacks, valid_map
from gridrun.nn.stacked import compose_kernels, sub_kernels

KSIZES = range(1, 18)


def image(side: int, channels: int = 2, batch: int = 1) -> Tensor:
    """A random image in float64, equal at every call."""
    generator = torch.Generator().manual_seed(side)
    return torch.randn(
        batch, channels, side, side, generator=generator, dtype=torch.float64
    )


def stack(*args: Any, **keys: Any) -> LinearStackedConv2d:
    """A seeded stack in float64."""
    torch.manual_seed(0)
    return LinearStackedConv2d(*args, **keys).double()


@pytest.mark.parametrize(
    ("ksize", "expected"),
    [
        (1, [1]),
        (2, [2]),
        (3, [3]),
        (4, [3, 2]),
        (5, [3, 3]),
        (6, [3, 3, 2]),
        (11, [3] * 5),
        (12, [3] * 5 + [2]),
        (13, [3] * 6),
        (15, [3] * 7),
    ],
)
def test_sub_kernels_of_the_reference(ksize: int, expected: list[int]) -> None:
    """Kernels above 3 are 3×3s, and even ones end in a 2×2."""
    assert sub_kernels(ksize) == expected
    convs = stack(2, 3, ksize).convs
    assert [conv.kernel_size for conv in convs] == [(k, k) for k in expected]


@pytest.mark.parametrize("ksize", KSIZES)
def test_sub_kernels_have_the_receptive_field_of_the_whole(ksize: int) -> None:
    """The field of a stack is exactly the large kernel's."""
    assert 1 + sum(k - 1 for k in sub_kernels(ksize)) == ksize


@pytest.mark.parametrize(
    ("cin", "cout", "ksize", "count"),
    [(40, 8, 15, 6344), (8, 8, 11, 2888), (3, 64, 11, 149_248)],
)
def test_counts_of_the_reference(cin: int, cout: int, ksize: int, count: int) -> None:
    """Stacks have the published numbers of parameters, inner biases off."""
    found = sum(p.numel() for p in LinearStackedConv2d(cin, cout, ksize).parameters())
    assert found == count


@pytest.mark.parametrize("ksize", KSIZES)
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("padding", [0, 1, 2, 5])
def test_a_stack_is_its_collapsed_convolution(
    ksize: int, stride: int, padding: int
) -> None:
    """In evaluation stack and collapse() agree to 1e-12, borders included."""
    whole = stack(2, 3, ksize, stride, padding, drop_p=0.4).eval()
    x = image(ksize + 6)
    with torch.no_grad():
        expected, found = whole(x), whole.collapse()(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ksize", KSIZES)
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_inner_biases_are_folded(ksize: int, stride: int, bias: bool) -> None:
    """Without padding, biases of all sub-convolutions become one."""
    whole = stack(2, 3, ksize, stride, bias=bias, inner_bias=True).eval()
    x = image(ksize + 6)
    with torch.no_grad():
        torch.testing.assert_close(whole.collapse()(x), whole(x), rtol=0, atol=1e-12)


def test_inner_biases_with_padding_are_refused() -> None:
    """Padding before an inner bias is no convolution, and the error says so."""
    with pytest.raises(ConfigError, match="inner_bias with padding"):
        LinearStackedConv2d(2, 3, 5, padding=1, inner_bias=True)


def test_the_collapsed_kernel_is_scipy_s_full_convolution() -> None:
    """A stack of three is the full convolution of its kernels, channel by channel."""
    whole = stack(2, 3, 7)
    kernels = [conv.weight.detach().numpy() for conv in whole.convs]
    composed = kernels[0]
    for kernel in kernels[1:]:
        composed = full_convolution(composed, kernel)
    found = whole.collapse().weight.detach().numpy()
    np.testing.assert_allclose(found, composed, rtol=0, atol=1e-14)


def full_convolution(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Kernel of two convolutions in a row, by scipy and loops over channels."""
    n_out, n_mid, n_in = len(second), len(first), first.shape[1]
    side = first.shape[-1] + second.shape[-1] - 1
    result = np.zeros((n_out, n_in, side, side))
    for o, m, i in itertools.product(range(n_out), range(n_mid), range(n_in)):
        result[o, i] += signal.convolve2d(first[m, i], second[o, m], "full")
    return result


@pytest.mark.parametrize("a", [1, 2, 3, 5])
@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_composed_kernels_agree_with_scipy(a: int, b: int) -> None:
    """compose_kernels is scipy's full convolution, summed over inner channels."""
    random = np.random.default_rng(a + 10 * b)
    first, second = random.normal(size=(4, 2, a, a)), random.normal(size=(3, 4, b, b))
    found = compose_kernels(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(found, full_convolution(first, second), atol=1e-13)


def test_composed_kernels_have_correct_gradients() -> None:
    """compose_kernels is differentiable in both kernels."""
    random = np.random.default_rng(0)
    first, second = (
        torch.from_numpy(random.normal(size=shape)).requires_grad_()
        for shape in ((2, 2, 3, 3), (2, 2, 2, 2))
    )
    assert torch.autograd.gradcheck(compose_kernels, (first, second))


@pytest.mark.parametrize("ksize", [2, 5, 8, 13])
def test_gradients_flow_to_every_sub_convolution(ksize: int) -> None:
    """No gradient of a stack is missing or zero everywhere."""
    whole = stack(2, 3, ksize)
    whole(image(ksize + 3)).square().sum().backward()
    for name, parameter in whole.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("ksize", KSIZES)
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 2), (4, 5), (3, 1)])
def test_maps_are_those_of_the_plain_convolution(
    ksize: int, stride: int, padding: int
) -> None:
    """valid_map, stack and torch's convolution agree on height and width."""
    x = torch.zeros(1, 1, 19, 23)
    plain = torch.nn.Conv2d(1, 1, ksize, stride, padding)(x)
    stacked = LinearStackedConv2d(1, 1, ksize, stride, padding)(x)
    assert stacked.shape == plain.shape
    assert valid_map((19, 23), ksize, stride, padding) == tuple(plain.shape[2:])


def test_bias_is_on_the_last_convolution_only() -> None:
    """Inner convolutions have no bias, and bias false leaves none."""
    assert [c.bias is not None for c in stack(2, 3, 7).convs] == [False, False, True]
    assert all(conv.bias is None for conv in stack(2, 3, 7, bias=False).convs)
    assert stack(2, 3, 7, bias=False).collapse().bias is None


def test_dropout_acts_in_training_only() -> None:
    """With drop_p training outputs vary, evaluation's are those without it."""
    dropping, plain = stack(2, 3, 7, drop_p=0.5), stack(2, 3, 7)
    x = image(9)
    with torch.no_grad():
        assert not torch.equal(dropping.train()(x), dropping(x))
        assert torch.equal(dropping.eval()(x), plain.eval()(x))


def test_dropout_lies_between_sub_convolutions() -> None:
    """A stack of one has nothing to drop: neither its input nor its output."""
    whole = stack(2, 3, 3, drop_p=0.9).train()
    x = image(9)
    with torch.no_grad():
        assert torch.equal(whole(x), whole.eval()(x))


def test_dropout_keeps_the_mean() -> None:
    """Over many draws the mean output with dropout is the output without it."""
    whole = stack(1, 2, 5, drop_p=0.3)
    x = image(5, 1).expand(20_000, -1, -1, -1)
    with torch.no_grad():
        drawn, expected = whole.train()(x), whole.eval()(x[:1])
    error = (drawn.mean(0) - expected[0]).abs() / (drawn.std(0) / len(x) ** 0.5)
    assert (error < 5).all()


def test_collapsing_gives_a_copy() -> None:
    """Writing into the collapsed convolution leaves the stack as it was."""
    whole = stack(2, 3, 3)
    before = whole.convs[0].weight.clone()
    with torch.no_grad():
        whole.collapse().weight.zero_()
    assert torch.equal(whole.convs[0].weight, before)


def test_collapsed_convolutions_keep_the_type() -> None:
    """A float64 stack collapses to float64, a float32 one to float32."""
    assert stack(2, 3, 5).collapse().weight.dtype is torch.float64
    assert stack(2, 3, 5).float().collapse().weight.dtype is torch.float32


@pytest.mark.parametrize("ksize", KSIZES)
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 5), (2, 1), (4, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_the_factors_are_those_through_the_composed_kernel(
    ksize: int, stride: int, padding: int, bias: bool
) -> None:
    """One large convolution of the composed kernel gives the factors' gradients."""
    whole = stack(2, 3, ksize, stride, padding, bias=bias, drop_p=0.4).eval()
    x = image(ksize + 6)
    kernel = whole.convs[0].weight
    for conv in list(whole.convs)[1:]:
        kernel = compose_kernels(kernel, conv.weight)
    y = F.conv2d(x, kernel, whole.convs[-1].bias, stride, padding)
    parameters = list(whole.parameters())
    expected = torch.autograd.grad(y.square().mean(), parameters)
    found = torch.autograd.grad(whole(x).square().mean(), parameters)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


class Nested(nn.Module):
    """Stacks as a child, in a list and in Shake-Shake, each with another beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            LinearStackedConv2d(2, 3, 5, padding=2, drop_p=0.5), nn.Tanh()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                LinearStackedConv2d(3, 3, 4, inner_bias=True), nn.BatchNorm2d(3)
            )
            for _ in range(2)
        )
        self.shaken = ShakeShake(lambda: LinearStackedConv2d(3, 2, 5, stride=2), 2)
        self.last = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All of them, one after the other."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.last(self.shaken(x))
        return y


def test_collapsing_nested_stacks_leaves_the_outputs() -> None:
    """Every stack becomes its one convolution in place, at whatever depth."""
    torch.manual_seed(0)
    model = Nested().double().eval()
    x = image(16, batch=3)
    others = {
        name: module
        for name, module in model.named_modules()
        if ".convs" not in name and not isinstance(module, LinearStackedConv2d)
    }
    others = {name: m for name, m in others.items() if not name.endswith(".dropout")}
    with torch.no_grad():
        expected = model(x)
        assert collapse_stacks(model) is None
        found = model(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    left = dict(model.named_modules())
    assert not any(isinstance(m, LinearStackedConv2d) for m in left.values())
    assert all(left[name] is module for name, module in others.items())
    added = {name: module for name, module in left.items() if name not in others}
    assert set(added) == {
        "first.0",
        "blocks.0.0",
        "blocks.1.0",
        "shaken.branches.0",
        "shaken.branches.1",
    }
    assert all(isinstance(module, nn.Conv2d) for module in added.values())


def test_collapsed_convolutions_can_be_trained() -> None:
    """The one convolution's kernel and bias are leaves of their own."""
    whole = stack(2, 3, 7, padding=1)
    plain = whole.collapse()
    plain(image(9)).square().sum().backward()
    assert plain.weight.is_leaf
    assert plain.weight.grad.abs().max() > 0
    assert plain.bias.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in whole.parameters())
