"""Every code block of the documents does what it says."""

from __future__ import annotations

import pickle
import shutil
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader import REPOSITORY, Block, Reader, blocks_of, kind_of

random = np.random.default_rng(0)
SCIKIT_LEARN = """
from types import SimpleNamespace
import numpy as np
images = np.random.default_rng(0).integers(0, 17, (1797, 8, 8)).astype(float)
load_digits = lambda: SimpleNamespace(images=images, target=np.arange(1797) % 10)
"""


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader in a folder like the repository's, with a home and a data root."""
    (tmp_path / "training_scripts").mkdir()
    for path in (REPOSITORY / "training_scripts").glob("*.*"):
        shutil.copy(path, tmp_path / "training_scripts")
    for name in ("digits", "digits16", "sim-tiny"):
        shutil.copytree(REPOSITORY / "data" / name, tmp_path / "data" / name)
    variables = {"GRIDRUN_DATA": tmp_path / "sets", "HOME": tmp_path / "home"}
    for name, folder in variables.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.syspath_prepend("")
    known = set(sys.modules)
    yield Reader(tmp_path, monkeypatch.chdir, **variables)
    for name in set(sys.modules) - known:
        path = str(getattr(sys.modules[name], "__file__", None))
        if not Path(path).is_absolute() or path.startswith(str(tmp_path)):
            del sys.modules[name]


# --- what a document takes for granted ----------------------------------------------


def in_a_project(reader: Reader) -> None:
    """The working directory is a new project."""
    assert reader.run(["gridrun", "new", "project"]).returncode == 0
    reader.go_to(reader.here / "project")


def with_downloads(reader: Reader) -> None:
    """Archives, pictures and arrays to import; a recording in the data root."""
    shutil.copytree(reader.here / "data", reader.here / "sets", dirs_exist_ok=True)
    (reader.here / "sets" / "sim-tiny").rename(reader.here / "sets" / "15-10-07")
    labels = np.arange(12) % 3
    images = random.integers(0, 256, (12, 3, 32, 32)).astype(np.uint8)
    write_cifar(reader.here / "cifar-10-python.tar.gz", images, labels)
    write_idx(reader.here / "mnist", images[:, 0], labels)
    for split, image, label in zip(("train", "test") * 6, images, labels, strict=True):
        path = reader.here / "photos" / split / str(label)
        path.mkdir(parents=True, exist_ok=True)
        n = len(list(path.iterdir()))
        Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{n}.png")
    splits = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(reader.here / "set.npz", **splits)
    reader.names |= splits
    (reader.here / "sklearn").mkdir()
    (reader.here / "sklearn" / "datasets.py").write_text(SCIKIT_LEARN)


def with_benchmarks(reader: Reader) -> None:
    """They measure the code of the repository, which they stand in."""
    shutil.copytree(REPOSITORY / "benchmarks", reader.here / "benchmarks")


def write_cifar(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Six batches of two images, packed."""
    parts = {"batches.meta": {"label_names": ["plane", "car", "bird"]}}
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        own = slice(2 * i, 2 * i + 2)
        data = images[own].reshape(2, -1)
        parts[name] = {"data": data, "labels": labels[own].tolist()}
    folder = path.parent / "cifar-10-batches-py"
    folder.mkdir()
    for name, part in parts.items():
        (folder / name).write_bytes(pickle.dumps(part, protocol=2))
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """The four files of MNIST."""
    folder.mkdir()
    for split in ("train", "t10k"):
        head = struct.pack(">iiii", 2051, *images.shape)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">ii", 2049, len(labels))
        content = head + labels.astype(np.uint8).tobytes()
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(content)


# --- the documents ------------------------------------------------------------------


DOCUMENTS: dict[str, Callable[[Reader], None] | None] = {
    "README.md": None,
    "gridrun/README.md": None,
    "gridrun/template/README.md": in_a_project,
    "training_scripts/README.md": None,
    "data/README.md": with_downloads,
    "benchmarks/README.md": with_benchmarks,
}


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the trackers
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_is_true(
    reader: Reader, document: str, request: pytest.FixtureRequest
) -> None:
    """Whoever follows it from top to bottom meets no error and what it shows."""
    if "--slurm" in (REPOSITORY / document).read_text(encoding="utf-8"):
        site = request.getfixturevalue("slurm_site")
        reader.environment |= site.variables if site else {}
    prepare = DOCUMENTS[document]
    if prepare is not None:
        prepare(reader)
    reader.read(REPOSITORY / document)


def test_every_document_with_code_is_followed() -> None:
    """Documents that come later, too."""
    places = [path for part in ("*", "*/*", "*/*/*") for path in REPOSITORY.glob(part)]
    paths = [one for one in places if one.suffix == ".md" and ".venv" not in one.parts]
    shown = {
        str(path.relative_to(REPOSITORY)) for path in paths if any(blocks_of(path))
    }
    assert shown == DOCUMENTS.keys()


@pytest.mark.parametrize(
    ("language", "text"),
    [("", "rm -rf runs"), ("", "train\nnonsense"), ("", "words"), ("yaml", "lr: 1")],
)
def test_a_block_that_no_rule_runs_is_an_error(language: str, text: str) -> None:
    """It is not passed over."""
    with pytest.raises(ValueError, match="no rule runs this block"):
        kind_of(Block("a document, line 1", language, text, ""))


@pytest.mark.parametrize(
    "text",
    [
        "```python\n1 / 0\n```",
        "    make nothing",
        "    gridrun status nothing",
        "```\n$ gridrun status nothing\nall is well\n```",
        "```\ndata/\n  nothing.h5  of which there is none\n```",
        '```json\n{"exp_name": "a", "lr": 0}\n```',
        "```\nnumber  state  best_epoch\n0       done   1\n```",
    ],
)
def test_a_block_that_is_not_true_is_an_error(reader: Reader, text: str) -> None:
    """With its document, line and text."""
    reader.printed = "number  state   best_epoch\n0       failed  1\n\nresults"
    path = reader.here / "wrong.md"
    path.write_text(f"Text.\n\n{text}\n", encoding="utf-8")
    with pytest.raises((AssertionError, ZeroDivisionError)) as found:
        reader.read(path)
    assert any("wrong.md, line 3" in note for note in found.value.__notes__)
