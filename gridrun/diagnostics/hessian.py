"""Curvature of the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gridrun.diagnostics.context import (
    Context,
    Count,
    Found,
    NotApplicable,
    Positive,
    Samples,
)
from gridrun.diagnostics.eigen import Apply, largest_eigenvalues


def hessian(
    model: nn.Module,
    batch: Samples,
    context: Context,
    *,
    k: Count = 5,
    n_steps: Count = 100,
    tolerance: Positive = 1e-3,
) -> Found:
    """Largest eigenvalues, by magnitude, of the Hessian of the loss on the batch.

    With respect to the trainable parameters, in eval mode: batch norm uses its running
    statistics. Each step costs about two gradients.

    Args:
        model, batch, context: As of every diagnostic.
        k: How many eigenvalues.
        n_steps: Products of the Hessian with a vector, at most.
        tolerance: Residual at which an eigenvalue is good, as a share of it.

    Returns:
        `eigenvalues` (k,), signed, largest magnitude first; `residuals` (k,),
        |Hv − λv|: each is at most so far from a true eigenvalue; `largest`, the first
        of them; `n_converged`, those within the tolerance; `is_complete`, 1 where a
        second search met no larger one; `n_steps`.

    Raises:
        NotApplicable: If nothing is trainable.
    """
    apply, like = hessian_product(model, context.loss(model))

    def draw() -> Tensor:
        return torch.randn(len(like), generator=context.generator).to(like)

    found = largest_eigenvalues(apply, draw, k, n_steps, tolerance)
    return {
        "eigenvalues": found.values,
        "residuals": found.residuals,
        "largest": float(found.values[0]),
        "n_converged": float(found.n_converged),
        "is_complete": float(found.is_complete),
        "n_steps": float(found.n_steps),
    }


def hessian_product(model: nn.Module, loss: Tensor) -> tuple[Apply, Tensor]:
    """Hessian times vector (P,) of a loss, and its gradient (P,).

    The trainable parameters follow each other in the model's order.
    """
    trainable = [one for one in model.parameters() if one.requires_grad]
    if not trainable:
        raise NotApplicable("hessian: no parameter is trainable")

    def flat_gradient(of: Tensor, weights: Tensor | None, again: bool) -> Tensor:
        parts = torch.autograd.grad(
            of,
            trainable,
            weights,
            create_graph=again,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return torch.cat([part.flatten() for part in parts])

    gradient = flat_gradient(loss, None, again=True)

    def apply(vector: Tensor) -> Tensor:
        if not gradient.requires_grad:  # a loss linear in the parameters
            return torch.zeros_like(vector)
        return flat_gradient(gradient, vector, again=False)

    return apply, gradient.detach()
