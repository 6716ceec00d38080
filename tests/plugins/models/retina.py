"""A retina model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchdeepretina.models import LN


class LouderLN(LN):
    """An LN model whose output is multiplied.

    Args:
        factor: Of the output. The others as of LN.
    """

    LIBRARY = "torchdeepretina"

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        gc_bias: bool,
        softplus: bool,
        output_scale: str,
        lossfxn: str,
        log_poisson: bool,
        factor: float = 1.0,
    ) -> None:
        super().__init__(
            img_shape, n_units, gc_bias, softplus, output_scale, lossfxn, log_poisson
        )
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, C, H, W) to outputs (B, U)."""
        return self.factor * super().forward(x)
