"""Trackers and diagnostics of runs: told everything, able to disturb nothing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gridrun import Run, run_sweep
from gridrun.tracking import live
from gridrun.tracking.live import LivePlot
from gridrun.training.trainer import Trainer

PLUGINS = Path(__file__).parents[1] / "plugins"
BASE: dict[str, Any] = {
    "exp_name": "sweep",
    "model_type": "Denoiser",
    "dataset": "Waves",
    "dataset_args": {"n": 17},
    "lossfxn": "MSELoss",
    "batch_size": 8,
    "n_epochs": 2,
    "lr": 0.01,
    "seed": 3,
    "plugins": str(PLUGINS),
    "executor": "serial",
}
Train = Callable[..., Run]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Function (key=value, ...) that trains one run."""

    def train_one(**keys: Any) -> Run:
        given = {
            **BASE,
            "save_root": str(tmp_path / str(len(list(tmp_path.iterdir())))),
        }
        (run,) = run_sweep({**given, **keys}, quiet=True).runs()
        return run

    return train_one


def diary(run: Run) -> list[str]:
    return (run.folder.path / "diary.txt").read_text().splitlines()


def test_a_tracker_is_told_everything_in_order(train: Train) -> None:
    """Starts, steps, epochs, the end; and the sweep's own start and end."""
    run = train(trackers=["Diary"])
    lines = diary(run)
    assert [line.partition(":")[0] for line in lines] == [
        "start after 0 epochs",
        "step 1",
        "step 2",
        "epoch 1",
        "step 1",
        "step 2",
        "epoch 2",
        "end",
    ]
    losses = [float(line.partition(": ")[2]) for line in lines if "epoch" in line[:5]]
    assert losses == list(run.metrics()["val_loss"])
    assert lines[-1] == "end: done, ['test_acc', 'test_loss']"
    text = (run.folder.path.parent / "diary.txt").read_text()
    assert text == "start\nend\n"


def test_a_tracker_that_fails_is_reported_once(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on; the record says what happened."""
    with caplog.at_level(logging.WARNING):
        run = train(trackers=["Diary"], tracker_args={"Diary": {"fails_at": 1}})
    told = [one for one in caplog.messages if "the diary is full" in one]
    assert len(told) == 1
    assert run.record["state"] == "done"
    assert run.record["tracker_errors"] == {"Diary": "RuntimeError: the diary is full"}
    assert diary(run)[-1].startswith("step 2")


def test_a_tracker_may_even_exit(train: Train, tmp_path: Path) -> None:
    """Which ends neither the run nor the command."""
    own = tmp_path / "plugins"
    shutil.copytree(PLUGINS, own)
    (own / "leaving.py").write_text(
        "import sys\nfrom gridrun.tracking.callback import Callback\n"
        "class Leaving(Callback):\n    def on_epoch_end(self, *about): sys.exit(3)\n"
    )
    run = train(trackers=["Leaving"], plugins=str(own))
    assert run.record["state"] == "done"
    assert run.record["tracker_errors"] == {"Leaving": "SystemExit: 3"}


def test_a_resumed_run_tells_its_tracker_how_far_it_was(train: Train) -> None:
    """And of its later epochs alone."""
    run = train(trackers=["Diary"], save_every_epoch=True)
    run.folder.forget_after(1, best=1)
    run.folder.cut_tables(1)
    run.folder.update(state="interrupted")
    (run.folder.path / "diary.txt").unlink()
    run_sweep(json.loads(run.folder.hyperparams.read_text()), quiet=True)
    assert [line.partition(":")[0] for line in diary(run)] == [
        "start after 1 epochs",
        "step 1",
        "step 2",
        "epoch 2",
        "end",
    ]


@pytest.mark.parametrize(
    ("error", "state"), [(RuntimeError("no"), "failed"), (None, "diverged")]
)
def test_a_tracker_is_told_of_other_ends(
    train: Train, monkeypatch: pytest.MonkeyPatch, error: Exception | None, state: str
) -> None:
    """A run that raises or diverges has an end too."""
    objective = Trainer.objective

    def bad(self: Any, run: Any, batch: Any, x: Any) -> Any:
        if error is not None:
            raise error
        terms = objective(self, run, batch, x)
        return terms | {"loss": terms["loss"] * torch.nan}

    calm = train()
    monkeypatch.setattr(Trainer, "objective", bad)
    monkeypatch.setattr(
        "gridrun.general.trainer.GeneralTrainer.try_out", lambda *given: None
    )
    run = train(trackers=["Diary"], lr=0.02)
    assert calm.record["state"] == "done"
    assert diary(run)[-1] == f"end: {state}, []"


def test_a_tracker_draws_no_random_number_of_a_run(train: Train) -> None:
    """The diary draws at each event; the weights are those without it."""
    runs = [train(), train(trackers=["Diary"])]
    states = [run.checkpoint("last")["model_state_dict"] for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --- diagnostics --------------------------------------------------------------------

EVERY = {"name": "loudest", "every": 1}


def test_diagnostics_run_on_schedule(train: Train) -> None:
    """Every so many epochs, or once of the tested epoch's weights."""
    entries = [
        {"name": "loudest", "every": 2},
        {"name": "weight_norms", "at": "run_end"},
        {"name": "predictions", "every": 3},
    ]
    run = train(n_epochs=5, diagnostics=entries, monitor="loss:max")
    found = sorted(path.name for path in (run.folder.path / "diagnostics").iterdir())
    assert found == [
        "loudest_0002.json",
        "loudest_0004.json",
        "predictions_0003.json",
        "predictions_0003_figure.png",
        "weight_norms_0001.json",
    ]
    assert run.record["best_epoch"] == 1
    norms = json.loads(
        (run.folder.path / "diagnostics" / "weight_norms_0001.json").read_text()
    )
    state = run.checkpoint("best")["model_state_dict"]
    for name, tensor in state.items():
        assert norms[name] == pytest.approx(float(tensor.norm()), rel=1e-5)


def test_a_diagnostic_sees_the_same_samples_each_time(train: Train) -> None:
    """A model that stands still gives equal figures; arguments arrive."""
    still = {"optimizer": "SGD", "lr": 1e-30}
    entry = {"name": "loudest", "every": 1, "args": {"share": 0.5}}
    run, whole = (
        train(diagnostics=[entry], **still),
        train(diagnostics=[EVERY], **still),
    )

    def largest(run: Run, epoch: int) -> float:
        path = run.folder.path / "diagnostics" / f"loudest_000{epoch}.json"
        return float(json.loads(path.read_text())["largest"])

    assert largest(run, 1) == largest(run, 2)
    assert largest(run, 1) == pytest.approx(largest(whole, 1) / 2)


def test_a_diagnostic_that_fails_is_harmless(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once, recorded, and left out; the others go on."""
    entries = [{"name": "broken", "every": 1}, EVERY]
    with caplog.at_level(logging.WARNING):
        run = train(diagnostics=entries)
    told = [one for one in caplog.messages if "no diagnosis today" in one]
    assert len(told) == 1
    assert run.record["state"] == "done"
    assert run.record["diagnostic_errors"] == {
        "broken": "RuntimeError: no diagnosis today"
    }
    assert len(list((run.folder.path / "diagnostics").iterdir())) == 2


def test_diagnostics_reach_the_trackers(train: Train) -> None:
    """With what they found and their cost."""
    run = train(diagnostics=[EVERY], trackers=["Diary"])
    lines = [line for line in diary(run) if line.startswith("diagnostic")]
    assert lines == [
        f"diagnostic loudest of epoch {epoch}: ['largest', 'time_s']"
        for epoch in (1, 2)
    ]
    assert run.record["diagnostics_s"] > 0


# --- live plots ---------------------------------------------------------------------


def test_pictures_are_shown_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is displayed, later ones take its place; a failure ends that alone."""
    import IPython.display

    shown: list[Any] = []

    class Handle:
        def update(self, image: Any) -> None:
            shown.append(("update", image.data))
            if image.data == b"bad":
                raise OSError("no kernel")

    def display(image: Any, display_id: bool) -> Handle:
        shown.append(("display", image.data))
        return Handle()

    monkeypatch.setattr(live, "is_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", display)
    plot = LivePlot({0: tmp_path})
    plot.refresh(0)
    assert not shown
    for content in (b"one", b"two", b"bad", b"never"):
        (tmp_path / "examples.png").write_bytes(content)
        plot.refresh(0)
    assert shown == [("display", b"one"), ("update", b"two"), ("update", b"bad")]


def test_nothing_is_shown_where_there_is_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headless, the PNG is all."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(live.sys, "platform", "linux")
    (tmp_path / "examples.png").write_bytes(b"no picture")
    plot = LivePlot({0: tmp_path})
    assert not plot.is_on
    plot.refresh(0)
