"""Peer 1: a plain loop over the grid; one process, all threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.train import train


def run(runs: Sequence[Mapping[str, Any]], n_cores: int) -> list[dict[str, float]]:
    """Metrics of each run."""
    import torch

    torch.set_num_threads(n_cores)
    return [train(settings) for settings in runs]
