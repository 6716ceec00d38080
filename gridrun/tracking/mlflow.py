"""Runs in MLflow."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gridrun.run import RunState
from gridrun.tracking.callback import Callback
from gridrun.tracking.trackers import (
    Findings,
    as_text,
    configuration,
    facts,
    numbers,
    run_key,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from gridrun.training.cohort import LiveRun

STATUS = {RunState.DONE: "FINISHED", RunState.INTERRUPTED: "KILLED"}  # others: FAILED
MAX_METRICS, MAX_PARAMS = 1000, 100  # of one request
MAX_TEXT = 5000  # characters of a parameter or tag
SETTINGS = {
    # no lines of its own, no reports to its makers
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # training waits while a server is silent: 3 times 3 s, and 2 s between
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}


class MLflow(Callback):
    """An MLflow run for each run; the runs of a sweep are an experiment.

    Without an address they are in `<sweep folder>/mlflow/`, an SQLite database that
    the worker processes of a host may write at the same time; `mlflow ui
    --backend-store-uri sqlite:///mlflow.db` in that folder shows them. For workers on
    several hosts give a server's address.

    A resumed run goes on where it was; if the store has epochs that the run has no
    longer, it is deleted there and told anew. MLflow cannot change parameters: they
    stay as first recorded, the artifact hyperparams.json is of the last attempt.

    A server that does not answer is given up after about 10 s, so that training goes
    on; MLFLOW_HTTP_REQUEST_TIMEOUT and MLFLOW_HTTP_REQUEST_MAX_RETRIES, if set, count.

    Args:
        tracking_uri: Address of a server or a database; default: MLFLOW_TRACKING_URI,
            else the database in the sweep's folder.
        experiment: Its name; default: the sweep's.
    """

    def __init__(
        self, tracking_uri: str | None = None, experiment: str | None = None
    ) -> None:
        super().__init__(tracking_uri=tracking_uri, experiment=experiment)
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._is_resumed = False
        self._last_steps: dict[str, int] = {}

    @property
    def client(self) -> MlflowClient:
        """Of the run's store; there is one from `on_run_start` on."""
        assert self._client is not None
        return self._client

    def on_sweep_start(self, folder: Path) -> None:
        """Make the store, which takes seconds, once for all workers."""
        if self._given() is None:
            _local_store(folder)

    def _given(self) -> str | None:
        """The address of a store that is not ours."""
        return self.args["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI")

    def on_run_start(self, run: LiveRun, rows: Sequence[Mapping[str, Any]]) -> None:
        """Find or make the run, and log the epochs that are not there yet."""
        _prepare()
        from mlflow.tracking import MlflowClient

        sweep = run.folder.path.parent
        given = self._given()
        self._client = MlflowClient(tracking_uri=given or _local_store(sweep))
        location = None if given else (sweep / "mlflow" / "artifacts").as_uri()
        experiment = self._experiment(self.args["experiment"] or sweep.name, location)
        self._begin(experiment, run, max((row["epoch"] for row in rows), default=0))
        self._record(run)
        self._log((row["epoch"], numbers(row)) for row in rows)

    def _experiment(self, name: str, location: str | None) -> str:
        """The id of an experiment, made if it is not there."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException:  # another worker was faster?
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _begin(self, experiment: str, run: LiveRun, last_epoch: int) -> None:
        """Go on with the run of earlier attempts, or make one."""
        key = run_key(run)
        wanted = f"tags.`gridrun.key` = '{key}'"
        for found in self.client.search_runs([experiment], wanted):
            self._run_id, self._is_resumed = found.info.run_id, True
            if self._last_step("epoch") <= last_epoch:
                self.client.update_run(self._run_id, status="RUNNING")
                return
            self.client.delete_run(self._run_id)
            self._last_steps = {}
        name = run.folder.path.name
        made = self.client.create_run(
            experiment, tags={"gridrun.key": key}, run_name=name
        )
        self._run_id, self._is_resumed = made.info.run_id, False

    def _record(self, run: LiveRun) -> None:
        """Record configuration and circumstances."""
        from mlflow.entities import Param, RunTag

        values = configuration(run)
        recorded = self.client.get_run(self._run_id).data.params
        params = [
            Param(name, as_text(value)[:MAX_TEXT])
            for name, value in values.items()
            if name not in recorded
        ]
        tags = [
            RunTag(f"gridrun.{name}", as_text(value)[:MAX_TEXT])
            for name, value in facts(run).items()
        ]
        tags.append(RunTag("gridrun.state", RunState.RUNNING.value))
        self.client.log_batch(self._run_id, tags=tags)
        for some in _parts(params, MAX_PARAMS):
            self.client.log_batch(self._run_id, params=some)
        self.client.log_dict(self._run_id, values, "hyperparams.json")

    def on_epoch_end(self, run: LiveRun, row: Mapping[str, Any]) -> None:
        """Log an epoch, in one transaction."""
        self._log([(row["epoch"], numbers(row))])

    def on_diagnostic(
        self, run: LiveRun, name: str, epoch: int, found: Mapping[str, Any]
    ) -> None:
        """Log scalars as metrics; arrays as JSON and figures as PNG artifacts."""
        sorted_ = Findings.of(name, found)
        self._log([(epoch, sorted_.scalars)])
        for path, array in sorted_.arrays.items():
            values: Any = np.where(np.isfinite(array), array, None)
            content = json.dumps({"epoch": epoch, "values": values.tolist()})
            file = f"{path}_epoch_{epoch:04d}.json"
            self.client.log_text(self._run_id, content, file)
        for path, figure in sorted_.figures.items():
            file = f"{path}_epoch_{epoch:04d}.png"
            self.client.log_figure(self._run_id, figure, file)

    def on_run_end(
        self, run: LiveRun, state: RunState, metrics: Mapping[str, float]
    ) -> None:
        """Log test scores and state, and end the run."""
        if self._client is None:  # it failed before its first step
            self.on_run_start(run, run.folder.epochs.read())
        self._log([(run.epoch, metrics)])
        self.client.set_tag(self._run_id, "gridrun.state", state.value)
        error = run.record.get("error") or ""
        self.client.set_tag(self._run_id, "gridrun.error", error[:MAX_TEXT])
        self.client.set_terminated(self._run_id, STATUS.get(state, "FAILED"))

    def _log(self, rows: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log the numbers of (step, name to number) that are not there yet."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        new = []
        for step, row in rows:
            for name, value in row.items():
                key = re.sub(r"[^\w./ -]", "-", name)
                if step > self._last_step(key):
                    self._last_steps[key] = step
                    new.append(Metric(key, float(value), now_ms, step))
        for some in _parts(new, MAX_METRICS):
            self.client.log_batch(self._run_id, metrics=some)

    def _last_step(self, key: str) -> int:
        """The last step of a metric in the store; -1: none."""
        if key not in self._last_steps:
            history: Iterable[Any] = ()
            if self._is_resumed:
                history = self.client.get_metric_history(self._run_id, key)
            self._last_steps[key] = max((one.step for one in history), default=-1)
        return self._last_steps[key]


def _parts(items: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """Items, at most n at a time."""
    return [items[first : first + n] for first in range(0, len(items), n)]


def _prepare() -> None:
    """Before MLflow is loaded: the settings that the environment does not have."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def _local_store(sweep: Path) -> str:
    """The address of the database in a sweep's folder, made if it is not there.

    MLflow fills a new one without a lock and not in one transaction: workers that
    start together, or a kill, would spoil it. So it is made under another name, and
    is there whole or not at all.
    """
    path = sweep / "mlflow" / "mlflow.db"
    if not path.exists():
        _prepare()
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        path.parent.mkdir(exist_ok=True)
        halfway = path.with_name(f".{socket.gethostname()}-{os.getpid()}.tmp")
        halfway.unlink(missing_ok=True)
        artifacts = path.with_name("artifacts").as_uri()
        kind: Any = SqlAlchemyStore
        kind(f"sqlite:///{halfway}", artifacts).engine.dispose()
        with contextlib.suppress(FileExistsError):  # another worker was faster
            os.link(halfway, path)
        halfway.unlink()
    return f"sqlite:///{path}"
