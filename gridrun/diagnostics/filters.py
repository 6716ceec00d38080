"""Pictures of the first layer's filters."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from gridrun.diagnostics.arrays import Floats, as_array
from gridrun.diagnostics.context import Context, Count, Found, NotApplicable, Samples
from gridrun.diagnostics.layers import layer_named, named_maps
from gridrun.figures import lighten, new_figure, whole_ticks, without_ticks, wrapped
from gridrun.nn import LinearStackedConv2d

MAX_COLUMNS = 8
MIN_WIDTH = 3.4  # of a figure in inches: room for its title
LINE = 0.15  # inches that a further line of a title takes


def first_filters(
    model: nn.Module,
    batch: Samples,
    context: Context,
    *,
    layer: str | None = None,
    n_filters: Count = 16,
    channels: Literal["auto", "colour", "time"] = "auto",
) -> Found:
    """What the first linear map's units look for.

    Of a factored stack it is the composed kernel; of a linear layer its weights, as
    pictures where these fit the inputs. Batch norm after it is left out.

    Args:
        model, batch, context: As of every diagnostic.
        layer: Another convolution, stack or linear layer.
        n_filters: How many, the first, at most.
        channels: What channels are. auto: colours if there are three, nothing if there
            is one, else frames of history, the newest last.

    Returns:
        Of frames: each filter's best product of a temporal and a spatial profile, by
        singular value decomposition: `temporal` (n, C) in the weights' unit, `spatial`
        (n, H, W) of norm 1, its largest value positive; `separability` (n,), the share
        of the filter's power that the product holds, and its mean over filters,
        `mean_separability`. Else `filters` (n, C, H, W), or (n, N) of a layer on
        vectors. Always a `figure`.

    Raises:
        NotApplicable: If there is no such layer.
    """
    name = layer if layer is not None else next(iter(named_maps(model)), None)
    if name is None:
        raise NotApplicable("first_filters: the model has no linear map")
    weights = effective_weights(layer_named(model, name), tuple(batch.inputs.shape[1:]))
    kernels = as_array(weights)[:n_filters]
    title = f"filters of {name}: {len(kernels)} of {len(weights)}"
    if kernels.ndim == 2:
        return {"filters": kernels, "figure": _matrix_picture(kernels, title)}
    if channels == "auto":
        channels = "colour" if kernels.shape[1] in (1, 3) else "time"
    if channels == "time":
        return _of_frames(kernels, title)
    if kernels.shape[1] not in (1, 3):
        raise NotApplicable(
            f"first_filters: {name} has {kernels.shape[1]} channels: no colours"
        )
    return {"filters": kernels, "figure": _colour_picture(kernels, title)}


def effective_weights(layer: nn.Module, img_shape: tuple[int, ...]) -> Tensor:
    """A layer's filters as they act on its input.

    Args:
        layer: Convolution, stack or linear layer.
        img_shape: Of one sample; a linear layer of as many inputs reads it flattened.

    Returns:
        (O, C, h, w), or (O, N) of a linear layer on vectors.

    Raises:
        NotApplicable: For another kind of layer.
    """
    if isinstance(layer, LinearStackedConv2d):
        return layer.composed()[0]
    if isinstance(layer, nn.Conv2d):
        return layer.weight
    if isinstance(layer, nn.Conv3d) and layer.weight.shape[1] == 1:
        return layer.weight[:, 0]
    if isinstance(layer, nn.Conv1d):
        return layer.weight[:, None]
    if isinstance(layer, nn.Linear):
        is_picture = len(img_shape) == 3 and layer.in_features == np.prod(img_shape)
        return layer.weight.reshape(-1, *img_shape) if is_picture else layer.weight
    raise NotApplicable(
        f"first_filters: a {type(layer).__name__} has no filters; layer names another"
    )


# --- frames of history --------------------------------------------------------------


def _of_frames(kernels: Floats, title: str) -> Found:
    temporal, spatial, separability = separated(kernels)
    return {
        "temporal": temporal,
        "spatial": spatial,
        "separability": separability,
        "mean_separability": float(separability.mean()),
        "figure": _frames_picture(temporal, spatial, separability, title),
    }


def separated(kernels: Floats) -> tuple[Floats, Floats, Floats]:
    """Best products of a temporal and a spatial profile.

    Args:
        kernels: (n, T, H, W).

    Returns:
        Temporal (n, T); spatial (n, H, W) of norm 1, its largest value positive; share
        of power (n,), 0 of a filter that is 0.
    """
    n, n_frames, *side = kernels.shape
    left, sizes, right = np.linalg.svd(
        kernels.reshape(n, n_frames, -1), full_matrices=False
    )
    temporal, spatial = left[:, :, 0] * sizes[:, :1], right[:, 0]
    tops = np.take_along_axis(spatial, np.abs(spatial).argmax(1)[:, None], 1)
    signs = np.where(tops < 0, -1.0, 1.0)
    power = np.square(sizes)
    share = power[:, 0] / np.maximum(power.sum(1), np.finfo(float).tiny)
    return temporal * signs, (spatial * signs).reshape(n, *side), share


def _frames_picture(
    temporal: Floats, spatial: Floats, separability: Floats, title: str
) -> Figure:
    n_columns, n_rows = _grid(len(spatial))
    width = max(1.45 * n_columns + 0.8, MIN_WIDTH)
    title = wrapped(f"{title} (share of power shown)", width, 9)
    size = (width, 2.7 * n_rows + 0.6 + LINE * title.count("\n"))
    ratios = [1.2, 1] * n_rows
    figure, axes = new_figure(2 * n_rows, n_columns, size, height_ratios=ratios)
    frames = np.arange(temporal.shape[1]) - temporal.shape[1] + 1
    top = 1.05 * np.abs(temporal).max() or 1.0
    for i, (above, below) in enumerate(_pairs(axes)):
        if i >= len(spatial):
            above.set_axis_off()
            below.set_axis_off()
            continue
        _signed_picture(above, spatial[i])
        above.set_title(f"{i} ({100 * separability[i]:.0f} %)", size=8)
        below.axhline(0, color="0.7", lw=0.6)
        below.plot(frames, temporal[i], "k", lw=1)
        below.set_ylim(-top, top)
        below.tick_params(labelsize=6)
        whole_ticks(below.xaxis)
        if i % n_columns:
            below.set_yticklabels([])
        lighten(below)
    figure.suptitle(title, size=9)
    figure.supxlabel("frame (0: the newest)", size=9)
    figure.supylabel("temporal weight (spatial profile above)", size=9)
    return figure


def _pairs(axes: Any) -> list[tuple[Axes, Axes]]:
    """Of axes (2n rows, columns) those above each other, in reading order."""
    return [
        pair
        for upper, lower in zip(axes[::2], axes[1::2], strict=True)
        for pair in zip(upper, lower, strict=True)
    ]


# --- colours, grey, rows ------------------------------------------------------------


def _colour_picture(kernels: Floats, title: str) -> Figure:
    n_columns, n_rows = _grid(len(kernels))
    width = max(1.1 * n_columns + 0.2, MIN_WIDTH)
    scale = "blue −, red +" if kernels.shape[1] == 1 else "grey: 0"
    title = wrapped(f"{title}, each on its own scale ({scale})", width, 8)
    size = (width, 1.12 * n_rows + 0.4 + LINE * title.count("\n"))
    figure, axes = new_figure(n_rows, n_columns, size)
    for i, axis in enumerate(axes.flat):
        if i >= len(kernels):
            axis.set_axis_off()
        elif kernels.shape[1] == 1:
            _signed_picture(axis, kernels[i, 0])
        else:
            top = np.abs(kernels[i]).max() or 1.0
            axis.imshow((0.5 + 0.5 * kernels[i] / top).transpose(1, 2, 0))
            without_ticks(axis)
    figure.suptitle(title, size=8)
    return figure


def _matrix_picture(rows: Floats, title: str) -> Figure:
    title = wrapped(title, 4.5, 9)
    height = 0.18 * len(rows) + 1.4 + LINE * title.count("\n")
    figure, axes = new_figure(1, 1, (6, height))
    axis = axes[0, 0]
    top = np.abs(rows).max() or 1.0
    image = axis.imshow(
        rows, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto", interpolation="nearest"
    )
    axis.set_xlabel("input")
    axis.set_ylabel("unit")
    whole_ticks(axis.xaxis, axis.yaxis)
    axis.set_title(title, size=9)
    figure.colorbar(image, ax=axis, label="weight")
    return figure


def _signed_picture(axis: Axes, values: Floats) -> None:
    """(H, W), white at 0."""
    top = np.abs(values).max() or 1.0
    axis.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top)
    without_ticks(axis)


def _grid(n: int) -> tuple[int, int]:
    """Columns and rows for n pictures."""
    n_columns = min(n, MAX_COLUMNS)
    return n_columns, -(-n // n_columns)
