"""How predictions follow noise on the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import nn

from gridrun.diagnostics.arrays import Floats
from gridrun.diagnostics.context import (
    Context,
    Found,
    NotApplicable,
    Positive,
    Samples,
)
from gridrun.figures import lighten, new_figure


def perturbation(
    model: nn.Module,
    batch: Samples,
    context: Context,
    *,
    sizes: Annotated[Sequence[Positive], Field(min_length=1)] = (
        0.01,
        0.03,
        0.1,
        0.3,
        1.0,
    ),
) -> Found:
    """Relative change of the predictions under Gaussian noise on the inputs.

    The change is |f(x + n) − f(x)| / |f(x)|, norms over batch and outputs. The same
    noise is scaled to every size.

    Args:
        model, batch, context: As of every diagnostic.
        sizes: Standard deviations of the noise, in that of the batch's inputs.

    Returns:
        `change_<size>` for each size; `flipped_<size>`, of classes, the share of
        samples that are put into another class; `figure`.

    Raises:
        NotApplicable: If all inputs are equal.
    """
    inputs = batch.inputs
    if not inputs.is_floating_point():
        raise NotApplicable("perturbation: inputs are integers: they take no noise")
    scale = inputs.double().std(correction=0)
    if not scale > 0:
        raise NotApplicable("perturbation: all inputs are equal, so have no s.d.")
    noise = torch.randn(inputs.shape, generator=context.generator).to(inputs)
    has_classes = not batch.targets.is_floating_point()
    found: Found = {}
    with torch.no_grad():
        before = context.predict(inputs)
        for size in sizes:
            after = context.predict(inputs + float(size * scale) * noise)
            change = (after - before).double().norm() / before.double().norm()
            found[f"change_{size:g}"] = float(change)
            if has_classes and before.ndim > 1 and before.shape[1] > 1:
                flips = after.argmax(1) != before.argmax(1)
                found[f"flipped_{size:g}"] = float(flips.double().mean())
    changes = np.array([found[f"change_{size:g}"] for size in sizes])
    return {**found, "figure": _picture(np.array(sizes, float), changes)}


def _picture(sizes: Floats, changes: Floats) -> Figure:
    order = sizes.argsort()
    figure, axes = new_figure(1, 1, (4.6, 3.6))
    axis = axes[0, 0]
    axis.plot(sizes[order], changes[order], "ko-", ms=4, label="model")
    if np.isfinite(changes).all() and changes.min() > 0:
        smallest = order[0]
        line = changes[smallest] * sizes[order] / sizes[smallest]
        axis.plot(sizes[order], line, ":", color="0.5", label="proportional")
        axis.set_yscale("log")
    axis.set_xscale("log")
    axis.set_xlabel("s.d. of the noise (s.d. of the inputs)")
    axis.set_ylabel("relative change of the predictions")
    axis.legend(frameon=False, fontsize=8)
    lighten(axis)
    return figure
