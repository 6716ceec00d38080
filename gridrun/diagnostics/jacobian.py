"""How predictions follow small changes of single inputs."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from gridrun.diagnostics.arrays import Floats, as_array
from gridrun.diagnostics.context import Context, Count, Found, NotApplicable, Samples
from gridrun.diagnostics.eigen import largest_eigenvalues
from gridrun.figures import lighten, new_figure, whole_ticks

MAX_STEPS = 300  # of the approximation
TOLERANCE = 1e-4  # of squared singular values


def jacobian(
    model: nn.Module,
    batch: Samples,
    context: Context,
    *,
    n_samples: Count = 4,
    k: Count = 20,
    max_outputs: Count = 512,
) -> Found:
    """Singular values of ∂ predictions / ∂ inputs at the first samples of the batch.

    Args:
        model, batch, context: As of every diagnostic.
        n_samples: How many samples.
        k: How many singular values, the largest.
        max_outputs: Up to so many the matrix is computed, a gradient for each; beyond,
            the values are approximated by Lanczos.

    Returns:
        `singular_values` (n_samples, k), largest first, in the unit of the targets per
        unit of the inputs; `largest`, mean over samples; `n_converged`, of the worst
        sample: all, where the matrix is computed; `figure`.

    Raises:
        NotApplicable: If predictions have no derivative in the inputs.
    """
    if not batch.inputs.is_floating_point():
        raise NotApplicable("jacobian: inputs are integers: no derivative in them")
    spectra, n_converged = [], []
    for sample in torch.split(batch.inputs[:n_samples], 1):
        x = sample.detach().clone().requires_grad_()
        with torch.enable_grad():
            y = context.predict(x).flatten()
        if not y.requires_grad:
            raise NotApplicable(
                "jacobian: predictions have no derivative in the inputs"
            )
        if len(y) <= max_outputs:
            matrix = _matrix(x, y).to("cpu", torch.float64)
            found = as_array(torch.linalg.svdvals(matrix))[:k]
            n_good = len(found)
        else:
            found, n_good = _approximate(x, y, k, context.generator)
        spectra.append(found)
        n_converged.append(n_good)
    values = np.stack(spectra)
    return {
        "singular_values": values,
        "largest": float(values[:, 0].mean()),
        "n_converged": float(min(n_converged)),
        "figure": _picture(values),
    }


def _matrix(x: Tensor, y: Tensor) -> Tensor:
    """∂y/∂x, (n outputs, n inputs), row by row: works with any autograd function."""
    rows = [
        torch.autograd.grad(one, x, retain_graph=True, materialize_grads=True)[0]
        for one in y
    ]
    return torch.stack(rows).flatten(1)


def _approximate(
    x: Tensor, y: Tensor, k: int, generator: torch.Generator
) -> tuple[Floats, int]:
    """Largest singular values of J = ∂y/∂x from products with J and Jᵀ alone."""
    weights = torch.zeros_like(y, requires_grad=True)
    (back,) = torch.autograd.grad(y, x, weights, create_graph=True)  # Jᵀ weights

    def squared(vector: Tensor) -> Tensor:
        (row,) = torch.autograd.grad(y, x, vector, retain_graph=True)
        (found,) = torch.autograd.grad(back, weights, row, retain_graph=True)
        return found

    def draw() -> Tensor:
        return torch.randn(len(y), generator=generator).to(y)

    rank = min(k, x.numel())
    found = largest_eigenvalues(squared, draw, rank, MAX_STEPS, TOLERANCE)
    return np.sqrt(found.values.clip(0)), found.n_converged


def _picture(values: Floats) -> Figure:
    """Spectra (n_samples, k)."""
    figure, axes = new_figure(1, 1, (5, 3.6))
    axis = axes[0, 0]
    ranks = range(1, values.shape[1] + 1)
    for i, spectrum in enumerate(values):
        label = "single samples" if i == 0 else None
        axis.plot(ranks, spectrum, ".-", color="0.7", lw=0.8, label=label)
    axis.plot(ranks, values.mean(0), "ko-", ms=4, label="mean")
    if 0 < values.min() < values.max() / 100:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, None)
    axis.set_xlabel("rank")
    axis.set_ylabel("singular value (target / input units)")
    whole_ticks(axis.xaxis)
    axis.legend(frameon=False, fontsize=8)
    lighten(axis)
    return figure
