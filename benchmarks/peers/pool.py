"""Peer 2: a joblib/loky pool; one process a core, one thread each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any


def train_alone(settings: Mapping[str, Any]) -> dict[str, float]:
    """Train one run with one thread."""
    import torch

    from benchmarks.peers.train import train

    torch.set_num_threads(1)
    return train(settings)


def run(runs: Sequence[Mapping[str, Any]], n_cores: int) -> list[dict[str, float]]:
    """Metrics of each run."""
    joblib = importlib.import_module("joblib")
    pool = joblib.Parallel(n_jobs=n_cores, backend="loky")
    return list(pool(joblib.delayed(train_alone)(settings) for settings in runs))
