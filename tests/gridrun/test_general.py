"""The library of plug-ins: pair data, their spaces, evaluation, splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gridrun import Run, run_sweep
from gridrun.errors import ConfigError, DataError
from gridrun.general import datas
from gridrun.general.hyperparams import GeneralHyperparams
from gridrun.plugin_files import look_again

PLUGINS = Path(__file__).parents[1] / "plugins"
BASE: dict[str, Any] = {
    "exp_name": "sweep",
    "model_type": "Denoiser",
    "dataset": "Waves",
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
        assert run.record["error"] is None
        return run

    return train_one


def hyps_of(**keys: Any) -> GeneralHyperparams:
    return GeneralHyperparams.model_validate({**BASE, "split_seed": 3, **keys})


# --- numbers by hand ----------------------------------------------------------------


def by_hand(
    run: Run, split: str, normalise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Stored inputs, targets and normalised predictions of a split, in float32."""
    data = datas.open_data(run.hyps, torch.device("cpu"))  # type: ignore[arg-type]
    samples = getattr(data, split)
    inputs = samples.targets if samples.inputs is None else samples.inputs
    model = run.load_model()
    with torch.no_grad():
        return inputs, samples.targets, model(normalise(inputs))


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("space", ["default", "original"])
def test_scores_of_pairs_are_those_by_hand(
    train: Train, space: str, is_stored: bool
) -> None:
    """Inputs and targets are normalised alike, by the training inputs' numbers."""
    run = train(normalizer="global", eval_space=space, use_preset=is_stored)
    data = datas.open_data(run.hyps, torch.device("cpu"))  # type: ignore[arg-type]
    train_part: Any = data.train
    fitted = train_part.inputs if is_stored else train_part.targets
    mean, std = fitted.double().mean(), fitted.double().std(correction=0)
    assert run.checkpoint()["norm_stats"]["mean"] == pytest.approx(float(mean))
    _, y, z = by_hand(run, "test", lambda x: (x - mean) / std)
    if space == "original":
        z = z * std + mean
    else:
        y = (y - mean) / std
    expected = (z - y).square().mean()
    assert run.record["test"]["test_loss"] == pytest.approx(float(expected), rel=1e-5)
    r = np.corrcoef(z.flatten().numpy(), y.flatten().numpy())[0, 1]
    assert run.record["test"]["test_acc"] == pytest.approx(r, rel=1e-5)


def test_per_sample_adds_the_inputs_means_back(train: Train) -> None:
    """A prediction is shifted by its input's mean, which is known beforehand."""
    run = train(normalizer="per_sample", eval_space="original", use_preset=True)
    x, y, z = by_hand(run, "test", lambda x: x - x.mean((1, 2), keepdim=True))
    expected = (z + x.mean((1, 2), keepdim=True) - y).square().mean()
    assert run.record["test"]["test_loss"] == pytest.approx(float(expected), rel=1e-5)
    found = run.predict("test").predictions
    assert np.allclose(found, z + x.mean((1, 2), keepdim=True), atol=1e-6)


@pytest.mark.parametrize("normalizer", ["global", "per_channel", {"class": "Halving"}])
def test_predictions_are_in_the_unit_of_the_targets(
    train: Train, normalizer: Any
) -> None:
    """Whatever the normaliser, its inverse has been applied."""
    run = train(normalizer=normalizer, eval_space="original", n_epochs=1)
    found = run.predict("val")
    assert found.targets.mean() == pytest.approx(3, abs=0.7)
    error = np.square(found.predictions - found.targets).mean()
    rows = run.metrics()
    assert error == pytest.approx(float(rows["val_loss"].iloc[-1]), rel=1e-5)


def test_the_training_loss_has_a_space_of_its_own(train: Train) -> None:
    """Of normalised values the loss is smaller by the square of the deviation."""
    still = {"optimizer": "SGD", "lr": 1e-30, "normalizer": "global", "n_epochs": 1}
    losses = [
        train(loss_space=space, **still).metrics()["loss"].iloc[0]
        for space in ("default", "original")
    ]
    data = datas.open_data(hyps_of(normalizer="global"), torch.device("cpu"))
    assert losses[1] / losses[0] == pytest.approx(data.norm_stats["std"] ** 2, rel=1e-4)


# --- distortion ---------------------------------------------------------------------

NOISE = {
    "distorter": "gaussian",
    "distorter_args": {"std": 2.0},
    "normalizer": "global",
}


def test_made_inputs_are_distorted_in_evaluation_by_equal_numbers(
    train: Train,
) -> None:
    """Scores repeat to the bit, and are those of noisy inputs; runs share the noise."""
    noisy = train(**NOISE, n_epochs=15, lr=0.03)
    assert noisy.evaluate("test") == noisy.record["test"]
    stats = noisy.checkpoint()["norm_stats"]
    _, y, z = by_hand(noisy, "test", lambda x: (x - stats["mean"]) / stats["std"])
    y = (y - stats["mean"]) / stats["std"]
    undisturbed = float((z - y).square().mean())
    assert noisy.record["test"]["test_loss"] > 1.2 * undisturbed
    weights = str(noisy.folder.checkpoint_path(noisy.record["best_epoch"]))
    still = {"optimizer": "SGD", "lr": 1e-30, "init_weights_path": weights}
    runs = [train(**NOISE, **still, split_seed=3, seed=seed) for seed in (3, 4)]
    assert runs[0].record["test"] == runs[1].record["test"] == noisy.record["test"]
    losses = [run.metrics()["loss"].iloc[0] for run in runs]
    assert losses[0] != losses[1]


def test_stored_inputs_are_distorted_in_training_only(train: Train) -> None:
    """The scores of a model that does not move are those without a distorter."""
    still = {"optimizer": "SGD", "lr": 1e-30, "use_preset": True}
    runs = [train(**still, normalizer="global"), train(**still, **NOISE)]
    assert runs[0].record["test"] == runs[1].record["test"]
    losses = [run.metrics()["loss"].iloc[0] for run in runs]
    assert losses[0] != losses[1]


def test_the_distorters_do_what_they_say() -> None:
    """Moments, shares and moves, against a plain loop."""
    from gridrun.training.extras import Dropout, Gaussian, Jitter

    random = torch.Generator().manual_seed(1)
    x = torch.randn(200, 2, 7, 9, generator=random)
    noise = Gaussian(0.5)(x, random) - x
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    kept = Dropout(0.3)(x, random)
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(kept[kept != 0], x[kept != 0])
    moved = Jitter(2)(x, torch.Generator().manual_seed(5))
    moves = torch.randint(5, (200, 2), generator=torch.Generator().manual_seed(5)) - 2
    for one, other, (rows, columns) in zip(x, moved, moves.tolist(), strict=True):
        expected = np.zeros_like(one)
        for row in range(7):
            for column in range(9):
                if 0 <= row + rows < 7 and 0 <= column + columns < 9:
                    expected[:, row, column] = one[:, row + rows, column + columns]
        assert np.array_equal(expected, other)
    assert {tuple(move) for move in moves.tolist()} > {(-2, -2), (2, 2)} or len(
        set(moves.flatten().tolist())
    ) == 5


# --- data sets ----------------------------------------------------------------------


def test_splits_are_disjoint_whole_and_seeded() -> None:
    """At random by split_seed; in one block without shuffle."""
    train, val = datas.split_indices(hyps_of(), 40)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(40))
    assert len(val) == 4
    _, other = datas.split_indices(hyps_of(split_seed=4), 40)
    assert val.tolist() != other.tolist()
    _, block = datas.split_indices(hyps_of(shuffle=False, val_loc="middle"), 40)
    assert block.tolist() == [18, 19, 20, 21]


SOURCE = """
import numpy as np
import torch
class Set:
    PAIRS = {pairs}
    {extra}
    def __init__(self): pass
    def splits(self):
        x, y = np.zeros((4, 3)), np.zeros(4, int)
        return {splits}
"""


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("{'train': (x, y)}", "must give"),
        ("{'train': (x, y, y), 'test': (x, y)}", "train must be a pair"),
        ("{'train': (x[:3], y), 'test': (x, y)}", "3 inputs and 4 targets"),
        (
            "{'train': (x, y), 'test': (x[:, :2], y)}",
            "inputs of test are .2., of train",
        ),
        ("{'train': (x / 0, y), 'test': (x, y)}", "not finite|invalid value"),
        ("{'train': (x[:1], y[:1]), 'test': (x, y)}", "train has 1 samples"),
        ("{'train': (None, y), 'test': (x, y)}", "inputs of train are None"),
        ("{'train': (['a'], y), 'test': (x, y)}", "no array of numbers"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_data_sets_that_are_none_are_refused(
    tmp_path: Path, splits: str, message: str
) -> None:
    """With the key, the class and what is wrong."""
    source = SOURCE.format(pairs=False, extra="", splits=splits)
    (tmp_path / "own.py").write_text(source)
    look_again()
    keys = {"plugins": str(tmp_path), "dataset": "Set", "lossfxn": "CrossEntropyLoss"}
    with pytest.raises(DataError, match=f"dataset: Set: .*({message})"):
        datas.inspect_data(hyps_of(**keys))


def test_pairs_of_unequal_shapes_are_refused(tmp_path: Path) -> None:
    """Targets of pairs have the inputs' shape."""
    splits = "{'train': (x, y), 'test': (x, y)}"
    source = SOURCE.format(pairs=True, extra="", splits=splits)
    (tmp_path / "own.py").write_text(source)
    look_again()
    keys = {"plugins": str(tmp_path), "dataset": "Set"}
    with pytest.raises(DataError, match="PAIRS need equal shapes"):
        datas.inspect_data(hyps_of(**keys))


def test_whole_numbers_are_not_normalised(tmp_path: Path) -> None:
    """Tokens, say: they stay whole, and a normaliser is refused."""
    splits = "{'train': (x.astype(int), y), 'test': (x.astype(int), y)}"
    source = SOURCE.format(pairs=False, extra="", splits=splits)
    (tmp_path / "own.py").write_text(source)
    look_again()
    keys = {"plugins": str(tmp_path), "dataset": "Set", "lossfxn": "CrossEntropyLoss"}
    data = datas.open_data(hyps_of(**keys), torch.device("cpu"))
    batch = data.train.batch(torch.arange(2)).to(torch.float64)
    assert batch.inputs.dtype == torch.int64
    with pytest.raises(ConfigError, match="normalizer: inputs are whole numbers"):
        datas.open_data(hyps_of(**keys, normalizer="global"), torch.device("cpu"))


def test_the_data_are_guarded_by_content(train: Train) -> None:
    """The hash is of all arrays: one other number gives another."""
    hashes = [
        train(dataset_args=args).record["data_sha256"]["Waves"]
        for args in ({}, {"seed": 0}, {"seed": 1})
    ]
    assert hashes[0] == hashes[1] != hashes[2]


# --- examples -----------------------------------------------------------------------


def test_examples_are_the_predictions_of_each_evaluation(
    train: Train, tmp_path: Path
) -> None:
    """Those of an epoch's end are what its model predicts; none is missing."""
    import h5py

    run = train(
        val_example_indices=[3, 1],
        normalizer="global",
        log_frequency=2,
        save_every_epoch=True,
    )
    with h5py.File(run.folder.path / "examples.h5") as file:
        found = {name: file[name][:] for name in file}
        assert file["indices"][:].tolist() == [3, 1]
    assert found["epoch"].tolist() == [1, 1, 2, 2]
    assert found["step"].tolist() == [2, 5, 2, 5]
    for epoch, row in ((1, 1), (2, 3)):
        whole = run.predict("val", epoch)
        assert np.allclose(found["prediction"][row], whole.predictions[[3, 1]])
        assert np.array_equal(found["target"], whole.targets[[3, 1]])


def test_a_continued_run_keeps_its_examples(train: Train) -> None:
    """Rows of epochs that are trained again are not doubled."""
    import h5py

    run = train(val_example_indices=[0], n_epochs=3, save_every_epoch=True)
    path = run.folder.path / "examples.h5"
    with h5py.File(path) as file:
        before = file["prediction"][:]
    run.folder.forget_after(1, best=1)
    run.folder.cut_tables(1)
    run.folder.update(state="interrupted")
    given = json.loads(run.folder.hyperparams.read_text())
    given = {key: value for key, value in given.items() if key != "bootstrap_index"}
    run_sweep(given, quiet=True)
    with h5py.File(path) as file:
        assert file["epoch"][:].tolist() == [1, 2, 3]
        assert file["prediction"][:].tobytes() == before.tobytes()


# --- objectives -----------------------------------------------------------------------

OBJECTIVE = """
class Watched:
    metrics = {"largest": lambda z, y: float(y.abs().max())}
    def __call__(self, model, inputs, targets):
        return (model(inputs) - targets).square().mean()
"""


def test_a_plugin_objective_gets_normalised_pairs(train: Train, tmp_path: Path) -> None:
    """It comes to what `train_loop` comes to, and may bring metrics of its own."""
    import shutil

    own = tmp_path / "own"
    shutil.copytree(PLUGINS, own)
    (own / "watched.py").write_text(OBJECTIVE)
    look_again()
    keys = {"normalizer": "global", "plugins": str(own)}
    usual, watched = train(**keys), train(**keys, train_loop="Watched")
    states = [run.checkpoint()["model_state_dict"] for run in (usual, watched)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert "val_largest" in watched.metrics()
    with pytest.raises(ConfigError, match=r"loss_space.*gets normalised values"):
        run_sweep(
            {**BASE, **keys, "train_loop": "Watched", "save_root": str(tmp_path / "x")},
            {"loss_space": ["default", "original"]},
            quiet=True,
        )


def test_augmented_targets_are_distorted_in_evaluation(train: Train) -> None:
    """Distorter and augmenter together, where the targets are the inputs."""
    run = train(**NOISE, augmenters=["mirrored"])
    assert run.evaluate("val")["val_loss"] == run.metrics()["val_loss"].iloc[-1]


def test_a_data_set_gets_the_data_root(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key, else GRIDRUN_DATA: the same in the check and in training."""
    monkeypatch.setenv("GRIDRUN_DATA", str(tmp_path))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rooted.py").write_text(
        "import numpy as np\n"
        "class Rooted:\n"
        "    def __init__(self, data_root='unused'):\n"
        f"        assert data_root == {str(tmp_path)!r}, data_root\n"
        "    def splits(self):\n"
        "        part = np.ones((9, 2), 'float32'), np.arange(9) % 3\n"
        "        return {'train': part, 'test': part}\n"
    )
    (tmp_path / "own" / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 3)\n"
    )
    look_again()
    keys = {"dataset": "Rooted", "model_type": "Net", "lossfxn": "CrossEntropyLoss"}
    run = train(**keys, plugins=str(tmp_path / "own"))
    assert run.record["state"] == "done"


# --- random numbers of a user's own ---------------------------------------------------

RANDOM_MODEL = """
import random
import numpy as np
import torch
from torch import nn


class Random(nn.Module):
    def __init__(self, input_shape, in_eval=False):
        super().__init__()
        n = input_shape[-1]
        self.in_eval = in_eval
        self.layers = nn.Sequential(nn.Linear(n, 6), nn.Dropout(0.3), nn.Linear(6, n))

    def forward(self, x):
        if self.training or self.in_eval:
            x = x + 0.1 * torch.randn_like(x)
            x = x * (1 + 0.1 * random.random()) + 0.1 * np.random.rand()
        return self.layers(x)


class RandomLoss:
    def __init__(self):
        self.weights = torch.rand(12)

    def __call__(self, z, y):
        return (self.weights * (z - y).square()).mean()
"""


@pytest.fixture
def random_keys(tmp_path: Path) -> dict[str, Any]:
    """Keys of a model and a loss that draw from the global generators."""
    import shutil

    own = tmp_path / "random"
    shutil.copytree(PLUGINS, own)
    (own / "random_model.py").write_text(RANDOM_MODEL)
    look_again()
    keys = {"plugins": str(own), "model_type": "Random", "lossfxn": "RandomLoss"}
    return {**keys, "n_epochs": 4, "save_every_epoch": True}


def weights(run: Run) -> list[bytes]:
    state = run.checkpoint("last")["model_state_dict"]
    return [tensor.numpy().tobytes() for tensor in state.values()]


def test_global_random_numbers_resume_too(
    train: Train, random_keys: dict[str, Any]
) -> None:
    """torch's, numpy's and python's, of dropout and of forward passes."""
    run = train(**random_keys)
    before = weights(run)
    run.folder.forget_after(2, best=2)
    run.folder.cut_tables(2)
    run.folder.update(state="interrupted")
    (again,) = run_sweep(
        json.loads(run.folder.hyperparams.read_text()), quiet=True
    ).runs()
    assert len(again.record["attempts"]) == 2
    assert weights(again) == before


@pytest.mark.parametrize(
    "options",
    [
        {"log_frequency": 3},
        {"val_example_indices": [0, 1]},
        {"diagnostics": [{"name": "loudest", "every": 1}]},
        {"trackers": ["Diary"]},
    ],
    ids=str,
)
def test_what_is_watched_moves_no_random_number(
    train: Train, random_keys: dict[str, Any], options: dict[str, Any]
) -> None:
    """Also where a model draws in evaluation, whose numbers are the same each time."""
    keys = {**random_keys, "model_args": {"in_eval": True}}
    plain, watched = train(**keys), train(**keys, **options)
    assert weights(plain) == weights(watched)
    assert plain.record["test"] == watched.record["test"]
    assert plain.evaluate("test") == plain.record["test"] == plain.evaluate("test")


ANNEALED = """
class Annealed:
    def __init__(self):
        self.steps = 0

    def __call__(self, model, inputs, targets):
        self.steps += 1
        return (1 + self.steps) * (model(inputs) - targets).square().mean()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
"""


def test_the_state_of_a_plugin_is_in_checkpoints(train: Train, tmp_path: Path) -> None:
    """Of one that has a `state_dict`, as torch's modules have."""
    import shutil

    own = tmp_path / "annealed"
    shutil.copytree(PLUGINS, own)
    (own / "annealed.py").write_text(ANNEALED)
    look_again()
    keys = {"n_epochs": 4, "save_every_epoch": True, "plugins": str(own)}
    run = train(**keys, train_loop="Annealed", optimizer="SGD")
    before = weights(run)
    run.folder.forget_after(2, best=2)
    run.folder.cut_tables(2)
    run.folder.update(state="interrupted")
    given = json.loads(run.folder.hyperparams.read_text())
    (again,) = run_sweep(given, quiet=True).runs()
    assert weights(again) == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lossfxn": {"class": "MSELoss", "arg": {}}}, "lossfxn: expected a name or"),
        ({"normalizer": {"class": "global", "args": {"x": 1}}}, "global takes no args"),
        (
            {"distorter": {"class": "gaussian", "args": {"std": 1.0}}}
            | {"distorter_args": {"std": 0.1}},
            "distorter_args: std is 0.1, and 1.0 in args of distorter; keep one",
        ),
    ],
)
def test_entries_with_mistakes_are_refused(
    train: Train, keys: dict[str, Any], message: str
) -> None:
    """A misspelt field, arguments of what takes none, and two that contradict."""
    with pytest.raises((ConfigError, DataError), match=message):
        train(**keys)


def test_a_class_without_arguments_is_its_name(train: Train) -> None:
    """Also of what is ours."""
    classes = {"normalizer": {"class": "global"}, "lossfxn": {"class": "MSELoss"}}
    runs = [train(normalizer="global", lossfxn="MSELoss"), train(**classes)]
    found = {(run.hyps.normalizer, run.hyps.lossfxn) for run in runs}
    assert found == {("global", "MSELoss")}


@pytest.mark.parametrize(
    ("source", "keys", "message"),
    [
        ("objective", {}, "train_loop: the name 'epoch' is taken"),
        ("float", {}, "train_loop: size is no tensor of one number"),
        ("learned", {}, "lossfxn: Own has parameters, which nothing trains"),
        ("clash", {}, "distorter: gaussian is ours and stands in"),
        ("lazy", {}, "has layers whose size is not known"),
        ("frozen", {}, "has no parameter to train"),
        ("exit", {}, "cannot be imported: SystemExit"),
        ("broken_helper", {}, "cannot be imported: SyntaxError"),
        ("flat", {}, "lossfxn: .*cannot be trained on: UserWarning: Using a target"),
        ("augmenter", {}, "augmenters: .*cannot be trained on: ValueError"),
        ("distorter", {}, "distorter: .*cannot be trained on: ZeroDivision"),
        ("metric", {}, "dataset: .*cannot be trained on: TypeError"),
    ],
)
def test_plugins_that_cannot_work_are_refused(
    train: Train, tmp_path: Path, source: str, keys: dict[str, Any], message: str
) -> None:
    """Before anything starts, with the key."""
    import shutil

    sources = {
        "objective": "def own(model, x, y):\n"
        "    loss = model(x).mean()\n    return {'loss': loss, 'epoch': loss}\n",
        "float": "def own(model, x, y):\n"
        "    return {'loss': model(x).mean(), 'size': 1.0}\n",
        "learned": "from torch import nn\nclass Own(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 2)\n",
        "clash": "def gaussian(x, g): return x\n",
        "lazy": "from torch import nn\nclass Own(nn.LazyLinear):\n"
        "    def __init__(self): super().__init__(12)\n",
        "frozen": "from torch import nn\nclass Own(nn.Identity):\n"
        "    def __init__(self): super().__init__()\n",
        "exit": "import sys\nsys.exit(0)\nclass Own: pass\n",
        "flat": "from torch import nn\nclass Own(nn.Linear):\n"
        "    def __init__(self): super().__init__(12, 12)\n"
        "    def forward(self, x): return super().forward(x)[:, None]\n",
        "augmenter": "def own(x, y, g): return x\n",
        "distorter": "def own(x, g): return x * (1 / 0)\n",
        "metric": "from .datasets.waves import Waves\nclass Own(Waves):\n"
        "    metrics = {'acc': lambda x: 1.0}\n",
        "broken_helper": "from .broken import x\nclass Own: pass\n",
    }
    asked: dict[str, dict[str, Any]] = {
        "objective": {"train_loop": "own"},
        "float": {"train_loop": "own"},
        "learned": {"lossfxn": "Own"},
        "clash": NOISE,
        "augmenter": {"augmenters": ["own"]},
        "distorter": {"distorter": "own"},
        "metric": {"dataset": "Own"},
    }
    own = tmp_path / source
    shutil.copytree(PLUGINS, own)
    (own / "own.py").write_text(sources[source])
    (own / "broken.py").write_text("def x(:\n")
    look_again()
    given = asked.get(source, {"model_type": "Own"})
    with pytest.raises((ConfigError, DataError), match=message):
        train(**given, **keys, plugins=str(own))


@pytest.mark.parametrize("kind", ["uint8", "int32", "bool"])
def test_classes_may_be_of_any_whole_numbers(tmp_path: Path, kind: str) -> None:
    """They reach the loss as int64; classes that only test has count too."""
    splits = f"{{'train': (x, (y * 0).astype('{kind}')), "
    splits += f"'test': (x, (y * 0 + 1).astype('{kind}'))}}"
    source = SOURCE.format(pairs=False, extra="", splits=splits)
    (tmp_path / "own.py").write_text(source)
    look_again()
    keys = {"plugins": str(tmp_path), "dataset": "Set", "lossfxn": "CrossEntropyLoss"}
    data = datas.open_data(hyps_of(**keys), torch.device("cpu"))
    assert data.train.batch(torch.arange(2)).targets.dtype == torch.int64
    assert data.info.n_units == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("subsets = {'test': (0, 0)}", "subset 'test': the name is taken"),
        ("subsets = [1]", "subsets must give names and parts"),
        ("metrics = {'loss': max}", "metric 'loss': the name is taken"),
    ],
)
def test_names_that_are_ours_are_refused(
    tmp_path: Path, extra: str, message: str
) -> None:
    """Of subsets and of metrics."""
    splits = "{'train': (x, y), 'test': (x, y)}"
    source = SOURCE.format(pairs=False, extra=extra, splits=splits)
    (tmp_path / "own.py").write_text(source)
    look_again()
    keys = {"plugins": str(tmp_path), "dataset": "Set", "lossfxn": "CrossEntropyLoss"}
    with pytest.raises(DataError, match=message):
        datas.inspect_data(hyps_of(**keys))


def test_examples_that_fail_leave_the_run_alone(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told, recorded, and left out."""
    from gridrun.general.trainer import GeneralTrainer

    def fail(self: Any, run: Any, batch: Any) -> Any:
        raise TypeError("no examples today")

    monkeypatch.setattr(GeneralTrainer, "shown", fail)
    run = train(val_example_indices=[0])
    assert run.record["state"] == "done"
    assert run.record["examples_error"] == "TypeError: no examples today"
