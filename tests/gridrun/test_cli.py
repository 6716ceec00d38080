"""The command line: inputs, commands, messages and exit codes."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from strategies import IMAGES, write_run, write_sweep

from gridrun.cli import main
from gridrun.cli.run import split_inputs
from gridrun.cli.show import duration_text
from gridrun.errors import ConfigError, SweepStopped


def refuse_constant(text: str) -> None:
    """NaN and infinities are no JSON."""
    raise ValueError(text)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Function that runs a command; gives exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Call = Callable[..., tuple[int, str, str]]


# --- inputs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a.json"], ("a.json", None, [])),
        (["a.json", "b.json"], ("a.json", "b.json", [])),
        (["a.json", "lr=1"], ("a.json", None, ["lr=1"])),
        (["a.json", "with", "lr=1"], ("a.json", None, ["lr=1"])),
        (["a.json", "b.json", "lr=1", "l2=0"], ("a.json", "b.json", ["lr=1", "l2=0"])),
        (["a.json", "b.json", "with", "lr=1"], ("a.json", "b.json", ["lr=1"])),
        (["a.json", "b.json", "with"], ("a.json", "b.json", [])),
    ],
)
def test_inputs_are_files_then_overrides(inputs: list[str], expected: Any) -> None:
    """Ranges, `with` and overrides may each be left out."""
    assert split_inputs(inputs) == expected


def test_an_override_cannot_come_first() -> None:
    """The first argument names hyperparams.json."""
    with pytest.raises(ConfigError, match=r"the first argument is hyperparams\.json"):
        split_inputs(["lr=1", "a.json"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (89, "89 s"),
        (120, "2 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (18_720, "5.2 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    """Seconds, minutes or hours."""
    assert duration_text(seconds) == text


# --- exit codes -------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "a.json", "--colour"],
        ["run", "a.json", "--workers", "many"],
        ["run", "a.json", "--executor", "cloud"],
        ["status"],
        ["status", "a", "b"],
        ["status", "a", "--csv"],
        ["results", "a", "--csv", "--json"],
        ["results", "a", "--sort"],
        ["schema"],
    ],
)
def test_bad_usage_is_exit_code_2(call: Call, arguments: list[str]) -> None:
    """Unknown commands and options are refused with the usage."""
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: gridrun")


def test_every_problem_is_a_line_of_its_own(call: Call, tmp_path: Path) -> None:
    """A wrong configuration is exit code 2, told on standard error."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps({**IMAGES, "lr": 0, "colour": 1}))
    code, out, err = call("run", file)
    assert (code, out) == (2, "")
    lines = sorted(err.splitlines())
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {file}: colour: unknown hyperparameter")
    assert lines[1].startswith(f"error: {file}: lr: expected a number > 0")


def test_a_missing_file_is_exit_code_2(call: Call, tmp_path: Path) -> None:
    """Without a traceback."""
    code, _, err = call("run", tmp_path / "none.json")
    assert (code, err) == (2, f"error: {tmp_path}/none.json: no such file\n")


@pytest.mark.parametrize("command", ["status", "results"])
def test_a_folder_that_is_no_sweep_is_exit_code_2(
    call: Call, tmp_path: Path, command: str
) -> None:
    """The error names it."""
    code, _, err = call(command, tmp_path)
    assert code == 2
    assert err.startswith(f"error: {tmp_path}: no sweep here")


# --- run --------------------------------------------------------------------------


@pytest.fixture
def files(image_set: Path, tmp_path: Path) -> tuple[Path, Path]:
    """hyperparams.json and hyperranges.json of two short runs."""
    given = {"data_root": str(image_set), "dataset": "set", "img_shape": [1, 6, 6]}
    given |= {"save_root": str(tmp_path), "executor": "serial", "n_epochs": 1}
    base, ranges = tmp_path / "a.json", tmp_path / "b.json"
    base.write_text(json.dumps({**IMAGES, **given, "threads": 1}))
    ranges.write_text('{"lr": [0.01, 0.02]}')
    return base, ranges


def test_a_dry_run_shows_the_runs_and_writes_nothing(
    call: Call, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Overrides may follow the options."""
    code, out, _ = call("run", *files, "--dry-run", "n_repeats=2")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["number", "state", "repeat", "seed", "lr"]
    assert [line.split() for line in lines[1:3]] == [
        ["0", "pending", "0", "5", "0.01"],
        ["1", "pending", "1", "6", "0.01"],
    ]
    assert f"4 runs, 4 to train, in {tmp_path / 'sweep'}" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_options_win_over_the_file(
    call: Call, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """--save-root is the folder that gets the sweep."""
    _, out, _ = call("run", *files, "--dry-run", "--save-root", tmp_path / "other")
    assert f"in {tmp_path / 'other' / 'sweep'}" in out


def test_success_is_exit_code_0_and_a_table(
    call: Call, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Asking again trains nothing and shows the same."""
    code, out, _ = call("run", *files)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [
        ["0", "done"],
        ["1", "done"],
    ]
    assert f"{tmp_path / 'sweep'}: results.csv, summary.csv" in out
    assert call("run", *files) == (0, out, "")


def test_a_run_that_diverges_is_exit_code_1(
    call: Call, files: tuple[Path, Path]
) -> None:
    """Now, and when asked again, with where to look."""
    given = ["lossfxn=MSELoss", "optimizer=SGD", "bnorm=false"]
    files[1].write_text('{"lr": [1e30]}')
    for _ in range(2):
        code, out, err = call("run", *files, *given, "n_epochs=2", "--quiet")
        assert (code, out) == (1, "")
        assert "run 0 diverged: " in err
        assert "1 of 1 runs did not succeed; --retry-failed" in err


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)],
)
def test_a_signal_has_its_exit_code(
    call: Call,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    """Schedulers see what stopped the sweep."""

    def stopped(*_: Any, **__: Any) -> None:
        raise SweepStopped(number)

    monkeypatch.setattr("gridrun.sweep.run_request", stopped)
    found, _, err = call("run", *files)
    assert found == code
    assert "the same command continues" in err


def test_an_interrupt_while_checking_is_exit_code_130(
    call: Call, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a traceback."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gridrun.sweep.plan_sweep", interrupted)
    assert call("run", *files) == (130, "", "")


# --- status and results -----------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four runs: two done, one failed, one not begun."""
    folder = write_sweep(tmp_path / "sweep")
    write_run(folder, 0, {"lr": 0.1}, val_acc=[0.25, 0.5])
    write_run(folder, 1, {"lr": 0.2}, val_acc=[0.75, 0.5])
    error = {"error": 'ValueError: odd, "quoted"'}
    write_run(folder, 2, {"lr": 0.3}, state="failed", record=error)
    write_run(folder, 3, {"lr": 0.4}, state="pending")
    return folder


def test_status_shows_where_the_runs_stand(call: Call, sweep: Path) -> None:
    """State, epoch, best metric and error of each, counts of all."""
    code, out, _ = call("status", sweep)
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert " ".join(lines[0]) == "run state repeat lr epoch best val_loss error"
    assert lines[1] == ["0", "done", "0", "0.1", "2/2", "0.5"]
    assert lines[2] == ["1", "done", "0", "0.2", "2/2", "0.25"]
    assert lines[3][:6] == ["2", "failed", "0", "0.3", "0/2", "ValueError:"]
    assert "4 runs: 2 done, 1 failed, 1 pending" in out


def test_status_tells_that_nobody_trains(call: Call, sweep: Path) -> None:
    """A sweep that was stopped can be continued."""
    assert "nobody is training" in call("status", sweep)[1]
    assert "nothing left to train" not in call("status", sweep)[1]


def test_status_of_a_finished_sweep(call: Call, tmp_path: Path) -> None:
    """Nothing is left."""
    folder = write_sweep(tmp_path / "sweep")
    write_run(folder, 0, val_acc=[0.5])
    assert "nothing left to train" in call("status", folder)[1]


def test_status_of_an_empty_sweep(call: Call, tmp_path: Path) -> None:
    """No run is no error."""
    code, out, _ = call("status", write_sweep(tmp_path / "sweep"))
    assert code == 0
    assert "0 runs" in out


def test_status_works_from_inside_the_folder(
    call: Call, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gridrun status .` is a usual thing to type."""
    monkeypatch.chdir(sweep)
    assert "4 runs" in call("status", ".")[1]


def test_results_show_what_fits_a_terminal(call: Call, sweep: Path) -> None:
    """All runs, without the columns that files have."""
    code, out, _ = call("results", sweep)
    header = out.splitlines()[0].split()
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["0", "1", "2", "3"]
    assert {"number", "state", "lr", "val_acc", "error"} <= set(header)
    assert not {"folder", "engine", "val_acc_last"} & set(header)


def test_results_as_csv_are_all_columns(call: Call, sweep: Path) -> None:
    """What goes to another program is strict CSV."""
    rows = list(csv.DictReader(io.StringIO(call("results", sweep, "--csv")[1])))
    assert [row["val_acc"] for row in rows] == ["0.5", "0.75", "", ""]
    assert rows[2]["error"] == 'ValueError: odd, "quoted"'
    assert rows[0]["folder"] == "sweep_0"


def test_results_as_json_are_all_columns(call: Call, sweep: Path) -> None:
    """Strict JSON, missing values null."""
    text = call("results", sweep, "--json")[1]
    rows = json.loads(text, parse_constant=refuse_constant)
    assert [row["val_acc"] for row in rows] == [0.5, 0.75, None, None]


@pytest.mark.parametrize(
    ("metric", "order"),
    [
        ("val_acc", ["1", "0", "2", "3"]),
        ("val_acc_last", ["0", "1", "2", "3"]),
        ("val_loss", ["1", "0", "2", "3"]),
        ("loss", ["0", "1", "2", "3"]),
    ],
)
def test_results_are_sorted_best_first(
    call: Call, sweep: Path, metric: str, order: list[str]
) -> None:
    """High scores and low losses first, runs without the metric last."""
    _, out, _ = call("results", sweep, "--sort", metric)
    assert [line.split()[0] for line in out.splitlines()[1:]] == order


def test_sorting_by_an_unknown_column_is_refused(call: Call, sweep: Path) -> None:
    """The nearest is told."""
    code, out, err = call("results", sweep, "--sort", "val_ac")
    assert (code, out) == (2, "")
    assert "unknown column 'val_ac' (did you mean 'val_acc'?)" in err


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    """Two points with two repeats each, swept over plain_n."""
    folder = write_sweep(tmp_path / "sweep")
    scores = [(1, 0.5), (1, 0.75), (7, 0.25), (7, 0.25)]
    for number, (plain_n, score) in enumerate(scores):
        axes = {"plain_n": plain_n}
        write_run(folder, number, axes, number % 2, val_acc=[score])
    return folder


def test_the_summary_shows_mean_and_interval(call: Call, repeated: Path) -> None:
    """Half the 95 % interval stands behind the mean: 12.7·sem for two repeats."""
    _, out, _ = call("results", repeated, "--summary")
    assert "0.625 ± 1.6" in out.splitlines()[1]
    assert "val_acc_sd" not in out


def test_the_summary_shows_every_axis(call: Call, repeated: Path) -> None:
    """plain_n is an axis, n the number of repeats."""
    header, first, second = call("results", repeated, "--summary")[1].splitlines()
    columns = header.split()
    assert {"plain_n", "n"} <= set(columns)
    n, plain_n = columns.index("n"), columns.index("plain_n")
    # before the first mean each column is one word
    cells = [line.split() for line in (first, second)]
    assert [line[plain_n] for line in cells] == ["1", "7"]
    assert [line[n] for line in cells] == ["2", "2"]


def test_the_summary_is_sorted_by_means(call: Call, repeated: Path) -> None:
    """--sort takes the metric's plain name."""
    command = ["results", repeated, "--summary", "--csv", "--sort"]
    for metric, order in (("val_acc", ["1", "7"]), ("val_loss_last", ["1", "7"])):
        rows = list(csv.DictReader(io.StringIO(call(*command, metric)[1])))
        assert [row["plain_n"] for row in rows] == order


# --- libraries --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "model"), [("imgclass", "SmallNet"), ("torchdeepretina", "VaryModel")]
)
def test_the_schema_is_json_that_names_the_models(
    call: Call, library: str, model: str
) -> None:
    """Editors complete keys and models from it."""
    code, out, _ = call("schema", library)
    schema = json.loads(out, parse_constant=refuse_constant)
    assert code == 0
    (known, _) = schema["properties"]["model_type"]["anyOf"]
    assert model in known["enum"]
    assert {"exp_name", "lr", "batch_size"} <= set(schema["required"])
    assert schema["additionalProperties"] is False


def test_the_schema_of_an_unknown_library_is_refused(call: Call) -> None:
    """The nearest is told."""
    code, out, err = call("schema", "imgclas")
    assert (code, out) == (2, "")
    assert "unknown library 'imgclas' (did you mean 'imgclass'?)" in err


def test_models_are_listed_with_their_keys(call: Call) -> None:
    """Parameter count, paper and keys: what a model's constructor takes."""
    code, out, _ = call("models", "--units", "10")
    entry = out[out.index("  Tiny10, ") :].partition("\n\n")[0]
    assert code == 0
    assert entry.startswith("  Tiny10, 86,778 parameters\n")
    assert "source: Kornblith et al. 2019" in entry
    assert entry.endswith("uses: bn_moment, bnorm, img_shape, n_shakes, width")
    assert "  BNCNN, " in out


def test_looking_needs_no_torch(sweep: Path, tmp_path: Path) -> None:
    """Tables, schemas and refusals answer without the seconds that torch takes."""
    (tmp_path / "bad.json").write_text('{"lr": 0}')
    code = (
        "import sys; from gridrun.cli import main\n"
        "root = sys.argv[1]\n"
        "codes = [main([c, f'{root}/sweep']) for c in ('status', 'results')]\n"
        "codes += [main(['schema', 'imgclass']), main(['run', f'{root}/bad.json'])]\n"
        "assert codes == [0, 0, 0, 2], codes\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
