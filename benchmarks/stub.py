"""A library whose training does nothing, so that what is left is the framework's.

`python -m benchmarks.stub N SAVE_ROOT` runs a sweep of N such runs in this process and
prints what it cost.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import ROOT, peak_mib
from gridrun import run_sweep
from gridrun.plugins import Library, libraries
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch, Split
from gridrun.training.terms import Terms
from imgclass.trainer import ImageTrainer

LIBRARY = Library(
    name="stub",
    hyperparams="imgclass.hyperparams:ImageHyperparams",
    models="benchmarks.stub_models",
    trainer="benchmarks.stub:StubTrainer",
)
WARM_RUNS = 100
HYPERPARAMS: dict[str, Any] = {
    "exp_name": "stub",
    "model_type": "Stub",
    "img_shape": [1, 8, 8],
    "dataset": "digits",
    "data_root": str(ROOT / "data"),
    "augment": [],
    "batch_size": 16,
    "train_set_size": 16,
    "val_set_size": 16,
    "n_epochs": 1,
    "seed": 0,
}
warm_mib: list[float] = []
n_tested = 0


class StubTrainer(ImageTrainer):
    """Trains nothing and measures nothing; all around it is real."""

    def train_step(self, run: LiveRun, batch: Batch) -> Terms:
        """No update."""
        return {"loss": torch.tensor(1.0)}

    def evaluate(self, run: LiveRun, batch: Batch) -> Terms:
        """No forward pass."""
        return {}

    def measure(
        self, run: LiveRun, split: Split, found: Sequence[Terms]
    ) -> dict[str, float]:
        """Always the same."""
        global n_tested
        n_tested += 1
        if n_tested == 2 * WARM_RUNS:
            warm_mib.append(peak_mib())
        return {"loss": 1.0, "acc": 0.5}


def hyperranges(n_runs: int) -> dict[str, list[float]]:
    """So many learning rates."""
    return {"lr": [0.001 + i * 1e-7 for i in range(n_runs)]}


def main() -> None:
    """Run the sweep and print seconds and memory as JSON."""
    import benchmarks.stub  # the trainer lives there, not in __main__

    libraries()["stub"] = LIBRARY
    n_runs, save_root = int(sys.argv[1]), Path(sys.argv[2])
    wall, cpu = time.perf_counter(), time.process_time()
    sweep = run_sweep(
        HYPERPARAMS,
        hyperranges(n_runs),
        executor="serial",
        save_root=str(save_root),
        quiet=True,
    )
    found: dict[str, Any] = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mib": peak_mib(),
        "warm_mib": next(iter(benchmarks.stub.warm_mib), None),
    }
    found["n_done"] = int((sweep.results()["state"] == "done").sum())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
