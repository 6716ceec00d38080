"""Classes and objects of Python as a record can hold and rebuild them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gridrun import Experiment
from gridrun.config.checks import lift_classes
from gridrun.errors import ConfigError
from gridrun.recordable import recordable
from imgclass.models import PlainN

SOURCE = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, input_shape, n_units, width=4):
        super().__init__()
        self.width, self.n_units, self.input_shape = width, n_units, input_shape
        self.layers = nn.Sequential(
            nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, n_units)
        )

    def forward(self, x):
        return self.layers(x)


class Points:
    def __init__(self, n=40, places=((0, 1), (1, 0))):
        self.n, self.places = n, places

    def splits(self):
        random = np.random.default_rng(0)
        classes = np.arange(self.n) % 2
        x = np.array(self.places)[classes] + 0.3 * random.normal(size=(self.n, 2))
        part = (x.astype("float32"), classes)
        return {"train": part, "test": part}


class Weighted:
    def __init__(self, factor=2.0):
        self.factor = factor

    def __call__(self, z, y):
        return self.factor * nn.functional.cross_entropy(z, y)


class Forgetful:
    def __init__(self, size):
        pass


class Hidden:
    def __init__(self, size=1):
        self.size = size
        self.more = 0


class WithFunction:
    def __init__(self, function=None):
        self.function = function


class Fussy:
    def __init__(self, size=1):
        if size > 1:
            raise ValueError("too large")
        self.size = size


class Outer:
    class Inner:
        pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of a user's own."""
    import importlib

    (tmp_path / "own_things.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_things", None)
    yield importlib.import_module("own_things")
    sys.modules.pop("own_things", None)


def test_classes_of_libraries_and_torch_are_names() -> None:
    """As JSON says them."""
    assert recordable(PlainN, "model") == "PlainN"
    assert recordable(torch.optim.AdamW, "optimizer") == "AdamW"
    assert recordable(nn.MSELoss, "loss_function") == "MSELoss"
    assert recordable(torch.device("cpu"), "target_device") == "cpu"


def test_objects_are_classes_with_arguments(own: Any) -> None:
    """The attributes with the names of the constructor's parameters."""
    loss = recordable(nn.SmoothL1Loss(beta=0.5), "loss_function")
    assert loss["class"] == "SmoothL1Loss"
    assert loss["args"] == {"beta": 0.5}
    assert recordable(nn.CrossEntropyLoss(), "loss_function") == "CrossEntropyLoss"
    assert recordable(own.Weighted(3.0), "loss_function") == {
        "class": "own_things:Weighted",
        "args": {"factor": 3.0},
    }
    net = recordable(own.Net([2], 2, width=6), "model")
    assert net == {
        "class": "own_things:Net",
        "args": {"input_shape": [2], "n_units": 2, "width": 6},
    }
    assert recordable(own.Net, "model") == "own_things:Net"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda own: lambda z, y: 0, "defined inside another"),
        (lambda own: own.Outer.Inner, "defined inside another"),
        (lambda own: own.Forgetful(3), "keeps no attribute 'size'"),
        (lambda own: own.WithFunction(lambda x: x), "must be plain"),
        (lambda own: changed(own.Hidden(), more=5), "another more"),
        (lambda own: changed(own.Fussy(), size=3), "making it again fails: ValueError"),
        (lambda own: nn.CrossEntropyLoss(weight=torch.ones(2)), "Tensor"),
        (lambda own: np.ones(3), "ndarray"),
        (lambda own: changed_net(own), "structure"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused(own: Any, make: Any, message: str) -> None:
    """With the key and the reason."""
    with pytest.raises(ConfigError, match=f"key.*{message}"):
        recordable(make(own), "key")


def changed(thing: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(thing, name, value)
    return thing


def changed_net(own: Any) -> Any:
    """A network to which something was added afterwards."""
    net = own.Net([2], 2)
    net.layers.append(nn.ReLU())
    return net


def test_a_class_of_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers could not find it."""
    kind = type("Net", (), {"__module__": "__main__"})
    with pytest.raises(ConfigError, match="put it into a module or a plug-in file"):
        recordable(kind, "model")


def test_an_experiment_of_objects_is_rebuilt_from_its_records(
    own: Any, tmp_path: Path
) -> None:
    """Its runs load, and the JSON pair is the same sweep."""
    from gridrun import run_sweep

    experiment = Experiment(
        {"name": "own", "train_set": own.Points(n=30), "seed": 1, "n_repetitions": 1},
        {"num_epochs": 1, "batch_size": 8, "lr": 0.01, "optimizer": torch.optim.SGD},
        {"model": own.Net, "loss_function": own.Weighted(3.0)},
    )
    experiment.add_options(("model_args", "width"), [3, 5])
    sweep = experiment.run(save_root=str(tmp_path), executor="serial", quiet=True)
    assert sweep.states() == {"done": 2}
    widths = [run.load_model().layers[0].out_features for run in sweep.runs()]
    assert widths == [3, 5]
    files = experiment.to_json(tmp_path / "json")
    again = run_sweep(*files, save_root=str(tmp_path), executor="serial", quiet=True)
    assert [run.number for run in again.runs()] == [0, 1]
    assert len(again.runs()[0].record["attempts"]) == 1


def experiment_of_objects(own: Any, **model_args: Any) -> Experiment:
    """Whose data set and model both have arguments of their own."""
    model = {"class": "own_things:Net", "args": {"width": 6}}
    return Experiment(
        {"name": "own", "train_set": own.Points(n=30), "seed": 1, "n_repetitions": 1},
        {"num_epochs": 1, "batch_size": 8, "lr": 0.01, "optimizer": torch.optim.SGD},
        {"model": model, "loss_function": own.Weighted(3.0), **model_args},
    )


def test_options_count_before_the_arguments_of_an_object(
    own: Any, tmp_path: Path
) -> None:
    """The other arguments stay; from JSON it is the same sweep."""
    from gridrun import run_sweep

    experiment = experiment_of_objects(own)
    experiment.add_options("model_args.width", [3, 5])
    experiment.add_options("dataset_args.n", [20, 24])
    options: dict[str, Any] = {"executor": "serial", "quiet": True}
    sweep = experiment.run(save_root=str(tmp_path), **options)
    assert sweep.states() == {"done": 4}
    hyps = [run.hyps for run in sweep.runs()]
    found = [(one.model_args["width"], one.dataset_args["n"]) for one in hyps]
    assert found == [(3, 20), (3, 24), (5, 20), (5, 24)]
    assert all(one.dataset_args["places"] == [[0, 1], [1, 0]] for one in hyps)
    widths = [run.load_model().layers[0].out_features for run in sweep.runs()]
    assert widths == [3, 3, 5, 5]
    files = experiment.to_json(tmp_path / "json")
    again = run_sweep(*files, save_root=str(tmp_path), **options)
    assert [len(run.record["attempts"]) for run in again.runs()] == [1] * 4


def test_an_override_counts_before_the_arguments_of_an_object(
    own: Any, tmp_path: Path
) -> None:
    """On the command line as in ranges."""
    from gridrun import run_sweep

    path, *_ = experiment_of_objects(own).to_json(tmp_path / "json")
    options: dict[str, Any] = {"executor": "serial", "quiet": True}
    overrides = ["model_args.width=2", "dataset_args.n=20"]
    sweep = run_sweep(path, None, overrides, save_root=str(tmp_path), **options)
    (run,) = sweep.runs()
    assert run.hyps.model_args == {"width": 2}
    assert run.hyps.dataset_args["n"] == 20


def test_classes_and_their_arguments_are_joined_once() -> None:
    """Reading them again changes nothing, nor does it change what was given."""
    args = {"width": 4, "depth": {"n": 1}}
    entry = {"class": "Net", "args": args}
    beside = {"width": 5, "more": 1}
    values: dict[str, Any] = {"model_type": entry, "model_args": beside}
    for _ in range(2):
        assert lift_classes(values) == []
        assert values == {
            "model_type": "Net",
            "model_args": {"width": 5, "depth": {"n": 1}, "more": 1},
        }
    assert args == {"width": 4, "depth": {"n": 1}}
    assert beside == {"width": 5, "more": 1}


def test_part_of_an_object_inside_the_arguments_is_refused() -> None:
    """The other entries of that object would be lost."""
    entry = {"class": "Net", "args": {"block": {"n": 1, "m": 2}}}
    values = {"model_type": entry, "model_args": {"block": {"n": 3}}}
    ((key, message),) = lift_classes(values)
    assert key == "model_args"
    assert message == "block has more entries in model_type; give all in one of them"
