"""Hyperparameter grids for PyTorch: expanded, repeated, resumed, compared.

The Python front door: `run_sweep`, `load_sweep`, `Experiment`. Importing this loads no
torch.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_FRONT_DOOR = {
    "Experiment": "gridrun.experiment",
    "run_sweep": "gridrun.sweep",
    "load_sweep": "gridrun.sweep",
    "load_model": "gridrun.sweep",
    "Run": "gridrun.sweep",
}
__all__ = ["__version__", *sorted(_FRONT_DOOR)]


def __getattr__(name: str) -> Any:
    if name not in _FRONT_DOOR:
        raise AttributeError(f"module 'gridrun' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_FRONT_DOOR[name]), name)
