"""What watches a run from the process that trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from gridrun.run import RunState
    from gridrun.training.cohort import LiveRun


class Callback:
    """Sees sweeps and runs; changes nothing of them.

    One is made for each run. What a method raises is reported once and recorded in
    run.json; the callback is left out from then on, and training goes on. None of them
    can draw from a run's random numbers.

    Args:
        args: As given in `tracker_args`.
    """

    def __init__(self, **args: Any) -> None:
        self.args = args

    def on_sweep_start(self, folder: Path) -> None:
        """Before the first run, in the process that was asked for the sweep."""

    def on_sweep_end(self, folder: Path) -> None:
        """After the last run or a stop, there too."""

    def on_run_start(self, run: LiveRun, rows: Sequence[Mapping[str, Any]]) -> None:
        """Before the first step of an attempt.

        Args:
            run: The run.
            rows: Of metrics.csv: the epochs that earlier attempts have finished. What
                was told of later ones is void.
        """

    def on_step_end(self, run: LiveRun, step: int, terms: Mapping[str, Tensor]) -> None:
        """After an optimizer update.

        Args:
            run: The run.
            step: Of the epoch, from 1.
            terms: The loss and its terms, scalars without graph.
        """

    def on_epoch_end(self, run: LiveRun, row: Mapping[str, Any]) -> None:
        """When an epoch is on disk.

        Args:
            run: The run.
            row: Of metrics.csv.
        """

    def on_diagnostic(
        self, run: LiveRun, name: str, epoch: int, found: Mapping[str, Any]
    ) -> None:
        """When a diagnostic was computed.

        Args:
            run: The run.
            name: Of the diagnostic.
            epoch: After which it was.
            found: Name to float, array or matplotlib figure.
        """

    def on_run_end(
        self, run: LiveRun, state: RunState, metrics: Mapping[str, float]
    ) -> None:
        """When an attempt ends, in whatever state.

        Args:
            run: The run; `run.record` is what run.json says.
            state: Final, or interrupted.
            metrics: Scores of the test split, if it was reached.
        """
