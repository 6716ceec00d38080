"""Engines: however gradients are computed, each run is trained as if alone."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from strategies import OF_MOVIE, OF_SWEEP
from torch import Tensor, nn

from gridrun.config import Hyperparams
from gridrun.errors import ConfigError
from gridrun.store import RunFolder
from gridrun.sweep import Run, run_sweep
from gridrun.training import engines, job, trainer
from gridrun.training.cohort import Interrupted
from gridrun.training.engines.graph import NoWaiting, Recorder
from gridrun.training.engines.stacked import Stack
from imgclass.trainer import ImageTrainer

ENGINES = ("graph", "stacked")
PLUGINS = {"plugins": str(Path(__file__).parents[1] / "plugins")}
COMMON: dict[str, Any] = {
    **OF_SWEEP,
    "optimizer": "SGD",  # Adam makes steps of rounding where the gradient is 0
    "precision": "float64",
}
MOVIE = COMMON | dict(OF_MOVIE) | {"batch_size": 32}
PICTURES = COMMON | {"dataset": "set", "img_shape": [3, 8, 8], "batch_size": 16}
LARGE = COMMON | {
    "dataset": "large",
    "img_shape": [3, 32, 32],
    "batch_size": 16,
    "n_epochs": 1,
}
SMALL = PICTURES | {
    "model_type": "SmallNet",
    "chans": [3],
    "ksizes": [3],
    "mid_dims": 5,
}
WAVES = (
    COMMON
    | PLUGINS
    | {
        "model_type": "Denoiser",
        "dataset": "Waves",
        "lossfxn": "MSELoss",
        "batch_size": 8,
    }
)
TWO_LAYERS = {"chans": [2, 3], "ksizes": [4, 3, 2]}
CASES: dict[str, dict[str, Any]] = {
    "stacks": MOVIE | TWO_LAYERS,
    "dropout in stacks": MOVIE | TWO_LAYERS | {"drop_p": 0.3},
    "dense": MOVIE | {"stackconvs": False, "conv_method": "direct"},
    "fourier": MOVIE | TWO_LAYERS | {"stackconvs": False, "conv_method": "fourier"},
    "norm per unit": MOVIE | {"bnorm_d": 1, "bn_moment": 0.2},
    "no norm, l1": MOVIE | {"bnorm": False, "l1": 0.01, "lr": 0.001},
    "at the centres": MOVIE | {"convgc": True},
    "log rates": MOVIE | {"softplus": False, "log_poisson": True, "lr": 0.001},
    "one-hot": MOVIE
    | {"model_type": "RetinotopicModel", "train_loop": "retinotopic_loop"},
    "BNCNN": MOVIE | TWO_LAYERS | {"model_type": "BNCNN", "output_scale": "std"},
    "LinearStackedBNCNN": MOVIE | TWO_LAYERS | {"model_type": "LinearStackedBNCNN"},
    "McIntosh2016": MOVIE | {"model_type": "McIntosh2016", "chans": [2, 3]},
    "LN": MOVIE | {"model_type": "LN", "lr": 0.0001},
    "distorted windows": MOVIE
    | {"distorter": "gaussian", "distorter_args": {"std": 1}},
    "dropout of images": SMALL
    | {"augment": [], "drop_ps": [0.1, 0.3], "augmenters": ["flip"]},
    "squared error": SMALL | {"lossfxn": "MSELoss", "grad_clip": 0.1, "log_grad": True},
    "PlainN": LARGE | {"model_type": "PlainN", "width": 3, "n_shakes": 2},
    "AlexNet": LARGE
    | {"model_type": "AlexNet", "mid_dims": 4, "locrespnorm": True, "lr": 0.001},
    "Tiny10": LARGE | {"model_type": "Tiny10", "width": 3},
    "objective": SMALL | PLUGINS | {"train_loop": "with_weights"},
    "pairs": WAVES | {"distorter": "dropout", "distorter_args": {"p": 0.2}},
    "pairs per channel": WAVES | {"normalizer": "per_channel"},
    "own space": WAVES | {"normalizer": "per_sample", "loss_space": "original"},
    "louder pairs": WAVES | {"augmenters": ["Louder"], "lr": 0.001},
    "preset": WAVES | {"use_preset": True, "log_loss": True, "log_frequency": 2},
}


@pytest.fixture(scope="module", autouse=True)
def places(
    tmp_path_factory: pytest.TempPathFactory,
    write_recording: Callable[..., Any],
    write_images: Callable[..., Any],
) -> Iterator[Path]:
    """A working directory with a recording and an image set."""
    root = tmp_path_factory.mktemp("engines")
    write_recording(root / "data" / "rec" / "movie.h5")
    write_images(root / "data" / "set" / "images.h5", shape=(3, 8, 8))
    write_images(root / "data" / "large" / "images.h5", shape=(3, 32, 32), n_train=40)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine may be used on the CPU; a graph is then its step itself."""

    def chosen(hyps: Hyperparams, device: torch.device) -> str:
        return "solo" if hyps.engine == "auto" else hyps.engine

    for module in (job, trainer, engines):  # the latter for the checks
        monkeypatch.setattr(module, "chosen_engine", chosen)
    monkeypatch.setattr(Recorder, "captured", lambda self, step: step)
    monkeypatch.setattr("imgclass.models.channels_last", lambda x: x)  # as on a GPU


@pytest.fixture
def swept(anywhere: None, tmp_path: Path) -> Callable[..., list[Run]]:
    """Function (keys, ranges, engine, place) that trains a sweep and gives its runs."""

    def train(
        keys: Mapping[str, Any],
        ranges: Mapping[str, Any],
        engine: str = "solo",
        place: str = "first",
    ) -> list[Run]:
        root = str(tmp_path / place / engine)
        given = {**keys, "engine": engine, "save_root": root}
        return run_sweep(given, ranges, quiet=True).runs()

    return train


def ranges_of(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Runs of one cohort, half of which differ in more than the update."""
    found: dict[str, Any] = {"lr": [keys["lr"], keys["lr"] / 2]}
    if keys.get("model_type") in ("VaryModel", "BNCNN"):
        return found | {"noise": [0.05, 0.2]}
    return found | {"l2": [0.0, 0.01]}


def numbers_of(run: Run) -> dict[str, Tensor]:
    """The last checkpoint's weights, buffers and states of random generators."""
    state = run.checkpoint("last")
    random = {name: state["rng"][name] for name in ("generators", "torch")}
    for i, on_gpu in enumerate(state["rng"]["cuda"] or ()):
        random[f"cuda:{i}"] = on_gpu
    return {**state["model_state_dict"], **random}


def assert_close(one: Run, other: Run, limit: float) -> None:
    """Weights, buffers and tables agree to a limit; random numbers to the bit."""
    assert other.record["state"] == one.record["state"] == "done", other.record["error"]
    found = numbers_of(other)
    for name, tensor in numbers_of(one).items():
        atol = limit if tensor.is_floating_point() else 0
        torch.testing.assert_close(found[name], tensor, rtol=limit, atol=atol)
    for table in ("epochs", "batches", "evaluations"):
        rows, same = (getattr(run.folder, table).read() for run in (one, other))
        for row in rows + same:
            row.pop("time_s", None)
        assert same == [pytest.approx(row, rel=limit, abs=limit) for row in rows]


def assert_equal(one: Run, other: Run) -> None:
    """Two runs agree to the bit."""
    assert_close(one, other, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_runs_are_those_that_train_alone(
    swept: Callable[..., list[Run]], name: str
) -> None:
    """The engines' own arithmetic is that of runs one by one, to rounding or better."""
    ranges = ranges_of(CASES[name])
    expected = swept(CASES[name], ranges)
    weights = [str(run.checkpoint("last")["model_state_dict"]) for run in expected]
    assert len(set(weights)) == len(expected) == 4
    for engine, limit in (("graph", 0.0), ("stacked", 1e-9)):
        for one, other in zip(
            expected, swept(CASES[name], ranges, engine), strict=True
        ):
            assert other.record["attempts"][0]["engine"] == engine
            assert_close(one, other, limit)


# --- stacks -----------------------------------------------------------------------


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The runs of every computed stack, by their numbers."""
    found: list[list[int]] = []
    backward = Stack.backward

    def noted(self: Any, *given: Any) -> Any:
        found.append(self.numbers)
        return backward(self, *given)

    monkeypatch.setattr(Stack, "backward", noted)
    return found


def test_what_differs_in_the_objective_is_not_stacked(
    swept: Callable[..., list[Run]], stacks: list[list[int]]
) -> None:
    """Runs of another architecture or penalty are a stack of their own."""
    pairs = [[0.0, 0.0], [0.0, 0.1], [0.0, 0.2], [0.01, 0.1]]
    swept(MOVIE, {"l1,noise": pairs, "optimizer": ["SGD", "Adam"]}, "stacked")
    assert len(stacks) == 3 * 2 * 4  # stacks, epochs, batches
    assert stacks[:3] == [[0, 1], [2, 3, 4, 5], [6, 7]]


def test_a_stack_goes_on_without_those_that_end(
    swept: Callable[..., list[Run]], stacks: list[list[int]]
) -> None:
    """A run that ends early, and one that diverges, leave the others as they are."""
    lrs, keys = [0.01, 1e38, 0.02, 0.03], SMALL | {"n_epochs": 3}
    linked = [
        {"lr": lr, "n_epochs": n} for lr, n in zip(lrs, [3, 3, 1, 3], strict=True)
    ]
    ranges = {"lr,n_epochs": [list(one.values()) for one in linked]}
    expected, found = swept(keys, ranges), swept(keys, ranges, "stacked")
    states = [run.record["state"] for run in found]
    assert states == ["done", "diverged", "done", "done"]
    assert found[1].record["error"] == expected[1].record["error"]
    assert {tuple(one) for one in stacks} == {(0, 1, 2, 3), (0, 2, 3), (0, 3)}
    for i in (0, 2, 3):
        assert_close(expected[i], found[i], 1e-9)


def test_a_run_that_raises_leaves_its_stack(
    swept: Callable[..., list[Run]],
    stacks: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What one run's augmenter raises is that run's failure alone."""
    augmented = ImageTrainer.augmented
    n_calls = [0]

    def raising(run: Any, batch: Any) -> Any:
        n_calls[0] += 1
        if run.hyps.lr == 0.02 and run.epoch == 1:
            raise KeyError("second epoch")
        return augmented(run, batch)

    ranges = {"lr": [0.01, 0.02, 0.03]}
    expected = swept(SMALL, ranges)
    monkeypatch.setattr(ImageTrainer, "augmented", staticmethod(raising))
    found = swept(SMALL, ranges, "stacked")
    assert [run.record["state"] for run in found] == ["done", "failed", "done"]
    assert "second epoch" in str(found[1].record["error"])
    assert {tuple(one) for one in stacks} == {(0, 1, 2), (0, 2)}
    for i in (0, 2):
        assert_close(expected[i], found[i], 1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_cohort_goes_on_to_the_same_bits(
    anywhere: None,
    places: Path,
    train: Callable[..., list[RunFolder]],
    make_folder: Callable[[Any], RunFolder],
    retina_hyps: Callable[..., Any],
    last_state: Callable[[RunFolder], dict[str, Any]],
    same: Callable[[Any, Any], bool],
    engine: str,
) -> None:
    """Epochs after a resumption are those of an uninterrupted cohort."""
    hyps = [
        retina_hyps(places / "data", lr=lr, n_epochs=4, drop_p=0.2, engine=engine)
        for lr in (0.01, 0.02)
    ]
    whole = train(hyps)
    n_steps = itertools.count()
    parts = [make_folder(one) for one in hyps]
    with pytest.raises(Interrupted):
        train(hyps, parts, lambda: next(n_steps) > 9)  # in the third epoch
    train(hyps, parts)
    for one, other in zip(whole, parts, strict=True):
        assert len(other.read()["attempts"]) == 2
        assert same(last_state(one), last_state(other))


def test_pruning_goes_on_in_a_stack(swept: Callable[..., list[Run]]) -> None:
    """Channels that close in one run stay open in the others."""
    keys = MOVIE | TWO_LAYERS | {"prune": True, "prune_intvl": 1, "reset_sd": True}
    ranges = {"lr": [0.01, 0.02], "prune_tolerance": [0.0, 3.0]}
    expected, found = swept(keys, ranges), swept(keys, ranges, "stacked")
    for one, other in zip(expected, found, strict=True):
        tables = [(run.folder.path / "pruning.csv").read_text() for run in (one, other)]
        verdicts = [
            [row.split(",")[1:4] for row in table.splitlines()] for table in tables
        ]
        assert verdicts[0] == verdicts[1]
        assert_close(one, other, 1e-7)


def test_a_released_stack_leaves_models_as_they_are() -> None:
    """Each has its values in memory of its own again, and no gradient."""
    runs: list[Any] = [
        SimpleNamespace(model=nn.BatchNorm1d(3), number=i) for i in range(4)
    ]
    for run in runs:
        nn.init.normal_(run.model.weight)
    before = [{n: t.clone() for n, t in r.model.state_dict().items()} for r in runs]
    rehearsal: Any = SimpleNamespace(run=runs[0])
    stack = Stack(rehearsal, runs)
    sizes = {one.untyped_storage().nbytes() for one in runs[1].model.parameters()}
    assert sizes == {4 * 3 * 4}
    runs[2].model.weight.grad = torch.ones(3)
    stack.release()
    for run, state in zip(runs, before, strict=True):
        for name, tensor in run.model.state_dict().items():
            assert torch.equal(tensor, state[name])
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert run.model.weight.grad is None


def test_a_checkpoint_holds_one_run(swept: Callable[..., list[Run]]) -> None:
    """The file of a run whose weights are part of a stack is not that of the stack."""
    ranges = {"lr": [0.01, 0.02, 0.03, 0.04]}
    sizes = [
        run.folder.checkpoint_path(2).stat().st_size
        for engine in ("solo", "stacked")
        for run in swept(SMALL, ranges, engine)
    ]
    assert max(sizes) < 1.02 * min(sizes)


# --- captured steps ---------------------------------------------------------------


def test_a_graph_is_captured_once_per_shape_of_batch(
    swept: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run has its own, and the last, smaller batch another."""
    n_captured, n_replayed = [0], [0]

    def captured(self: Any, step: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            n_replayed[0] += 1
            step()

        n_captured[0] += 1
        return replay

    monkeypatch.setattr(Recorder, "captured", captured)
    swept(MOVIE, {"lr": [0.01, 0.02]}, "graph")  # 4 batches, the last smaller
    assert n_captured[0] == 2 * 2
    assert n_replayed[0] == 2 * 2 * 4


@pytest.mark.parametrize("name", CASES)
def test_a_step_can_be_captured(
    swept: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nothing in it waits for a number, and nothing is drawn."""
    names: set[str] = set()

    class Watching(NoWaiting):
        def __torch_dispatch__(self, func: Any, *given: Any) -> Any:
            names.add(func.overloadpacket.__name__)
            return super().__torch_dispatch__(func, *given)

    def captured(self: Any, step: Callable[[], None]) -> Callable[[], None]:
        with Watching():  # type: ignore[no-untyped-call]
            step()
        return step

    monkeypatch.setattr(Recorder, "captured", captured)
    (run,) = swept({**CASES[name], "n_epochs": 1}, {}, "graph")
    assert run.record["state"] == "done", run.record["error"]
    drawing = ("rand", "normal", "bernoulli", "exponential", "uniform", "dropout")
    assert len(names) > 5
    assert not [one for one in names if any(word in one for word in drawing)]


def test_no_model_outlives_its_sweep(
    swept: Callable[..., list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither copies for rehearsals nor stacks are kept when runs have ended."""
    built = []
    copied_model = ImageTrainer.copied_model

    def noted(self: Any, run: Any) -> Any:
        model = copied_model(self, run)
        built.extend(weakref.ref(one) for one in (model, *model.parameters()))
        return model

    monkeypatch.setattr(ImageTrainer, "copied_model", noted)
    for engine in ENGINES:
        swept(LARGE | {"model_type": "PlainN", "width": 2, "n_shakes": 2}, {}, engine)
    gc.collect()
    assert built
    assert not [one for one in built if one() is not None]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_half_trained_run_stays_with_its_engine(
    anywhere: None, tmp_path: Path, engine: str
) -> None:
    """Another would end in other bits; a finished run stays as it is."""
    given = {**SMALL, "save_root": str(tmp_path)}
    (run,) = run_sweep(given, quiet=True).runs()
    run_sweep({**given, "engine": engine}, quiet=True)
    assert len(run.folder.read()["attempts"]) == 1
    run.folder.update(state="interrupted")
    with pytest.raises(ConfigError, match=f"engine solo, now {engine}"):
        run_sweep({**given, "engine": engine}, quiet=True)
    run_sweep({**given, "engine": "auto"}, quiet=True)
    assert len(run.folder.read()["attempts"]) == 2


# --- which engine -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "device", "chosen"),
    [
        ("auto", "cpu", "solo"),
        ("auto", "cuda", "solo"),
        ("solo", "cuda:1", "solo"),
        ("graph", "cuda:1", "graph"),
        ("stacked", "cuda", "stacked"),
    ],
)
def test_the_engine_depends_on_key_and_device(
    image_hyps: Callable[..., Any], engine: str, device: str, chosen: str
) -> None:
    """The key says it; without one each run trains alone."""
    hyps = image_hyps(Path(), engine=engine)
    assert engines.chosen_engine(hyps, torch.device(device)) == chosen


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_for_gpus_are_refused_on_a_cpu(tmp_path: Path, engine: str) -> None:
    """Before anything is written, with the remedy."""
    given = {**SMALL, "engine": engine, "device": "cpu", "save_root": str(tmp_path)}
    with pytest.raises(ConfigError, match=f"engine: {engine} is for GPUs.*use auto"):
        run_sweep(given, quiet=True)
    assert not list(tmp_path.iterdir())


def test_stacks_do_not_train_in_bfloat16(tmp_path: Path) -> None:
    """Torch maps neither batch norm nor linear layers in it as they are alone."""
    given = {**SMALL, "engine": "stacked", "precision": "bfloat16"}
    with pytest.raises(ConfigError, match=r"engine: stacked does not .* bfloat16; use"):
        run_sweep({**given, "save_root": str(tmp_path)}, quiet=True)
    assert not list(tmp_path.iterdir())


PLUGIN = """
import torch
from torch import nn

class {name}(nn.Module):
    LIBRARY = "imgclass"

    def __init__(self, img_shape, n_units):
        super().__init__()
        self.linear = nn.Linear(img_shape[0] * img_shape[1] * img_shape[2], n_units)
        self.dropout = nn.Dropout(0.5)
        {parts}
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        z = self.linear(x.flatten(1))
        {line}
        return z

class Frozen(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(False)

class Remembering:
    size = 0.0
    def __call__(self, model, inputs, targets):
        return nn.functional.cross_entropy(model(inputs), targets)
    def state_dict(self):
        return dict(size=self.size)
    def load_state_dict(self, state):
        self.size = state["size"]
"""


NOISY = """
import torch
from torch import nn
from gridrun.nn import GaussianNoise
from torchdeepretina.blocks import RetinaModel

class Noisy(RetinaModel):
    LIBRARY = "torchdeepretina"

    def __init__(
        self, img_shape, n_units, noise, softplus, output_scale, lossfxn, log_poisson
    ):
        super().__init__(n_units, softplus, output_scale, lossfxn, log_poisson)
        size = img_shape[0] * img_shape[1] * img_shape[2]
        self.linear, self.noise = nn.Linear(size, n_units), GaussianNoise(noise)
        self.factor = 1 + noise

    def forward(self, x):
        return self.activation(self.noise(self.linear(x.flatten(1))) / self.factor)
"""


@pytest.fixture
def own_model(anywhere: None, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Function (name, line of `forward`, more parts) that makes a plug-in: its keys."""

    def make(name: str, line: str, parts: str = "pass") -> dict[str, Any]:
        folder = tmp_path / "plugins" / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "own.py").write_text(PLUGIN.format(name=name, line=line, parts=parts))
        return PICTURES | {
            "model_type": name,
            "plugins": str(tmp_path / "plugins"),
            "save_root": str(tmp_path / "sweeps"),
        }

    return make


@pytest.mark.parametrize(
    ("engine", "line", "reason"),
    [
        ("stacked", "z = self.dropout(z)", "random"),
        ("stacked", "z = z if z.mean() > 9 else 2 * z", "data-dependent"),
        ("graph", "z = z if z.mean() > 9 else 2 * z", "asks for a number"),
        ("graph", "z = z * torch.tensor([2.0])", "makes a tensor from numbers"),
        ("graph", "z = z + z[z > 9].sum()", "sizes depend on values"),
    ],
)
def test_models_that_an_engine_cannot_train_are_refused(
    own_model: Callable[..., dict[str, Any]],
    tmp_path: Path,
    engine: str,
    line: str,
    reason: str,
) -> None:
    """Before anything starts, with the reason and the remedy."""
    given = own_model("Own", line)
    match = f"engine: {engine}: .*Own.*{reason}.*use solo"
    with pytest.raises(ConfigError, match=match):
        run_sweep({**given, "engine": engine}, quiet=True)
    assert not (tmp_path / "sweeps").exists()
    (run,) = run_sweep(given, quiet=True).runs()
    assert run.record["state"] == "done"


@pytest.mark.parametrize("engine", ENGINES)
def test_objectives_with_a_state_are_refused(
    own_model: Callable[..., dict[str, Any]], engine: str
) -> None:
    """Their state is the run's, which an engine cannot exchange."""
    given = own_model("Calm", "pass") | {"train_loop": "Remembering", "engine": engine}
    with pytest.raises(ConfigError, match=f"engine: {engine}: Remembering keeps"):
        run_sweep(given, quiet=True)


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ("pass", "self.seen = self.seen + z.detach().sum()"),  # a buffer assigned anew
        ("self.a = self.b = nn.BatchNorm1d(n_units)", "z = self.a(self.b(z))"),
        ("self.a = Frozen(n_units)", "z = self.a(z)"),
        ("self.a = nn.Sequential(*[nn.Linear(n_units, n_units)] * 2)", "z = self.a(z)"),
    ],
)
def test_own_models_are_trained_as_alone(
    own_model: Callable[..., dict[str, Any]], parts: str, line: str
) -> None:
    """Also those that do unusual things with their parts."""
    given = own_model("Own", line, parts)
    runs = []
    for engine in ("solo", *ENGINES):
        keys = {"engine": engine, "save_root": f"{given['save_root']}/{engine}"}
        runs.append(run_sweep(given | keys, {"lr": [0.01, 0.02]}, quiet=True).runs())
    for one, *others in zip(*runs, strict=True):
        for other in others:
            assert_close(one, other, 1e-9)


def test_a_model_of_ones_own_may_use_noise_as_it_likes(
    anywhere: None, tmp_path: Path, stacks: list[list[int]]
) -> None:
    """Only our layers are known to use it for their draws alone."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "noisy.py").write_text(NOISY)
    given = MOVIE | {"model_type": "Noisy", "plugins": str(tmp_path / "plugins")}
    ranges = {"noise": [0.1, 0.5], "lr": [0.001, 0.002]}
    runs = [
        run_sweep(
            given | {"engine": engine, "save_root": str(tmp_path / engine)},
            ranges,
            quiet=True,
        ).runs()
        for engine in ("solo", "stacked")
    ]
    assert [one for one in stacks if len(one) > 1][:2] == [[0, 1], [2, 3]]
    for one, other in zip(*runs, strict=True):
        assert_close(one, other, 1e-9)


# --- on a GPU ---------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_engines_agree_on_a_gpu(tmp_path: Path, name: str) -> None:
    """There, too, a run is what it is alone."""
    runs = []
    for engine in ("solo", *ENGINES):
        given = {**CASES[name], "device": "cuda", "engine": engine}
        given["save_root"] = str(tmp_path / engine)
        runs.append(run_sweep(given, ranges_of(CASES[name]), quiet=True).runs())
    for one, *others in zip(*runs, strict=True):
        for other in others:
            assert_close(one, other, 1e-9)
