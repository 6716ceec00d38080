"""How a cohort computes the gradients of a step: run by run, captured, or stacked."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gridrun.config import Hyperparams
from gridrun.errors import ConfigError
from gridrun.training.engines.graph import GraphEngine
from gridrun.training.engines.solo import Engine, fed
from gridrun.training.engines.stacked import StackedEngine

__all__ = ["ENGINES", "Engine", "chosen_engine", "fed"]

ENGINES: Mapping[str, type[Engine]] = {
    "auto": Engine,
    "solo": Engine,
    "graph": GraphEngine,
    "stacked": StackedEngine,
}


def chosen_engine(hyps: Hyperparams, device: torch.device) -> str:
    """The engine that trains a run on a device.

    Raises:
        ConfigError: If it is not for this device.
    """
    if ENGINES[hyps.engine].needs_gpu and device.type != "cuda":
        text = f"{hyps.engine} is for GPUs (CUDA), and the device is {device}"
        raise ConfigError(f"engine: {text}; use auto or solo")
    return "solo" if hyps.engine == "auto" else hyps.engine
