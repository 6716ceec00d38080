"""Progress: plain lines, counts, and silence."""

from __future__ import annotations

import pytest

from gridrun.tracking import progress as module
from gridrun.tracking.progress import Progress
from gridrun.training.event import Event


def make(n_epochs: int = 4, n_runs: int = 2, is_quiet: bool = False) -> Progress:
    """Progress of a sweep whose standard error is no terminal."""
    labels = {0: "lr=0.1, repeat 0", 1: "lr=0.2, repeat 0"}
    return Progress(n_epochs, n_runs, labels, is_quiet)


def ended(number: int, state: str = "done", **metrics: object) -> Event:
    """The end of a run."""
    return Event("end", number, 2, state=state, metrics=metrics)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was written to standard error; nothing may go to standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_run_that_ends_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Number, what tells it from the others, state, scores and how many are left."""
    make()(ended(1, val_acc=0.51239, test_acc=0.5))
    (line,) = lines(capsys)
    expected = "run 1 (lr=0.2, repeat 0): done, val_acc 0.5124, test_acc 0.5  [1/2"
    assert line.startswith(expected)


def test_a_failure_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """The error stands in the line."""
    make()(ended(0, "failed", error="ValueError: no"))
    assert "failed: ValueError: no" in lines(capsys)[0]


def test_a_run_without_label_is_named_by_its_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No empty brackets."""
    make()(ended(7))
    assert lines(capsys)[0].startswith("run 7: done")


def test_ended_runs_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Failed and diverged runs have ended, too."""
    progress = make(n_runs=3)
    for number, state in enumerate(("done", "failed", "diverged")):
        progress(ended(number, state))
    assert [f"[{n}/3" in line for n, line in enumerate(lines(capsys), 1)] == [True] * 3


def test_epochs_and_steps_write_no_line_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A log file does not fill with steps."""
    progress = make()
    progress(Event("start", 0, 0))
    progress(Event("step", 0, 1, step=1, n_steps=9))
    progress(Event("epoch", 0, 1))
    progress.close()
    assert lines(capsys) == []


def test_now_and_then_a_line_tells_the_epochs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs that an earlier attempt had done count, too."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    progress = make(n_epochs=10)
    progress(Event("start", 0, 3))
    progress(Event("epoch", 0, 4))
    starts = [line.partition(",")[0] for line in lines(capsys)]
    assert starts == ["3 of 10 epochs", "4 of 10 epochs"]


def test_the_last_line_promises_no_more_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Once all epochs are done, nothing is left."""
    progress = make(n_epochs=1, n_runs=1)
    progress(Event("epoch", 0, 1))
    progress(ended(0))
    assert lines(capsys)[0].endswith("[1/1]")


@pytest.mark.parametrize("state", ["failed", "diverged"])
def test_quiet_shows_failures(capsys: pytest.CaptureFixture[str], state: str) -> None:
    """Bad news is told even so."""
    make(is_quiet=True)(ended(0, state))
    assert state in lines(capsys)[0]


def test_quiet_shows_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line for runs that are done, nor for epochs."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    progress = make(is_quiet=True)
    progress(Event("epoch", 0, 1))
    progress(ended(0))
    progress.close()
    assert lines(capsys) == []


def test_bars_are_shown_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for the sweep and one for each worker, with the line of an end above."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = make()
    progress(Event("step", 0, 1, step=1, n_steps=9, n_runs=2), worker=3)
    progress(ended(0))
    progress.close()
    text = capsys.readouterr().err
    assert "2 runs" in text
    assert "worker 3: run 0 and 1 more, epoch 1" in text
    assert "run 0 (lr=0.1, repeat 0): done" in text
