"""Models. Any file in this folder may hold some; they are chosen by class name."""

from itertools import pairwise

from torch import Tensor, nn


class Perceptron(nn.Module):
    """Linear layers with ReLUs between.

    Args:
        input_shape: Shape of one input; the data set's, filled in by itself.
        n_units: Classes; the data set's, filled in by itself.
        n_hidden: Hidden layers. This and `width` are `model_args`.
        width: Of each.
    """

    def __init__(
        self, input_shape: list[int], n_units: int, n_hidden: int = 1, width: int = 8
    ) -> None:
        super().__init__()
        sizes = [input_shape[0], *[width] * n_hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_units))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, C) to logits (B, n_units)."""
        logits: Tensor = self.layers(x)
        return logits
