"""Files made to do harm: nothing in them runs, and none fills the memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torture.conftest import Scenario

from gridrun.training.checkpoint import to_bytes


class Payload:
    """Runs something when unpickled, which leaves a file."""

    def __init__(self, mark: Path, how: str) -> None:
        self.mark, self.how = mark, how

    def __reduce__(self) -> Any:
        if self.how == "open":
            return open, (str(self.mark), "w")
        if self.how == "system":
            return os.system, (f"touch {self.mark}",)
        code = f"open({str(self.mark)!r}, 'w').close()"
        return (eval if self.how == "eval" else exec), (code,)


def archive(form: str, payload: object, weights: dict[str, Any]) -> bytes:
    """A checkpoint with something in it."""
    whole = {"model_state_dict": weights, "x": payload}
    file = io.BytesIO()
    if form == "modern":
        torch.save(whole, file)
    elif form == "legacy":
        torch.save(whole, file, _use_new_zipfile_serialization=False)
    elif form == "pickle":
        pickle.dump(whole, file, protocol=2)
    else:
        good = zipfile.ZipFile(io.BytesIO(to_bytes({"model_state_dict": weights})))
        with zipfile.ZipFile(file, "w") as swapped:
            for item in good.infolist():
                content = good.read(item)
                if item.filename.endswith("data.pkl"):
                    content = pickle.dumps(whole, protocol=2)
                swapped.writestr(item, content)
    return file.getvalue()


def giant_view(weights: dict[str, Any]) -> bytes:
    """Tensors that are views of one number, a terabyte each when copied."""
    big = torch.zeros(1).as_strided((10**6, 10**6), (0, 0))
    return to_bytes({"model_state_dict": dict.fromkeys(weights, big)})


def inflated(weights: dict[str, Any]) -> bytes:
    """A compressed part of two GiB, in two MiB of file."""
    good = zipfile.ZipFile(io.BytesIO(to_bytes({"model_state_dict": weights})))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        for item in good.infolist():
            with bomb.open(item.filename, "w", force_zip64=True) as part:
                part.write(good.read(item))
                if item.filename.endswith("data/0"):
                    for _ in range(2**11):
                        part.write(bytes(2**20))
    return file.getvalue()


def climbing(weights: dict[str, Any]) -> bytes:
    """Parts whose names lead out of the archive."""
    good = zipfile.ZipFile(io.BytesIO(to_bytes({"model_state_dict": weights})))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as climbs:
        for item in good.infolist():
            climbs.writestr(f"../../{item.filename}", good.read(item))
    return file.getvalue()


@pytest.fixture
def weights(scenarios: dict[str, Scenario]) -> dict[str, Any]:
    """Weights that fit the model of the scenario."""
    path = next(scenarios["images"].finished.glob("*/checkpoints/epoch_*.pt"))
    found: dict[str, Any] = torch.load(path, weights_only=True)["model_state_dict"]
    return found


@pytest.mark.parametrize("form", ["modern", "legacy", "swapped", "pickle"])
@pytest.mark.parametrize("how", ["open", "system", "eval", "exec"])
@pytest.mark.parametrize("place", ["init_weights_path", "checkpoint"])
def test_checkpoints_with_code(
    scenarios: dict[str, Scenario],
    weights: dict[str, Any],
    root: Path,
    tmp_path: Path,
    form: str,
    how: str,
    place: str,
) -> None:
    """Named by a configuration, or put in place of a run's own with its hash."""
    scenario = scenarios["images"]
    mark = tmp_path / "executed"
    content = archive(form, Payload(mark, how), weights)
    if place == "init_weights_path":
        file = tmp_path / "weights.pt"
        file.write_bytes(content)
        ended = scenario.run(root, f"init_weights_path={file}", hook="limits:memory")
        assert ended.code == 2, ended.errors
        assert str(file) in ended.errors
        assert not root.exists()
    else:
        for tenth in range(3, 10):
            shutil.rmtree(root, ignore_errors=True)
            assert scenario.run(root, at=scenario.n_calls * tenth // 10).code < 0
            if n_replaced := _replace_checkpoints(root / "sweep", content):
                break
        assert n_replaced
        scenario.finish(root)  # from the start, as of any damaged one
    assert not mark.exists()


def _replace_checkpoints(sweep: Path, content: bytes) -> int:
    digest = hashlib.sha256(content).hexdigest()
    n_replaced = 0
    for record in sweep.glob("sweep_*/run.json"):
        if json.loads(record.read_text(encoding="utf-8"))["state"] == "done":
            continue
        for path in record.parent.glob("checkpoints/epoch_*.pt"):
            path.write_bytes(content)
            n_replaced += 1
            index = path.parent / "index.json"
            text = json.loads(index.read_text(encoding="utf-8"))
            for file in text["files"].values():
                file["sha256"] = digest
            index.write_text(json.dumps(text), encoding="utf-8")
    return n_replaced


@pytest.mark.parametrize("make", [giant_view, inflated, climbing])
def test_checkpoints_that_are_more_than_they_seem(
    scenarios: dict[str, Scenario],
    weights: dict[str, Any],
    root: Path,
    tmp_path: Path,
    make: Callable[[dict[str, Any]], bytes],
) -> None:
    """Refused within bounded memory; nothing is unpacked anywhere."""
    file = tmp_path / "deep" / "down" / "weights.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(make(weights))
    before = set(tmp_path.rglob("*"))
    ended = scenarios["images"].run(
        root, f"init_weights_path={file}", hook="limits:memory"
    )
    assert ended.code == 2 if make is not climbing else ended.code in (0, 2)
    assert "Traceback" not in ended.errors
    assert {p for p in tmp_path.rglob("*") if root not in p.parents} - {root} == before


def _object_images(file: h5py.File, mark: Path) -> None:
    del file["train/images"]
    kind = h5py.vlen_dtype(np.uint8)
    images = file.create_dataset("train/images", (66,), dtype=kind)
    images[0] = np.frombuffer(pickle.dumps(Payload(mark, "open")), np.uint8)


def _external_link(file: h5py.File, mark: Path) -> None:
    del file["train/images"]
    file["train/images"] = h5py.ExternalLink("/etc/passwd", "/x")


def _endless_link(file: h5py.File, mark: Path) -> None:
    del file["train/images"]
    file["train/images"] = h5py.SoftLink("/train/images")


def _giant(file: h5py.File, mark: Path) -> None:
    del file["train/images"], file["train/labels"]
    shape = (10**9, 1, 6, 6)
    file.create_dataset("train/images", shape, np.uint8, chunks=(1024, 1, 6, 6))
    file.create_dataset("train/labels", shape[:1], np.int64, chunks=(1024,))


def _giant_inflated(file: h5py.File, mark: Path) -> None:
    del file["train/images"], file["train/labels"]
    file.create_dataset(
        "train/images", (2**26, 1, 6, 6), np.uint8, compression="gzip", fillvalue=1
    )
    file["train/labels"] = np.zeros(66, np.int64)


@pytest.mark.parametrize(
    "spoil", [_object_images, _external_link, _endless_link, _giant, _giant_inflated]
)
def test_data_files(
    scenarios: dict[str, Scenario],
    write_images: Callable[..., Any],
    root: Path,
    tmp_path: Path,
    spoil: Callable[[h5py.File, Path], None],
) -> None:
    """Refused with their name; links lead nowhere, and nothing is unpickled."""
    mark = tmp_path / "executed"
    path = tmp_path / "data" / "set" / "images.h5"
    write_images(path)
    with h5py.File(path, "r+") as file:
        spoil(file, mark)
    ended = scenarios["images"].run(
        root, f"data_root={tmp_path / 'data'}", hook="limits:memory"
    )
    assert ended.code == 2, ended.errors
    assert str(path) in ended.errors
    assert "Traceback" not in ended.errors
    assert not mark.exists()
    assert not root.exists()


def _npz(folder: Path, mark: Path) -> tuple[str, Path]:
    path = folder / "set.npz"
    images = np.array([Payload(mark, "open")] * 4, dtype=object)
    np.savez(path, images=images, labels=np.arange(4))
    return "npz", path


def _cifar(folder: Path, mark: Path) -> tuple[str, Path]:
    path = folder / "cifar-10-python.tar.gz"
    content = pickle.dumps({b"data": Payload(mark, "system"), b"labels": []})
    with tarfile.open(path, "w:gz") as tar:
        for name in ("data_batch_1", "test_batch", "batches.meta"):
            item = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return "cifar10", path


def _climbing_tar(folder: Path, mark: Path) -> tuple[str, Path]:
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in (f"../../{mark.name}", str(mark)):
            item = tarfile.TarInfo(name)
            item.size = 1
            tar.addfile(item, io.BytesIO(b"x"))
    return "cifar10", path


@pytest.mark.parametrize("make", [_npz, _cifar, _climbing_tar])
def test_imported_files(
    scenarios: dict[str, Scenario],
    tmp_path: Path,
    make: Callable[[Path, Path], tuple[str, Path]],
) -> None:
    """Pickles in downloads are not trusted either."""
    mark = tmp_path / "executed"
    source = tmp_path / "down" / "loads"
    source.mkdir(parents=True)
    kind, path = make(source, mark)
    target = tmp_path / "data"
    options = ["--from", path, "--name", "x", "--data-root", target]
    nursery = scenarios["images"].nursery
    ended = nursery.run("data", "import", kind, *options, root=target)
    assert ended.code == 2, ended.errors
    assert str(path) in ended.errors
    assert "Traceback" not in ended.errors
    assert not mark.exists()
    assert not list(target.rglob("*.h5"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "evil:Model"),
        ("model_type", "evil.Model"),
        ("library", "evil"),
        ("plugins", ["evil.py"]),
        ("plugins", "evil"),
        ("train_loop", "evil:loop"),
        ("optimizer", "evil.Optimizer"),
        ("dataset", "../../evil"),
    ],
)
@pytest.mark.parametrize("place", ["hyperparams", "recorded"])
def test_import_paths_in_configurations(
    scenarios: dict[str, Scenario],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: object,
    place: str,
) -> None:
    """A name in a request or a sweep's records never becomes an import."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "executed"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    scenario = scenarios["images"]
    if place == "hyperparams":
        given = json.loads(scenario.files[0].read_text(encoding="utf-8"))
        file = tmp_path / "given.json"
        given |= {"lr": 0.01, key: value}
        file.write_text(json.dumps(given), encoding="utf-8")
        ended = scenario.nursery.run("run", file, "--save-root", root, root=root)
        assert ended.code == 2, ended.errors
        assert key in ended.errors
        assert not root.exists()
    else:
        shutil.copytree(scenario.finished, root / "sweep")
        for path in (root / "sweep").rglob("*.json"):
            text = json.loads(path.read_text(encoding="utf-8"))
            if key in text:
                path.write_text(json.dumps(text | {key: value}), encoding="utf-8")
        for command in ("status", "results", "repair"):
            ended = scenario.nursery.run(command, root / "sweep", root=root)
            assert ended.code in (0, 1, 2), ended.errors
            assert "Traceback" not in ended.errors
        scenario.run(root)
    assert not mark.exists()
