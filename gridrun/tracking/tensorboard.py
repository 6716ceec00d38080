"""Runs as event files for TensorBoard."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
    event_file_loader,
)
from tensorboard.compat.proto import summary_pb2  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import (  # type: ignore[import-untyped]
    api_pb2,
    metadata,
    plugin_data_pb2,
)
from torch.utils.tensorboard import SummaryWriter

from gridrun.run import RunState
from gridrun.tracking.callback import Callback
from gridrun.tracking.trackers import (
    Findings,
    as_text,
    configuration,
    facts,
    finite,
    numbers,
)

if TYPE_CHECKING:
    from gridrun.training.cohort import LiveRun

STATUS = {
    RunState.DONE: api_pb2.STATUS_SUCCESS,
    RunState.FAILED: api_pb2.STATUS_FAILURE,
    RunState.DIVERGED: api_pb2.STATUS_FAILURE,
}


class TensorBoard(Callback):
    """Event files in `<run folder>/tracking/tensorboard/`; takes no arguments.

    `tensorboard --logdir <sweep folder>` shows the sweep, under HPARAMS by its swept
    keys; the complete configuration is under TEXT. A resumed run's files are written
    anew from its table; diagnostics of the epochs that it has are kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writer: Any = None

    def on_run_start(self, run: LiveRun, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin anew with the epochs that the run has."""
        folder = run.folder.path / "tracking" / "tensorboard"
        last = max((row["epoch"] for row in rows), default=0)
        kept = list(_diagnostics(folder, last))
        if folder.exists():
            shutil.rmtree(folder)
        writer: Any = SummaryWriter(str(folder))
        self._writer = writer
        for event in kept:
            writer.file_writer.add_event(event, event.step, event.wall_time)
        writer.add_text("hyperparams", _as_code(configuration(run)))
        writer.add_text("run", _as_code(facts(run)))
        writer.file_writer.add_summary(_session_start(run))
        for row in rows:
            self._add(row)
        writer.flush()

    def on_epoch_end(self, run: LiveRun, row: Mapping[str, Any]) -> None:
        """Add an epoch, on disk when this returns."""
        self._add(row)
        self._writer.flush()

    def _add(self, row: Mapping[str, Any]) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["epoch"])

    def on_diagnostic(
        self, run: LiveRun, name: str, epoch: int, found: Mapping[str, Any]
    ) -> None:
        """Add scalars, histograms and images."""
        sorted_ = Findings.of(name, found)
        for path, value in sorted_.scalars.items():
            self._writer.add_scalar(path, value, epoch)
        for path, array in sorted_.arrays.items():
            if (flat := finite(array)).size:
                self._writer.add_histogram(path, flat, epoch)
        for path, figure in sorted_.figures.items():
            self._writer.add_figure(path, figure, epoch, close=False)
        self._writer.flush()

    def on_run_end(
        self, run: LiveRun, state: RunState, metrics: Mapping[str, float]
    ) -> None:
        """Add test scores and state, and close the file."""
        if self._writer is None:  # it failed before its first step
            self.on_run_start(run, run.folder.epochs.read())
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, run.epoch)
        error = run.record.get("error")
        text = f"{state.value}: {error}" if error else state.value
        self._writer.add_text("state", text)
        self._writer.file_writer.add_summary(_session_end(state))
        self._writer.close()


def _as_code(data: Mapping[str, Any]) -> str:
    """JSON as a Markdown block."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _diagnostics(folder: Path, last_epoch: int) -> Iterator[Any]:
    """Events of earlier attempts that are in no table, up to an epoch."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in event_file_loader.LegacyEventFileLoader(str(path)).Load():
            tags = [value.tag for value in event.summary.value]
            is_ours = any(tag.startswith("diagnostics/") for tag in tags)
            if is_ours and event.step <= last_epoch:
                yield event


def _session_start(run: LiveRun) -> Any:
    """What HPARAMS shows of a run: its seed and the swept keys."""
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, value in ({"seed": run.seed} | dict(run.record["axes"])).items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = as_text(value)
    data = plugin_data_pb2.HParamsPluginData(session_start_info=start)
    return _of_session(metadata.SESSION_START_INFO_TAG, data)


def _session_end(state: RunState) -> Any:
    """What HPARAMS shows of a run's end."""
    status = STATUS.get(state, api_pb2.STATUS_UNKNOWN)
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    return _of_session(metadata.SESSION_END_INFO_TAG, data)


def _of_session(tag: str, data: Any) -> Any:
    value = summary_pb2.Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data)
    )
    return summary_pb2.Summary(value=[value])
