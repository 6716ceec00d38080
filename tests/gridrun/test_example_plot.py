"""Pictures of a few samples: which kind is drawn for which arrays."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from gridrun.training.example_plot import examples_figure


def normal(*shape: int, seed: int = 0) -> Any:
    """Seeded normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(*given: Any, **more: Any) -> Figure:
    """The figure, drawn as for a file."""
    figure = examples_figure(*given, **more)
    figure.savefig(io.BytesIO(), format="png", dpi=120)
    return figure


def titles(figure: Figure) -> list[str]:
    """Those of the panels that have one."""
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def ticks(axis: Any) -> list[str]:
    """Labels within an axis' limits."""
    low, high = sorted(axis.get_view_interval())
    return [
        label.get_text()
        for label in axis.get_ticklabels()
        if low <= label.get_position()[axis.axis_name == "y"] <= high
    ]


def test_numbers_beside_a_column_of_predictions() -> None:
    """Targets (n,) that are no whole numbers have no classes, whatever the shapes."""
    t, y = normal(3), normal(3, 1, seed=1)
    figure = drawn(normal(3, 5), y, t)
    assert not any(axis.patches for axis in figure.axes)
    for sample, axis in enumerate(figure.axes[:3]):
        lines = {line.get_label(): line.get_ydata() for line in axis.lines}
        assert lines == {"target": t[sample], "prediction": y[sample]}
        assert ticks(axis.xaxis) == ["0"]
    assert len({axis.get_ylim() for axis in figure.axes[:3]}) == 1


@pytest.mark.parametrize("n_outputs", [2, 5])
def test_numbers_beside_several_outputs(n_outputs: int) -> None:
    """Fractions are no classes either; a single output is no probability."""
    figure = drawn(normal(3, 5), normal(3, n_outputs), normal(3))
    assert not any(axis.patches for axis in figure.axes)
    figure = drawn(normal(3, 5), normal(3, 1), np.arange(3))
    assert not any(axis.patches for axis in figure.axes)


def test_classes_are_bars() -> None:
    """Probabilities, the true class dark, under whole numbers."""
    logits = normal(2, 3)
    figure = drawn(normal(2, 5), logits, np.array([2, 0]), indices=[7, 3])
    assert titles(figure) == ["sample 7", "sample 3"]
    for axis, own, label in zip(figure.axes, logits, (2, 0), strict=True):
        odds = np.exp(own.astype(float))
        heights = [bar.get_height() for bar in axis.patches]  # type: ignore[attr-defined]
        np.testing.assert_allclose(heights, odds / odds.sum(), rtol=1e-6)
        darkest = min(range(3), key=lambda i: axis.patches[i].get_facecolor()[0])
        assert darkest == label
        assert ticks(axis.xaxis) == ["0", "1", "2"]


@pytest.mark.parametrize("n_chans", [1, 3])
def test_images_stand_above_the_bars(n_chans: int) -> None:
    """Each on its own scale, which need not be 0 to 1."""
    x = 50 * normal(5, n_chans, 6, 7) + 10
    figure = drawn(x, normal(5, 4), np.arange(5) % 4, indices=[9, 8, 7, 6, 5])
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert titles(figure) == [f"sample {index}" for index in (9, 8, 7, 6, 5)]
    assert len(shown) == 5
    for image, picture in zip(x, shown, strict=True):
        assert picture is not None
        unit = (image - image.min()) / (image.max() - image.min())
        whole = np.broadcast_to(unit, (3, 6, 7)).transpose(1, 2, 0)
        np.testing.assert_allclose(picture, whole, atol=1e-6)
    assert sum(len(axis.patches) == 4 for axis in figure.axes) == 5


def test_classes_of_pixels_are_pictures() -> None:
    """The input, the class of the largest logit and the true class; -100 is none."""
    logits, labels = normal(2, 4, 5, 6), np.arange(60).reshape(2, 5, 6) % 4
    labels[0, 0, 0] = -100
    figure = drawn(normal(2, 3, 5, 6), logits, labels, indices=[2, 0])
    shown: list[Any] = [axis.images[0].get_array() for axis in figure.axes[:6]]
    assert titles(figure) == ["sample 2", "sample 0"]
    assert [picture.shape for picture in shown[:2]] == [(5, 6, 3)] * 2
    for sample in (0, 1):
        np.testing.assert_array_equal(shown[2 + sample], logits[sample].argmax(0))
        np.testing.assert_array_equal(shown[4 + sample].data, labels[sample])
    assert shown[4].mask.sum() == 1
    assert not shown[5].mask.any()
    assert ticks(figure.axes[-1].yaxis) == ["0", "1", "2", "3"]


def test_panels_are_named_by_place_in_the_subset() -> None:
    """Without places they are counted."""
    pictures = normal(2, 1, 4, 4)
    lines, classes = normal(2, 4), np.array([0, 1])
    for given in (
        (pictures, pictures, pictures),
        (lines, lines, lines),
        (lines, lines, classes),
    ):
        assert titles(drawn(*given, indices=[2, 0])) == ["sample 2", "sample 0"]
    assert titles(drawn(lines, lines, lines)) == ["example 0", "example 1"]


@pytest.mark.parametrize(
    ("inputs", "predictions", "targets"),
    [
        (normal(2, 3), normal(2, 4, 5), normal(2, 4)),
        (normal(2, 3), normal(2, 3), normal(2, 4, 5)),
        (normal(2, 1, 9), normal(2, 3, 9), np.ones((2, 9), int)),
        (normal(2, 1, 4, 4, 4), normal(2, 3, 4, 4, 4), np.ones((2, 4, 4, 4), int)),
        (normal(2, 3), normal(2, 4, 5), np.ones((2, 4), int)),
        (normal(2, 3, 4, 4), normal(2, 1, 4, 4), normal(2, 4, 4)),
        (normal(2, 3, 4, 4), normal(2, 3, 4, 5), normal(2, 3, 4, 4)),
        (normal(2, 1, 1, 99), normal(2, 1), np.array([0, 0])),
        (normal(2, 1, 1, 99), normal(2, 2), np.array([0, 5])),
        (normal(2, 3, 0, 4), normal(2, 3, 0, 4), normal(2, 3, 0, 4)),
        (normal(2, 0), normal(2, 0), np.array([0, 1])),
        (normal(2, 3), normal(2), np.array([True, False])),
        (normal(2, 3), normal(2, 2), np.array([True, False])),
        (normal(3, 2), normal(1, 2), normal(2, 2)),
        (normal(0, 2), normal(0, 2), normal(0, 2)),
        (normal(2), np.float32(1), np.float32(2)),
        (np.nan * normal(2, 3, 4, 4), np.nan * normal(2, 3), np.array([0, 1])),
        (np.nan * normal(2, 3, 4, 4),) * 3,
        (normal(2, 1, 4, 4), np.inf * normal(2, 3, 4, 4), np.ones((2, 4, 4), int)),
        (np.ones((2, 3, 4, 4)), np.ones((2, 25, 4, 4)), np.ones((2, 4, 4), int)),
        (np.ones((9, 3, 4, 4)), np.ones((9, 1000)), np.arange(9)),
    ],
)
def test_odd_shapes_are_drawn(inputs: Any, predictions: Any, targets: Any) -> None:
    """A picture never stops a run."""
    drawn(inputs, predictions, targets, indices=[4])
