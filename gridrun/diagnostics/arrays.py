"""Tensors as numpy arrays."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def as_array(x: Tensor) -> Floats:
    """A tensor of any device and type as float64, without graph."""
    found: Floats = x.detach().to("cpu", torch.float64).numpy()
    return found
