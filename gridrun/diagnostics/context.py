"""What a diagnostic is given, and what it gives; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias

from pydantic import Field

from gridrun.errors import GridrunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gridrun.config import Hyperparams

Found: TypeAlias = dict[str, Any]  # name to float, array or matplotlib figure
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class NotApplicable(GridrunError):
    """A diagnostic has no meaning for this model or batch; the message says why."""


class Samples(Protocol):
    """Inputs (B, ...) as the model takes them, and targets (B, ...)."""

    @property
    def inputs(self) -> Tensor: ...

    @property
    def targets(self) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Context:
    """What a diagnostic may know beside model and batch.

    Args:
        epoch: Epochs trained.
        hyps: The run's configuration.
        loss: Criterion of a model on the batch, a differentiable scalar.
        predict: The model's predictions for inputs (N, ...), in the unit of the
            targets (of classes: logits); differentiable where gradients are enabled.
        generator: On the CPU, seeded; the only source of random numbers.
    """

    epoch: int
    hyps: Hyperparams
    loss: Callable[[nn.Module], Tensor]
    predict: Callable[[Tensor], Tensor]
    generator: torch.Generator
