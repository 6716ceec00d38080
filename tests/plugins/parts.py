"""What the models share."""

from torch import nn


def layers(n_inputs: int, width: int, n_outputs: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(
        nn.Linear(n_inputs, width), nn.Tanh(), nn.Linear(width, n_outputs)
    )
