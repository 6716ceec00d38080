"""What is measured of predicted classes."""

from __future__ import annotations

from torch import Tensor


def n_correct(logits: Tensor, labels: Tensor) -> int:
    """Images (of logits (B, U), labels (B,)) whose largest logit is the label's."""
    return int((logits.argmax(1) == labels).sum())
