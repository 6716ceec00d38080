"""Plug-in folders and import paths: what is found, what is refused, what may be run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from strategies import OF_MOVIE, OF_SET

from gridrun import load_model, load_sweep, run_sweep
from gridrun.errors import ConfigError, DataError
from gridrun.plugin_files import (
    construct,
    find,
    load,
    look_again,
    plugin_folder,
    source_files,
)
from gridrun.plugins import library_of

PLUGINS = Path(__file__).parents[1] / "plugins"
BASE: dict[str, Any] = {
    "exp_name": "sweep",
    "model_type": "Classifier",
    "model_args": {"width": 4},
    "dataset": "Points",
    "lossfxn": "CrossEntropyLoss",
    "batch_size": 16,
    "n_epochs": 1,
    "lr": 0.01,
    "seed": 3,
    "executor": "serial",
}

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Function (file=source, ...) that writes a plug-in folder and gives its path."""

    def write_files(**files: str) -> str:
        for name, source in files.items():
            path = tmp_path / "own" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        look_again()
        return str(tmp_path / "own")

    yield write_files
    look_again()


# --- what is found ------------------------------------------------------------------


def test_public_names_of_all_subfolders_are_found(write: Write) -> None:
    """Classes and functions; neither private ones nor those of private files."""
    folder = write(
        models__a="class Net: pass\nclass _Hidden: pass",
        deep__er__b="def loss(z, y): return 0",
        _private="class Unseen: pass",
    )
    assert set(plugin_folder(folder).definitions) == {"Net", "loss"}


def test_names_under_a_condition_are_found(write: Write) -> None:
    """And other names of what stands there."""
    folder = write(
        a="try:\n    import absent\nexcept ImportError:\n    class Net: pass\nelse:\n"
        "    class Net: LIBRARY = 'imgclass'\nif True:\n    def loss(z, y): return 0\n"
        "Alias = Net\nother = 3\n",
    )
    found = plugin_folder(folder).definitions
    assert set(found) == {"Net", "loss", "Alias"}
    kinds = [load("model_type", name, folder) for name in ("Net", "Alias")]
    assert kinds[0] is kinds[1]


def test_finding_runs_nothing(write: Write, tmp_path: Path) -> None:
    """A file runs when something of it is loaded, not before."""
    mark = tmp_path / "ran"
    folder = write(a=f"open({str(mark)!r}, 'w').close()\nclass Net: pass")
    assert find("Net", folder) is not None
    assert not mark.exists()
    load("model_type", "Net", folder)
    assert mark.exists()


@pytest.mark.parametrize(
    ("source", "library"),
    [
        ("class Net:\n    LIBRARY = 'imgclass'", "imgclass"),
        ("class Net:\n    LIBRARY: str = 'imgclass'", "imgclass"),
        (
            "class Base:\n    LIBRARY = 'torchdeepretina'\nclass Net(Base): pass",
            "torchdeepretina",
        ),
        ("class Net: pass", "general"),
    ],
)
def test_a_class_states_its_library(write: Write, source: str, library: str) -> None:
    """By a constant, its own or of a base in the same file; else general."""
    found = library_of("Net", write(a=source))
    assert found is not None
    assert found.name == library


@pytest.mark.parametrize(
    "importing",
    [
        "from .base import Base",
        "from .base import *",
        "from .between import Base",
        "from .base import Base as Mine\nclass Base(Mine): pass",
    ],
)
def test_a_class_inherits_its_library_from_another_file(
    write: Write, importing: str
) -> None:
    """Over several files, under another name; files that import each other end."""
    folder = write(
        a=f"{importing}\nclass Net(Base): pass",
        base="from .a import *\nclass Base:\n    LIBRARY = 'imgclass'",
        between="from .base import Base",
    )
    found = library_of("Net", folder)
    assert found is not None
    assert found.name == "imgclass"


def test_a_package_may_offer_what_its_modules_define(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`package:Net` where `__init__` imports it; its file is the source."""
    package = tmp_path / "offering_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .nets import Inner as Net\n")
    source = "class Inner:\n    LIBRARY = 'imgclass'\n    size = 3\n"
    (package / "nets.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = library_of("offering_package:Net")
    assert found is not None
    assert found.name == "imgclass"
    assert load("model_type", "offering_package:Net", None).size == 3
    assert source_files(["offering_package:Net"], None) == [package / "nets.py"]


def test_files_import_each_other(write: Write) -> None:
    """`from .other import name`, over folders; what is imported counts as source."""
    folder = write(
        models__net="from ..parts import size\nclass Net:\n    size = size",
        parts="from . import more\nsize = more.size",
        more="size = 7",
        other="size = 8",
    )
    assert load("model_type", "Net", folder).size == 7
    names = [path.name for path in source_files(["Net"], folder)]
    assert names == ["net.py", "more.py", "parts.py"] or set(names) == {
        "net.py",
        "more.py",
        "parts.py",
    }


def test_a_changed_file_runs_again(write: Write) -> None:
    """As a notebook needs it."""
    folder = write(a="class Net:\n    size = 1")
    assert load("model_type", "Net", folder).size == 1
    write(a="class Net:\n    size = 22")
    os.utime(Path(folder) / "a.py", (1, 1))
    assert load("model_type", "Net", folder).size == 22


# --- what is refused ----------------------------------------------------------------


def test_two_classes_of_one_name_are_told_with_both_files(write: Write) -> None:
    """Only when the name is asked for."""
    folder = write(a="class Net: pass\nclass Other: pass", b__c="class Net: pass")
    assert find("Other", folder) is not None
    with pytest.raises(ConfigError, match=r"Net stands in .*a\.py and in .*c\.py"):
        find("Net", folder)


def test_a_name_of_a_library_s_model_is_told(write: Write) -> None:
    """Which of both is meant cannot be known."""
    with pytest.raises(ConfigError, match=r"PlainN is a model of imgclass"):
        library_of("PlainN", write(a="class PlainN: pass"))


def test_an_unknown_library_is_told(write: Write) -> None:
    """With the file."""
    folder = write(a="class Net:\n    LIBRARY = 'imgclas'")
    with pytest.raises(ConfigError, match=r"a\.py: Net: .*did you mean 'imgclass'"):
        library_of("Net", folder)


def test_a_file_that_does_not_import_takes_down_no_other(write: Write) -> None:
    """Its error is told when something of it is asked for."""
    folder = write(a="import absent_module\nclass Net: pass", b="class Other: pass")
    assert load("model_type", "Other", folder)
    with pytest.raises(
        ConfigError, match=r"a\.py cannot be imported: ModuleNotFoundError"
    ):
        load("model_type", "Net", folder)


def test_a_file_that_is_no_python_is_told_beside_an_unknown_name(write: Write) -> None:
    """It may be where the name is."""
    folder = write(a="class Net: pass", b="class Broken(:")
    assert find("Net", folder) is not None
    with pytest.raises(ConfigError, match=r"unknown 'Broken'.*b\.py is no Python"):
        load("model_type", "Broken", folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent_module:Net", "no module 'absent_module'"),
        ("json:Net", "unknown 'json:Net' in that module"),
    ],
)
def test_import_paths_that_lead_nowhere_are_told(name: str, message: str) -> None:
    """The module or the name."""
    with pytest.raises(ConfigError, match=message):
        load("model_type", name, None)


class Made:
    """Keeps what it got."""

    def __init__(self, size: int, *, width: int = 3, n_units: int = 0) -> None:
        if size < 0:
            raise ValueError("size must not be negative")
        self.got = (size, width, n_units)


def test_constructors_get_their_arguments() -> None:
    """Given ones, and automatic ones that they have."""
    made = construct("model_args", Made, {"size": 1}, {"n_units": 4, "lr": 0.1})
    assert made.got == (1, 3, 4)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "model_args: Made needs the argument 'size'"),
        ({"size": 1, "wdth": 2}, "no argument 'wdth' .did you mean 'width'"),
        ({"size": 1, "n_units": 2}, "n_units is a key"),
        (
            {"size": -1},
            "Made cannot be made of n_units 4, size -1: ValueError: size must not",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_told(args: dict[str, Any], message: str) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigError, match=message):
        construct("model_args", Made, args, {"n_units": 4})


# --- sweeps -------------------------------------------------------------------------


def test_plugins_beside_the_file_are_found(tmp_path: Path) -> None:
    """The folder `plugins` beside hyperparams.json needs no key."""
    import json

    shutil.copytree(PLUGINS, tmp_path / "plugins")
    (tmp_path / "h.json").write_text(json.dumps(BASE))
    sweep = run_sweep(tmp_path / "h.json", save_root=str(tmp_path), quiet=True)
    assert sweep.states() == {"done": 1}
    assert sweep.runs()[0].hyps.plugins == str(tmp_path / "plugins")


def test_models_of_two_libraries_are_no_sweep(tmp_path: Path) -> None:
    """Their keys differ."""
    given = {**BASE, "plugins": str(PLUGINS), "save_root": str(tmp_path / "x")}
    with pytest.raises(ConfigError, match="a sweep has one library"):
        run_sweep(given, {"model_type": ["Classifier", "FlatImages"]}, quiet=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "Clasifier"}, "did you mean 'Classifier'"),
        ({"model_type": "Waves"}, "model_type: Waves is no class derived from"),
        ({"dataset": "Pints"}, "dataset: unknown 'Pints' .did you mean 'Points'"),
        ({"lossfxn": "MSELoss"}, "lossfxn: MSELoss: inputs of .8, 2. cannot"),
        ({"model_args": {}}, "model_args: Classifier needs the argument 'width'"),
        ({"chans": [3]}, "chans: a key of imgclass and torchdeepretina"),
        ({"monitor": "val_fev:max"}, "monitor: unknown metric 'val_fev'"),
        ({"library": "imgclass"}, "data_root|img_shape|dataset"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    """With nothing written."""
    keys = {**BASE, "plugins": str(PLUGINS), "save_root": str(tmp_path / "x"), **given}
    with pytest.raises(Exception, match=message):
        run_sweep(keys, quiet=True)
    assert not (tmp_path / "x").exists()


def test_classes_with_arguments_are_the_keys(tmp_path: Path) -> None:
    """`{"class", "args"}` is the name and the key of the arguments."""
    whole = {
        **BASE,
        "model_type": {"class": "Classifier", "args": {"width": 4}},
        "dataset": {"class": "Points", "args": {"n": 30}},
        "optimizer": {"class": "SGD", "args": {"momentum": 0.5}},
    }
    del whole["model_args"]
    apart = {
        **BASE,
        "dataset_args": {"n": 30},
        "optimizer": "SGD",
        "optimizer_args": {"momentum": 0.5},
    }
    options = {"plugins": str(PLUGINS), "save_root": str(tmp_path), "quiet": True}
    one = run_sweep(whole, **options)
    other = run_sweep(apart, **options)
    assert [run.number for run in one.runs()] == [run.number for run in other.runs()]


def test_a_half_trained_run_is_guarded_against_another_source(
    tmp_path: Path,
) -> None:
    """A helper that a plug-in imports counts; one that it does not import does not."""
    own = tmp_path / "own"
    shutil.copytree(PLUGINS, own)
    options = {"plugins": str(own), "save_root": str(tmp_path), "quiet": True}
    sweep = run_sweep({**BASE, "n_epochs": 2}, **options)
    folder = sweep.runs()[0].folder
    attempts = folder.read()["attempts"]
    folder.update(state="interrupted", attempts=attempts)
    (own / "unrelated.py").write_text("x = 1\n")
    with (own / "parts.py").open("a") as file:
        file.write("\n# changed\n")
    with pytest.raises(ConfigError, match=r"the source of parts\.py"):
        run_sweep({**BASE, "n_epochs": 2}, **options)


# --- records are data ---------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of a plug-in model."""
    root = tmp_path_factory.mktemp("recorded")
    options = {"plugins": str(PLUGINS), "save_root": str(root), "quiet": True}
    run_sweep(BASE, **options)
    return root / "sweep"


def test_a_record_runs_no_plugin_by_itself(recorded: Path) -> None:
    """The error says what to pass; tables need nothing."""
    sweep = load_sweep(recorded)
    assert len(sweep.results()) == 1
    run = sweep.runs()[0]
    for ask in (run.load_model, run.predict, run.evaluate):
        with pytest.raises(ConfigError, match=r"pass plugins='.*plugins' \(--plugins"):
            ask()
    path = run.folder.checkpoint_path(1)
    with pytest.raises(ConfigError, match="pass plugins="):
        load_model(path)
    assert load_model(path, plugins=PLUGINS).training is False


def test_a_record_runs_the_plugins_that_the_caller_names(
    recorded: Path, tmp_path: Path
) -> None:
    """Wherever they lie now; scores come out as recorded."""
    shutil.copytree(PLUGINS, tmp_path / "moved")
    run = load_sweep(recorded, plugins=tmp_path / "moved").runs()[0]
    assert run.evaluate("test") == run.record["test"]
    assert run.predict("test").predictions.shape == (15, 3)
    found = run.evaluate_by("extremes", "test", factor=2.0)
    assert found["largest"] == 2 * run.predict("test").predictions.max()


def test_a_record_imports_no_module_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import path is followed if the caller names the module or its package."""
    shutil.copytree(PLUGINS, tmp_path / "ownpackage")
    monkeypatch.syspath_prepend(tmp_path)
    given = {
        **BASE,
        "model_type": "ownpackage.models.small:Classifier",
        "dataset": "ownpackage.datasets.waves:Points",
        "save_root": str(tmp_path),
    }
    sweep = run_sweep(given, quiet=True)
    assert sweep.runs()[0].load_model() is not None
    run = load_sweep(tmp_path / "sweep").runs()[0]
    with pytest.raises(ConfigError, match=r"imports=\['ownpackage.models.small'\]"):
        run.load_model()
    run = load_sweep(tmp_path / "sweep", imports=["ownpackage"]).runs()[0]
    assert run.evaluate("test") == run.record["test"]
    for name in [one for one in sys.modules if one.startswith("ownpackage")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("extreme", {}, "did you mean 'extremes'"),
        ("extremes", {"fctor": 2}, "unexpected keyword argument 'fctor'"),
        ("Classifier", {}, "evaluator: Classifier"),
    ],
)
def test_evaluators_that_do_not_fit_are_told(
    recorded: Path, name: str, args: dict[str, Any], message: str
) -> None:
    """Before they run."""
    run = load_sweep(recorded, plugins=PLUGINS).runs()[0]
    with pytest.raises(ConfigError, match=message):
        run.evaluate_by(name, **args)


# --- plug-ins of the libraries ------------------------------------------------------

IMAGE_MODEL = """
import torch
from torch import nn
class Own(nn.Module):
    LIBRARY = "imgclass"
    def __init__(self, n_units):
        super().__init__()
        self.layer = nn.Linear({n_in}, {n_out})
    def forward(self, x):
        return self.layer(x.flatten(1))
"""


@pytest.mark.parametrize(
    ("n_in", "n_out", "message"),
    [
        (
            "7",
            "n_units",
            r"inputs of \[8, 1, 6, 6\] cannot be trained on: RuntimeError",
        ),
        ("36", "n_units + 1", r"outputs are \[8, 4\], not \(B, 3\)"),
        ("36", "n_units", None),
    ],
)
def test_a_plugin_of_a_library_is_tried_out(
    tmp_path: Path,
    image_hyps: Callable[..., Any],
    write_images: Callable[..., Any],
    n_in: str,
    n_out: str,
    message: str | None,
) -> None:
    """A model that does not fit the images is told before anything starts."""
    write_images(tmp_path / "set" / "images.h5")
    own = tmp_path / "own"
    own.mkdir()
    (own / "own.py").write_text(IMAGE_MODEL.format(n_in=n_in, n_out=n_out))
    look_again()
    given = image_hyps(tmp_path).model_dump(mode="json")
    keys = ("dataset", "img_shape", "batch_size", "lr", "seed")
    keys_of_set = {name: given[name] for name in keys}
    asked = {
        **keys_of_set,
        "exp_name": "sweep",
        "model_type": "Own",
        "n_epochs": 1,
        "data_root": str(tmp_path),
        "save_root": str(tmp_path / "runs"),
        "plugins": str(own),
        "executor": "serial",
    }
    if message is None:
        assert run_sweep(asked, quiet=True).states() == {"done": 1}
        return
    with pytest.raises(ConfigError, match=f"model_type: Own: {message}"):
        run_sweep(asked, quiet=True)
    assert not (tmp_path / "runs").exists()


def test_a_retina_plugin_derives_from_the_library_s_model(
    tmp_path: Path, write_recording: Callable[..., Any]
) -> None:
    """What criteria and scores ask of it is there."""
    write_recording(tmp_path / "rec" / "movie.h5")
    source = "from torch import nn\nclass Own(nn.Linear):\n    LIBRARY = "
    (tmp_path / "own.py").write_text(source + "'torchdeepretina'\n")
    look_again()
    asked = {
        **dict(OF_MOVIE),
        "exp_name": "sweep",
        "model_type": "Own",
        "model_args": {"in_features": 2, "out_features": 3},
        "batch_size": 32,
        "n_epochs": 1,
        "lr": 0.01,
        "data_root": str(tmp_path),
        "plugins": str(tmp_path),
        "save_root": str(tmp_path / "runs"),
    }
    with pytest.raises(ConfigError, match=r"Own must derive from .*RetinaModel"):
        run_sweep(asked, quiet=True)


@pytest.mark.parametrize("library", ["imgclass", "torchdeepretina"])
def test_a_plugin_normaliser_is_kept_and_used_again(
    tmp_path: Path,
    write_images: Callable[..., Any],
    write_recording: Callable[..., Any],
    library: str,
) -> None:
    """Its numbers are in the checkpoint; scores and predictions come out with them."""
    images = write_images(tmp_path / "set" / "images.h5")
    movie = write_recording(tmp_path / "rec" / "movie.h5")
    base = OF_SET if library == "imgclass" else OF_MOVIE
    asked = {
        **dict(base),
        "exp_name": "sweep",
        "normalizer": "Halving",
        "batch_size": 16,
        "n_epochs": 2,
        "lr": 0.01,
        "seed": 1,
        "data_root": str(tmp_path),
        "plugins": str(PLUGINS),
        "save_root": str(tmp_path / "runs"),
        "executor": "serial",
    }
    (run,) = run_sweep(asked, quiet=True).runs()
    assert run.record["error"] is None
    kept = run.checkpoint()["norm_stats"]
    largest = images["train/images"].max() / 255
    if library == "torchdeepretina":
        largest = movie["train/stimulus"].max()
    assert kept["normalizer"] == "Halving"
    assert kept["stats"]["size"] == pytest.approx(2 * float(largest), rel=0.02)
    assert run.evaluate("test") == run.record["test"]
    found = run.predict("test")
    if library == "imgclass":
        assert found.accuracy == pytest.approx(run.record["test"]["test_acc"])


# --- sources that change ------------------------------------------------------------

SCALED = (
    "from torch import nn\n{imports}\nclass Net(nn.Linear):\n"
    "    def __init__(self): super().__init__(2, 3)\n"
    "    def forward(self, x): return V * super().forward(x)\n"
)


def half_trained(keys: dict[str, Any], root: Path) -> dict[str, Any]:
    """A request whose run has one of two epochs."""
    asked = {key: value for key, value in BASE.items() if key != "model_args"}
    asked |= {"n_epochs": 2, "save_root": str(root), **keys}
    (run,) = run_sweep(asked, quiet=True).runs()
    run.folder.forget_after(1, best=1)
    run.folder.cut_tables(1)
    run.folder.update(state="interrupted")
    return asked


@pytest.mark.parametrize("changed", ["helper.py", "sub/helper.py"])
def test_helpers_of_equal_names_are_guarded_each(tmp_path: Path, changed: str) -> None:
    """By their paths: neither stands in for the other."""
    own = tmp_path / "own"
    shutil.copytree(PLUGINS, own)
    (own / "sub").mkdir()
    for name in ("helper.py", "sub/helper.py"):
        (own / name).write_text("V = 1.0\n")
    imports = "from .helper import V as W\nfrom .sub.helper import V"
    (own / "net.py").write_text(SCALED.format(imports=imports))
    look_again()
    asked = half_trained({"model_type": "Net", "plugins": str(own)}, tmp_path / "runs")
    (own / changed).write_text("V = 2.00\n")
    with pytest.raises(ConfigError, match=rf"the source of {changed}"):
        run_sweep(asked, quiet=True)


def test_helpers_of_an_import_path_are_guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imported by full name; and one process does not train what it no longer is."""
    package = tmp_path / "guarded_package"
    package.mkdir()
    (package / "util.py").write_text("V = 1.0\n")
    imports = "from guarded_package.util import V"
    (package / "net.py").write_text(SCALED.format(imports=imports))
    monkeypatch.syspath_prepend(tmp_path)
    keys = {"model_type": "guarded_package.net:Net", "plugins": str(PLUGINS)}
    asked = half_trained(keys, tmp_path / "runs")
    names = [path.name for path in source_files([keys["model_type"]], None)]
    assert sorted(names) == ["net.py", "util.py"]
    (package / "util.py").write_text("V = 2.00\n")
    with pytest.raises(ConfigError, match=r"util\.py has changed since this process"):
        run_sweep(asked, quiet=True)
    for name in [one for one in sys.modules if one.startswith("guarded_package")]:
        del sys.modules[name]


def test_an_edited_helper_is_what_trains(tmp_path: Path) -> None:
    """In one session, as a notebook is."""
    own = tmp_path / "own"
    shutil.copytree(PLUGINS, own)
    (own / "net.py").write_text(SCALED.format(imports="from .helper import V"))
    losses = []
    for text in ("V = 1.0\n", "V = 30.0\n"):
        (own / "helper.py").write_text(text)
        keys = {key: value for key, value in BASE.items() if key != "model_args"}
        root = str(tmp_path / f"runs{len(losses)}")
        asked = {**keys, "model_type": "Net", "plugins": str(own), "save_root": root}
        losses.append(run_sweep(asked, quiet=True).runs()[0].record["test"])
    assert losses[0] != losses[1]


ODD = """
import sys
import torch
from torch import nn
class Exits(nn.Linear):
    def __init__(self): sys.exit(0)
class Reads(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)
        self.rates = [one.item() for one in torch.linspace(0, 1, 3)]
class Normed(nn.Sequential):
    def __init__(self): super().__init__(nn.BatchNorm1d(2), nn.Linear(2, 3))
class Nothing:
    def splits(self): sys.exit(0)
"""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "Exits"}, "Exits cannot be made of nothing: SystemExit"),
        ({"dataset": "Nothing"}, "dataset: Nothing: SystemExit"),
        ({"model_type": "Normed", "batch_size": 1}, "cannot be trained on: ValueError"),
        ({"plugins": 3}, "plugins: expected text"),
        ({"augmenters": [{"class": "Louder", "args": [1]}]}, "expected an object"),
        ({"augmenters": [{"class": "Louder", "arg": 1}]}, "expected a name or"),
        ({"model_type": "Reads"}, None),
    ],
    ids=str,
)
def test_odd_plugins(tmp_path: Path, keys: dict[str, Any], message: str | None) -> None:
    """Told before anything starts, beside a file that no parser takes; or trained."""
    own = tmp_path / "own"
    shutil.copytree(PLUGINS, own)
    (own / "odd.py").write_text(ODD)
    (own / "deep.py").write_text("x = " + "(" * 3000 + ")" * 3000)
    look_again()
    base = dict(BASE)
    if "model_type" in keys:
        del base["model_args"]
    root = tmp_path / "runs"
    asked = {**base, "plugins": str(own), "save_root": str(root), **keys}
    if message is None:
        assert run_sweep(asked, quiet=True).states() == {"done": 1}
        return
    with pytest.raises((ConfigError, DataError), match=message):
        run_sweep(asked, quiet=True)
    assert not root.exists()
