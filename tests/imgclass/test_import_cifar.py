"""CIFAR archives: pickles of Python 2 and 3, packed and unpacked, and hostile ones."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gridrun.errors import DataError
from imgclass.importers import cifar
from imgclass.importers.unpickle import unpickle

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
# From bytes((n * 7 + plane * 50 + row * 3 + column) % 256 ...) without NumPy; images
# 0 to 9 are train and 10, 11 test.
TRAIN_SHA = "2d1bf0cbf12b1fcd6fbe52c3fa1916d4cc80e77d74a75b58da7aa548e96c937c"
TEST_SHA = "067cc08cb6825c1cf29fe2da9b396880e890a4a83d0fe2960e7bc98d7965d497"
Run = Callable[..., Any]


def row(number: int) -> bytes:
    """The 3,072 levels of an image: its planes, their rows."""
    return bytes(
        (number * 7 + plane * 50 + line * 3 + column) % 256
        for plane in range(3)
        for line in range(32)
        for column in range(32)
    )


# --- pickles of Python 2, opcode by opcode ------------------------------------------


def text(value: str) -> bytes:
    """A Python 2 str."""
    return b"U" + bytes([len(value)]) + value.encode("latin1")


def listed(items: Sequence[bytes]) -> bytes:
    """A list."""
    return b"](" + b"".join(items) + b"e"


def mapped(items: dict[str, bytes]) -> bytes:
    """A dictionary."""
    return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def array(levels: bytes, n: int, module: str = "numpy.core.multiarray") -> bytes:
    """A NumPy array (n, 3072) of uint8, as NumPy 1 on Python 2 pickled it."""
    empty = f"c{module}\n_reconstruct\ncnumpy\nndarray\n".encode()
    empty += b"K\x00\x85" + text("b") + b"\x87R"
    kind = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + text("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    shape = b"J" + struct.pack("<i", n) + b"J" + struct.pack("<i", 3072) + b"\x86"
    content = b"T" + struct.pack("<i", len(levels)) + levels
    return empty + b"(K\x01" + shape + kind + b"\x89" + content + b"tb"


def python2(value: bytes) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + value + b"."


def integers(values: Sequence[int]) -> bytes:
    """A list of small integers."""
    return listed([b"K" + bytes([value]) for value in values])


def cifar10_files(module: str = "numpy.core.multiarray") -> dict[str, bytes]:
    """Two images in each batch; image n has label n % 3."""
    files = {}
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    for position, name in enumerate(names):
        numbers = [2 * position, 2 * position + 1]
        files[name] = python2(
            mapped(
                {
                    "data": array(b"".join(map(row, numbers)), 2, module),
                    "labels": integers([n % 3 for n in numbers]),
                    "batch_label": text("batch"),
                    "filenames": listed([text(f"{n}.png") for n in numbers]),
                }
            )
        )
    meta = {"label_names": listed([text(name) for name in ("plane", "car", "bird")])}
    return {**files, "batches.meta": python2(mapped(meta))}


def levels_of(numbers: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Some images' rows as an array."""
    return np.array([[*row(n)] for n in numbers], np.uint8)


def cifar100_files() -> dict[str, bytes]:
    """Ten and two images, pickled by this Python and its NumPy 2."""
    files = {}
    for name, numbers in (("train", range(10)), ("test", range(10, 12))):
        batch = {
            "data": levels_of([*numbers]),
            "fine_labels": [n % 3 for n in numbers],
            "coarse_labels": [np.int64(n % 3 // 2) for n in numbers],
            "filenames": ["x.png" for _ in numbers],
        }
        files[name] = pickle.dumps(batch, protocol=2)
    names = {
        "fine_label_names": ["apple", "bear", "crab"],
        "coarse_label_names": ["food", "animal"],
    }
    files["meta"] = pickle.dumps(names, protocol=2)
    return files


def pack(path: Path, kind: str, files: dict[str, bytes]) -> Path:
    """A .tar.gz in the layout of the official one."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{FOLDERS[kind]}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def unpack(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    """The folder that the archive unpacks to."""
    inner = folder / FOLDERS[kind]
    inner.mkdir(parents=True)
    for name, content in files.items():
        (inner / name).write_bytes(content)
    return inner


# --- what is read --------------------------------------------------------------------


def test_made_pickles_are_real_ones() -> None:
    """Python itself reads the hand-made pickle as what it is meant to be."""
    batch = pickle.loads(cifar10_files()["data_batch_2"], encoding="latin1")
    np.testing.assert_array_equal(batch["data"], levels_of([2, 3]))
    assert batch["labels"] == [2, 0]


@pytest.mark.parametrize("form", ["packed", "folder", "folder around it"])
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_cifar10(tmp_path: Path, run_import: Run, form: str, module: str) -> None:
    """Planes, order, labels and names come out as they went in, in every form."""
    files = cifar10_files(module)
    if form == "packed":
        source = pack(tmp_path / "c.tar.gz", "cifar10", files)
    else:
        inner = unpack(tmp_path / "c", "cifar10", files)
        source = inner if form == "folder" else inner.parent
    done = run_import("cifar10", "--from", source)
    assert done.code == 0, done.text
    found = done.datasets
    assert found["train/images"].shape == (10, 3, 32, 32)
    assert found["train/images"][4, 2, 31, 5] == (4 * 7 + 2 * 50 + 31 * 3 + 5) % 256
    assert done.sha256("train/images") == TRAIN_SHA
    assert done.sha256("test/images") == TEST_SHA
    assert found["train/labels"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert found["test/labels"].tolist() == [1, 2]
    assert found["class_names"] == ["plane", "car", "bird"]
    assert done.attributes["augment"] == '["flip", "jitter", "rotate"]'
    assert "CIFAR-10," in done.attributes["source"]
    assert ("official archive has c58f30108f718f92721af3b95e74349a" in done.text) == (
        form == "packed"
    )
    assert "3 classes, train + test: plane 4 + 0, car 3 + 1, bird 3 + 1" in done.text
    assert '"dataset": "set", "img_shape": [3, 32, 32]' in done.text


@pytest.mark.parametrize("is_packed", [True, False])
def test_cifar100(tmp_path: Path, run_import: Run, is_packed: bool) -> None:
    """Fine labels are the classes; coarse ones and their names are kept beside."""
    files = cifar100_files()
    assert b"numpy._core.multiarray\n" in files["train"]
    source = (
        pack(tmp_path / "c.tar.gz", "cifar100", files)
        if is_packed
        else unpack(tmp_path / "c", "cifar100", files)
    )
    done = run_import("cifar100", "--from", source)
    assert done.code == 0, done.text
    found = done.datasets
    assert done.sha256("train/images") == TRAIN_SHA
    assert done.sha256("test/images") == TEST_SHA
    assert found["train/labels"].tolist() == [n % 3 for n in range(10)]
    assert found["train/coarse_labels"].tolist() == [n % 3 // 2 for n in range(10)]
    assert found["test/coarse_labels"].tolist() == [0, 1]
    assert found["class_names"] == ["apple", "bear", "crab"]
    assert found["coarse_class_names"] == ["food", "animal"]


def test_official_checksum_gives_no_warning(
    tmp_path: Path, run_import: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive with the expected MD5 is not remarked upon."""
    source = pack(tmp_path / "c.tar.gz", "cifar10", cifar10_files())
    md5 = hashlib.md5(source.read_bytes()).hexdigest()
    variant = cifar.dataclasses.replace(cifar.VARIANTS["cifar10"], md5=md5)
    monkeypatch.setitem(cifar.VARIANTS, "cifar10", variant)
    assert "MD5" not in run_import("cifar10", "--from", source).text


# --- hostile archives ----------------------------------------------------------------


def hostile_pickles(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would do something, and the name that the refusal must hold."""
    touch = f"touch {marker}"
    code = f"__import__('os').mkdir({str(marker)!r})"

    def call(name: str, *arguments: bytes) -> bytes:
        module, _, function = name.rpartition(".")
        words = b"".join(arguments)
        return f"c{module}\n{function}\n(".encode() + words + b"tR"

    def string(value: str) -> bytes:
        return b"X" + struct.pack("<i", len(value)) + value.encode()

    def stack_global(module: str, name: str) -> bytes:
        return string(module) + string(name) + b"\x93"

    reconstruct = "numpy.core.multiarray._reconstruct"
    ndarray = b"cnumpy\nndarray\n"
    kind = call("numpy.dtype", string("u1"), b"K\x00", b"K\x01")
    calls = {
        "os.system": call("os.system", string(touch)),
        "posix.system": call("posix.system", string(touch)),
        "builtins.eval": call("builtins.eval", string(code)),
        "__builtin__.eval": call("__builtin__.eval", string(code)),
        "builtins.getattr": call("builtins.getattr", string(code), string("x")),
        "numpy.f2py.os.system": stack_global("numpy", "f2py.os.system")
        + b"("
        + string(touch)
        + b"tR",
        "subprocess.Popen": b"(" + string(touch) + b"isubprocess\nPopen\n",
        "numpy.load": call("numpy.load", string(str(marker))),
        "numpy.core.multiarray._reconstruct.__globals__": stack_global(
            "numpy.core.multiarray", "_reconstruct.__globals__"
        ),
    }
    odd = {
        f"{reconstruct} ": call(
            reconstruct, ndarray, b"J\x00\x00\x00\x7f\x85", b"K\x00"
        ),
        f"{reconstruct}  ": call(reconstruct, string("x"), b"K\x00\x85", string("b")),
        f"{reconstruct}   ": call(reconstruct),
        "numpy.ndarray": call("numpy.ndarray", b"J\x00\x00\x00\x7f\x85"),
        "numpy.dtype": call("numpy.dtype", string("O"), b"K\x00", b"K\x01"),
        "numpy.dtype ": call("numpy.dtype", call("numpy.dtype", string("u1"))),
        "_codecs.encode": call("_codecs.encode", string(code), string("rot13")),
        "numpy.core.multiarray.scalar": call(
            "numpy.core.multiarray.scalar", kind, b"K\x05"
        ),
        "numpy.core.multiarray.scalar ": call(
            "numpy.core.multiarray.scalar", string("O"), string(code)
        ),
        "_codecs.encode ": b"c_codecs\nencode\n}(" + string("x") + b"K\x01ub",
    }
    return {
        name: (b"\x80\x02" + content + b".", name.strip())
        for name, content in (calls | odd).items()
    }


@pytest.mark.parametrize("number", range(19))
def test_hostile_pickles_run_nothing(
    tmp_path: Path, run_import: Run, number: int
) -> None:
    """What a pickle names beyond arrays is refused by name, and not run."""
    marker = tmp_path / "marker"
    pickles = [*hostile_pickles(marker).values()]
    assert len(pickles) == 19
    content, name = pickles[number]
    source = unpack(tmp_path / "c", "cifar10", cifar10_files())
    (source / "batches.meta").write_bytes(content)
    done = run_import("cifar10", "--from", source)
    assert done.refused("batches.meta", name, "nothing of it was run")
    assert not marker.exists()


def test_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    """The pickles of the test above do harm where nothing guards against them."""
    for name in ("os.system", "posix.system", "builtins.eval", "__builtin__.eval"):
        marker = tmp_path / name
        pickle.loads(hostile_pickles(marker)[name][0])
        assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x02",
        cifar10_files()["data_batch_1"][:500],
        b"\x80\x02Pid\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # the extension registry
        b"\x80\x02](K\x01e}b.",  # a state for a list
        python2(array(b"too short", 2)),
        b"\x80\x02" + b"(" * 100 + b"l." * 2,
    ],
)
def test_damaged_pickles_are_errors(content: bytes) -> None:
    """Whatever else is wrong with a pickle is an error that names the file."""
    with pytest.raises(DataError, match="here: "):
        cifar._member("here", unpickle(content, "here"), "data")


def add(archive: tarfile.TarFile, name: str, **facts: Any) -> None:
    """Add an odd member."""
    member = tarfile.TarInfo(name)
    content = facts.pop("content", b"")
    member.size = len(content)
    for fact, value in facts.items():
        setattr(member, fact, value)
    archive.addfile(member, io.BytesIO(content))


def test_odd_members_are_passed_over(tmp_path: Path, run_import: Run) -> None:
    """Links, devices, pipes and names elsewhere do nothing; nothing is extracted."""
    folder, files = FOLDERS["cifar10"], cifar10_files()
    source = tmp_path / "c.tar.gz"
    (tmp_path / "secret").write_bytes(b"x")
    with tarfile.open(source, "w:gz") as archive:
        add(archive, "../escaped", content=b"x")
        add(archive, str(tmp_path / "absolute"), content=b"x")
        add(archive, f"{folder}/../{folder}/data_batch_1", content=b"x")
        add(archive, f"/{folder}/data_batch_1", content=b"x")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = str(tmp_path / "secret")
            add(archive, f"{folder}/data_batch_1", type=kind, linkname=link)
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            add(archive, f"{folder}/data_batch_1", type=kind)
        add(archive, f"{folder}/deeper/test_batch", content=b"x")
        add(archive, f"{folder}/readme.html", content=b"x")
        for name, content in files.items():
            add(archive, f"./{folder}/{name}", content=content)
    done = run_import("cifar10", "--from", source)
    assert done.code == 0, done.text
    assert done.sha256("train/images") == TRAIN_SHA
    there = sorted(path.name for path in tmp_path.rglob("*"))
    assert there == ["c.tar.gz", "images.h5", "r", "secret", "set"]


def test_archives_that_unpack_without_end(
    tmp_path: Path, run_import: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are bounded: of a file, of all together, of their number."""
    big = cifar10_files() | {"test_batch": bytes(3_000_000)}
    source = pack(tmp_path / "c.tar.gz", "cifar10", big)
    folder = unpack(tmp_path / "c", "cifar10", big)
    assert source.stat().st_size < 50_000
    monkeypatch.setattr(cifar, "MAX_FILE_BYTES", 2_000_000)
    for path in (source, folder):
        done = run_import("cifar10", "--from", path)
        assert done.refused("test_batch", "3 MB; expected at most 2 MB")
    monkeypatch.setattr(cifar, "MAX_FILE_BYTES", 4_000_000)
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 1_000_000)
    done = run_import("cifar10", "--from", source)
    assert done.refused("unpacks to more than 1 MB")
    monkeypatch.setattr(cifar, "MAX_MEMBERS", 3)
    assert run_import("cifar10", "--from", source).refused("more than 3 members")


def spoil(files: dict[str, bytes], what: str) -> dict[str, bytes]:
    """The valid files with one thing wrong."""
    levels = b"".join(map(row, (0, 1)))

    def batch(**changes: bytes | None) -> bytes:
        items = {"data": array(levels, 2), "labels": integers([0, 1])} | changes
        return python2(mapped({k: v for k, v in items.items() if v is not None}))

    changed = {
        "no batch": {"data_batch_3": None},
        "no labels": {"data_batch_3": batch(labels=None)},
        "labels short": {"data_batch_3": batch(labels=integers([0]))},
        "labels are text": {"data_batch_3": batch(labels=listed([text("a")] * 2))},
        "label too high": {"data_batch_3": batch(labels=integers([0, 9]))},
        "data is a list": {"data_batch_3": batch(data=integers([1, 2]))},
        "data too narrow": {"data_batch_3": python2(integers([1]))},
        "names are numbers": {
            "batches.meta": python2(mapped({"label_names": integers([1])}))
        },
        "class twice": {
            "batches.meta": python2(
                mapped({"label_names": listed([text("a"), text("a"), text("b")])})
            )
        },
    }[what]
    merged: dict[str, bytes | None] = {**files, **changed}
    return {name: content for name, content in merged.items() if content is not None}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no batch", ["data_batch_3", "cifar-10-batches-py/data_batch_3"]),
        ("no labels", ["data_batch_3: no labels", "found data"]),
        ("labels short", ["data_batch_3: labels: 1 for 2 images"]),
        ("labels are text", ["data_batch_3: labels", "list of integers"]),
        ("label too high", ["train/labels", "0 ... 2", "9 at index 5"]),
        ("data is a list", ["data_batch_3: data", "(N, 3072)", "list"]),
        ("data too narrow", ["data_batch_3: no data", "no dict"]),
        ("names are numbers", ["batches.meta: label_names", "list of names"]),
        ("class twice", ["class_names: 'a' more than once"]),
    ],
)
def test_bad_batches(
    tmp_path: Path, run_import: Run, what: str, words: list[str]
) -> None:
    """What is missing or odd in a batch is named with its file."""
    source = pack(tmp_path / "c.tar.gz", "cifar10", spoil(cifar10_files(), what))
    assert run_import("cifar10", "--from", source).refused("c.tar.gz: ", *words)


def test_damaged_archives(tmp_path: Path, run_import: Run) -> None:
    """A truncated, foreign, empty or absent archive is one error naming it."""
    source = pack(tmp_path / "c.tar.gz", "cifar10", cifar10_files())
    content = source.read_bytes()
    for damaged in (content[:-2000], content[:20], b"", b"PK\x03\x04zip", b"\x1f\x8b"):
        source.write_bytes(damaged)
        assert run_import("cifar10", "--from", source).refused("c.tar.gz")
    source.write_bytes(content[:1000] + bytes(200) + content[1200:])
    assert run_import("cifar10", "--from", source).refused("c.tar.gz")
    assert run_import("cifar10", "--from", tmp_path / "no").refused("No such file")
    (tmp_path / "empty").mkdir()
    done = run_import("cifar10", "--from", tmp_path / "empty")
    assert done.refused("no data_batch_1", "official cifar10 python archive")


def test_coarse_labels_out_of_range(tmp_path: Path, run_import: Run) -> None:
    """A coarse label without a name is an error, too."""
    files = cifar100_files()
    batch = pickle.loads(files["test"])
    batch["coarse_labels"] = [0, 2]
    files["test"] = pickle.dumps(batch, protocol=2)
    source = pack(tmp_path / "c.tar.gz", "cifar100", files)
    done = run_import("cifar100", "--from", source)
    assert done.refused("coarse_labels of 0 to 2; expected 0 to 1")
