"""Trackers: TensorBoard, W&B and MLflow, read back with what reads their files."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from gridrun import load_sweep
from gridrun.claims import Claim
from gridrun.errors import ConfigError
from gridrun.run import RunState, make_spec
from gridrun.store import SweepFolder
from gridrun.tracking import mlflow as mlflow_module
from gridrun.tracking.callback import Callback
from gridrun.tracking.trackers import (
    ARGUMENTS,
    TRACKERS,
    Findings,
    finite,
    make_tracker,
    run_key,
    tracker_problems,
)
from gridrun.training.cohort import LiveRun

# what these packages use of others, or do themselves, is theirs to mend
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::DeprecationWarning:{name}")
    for name in ("mlflow", "wandb", "tensorboard", "sqlalchemy", "alembic")
]
CIRCUMSTANCES = {"host": "cortex", "pid": 7, "versions": {"torch": "2.13.0"}}
TEST = {"test_loss": 0.5, "test_acc": 0.75}

# --- runs, and what they tell -----------------------------------------------------


def row_of(epoch: int, shift: float = 0.0) -> dict[str, Any]:
    """An epoch as in metrics.csv."""
    loss = 1 / epoch + shift
    return {"epoch": epoch, "lr": 0.01, "loss": loss, "val_loss": 2 * loss}


def rows_to(last: int) -> list[dict[str, Any]]:
    """The epochs 1 to last."""
    return [row_of(epoch) for epoch in range(1, last + 1)]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's settings nor the user's cache."""
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def make_run(
    tmp_path: Path, request: pytest.FixtureRequest, image_hyps: Callable[..., Any]
) -> Callable[..., LiveRun]:
    """Function that begins the first or another attempt of a run of one sweep."""
    (tmp_path / "grid").mkdir()
    if "mlflow" in request.node.name:
        (tmp_path / "grid" / "mlflow").mkdir()
        store = request.getfixturevalue("empty_store")
        shutil.copy(store, tmp_path / "grid" / "mlflow")
    sweep = SweepFolder(tmp_path / "grid")

    def make(number: int = 0, epoch: int = 0) -> LiveRun:
        hyps = image_hyps(tmp_path, exp_name="grid", seed=5 + number)
        folder = dict(sweep.runs()).get(number)
        if folder is None:
            spec = make_spec(hyps, {"lr": hyps.lr, "chans": [3]}, 0, hyps.seed or 0, ())
            folder = sweep.create_run(number, spec)
        run = LiveRun(hyps, Claim(folder.claim), folder, torch.device("cpu"))
        run.begin_attempt(CIRCUMSTANCES)
        run.claim.acquire()
        run.write_record()
        run.claim.release()
        run.epoch = epoch
        return run

    return make


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database as it is made for a sweep, which takes seconds."""
    sweep = tmp_path_factory.mktemp("store")
    make_tracker("mlflow", {}).on_sweep_start(sweep)
    assert [path.name for path in (sweep / "mlflow").iterdir()] == ["mlflow.db"]
    return sweep / "mlflow" / "mlflow.db"


def train(
    name: str,
    run: LiveRun,
    earlier: Sequence[Mapping[str, Any]] = (),
    new: Sequence[Mapping[str, Any]] = (),
    state: RunState = RunState.DONE,
    diagnostics: Mapping[int, Mapping[str, Any]] | None = None,
    metrics: Mapping[str, float] = TEST,
) -> Callback:
    """Tell a tracker of an attempt."""
    tracker = make_tracker(name, {})
    tracker.on_run_start(run, earlier)
    for row in new:
        run.epoch = row["epoch"]
        tracker.on_epoch_end(run, row)
        if found := (diagnostics or {}).get(run.epoch):
            tracker.on_diagnostic(run, "units", run.epoch, found)
    tracker.on_run_end(run, state, metrics if state is RunState.DONE else {})
    return tracker


@dataclasses.dataclass
class Told:
    """What a tool says of a run."""

    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    group: str
    history: Mapping[str, Sequence[tuple[int, float]]]
    state: str
    status: Any
    test: Mapping[str, float]


def read_tensorboard(run: LiveRun) -> Told:
    """Read event files with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )
    from tensorboard.plugins.hparams import plugin_data_pb2  # type: ignore[import-untyped]

    folder = run.folder.path / "tracking" / "tensorboard"
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()

    def text(tag: str) -> str:
        (event,) = found.Tensors(f"{tag}/text_summary")
        return str(event.tensor_proto.string_val[0].decode())

    history = {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }
    ends = found.PluginTagToContent("hparams")["_hparams_/session_end_info"]
    data = plugin_data_pb2.HParamsPluginData.FromString(ends)
    facts = json.loads(text("run"))
    return Told(
        config=json.loads(text("hyperparams")),
        facts=facts,
        group=facts["sweep"],
        history={name: some for name, some in history.items() if name not in TEST},
        state=text("state").partition(":")[0],
        status=data.session_end_info.status,
        test={name: history[name][0][1] for name in TEST if name in history},
    )


def wandb_records(run: LiveRun) -> Iterator[Any]:
    """Records of W&B's file: the log format of LevelDB, which its own program reads."""
    from wandb.proto import wandb_internal_pb2

    kind_of_record: Any = wandb_internal_pb2

    folder = run.folder.path / "tracking" / "wandb"
    (path,) = folder.glob("*run-*/*.wandb")  # one attempt's, not more
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, content = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block is empty
            place += 32768 - place % 32768
            continue
        _, n_bytes, kind = struct.unpack("<IHB", data[place : place + 7])
        content += data[place + 7 : place + 7 + n_bytes]
        place += 7 + n_bytes
        if kind in (1, 4):  # whole, or the last part
            yield kind_of_record.Record.FromString(content)
            content = b""


def read_wandb(run: LiveRun) -> Told:
    """Read W&B's offline file."""
    history: dict[str, list[tuple[int, float]]] = {}
    summary: dict[str, Any] = {}
    records: dict[str, list[Any]] = {}
    for record in wandb_records(run):
        kind = record.WhichOneof("record_type")
        records.setdefault(kind, []).append(getattr(record, kind))
    for entry in records.get("history", ()):
        items: dict[str, Any] = {}
        for item in entry.item:
            name, *inner = item.nested_key
            value = json.loads(item.value_json)
            items[name] = items.get(name, {}) | {inner[0]: value} if inner else value
        for name, value in items.items():
            if not name.startswith("_"):
                history.setdefault(name, []).append((items["_step"], value))
    for entry in records["summary"]:
        summary |= {i.key: json.loads(i.value_json) for i in entry.update if i.key}
    (start,), (end,) = records["run"], records["exit"]
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    del config["_wandb"]
    return Told(
        facts=config.pop("gridrun"),
        config=config,
        group=start.run_group,
        history=history,
        state=summary["state"],
        status=end.exit_code,
        test={name: summary[name] for name in TEST if name in summary},
    )


def mlflow_client(run: LiveRun) -> Any:
    """A client of the store in the sweep's folder."""
    from mlflow.tracking import MlflowClient

    path = run.folder.path.parent / "mlflow" / "mlflow.db"
    return MlflowClient(tracking_uri=f"sqlite:///{path}")


def mlflow_run(run: LiveRun) -> Any:
    """The run in the store; there is one, not more."""
    client = mlflow_client(run)
    experiment = client.get_experiment_by_name("grid").experiment_id
    runs = client.search_runs([experiment])
    (found,) = [one for one in runs if one.info.run_name == run.folder.path.name]
    return found


def read_mlflow(run: LiveRun) -> Told:
    """Read MLflow's store with its client."""
    client, found = mlflow_client(run), mlflow_run(run)
    history = {
        name: sorted(
            (one.step, one.value)
            for one in client.get_metric_history(found.info.run_id, name)
        )
        for name in found.data.metrics
    }
    tags = found.data.tags
    location = Path(found.info.artifact_uri.removeprefix("file://"))
    return Told(
        config=json.loads((location / "hyperparams.json").read_text()),
        facts={
            "host": tags["gridrun.host"],
            "seed": int(tags["gridrun.seed"]),
            "device": tags["gridrun.device"],
            "versions": json.loads(tags["gridrun.versions"]),
        },
        group=tags["gridrun.sweep"],
        history={name: some for name, some in history.items() if name not in TEST},
        state=tags["gridrun.state"],
        status=found.info.status,
        test={name: history[name][0][1] for name in TEST if name in history},
    )


READERS: Mapping[str, Callable[[LiveRun], Told]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
}
STATUS: Mapping[
    str, Mapping[str, Any]
] = {  # TensorBoard: 1 success, 2 failure, 0 unknown
    "tensorboard": {"done": 1, "failed": 2, "diverged": 2, "interrupted": 0},
    "wandb": {"done": 0, "failed": 1, "diverged": 1, "interrupted": 255},
    "mlflow": {
        "done": "FINISHED",
        "failed": "FAILED",
        "diverged": "FAILED",
        "interrupted": "KILLED",
    },
}
every_tracker = pytest.mark.parametrize("name", sorted(TRACKERS))


def assert_history(told: Told, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every column of every epoch is there, once."""
    for column in ("lr", "loss", "val_loss"):
        steps = [step for step, _ in told.history[column]]
        values = [value for _, value in told.history[column]]
        assert steps == [row["epoch"] for row in rows]
        assert values == pytest.approx([row[column] for row in rows])


# --- what each of them records ----------------------------------------------------


@every_tracker
def test_a_run_is_recorded_whole(
    name: str, make_run: Callable[..., LiveRun], capfd: pytest.CaptureFixture[str]
) -> None:
    """Configuration, circumstances, epochs, scores and state; and nothing printed."""
    run = make_run()
    train(name, run, new=rows_to(3))
    told = READERS[name](run)
    assert told.config == run.hyps.model_dump(mode="json")
    assert told.group == "grid"
    for fact in ("host", "versions"):
        assert told.facts[fact] == CIRCUMSTANCES[fact]
    assert told.facts["seed"] == 5
    assert told.facts["device"] == "cpu"
    assert_history(told, rows_to(3))
    assert told.test == pytest.approx(TEST)
    assert (told.state, told.status) == ("done", STATUS[name]["done"])
    assert capfd.readouterr() == ("", "")


@every_tracker
@pytest.mark.parametrize("state", ["failed", "diverged", "interrupted"])
def test_how_a_run_ended_is_recorded(
    name: str, state: str, make_run: Callable[..., LiveRun]
) -> None:
    """Also of runs that are not done, in the tool's own terms too."""
    run = make_run()
    run.note(error="KeyError: step five")
    train(name, run, new=rows_to(2), state=RunState(state))
    told = READERS[name](run)
    assert (told.state, told.status) == (state, STATUS[name][state])
    assert_history(told, rows_to(2))
    assert not told.test


@every_tracker
def test_a_run_that_fails_before_its_first_step_is_recorded(
    name: str, make_run: Callable[..., LiveRun]
) -> None:
    """A tracker that was never told of the start records configuration and state."""
    run = make_run()
    make_tracker(name, {}).on_run_end(run, RunState.FAILED, {})
    told = READERS[name](run)
    assert told.config == run.hyps.model_dump(mode="json")
    assert told.status == STATUS[name]["failed"]


@every_tracker
def test_a_resumed_run_has_no_epoch_twice(
    name: str, make_run: Callable[..., LiveRun]
) -> None:
    """Later epochs than the table has are void, and what follows takes their place."""
    train(name, make_run(), new=rows_to(3), state=RunState.INTERRUPTED)
    anew = [row_of(epoch, shift=0.1) for epoch in (3, 4)]
    run = make_run(epoch=2)
    train(name, run, earlier=rows_to(2), new=anew)
    told = READERS[name](run)
    assert_history(told, [*rows_to(2), *anew])
    assert (told.state, told.status) == ("done", STATUS[name]["done"])


@every_tracker
def test_epochs_that_a_tracker_was_not_told_of_are_added(
    name: str, make_run: Callable[..., LiveRun]
) -> None:
    """A killed process may have told less than the table has."""
    train(name, make_run(), new=rows_to(1), state=RunState.INTERRUPTED)
    run = make_run(epoch=3)
    train(name, run, earlier=rows_to(3), new=[row_of(4)])
    assert_history(READERS[name](run), rows_to(4))


@every_tracker
def test_two_runs_side_by_side_stay_apart(
    name: str, make_run: Callable[..., LiveRun]
) -> None:
    """The runs of a cohort are told of in turn, and end in any order."""
    runs = [make_run(0), make_run(1)]
    trackers = [make_tracker(name, {}) for _ in runs]
    for run, tracker in zip(runs, trackers, strict=True):
        tracker.on_run_start(run, [])
    for epoch in (1, 2):
        for run, tracker in zip(runs, trackers, strict=True):
            tracker.on_epoch_end(run, row_of(epoch, shift=run.number))
    trackers[0].on_run_end(runs[0], RunState.FAILED, {})
    trackers[1].on_epoch_end(runs[1], row_of(3, shift=1))
    trackers[1].on_run_end(runs[1], RunState.DONE, TEST)
    first, second = (READERS[name](run) for run in runs)
    assert_history(first, rows_to(2))
    assert_history(second, [row_of(epoch, shift=1) for epoch in (1, 2, 3)])
    assert (first.state, second.state) == ("failed", "done")
    assert (first.config["seed"], second.config["seed"]) == (5, 6)
    assert first.group == second.group == "grid"


# --- diagnostics ------------------------------------------------------------------


def found_units() -> dict[str, Any]:
    """A scalar, an array with gaps and a figure."""
    figure = Figure((1, 1))
    figure.add_subplot().plot([1, 2])
    array = np.array([[1.0, 2.0], [math.nan, math.inf]])
    return {"dead": 0.25, "norms": array, "picture": figure}


def test_findings_are_sorted_by_kind() -> None:
    """Single numbers of any type are scalars; tensors are arrays."""
    found = {
        "python": 1,
        "numpy": np.float32(2),
        "tensor": torch.tensor(3.0, requires_grad=True),
        "many": torch.arange(4),
        "figure": Figure(),
    }
    sorted_ = Findings.of("some", found)
    scalars = {"python": 1.0, "numpy": 2.0, "tensor": 3.0}
    prefix = "diagnostics/some/"
    assert sorted_.scalars == {prefix + key: value for key, value in scalars.items()}
    assert list(sorted_.arrays) == [f"{prefix}many"]
    assert list(sorted_.figures) == [f"{prefix}figure"]


def test_histograms_are_of_finite_numbers() -> None:
    """NaN and infinities are left out; whole numbers and truth values are numbers."""
    assert finite(np.array([[1.0, math.nan], [-math.inf, 2.0]])).tolist() == [1, 2]
    assert finite(np.array([True, False])).tolist() == [1, 0]
    assert finite(np.array([])).size == 0


def test_tensorboard_shows_diagnostics(make_run: Callable[..., LiveRun]) -> None:
    """As scalar, histogram and image; those of epochs that are kept survive."""
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    run = make_run()
    units = {epoch: found_units() for epoch in (1, 2, 3)}
    interrupted = RunState.INTERRUPTED
    train("tensorboard", run, (), rows_to(3), interrupted, units)
    path = run.folder.path / "tracking" / "tensorboard"
    (file,) = path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # as a kill may leave it
    run = make_run(epoch=2)
    train("tensorboard", run, rows_to(2), [row_of(3)])
    found = EventAccumulator(str(path), {"histograms": 0}).Reload()
    prefix = "diagnostics/units/"
    assert [(e.step, e.value) for e in found.Scalars(f"{prefix}dead")] == [
        (1, 0.25),
        (2, 0.25),
    ]
    assert [e.histogram_value.num for e in found.Histograms(f"{prefix}norms")] == [2, 2]
    assert [e.step for e in found.Images(f"{prefix}picture")] == [1, 2]


def test_wandb_shows_diagnostics(make_run: Callable[..., LiveRun]) -> None:
    """In the row of their epoch, as scalar, histogram and image file."""
    run = make_run()
    train("wandb", run, new=rows_to(2), diagnostics={2: found_units()})
    history = read_wandb(run).history
    assert history["diagnostics/units/dead"] == [(2, 0.25)]
    ((step, histogram),) = history["diagnostics/units/norms"]
    assert step == 2
    assert isinstance(histogram, dict)
    assert sum(histogram["values"]) == 2
    folder = run.folder.path / "tracking" / "wandb"
    assert len(list(folder.glob("*/files/media/images/**/*.png"))) == 1
    assert_history(read_wandb(run), rows_to(2))


def test_mlflow_shows_diagnostics(make_run: Callable[..., LiveRun]) -> None:
    """As metrics, JSON and PNG files; once, if told again on resuming."""
    run = make_run()
    train("mlflow", run, (), rows_to(2), RunState.INTERRUPTED, {2: found_units()})
    run = make_run(epoch=2)
    tracker = make_tracker("mlflow", {})
    tracker.on_run_start(run, rows_to(2))
    tracker.on_diagnostic(run, "units", 2, found_units() | {"a?b": 1.0})
    tracker.on_run_end(run, RunState.DONE, TEST)
    history = read_mlflow(run).history
    assert history["diagnostics/units/dead"] == [(2, 0.25)]
    assert history["diagnostics/units/a-b"] == [(2, 1.0)]
    folder = Path(mlflow_run(run).info.artifact_uri.removeprefix("file://"))
    file = folder / "diagnostics" / "units" / "norms_epoch_0002.json"
    assert json.loads(file.read_text()) == {
        "epoch": 2,
        "values": [[1.0, 2.0], [None, None]],
    }
    assert (folder / "diagnostics" / "units" / "picture_epoch_0002.png").exists()


# --- each tool's own --------------------------------------------------------------


def services(parent: int) -> list[str]:
    """Ids of W&B's live processes that another has started."""
    command = ["ps", "-A", "-o", "ppid=,pid=,stat=,comm="]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    return [
        pid
        for ppid, pid, state, name in found
        if ppid == str(parent) and "wandb" in name and not state.startswith("Z")
    ]


def test_wandb_leaves_nothing_running(make_run: Callable[..., LiveRun]) -> None:
    """Its process ends with the last run; sys.exit is as it was."""
    before = sys.exit, sys.excepthook
    runs = [make_run(0), make_run(1)]
    trackers = [make_tracker("wandb", {}) for _ in runs]
    for run, tracker in zip(runs, trackers, strict=True):
        tracker.on_run_start(run, [])
    assert len(services(os.getpid())) == 1
    trackers[0].on_run_end(runs[0], RunState.DONE, {})
    assert len(services(os.getpid())) == 1
    trackers[1].on_run_end(runs[1], RunState.DONE, {})
    assert services(os.getpid()) == []
    assert (sys.exit, sys.excepthook) == before


KILLED = """
import sys, wandb
from gridrun.tracking.wandb import _quiet
wandb.init(settings=wandb.Settings(mode="offline", root_dir=sys.argv[1], **_quiet()))
print("begun", flush=True)
sys.stdin.read()
"""


def test_wandb_ends_with_a_killed_process(tmp_path: Path) -> None:
    """SIGKILL of the training process takes W&B's with it, within seconds."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        (service,) = services(process.pid)
        process.kill()
    deadline = time.monotonic() + 20
    while is_alive(service):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(pid: str) -> bool:
    """Whether a process runs; one that waits to be taken leave of does not."""
    command = ["ps", "-o", "stat=", "-p", pid]
    state = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_wandb_never_asks_for_an_account(
    make_run: Callable[..., LiveRun],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Online without an account is refused at once, and nothing is left running."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    tracker = make_tracker("wandb", {"mode": "online"})
    with pytest.raises(ConfigError, match="nobody is logged in"):
        tracker.on_run_start(make_run(), [])
    assert services(os.getpid()) == []
    assert capfd.readouterr() == ("", "")


def test_wandb_takes_project_mode_and_tags(
    make_run: Callable[..., LiveRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments reach the run; WANDB_MODE counts where no mode is given."""
    monkeypatch.setenv("WANDB_MODE", "online")
    run = make_run()
    args = {"project": "retina", "entity": "lab", "mode": "offline", "tags": ["a", "b"]}
    tracker = make_tracker("wandb", args)
    tracker.on_run_start(run, [])
    tracker.on_run_end(run, RunState.DONE, {})
    (start,) = (
        r.run for r in wandb_records(run) if r.WhichOneof("record_type") == "run"
    )
    assert (start.project, start.entity, list(start.tags)) == (
        "retina",
        "lab",
        ["a", "b"],
    )
    assert start.run_id == run_key(run)
    assert make_tracker("wandb", {})._of_run(run)["mode"] == "online"  # type: ignore[attr-defined]


def test_a_run_keeps_its_key_over_attempts(make_run: Callable[..., LiveRun]) -> None:
    """Attempts share it, runs do not, and a sweep made anew has others."""
    key = run_key(make_run())
    again = make_run()
    assert run_key(again) == key
    assert run_key(make_run(1)) != key
    first, *others = again.record["attempts"]
    again.note(attempts=[first | {"pid": 8}, *others])
    assert run_key(again) != key


def test_mlflow_takes_address_and_experiment(
    make_run: Callable[..., LiveRun], empty_store: Path, tmp_path: Path
) -> None:
    """The arguments decide where runs go."""
    from mlflow.tracking import MlflowClient

    shutil.copy(empty_store, tmp_path / "own.db")
    args = {"tracking_uri": f"sqlite:///{tmp_path}/own.db", "experiment": "retina"}
    run = make_run()
    (run.folder.path.parent / "mlflow" / "mlflow.db").unlink()
    tracker = make_tracker("mlflow", args)
    tracker.on_sweep_start(run.folder.path.parent)
    tracker._record = lambda run: None  # type: ignore[attr-defined] # writes to ./mlruns
    tracker.on_run_start(run, rows_to(2))
    tracker.on_run_end(run, RunState.DONE, {})
    client = MlflowClient(tracking_uri=args["tracking_uri"])
    experiment = client.get_experiment_by_name("retina")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["loss"] == 0.5
    assert list((run.folder.path.parent / "mlflow").iterdir()) == []


def test_mlflow_keeps_a_store_that_another_worker_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers that make the store together, the second takes the first's."""
    from mlflow.store.tracking import sqlalchemy_store

    class SlowStore:
        """While it is made, another worker's appears."""

        def __init__(self, address: str, artifacts: str) -> None:
            self.engine = self
            Path(address.removeprefix("sqlite:///")).write_text("mine")
            (tmp_path / "mlflow" / "mlflow.db").write_text("theirs")

        def dispose(self) -> None:
            """Close nothing."""

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", SlowStore)
    mlflow_module._local_store(tmp_path)
    assert [path.read_text() for path in (tmp_path / "mlflow").iterdir()] == ["theirs"]


UNREACHABLE = """
import sys, time
from gridrun.tracking.trackers import make_tracker
from pathlib import Path
from types import SimpleNamespace
run = SimpleNamespace(folder=SimpleNamespace(path=Path("grid/grid_0")))
tracker = make_tracker("mlflow", {"tracking_uri": f"http://127.0.0.1:{sys.argv[1]}"})
import mlflow
begin = time.monotonic()
try:
    tracker.on_run_start(run, [])
except mlflow.exceptions.MlflowException as error:
    print(time.monotonic() - begin)
    print("API request" in str(error))
"""


@pytest.mark.parametrize("is_silent", [False, True])
def test_mlflow_gives_an_unreachable_server_up(is_silent: bool) -> None:
    """Refused or without an answer: training and signals wait for seconds only."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if is_silent:  # connections are made, and nobody speaks
            server.listen()
        port = str(server.getsockname()[1])
        command = [sys.executable, "-c", UNREACHABLE, port]
        done = subprocess.run(
            command, env=own, capture_output=True, text=True, timeout=60, check=True
        )
    seconds, is_told = done.stdout.split()
    assert is_told == "True"
    assert float(seconds) < (14 if is_silent else 8)


def test_mlflow_keeps_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries and timeouts of the environment count."""
    own = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "77", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "9"}
    for name in mlflow_module.SETTINGS:
        monkeypatch.setenv(name, "gone")  # so that it is undone afterwards
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    mlflow_module._prepare()
    now = {name: os.environ[name] for name in mlflow_module.SETTINGS}
    assert now == {**mlflow_module.SETTINGS, **own}


# --- what is refused before anything starts ---------------------------------------


@every_tracker
def test_installed_trackers_without_arguments_are_right(name: str) -> None:
    """Nothing is wrong by default."""
    assert tracker_problems(name, {}) == []


@every_tracker
def test_a_package_that_is_not_installed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how to install it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = tracker_problems(name, {})
    assert "not installed" in problem
    assert f"pip install 'gridrun[{name}]'" in problem


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        (
            "tensorbord",
            {},
            "unknown tracker 'tensorbord' (did you mean 'tensorboard'?)",
        ),
        ("tensorboard", {"x": 1}, "tensorboard: unknown argument 'x'"),
        (
            "wandb",
            {"projct": "a"},
            "wandb: unknown argument 'projct' (did you mean 'project'?)",
        ),
        ("wandb", {"mode": "on"}, 'wandb: mode: expected online or offline, got "on"'),
        ("wandb", {"project": "a/b"}, "wandb: project: expected at most 128"),
        ("wandb", {"entity": 3}, "wandb: entity: expected the name"),
        ("wandb", {"tags": "a"}, "wandb: tags: expected a list"),
        ("wandb", {"tags": ["a" * 65]}, "wandb: tags: expected a list"),
        ("mlflow", {"tracking_uri": "./mlruns"}, "mlflow: tracking_uri: expected"),
        ("mlflow", {"tracking_uri": "file:///a"}, "mlflow: tracking_uri: expected"),
        ("mlflow", {"experiment": " "}, "mlflow: experiment: expected a name"),
    ],
)
def test_wrong_arguments(name: str, args: Mapping[str, Any], expected: str) -> None:
    """Unknown names and values that will not do are named."""
    (problem,) = tracker_problems(name, args)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("wandb", {"project": "a b", "entity": "lab", "mode": "online", "tags": ["a"]}),
        ("wandb", {"project": None, "tags": []}),
        ("mlflow", {"tracking_uri": "http://localhost:5000", "experiment": "a/b"}),
        ("mlflow", {"tracking_uri": "sqlite:///runs.db"}),
        ("mlflow", {"tracking_uri": "databricks"}),
    ],
)
def test_right_arguments(name: str, args: Mapping[str, Any]) -> None:
    """Values that will do."""
    assert tracker_problems(name, args) == []


@every_tracker
def test_arguments_are_those_of_the_class(name: str) -> None:
    """What is checked beforehand is what the tracker takes, each with a default."""
    parameters = inspect.signature(type(make_tracker(name, {}))).parameters
    assert list(parameters) == list(ARGUMENTS[name])
    assert all(one.default is None for one in parameters.values())


def test_checking_loads_neither_torch_nor_a_tracker() -> None:
    """A command that is refused answers at once."""
    code = (
        "import sys; from gridrun.tracking.trackers import tracker_problems\n"
        "for name in ('tensorboard', 'wandb', 'mlflow'): tracker_problems(name, {})\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"torch", "numpy", "tensorboard", "wandb", "mlflow", "sqlalchemy"}
    assert not loaded & heavy


# --- real sweeps --------------------------------------------------------------------


@pytest.mark.e2e
def test_a_killed_sweep_is_told_whole(tmp_path: Path) -> None:
    """Two workers, SIGKILL of all in the middle: afterwards all tools agree."""
    given = {
        "exp_name": "grid",
        "model_type": "Classifier",
        "model_args": {"width": 4},
        "dataset": "Points",
        "lossfxn": "CrossEntropyLoss",
        "batch_size": 4,
        "n_epochs": 40,
        "lr": 0.01,
        "seed": 1,
        "plugins": str(Path(__file__).parents[1] / "plugins"),
        "trackers": sorted(TRACKERS),
        "diagnostics": [{"name": "weight_norms", "every": 20}],
        "save_root": str(tmp_path),
    }
    (tmp_path / "h.json").write_text(json.dumps(given))
    (tmp_path / "r.json").write_text(json.dumps({"lr": [0.01, 0.02, 0.03]}))
    files = [str(tmp_path / "h.json"), str(tmp_path / "r.json")]
    command = [sys.executable, "-m", "gridrun", "run", *files, "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        tables = list((tmp_path / "grid").glob("grid_*/metrics.csv"))
        if any(len(table.read_text().splitlines()) > 8 for table in tables):
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "rror" not in done.stderr
    runs: list[Any] = load_sweep(tmp_path / "grid").runs()
    assert max(len(run.record["attempts"]) for run in runs) == 2
    for run in runs:
        rows = run.folder.epochs.read()
        assert len(rows) == 40
        for name, read in READERS.items():
            told = read(run)
            assert_history(told, rows)
            assert told.group == "grid"
            assert (told.state, told.status) == ("done", STATUS[name]["done"])
            assert told.config == run.hyps.model_dump(mode="json")
