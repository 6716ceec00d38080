"""Figures of a sweep, and the page that shows them."""

from __future__ import annotations

import importlib.metadata
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from strategies import write_run, write_sweep

from gridrun import run_sweep
from gridrun.analysis import plots
from gridrun.analysis.sweep import load_sweep
from gridrun.cli import main
from gridrun.errors import ConfigError

VOID = {"meta", "img"}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three rates by two shapes by three repeats; one run failed."""
    path = write_sweep(tmp_path / "sweep")
    number = 0
    for lr in (0.001, 0.01, 0.1):
        for chans in ([2], [4]):
            for repeat in range(3):
                score = 0.5 + 10 * lr / (1 + 50 * lr) + len(chans) + repeat / 50
                state = "failed" if number == 7 else "done"
                record = {"error": "a <b>bold</b> error"} if number == 7 else {}
                axes = {"lr": lr, "chans": chans}
                curve = [0.1, score / 3, score / 2]
                write_run(path, number, axes, repeat, state, curve, record=record)
                number += 1
    return path


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps texts, tables and sources."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def report(sweep: Path, *options: str) -> Page:
    """The page that the command writes."""
    assert main(["report", str(sweep), *options]) == 0
    return Page((sweep / "report.html").read_text(encoding="utf-8"))


def test_the_page_tells_what_came_of_the_sweep(sweep: Path) -> None:
    """Counts, the best point, every grid point, failures; pictures are inside."""
    page = report(sweep)
    text = " ".join(page.texts)
    assert "18 runs: 17 done, 1 failed." in text
    assert "lr 0.1, chans [4]" in text or "lr 0.1, chans [2]" in text
    assert "a <b>bold</b> error" in text
    assert len(page.sources) == 6  # two learning curves, then one of each kind
    assert all(one.startswith("data:image/png;base64,") for one in page.sources)


def test_the_page_tells_how_the_sweep_was_made(tmp_path: Path) -> None:
    """Command, commit, host and versions, of a sweep that was trained."""
    given = {"exp_name": "own", "model_type": "SmallNet", "dataset": "digits"}
    given |= {"img_shape": [1, 8, 8], "chans": [2], "ksizes": [3], "mid_dims": 4}
    given |= {"batch_size": 64, "n_epochs": 1, "lr": 0.01, "augment": []}
    data = str(Path(__file__).parents[2] / "data")
    options = {"save_root": str(tmp_path), "data_root": data, "train_set_size": 64}
    sweep = run_sweep(given, executor="serial", quiet=True, **options)
    text = " ".join(report(sweep.path).texts)
    versions = importlib.metadata.version("torch")
    assert f"torch {versions}" in text
    request = json.loads((sweep.path / "sweep.json").read_text())["requests"][0]
    (invocation,) = request["invocations"]
    for name in ("time", "host", "command"):
        assert str(invocation[name]) in text


def test_the_page_shows_diagnostics_and_evaluators(sweep: Path) -> None:
    """Numbers of their newest files, and pictures beside them."""
    for number in range(18):
        folder = sweep / f"sweep_{number}"
        (folder / "model.txt").write_text("Net(<lambda>)")
        (folder / "diagnostics").mkdir()
        for epoch in (2, 3):
            found = {"total": epoch / 8, "each": [1, 2]}
            path = folder / "diagnostics" / f"norms_{epoch:04d}"
            path.with_suffix(".json").write_text(json.dumps(found))
        path.with_name(f"{path.name}_figure.png").write_bytes(b"png")
    analysis = sweep / "sweep_3" / "analysis" / "worst"
    analysis.mkdir(parents=True)
    found = {"split": "test", "result": {"largest": 0.875, "order": [1]}}
    (analysis / "test_best.json").write_text(json.dumps(found))
    page = report(sweep)
    text = " ".join(page.texts)
    assert "0.375" in text
    assert "0.25" not in re.findall(r"[\d.]+", text[text.index("norms") :])
    assert "run 3: worst, test_best" in text
    assert "0.875" in text
    assert "Net(<lambda>)" in text
    assert len(page.sources) == 7


@pytest.mark.parametrize("n_done", [0, 1])
def test_a_sweep_that_has_just_begun_has_a_page(tmp_path: Path, n_done: int) -> None:
    """With what there is."""
    path = write_sweep(tmp_path / "young")
    for number in range(3):
        is_done = number < n_done
        state, curve = ("done", [0.5]) if is_done else ("pending", [])
        write_run(path, number, {"lr": 0.1 + number}, 0, state, curve)
    text = " ".join(report(path).texts)
    assert "3 pending" in text if n_done == 0 else "1 done" in text


def test_an_unknown_metric_is_told_before_anything_is_written(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2."""
    assert main(["report", str(sweep), "--metric", "val_ac"]) == 2
    assert "did you mean 'val_acc'" in capsys.readouterr().err
    assert main(["report", str(sweep / "nothing")]) == 2
    assert not (sweep / "report.html").exists()


# --- figures ------------------------------------------------------------------------


def texts_of(figure: Figure) -> list[str]:
    """Every text of a figure that is not empty."""
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return [one.get_text() for one in found if one.get_text()]


def test_every_figure_says_what_it_shows(sweep: Path) -> None:
    """Runs that are left out are counted; axes and metric are named."""
    found = load_sweep(sweep)
    figures = [
        plots.plot_grid_heatmap(found, "lr", "chans"),
        plots.plot_parallel_coordinates(found),
        plots.plot_marginals(found),
        plots.plot_importance(found),
    ]
    for figure in figures:
        figure.canvas.draw()
        texts = " ".join(texts_of(figure))
        assert "17 runs; left out: 1 failed" in texts
        assert "val_acc" in texts
        assert "lr" in texts


def test_learning_curves_show_means_runs_and_best_epochs(sweep: Path) -> None:
    """Eighteen thin lines with a dot each, three thick ones with a band each.

    The thin line of a run that is not done is dashed.
    """
    figure = plots.plot_learning_curves(load_sweep(sweep), "val_acc", "lr")
    (axis,) = figure.axes
    thin = [one for one in axis.collections if isinstance(one, LineCollection)]
    assert sum(len(one.get_segments()) for one in thin) == 18
    assert sum(len(one.get_segments()) for one in thin if is_dashed(one)) == 1
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in dots) == 18  # type: ignore[arg-type]
    assert len(axis.lines) - len(dots) == len(axis.collections) - len(thin) == 3


def is_dashed(lines: LineCollection) -> bool:
    """Whether lines are not solid."""
    ((_, pattern),) = lines.get_linestyle()
    return pattern is not None


def test_a_heatmap_leaves_missing_places_grey(sweep: Path) -> None:
    """And writes mean and interval into the others."""
    write_run(sweep, 18, {"lr": 0.2, "chans": [2]}, val_acc=[0.5])
    figure = plots.plot_grid_heatmap(load_sweep(sweep), "lr", "chans")
    values = figure.axes[0].images[0].get_array()
    assert values.shape == (2, 4)
    assert values.mask.tolist() == [[False] * 4, [False, False, False, True]]
    assert sum("±" in text for text in texts_of(figure)) == 6 + 1  # and the title
    with pytest.raises(ConfigError, match="unknown axis 'chan'"):
        plots.plot_grid_heatmap(load_sweep(sweep), "chan")


def test_numbers_in_steps_of_ten_are_on_a_logarithmic_scale() -> None:
    """Even ones on a linear scale; texts are spread evenly."""
    assert plots.level_places([0.01, 0.1, 1]) == pytest.approx(
        {0.01: 0, 0.1: 0.5, 1: 1}
    )
    assert plots.level_places([1, 2, 4]) == pytest.approx({1: 0, 2: 0.5, 4: 1})
    assert plots.level_places([1, 2, 3]) == pytest.approx({1: 0, 2: 0.5, 3: 1})
    assert plots.level_places(["b", "a"]) == {"b": 0, "a": 1}
    assert plots.level_places([5]) == {5: 0.5}
