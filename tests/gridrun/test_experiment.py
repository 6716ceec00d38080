"""The Python front end: the same sweep as from JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gridrun import Experiment, run_sweep
from gridrun.errors import ConfigError
from imgclass.models import SmallNet


def groups(data_root: Path, save_root: Path) -> tuple[dict[str, Any], ...]:
    """The three dictionaries, with the names and values that Python may use."""
    experiment = {
        "name": "sweep",
        "train_set": "set",
        "train_set_size": 32,
        "target_device": torch.device("cpu"),
        "n_repetitions": 2,
        "data_root": data_root,
        "save_root": save_root,
    }
    solver = {"num_epochs": 2, "batch_size": 16, "interest_keys": []}
    hyperparams = {
        "model": SmallNet,
        "img_shape": (1, 6, 6),
        "chans": [3],
        "ksizes": [3],
        "mid_dims": 5,
        "seed": 3,
        "lr": 0.01,
        "loss_function": torch.nn.CrossEntropyLoss,
        "optimizer": torch.optim.SGD,
        "optimizer_args": {"momentum": 0.5},
        "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "scheduler_requires_metric": True,
        "executor": "serial",
    }
    return experiment, solver, hyperparams


@pytest.fixture
def data_root(tmp_path: Path, write_images: Callable[..., Any]) -> Path:
    """A data root with an image set."""
    write_images(tmp_path / "data" / "set" / "images.h5")
    return tmp_path / "data"


def contents(sweep: Path) -> dict[str, Any]:
    """Every file of a sweep, less times, places and what was typed."""
    found: dict[str, Any] = {}
    for path in sorted(sweep.rglob("*")):
        name = str(path.relative_to(sweep))
        if path.name == "hyperparams.json":
            hyps = json.loads(path.read_text(encoding="utf-8"))
            found[name] = hyps | {"save_root": None}
        elif path.suffix == ".pt":
            found[name] = torch.load(path, weights_only=True)["model_state_dict"]
        elif path.name in ("model.txt",):
            found[name] = path.read_bytes()
        else:
            found[name] = path.is_dir()
    record = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    found["runs"] = [request["runs"] for request in record["requests"]]
    return found


def test_the_same_sweep_as_from_json(data_root: Path, tmp_path: Path) -> None:
    """Folders, numbers, configurations and weights; what it writes is what it ran."""
    dictionaries = groups(data_root, tmp_path / "python")
    experiment = Experiment(*dictionaries)
    experiment.add_options(("optimizer_args", "momentum"), [0.5, 0.9])
    experiment.add_linked_options(["chans", "mid_dims"], [([2], 4), ([3], 5)])
    sweep = experiment.run(quiet=True)
    assert len(sweep.runs()) == 8
    assert dictionaries[1]["interest_keys"] == [
        "optimizer_args.momentum",
        "chans",
        "mid_dims",
    ]
    base, ranges = experiment.to_json(tmp_path / "json")
    written = json.loads(ranges.read_text(encoding="utf-8"))
    assert list(written) == ["optimizer_args.momentum", "chans, mid_dims"]
    again = run_sweep(base, ranges, quiet=True, save_root=str(tmp_path / "from_json"))
    ours, theirs = contents(sweep.folder.path), contents(again.folder.path)
    assert ours.keys() == theirs.keys()
    for name, content in ours.items():
        if name.endswith(".pt"):
            for key, tensor in content.items():
                assert torch.equal(tensor, theirs[name][key]), (name, key)
        else:
            assert content == theirs[name], name


def test_without_options_it_is_one_grid_point(data_root: Path, tmp_path: Path) -> None:
    """And only one file is written."""
    experiment = Experiment(*groups(data_root, tmp_path))
    assert len(experiment.run(quiet=True).runs()) == 2
    (path,) = experiment.to_json(tmp_path / "json")
    assert path.name == "hyperparams.json"


def test_options_of_an_earlier_call_are_removed(tmp_path: Path) -> None:
    """`to_json` into the same folder without options is one grid point."""
    experiment = Experiment({"name": "a"}, {}, {})
    experiment.add_options("lr", [0.1, 0.2])
    assert len(experiment.to_json(tmp_path)) == 2
    (path,) = Experiment({"name": "b"}, {}, {}).to_json(tmp_path)
    assert [path] == list(tmp_path.iterdir())


def test_the_first_option_varies_slowest() -> None:
    """As the first key of hyperranges.json."""
    experiment = Experiment({}, {}, {})
    experiment.add_options("lr", [0.1, 0.2])
    experiment.add_options("num_epochs", [1, 2])
    assert experiment.ranges == {"lr": [0.1, 0.2], "n_epochs": [1, 2]}


def test_paths_are_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the files they are absolute, so that these can lie anywhere."""
    monkeypatch.chdir(tmp_path)
    (path,) = Experiment({}, {}, {"model": SmallNet, "data_root": "data"}).to_json("x")
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == {"model_type": "SmallNet", "data_root": str(tmp_path / "data")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": lambda: 1}, "lr: <lambda> is defined inside another"),
        ({"lr": torch.ones(2)}, "lr: a Tensor cannot be recorded"),
        ({"name": "a", "exp_name": "b"}, "exp_name: given twice"),
        ({"model_args": {"kind": nn.ReLU}}, "model_args: ReLU is an argument of a cl"),
        ({"interest_keys": ()}, "interest_keys: expected a list.*got a tuple"),
        ({"scheduler": "StepLR", "scheduler_requires_metric": True}, "is wrong for St"),
        (
            {"scheduler": "ReduceLROnPlateau", "scheduler_requires_metric": False},
            "False is wrong for ReduceLROnPlateau",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    given: dict[str, Any], message: str
) -> None:
    """With the key and the reason."""
    with pytest.raises(ConfigError, match=message):
        Experiment({}, {}, given)


def test_a_key_stands_in_one_dictionary() -> None:
    """Under either of its names."""
    with pytest.raises(ConfigError, match="given twice"):
        Experiment({"num_epochs": 3}, {"n_epochs": 3}, {})


def test_options_that_make_no_grid_are_refused() -> None:
    """None, twice the same key, or too few values."""
    experiment = Experiment({}, {}, {})
    experiment.add_linked_options(["chans", "ksizes"], [([1], [3])])
    with pytest.raises(ConfigError, match="ksizes: has options already"):
        experiment.add_options("ksizes", [[3]])
    with pytest.raises(ConfigError, match="lr: no option"):
        experiment.add_options("lr", [])
    with pytest.raises(ConfigError, match="needs 2 values"):
        experiment.add_linked_options(["l1", "l2"], [(1,)])


def test_what_is_no_list_or_dictionary_is_refused() -> None:
    """With the name of the argument."""
    with pytest.raises(ConfigError, match="solver_config: expected a dictionary"):
        Experiment({}, [], {})  # type: ignore[arg-type]
    experiment = Experiment({}, {}, {})
    for values in (0.1, "SmallNet"):
        with pytest.raises(ConfigError, match="lr: expected a list of values"):
            experiment.add_options("lr", values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lr: expected a list of keys"):
        experiment.add_linked_options("lr", [(1, 2)])


def test_classes_and_numbers_of_libraries_are_taken() -> None:
    """Models of torch by their path, numbers of numpy as Python's."""
    given = {"num_epochs": np.int64(2), "log_loss": np.bool_(True)}
    given |= {"val_example_indices": [np.int64(0)]}
    experiment = Experiment(given, {}, {"model": nn.Linear, "loss_function": nn.L1Loss})
    experiment.add_options("lr", np.array([0.5, 0.25]))
    assert experiment.base == {
        "n_epochs": 2,
        "log_loss": True,
        "val_example_indices": [0],
        "model_type": "torch.nn.modules.linear:Linear",
        "lossfxn": "L1Loss",
    }
    assert experiment.base["log_loss"] is True
    assert experiment.ranges == {"lr": [0.5, 0.25]}


@pytest.mark.parametrize("name", ["interest_keys", "scheduler_requires_metric"])
def test_names_without_a_key_are_of_python_only(name: str) -> None:
    """JSON has nothing of that kind."""
    with pytest.raises(ConfigError, match=f"{name}: of gridrun.Experiment in Python o"):
        run_sweep({"model_type": "SmallNet", name: True})


@pytest.mark.parametrize("name", ["num_epochs", "n_repetitions", "loss_function"])
def test_the_other_names_are_errors_in_json(name: str) -> None:
    """Which give ours."""
    given = {"model_type": "SmallNet", "lr": 0.1, name: 1}
    with pytest.raises(ConfigError, match=f"{name}: unknown hyperparameter"):
        run_sweep(given)
