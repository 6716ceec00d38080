"""Configurations that are damaged in any way: refused with a message, or right."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torture.conftest import IMAGES, RETINA, count, random_of

from gridrun.cli import main

N_FUZZED, N_VALID = count(10_000, 500), count(500, 50)
PER_TEST = 100
BASES: dict[str, dict[str, Any]] = {
    "images": IMAGES | {"log_frequency": 1},  # batches may be few
    "retina": RETINA,
    "general": {
        "exp_name": "own",
        "model_type": "Denoiser",
        "model_args": {"width": 3},
        "dataset": "Waves",
        "dataset_args": {"n": 20},
        "lossfxn": "MSELoss",
        "batch_size": 8,
        "n_epochs": 2,
        "lr": 0.1,
        "plugins": str(Path(__file__).parents[1] / "plugins"),
    },
}
OPTIONS = (
    "model_args",
    "dataset_args",
    "val_set",
    "distorter",
    "distorter_args",
    "augmenters",
    "use_preset",
    "loss_space",
    "eval_space",
    "normalizer",
    "lossfxn",
    "train_loop",
    "val_example_indices",
    "val_example_subset",
    "show_plots",
    "trackers",
    "tracker_args",
    "diagnostics",
    "plugins",
    "library",
    "log_frequency",
)
JUNK = [
    None, True, -1, 0, 1, 1.5, -0.0, 1e308, 10**30, "", "x", "../x", "a/b", "\x00",
    "0.1", "💥" * 50, "x" * 5000, [], [[]], [None], {}, {"a": 1}, [1, "x"], [-1],
    [0.1, 0.2], [3, 3],
]  # fmt: skip
OPTION_JUNK: list[Any] = [
    *JUNK, {"class": 1}, {"class": "os:system"}, {"class": "x", "args": []}, "os:path",
    {"class": "Waves", "args": {"x": 1}}, [{"class": None}], [{"name": 3}], [[1]], ":",
    {"tensorboard": 3}, ["tensorboard", 1], "Waves", "a:b:c", {"class": "gaussian"},
    [{"name": "hessian", "every": 0, "at": 3, "args": [1]}], "..", "no.module:X",
]  # fmt: skip
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e309",
    "-1e999",
    "[" * 3000 + "]" * 3000,
    "nan",
]
RAW += ["0x10", "01", "1_000", "'x'", "true false", '"\\ud800"', "1e-400", "9" * 5000]
RANGES_JUNK: list[Any] = [
    {}, [], None, {"lr": []}, {"lr": {}}, {"lr": 0.1}, {"lr": [0.1, 0.1]}, [[]], [{}],
    {"lr": [0.1, "x"]}, {"nothing": [1]}, {"n_repeats": [1, 2]}, {"exp_name": ["a"]},
    {"lr": list(range(1, 4000)), "l1": list(range(4000))}, [{"lr": [0.1]}] * 2, 3,
    {"lr": [[0.1]]}, {"optimizer_args.": [1]}, {".lr": [1]}, {"chans": [4, 8]}, "lr",
    {"lr": [0.1], "optimizer_args.lr": [0.1]}, {"seed": [1, None]}, [{"lr": [0.1]}, 3],
]  # fmt: skip
VALID: dict[str, list[Any]] = {
    "lr": [1e-4, 0.1, 1],
    "l1": [0, 1e-4],
    "l2": [0, 0.01],
    "batch_size": [2, 7, 64],
    "n_epochs": [1, 1000],
    "n_repeats": [1, 5],
    "optimizer": ["Adam", "SGD", "RMSprop"],
    "scheduler": ["ReduceLROnPlateau", "CosineAnnealingLR", None],
    "shuffle": [True, False],
    "seed": [0, 123456],
    "save_every_epoch": [True, False],
    "exp_name": ["a", "long_name-2.1"],
    "grad_clip": [None, 1.0],
    "cohort_size": ["auto", 1, 5],
    "chans": [[4], [8]],
    "ksizes": [[3], [5]],
}


@pytest.fixture(scope="module")
def bases(
    tmp_path_factory: pytest.TempPathFactory,
    write_images: Callable[..., Any],
    write_recording: Callable[..., Any],
) -> dict[str, dict[str, Any]]:
    """A right configuration of each library, with its data."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "set" / "images.h5")
    write_recording(root / "rec" / "movie.h5")
    more = {"data_root": str(root), "save_root": "runs"}
    return {name: base | more for name, base in BASES.items()}


def with_raw(values: dict[str, Any], key: str, raw: str) -> bytes:
    """JSON in which a key has a value that Python would not write."""
    text = json.dumps({**values, key: "@@"})
    return text.replace('"@@"', raw).encode()


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, removed, inserted, or repeated."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        where = chance.randrange(len(data) + 1)
        kind = chance.choice(["flip", "cut", "insert", "remove", "repeat"])
        if kind == "flip" and where < len(data):
            data[where] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del data[where:]
        elif kind == "insert":
            data[where:where] = bytes(chance.choices(b'{}[]",:-1e.\\ \n\x00\xff', k=2))
        elif kind == "remove":
            del data[where : where + chance.randint(1, 8)]
        else:
            data[where:where] = data[where : where + chance.randint(1, 40)]
    return bytes(data)


def mutated(
    base: dict[str, Any], chance: random.Random
) -> tuple[bytes, bytes, str | None]:
    """A damaged pair of files, and the key that a refusal must name, if it is known."""
    values = dict(base)
    ranges: Any = {"lr": [0.01, 0.02]}
    key = chance.choice([name for name in values if name != "save_root"])
    kinds = ["bytes", "value", "raw", "typo", "twice", "absent", "ranges", "option"]
    kind = chance.choice([*kinds, "range bytes"])
    content, named = json.dumps(values).encode(), None
    in_ranges = json.dumps(ranges).encode()
    if kind == "bytes":
        content = mutated_bytes(content, chance)
    elif kind == "value":
        values[key] = chance.choice(JUNK)
        content, named = json.dumps(values).encode(), key
    elif kind == "option":
        values[key := chance.choice(OPTIONS)] = chance.choice(OPTION_JUNK)
        content, named = json.dumps(values).encode(), key
    elif kind == "raw":
        content = with_raw(values, key, chance.choice(RAW))
    elif kind == "typo":
        where = chance.randrange(len(key))
        typo = key[:where] + chance.choice("xq_ ") + key[where + 1 :]
        values[typo] = values.pop(key)
        content, named = json.dumps(values).encode(), None
    elif kind == "twice":
        content = content[:-1] + f', "{key}": {json.dumps(base[key])}}}'.encode()
        named = key
    elif kind == "absent":
        del values[key]
        content = json.dumps(values).encode()
    elif kind == "ranges":
        in_ranges = json.dumps(chance.choice(RANGES_JUNK)).encode()
    else:
        in_ranges = mutated_bytes(in_ranges, chance)
    return content, in_ranges, named


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("part", range(N_FUZZED // PER_TEST))
def test_fuzzed_pairs(
    bases: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: int,
) -> None:
    """Exit 2, a message with file and key, no traceback, nothing written; or valid."""
    monkeypatch.chdir(tmp_path)
    names = ("hyperparams.json", "hyperranges.json")
    n_refused = 0
    for trial in range(PER_TEST):
        chance = random_of("fuzz", part, trial)
        base = bases[chance.choice(sorted(bases))]
        *contents, key = mutated(base, chance)
        for name, content in zip(names, contents, strict=True):
            Path(name).write_bytes(content)
        before = listing(tmp_path)
        started = time.monotonic()
        code = main(["run", *names, "--dry-run"])
        said = capsys.readouterr()
        where = f"part {part} trial {trial}: {contents}: {said.err}"
        assert code in (0, 2), where
        if code == 2:
            n_refused += 1
            assert main(["run", *names]) == 2, where
            said = capsys.readouterr()
            assert "Traceback" not in said.err, where
            assert said.err.startswith("error: "), where
            assert any(name in said.err for name in names), where
            if key is not None:
                assert re.search(rf"\b{key}\b", said.err), where
        assert listing(tmp_path) == before, where
        assert time.monotonic() - started < 20, where  # a hang
    assert n_refused > PER_TEST // 2


@pytest.mark.parametrize("part", range(N_VALID // 50))
def test_valid_pairs(
    bases: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: int,
) -> None:
    """Right configurations are accepted."""
    monkeypatch.chdir(tmp_path)
    for trial in range(50):
        chance = random_of("valid", part, trial)
        base = bases[chance.choice(sorted(bases))]
        wanted = [k for k in VALID if k in base or k not in ("chans", "ksizes")]
        if base["model_type"] == "VaryModel":
            wanted = [k for k in wanted if k not in ("chans", "ksizes", "batch_size")]
        keys = chance.sample(wanted, 4)
        values = base | {"lr": 0.1} | {k: chance.choice(VALID[k]) for k in keys}
        Path("a.json").write_text(json.dumps(values), encoding="utf-8")
        axes = {k: VALID[k] for k in chance.sample(["lr", "l1", "seed"], 2)}
        Path("b.json").write_text(json.dumps(axes), encoding="utf-8")
        code = main(["run", "a.json", "b.json", "--dry-run"])
        assert code == 0, (values, axes, capsys.readouterr().err)
        capsys.readouterr()
