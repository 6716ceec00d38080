"""Damaged and odd files: each is refused as a `DataError`, or read; nothing else.

A child process examines many files, so that a crash or a hang of libhdf5 is seen, and
told with the name of the file. Its lines are `name<tab>reader<tab>outcome`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import faulthandler
import itertools
import json
import logging
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

SEED = 20
N_DAMAGED = 48  # of each of the four files
HANG_S = 15.0  # in one reader
N_CHILDREN = 2
RATE = "response/firing_rate_10ms"
RECORDING_TARGETS = (
    "train/stimulus",
    f"train/{RATE}",
    "test/response/binned",
    "test/repeats/cell01",
    "test/repeats/firing_rate_10ms",
    "train/stas/cell01",
    "centers",
    "train",
    "test/response",
    "test/repeats",
    "train/stas",
)
IMAGE_TARGETS = ("train", "train/images", "test/labels", "class_names")
Make = Callable[[h5py.File, str], Any]


# --- valid files ------------------------------------------------------------------


def write_recording(path: Path, *, gzip: bool) -> None:
    """A recording of two cells, with repeats and, if compressed, STAs."""
    rng = np.random.default_rng(1)
    options = {"compression": "gzip", "chunks": True} if gzip else {}
    with h5py.File(path, "w") as file:
        for split, n in (("train", 60), ("test", 30)):
            frames = rng.integers(0, 256, (n, 8, 8), np.uint8)
            file.create_dataset(f"{split}/stimulus", data=frames, **options)
            file.create_dataset(f"{split}/time", data=np.arange(n) * 0.01, **options)
            for kind in ("binned", "firing_rate_10ms"):
                rates = rng.gamma(1.0, 8.0, (2, n + 1))
                name = f"{split}/response/{kind}"
                file.create_dataset(name, data=rates, **options)
        for cell, rate in enumerate(file[f"test/{RATE}"][:]):
            noise = rng.uniform(-0.1, 0.1, (3, 31))
            name = f"test/repeats/cell{cell + 1:02}"
            file.create_dataset(name, data=np.abs(rate + noise), **options)
            if gzip:
                file[f"train/stas/cell{cell + 1:02}"] = rng.normal(size=(5, 8, 8))


def write_images(path: Path, *, gzip: bool) -> None:
    """A set of three classes of images."""
    rng = np.random.default_rng(2)
    options = {"compression": "gzip", "chunks": True} if gzip else {}
    with h5py.File(path, "w") as file:
        for split, n in (("train", 60), ("test", 30)):
            images = rng.integers(0, 256, (n, 1, 6, 6), np.uint8)
            file.create_dataset(f"{split}/images", data=images, **options)
            labels = np.arange(n, dtype=np.int64) % 3
            file.create_dataset(f"{split}/labels", data=labels, **options)
        file["class_names"] = ["a", "b", "c"]
        file.attrs["augment"] = '["flip"]'


# --- damage to bytes --------------------------------------------------------------


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    """A copy of a file's bytes with one kind of damage."""
    data, size = bytearray(content), len(content)
    if kind == "truncated":
        return content[: rng.randrange(size)]
    if kind == "appended":
        return content + rng.randbytes(rng.randrange(1, 3000))
    if kind == "zeroed":
        first, length = rng.randrange(size), rng.randrange(1, 2048)
        data[first : first + length] = bytes(len(data[first : first + length]))
    elif kind == "blocks":
        for _ in range(rng.randint(1, 3)):
            first = rng.randrange(size // 512) * 512
            data[first : first + 512] = rng.randbytes(512)
    else:
        end = min(4096, size) if kind == "flipped in front" else size
        for _ in range(rng.choice((1, 2, 8, 40))):
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(data)


DAMAGES = ("truncated", "appended", "zeroed", "blocks", "flipped in front", "flipped")


# --- odd contents -----------------------------------------------------------------


def dataset(value: Any, **options: Any) -> Make:
    """Puts a value in a data set's place."""
    return lambda file, name: file.create_dataset(name, data=value, **options)


def declared(shape: tuple[int, ...], chunks: Any = None, dtype: str = "u1") -> Make:
    """Declares a shape, and writes nothing."""
    return lambda file, name: file.create_dataset(name, shape, dtype, chunks=chunks)


def one_chunk(file: h5py.File, name: str) -> None:
    """Ten to the twelve values, of which a chunk is written."""
    made = file.create_dataset(name, (10**6, 1000, 1000), "u1", chunks=(1, 8, 8))
    made[0, :8, :8] = np.arange(64).reshape(8, 8)


def unknown_filter(file: h5py.File, name: str) -> None:
    """A chunk that claims to have passed a filter nobody has."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_chunk((4, 8, 8))
    layout.set_filter(31999, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple((60, 8, 8))
    path = name.encode()
    made = h5py.h5d.create(file.id, path, h5py.h5t.STD_U8LE, space, layout)
    for first in range(0, 60, 4):
        made.write_direct_chunk((first, 0, 0), b"\x01" * 20, 0)


def virtual(source: str) -> Make:
    """A virtual data set whose source is absent, or itself."""

    def make(file: h5py.File, name: str) -> None:
        layout = h5py.VirtualLayout((60, 8, 8), "u1")
        layout[:] = h5py.VirtualSource(source, name, (60, 8, 8))
        file.create_virtual_dataset(name, layout)

    return make


def link(target: Any) -> Make:
    """A link in a data set's place; `{}` stands for its own name."""

    def make(file: h5py.File, name: str) -> None:
        own = isinstance(target, h5py.SoftLink)
        file[name] = h5py.SoftLink(target.path.format(f"/{name}")) if own else target

    return make


def external(file: h5py.File, name: str) -> None:
    """Values in another file, which is absent."""
    parts = [("/nowhere/values", 0, 60 * 64)]
    file.create_dataset(name, (60, 8, 8), "u1", external=parts)


def odd_values() -> dict[str, Make]:
    """What may stand where numbers are expected, by name."""
    shape = (60, 8, 8)
    pair = np.dtype([("a", "i4"), ("b", "f8")])
    ragged = h5py.vlen_dtype(np.uint8)
    enum = h5py.enum_dtype({"off": 0, "on": 1}, "u1")
    return {
        "bytes": dataset(np.full(shape, b"a")),
        "texts": dataset(["\u00e4", "b", "c"], dtype=h5py.string_dtype()),
        "not text": dataset([b"\xff\xfe", b"b", b"c"], dtype=h5py.string_dtype()),
        "not text, fixed": dataset(np.array([b"\xff\xfe"] * 3)),
        "ragged": lambda f, n: f.create_dataset(n, (3,), ragged),
        "compound": dataset(np.zeros(shape, pair)),
        "complex": dataset(np.ones(shape, complex)),
        "bool": dataset(np.ones(shape, bool)),
        "enum": dataset(np.ones(shape, "u1"), dtype=enum),
        "opaque": dataset(np.zeros(3, "V4")),
        "references": lambda f, n: f.create_dataset(n, (3,), h5py.ref_dtype),
        "times": lambda f, n: f.create_dataset(n, (3,), h5py.opaque_dtype("M8[s]")),
        "subarrays": lambda f, n: f.create_dataset(n, (60,), "(8,8)u1"),
        "long double": dataset(np.ones(shape, np.longdouble)),
        "big-endian": dataset(np.arange(60 * 64).reshape(shape), dtype=">i2"),
        "huge floats": dataset(np.full(shape, 1e300)),
        "huge integers": dataset(np.full(shape, 2**64 - 1, np.uint64)),
        "negative": dataset(np.full(shape, -5)),
        "nan": dataset(np.full((2, 60), np.nan)),
        "empty": dataset(np.zeros((0,))),
        "no frame": dataset(np.zeros((0, 8, 8))),
        "no pixel": dataset(np.zeros((60, 0, 8))),
        "no bin": dataset(np.zeros((2, 0))),
        "one frame": dataset(np.zeros((1, 8, 8), np.uint8)),
        "scalar": dataset(3.0),
        "null": dataset(h5py.Empty("f8")),
        "group": lambda f, n: f.create_group(n),
        "named type": lambda f, n: f.__setitem__(n, np.dtype("f8")),
        "dangling": link(h5py.SoftLink("/nowhere/at/all")),
        "dangling outside": link(h5py.ExternalLink("nowhere.h5", "/a")),
        "itself": link(h5py.SoftLink("{}")),
        "itself outside": link(h5py.ExternalLink("whitenoise.h5", "/train")),
        "the root": link(h5py.SoftLink("/")),
        "huge": declared((10**12, 8, 8), (64, 8, 8)),
        "huge vector": declared((10**12,), (1024,), "f8"),
        "huge responses": declared((2, 10**11), (1, 1024), "f8"),
        "huge, contiguous": declared((10**12, 8, 8)),
        "huge images": declared((10**10, 1, 6, 6), (64, 1, 6, 6)),
        "unwritten": declared(shape),
        "unwritten chunks": declared(shape, (4, 8, 8)),
        "one chunk": one_chunk,
        "unknown filter": unknown_filter,
        "virtual": virtual("nowhere.h5"),
        "virtual itself": virtual("."),
        "external": external,
    }


ODD_ATTRIBUTES: dict[str, Any] = {
    "text": "six",
    "bytes": b"\xff\xfe",
    "array": np.arange(3),
    "empty": h5py.Empty("f8"),
    "nan": np.nan,
    "infinite": np.inf,
    "zero": 0,
    "negative": -1,
    "huge": 2**63 - 1,
    "half": 0.5,
    "true": True,
    "compound": np.zeros((), [("a", "i4")]),
    "texts": ["a", "b"],
    "long": "x" * 10_000,
    "json": '{"a": [1, 2}',
    "null": "null",
    "number": "3",
}


def with_odd_values(valid: Path, folder: Path, targets: Sequence[str]) -> None:
    """Copies of a file in which one data set is replaced."""
    for kind, make in odd_values().items():
        for target in targets:
            path = folder / f"{kind} at {target.replace('/', '-')}" / valid.name
            path.parent.mkdir()
            path.write_bytes(valid.read_bytes())
            with h5py.File(path, "a") as file:
                if target in file:
                    del file[target]
                make(file, target)


def with_odd_attributes(valid: Path, folder: Path, names: Sequence[str]) -> None:
    """Copies of a file with one attribute of an odd type or value."""
    for kind, value in ODD_ATTRIBUTES.items():
        for name in names:
            path = folder / f"{kind} as {name}" / valid.name
            path.parent.mkdir()
            path.write_bytes(valid.read_bytes())
            with h5py.File(path, "a") as file:
                (file["train"] if name == "n_blocks" else file).attrs[name] = value


def with_swapped_arrays(valid: Path, folder: Path) -> None:
    """Copies of a file in which two neighbouring arrays have changed places."""
    with h5py.File(valid) as file:
        names: list[str] = []
        file.visititems(
            lambda n, node: names.append(n) if isinstance(node, h5py.Dataset) else None
        )
    for number, (one, other) in enumerate(itertools.pairwise(names)):
        path = folder / f"swapped {number}" / valid.name
        path.parent.mkdir()
        path.write_bytes(valid.read_bytes())
        with h5py.File(path, "a") as file:
            file.move(one, "aside")
            file.move(other, one)
            file.move("aside", other)


# --- the child --------------------------------------------------------------------


def readers(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that reads such a file, by name."""
    import torch

    from gridrun.config import complete
    from gridrun.data_check import check_file
    from gridrun.plugins import libraries

    is_movie = path.name == "whitenoise.h5"
    library = libraries()["torchdeepretina" if is_movie else "imgclass"]
    keys: dict[str, Any] = {"exp_name": "x", "dataset": path.parent.name, "lr": 0.1}
    keys |= {"data_root": str(path.parents[1]), "batch_size": 4, "n_epochs": 1}
    keys |= {"seed": 1, "split_seed": 1}
    keys |= {"chans": [2], "ksizes": [3, 3]} if is_movie else {}
    if is_movie:
        keys |= {"model_type": "VaryModel", "img_shape": [4, 8, 8], "convgc": True}
        keys |= {"stim_type": "whitenoise", "bnorm_d": 2}
    else:
        keys |= {"model_type": "SmallNet", "img_shape": [1, 6, 6]}
    hyps, problems = complete(keys, library.schema)
    assert not problems, problems
    trainer = library.load_trainer()

    def read_one_batch() -> None:
        data = trainer.open_data(hyps, torch.device("cpu"))
        for split in (data.train, data.val, data.test):
            split.batch(torch.arange(min(4, len(split))))

    def check() -> None:
        report = check_file(path)
        json.dumps(report.facts)
        if report.problems:
            from gridrun.errors import DataError

            raise DataError(report.problems)

    yield "inspect", lambda: trainer.inspect_data(hyps)
    yield "open", read_one_batch
    yield "check", check


def examine(paths: Sequence[Path]) -> None:
    """Read each file in every way; one line for each, none for the one that kills."""
    import torch

    from gridrun.errors import DataError

    torch.set_num_threads(1)
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    for path in paths:
        for name, read in readers(path):
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            try:
                read()
                outcome = "read"
            except DataError as error:
                outcome = "refused" if str(path) in str(error) else f"no name: {error}"
                if name == "check" and error.problems:
                    outcome = "refused"
            except Exception as error:  # noqa: BLE001 - what the test is after
                outcome = f"{type(error).__name__}: {error}"
            line = outcome.replace("\n", " ").replace("\t", " ")
            sys.stdout.write(f"{path}\t{name}\t{line}\n")
            sys.stdout.flush()
        faulthandler.cancel_dump_traceback_later()


def outcomes_of(paths: Sequence[Path]) -> dict[tuple[Path, str], str]:
    """What a child says of each file; a death is told of the file it met."""
    found: dict[tuple[Path, str], str] = {}
    waiting = list(paths)
    while waiting:
        child = subprocess.run(
            [sys.executable, "-X", "faulthandler", __file__],
            input="\n".join(map(str, waiting)),
            capture_output=True,
            text=True,
            check=False,
        )
        for line in child.stdout.splitlines():
            path, name, outcome = line.split("\t")
            found[Path(path), name] = outcome
        done = {path for path, name in found if name == "check"}
        waiting = [path for path in waiting if path not in done]
        if waiting:
            said = child.stderr.strip()[-1500:]
            found[waiting[0], "death"] = f"exit code {child.returncode}: {said}"
            waiting = waiting[1:]
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Path, str], str]:
    """What happened to each of all files, by file and reader."""
    root = tmp_path_factory.mktemp("corrupted")
    write_corrupted(root)
    paths = sorted(root.glob("*/*/*.h5"))
    parts = [paths[first::N_CHILDREN] for first in range(N_CHILDREN)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found: dict[tuple[Path, str], str] = {}
        for part in pool.map(outcomes_of, parts):
            found |= part
    return found


def write_corrupted(root: Path) -> None:
    """All files, each alone in a folder that says what is wrong with it."""
    rng = random.Random(SEED)
    for gzip in (False, True):
        form = "gzip" if gzip else "contiguous"
        for write, name in (
            (write_recording, "whitenoise.h5"),
            (write_images, "images.h5"),
        ):
            valid = root / f"{form} {name}" / "valid" / name
            valid.parent.mkdir(parents=True)
            write(valid, gzip=gzip)
            content = valid.read_bytes()
            folder = valid.parents[1]
            for number in range(N_DAMAGED):
                kind = DAMAGES[number % len(DAMAGES)]
                path = folder / f"{kind} {number}" / name
                path.parent.mkdir()
                path.write_bytes(damaged(content, kind, rng))
            with_swapped_arrays(valid, folder)
            if gzip and write is write_recording:
                with_odd_values(valid, folder, RECORDING_TARGETS)
                with_odd_attributes(valid, folder, ("n_blocks", "dt_s"))
            elif gzip:
                with_odd_values(valid, folder, IMAGE_TARGETS)
                with_odd_attributes(valid, folder, ("augment", "source"))


# --- tests ------------------------------------------------------------------------

# imgclass/datas.py, _class_names: reads /class_names without asking whether it is an
# array of its own, so libhdf5 recurses for ever in a virtual one that is its own
# source, and ends the process.
KNOWN_DEFECTS = tuple(
    f"{kind} at class_names"
    for kind in ("group", "named type", "the root", "virtual itself")
)


def told(outcomes: dict[tuple[Path, str], str], wrong: list[Any]) -> str:
    """Files and what happened to them, for a failure's message."""
    return "\n".join(f"{k[0].parent} {k[1]}: {outcomes[k]}" for k in wrong)


def test_a_damaged_file_is_refused_or_read(
    outcomes: dict[tuple[Path, str], str],
) -> None:
    """No file raises anything but a DataError that names it, or ends its reader."""
    wrong = [
        key
        for key, outcome in outcomes.items()
        if outcome not in ("read", "refused")
        and key[0].parent.name not in KNOWN_DEFECTS
    ]
    assert len(outcomes) > 3 * 500
    assert not wrong, told(outcomes, wrong)


@pytest.mark.parametrize("name", KNOWN_DEFECTS)
def test_odd_class_names_are_refused(
    outcomes: dict[tuple[Path, str], str], name: str
) -> None:
    """What is no array of texts in the place of /class_names is refused."""
    said = [v for (path, _), v in outcomes.items() if path.parent.name == name]
    assert said == ["refused"] * 3


def test_valid_files_are_read(outcomes: dict[tuple[Path, str], str]) -> None:
    """The files that were damaged are good themselves."""
    said = {k: v for k, v in outcomes.items() if k[0].parent.name == "valid"}
    assert len(said) == 12
    assert set(said.values()) == {"read"}, said


def test_damage_is_seen(outcomes: dict[tuple[Path, str], str]) -> None:
    """Every truncated file is refused; of the others, some of each kind are."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for (path, name), outcome in outcomes.items():
        if name == "open":
            counts[path.parent.name.rstrip("0123456789 ")][outcome] += 1
    assert set(counts["truncated"]) == {"refused"}
    for kind in ("zeroed", "blocks", "flipped in front", "flipped"):
        assert counts[kind]["refused"], counts


if __name__ == "__main__":
    examine([Path(line) for line in sys.stdin.read().splitlines()])
