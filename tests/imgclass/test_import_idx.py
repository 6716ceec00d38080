"""IDX files: every spelling, packed or not, and everything that can be wrong."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

# From bytes((n * 31 + row * 5 + column) % 256 ...) without NumPy: 7 images of 3 × 4
# pixels, then the next 4.
TRAIN_SHA = "667bd4f29f872f7d8b44bdb775da4ac7d3003a108ebf5b6684226a654275b260"
TEST_SHA = "ea710f5d97ced3dd49879a14dfa2242d350bd6ff314b63cde6fe49b673cb3d15"
HYPHENS = "-idx"
DOTS = ".idx"


def images(first: int, n: int) -> bytes:
    """An images file of 3 rows and 4 columns."""
    levels = bytes(
        (number * 31 + row * 5 + column) % 256
        for number in range(first, first + n)
        for row in range(3)
        for column in range(4)
    )
    return struct.pack(">iiii", 2051, n, 3, 4) + levels


def labels(values: list[int]) -> bytes:
    """A labels file."""
    return struct.pack(">ii", 2049, len(values)) + bytes(values)


def files() -> dict[str, bytes]:
    """The four valid files by their beginnings."""
    return {
        "train-images": images(0, 7),
        "train-labels": labels([2, 0, 1, 2, 0, 1, 2]),
        "t10k-images": images(7, 4),
        "t10k-labels": labels([0, 0, 1, 2]),
    }


def write(folder: Path, contents: dict[str, bytes], mark: str, packed: bool) -> Path:
    """The files in one spelling."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        end = "3-ubyte" if name.endswith("images") else "1-ubyte"
        path = folder / f"{name}{mark}{end}"
        if packed:
            path = path.with_name(f"{path.name}.gz")
            content = gzip.compress(content)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", [HYPHENS, DOTS])
def test_idx(tmp_path: Path, run_import: Run, mark: str, packed: bool) -> None:
    """Rows, columns, order and labels come out as they went in."""
    source = write(tmp_path / "fashion", files(), mark, packed)
    done = run_import("idx", "--from", source)
    assert done.code == 0, done.text
    found = done.datasets
    assert found["train/images"].shape == (7, 1, 3, 4)
    assert found["train/images"][5, 0, 2, 3] == 5 * 31 + 2 * 5 + 3
    assert done.sha256("train/images") == TRAIN_SHA
    assert done.sha256("test/images") == TEST_SHA
    assert found["train/labels"].tolist() == [2, 0, 1, 2, 0, 1, 2]
    assert found["test/labels"].tolist() == [0, 0, 1, 2]
    assert found["class_names"] == ["0", "1", "2"]
    assert done.attributes["augment"] == '["rotate"]'
    assert "folder fashion" in done.attributes["source"]
    assert "0 2 + 2, 1 2 + 1, 2 3 + 1" in done.text
    assert '"img_shape": [1, 3, 4]' in done.text


def test_unpacked_wins_over_packed(tmp_path: Path, run_import: Run) -> None:
    """Where both are there, as after unpacking, the unpacked file is read."""
    source = write(tmp_path / "m", files(), HYPHENS, False)
    write(source, dict.fromkeys(files(), b"unread"), HYPHENS, True)
    assert run_import("idx", "--from", source).sha256("train/images") == TRAIN_SHA


def header(magic: int, *sizes: int) -> bytes:
    """The beginning of a file."""
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes)


BAD: dict[str, tuple[dict[str, bytes], list[str]]] = {
    "wrong magic": ({"train-images": labels([1])}, ["number 2049; expected 2051"]),
    "images as labels": ({"t10k-labels": images(0, 4)}, ["2051; expected 2049"]),
    "signed type": ({"train-images": header(0x903, 7, 3, 4)}, ["number 2307"]),
    "a byte short": (
        {"train-images": images(0, 7)[:-1]},
        ["expected 84 bytes", "7 × 3 × 4", "found 83"],
    ),
    "a byte more": ({"train-images": images(0, 7) + b"x"}, ["found more"]),
    "header cut": ({"train-images": images(0, 7)[:9]}, ["9 bytes", "header of 16"]),
    "empty": ({"train-labels": b""}, ["0 bytes", "header of 8"]),
    "counts differ": (
        {"t10k-labels": labels([0, 1, 2])},
        ["3 labels for the 4 images of", "t10k-images"],
    ),
    "huge": (
        {"train-images": header(2051, 2**32 - 1, 2**32 - 1, 2**32 - 1)},
        ["GB when unpacked", "of memory here"],
    ),
    "claims more than there is": (
        {"train-images": header(2051, 1000, 1000, 100) + b"x"},
        ["expected 100,000,000 bytes", "found 1"],
    ),
    "class unseen": (
        {"t10k-labels": labels([0, 1, 2, 4])},
        ["class 3 ('3') has no training images", "class 4"],
    ),
    "no images": (
        {"train-images": images(0, 0), "train-labels": labels([])},
        ["train/images: no images"],
    ),
    "no pixels": ({"train-images": header(2051, 7, 0, 4)}, ["train/images: no images"]),
    "sizes differ": (
        {"t10k-images": header(2051, 4, 1, 1) + b"abcd"},
        ["(1, 3, 4)", "(1, 1, 1)"],
    ),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", BAD)
def test_bad_files(tmp_path: Path, run_import: Run, what: str, packed: bool) -> None:
    """One error names the file, what was expected and what was found."""
    changes, words = BAD[what]
    source = write(tmp_path / "m", files() | changes, HYPHENS, packed)
    named = next(iter(changes)) if "magic" in what else str(source)
    assert run_import("idx", "--from", source).refused(named, *words)


@pytest.mark.parametrize("n_bytes", [1, 5, 30, -9, -1])
def test_truncated_gzip(tmp_path: Path, run_import: Run, n_bytes: int) -> None:
    """A packed file that was cut anywhere is named."""
    source = write(tmp_path / "m", files(), DOTS, True)
    path = source / "train-images.idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:n_bytes])
    done = run_import("idx", "--from", source)
    assert done.refused("train-images.idx3-ubyte.gz: ", "complete gzip file")


def test_wrong_packing(tmp_path: Path, run_import: Run) -> None:
    """A name that does not say how the file is packed gets its own advice."""
    source = write(tmp_path / "m", files(), HYPHENS, False)
    (source / "train-images-idx3-ubyte").write_bytes(gzip.compress(images(0, 7)))
    done = run_import("idx", "--from", source)
    assert done.refused("packed with gzip; expected a name with .gz")
    (source / "train-images-idx3-ubyte").rename(source / "train-images-idx3-ubyte.gz")
    (source / "t10k-labels-idx1-ubyte").rename(source / "t10k-labels-idx1-ubyte.gz")
    done = run_import("idx", "--from", source)
    assert done.refused("t10k-labels-idx1-ubyte.gz: ", "complete gzip file")


def test_missing_files_are_listed(tmp_path: Path, run_import: Run) -> None:
    """All absent files are named at once; so is an absent folder."""
    source = write(tmp_path / "m", {"train-images": images(0, 7)}, HYPHENS, False)
    done = run_import("idx", "--from", source)
    assert done.refused(
        "no train-labels-idx1-ubyte[.gz]", "no t10k-images-idx3", "no t10k-labels-idx1"
    )
    assert run_import("idx", "--from", tmp_path / "no").refused("no such folder")
