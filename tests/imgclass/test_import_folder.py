"""Folders of pictures: what is read, what is refused, what is left out."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from imgclass.importers import folder as folder_module
from imgclass.importers import pictures, read_folder

Run = Callable[..., Any]

# From bytes((n * 13 + channel * 80 + row * 9 + column) % 256 ...) without NumPy, in
# the order image, channel, row, column: images 0 to 5 of 3 × 4 × 5, 6 to 8, and
# channel 0 of 0 to 5.
TRAIN_SHA = "058b6d42e364eb35f2568dd2eda747896b459e5d5faec7540f3bde5c93f89dd6"
TEST_SHA = "7a39bdbac57ef41afe8656f6eb353497f221859c9f684144d84f8347d6ebd480"
GREY_SHA = "112d68042c326baf37f89098a2d5a001f602eb5aec17aea5528c7c7e4745e4b0"


def level(number: int, channel: int, row: int, column: int) -> int:
    """The formula of the levels."""
    return (number * 13 + channel * 80 + row * 9 + column) % 256


def pixels(
    number: int, height: int = 4, width: int = 5, channels: Sequence[int] = (0, 1, 2)
) -> list[bytes]:
    """Rows of interleaved levels."""
    return [
        bytes(level(number, c, y, x) for x in range(width) for c in channels)
        for y in range(height)
    ]


def png(rows: Sequence[bytes], n_channels: int = 3, depth: int = 8) -> bytes:
    """A PNG, made without Pillow; colour type by the number of channels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    width = len(rows[0]) * 8 // (n_channels * depth)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[n_channels]
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def bmp(rows: Sequence[bytes]) -> bytes:
    """A BMP of 24 bits, made without Pillow: blue first, bottom row first."""
    width = len(rows[0]) // 3
    lines = b""
    for row in reversed(rows):
        line = b"".join(row[3 * x : 3 * x + 3][::-1] for x in range(width))
        lines += line + bytes(-len(line) % 4)
    sizes = struct.pack("<IiiHHIIiiII", 40, width, len(rows), 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(lines), 0, 0, 54) + sizes + lines


def jpeg(levels: npt.NDArray[np.uint8], path: Path, **options: Any) -> Path:
    """A JPEG of an array (H, W[, 3])."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path, "JPEG", quality=95, **options)
    return path


def put(root: Path, name: str, content: bytes) -> Path:
    """A file in the tree."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


TRAIN = ["ant/0.png", "ant/1.PNG", "bee/2.bmp", "bee/3.png", "cow/4.BMP", "cow/5.png"]
TEST = ["ant/6.png", "cow/7.png", "cow/8.bmp"]


def make_tree(root: Path, grey: bool = False) -> Path:
    """Nine pictures of 4 × 5 in three classes; grey: PNG only."""
    for split, names in (("train", TRAIN), ("test", TEST)):
        for name in names:
            number = int(Path(name).stem)
            if grey:
                content = png(pixels(number, channels=[0]), 1)
            elif name.lower().endswith("png"):
                content = png(pixels(number))
            else:
                content = bmp(pixels(number))
            put(root, f"{split}/{name}", content)
    return root


def test_folder(tmp_path: Path, run_import: Run) -> None:
    """Levels, labels, names and paths come out as they went in, sorted by name."""
    done = run_import("folder", "--from", make_tree(tmp_path / "insects"))
    assert done.code == 0, done.text
    found = done.datasets
    assert found["train/images"].shape == (6, 3, 4, 5)
    assert found["train/images"][3, 1, 2, 4] == level(3, 1, 2, 4)
    assert done.sha256("train/images") == TRAIN_SHA
    assert done.sha256("test/images") == TEST_SHA
    assert found["train/labels"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found["test/labels"].tolist() == [0, 2, 2]
    assert found["class_names"] == ["ant", "bee", "cow"]
    assert found["train/paths"] == [f"train/{name}" for name in TRAIN]
    assert found["test/paths"] == [f"test/{name}" for name in TEST]
    assert json.loads(done.attributes["augment"]) == ["flip", "jitter", "rotate"]
    assert "skipped" not in done.attributes
    assert "ant 2 + 1, bee 2 + 0, cow 2 + 2" in done.text
    assert "checking: 100%" in done.text
    assert "writing: 100%" in done.text


def test_channels(tmp_path: Path, run_import: Run) -> None:
    """Grey pictures stay grey; --channels makes three of one, or luma of three."""
    source = make_tree(tmp_path / "g", grey=True)
    done = run_import("folder", "--from", source)
    assert done.datasets["train/images"].shape == (6, 1, 4, 5)
    assert done.sha256("train/images") == GREY_SHA
    assert json.loads(done.attributes["augment"]) == ["rotate"]
    grey = done.datasets["train/images"]
    done = run_import("folder", "--from", source, "--channels", 3, "--force")
    np.testing.assert_array_equal(done.datasets["train/images"], grey.repeat(3, 1))
    colour = make_tree(tmp_path / "c")
    done = run_import("folder", "--from", colour, "--channels", 1, "--force")
    luma = [
        0.299 * level(n, 0, y, x)
        + 0.587 * level(n, 1, y, x)
        + 0.114 * level(n, 2, y, x)
        for n in range(6)
        for y in range(4)
        for x in range(5)
    ]
    assert np.abs(done.datasets["train/images"].ravel() - luma).max() <= 0.51
    put(source, "train/ant/9.png", png(pixels(9)))
    done = run_import("folder", "--from", source, "--force")
    assert done.datasets["train/images"].shape == (7, 3, 4, 5)


@pytest.mark.parametrize("kind", ["alpha", "grey alpha", "palette", "one bit", "cmyk"])
def test_modes(tmp_path: Path, run_import: Run, kind: str) -> None:
    """Other modes of 8 bits become colour or grey; transparency is ignored."""
    source = make_tree(tmp_path / "t")
    expected = np.array(
        [[[level(3, c, y, x) for x in range(5)] for y in range(4)] for c in range(3)]
    )
    path = source / "train/bee/3.png"
    if kind == "alpha":
        path.write_bytes(png(pixels(3, channels=[0, 1, 2, 0]), 4))
    elif kind == "grey alpha":
        path.write_bytes(png(pixels(3, channels=[0, 1]), 2))
        expected = expected[[0, 0, 0]]
    elif kind == "one bit":
        path.write_bytes(png([b"\xa8", b"\x50", b"\xa8", b"\x50"], 1, 1))
        checkers = np.indices((4, 8)).sum(0)[None] % 2 == 0
        expected = np.where(checkers, 255, 0).repeat(3, 0)
        expected[:, :, 5:] = 0
        for other in source.rglob("*.*"):
            if other != path:
                other.unlink()
        put(source, "train/ant/0.png", png(pixels(0, width=8)))
        put(source, "train/cow/0.png", png(pixels(1, width=8)))
        put(source, "test/cow/0.png", png(pixels(2, width=8)))
    elif kind == "palette":
        image = Image.fromarray(expected.transpose(1, 2, 0).astype(np.uint8))
        image.quantize(256).save(path, transparency=b"\x00\x80")
    elif kind == "cmyk":
        for other in source.rglob("*.*"):
            other.unlink()
        flat = np.full((4, 5, 3), 90, np.uint8)
        for name in ("train/ant/a", "train/bee/b", "train/cow/c", "test/cow/c"):
            jpeg(flat, source / f"{name}.jpeg")
        Image.new("CMYK", (5, 4), (155, 155, 155, 100)).save(source / "train/bee/b.jpg")
        expected = np.full((3, 4, 5), 61)
    done = run_import("folder", "--from", source)
    assert done.code == 0, done.text
    paths = [Path(name).stem for name in done.datasets["train/paths"]]
    image = done.datasets["train/images"][paths.index("b" if kind == "cmyk" else "3")]
    if kind == "cmyk":
        image = done.datasets["train/images"][
            done.datasets["train/paths"].index("train/bee/b.jpg")
        ]
    assert np.abs(image - expected).max() <= (3 if kind == "cmyk" else 0)


def test_side_resizes_and_crops_the_centre(tmp_path: Path, run_import: Run) -> None:
    """The shorter side becomes S; of the longer the same is cut at both ends."""
    root = tmp_path / "t"
    for number, (height, width) in enumerate([(14, 6), (6, 14), (6, 6)]):
        levels = np.zeros((height, width, 3), np.uint8)
        top, left = (height - 6) // 2, (width - 6) // 2
        centre = np.arange(9).reshape(3, 3) * 20 + 40
        levels[top : top + 6, left : left + 6] = np.kron(centre, np.ones((2, 2)))[
            ..., None
        ]
        levels[:top], levels[:, :left] = 255, 255
        levels[top + 6 :], levels[:, left + 6 :] = 255, 255
        path = put(root, f"train/c{number}/a.png", b"")
        Image.fromarray(levels).save(path)
        Image.fromarray(levels).save(put(root, f"test/c{number}/a.png", b""))
    done = run_import("folder", "--from", root)
    assert done.refused("3 sizes", "14 × 6 (2)", "6 × 14 (2)", "6 × 6 (2)", "--side S")
    done = run_import("folder", "--from", root, "--side", 6)
    exact = np.kron(centre, np.ones((2, 2)))
    for image in done.datasets["train/images"]:
        np.testing.assert_array_equal(image, np.stack([exact] * 3))
    small = run_import("folder", "--from", root, "--side", 3, "--force")
    whole = [Image.open(root / f"train/c{number}/a.png") for number in range(3)]
    halves = [
        np.asarray(one.resize((one.width // 2, one.height // 2), 2)) for one in whole
    ]
    centres = [halves[0][2:5], halves[1][:, 2:5], halves[2]]
    for image, expected in zip(small.datasets["train/images"], centres, strict=True):
        np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))
    assert '"img_shape": [3, 3, 3]' in small.text


def test_long_strips_do_not_grow(tmp_path: Path, run_import: Run) -> None:
    """A strip of 1 × 60,000 to side 500 would be 15 gigapixels if done in steps."""
    for split in ("train", "test"):
        put(tmp_path / "t", f"{split}/a/x.png", png([bytes(60_000)], 1))
    done = run_import("folder", "--from", tmp_path / "t", "--side", 500)
    assert done.datasets["train/images"].shape == (1, 1, 500, 500)


def test_share_for_test(tmp_path: Path, run_import: Run) -> None:
    """Without a folder test, --test-p of each class become test; paths say which."""
    root = tmp_path / "t"
    for number in range(30):
        put(root, f"train/{'ab'[number % 3 == 0]}/{number}.png", png(pixels(number)))
    assert run_import("folder", "--from", root).refused("--test-p", "no folder test")
    done = run_import("folder", "--from", root, "--test-p", 0.2)
    assert done.code == 0, done.text
    found = done.datasets
    assert np.bincount(found["test/labels"]).tolist() == [4, 2]
    both = [*found["train/paths"], *found["test/paths"]]
    assert len(set(both)) == 30
    for split in ("train", "test"):
        for image, name in zip(
            found[f"{split}/images"], found[f"{split}/paths"], strict=True
        ):
            assert image[2, 3, 4] == level(int(Path(name).stem), 2, 3, 4)
    again = run_import("folder", "--from", root, "--test-p", 0.2)
    assert "already there, nothing to do" in again.text
    other = run_import("folder", "--from", make_tree(tmp_path / "u"), "--test-p", 0.2)
    assert other.code == 2
    assert "has a folder test already" in other.text


def damaged() -> dict[str, bytes]:
    """Pictures that cannot be decoded, by name."""
    good = png(pixels(0, 40, 50))
    flipped = bytearray(good)
    flipped[good.index(b"IDAT") + 40] ^= 4

    def claiming(side: int) -> bytes:
        size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        checksum = struct.pack(">I", zlib.crc32(b"IHDR" + size))
        return good[:12] + b"IHDR" + size + checksum + good[33:]

    return {
        "cut.png": good[:-60],
        "flipped.png": bytes(flipped),
        "empty.jpg": b"",
        "text.jpeg": b"GIF89a is no picture here",
        "bomb.png": claiming(60_000),
        "large.png": claiming(8_200),
        "cut.bmp": bmp(pixels(0))[:70],
        "header.png": good[:20],
    }


def test_corrupt_pictures(tmp_path: Path, run_import: Run) -> None:
    """All are listed, and refused; with --skip-corrupt left out, listed and stored."""
    root = make_tree(tmp_path / "t")
    bad = damaged()
    for name, content in bad.items():
        put(root, f"train/bee/{name}", content)
    cut = jpeg(
        np.arange(6000, dtype=np.uint8).reshape(60, 100), root / "test/ant/j.jpg"
    )
    cut.write_bytes(cut.read_bytes()[:-300])
    done = run_import("folder", "--from", root)
    names = [f"train/bee/{name}" for name in bad] + ["test/ant/j.jpg"]
    assert done.refused(
        *(f"{root}/{name}: corrupt: " for name in names),
        "9 corrupt of 18 pictures",
        "--skip-corrupt",
        "8,200 × 8,200 pixels; at most 67,108,864 are unpacked",
    )
    assert done.text.count("error: ") == 10
    done = run_import("folder", "--from", root, "--skip-corrupt")
    assert done.code == 0, done.text
    assert done.sha256("train/images") == TRAIN_SHA
    assert done.sha256("test/images") == TEST_SHA
    skipped = json.loads(done.attributes["skipped"])
    assert sorted(skipped) == sorted(names)
    assert all(reason for reason in skipped.values())
    for name in names:
        assert f"{root}/{name}: left out, corrupt: " in done.text


def test_nothing_but_corrupt_pictures(tmp_path: Path, run_import: Run) -> None:
    """Leaving out cannot leave nothing, nor a class without training images."""
    root = tmp_path / "t"
    put(root, "train/a/x.png", b"x")
    done = run_import("folder", "--from", root, "--test-p", 0.5, "--skip-corrupt")
    assert done.refused("no picture could be decoded")
    make_tree(root)
    done = run_import("folder", "--from", root, "--skip-corrupt")
    assert done.refused("class 0 ('a') has no training images")


def test_sixteen_bits_are_refused(tmp_path: Path, run_import: Run) -> None:
    """More than 8 bits per grey level would be cut off; no picture is corrupt."""
    root = make_tree(tmp_path / "t")
    put(root, "train/ant/deep.png", png([bytes(10)] * 4, 1, 16))
    done = run_import("folder", "--from", root, "--skip-corrupt")
    assert done.refused("train/ant/deep.png: mode 'I;16'; expected 8 bits per channel")


def test_exif_orientation(tmp_path: Path, run_import: Run) -> None:
    """A photograph is turned upright, as it is displayed."""
    levels = np.zeros((16, 24), np.uint8)
    levels[:8] = 200  # the upper half; turned clockwise, the right half
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        jpeg(levels, tmp_path / f"t/{split}/a/x.jpg", exif=exif)
    done = run_import("folder", "--from", tmp_path / "t")
    image = done.datasets["train/images"][0, 0]
    assert image.shape == (24, 16)
    assert image[:, 9:].min() > 190
    assert image[:, :7].max() < 10


def test_links_are_followed(tmp_path: Path, run_import: Run) -> None:
    """Links to files and folders count; broken ones and pipes are errors."""
    store = make_tree(tmp_path / "store")
    root = tmp_path / "t"
    root.mkdir()
    (root / "test").symlink_to(store / "test")
    (root / "train/ant").mkdir(parents=True)
    for name in TRAIN[:2]:
        (root / "train" / name).symlink_to(store / "train" / name)
    for name in ("bee", "cow"):
        (root / "train" / name).symlink_to(store / "train" / name)
    done = run_import("folder", "--from", root)
    assert done.sha256("train/images") == TRAIN_SHA
    assert done.datasets["train/paths"][0] == "train/ant/0.png"
    (root / "train/ant/broken.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "train/ant/pipe.png")
    done = run_import("folder", "--from", root, "--skip-corrupt")
    assert done.code == 2
    assert "broken.png: could not be read (No such file" in done.text
    assert "pipe.png: not a file" in done.text


def test_other_files_are_counted(tmp_path: Path, run_import: Run) -> None:
    """Other suffixes and deeper folders are remarked upon, hidden files are not."""
    root = make_tree(tmp_path / "t")
    put(root, "train/ant/a.gif", b"GIF")
    put(root, "train/ant/b.GIF", b"GIF")
    put(root, "test/ant/README", b"x")
    put(root, "train/ant/.DS_Store", b"x")
    put(root, "train/ant/._0.png", b"x")
    put(root, "train/ant/deeper/x.png", b"x")
    put(root, "train/.cache/x.png", b"x")
    done = run_import("folder", "--from", root)
    assert done.sha256("train/images") == TRAIN_SHA
    assert "left out: 2 .gif, 1 folders in class folders, 1 without suffix" in done.text


BAD_TREES: dict[str, tuple[Sequence[str], list[str]]] = {
    "no train": (["test/a/x.png"], ["no folder train; found test", "{train,test}"]),
    "classes only": (["a/x.png", "b/x.png"], ["no folder train; found a, b"]),
    "files in train": (["train/x.png", "test/y.png"], ["no class folders"]),
    "class in test only": (
        ["train/a/x.png", "test/a/x.png", "test/b/x.png"],
        ["classes that train does not have: b; train has a"],
    ),
    "empty class": (
        ["train/a/x.png", "train/b/x.txt", "test/a/x.png"],
        ["class 1 ('b') has no training images"],
    ),
    "no test images": (["train/a/x.png", "test/a/x.txt"], ["test/images: no images"]),
}


@pytest.mark.parametrize("what", BAD_TREES)
def test_bad_trees(tmp_path: Path, run_import: Run, what: str) -> None:
    """A tree of another form is an error that says which form is expected."""
    names, words = BAD_TREES[what]
    for name in names:
        put(tmp_path / "t", name, png(pixels(0)))
    done = run_import("folder", "--from", tmp_path / "t")
    assert done.refused(str(tmp_path / "t"), *words)
    assert run_import("folder", "--from", tmp_path / "no").refused("no such folder")


def test_names_that_are_no_utf8(tmp_path: Path, run_import: Run) -> None:
    """A name in another encoding cannot be stored, and is named in escapes."""
    root = make_tree(tmp_path / "t")
    odd = os.fsencode(root / "train/ant") + b"/caf\xe9.png"
    with open(odd, "wb") as file:  # noqa: PTH123 - a path of bytes
        file.write(png(pixels(0)))
    done = run_import("folder", "--from", root)
    assert done.refused("caf\\udce9.png", "not UTF-8")


def test_pictures_are_not_all_held(
    tmp_path: Path, run_import: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are decoded a batch at a time, and every one twice."""
    lengths: list[int] = []
    get = folder_module.PictureArray.__getitem__

    def record(self: Any, index: slice) -> Any:
        images = get(self, index)
        lengths.append(len(images))
        return images

    monkeypatch.setattr(folder_module.PictureArray, "__getitem__", record)
    monkeypatch.setattr("imgclass.importers.files.CHUNK_BYTES", 120)
    monkeypatch.setattr("imgclass.importers.files.BATCH_BYTES", 120)
    done = run_import("folder", "--from", make_tree(tmp_path / "t"))
    assert lengths == [2, 2, 2, 2, 1]
    assert done.sha256("train/images") == TRAIN_SHA


@pytest.mark.parametrize("change", ["size", "gone", "corrupt"])
def test_pictures_that_change_meanwhile(
    tmp_path: Path, run_import: Run, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A file that is not what it was when it was checked stops the import."""
    root = make_tree(tmp_path / "t")
    path = root / "train/bee/3.png"
    look = pictures.inspect_picture

    def alter(one: Path) -> Any:
        found = look(one)
        if one == path:
            content = png(pixels(3, 7, 7)) if change == "size" else b"x"
            path.write_bytes(content)
            if change == "gone":
                path.unlink()
        return found

    monkeypatch.setattr(folder_module, "inspect_picture", alter)
    done = run_import("folder", "--from", root)
    assert done.refused("train/bee/3.png: changed during the import")


def test_no_progress_bar_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a function it is silent."""
    images = read_folder(make_tree(tmp_path / "t")).images["test"]
    assert images[1:3].shape == (2, 3, 4, 5)
    assert capsys.readouterr().err == ""
