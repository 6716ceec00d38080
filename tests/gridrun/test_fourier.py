"""Convolutions by Fourier transform against direct ones; the rule that chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate
from torch import Tensor, nn

from gridrun.nn import (
    EitherMethod,
    LinearStackedConv2d,
    Spectrum,
    ValidConv2d,
    chosen_methods,
    flat_transform,
    fourier_conv2d,
    set_method,
)
from gridrun.nn.fourier import faster_method, padded

shapes = st.tuples(
    st.integers(1, 3),  # samples
    st.integers(1, 4),  # inputs
    st.integers(1, 3),  # outputs
    st.integers(1, 13),  # height
    st.integers(1, 13),  # width
    st.integers(1, 13),  # kernel
).filter(lambda shape: shape[5] <= min(shape[3:5]))


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random numbers, equal at every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


# --- against the definition -------------------------------------------------------


@settings(deadline=None)
@given(shapes, st.booleans())
def test_outputs_and_gradients_are_those_of_direct_convolutions(
    shape: tuple[int, ...], has_bias: bool
) -> None:
    """In float64 to 1e-9, for maps and kernels of any size."""
    n, cin, cout, height, width, side = shape
    x = numbers(n, cin, height, width).requires_grad_()
    weight = numbers(cout, cin, side, side, seed=1).requires_grad_()
    bias = numbers(cout, seed=2).requires_grad_() if has_bias else None
    wanted = [one for one in (x, weight, bias) if one is not None]
    expected, found = F.conv2d(x, weight, bias), fourier_conv2d(x, weight, bias)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    change = numbers(*expected.shape, seed=3)
    pairs = zip(
        torch.autograd.grad(found, wanted, change),
        torch.autograd.grad(expected, wanted, change),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_outputs_are_those_of_scipy() -> None:
    """Each output is the sum over inputs of scipy's valid correlation."""
    x, weight = numbers(1, 3, 11, 9), numbers(2, 3, 4, 4, seed=1)
    found = fourier_conv2d(x, weight)[0].numpy()
    for out in range(2):
        parts = [
            correlate(x[0, c].numpy(), weight[out, c].numpy(), "valid", "direct")
            for c in range(3)
        ]
        np.testing.assert_allclose(found[out], sum(parts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("from_spectrum", [False, True])
def test_gradcheck(from_spectrum: bool) -> None:
    """First and second derivatives agree with finite differences."""
    x, weight, bias = numbers(2, 2, 5, 7), numbers(2, 2, 3, 3, seed=1), numbers(2)
    values = (weight, bias) if from_spectrum else (x, weight, bias)
    spectrum = Spectrum.of(x)

    def convolve(*given: Tensor) -> Tensor:
        start: Any = (spectrum,) if from_spectrum else ()
        return fourier_conv2d(*start, *given)

    inputs = tuple(one.requires_grad_() for one in values)
    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs)


def test_single_precision_is_good_to_1e_5() -> None:
    """At the size of the published first layer, relative to the largest value."""
    x = numbers(4, 40, 50, 50, dtype=torch.float32)
    weight = numbers(8, 40, 15, 15, seed=1, dtype=torch.float32) / 100
    expected = F.conv2d(x.double(), weight.double())
    error = (fourier_conv2d(x, weight).double() - expected).abs().max()
    assert error < 1e-5 * expected.abs().max()


def test_a_spectrum_stands_for_its_maps() -> None:
    """Bit for bit, whether of the maps together or made row by row."""
    x, weight = numbers(5, 3, 9, 8, dtype=torch.float32), numbers(2, 3, 4, 4).float()
    expected = fourier_conv2d(x, weight)
    rows = torch.cat([flat_transform(one[None]) for one in x.flatten(0, 1)])
    for spectrum in (Spectrum.of(x), Spectrum.of_rows(rows, 3, (9, 8))):
        assert len(spectrum) == 5
        assert torch.equal(fourier_conv2d(spectrum, weight), expected)


@pytest.mark.parametrize("size", [(50, 50), (20, 20), (37, 41)])
def test_a_map_s_transform_does_not_depend_on_the_others(size: tuple[int, int]) -> None:
    """Else results would depend on what is kept, and on the cohort."""
    maps = numbers(300, *size, dtype=torch.float32)
    whole = flat_transform(maps)
    for first, end in ((0, 1), (7, 8), (3, 20), (299, 300), (5, 290)):
        part = flat_transform(maps[first:end].clone())
        assert torch.equal(part, whole[first:end])


@pytest.mark.parametrize(
    ("size", "expected"), [((50, 36), (50, 36)), ((47, 13), (48, 14)), ((1, 2), (1, 2))]
)
def test_circles_have_small_prime_factors(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    """The next size without a prime beyond 7."""
    assert padded(size) == expected


def test_autocast_leaves_transforms_in_the_weights_type() -> None:
    """There is no transform in bfloat16."""
    x, weight = numbers(2, 3, 9, 8, dtype=torch.float32), numbers(2, 3, 4, 4).float()
    expected = fourier_conv2d(x.bfloat16().float(), weight)
    stack = LinearStackedConv2d(3, 2, 5)
    stack.method = "fourier"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fourier_conv2d(x.bfloat16(), weight), expected)
        assert stack(x).dtype is torch.float32


# --- layers -----------------------------------------------------------------------

LAYERS: dict[str, Callable[[], EitherMethod]] = {
    "plain": lambda: ValidConv2d(3, 4, 5, size=(12, 11)),
    "without bias": lambda: ValidConv2d(3, 4, 6, bias=False, size=(12, 11)),
    "stack": lambda: LinearStackedConv2d(3, 4, 7, size=(12, 11)),
    "even stack": lambda: LinearStackedConv2d(3, 4, 6, bias=False, size=(12, 11)),
    "inner biases": lambda: LinearStackedConv2d(3, 4, 7, inner_bias=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_both_methods_are_one_function(name: str) -> None:
    """Outputs and all gradients agree in float64; the state has the same names."""
    layer = LAYERS[name]().double()
    x = numbers(4, 3, 12, 11).requires_grad_()
    found = {}
    for method in ("direct", "fourier"):
        set_method(layer, method)
        assert chosen_methods(layer) == {"": method}
        y = layer(x)
        found[method] = [
            y,
            *torch.autograd.grad(y.sin().sum(), [x, *parameters(layer)]),
        ]
    for one, other in zip(found["direct"], found["fourier"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def parameters(layer: nn.Module) -> list[nn.Parameter]:
    return list(layer.parameters())


def test_a_valid_convolution_is_torch_s() -> None:
    """Equal names, start and, directly computed, bits."""
    torch.manual_seed(0)
    ours = ValidConv2d(3, 4, 5, size=(12, 12))
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 4, 5)
    ours.method = "direct"
    x = numbers(2, 3, 12, 12, dtype=torch.float32)
    assert torch.equal(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_dropout_within_a_stack_is_trained_directly() -> None:
    """It makes a stack no convolution, where there are parts to drop between."""
    stack = LinearStackedConv2d(3, 4, 7, drop_p=0.5, size=(50, 50))
    assert stack.train().chosen_method == "direct"
    assert stack.eval().chosen_method == "fourier"
    single = LinearStackedConv2d(3, 4, 3, drop_p=0.5)
    single.method = "fourier"
    assert single.train().chosen_method == "fourier"


@pytest.mark.parametrize(
    "given", [{"stride": 2}, {"padding": 1}, {"padding": 2, "stride": 3}]
)
def test_padding_and_strides_stay_direct(given: dict[str, int]) -> None:
    """Only valid convolutions have a transform of their own size."""
    stack = LinearStackedConv2d(3, 4, 7, **given, size=(50, 50))
    assert stack.chosen_method == "direct"


# --- the rule ---------------------------------------------------------------------

MEASURED = [  # (inputs, outputs, side, kernel, from data), the faster method
    ((40, 8, 50, 15, True), "fourier"),
    ((40, 8, 50, 11, True), "fourier"),
    ((40, 8, 50, 5, True), "fourier"),
    ((8, 8, 36, 11, False), "fourier"),
    ((8, 8, 36, 7, False), "fourier"),
    ((8, 8, 36, 3, False), "direct"),
    ((40, 16, 20, 9, True), "fourier"),
    ((16, 16, 12, 5, False), "direct"),
    ((16, 16, 12, 12, False), "direct"),
    ((1, 8, 20, 9, True), "direct"),
    ((32, 32, 30, 9, False), "fourier"),
    ((32, 32, 30, 3, False), "direct"),
]


@pytest.mark.parametrize(("shape", "expected"), MEASURED)
def test_the_rule_agrees_with_measurements(
    shape: tuple[int, int, int, int, bool], expected: str
) -> None:
    """Where one method is clearly faster the rule takes it."""
    cin, cout, side, ksize, from_data = shape
    layer = ValidConv2d(cin, cout, ksize, size=(side, side), from_data=from_data)
    assert layer.chosen_method == expected


def test_the_rule_knows_the_device() -> None:
    """It is measured on CPUs; elsewhere convolutions are direct unless asked for."""
    assert faster_method(10**9, (40, 8), (50, 50), True) == "fourier"
    assert faster_method(10**9, (40, 8), (50, 50), True, "cuda") == "direct"


def test_the_choice_does_not_depend_on_what_is_convolved() -> None:
    """Batches and other image sizes leave a layer's method alone."""
    layer = ValidConv2d(3, 8, 9, size=(20, 20))
    assert layer.chosen_method == "fourier"
    for shape in ((1, 3, 9, 9), (50, 3, 30, 30)):
        layer(torch.zeros(shape))
        assert layer.chosen_method == "fourier"
