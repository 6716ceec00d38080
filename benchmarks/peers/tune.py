"""Peer 3: Ray Tune's grid_search; one CPU a trial."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.pool import train_alone

ROOT = Path(__file__).parents[2]


def run(runs: Sequence[Mapping[str, Any]], n_cores: int) -> list[dict[str, float]]:
    """Metrics of each run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    ray: Any = importlib.import_module("ray")
    tune: Any = importlib.import_module("ray.tune")

    ray.init(
        num_cpus=n_cores,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )

    def trainable(config: Mapping[str, Any]) -> dict[str, float]:
        return train_alone(runs[config["run"]])

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"run": tune.grid_search(list(range(len(runs))))},
            # workers are kept between trials: without it each trial imports torch
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        found = tuner.fit()
        results = [_result(found[i]) for i in range(len(found))]
    ray.shutdown()
    return results


def _result(result: Any) -> dict[str, float]:
    if result.error is not None:
        raise result.error
    return {
        name: float(result.metrics[name])
        for name in ("loss", "val_loss", "val_acc", "run_s")
    }
