"""NumPy archives: layouts, splits, and everything that is no plain array."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Run = Callable[..., Any]

# From bytes((n * 17 + channel * 90 + row * 7 + column) % 256 ...) without NumPy, in
# the order image, channel, row, column: 6 images of 3 × 4 × 5, the next 3, and
# channel 0 of the first 6.
TRAIN_SHA = "71db6746f2d21e46a3ced4d4c0e6b1c91b2bba3502e9fec14111aadcb97a2ccb"
TEST_SHA = "ee49ae2269c00ebc120bd6632ac1c5cdc541e3b3b840a4e6848038c0249be12e"
GREY_SHA = "f12aee68c85f71f4f23697e09d7d3b25c7aacb4853487177e708924f59cb3dbd"


def levels(first: int, n: int, n_channels: int = 3) -> npt.NDArray[np.uint8]:
    """Images (n, C, 4, 5)."""
    return np.array(
        [
            [
                [
                    [(i * 17 + c * 90 + y * 7 + x) % 256 for x in range(5)]
                    for y in range(4)
                ]
                for c in range(n_channels)
            ]
            for i in range(first, first + n)
        ],
        np.uint8,
    )


def arrays(**changes: Any) -> dict[str, Any]:
    """The valid arrays of an archive with a split, with changes; None leaves out."""
    given = {
        "x_train": levels(0, 6),
        "y_train": np.arange(6) % 3,
        "x_test": levels(6, 3),
        "y_test": np.array([1, 0, 1], np.uint8),
    } | changes
    return {name: value for name, value in given.items() if value is not None}


def save(path: Path, given: dict[str, Any]) -> Path:
    """An archive."""
    np.savez(path, **given)
    return path


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("given", [True, False])
def test_layouts(tmp_path: Path, run_import: Run, layout: str, given: bool) -> None:
    """Either layout gives the same file, stated or recognised."""
    content = arrays()
    if layout == "NHWC":
        for name in ("x_train", "x_test"):
            content[name] = np.ascontiguousarray(content[name].transpose(0, 2, 3, 1))
    source = save(tmp_path / "a.npz", content)
    done = run_import("npz", "--from", source, *(["--layout", layout] * given))
    assert done.code == 0, done.text
    found = done.datasets
    assert found["train/images"].shape == (6, 3, 4, 5)
    assert found["train/images"][4, 1, 2, 3] == (4 * 17 + 90 + 2 * 7 + 3) % 256
    assert done.sha256("train/images") == TRAIN_SHA
    assert done.sha256("test/images") == TEST_SHA
    assert found["train/labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert found["test/labels"].tolist() == [1, 0, 1]
    assert found["class_names"] == ["0", "1", "2"]
    assert done.attributes["augment"] == '["flip", "jitter", "rotate"]'


def test_without_channels_is_grey(tmp_path: Path, run_import: Run) -> None:
    """(N, H, W) gets a channel axis, and no jitter; Keras's column labels are taken."""
    content = arrays(
        x_train=levels(0, 6, 1)[:, 0],
        x_test=levels(6, 3, 1)[:, 0],
        y_train=(np.arange(6) % 3)[:, None],
    )
    done = run_import("npz", "--from", save(tmp_path / "a.npz", content))
    assert done.code == 0, done.text
    assert done.datasets["train/images"].shape == (6, 1, 4, 5)
    assert done.sha256("train/images") == GREY_SHA
    assert json.loads(done.attributes["augment"]) == ["rotate"]


def test_ambiguous_layout(tmp_path: Path, run_import: Run) -> None:
    """Where both axes could be channels the user has to say which; then it counts."""
    cubes = levels(0, 9)[:, :, :3, :3]
    content = arrays(x_train=cubes[:6], x_test=cubes[6:])
    source = save(tmp_path / "a.npz", content)
    done = run_import("npz", "--from", source)
    assert done.refused("--layout", "x_train (6, 3, 3, 3)", "NHWC or --layout NCHW")
    first = run_import("npz", "--from", source, "--layout", "NCHW").datasets
    last = run_import("npz", "--from", source, "--layout", "NHWC", "--force").datasets
    np.testing.assert_array_equal(first["train/images"], cubes[:6])
    np.testing.assert_array_equal(last["train/images"], cubes[:6].transpose(0, 3, 1, 2))


def test_split_by_share(tmp_path: Path, run_import: Run) -> None:
    """Without a split, --test-p of each class becomes test, always the same."""
    labels = np.arange(60) % 3
    content = {"images": levels(0, 60), "labels": labels}
    source = save(tmp_path / "a.npz", content)
    assert run_import("npz", "--from", source).refused("--test-p", "share")
    found = run_import("npz", "--from", source, "--test-p", 0.2).datasets
    assert found["test/labels"].tolist().count(0) == 4
    assert len(found["test/labels"]) == 12
    together = np.concatenate([found["train/images"], found["test/images"]])
    first_levels = sorted(together[:, 0, 0, 0].tolist())
    assert first_levels == sorted(content["images"][:, 0, 0, 0].tolist())
    again = run_import("npz", "--from", source, "--test-p", 0.2)
    assert "nothing to do" in again.text
    other = run_import("npz", "--from", source, "--test-p", 0.001)
    assert other.code == 2
    assert "--test-p: 0.001 of 60 images are 0 for test" in other.text


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "float": (
        {"x_train": levels(0, 6) / 255},
        ["x_train: expected uint8; found float64 (6, 3, 4, 5)", "255 * x"],
    ),
    "int64": ({"x_test": levels(6, 3).astype(int)}, ["x_test", "astype('uint8')"]),
    "2-d": ({"x_train": levels(0, 6).reshape(6, -1)}, ["x_train", "(6, 60)"]),
    "4 channels": (
        {name: np.zeros((6, 4, 4, 5), np.uint8) for name in ("x_train", "x_test")},
        ["1 or 3 channels", "(6, 4, 4, 5)"],
    ),
    "axes differ": ({"x_test": levels(6, 3)[:, 0]}, ["the same axes", "(3, 4, 5)"]),
    "sizes differ": ({"x_test": levels(6, 3)[..., 1:]}, ["(3, 4, 5)", "(3, 4, 4)"]),
    "float labels": ({"y_train": np.ones(6)}, ["y_train: expected integers", "float"]),
    "2-d labels": ({"y_test": np.ones((3, 2), int)}, ["y_test", "(3, 2)"]),
    "one-hot": ({"y_test": np.eye(3, dtype=bool)}, ["y_test", "bool (3, 3)"]),
    "negative": ({"y_test": np.array([0, -2, 1])}, ["test/labels", "-2 at index 1"]),
    "huge label": ({"y_test": np.array([0, 2**63, 1], np.uint64)}, ["a label of"]),
    "lengths": ({"y_train": np.arange(5) % 3}, ["train", "(6, 3, 4, 5)", "(5,)"]),
    "class unseen": ({"y_test": np.array([0, 3, 1])}, ["class 3", "no training"]),
    "no y_test": (
        {"y_test": None},
        ["no y_test", "found x_train", "or images, labels"],
    ),
    "nothing": (
        dict.fromkeys(["x_train", "y_train", "x_test", "y_test"])
        | {"pixels": np.zeros(3)},
        ["no images, labels", "found pixels"],
    ),
    "objects": (
        {"x_train": np.array([{}, {}], object)},
        ["could not be read", "allow_pickle=False"],
    ),
    "empty": (
        {"x_test": levels(0, 0), "y_test": np.zeros(0, int)},
        ["expected uint8", "(0,)"],
    ),
    "0-d": ({"x_train": np.uint8(3)}, ["x_train", "()"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arrays(tmp_path: Path, run_import: Run, what: str) -> None:
    """One error names the file, the array, its shape and the fix."""
    changes, words = BAD[what]
    if what == "empty":
        changes = changes | {"x_test": np.zeros(0)}
    source = save(tmp_path / "a.npz", arrays(**changes))
    assert run_import("npz", "--from", source).refused("a.npz: ", *words)


def test_labels_for_images_of_another_number(tmp_path: Path, run_import: Run) -> None:
    """The lengths of images and labels are compared before they are split."""
    content = {"images": levels(0, 6), "labels": np.arange(5) % 3}
    source = save(tmp_path / "a.npz", content)
    done = run_import("npz", "--from", source, "--test-p", 0.3)
    assert done.refused("5 labels for 6 images")


def test_options_that_do_not_fit(tmp_path: Path, run_import: Run) -> None:
    """An option that the archive has no use for is refused, not ignored."""
    source = save(tmp_path / "a.npz", arrays())
    done = run_import("npz", "--from", source, "--test-p", 0.1)
    assert done.refused("--test-p", "split already")
    done = run_import("npz", "--from", source, "--layout", "NHWC")
    assert done.refused("expected NHWC", "(6, 3, 4, 5)")
    grey = arrays(x_train=levels(0, 6)[:, 0], x_test=levels(6, 3)[:, 0])
    source = save(tmp_path / "b.npz", grey)
    done = run_import("npz", "--from", source, "--layout", "NHWC")
    assert done.refused("--layout", "no channel axis")


def member(path: Path, content: bytes, name: str = "x_train.npy") -> Path:
    """A valid archive in which one member has other bytes."""
    made = io.BytesIO()
    np.savez(made, **arrays())
    with zipfile.ZipFile(made) as valid, zipfile.ZipFile(path, "w") as archive:
        for one in valid.namelist():
            archive.writestr(one, content if one == name else valid.read(one))
    return path


def npy_header(shape: str, kind: str = "|u1") -> bytes:
    """The header of an array."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"no array",
        b"",
        npy_header("(6, 3, 4, 5)") + b"short",
        npy_header(f"({2**62}, 3, 4, 5)"),
        npy_header("(__import__('os').mkdir('marker'),)"),
        npy_header("(6,)", "zz"),
        b"\x93NUMPY\x09\x00" + bytes(20),
        b"\x93NUMPY",
    ],
)
def test_damaged_members(tmp_path: Path, run_import: Run, content: bytes) -> None:
    """A member that is no array, or not all of one, is an error."""
    source = member(tmp_path / "a.npz", content)
    assert run_import("npz", "--from", source).refused("a.npz: ")
    assert not Path("marker").exists()


def test_damaged_archives(
    tmp_path: Path, run_import: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is no complete zip is named, and a bomb is not unpacked."""
    source = save(tmp_path / "a.npz", arrays())
    content = source.read_bytes()
    flipped = bytearray(content)
    flipped[300] ^= 255
    for damaged in (b"", b"text", content[:-300], content[:100], bytes(flipped)):
        source.write_bytes(damaged)
        assert run_import("npz", "--from", source).refused("a.npz: ")
    np.save(tmp_path / "b.npy", levels(0, 3))
    assert run_import("npz", "--from", tmp_path / "b.npy").refused("not an .npz")
    assert run_import("npz", "--from", tmp_path / "no.npz").refused("no such file")
    assert run_import("npz", "--from", tmp_path).refused("no such file")
    source.write_bytes(content)
    monkeypatch.setattr("os.sysconf", lambda name: 20)
    assert run_import("npz", "--from", source).refused("GB when unpacked")
