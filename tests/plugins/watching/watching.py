"""A tracker and diagnostics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gridrun.run import RunState
from gridrun.tracking.callback import Callback
from gridrun.training.cohort import LiveRun


class Diary(Callback):
    """Writes a line for each event into a run's folder, and draws random numbers.

    Args:
        fails_at: Epoch in which it raises, if any.
    """

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.fails_at = fails_at

    def _write(self, run: LiveRun, text: str) -> None:
        torch.rand(3)
        with (Path(run.folder.path) / "diary.txt").open("a") as file:
            file.write(f"{text}\n")

    def on_run_start(self, run: LiveRun, rows: Any) -> None:
        self._write(run, f"start after {len(rows)} epochs")

    def on_step_end(self, run: LiveRun, step: int, terms: Mapping[str, Tensor]) -> None:
        self._write(run, f"step {step}: {float(terms['loss'])!r}")

    def on_epoch_end(self, run: LiveRun, row: Mapping[str, Any]) -> None:
        if row["epoch"] == self.fails_at:
            raise RuntimeError("the diary is full")
        self._write(run, f"epoch {row['epoch']}: {row['val_loss']!r}")

    def on_diagnostic(
        self, run: LiveRun, name: str, epoch: int, found: Mapping[str, Any]
    ) -> None:
        self._write(run, f"diagnostic {name} of epoch {epoch}: {sorted(found)}")

    def on_run_end(
        self, run: LiveRun, state: RunState, metrics: Mapping[str, float]
    ) -> None:
        self._write(run, f"end: {state.value}, {sorted(metrics)}")

    def on_sweep_start(self, folder: Path) -> None:
        (folder / "diary.txt").write_text("start\n")

    def on_sweep_end(self, folder: Path) -> None:
        with (folder / "diary.txt").open("a") as file:
            file.write("end\n")


def loudest(model: Any, batch: Any, context: Any, *, share: float = 1.0) -> Any:
    """The largest prediction; tries to disturb training."""
    torch.rand(5)
    found = {"largest": share * float(context.predict(batch.inputs).detach().max())}
    for parameter in model.parameters():
        parameter.data.zero_()
    context.loss(model).backward()
    return found


def broken(model: Any, batch: Any, context: Any) -> Any:
    """Raises."""
    raise RuntimeError("no diagnosis today")
