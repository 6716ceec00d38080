"""Principal components of a hidden layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from gridrun.diagnostics.arrays import Floats, as_array
from gridrun.diagnostics.context import Context, Count, Found, NotApplicable, Samples
from gridrun.diagnostics.layers import layer_named, named_maps, watch
from gridrun.figures import dot_size, lighten, new_figure, whole_numbers, whole_ticks
from gridrun.nn import GrabUnits

MAX_CLASSES = 20  # that a legend names


def latent_pca(
    model: nn.Module,
    batch: Samples,
    context: Context,
    *,
    layer: str | None = None,
    n_components: Count = 10,
) -> Found:
    """Principal components of a layer's activations over the batch.

    Args:
        model, batch, context: As of every diagnostic.
        layer: Module whose output is taken; None: the last hidden layer, which is the
            input of the last linear map.
        n_components: Of `explained_variance_ratios`, at most.

    Returns:
        `explained_variance_ratios` (n,), shares of the variance over samples;
        `participation_ratio`, (Σλ)²/Σλ² of the variances λ, an effective dimension;
        `figure`: samples on the first two components, coloured by target.

    Raises:
        NotApplicable: If the model has no hidden layer, or one sample is all there is.
    """
    name, hidden = _hidden(model, batch.inputs, layer)
    x = as_array(hidden.flatten(1))
    if len(x) < 2:
        raise NotApplicable("latent_pca: needs 2 samples or more")
    scores, variances = principal_components(x)
    total, squares = variances.sum(), np.square(variances).sum()
    ratios = variances / total if total > 0 else np.zeros_like(variances)
    return {
        "explained_variance_ratios": ratios[:n_components],
        "participation_ratio": float(total**2 / squares) if squares > 0 else 0.0,
        "figure": _picture(scores, ratios, batch.targets, name, n_components),
    }


def principal_components(x: Floats) -> tuple[Floats, Floats]:
    """Scores and variances of samples (B, F), largest variance first.

    Signs are such that the largest score of each component is positive.

    Returns:
        (B, R) and (R,), R = min(B, F).
    """
    centred = x - x.mean(0)
    centred[np.abs(centred) <= 1e-14 * np.abs(x).max()] = 0  # rounding of the mean
    # torch's, on the long side: five times faster than numpy's
    _, lengths, right = torch.linalg.svd(torch.from_numpy(centred.T), False)
    sizes = as_array(lengths)
    scores = as_array(right).T * sizes
    tops = np.take_along_axis(scores, np.abs(scores).argmax(0)[None], 0)
    return scores * np.where(tops < 0, -1.0, 1.0), sizes**2 / (len(x) - 1)


def _hidden(model: nn.Module, inputs: Tensor, layer: str | None) -> tuple[str, Tensor]:
    """Activations (B, ...) and a name for them."""
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    maps = named_maps(model)

    def see(name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        if name in maps:
            given.pop(name, None)  # so that the last call stands last
            given[name] = x
        if name == layer:
            made[name] = output.clone()  # the next layer may change it in place
        elif "." not in name:
            made[name] = output

    if layer is not None:
        layer_named(model, layer)
    watch(model, inputs, see)
    if layer is not None:
        if layer not in made:
            raise NotApplicable(f"layer: {layer!r} gives no tensor when the model runs")
        return layer, made[layer]
    last = list(given)[-1] if given else ""
    if given and list(maps)[-1] not in given and _reads_places(model):
        block = last.partition(".")[0]  # the ganglion layer's weights are read directly
        return block, made[block]
    if len(given) < 2:
        raise NotApplicable(
            f"latent_pca: {type(model).__name__} has no hidden layer: its first linear "
            "map is its last; layer names what to look at"
        )
    return f"input of {last}", given[last]


def _reads_places(model: nn.Module) -> bool:
    return any(isinstance(module, GrabUnits) for module in model.modules())


def _picture(
    scores: Floats, ratios: Floats, targets: Tensor, name: str, n_components: int
) -> Figure:
    figure, axes = new_figure(1, 2, (9, 3.8), width_ratios=[1.6, 1])
    plane, spectrum = axes[0]
    shown = scores[:, :2] if scores.shape[1] > 1 else np.pad(scores, ((0, 0), (0, 1)))
    _scatter(plane, shown, targets)
    for number, label in enumerate((plane.set_xlabel, plane.set_ylabel)):
        share = 100 * ratios[number] if number < len(ratios) else 0.0
        label(f"component {number + 1} ({share:.0f} % of the variance)")
    plane.set_title(f"activations, {name}", size=9)
    first = ratios[:n_components]
    spectrum.bar(range(1, len(first) + 1), 100 * first, color="0.6")
    spectrum.plot(range(1, len(first) + 1), 100 * first.cumsum(), "k.-", label="sum")
    spectrum.set_xlabel("component")
    spectrum.set_ylabel("variance explained (%)")
    spectrum.set_ylim(0, 104)
    spectrum.legend(frameon=False, fontsize=8)
    whole_ticks(spectrum.xaxis)
    lighten(plane)
    lighten(spectrum)
    return figure


def _scatter(axis: Axes, points: Floats, targets: Tensor) -> None:
    """Points (B, 2) coloured by class, or by the mean of continuous targets."""
    area = dot_size(len(points), 3.75) ** 2
    style: dict[str, Any] = {"s": area, "linewidths": 0, "alpha": 0.85}
    values = as_array(targets).reshape(len(points), -1).mean(1)
    is_class = targets.ndim == 1 and not targets.is_floating_point()
    classes = np.unique(values) if is_class else np.empty(0)
    if is_class and len(classes) <= MAX_CLASSES:
        palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
        for i, one in enumerate(classes):
            own = points[values == one]
            axis.scatter(
                own[:, 0], own[:, 1], color=palette(i), label=f"{one:.0f}", **style
            )
        legend = {"title": "class", "fontsize": 7, "title_fontsize": 7}
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
        axis.legend(**legend, **beside)
        return
    drawn = axis.scatter(points[:, 0], points[:, 1], c=values, cmap="viridis", **style)
    label = "class" if is_class else "target"
    label += "" if targets.ndim == 1 else ", mean over units"
    ticks = whole_numbers() if is_class else None
    axis.figure.colorbar(drawn, ax=axis, label=label, ticks=ticks)
