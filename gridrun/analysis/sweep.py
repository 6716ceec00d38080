"""A sweep for people: results, the best grid point, its models."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gridrun import plugin_files
from gridrun.analysis import tables
from gridrun.durable import read_record, write_json
from gridrun.errors import CheckpointError, ConfigError, StoreError
from gridrun.plugins import Library, permitted, recorded_library
from gridrun.run import RunState
from gridrun.store import RunFolder, SweepFolder

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gridrun.config import Hyperparams

Epoch = int | Literal["best", "last", "pruned"]


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


class Run:
    """A recorded run.

    Args:
        path: Its folder.
        plugins: Folder of plug-ins that its record may run.
        imports: Modules, or packages of them, that its record may import.
    """

    def __init__(
        self,
        path: str | Path,
        plugins: str | Path | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        self.folder = RunFolder(Path(path))
        self.plugins = plugins
        self.imports = imports
        self.record = self.folder.read()
        self.number: int = self.record["number"]

    def __repr__(self) -> str:
        return f"Run({self.number}, {self.state.value}, {self.folder.path.name!r})"

    @property
    def state(self) -> RunState:
        """Where the run stands now."""
        return self.folder.state()

    @property
    def library(self) -> Library:
        """The library that its model belongs to."""
        found = recorded_library(read_record(self.folder.hyperparams))
        if found is None:
            raise StoreError(f"{self.folder.path}: its model is of no known library")
        return found

    @property
    def hyps(self) -> Hyperparams:
        """Its complete configuration."""
        values = read_record(self.folder.hyperparams)
        return self.library.schema.model_validate(values)

    def _permitted(self, hyps: Hyperparams) -> Hyperparams:
        return permitted(self.library, hyps, self.plugins, self.imports)

    def metrics(self) -> pd.DataFrame:
        """One row an epoch: losses, metrics, learning rate, seconds."""
        import pandas as pd

        return pd.DataFrame(self.folder.epochs.read())

    def epochs(self) -> list[int]:
        """Epochs whose checkpoint is kept."""
        return [f["epoch"] for f in self.folder.read_index()["files"].values()]

    def checkpoint(self, epoch: Epoch = "best") -> dict[str, Any]:
        """Everything that was saved at an epoch.

        Args:
            epoch: best, last, a number from `epochs()`, or pruned: the smaller model
                of a run with `prune`, without an optimizer.

        Raises:
            CheckpointError: If that epoch is not saved or its file is damaged.
        """
        from gridrun.training.checkpoint import from_bytes

        if epoch == "pruned":
            path = self.folder.path / "pruned_model.pt"
            if not path.exists():
                text = "no pruned model (of runs with prune and zero_bias, when done)"
                raise CheckpointError(f"{self.folder.path}: {text}")
            return _read_checkpoint(path)
        if isinstance(epoch, str) and epoch not in ("best", "last"):
            raise ConfigError(
                f"epoch: expected best, last, pruned or a number, got {epoch!r}"
            )
        index = self.folder.read_index()
        number = index[epoch] if isinstance(epoch, str) else epoch
        if number is None:
            raise CheckpointError(f"{self.folder.path}: no epoch is saved yet")
        content = self.folder.read_checkpoint(number)
        return from_bytes(content, self.folder.checkpoint_path(number))

    def load_model(self, epoch: Epoch = "best") -> nn.Module:
        """Its model in eval mode, on the CPU, with `hyps` and `norm_stats`.

        Args:
            epoch: best, last, a number from `epochs()`, or pruned.

        Raises:
            CheckpointError: If that epoch is not saved or its file is damaged.
            ConfigError: If its class may not be run, with what to pass.
        """
        from gridrun.training.trainer import rebuild_model

        return rebuild_model(self.library, self._state(epoch))

    def _state(self, epoch: Epoch) -> dict[str, Any]:
        """A checkpoint whose configuration names only what may be run."""
        state = self.checkpoint(epoch)
        hyps = self._permitted(self.library.schema.model_validate(state["hyps"]))
        return state | {"hyps": hyps.model_dump(mode="json")}

    def predict(self, split: str = "test", epoch: Epoch = "best") -> Any:
        """Predictions on train, val or test, as the run's library defines them."""
        trainer = self.library.load_trainer()
        model = self.load_model(epoch)
        return trainer.predict(model, self._permitted(self.hyps), split)

    def evaluate(
        self,
        split: str = "test",
        epoch: Epoch = "best",
        device: str = "auto",
        is_saved: bool = False,
    ) -> dict[str, float]:
        """Loss and metrics on train, val or test.

        Args:
            split: train, val or test.
            epoch: best, last or a number from `epochs()`.
            device: As the key of that name.
            is_saved: Whether to write them to `evaluation_<split>_<epoch>.json`.

        Raises:
            CheckpointError: If that epoch is not saved or its file is damaged.
            ConfigError, DataError: If there is no such split or device, or no data.
        """
        from gridrun.training.evaluation import evaluate_checkpoint

        if epoch == "pruned":
            raise ConfigError("epoch: a pruned model is tested when it is made")
        state = self._state(epoch)
        scores = evaluate_checkpoint(self.library, self.folder, state, split, device)
        if is_saved:
            facts: dict[str, Any] = {
                "split": split,
                "checkpoint": epoch,
                "epoch": state["epoch"],
            }
            path = self.folder.path / f"evaluation_{split}_{epoch}.json"
            write_json(path, facts | {"metrics": tables.without_nan(scores)})
        return scores

    def evaluate_by(
        self,
        evaluator: str,
        split: str = "test",
        epoch: Epoch = "best",
        is_saved: bool = False,
        **args: Any,
    ) -> dict[str, Any]:
        """What a plug-in makes of this run.

        Args:
            evaluator: Function `(run, split, epoch, **args)` to a dict of plain data; a
                name in the folder of plug-ins, or an import path.
            split: train, val or test.
            epoch: best, last or a number from `epochs()`.
            is_saved: Whether to write the result to
                `analysis/<evaluator>/<split>_<epoch>.json`.
            **args: Its further arguments.

        Raises:
            ConfigError: If there is none, or it refuses the arguments.
        """
        folder = None if self.plugins is None else str(Path(self.plugins).absolute())
        function = plugin_files.load("evaluator", evaluator, folder)
        try:
            inspect.signature(function).bind(self, split, epoch, **args)
        except TypeError as error:
            raise ConfigError(f"evaluator: {evaluator}: {error}") from error
        found = _plain_result(evaluator, function(self, split, epoch, **args))
        if is_saved:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", evaluator)
            folder_path = self.folder.path / "analysis" / name
            folder_path.mkdir(parents=True, exist_ok=True)
            facts = {"split": split, "checkpoint": epoch, "args": args}
            write_json(folder_path / f"{split}_{epoch}.json", facts | {"result": found})
        return found


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
        import statistics

        point = self.best(metric, mode)
        values = {
            run.record["number"]: run.metrics()[metric]
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


def _plain_result(name: str, found: Any) -> dict[str, Any]:
    """A dict that JSON can hold: numbers of arrays become Python's."""
    import numpy as np

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        text = f"a {type(value).__name__} cannot be written"
        raise ConfigError(f"evaluator: {name}: {text}; return numbers, texts, lists")

    if not isinstance(found, dict):
        kind = type(found).__name__
        raise ConfigError(f"evaluator: {name}: returned a {kind}; expected a dict")
    return cast("dict[str, Any]", tables.without_nan(plain(found)))


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
    from gridrun.training.trainer import rebuild_model

    state = _read_checkpoint(path)
    library = recorded_library(state["hyps"])
    if library is None:
        raise CheckpointError(f"{path}: its model is of no known library")
    hyps = library.schema.model_validate(state["hyps"])
    hyps = permitted(library, hyps, plugins, imports)
    return rebuild_model(library, state | {"hyps": hyps.model_dump(mode="json")})


def _read_checkpoint(path: Path) -> dict[str, Any]:
    from gridrun.training.checkpoint import from_bytes

    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return from_bytes(content, path)
