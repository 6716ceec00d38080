"""Evaluators: what `evaluate --evaluator NAME` computes for a trained run."""

from typing import Any

from gridrun import Run


def confusion(run: Run, split: str, epoch: Any) -> dict[str, Any]:
    """How many samples of each class were taken for each.

    Args:
        run: The run; `run.load_model(epoch)` is its model.
        split: train, val or test.
        epoch: best, last or a number.
    """
    found = run.predict(split, epoch)
    predicted = found.predictions.argmax(1)
    classes = sorted(set(found.targets.tolist()))
    return {
        f"{true} taken for {other}": int(
            ((found.targets == true) & (predicted == other)).sum()
        )
        for true in classes
        for other in classes
    }
