"""What the keys `log_loss` and `log_grad` ask for, of every batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gridrun.config import Hyperparams

TOTAL = "grad_norm"


class BatchLog:
    """Losses and gradients of an epoch's batches, on the device until they are asked.

    Args:
        hyps: They say what is kept.
    """

    def __init__(self, hyps: Hyperparams) -> None:
        self.has_loss = hyps.log_loss
        self.has_grad = hyps.log_grad
        self._rows: list[dict[str, Tensor]] = []

    def add(self, loss: Tensor, model: nn.Module) -> None:
        """Take in a batch, after the backward pass and before the step.

        Args:
            loss: Its training loss, penalties included.
            model: With the gradients of its parameters, not yet clipped.
        """
        if not (self.has_loss or self.has_grad):
            return
        row = {"loss": loss.detach()} if self.has_loss else {}
        if self.has_grad:
            row |= gradient_norms(model)
        self._rows.append(row)

    def take(self, epoch: int) -> list[dict[str, float]]:
        """Rows of batches.csv: epoch, step, and what was kept; forgets them."""
        rows, self._rows = self._rows, []
        return [
            {"epoch": epoch, "step": step}
            | {name: float(value) for name, value in row.items()}
            for step, row in enumerate(rows, start=1)
        ]


def gradient_norms(model: nn.Module) -> dict[str, Tensor]:
    """L2 norm of the gradient, total and of each layer's own parameters, in float64."""
    squares: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        grads = [p.grad for p in layer.parameters(recurse=False) if p.grad is not None]
        if grads:
            parts = [grad.detach().double().square().sum() for grad in grads]
            squares[name] = torch.stack(parts).sum()
    total = torch.stack(list(squares.values())).sum().sqrt()
    return {TOTAL: total} | {f"{TOTAL}.{n}": s.sqrt() for n, s in squares.items()}
