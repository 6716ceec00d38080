"""What is measured of predicted classes."""

from __future__ import annotations

from torch import Tensor


def n_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of images (of logits (B, U), labels (B,)) whose largest is the label's."""
    return (logits.argmax(1) == labels).sum()
