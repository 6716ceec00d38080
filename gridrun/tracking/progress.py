"""Progress of a sweep: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from gridrun.training.event import Event


SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows events of all workers: one bar for the sweep, one for each worker.

    Args:
        n_epochs: Epochs to train, over all runs.
        n_runs: Runs to train.
        labels: Run number -> what tells it from the others.
        is_quiet: Show nothing but failures.
        is_verbose: Show a line for every epoch of a run, too.
    """

    def __init__(
        self,
        n_epochs: int,
        n_runs: int,
        labels: Mapping[int, str],
        is_quiet: bool = False,
        is_verbose: bool = False,
    ) -> None:
        self.labels = labels
        self.n_runs = n_runs
        self.n_ended = 0
        self.n_epochs_seen = 0
        self.n_epochs = n_epochs
        self.is_quiet = is_quiet
        self.is_verbose = is_verbose
        self._started = time.monotonic()
        self._next_line_s = self._started + SECONDS_BETWEEN_LINES
        self._bars: dict[int, Any] = {}
        self._shows_bars = not is_quiet and (sys.stderr.isatty() or _in_notebook())
        self._sweep = tqdm(
            total=n_epochs,
            desc=f"{n_runs} runs",
            unit="epoch",
            disable=not self._shows_bars,
            dynamic_ncols=True,
        )

    def __call__(self, event: Event, worker: int = 0) -> None:
        """Show one event of a worker."""
        if event.kind == "start":
            self._advance(event.epoch)
        elif event.kind == "step" and self._shows_bars:
            self._show_step(event, worker)
        elif event.kind == "epoch":
            self._advance(1)
            if self.is_verbose:
                self.line(f"run {event.number}, epoch {event.epoch}{_scores(event)}")
        elif event.kind == "end":
            self._end(event)

    def close(self) -> None:
        """Remove the workers' bars and leave the sweep's."""
        for bar in self._bars.values():
            bar.close()
        self._sweep.close()

    def line(self, text: str) -> None:
        """Write a line above the bars."""
        if self._shows_bars:
            self._sweep.write(text, file=sys.stderr)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def _advance(self, n_epochs: int) -> None:
        self.n_epochs_seen += n_epochs
        self._sweep.update(n_epochs)
        now = time.monotonic()
        if not (self._shows_bars or self.is_quiet) and now >= self._next_line_s:
            self._next_line_s = now + SECONDS_BETWEEN_LINES
            self.line(
                f"{self.n_epochs_seen} of {self.n_epochs} epochs, "
                f"{self.n_ended} of {self.n_runs} runs ended{self._remaining()}"
            )

    def _show_step(self, event: Event, worker: int) -> None:
        bar = self._bars.get(worker)
        if bar is None:
            bar = self._bars[worker] = tqdm(
                total=event.n_steps,
                position=len(self._bars) + 1,
                leave=False,
                unit="step",
                dynamic_ncols=True,
            )
        more = f" and {event.n_runs - 1} more" if event.n_runs > 1 else ""
        bar.set_description(
            f"worker {worker}: run {event.number}{more}, epoch {event.epoch}",
            refresh=False,
        )
        bar.total = event.n_steps
        bar.n = event.step
        bar.refresh()

    def _end(self, event: Event) -> None:
        self.n_ended += 1
        label = self.labels.get(event.number, "")
        text = f"run {event.number}{f' ({label})' if label else ''}: {event.state}"
        if error := event.metrics.get("error"):
            text += f": {error}"
        text += _scores(event)
        if not self.is_quiet or event.state != "done":
            self.line(f"{text}  [{self.n_ended}/{self.n_runs}{self._remaining()}]")

    def _remaining(self) -> str:
        left = self.n_epochs - self.n_epochs_seen
        if self._shows_bars or not self.n_epochs_seen or left <= 0:
            return ""
        spent = time.monotonic() - self._started
        seconds = spent / self.n_epochs_seen * left
        if seconds < 1:
            return ""
        return f", about {tqdm.format_interval(seconds)} left"


def _scores(event: Event) -> str:
    """`, name value` for every number of an event."""
    return "".join(
        f", {name} {value:.4g}"
        for name, value in event.metrics.items()
        if isinstance(value, float)
    )


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config
