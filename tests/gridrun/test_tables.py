"""Tables of a sweep, and the best of it, from run folders made by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from strategies import IMAGES, RETINA, write_run, write_sweep

from gridrun.analysis import tables
from gridrun.analysis.sweep import Sweep, load_sweep
from gridrun.claims import Claim
from gridrun.errors import ConfigError, StoreError
from gridrun.run import RunState
from gridrun.store import SweepFolder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a sweep without runs."""
    return write_sweep(tmp_path / "sweep")


def rows_of(sweep: Path) -> list[dict[str, Any]]:
    """The rows of results.csv, before they are text."""
    return tables.result_rows(tables.read_runs(SweepFolder(sweep)))


def columns_of(sweep: Path) -> list[str]:
    """The columns of results.csv that are metrics."""
    return tables.metric_columns(tables.read_runs(SweepFolder(sweep)))


def summary_of(sweep: Path) -> list[dict[str, Any]]:
    """The rows of summary.csv, before they are text."""
    return tables.summary_rows(tables.read_runs(SweepFolder(sweep)))


def write_point(sweep: Path, lr: float, *scores: float, **given: Any) -> None:
    """A grid point whose repeats reach these accuracies."""
    first = len(list(sweep.glob("sweep_*")))
    for repeat, score in enumerate(scores):
        write_run(
            sweep, first + repeat, {"lr": lr}, repeat, val_acc=[0.0, score], **given
        )


# --- one row per run --------------------------------------------------------------


def test_columns_of_results(sweep: Path) -> None:
    """Run, axes, best epoch, metrics there and at the last, test scores, the rest."""
    test = {"test_loss": 0.25, "test_acc": 0.75}
    write_run(
        sweep, 0, {"lr": 0.1}, val_acc=[0.5], terms={"l1": 2.0}, record={"test": test}
    )
    metrics = ["loss", "l1", "val_loss", "val_acc"]
    assert list(rows_of(sweep)[0]) == [
        *["number", "state", "repeat", "seed", "lr", "best_epoch"],
        *metrics,
        *[f"{name}_last" for name in metrics],
        *["test_loss", "test_acc"],
        *["duration_s", "parameters", "engine", "folder", "error"],
    ]


def test_a_row_tells_what_the_files_of_the_run_hold(sweep: Path) -> None:
    """Metrics come from the best and from the last epoch."""
    write_run(sweep, 3, {"lr": 0.1}, repeat=2, val_acc=[0.5, 0.75, 0.25])
    (row,) = rows_of(sweep)
    assert [row[n] for n in ("number", "state", "repeat", "seed", "lr")] == [
        *[3, "done", 2, 7, 0.1]
    ]
    assert [row["best_epoch"], row["val_acc"], row["val_loss"], row["loss"]] == [
        *[2, 0.75, 0.25, 0.5]
    ]
    assert [row["val_acc_last"], row["loss_last"]] == [0.25, 1 / 3]
    assert [row["duration_s"], row["parameters"], row["engine"]] == [0.75, 42, "solo"]
    assert [row["folder"], row["error"]] == ["sweep_3", None]


def test_rows_come_in_the_order_of_numbers(sweep: Path) -> None:
    """Run 10 follows run 9."""
    for number in (10, 2, 9):
        write_run(sweep, number, {"lr": number})
    assert [row["number"] for row in rows_of(sweep)] == [2, 9, 10]


def test_runs_without_results_appear(sweep: Path) -> None:
    """Pending, failed and interrupted runs have a row, with what is known."""
    write_run(sweep, 0, {"lr": 0.1}, state="pending")
    write_run(sweep, 1, {"lr": 0.2}, state="failed", record={"error": "ValueError: x"})
    write_run(sweep, 2, {"lr": 0.3}, state="running", val_acc=[0.5])
    write_run(sweep, 3, {"lr": 0.4}, val_acc=[0.5], record={"test": {"test_acc": 0.5}})
    rows = rows_of(sweep)
    assert [row["state"] for row in rows] == [
        "pending",
        "failed",
        "interrupted",
        "done",
    ]
    assert [row["val_acc"] for row in rows] == [None, None, 0.5, 0.5]
    assert [row["test_acc"] for row in rows] == [None, None, None, 0.5]
    assert rows[1]["error"] == "ValueError: x"
    assert len({tuple(row) for row in rows}) == 1


def test_a_run_that_somebody_trains_is_running(sweep: Path) -> None:
    """The claim tells it from an interrupted one."""
    claim = Claim(write_run(sweep, 0, state="running") / "claim")
    assert claim.acquire()
    assert rows_of(sweep)[0]["state"] == "running"
    claim.release()


def test_lists_and_objects_are_json_text(sweep: Path) -> None:
    """A table's cell is one value; null is empty."""
    axes = {"chans": [3], "optimizer_args": {"eps": 0.1}, "width": None}
    write_run(sweep, 0, axes)
    (row,) = rows_of(sweep)
    assert (row["chans"], row["optimizer_args"]) == ("[3]", '{"eps": 0.1}')
    assert row["width"] is None


def test_dotted_axes_are_columns(sweep: Path) -> None:
    """A swept entry of an object is shown, not the whole object."""
    for number, eps in enumerate((0.1, 0.2)):
        args = {"eps": eps}
        write_run(sweep, number, {"optimizer_args.eps": eps}, optimizer_args=args)
    rows = rows_of(sweep)
    assert [row["optimizer_args.eps"] for row in rows] == [0.1, 0.2]
    assert "optimizer_args" not in rows[0]


def test_base_keys_that_differ_between_requests_are_columns(sweep: Path) -> None:
    """Runs of a later request with another base are told apart; seeds are no axis."""
    write_run(sweep, 0, {"lr": 0.1}, l2=0.0)
    write_run(sweep, 1, {"lr": 0.1}, l2=0.5, repeat=1)
    rows = rows_of(sweep)
    assert [row["l2"] for row in rows] == [0.0, 0.5]
    assert list(rows[0])[4:6] == ["lr", "l2"]
    assert "split_seed" not in rows[0]


def test_keys_that_change_no_result_are_no_columns(sweep: Path) -> None:
    """Another number of workers or place is not another grid point."""
    write_run(sweep, 0, {"lr": 0.1}, workers=1, save_root="/a", threads=1)
    write_run(sweep, 1, {"lr": 0.2}, workers=2, save_root="/b", threads=2)
    assert list(rows_of(sweep)[0])[4:6] == ["lr", "best_epoch"]


def test_an_axis_of_one_request_is_a_column_for_all(sweep: Path) -> None:
    """Runs of other requests show the value of their base."""
    write_run(sweep, 0, {"lr": 0.1})
    write_run(sweep, 1, {"batch_size": 16})
    rows = rows_of(sweep)
    assert [(row["lr"], row["batch_size"]) for row in rows] == [(0.1, 8), (0.01, 16)]


@pytest.mark.parametrize(
    ("base", "values", "axes"),
    [
        (RETINA, [{"bnorm": True}, {"bnorm": False}], ["bnorm"]),
        (
            IMAGES,
            [{"chans": [3], "ksizes": [3]}, {"chans": [3, 3], "ksizes": [3, 3]}],
            ["chans", "ksizes"],
        ),
    ],
)
def test_keys_that_follow_from_an_axis_are_no_columns(
    sweep: Path, base: Any, values: list[Any], axes: list[str]
) -> None:
    """gc_bias of bnorm, or strides of chans, is no axis of its own."""
    for number, one in enumerate(values):
        write_run(sweep, number, one, base=base)
    runs = tables.read_runs(SweepFolder(sweep))
    assert tables.axis_names(runs) == axes


def test_metrics_of_some_runs_stand_among_the_others(sweep: Path) -> None:
    """A term that only one request has does not move the last columns."""
    write_run(sweep, 0, {"lr": 0.1}, val_acc=[0.5])
    write_run(sweep, 1, {"lr": 0.2}, val_acc=[0.5], terms={"semantic": 2.0})
    rows = rows_of(sweep)
    assert [row["semantic"] for row in rows] == [None, 2.0]
    assert list(rows[0])[-5:] == [
        "duration_s",
        "parameters",
        "engine",
        "folder",
        "error",
    ]
    assert {"semantic", "semantic_last", "val_acc"} <= set(columns_of(sweep))


def test_a_swept_l1_is_not_hidden_by_its_term(sweep: Path) -> None:
    """The axis shows the hyperparameter, not what it adds to the loss."""
    for number, l1 in enumerate((0.0, 0.1)):
        terms = {"l1": 37.5} if l1 else {}
        write_run(sweep, number, {"l1": l1}, val_acc=[0.5], terms=terms)
    assert [row["l1"] for row in rows_of(sweep)] == [0.0, 0.1]


def test_metric_names_are_all_numbers_of_training_and_test(sweep: Path) -> None:
    """Neither axes, nor epochs, rates and times are metrics."""
    write_run(
        sweep, 0, {"lr": 0.1}, val_acc=[0.5], record={"test": {"test_cc_norm": 0.5}}
    )
    assert columns_of(sweep) == [
        *["loss", "val_loss", "val_acc"],
        *["loss_last", "val_loss_last", "val_acc_last", "test_cc_norm"],
    ]


def test_a_folder_without_record_does_not_spoil_the_table(sweep: Path) -> None:
    """What somebody put there by hand is passed over."""
    write_run(sweep, 0)
    (sweep / "sweep_1").mkdir()
    assert len(rows_of(sweep)) == 1


# --- statistics -------------------------------------------------------------------


def test_no_value_has_no_statistics() -> None:
    """n is 0, the rest undefined."""
    found = tables.statistics([])
    assert found.pop("n") == 0
    assert set(found.values()) == {None}


def test_one_value_has_a_mean_only() -> None:
    """Neither spread nor interval can be known from one repeat."""
    found = tables.statistics([0.5])
    assert (found["n"], found["mean"]) == (1, 0.5)
    assert [found[name] for name in ("sd", "sem", "ci_low", "ci_high")] == [None] * 4


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_statistics_are_those_of_scipy(values: list[float]) -> None:
    """Mean, sd (n - 1), sem, and Student's 95 % interval."""
    found = tables.statistics(values)
    sem = stats.sem(values)
    expected = [np.mean(values), np.std(values, ddof=1), sem]
    if sem > 0:
        expected += stats.t.interval(0.95, len(values) - 1, np.mean(values), sem)
    names = ("mean", "sd", "sem", "ci_low", "ci_high")[: len(expected)]
    assert found["n"] == len(values)
    assert [found[name] for name in names] == pytest.approx(expected, 1e-9, 1e-9)


def test_equal_values_have_an_interval_of_no_width() -> None:
    """Three equal repeats are no division by zero."""
    found = tables.statistics([0.1, 0.1, 0.1])
    assert found["sd"] == pytest.approx(0, abs=1e-15)
    assert found["ci_low"] == pytest.approx(found["ci_high"], abs=1e-15)


# --- one row per grid point -------------------------------------------------------


def test_columns_of_the_summary(sweep: Path) -> None:
    """The axes first, then six columns for each metric."""
    write_point(sweep, 0.1, 0.5, 0.75)
    (row,) = summary_of(sweep)
    parts = ["n", "mean", "sd", "sem", "ci_low", "ci_high"]
    assert next(iter(row)) == "lr"
    assert [
        name for name in row if name.startswith("val_acc_") and "last" not in name
    ] == [f"val_acc_{part}" for part in parts]


def test_the_summary_is_over_repeats_of_a_grid_point(sweep: Path) -> None:
    """One row for each point, in the order of the runs."""
    write_point(sweep, 0.2, 0.5, 0.75)
    write_point(sweep, 0.1, 0.25)
    rows = summary_of(sweep)
    assert [(r["lr"], r["val_acc_n"], r["val_acc_mean"]) for r in rows] == [
        (0.2, 2, 0.625),
        (0.1, 1, 0.25),
    ]
    assert rows[0]["val_acc_sd"] == pytest.approx(0.25 / math.sqrt(2))
    assert rows[1]["val_acc_ci_low"] is None


def test_unfinished_runs_do_not_count_but_failed_ones_are_told(sweep: Path) -> None:
    """n is the number of runs that are done."""
    states = ["done", "running", "failed", "diverged", "pending"]
    for number, state in enumerate(states):
        write_run(sweep, number, {"lr": 0.1}, number, state=state, val_acc=[0.5])
    (row,) = summary_of(sweep)
    assert (row["val_acc_n"], row["n_failed"]) == (1, 2)


# --- text -------------------------------------------------------------------------


cells = st.none() | st.integers() | st.floats() | st.booleans() | st.text(max_size=8)


@example([(None, "\r")])
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=4))
def test_csv_comes_back_as_text(pairs: list[tuple[Any, Any]]) -> None:
    """Commas, quotes and line ends in cells stay in them; missing values are empty."""
    rows = [{"a": a, "b, c": b} for a, b in pairs]
    text = io.StringIO(tables.csv_text(rows), newline="")
    shown = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in rows
    ]
    assert list(csv.DictReader(text, strict=True)) == shown


def test_tables_are_written_from_the_run_folders(sweep: Path) -> None:
    """results.csv and summary.csv can be removed and made again."""
    write_point(sweep, 0.1, 0.5, 0.75)
    texts = []
    for _ in range(2):
        tables.write_tables(SweepFolder(sweep))
        files = [sweep / "results.csv", sweep / "summary.csv"]
        texts.append([file.read_text() for file in files])
        for file in files:
            file.unlink()
    assert texts[0] == texts[1]
    (header, *rows) = csv.reader(io.StringIO(texts[0][0]), strict=True)
    assert header == list(rows_of(sweep)[0])
    assert len(rows) == 2


def test_a_sweep_without_runs_has_empty_tables(sweep: Path) -> None:
    """A sweep can be looked at before anything is trained."""
    tables.write_tables(SweepFolder(sweep))
    assert (sweep / "results.csv").read_text() == ""
    assert len(load_sweep(sweep).results()) == 0
    assert tables.text_table([]) == "(no rows)"


def test_text_tables_are_aligned() -> None:
    """Columns start below their names, numbers have four digits."""
    text = tables.text_table([{"a": 1, "bb": None}, {"a": 0.123456, "bb": "x"}])
    assert text.splitlines() == ["a       bb", "1", "0.1235  x"]


# --- what is better ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_acc", "max"),
        ("val_acc_last", "max"),
        ("test_acc", "max"),
        ("test_fev", "max"),
        ("loss", "min"),
        ("loss_last", "min"),
        ("val_loss", "min"),
        ("test_loss", "min"),
    ],
)
def test_losses_fall_and_scores_rise(metric: str, mode: str) -> None:
    """The name of a usual metric says what is better."""
    assert tables.better(metric, None, []) == mode


def test_a_given_mode_wins() -> None:
    """Even for a metric that has its own."""
    assert tables.better("val_acc", "min", []) == "min"


def test_a_metric_of_its_own_needs_a_mode() -> None:
    """Nothing says whether a term should rise or fall."""
    with pytest.raises(ConfigError, match="l1: say what is better"):
        tables.better("l1", None, [])


def test_the_mode_of_the_monitor_counts(sweep: Path) -> None:
    """What the runs followed is what is better."""
    write_run(sweep, 0, l1=0.1, monitor="l1_term:min")
    runs = tables.read_runs(SweepFolder(sweep))
    assert tables.better("l1_term", None, runs) == "min"
    assert tables.better("l1_term_last", None, runs) == "min"


def test_an_unknown_mode_is_refused() -> None:
    """Only min and max."""
    with pytest.raises(ConfigError, match="expected min or max, got 'most'"):
        tables.better("val_acc", "most", [])


# --- the best ---------------------------------------------------------------------


def test_the_best_point_has_the_best_mean(sweep: Path) -> None:
    """Not the luckiest run."""
    write_point(sweep, 0.1, 0.9, 0.1)
    write_point(sweep, 0.2, 0.6, 0.7)
    point = load_sweep(sweep).best("val_acc")
    assert (point.axes, point.numbers, point.metric) == ({"lr": 0.2}, (2, 3), "val_acc")
    assert point.mean == pytest.approx(0.65)
    expected = stats.t.interval(0.95, 1, 0.65, stats.sem([0.6, 0.7]))
    assert point.ci == pytest.approx(expected)


def test_the_best_loss_is_the_smallest(sweep: Path) -> None:
    """Losses are minimised without being told, and the mode can be turned round."""
    write_point(sweep, 0.1, 0.25)
    write_point(sweep, 0.2, 0.75)
    opened = load_sweep(sweep)
    assert opened.best("val_loss").axes == {"lr": 0.2}
    assert opened.best("val_loss", mode="max").axes == {"lr": 0.1}


def test_a_single_repeat_has_no_interval(sweep: Path) -> None:
    """None, not a width of zero."""
    write_point(sweep, 0.1, 0.5)
    assert load_sweep(sweep).best().ci is None


def test_of_equal_points_the_first_is_best(sweep: Path) -> None:
    """Ties are settled by the order of the grid."""
    write_point(sweep, 0.2, 0.5)
    write_point(sweep, 0.1, 0.5)
    opened = load_sweep(sweep)
    assert opened.best("val_acc").axes == opened.best("val_loss").axes == {"lr": 0.2}


def test_incomplete_points_are_passed_over_and_named(sweep: Path) -> None:
    """A point that misses its bad repeats would look too good."""
    write_point(sweep, 0.1, 0.5, 0.5)
    write_point(sweep, 0.2, 0.9)
    write_run(sweep, 3, {"lr": 0.2}, 1, state="failed", val_acc=[0.1])
    opened = load_sweep(sweep)
    assert opened.best().axes == {"lr": 0.1}
    assert opened.best().left_out == ({"lr": 0.2},)
    partial = opened.best(allow_partial=True)
    assert (partial.axes, partial.numbers, partial.left_out) == ({"lr": 0.2}, (2,), ())


def test_without_a_complete_point_there_is_no_best(sweep: Path) -> None:
    """The error says what is missing."""
    write_run(sweep, 0, {"lr": 0.1}, state="running", val_acc=[0.5])
    with pytest.raises(StoreError, match="no grid point has all its repeats done"):
        load_sweep(sweep).best()


def test_an_unknown_metric_is_told_with_the_nearest(sweep: Path) -> None:
    """A misspelt metric is no empty table."""
    write_point(sweep, 0.1, 0.5)
    with pytest.raises(ConfigError, match="did you mean 'val_acc'"):
        load_sweep(sweep).best("val_ac")


def test_points_without_the_metric_are_passed_over(sweep: Path) -> None:
    """A term that only one request records can be asked for."""
    write_point(sweep, 0.1, 0.5)
    write_point(sweep, 0.2, 0.5, terms={"semantic": 2.0})
    point = load_sweep(sweep).best("semantic", mode="min")
    assert (point.mean, point.numbers) == (2.0, (1,))


def test_the_best_run_is_nearest_to_the_median(sweep: Path) -> None:
    """A typical run of the best point, neither its luckiest nor of another point."""
    write_point(sweep, 0.1, 0.45, 0.4, 0.5)
    write_point(sweep, 0.2, 0.9, 0.6, 0.65)
    assert load_sweep(sweep).best_run().number == 5


def test_of_two_repeats_the_best_run_is_not_the_luckier(sweep: Path) -> None:
    """Both are equally near to the median; the worse one does not flatter."""
    write_point(sweep, 0.1, 0.9, 0.6)
    assert load_sweep(sweep).best_run().number == 1


# --- a sweep for people -----------------------------------------------------------


@pytest.fixture
def opened(sweep: Path) -> Sweep:
    """A sweep of two points with two repeats each, one of which failed."""
    write_point(sweep, 0.1, 0.5, 0.75)
    write_point(sweep, 0.2, 0.25)
    write_run(sweep, 3, {"lr": 0.2}, 1, state="failed")
    return load_sweep(sweep)


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    """The error names it."""
    with pytest.raises(StoreError, match="no sweep here"):
        load_sweep(tmp_path)


def test_states_are_counted(opened: Sweep) -> None:
    """Every run is in one state."""
    assert opened.states() == {"done": 3, "failed": 1}
    assert "3 done, 1 failed" in repr(opened)


def test_results_are_a_frame_with_all_runs(opened: Sweep) -> None:
    """The rows of results.csv."""
    frame = opened.results()
    assert list(frame["number"]) == [0, 1, 2, 3]
    assert math.isnan(frame["val_acc"][3])


def test_history_is_long(opened: Sweep) -> None:
    """A row for each run, epoch and metric."""
    frame = opened.history()
    assert list(frame.columns) == ["run", "epoch", "metric", "value"]
    scores = frame[(frame.run == 1) & (frame.metric == "val_acc")]
    assert list(scores.epoch) == [1, 2]
    assert list(scores.value) == [0.0, 0.75]


def test_the_summary_of_a_metric_has_plain_columns(opened: Sweep) -> None:
    """Axes, failures, then the statistics without a prefix."""
    frame = opened.summary("val_acc")
    columns = ["lr", "n_failed", "n", "mean", "sd", "sem", "ci_low", "ci_high"]
    assert list(frame.columns) == columns
    assert list(frame["mean"]) == [0.625, 0.25]
    assert list(frame["n_failed"]) == [0, 1]
    assert math.isnan(frame["ci_low"][1])


def test_a_run_is_found_by_its_number(opened: Sweep) -> None:
    """With configuration, state and metrics; an unknown one lists those there."""
    run = opened.run(1)
    assert (run.number, run.state, run.hyps.lr) == (1, RunState.DONE, 0.1)
    assert list(run.metrics()["val_acc"]) == [0.0, 0.75]
    assert run.epochs() == []
    with pytest.raises(StoreError, match="no run 7; runs: 0, 1, 2, 3"):
        opened.run(7)


def test_a_sweep_is_read_anew_at_each_question(opened: Sweep) -> None:
    """Runs that end while a notebook is open are seen."""
    record = opened.path / "sweep_3" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "done"}))
    assert opened.states() == {"done": 4}


def test_json_gets_none_for_what_it_lacks() -> None:
    """NaN and infinity, however deep, become None; all else stays."""
    given = {"a": [1.5, float("nan")], "b": {"c": float("inf"), "d": "x"}, "e": 2}
    expected = {"a": [1.5, None], "b": {"c": None, "d": "x"}, "e": 2}
    assert tables.without_nan(given) == expected


def test_tables_hold_a_run_that_ended_while_they_were_written(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was read for them, before they were there: they are not final."""
    run = write_run(sweep, 0, {"lr": 0.1}, state="running", val_acc=[0.5])
    rows_before = tables._result_rows

    def end_the_run(*args: Any) -> Any:
        rows = list(rows_before(*args))
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"state": "done"}))
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(tables, "_result_rows", end_the_run)
        tables.write_tables(SweepFolder(sweep))
    assert ",interrupted," in (sweep / "results.csv").read_text()
    tables.write_tables(SweepFolder(sweep))
    assert ",done," in (sweep / "results.csv").read_text()


def test_tables_of_finished_runs_are_written_once(sweep: Path) -> None:
    """Until a run changes."""
    write_run(sweep, 0, {"lr": 0.1}, val_acc=[0.5])
    time.sleep(0.02)  # the clock of a file system may tick every hundredth of a second
    tables.write_tables(SweepFolder(sweep))
    (sweep / "results.csv").write_text("by hand\n2\n")
    os.utime(sweep / "results.csv")
    tables.write_tables(SweepFolder(sweep))
    assert (sweep / "results.csv").read_text() == "by hand\n2\n"
    (sweep / "sweep_0" / "run.json").touch()
    tables.write_tables(SweepFolder(sweep))
    assert (sweep / "results.csv").read_text().startswith("number,state")
