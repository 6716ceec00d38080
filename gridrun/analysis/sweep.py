"""A sweep for people: results, the best grid point, its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gridrun.analysis import tables
from gridrun.analysis.run import Epoch, Run, read_checkpoint
from gridrun.analysis.scores import Scores, read_scores
from gridrun.errors import CheckpointError, StoreError
from gridrun.plugins import permitted, recorded_library
from gridrun.run import RunState
from gridrun.store import RunFolder, SweepFolder

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gridrun.analysis.factors import Comparison


@dataclasses.dataclass(frozen=True)
class GridPoint:
    """A grid point with its repeats.

    Args:
        axes: Swept key to value.
        metric: By which it was chosen.
        mean: Over the repeats.
        ci: 95 % interval of the mean; None for a single repeat.
        numbers: Its runs.
        left_out: Axes of grid points that were passed over as incomplete.
    """

    axes: dict[str, Any]
    metric: str
    mean: float
    ci: tuple[float, float] | None
    numbers: tuple[int, ...]
    left_out: tuple[dict[str, Any], ...] = ()


class Sweep:
    """A sweep's folder, read anew at each question.

    Args:
        path: The folder that holds sweep.json.
        plugins, imports: As of `Run`.

    Raises:
        StoreError: If there is no sweep.
    """

    def __init__(
        self,
        path: str | Path,
        plugins: str | Path | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        self.folder = SweepFolder(Path(path))
        self.plugins = plugins
        self.imports = imports
        self.folder.read()

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in self.states().items())
        return f"Sweep({str(self.folder.path)!r}: {counts})"

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    def states(self) -> dict[str, int]:
        """Number of runs in each state."""
        counts: dict[str, int] = {}
        for run in tables.read_runs(self.folder):
            counts[run.state.value] = counts.get(run.state.value, 0) + 1
        return counts

    def results(self) -> pd.DataFrame:
        """One row per run (columns: README of training_scripts)."""
        import pandas as pd

        return pd.DataFrame(tables.result_rows(tables.read_runs(self.folder)))

    def history(self) -> pd.DataFrame:
        """Long table of every epoch: run, epoch, metric, value."""
        import pandas as pd

        rows = [
            {"run": r.record["number"], "epoch": row["epoch"], "metric": m, "value": v}
            for r in tables.read_runs(self.folder)
            for row in r.epochs
            for m, v in row.items()
            if m != "epoch"
        ]
        return pd.DataFrame(rows, columns=["run", "epoch", "metric", "value"])

    def summary(self, metric: str | None = None) -> pd.DataFrame:
        """One row per grid point: n, mean, sd, sem and 95 % interval.

        Args:
            metric: Only this one, with plain column names; None: all metrics.
        """
        import pandas as pd

        runs = tables.read_runs(self.folder)
        table = pd.DataFrame(tables.summary_rows(runs))
        if metric is None:
            return table
        known = tables.metric_columns(runs)
        tables.check_metric(metric, known)
        kept = [*tables.axis_names(runs), "n_failed"]
        columns = {f"{metric}_{name}": name for name in tables.statistics([])}
        return table[[*kept, *columns]].rename(columns=columns)

    def scores(self, metric: str) -> Scores:
        """A metric of the runs that are done, for `gridrun.analysis.factors`.

        Args:
            metric: A metric column of `results()`.
        """
        return read_scores(tables.read_runs(self.folder), metric)

    def compare(
        self, a: Mapping[str, Any], b: Mapping[str, Any], metric: str
    ) -> Comparison:
        """A metric at one place of the grid less that at another, paired by repeat.

        Args:
            a, b: Axis to value, as in `GridPoint.axes`; means are taken over axes that
                are not named.
            metric: A metric column of `results()`.
        """
        from gridrun.analysis.factors import compare

        return compare(self.scores(metric), a, b)

    def best(
        self,
        metric: str = "val_acc",
        mode: Literal["min", "max"] | None = None,
        allow_partial: bool = False,
    ) -> GridPoint:
        """The grid point with the best mean over its repeats.

        Args:
            metric: A metric column of `results()`.
            mode: What is better; None: max for accuracies and test scores, min for
                losses.
            allow_partial: Also consider points some of whose repeats are not done.

        Raises:
            ConfigError: For an unknown metric, or one without a known mode.
            StoreError: If no grid point is complete.
        """
        runs = tables.read_runs(self.folder)
        tables.check_metric(metric, tables.metric_columns(runs))
        points: dict[str, list[tables.RunSummary]] = {}
        for run in runs:
            points.setdefault(run.point, []).append(run)
        sign = -1 if tables.better(metric, mode, runs) == "min" else 1
        found, left_out = [], []
        names = tables.axis_names(runs)
        for repeats in points.values():
            done = [r for r in repeats if r.state is RunState.DONE]
            axes = {name: tables.axis_value(repeats[0], name) for name in names}
            done = [r for r in done if metric in r.metrics()]
            if not done or (len(done) < len(repeats) and not allow_partial):
                left_out.append(axes)
                continue
            stats = tables.statistics([run.metrics()[metric] for run in done])
            numbers = tuple(run.record["number"] for run in done)
            found.append((axes, stats, numbers))
        if not found:
            raise StoreError(f"{self.path}: no grid point has all its repeats done")
        axes, stats, numbers = max(found, key=lambda one: sign * (one[1]["mean"] or 0))
        low, high = stats["ci_low"], stats["ci_high"]
        return GridPoint(
            axes=axes,
            metric=metric,
            mean=float(stats["mean"] or 0),
            ci=None if low is None or high is None else (low, high),
            numbers=numbers,
            left_out=tuple(left_out),
        )

    def best_run(
        self, metric: str = "val_acc", mode: Literal["min", "max"] | None = None
    ) -> Run:
        """The run of the best grid point that is nearest to the point's median."""
        return self.median_run(self.best(metric, mode))

    def median_run(self, point: GridPoint) -> Run:
        """The run of a grid point that is nearest to the median of its metric."""
        import statistics

        values = {
            run.record["number"]: run.metrics()[point.metric]
            for run in tables.read_runs(self.folder)
            if run.record["number"] in point.numbers
        }
        median = statistics.median_low(list(values.values()))
        return self.run(min(values, key=lambda n: (abs(values[n] - median), n)))

    def runs(self) -> list[Run]:
        """All runs, in the order of their numbers."""
        return [self._run(folder) for _, folder in self.folder.runs()]

    def _run(self, folder: RunFolder) -> Run:
        return Run(folder.path, self.plugins, self.imports)

    def run(self, number: int) -> Run:
        """A run by number.

        Raises:
            StoreError: If the sweep has none of that number.
        """
        known = dict(self.folder.runs())
        if number not in known:
            there = ", ".join(map(str, known)) or "none"
            raise StoreError(f"{self.path}: no run {number}; runs: {there}")
        return self._run(known[number])


def load_sweep(
    path: str | Path, plugins: str | Path | None = None, imports: Sequence[str] = ()
) -> Sweep:
    """Open a sweep's folder; works while others write to it.

    Args:
        path: The folder.
        plugins: Folder of plug-ins that its records may run.
        imports: Modules, or packages of them, that its records may import.

    Raises:
        StoreError: If there is no sweep.
    """
    return Sweep(path, plugins, imports)


def load_model(
    path: str | Path,
    epoch: Epoch = "best",
    plugins: str | Path | None = None,
    imports: Sequence[str] = (),
) -> nn.Module:
    """A model from a run's folder or from one checkpoint file; needs no data.

    Args:
        path: Of the folder or file.
        epoch: Of a folder, which checkpoint.
        plugins, imports: As of `load_sweep`.
    """
    path = Path(path)
    if path.is_dir():
        return Run(path, plugins, imports).load_model(epoch)
    from gridrun.training.models import rebuild_model

    state = read_checkpoint(path)
    library = recorded_library(state["hyps"])
    if library is None:
        raise CheckpointError(f"{path}: its model is of no known library")
    hyps = library.schema.model_validate(state["hyps"])
    hyps = permitted(library, hyps, plugins, imports)
    return rebuild_model(library, state | {"hyps": hyps.model_dump(mode="json")})
