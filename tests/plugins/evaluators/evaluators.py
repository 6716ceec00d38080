"""An evaluator."""

from __future__ import annotations

from typing import Any

from gridrun import Run


def extremes(run: Run, split: str, checkpoint: Any, *, factor: float = 1.0) -> Any:
    """Smallest and largest prediction of a split."""
    found = run.predict(split, checkpoint).predictions
    return {"smallest": factor * found.min(), "largest": factor * found.max()}
