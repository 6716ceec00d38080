"""A sweep on one HTML page that needs no other file; no torch."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import gridrun
from gridrun.analysis import plots, tables
from gridrun.analysis.curves import curve_table, learning_curves
from gridrun.analysis.factors import grid_means, importance, marginals
from gridrun.analysis.scores import Scores, level_text, read_scores
from gridrun.analysis.sweep import GridPoint, Sweep
from gridrun.analysis.tables import Row, RunSummary
from gridrun.durable import read_record, write_durably
from gridrun.errors import ConfigError, StoreError
from gridrun.run import RunState

MOST_ROWS = 100  # of a table; the tables beside the report have all
MOST_CURVES = 3  # axes whose learning curves are drawn
DPI = 110
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 64em;
       padding: 0 1em; color: #222; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px;
        font-variant-numeric: tabular-nums; }
th, td { padding: 0.2em 0.7em; text-align: left; border-bottom: 1px solid #eee; }
.wide { overflow-x: auto; } figure { margin: 1em 0; } img { max-width: 100%; }
figcaption, summary, .note { color: #666; font-size: 13px; }
pre { font-size: 12px; overflow-x: auto; background: #f6f6f6; padding: 0.7em; }
.bad { color: #a00; }
"""


def write_report(
    sweep: Sweep, metric: str | None = None, mode: Any = None, path: Path | None = None
) -> Path:
    """Write the report; returns its path.

    Args:
        sweep: The sweep.
        metric: A metric column of `results()` that it is about; None: val_acc, or else
            what `monitor` names.
        mode: min or max, where the metric's name does not tell what is better.
        path: Where; None: report.html in the sweep's folder.

    Raises:
        ConfigError: For an unknown metric, or one of which it is unknown what is
            better.
        StoreError: If there is no run.
    """
    path = path or sweep.path / "report.html"
    text = Report(sweep, metric, mode).page()
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder for the report")
    write_durably(path, text)
    return path


class Report:
    """What the page shows, read once.

    Args: as of `write_report`.
    """

    def __init__(self, sweep: Sweep, metric: str | None, mode: Any) -> None:
        self.sweep = sweep
        self.runs = tables.read_runs(sweep.folder)
        if not self.runs:
            raise StoreError(f"{sweep.path}: no run has a record yet")
        self.metric = metric or _usual_metric(self.runs)
        known = tables.metric_columns(self.runs)
        self.scores: Scores | None = None
        if known or metric is not None:
            self.scores = read_scores(self.runs, self.metric)
            self.mode = tables.better(self.metric, mode, self.runs)
        self.best: GridPoint | None = None
        if self.scores is not None and self.scores.rows:
            self.best = sweep.best(self.metric, self.mode, allow_partial=True)

    def page(self) -> str:
        """The whole page."""
        name = html.escape(self.sweep.path.name)
        body = "\n".join(
            part
            for section in (
                self._head,
                self._best,
                self._points,
                self._plots,
                self._failures,
                self._best_run,
                self._analyses,
                self._circumstances,
            )
            for part in section()
        )
        return (
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width">\n'
            f"<title>{name}</title>\n<style>{STYLE}</style>\n{body}\n</html>\n"
        )

    def _head(self) -> Iterator[str]:
        counts = Counter(run.state.value for run in self.runs)
        states = ", ".join(f"{n} {state}" for state, n in counts.items())
        yield f"<h1>{html.escape(self.sweep.path.name)}</h1>"
        yield f"<p>{len(self.runs)} runs: {states}.</p>"
        if counts.get("done", 0) < len(self.runs):
            yield '<p class="bad">Statistics are of runs that are done only.</p>'

    def _best(self) -> Iterator[str]:
        if self.best is None:
            yield "<p>No run is done yet.</p>"
            return
        stats = tables.statistics([s.value for s in self._scores_of(self.best)])
        mean, high = stats["mean"], stats["ci_high"]
        assert mean is not None
        interval = "" if high is None else f" ± {high - mean:.2g}"
        place = ", ".join(f"{a} {level_text(v)}" for a, v in self.best.axes.items())
        yield "<h2>Best grid point</h2>"
        yield (
            f"<p><b>{html.escape(place or 'the only one')}</b>: "
            f"{html.escape(self.metric)} {mean:.4g}{interval} (mean of {stats['n']} "
            f"repeats{' and half its 95 % interval' if interval else ''}; runs "
            f"{', '.join(map(str, self.best.numbers))}).</p>"
        )

    def _scores_of(self, point: GridPoint) -> list[Any]:
        assert self.scores is not None
        return [row for row in self.scores.rows if row.number in point.numbers]

    def _points(self) -> Iterator[str]:
        metrics = [
            name
            for name in tables.metric_columns(self.runs)
            if not name.endswith("_last")
        ]
        rows = tables.summary_rows(self.runs)
        column = f"{self.metric}_mean"
        if self.scores is not None:
            sign = -1 if self.mode == "max" else 1
            rows.sort(key=lambda r: (r[column] is None, sign * (r[column] or 0)))
        shown = []
        for row in rows:
            axes = {n: row[n] for n in tables.axis_names(self.runs)}
            line: Row = {**axes, "done": row.get(f"{self.metric}_n", 0)}
            line["failed"] = row["n_failed"]
            for name in dict.fromkeys([self.metric, *metrics] if metrics else []):
                line[name] = _interval(row, name)
            shown.append(line)
        yield "<h2>Grid points</h2>"
        yield '<p class="note">Mean over repeats ± half its 95 % interval.</p>'
        yield html_table(shown)
        if len(shown) > MOST_ROWS:
            yield f'<p class="note">All {len(shown)}: summary.csv</p>'

    def _plots(self) -> Iterator[str]:
        if self.scores is None:
            return
        metric, runs = self.metric, self.runs
        yield "<h2>Learning</h2>"
        in_epochs = metric.removesuffix("_last")
        if not any(in_epochs in row for run in runs for row in run.epochs[-1:]):
            in_epochs = _usual_metric(runs)  # of a test score
        for axis in self.scores.axes[:MOST_CURVES] or [None]:
            yield picture(
                plots.plot_learning_curves(runs, in_epochs, axis),
                f"{in_epochs} by {axis or 'epoch'}",
                curve_table(learning_curves(runs, in_epochs, axis)),
            )
        if not self.scores.axes or not self.scores.rows:
            return
        yield "<h2>What the axes do</h2>"
        yield picture(
            plots.plot_marginals(runs, metric),
            "each axis alone",
            marginals(self.scores),
        )
        if pair := plots.heatmap_axes(self.scores):
            yield picture(
                plots.plot_grid_heatmap(runs, *pair, metric),
                "the two axes with most effect",
                grid_means(self.scores, *pair),
            )
        yield picture(
            plots.plot_importance(runs, metric),
            "share of the variance between runs",
            importance(self.scores).table,
        )
        if len(self.scores.axes) > 1:
            yield picture(
                plots.plot_parallel_coordinates(runs, metric), "all grid points"
            )

    def _failures(self) -> Iterator[str]:
        ended = [
            {
                "run": run.record["number"],
                "state": run.state.value,
                "error": run.record.get("error"),
                "folder": run.folder.path.name,
            }
            for run in self.runs
            if run.state in (RunState.FAILED, RunState.DIVERGED)
        ]
        if ended:
            yield "<h2>Failed runs</h2>"
            yield html_table(ended)

    def _best_run(self) -> Iterator[str]:
        if self.best is None:
            return
        run = self.sweep.median_run(self.best)
        name = html.escape(run.folder.path.name)
        yield f"<h2>The best point's run nearest to its median: {name}</h2>"
        text = run.folder.model_text
        if text.exists():
            yield _details("model", f"<pre>{html.escape(text.read_text())}</pre>")
        given = json.dumps(read_record(run.folder.hyperparams), indent=1)
        yield _details("hyperparameters", f"<pre>{html.escape(given)}</pre>")
        folder = run.folder.path / "diagnostics"
        newest: dict[str, Path] = {}
        for path in sorted(folder.glob("*.json")):
            newest[path.stem.rpartition("_")[0]] = path
        for name, path in newest.items():
            yield f"<h3>{html.escape(name)}</h3>"
            yield from _found(path)

    def _analyses(self) -> Iterator[str]:
        found = [
            (run, path)
            for run in self.runs
            for path in sorted((run.folder.path / "analysis").glob("*/*.json"))
        ]
        if found:
            yield "<h2>Evaluators</h2>"
        for run, path in found:
            name = f"run {run.record['number']}: {path.parent.name}, {path.stem}"
            yield f"<h3>{html.escape(name)}</h3>"
            yield from _found(path)

    def _circumstances(self) -> Iterator[str]:
        requests = self.sweep.folder.read().get("requests", [])
        attempts = [run.record["attempts"][-1:] for run in self.runs]
        kinds = Counter(
            json.dumps(
                {
                    name: one[0].get(name)
                    for name in ("host", "device_name", "threads", "versions")
                }
            )
            for one in attempts
            if one
        )
        yield "<h2>How it was made</h2>"
        lines = [{"runs": n, **json.loads(text)} for text, n in kinds.items()]
        for line in lines:
            versions = line["versions"] or {}
            line["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items())
        yield html_table(lines)
        given = [one for r in requests for one in r.get("invocations", [])]
        yield html_table([_invocation_row(one) for one in given])
        yield f'<p class="note">gridrun {gridrun.__version__}</p>'


def _invocation_row(invocation: Mapping[str, Any]) -> Row:
    git = invocation.get("git") or {}
    commit = str(git.get("commit", ""))[:12]
    changes = " and changes" if git.get("is_dirty") else ""
    row = {name: invocation.get(name) for name in ("time", "host", "command")}
    return row | {"commit": commit + changes}


def _usual_metric(runs: Sequence[RunSummary]) -> str:
    names = tables.metric_columns(runs)
    monitor = str(runs[0].hyps.get("monitor", "val_loss")).partition(":")[0]
    return "val_acc" if "val_acc" in names else monitor


def _interval(row: Row, metric: str) -> str:
    mean, high = row[f"{metric}_mean"], row[f"{metric}_ci_high"]
    if mean is None:
        return ""
    return f"{mean:.4g}" + ("" if high is None else f" ± {high - mean:.2g}")


# --- HTML ---------------------------------------------------------------------------


def html_table(rows: Sequence[Row]) -> str:
    """Rows with the columns of the first; the first hundred of them."""
    if not rows:
        return ""
    names = list(rows[0])
    head = _cells("th", names)
    lines = [_cells("td", (row.get(n) for n in names)) for row in rows[:MOST_ROWS]]
    return f'<div class="wide"><table>{head}{"".join(lines)}</table></div>'


def _cells(tag: str, values: Iterable[Any]) -> str:
    texts = (
        "" if value is None or value != value else level_text(value) for value in values
    )
    return f"<tr>{''.join(f'<{tag}>{html.escape(t)}</{tag}>' for t in texts)}</tr>"


def picture(figure: Figure, caption: str, numbers: Any = None) -> str:
    """A figure inside the page, with its numbers folded below.

    Args:
        figure: The figure.
        caption: Its description.
        numbers: A DataFrame.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    parts = [_image(file.getvalue(), caption)]
    if numbers is not None and len(numbers):
        rows = numbers.to_dict("records")
        parts.append(_details("numbers", html_table(rows)))
    return f"<figure>{''.join(parts)}</figure>"


def _image(png: bytes, caption: str) -> str:
    text = html.escape(caption)
    data = base64.b64encode(png).decode()
    source = f"data:image/png;base64,{data}"
    return f'<img alt="{text}" src="{source}"><figcaption>{text}</figcaption>'


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>{content}</details>"


def _found(path: Path) -> Iterator[str]:
    """What a diagnostic or an evaluator wrote: numbers and pictures."""
    try:
        record = read_record(path)
    except StoreError as error:
        yield f'<p class="bad">{html.escape(str(error))}</p>'
        return
    found = record.get("result", record)  # of an evaluator; of a diagnostic
    scalars = {k: v for k, v in found.items() if not isinstance(v, dict | list)}
    if scalars:
        yield html_table([scalars])
    for image in sorted(path.parent.glob(f"{path.stem}*.png")):
        yield f"<figure>{_image(image.read_bytes(), image.stem)}</figure>"
