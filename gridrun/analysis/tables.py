"""Tables of a sweep, derived from its run folders."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from gridrun.config import complete, get_nested, keys_of, suggest, varied, varying
from gridrun.durable import file_system_time_ns, read_record, write_durably
from gridrun.errors import ConfigError, StoreError
from gridrun.plugins import libraries, recorded_library
from gridrun.run import RunState
from gridrun.store import RunFolder, SweepFolder

logger = logging.getLogger(__name__)
CONFIDENCE = 0.95
BEFORE_AXES = ("number", "state", "repeat", "seed")
NOT_METRICS = ("epoch", "lr", "time_s")
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What the tables need of one run.

    Args:
        folder: Where it is.
        record: Its run.json.
        state: Its state now.
        hyps: Its hyperparams.json.
        epochs: Rows of its metrics.csv.
    """

    folder: RunFolder
    record: Mapping[str, Any]
    state: RunState
    hyps: Mapping[str, Any]
    epochs: Sequence[Mapping[str, float]]

    @property
    def point(self) -> str:
        """Equal for the repeats of a grid point."""
        return str(self.record["point"])

    def metrics(self) -> dict[str, float]:
        """Metrics at the best epoch, at the last (`_last`), and of the test split."""
        found: dict[str, float] = {}
        best = self.record.get("best_epoch")
        if self.epochs:
            last = self.epochs[-1]
            at_best = next((r for r in self.epochs if r["epoch"] == best), {})
            names = [name for name in last if name not in NOT_METRICS]
            found |= {name: at_best[name] for name in names if name in at_best}
            found |= {f"{name}_last": last[name] for name in names}
        test = self.record.get("test") or {}
        return found | {n: value for n, value in test.items() if value is not None}


def read_runs(sweep: SweepFolder) -> list[RunSummary]:
    """All runs of a sweep that have a readable record, in the order of numbers.

    Raises:
        StoreError: If there is no sweep.
    """
    sweep.read()
    runs = []
    shared: dict[str, Any] = {}  # of the first run; the others hold what differs
    for _, folder in sweep.runs():
        try:
            record = folder.read()
            hyps = read_record(folder.hyperparams)
            state, epochs = folder.state(record), folder.epochs.read()
        except StoreError as error:
            logger.warning("a run is left out: %s", error)
            continue
        attempts = record["attempts"]
        if attempts:
            attempts[-1] = varied(attempts[-1], shared.setdefault("last", attempts[-1]))
        runs.append(
            RunSummary(
                folder,
                varied(record, shared.setdefault("record", record)),
                state,
                varied(hyps, shared.setdefault("hyps", hyps)),
                epochs,
            )
        )
    return runs


def axis_names(runs: Iterable[RunSummary]) -> list[str]:
    """Swept keys of all requests, and keys in which grid points otherwise differ."""
    names: dict[str, None] = {}
    runs = list(runs)
    for run in runs:
        names |= dict.fromkeys(run.record["axes"])
    skipped = {"seed", "split_seed", *names}
    lifted = {"optimizer_args.lr": "lr", "optimizer_args.weight_decay": "l2"}
    skipped |= {lifted[name] for name in names if name in lifted}
    first_of_point = list({run.point: run for run in reversed(runs)}.values())
    able = _points_differ_by() - skipped
    for key in varying([run.hyps for run in first_of_point]):
        inside = any(name.startswith(f"{key}.") for name in names)
        if inside or key not in able or not _varies(key, first_of_point):
            continue
        if all(_follows(r.hyps, key) for r in first_of_point):
            continue
        names[key] = None
    return list(names)


def _varies(key: str, runs: Sequence[RunSummary]) -> bool:
    """Whether a key has more than one value."""
    first = runs[0].hyps.get(key)
    values = (run.hyps.get(key) for run in runs)
    others = [value for value in values if value is not first]
    text = json.dumps(first, sort_keys=True)
    return any(json.dumps(value, sort_keys=True) != text for value in others)


def _follows(hyps: Mapping[str, Any], key: str) -> bool:
    """Whether a key has the value that it would have if it were not given."""
    library = recorded_library(hyps)
    if library is None:
        return False
    others = {name: value for name, value in hyps.items() if name != key}
    completed, _ = complete(others, library.schema)
    return completed is not None and getattr(completed, key) == hyps[key]


def _points_differ_by() -> frozenset[str]:
    """Keys that can make two grid points two."""
    return frozenset(
        name
        for library in libraries().values()
        for name, facts in keys_of(library.schema).items()
        if facts.identity == "yes"
    )


def cell(value: Any) -> Any:
    """A value as a table shows it: lists and objects as JSON text."""
    if isinstance(value, list | dict | tuple):
        return json.dumps(value)
    return value


def result_rows(
    runs: Sequence[RunSummary], axes: Sequence[str] | None = None
) -> list[Row]:
    """One row per run, all with the same columns.

    Args:
        runs: The runs.
        axes: Their `axis_names`, if they are known.
    """
    return list(_result_rows(runs, axis_names(runs) if axes is None else axes))


def _result_rows(runs: Sequence[RunSummary], axes: Sequence[str]) -> Iterator[Row]:
    metrics = metric_columns(runs, axes)
    for run in runs:
        attempts = run.record["attempts"]
        row: Row = {
            "number": run.record["number"],
            "state": run.state.value,
            "repeat": run.record["repeat"],
            "seed": run.hyps["seed"],
        }
        row |= {name: cell(axis_value(run, name)) for name in axes}
        row["best_epoch"] = run.record.get("best_epoch")
        found = run.metrics()
        row |= {name: found.get(name) for name in metrics}
        row["duration_s"] = round(sum(r["time_s"] for r in run.epochs), 3)
        row["parameters"] = run.record.get("parameters")
        row["engine"] = attempts[-1].get("engine") if attempts else None
        row["folder"] = run.folder.path.name
        row["error"] = run.record.get("error")
        yield row


def metric_columns(
    runs: Sequence[RunSummary], axes: Sequence[str] | None = None
) -> list[str]:
    """Every metric that a run has, in the order in which they come.

    Args: as of `result_rows`.
    """
    axes = axis_names(runs) if axes is None else axes
    names = dict.fromkeys(name for run in runs for name in run.metrics())
    return [name for name in names if name not in (*BEFORE_AXES, *axes)]


def axis_value(run: RunSummary, name: str) -> Any:
    """A run's value of a swept key, dotted or not."""
    if name in run.record["axes"]:
        return run.record["axes"][name]
    return get_nested(run.hyps, name)


def _common_value(runs: Sequence[RunSummary], name: str) -> Any:
    """The runs' value of a key, or the list of each one's where they differ."""
    values = [axis_value(run, name) for run in runs]
    return values[0] if all(one == values[0] for one in values) else values


def summary_rows(
    runs: Sequence[RunSummary], axes: Sequence[str] | None = None
) -> list[Row]:
    """One row per grid point: n, mean, sd, sem and 95 % interval of each metric.

    Args: as of `result_rows`.
    """
    return list(_summary_rows(runs, axis_names(runs) if axes is None else axes))


def _summary_rows(runs: Sequence[RunSummary], axes: Sequence[str]) -> Iterator[Row]:
    metrics = metric_columns(runs, axes)
    points: dict[str, list[RunSummary]] = {}
    for run in runs:
        points.setdefault(run.point, []).append(run)
    for repeats in points.values():
        done = [run.metrics() for run in repeats if run.state is RunState.DONE]
        row: Row = {name: cell(_common_value(repeats, name)) for name in axes}
        row["n_failed"] = sum(
            run.state in (RunState.FAILED, RunState.DIVERGED) for run in repeats
        )
        for metric in metrics:
            values = [found[metric] for found in done if metric in found]
            for name, value in statistics(values).items():
                row[f"{metric}_{name}"] = value
        yield row


def statistics(values: Sequence[float]) -> dict[str, float | int | None]:
    """n, mean, sd (n − 1), sem and Student's 95 % interval; None where undefined."""
    n = len(values)
    names = ("n", "mean", "sd", "sem", "ci_low", "ci_high")
    empty: dict[str, float | int | None] = dict.fromkeys(names)
    if not n:
        return empty | {"n": 0}
    mean = math.fsum(values) / n
    if n == 1:
        return empty | {"n": 1, "mean": mean}
    from scipy.special import stdtrit

    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    sem = sd / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * sem
    numbers = (n, mean, sd, sem, mean - half, mean + half)
    return dict(zip(names, numbers, strict=True))


def csv_text(rows: Iterable[Row]) -> str:
    """Rows with the same columns as CSV; missing values empty."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # Python's writer leaves a carriage return unquoted where lines end otherwise
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for number, row in enumerate(rows):
        if number == 0:
            plain.writerow(row)
        cells = row.values()
        has_return = any("\r" in one for one in cells if isinstance(one, str))
        (quoted if has_return else plain).writerow(cells)
    return text.getvalue()


def without_nan(value: Any) -> Any:
    """Plain data with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return value


def write_tables(sweep: SweepFolder) -> list[RunSummary]:
    """Derive results.csv and summary.csv from the run folders; returns the runs.

    Where every run was finished before they were read for the tables that are there,
    these are left as they are.
    """
    with sweep.locked():
        begun_ns = file_system_time_ns(sweep.path)
        runs = read_runs(sweep)
        if _are_final(sweep, runs):
            return runs
        axes = axis_names(runs)
        write_durably(sweep.results, csv_text(_result_rows(runs, axes)), begun_ns)
        write_durably(sweep.summary, csv_text(_summary_rows(runs, axes)), begun_ns)
    return runs


def _are_final(sweep: SweepFolder, runs: Sequence[RunSummary]) -> bool:
    """Whether the tables are of these runs, which had all ended when they were read."""
    if not (sweep.results.exists() and sweep.summary.exists()):
        return False
    if sweep.results.read_bytes().count(b"\n") != len(runs) + 1:
        return False
    begun_ns = min(f.stat().st_mtime_ns for f in (sweep.results, sweep.summary))
    return all(
        run.state.is_final and run.folder.record.stat().st_mtime_ns < begun_ns
        for run in runs
    )


def text_table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as aligned text."""
    if not rows:
        return "(no rows)"
    names = list(columns or rows[0])
    lines = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def check_metric(metric: str, known: Sequence[str]) -> None:
    """Refuse an unknown metric.

    Raises:
        ConfigError: With the nearest known one.
        StoreError: If nothing is recorded yet.
    """
    if not known:
        raise StoreError("no run has finished an epoch yet")
    if metric not in known:
        raise ConfigError(f"unknown metric {metric!r}{suggest(metric, known)}")


def better(
    metric: str, mode: str | None, runs: Sequence[RunSummary]
) -> Literal["min", "max"]:
    """What is better: `mode`, or what the metric's name says.

    Args:
        metric: A metric column.
        mode: min, max, or None.
        runs: Whose `monitor` decides where the name does not.

    Raises:
        ConfigError: If that is not known.
    """
    if mode is not None:
        if mode not in ("min", "max"):
            raise ConfigError(f"mode: expected min or max, got {mode!r}")
        return "min" if mode == "min" else "max"
    plain = metric.removesuffix("_last")
    if plain == "loss" or plain.endswith("_loss"):
        return "min"
    if plain.endswith("_acc") or plain.startswith("test_"):
        return "max"
    for run in runs:
        name, _, chosen = str(run.hyps.get("monitor", "")).partition(":")
        if name == plain and chosen:
            return "min" if chosen == "min" else "max"
    raise ConfigError(f"{metric}: say what is better, mode='min' or mode='max'")
