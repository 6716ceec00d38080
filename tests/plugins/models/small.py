"""Small models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..parts import layers


class Denoiser(nn.Module):
    """An autoencoder of one hidden layer.

    Args:
        input_shape: (1, L) of one sample.
        width: Of the hidden layer.
    """

    def __init__(self, input_shape: Sequence[int], width: int = 6) -> None:
        super().__init__()
        self.layers = layers(input_shape[-1], width, input_shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, L) to (B, 1, L)."""
        found: Tensor = self.layers(x)
        return found


class Classifier(nn.Module):
    """A perceptron.

    Args:
        n_units: Classes.
        width: Of the hidden layer.
    """

    def __init__(self, n_units: int, width: int) -> None:
        super().__init__()
        self.layers = layers(2, width, n_units)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) to (B, n_units)."""
        found: Tensor = self.layers(x)
        return found


class FlatImages(nn.Module):
    """A linear classifier of images, with the keys of imgclass.

    Args:
        img_shape: (C, H, W).
        n_units: Classes.
        mid_dims: Of the hidden layer.
        scale: Of the inputs.
    """

    LIBRARY = "imgclass"

    def __init__(
        self,
        img_shape: Sequence[int],
        n_units: int,
        mid_dims: int | None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        n_values = img_shape[0] * img_shape[1] * img_shape[2]
        self.layers = nn.Sequential(
            nn.Flatten(), *layers(n_values, mid_dims or 4, n_units)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, n_units)."""
        found: Tensor = self.layers(self.scale * x)
        return found
