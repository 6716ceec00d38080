"""Processes that read ahead: the same batches, and none of them left behind."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from gridrun.errors import DataError
from gridrun.planner import cohort_key
from gridrun.plugins import libraries
from gridrun.readers import DEPTH, Readers, Rows
from gridrun.run import make_spec
from gridrun.training.cohort import Interrupted
from gridrun.training.data import batches, in_batches
from gridrun.training.event import Event
from gridrun.training.seeding import epoch_order

N_ROWS = 57
SIDE = (3, 4)


def write_array(folder: Path, span: int = 1, **storage: Any) -> Rows:
    """Write an array, stored in some way; says where samples of it are."""
    path = folder / "array.h5"
    array = np.random.default_rng(0).integers(0, 256, (N_ROWS, *SIDE), np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=array, **storage)
    return Rows(path, "/x", "|u1", folder / "cache", span)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Rows]:
    """Function (span, storage options) that writes an array and says where it is."""
    return functools.partial(write_array, tmp_path)


@pytest.fixture
def reading() -> Iterator[Callable[[Rows, int], Readers]]:
    """Function that starts readers; those still there are closed at the end."""
    with contextlib.ExitStack() as stack:

        def start(rows: Rows, n: int) -> Readers:
            readers = Readers(rows, n)
            stack.callback(readers.close)
            return readers

        yield start


def stored(rows: Rows) -> np.ndarray:
    """The array, read by h5py."""
    with h5py.File(rows.path) as file:
        return file["x"][:]


def gathered(rows: Rows, starts: Sequence[int]) -> np.ndarray:
    """Samples by explicit loops over an array."""
    array = stored(rows)
    span = [[array[start + i] for i in range(rows.span)] for start in starts]
    found = np.array(span, np.uint8).reshape(len(starts), rows.span, *SIDE)
    return found if rows.span > 1 else found[:, 0]


def some_batches(rows: Rows, sizes: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Batches of random starts, of the given sizes."""
    random = np.random.default_rng(seed)
    return [random.integers(0, N_ROWS - rows.span + 1, size) for size in sizes]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def parent_of(pid: int) -> int:
    """Process number of a process's parent."""
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return int(status.rpartition(")")[2].split()[1])


def eventually(holds: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Whether something comes to hold in time."""
    end = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# --- samples ----------------------------------------------------------------------


@pytest.mark.parametrize("span", [1, 2, 7, N_ROWS])
@pytest.mark.parametrize("storage", [{}, {"compression": "gzip", "chunks": (5, 3, 4)}])
def test_samples_are_consecutive_rows(
    rows: Callable[..., Rows], span: int, storage: dict[str, Any]
) -> None:
    """Sample i holds rows i to i + span - 1, first to last, as a view."""
    where = rows(span, **storage)
    samples = where.open()
    n_samples = N_ROWS - span + 1
    assert len(samples) == n_samples
    assert np.array_equal(samples, gathered(where, range(n_samples)))
    assert samples.base is not None or span == 1
    assert samples.strides[0] == samples.strides[-3] == SIDE[0] * SIDE[1]


@pytest.fixture(scope="module", params=[(1, 5), (2, 1), (4, 5)], ids=str)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Readers]:
    """As many readers of samples of such a span, for several tests in turn."""
    n, span = request.param
    readers = Readers(write_array(tmp_path_factory.mktemp("shared"), span), n)
    yield readers
    readers.close()


@pytest.mark.parametrize(
    "sizes",
    [[8] * 11, [3, 40, 1, 17, 2, 2, 30], [5], [5, 6], [], [0, 4]],
    ids=["even", "uneven", "one", "two", "none", "empty"],
)
def test_batches_come_in_order(shared: Readers, sizes: list[int]) -> None:
    """Each batch is what direct gathering gives, for fewer batches than readers too."""
    asked = some_batches(shared.rows, sizes)
    found = list(shared.read(iter(asked)))
    assert len(found) == len(asked)
    for batch, starts in zip(found, asked, strict=True):
        assert batch.dtype == np.uint8
        assert batch.flags.c_contiguous
        assert np.array_equal(batch, gathered(shared.rows, starts))


def test_epochs_follow_each_other(
    rows: Callable[..., Rows], reading: Callable[..., Readers]
) -> None:
    """The same processes read one epoch after another."""
    where = rows(3)
    readers = reading(where, 2)
    pids = readers.pids
    for epoch in range(3):
        asked = some_batches(where, [4] * (5 + epoch), epoch)
        for batch, starts in zip(readers.read(asked), asked, strict=True):
            assert np.array_equal(batch, gathered(where, starts))
    assert readers.pids == pids


def test_an_epoch_given_up_leaves_nothing_to_the_next(
    rows: Callable[..., Rows], reading: Callable[..., Readers]
) -> None:
    """After an iteration that was abandoned the next starts at its own batch 0."""
    where = rows(3)
    readers = reading(where, 2)
    first = readers.read(some_batches(where, [4] * 9))
    next(first)
    asked = some_batches(where, [5] * 6, seed=1)
    for batch, starts in zip(readers.read(asked), asked, strict=True):
        assert np.array_equal(batch, gathered(where, starts))


def test_readers_are_a_few_batches_ahead(
    rows: Callable[..., Rows], reading: Callable[..., Readers]
) -> None:
    """While a batch is in use, no more than DEPTH batches a process are asked for."""
    where = rows()
    asked = iter(some_batches(where, [2] * 20))
    found = reading(where, 2).read(asked)
    next(found)
    assert len(list(asked)) == 20 - 2 * DEPTH


def test_batches_larger_than_a_pipe_do_not_lock(
    rows: Callable[..., Rows], reading: Callable[..., Readers]
) -> None:
    """Where neither starts nor samples fit a pipe's buffer, reading goes on."""
    where = rows()
    asked = some_batches(where, [100_000] * 4)
    readers = reading(where, 1)

    def give_up(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    try:
        found = [len(batch) for batch in readers.read(asked)]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert found == [100_000] * 4


# --- processes --------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
def test_there_are_n_processes_until_close(rows: Callable[..., Rows], n: int) -> None:
    """n children of this process live while reading, none after closing."""
    where = rows()
    readers = Readers(where, n)
    pids = readers.pids
    try:
        assert len(set(pids)) == n
        list(readers.read(some_batches(where, [4] * 5)))
        assert all(is_alive(pid) and parent_of(pid) == os.getpid() for pid in pids)
    finally:
        readers.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_closing_in_the_middle_does_not_hang(rows: Callable[..., Rows]) -> None:
    """An iteration that was abandoned keeps nothing from closing."""
    where = rows()
    readers = Readers(where, 2)
    pids = readers.pids
    found = readers.read(some_batches(where, [50_000] * 20))
    next(found)
    started = time.monotonic()
    readers.close()
    assert time.monotonic() - started < 10
    assert not any(map(is_alive, pids))
    found.close()


PARENT = """
import sys, time
from pathlib import Path
import numpy as np
from gridrun.readers import Readers, Rows
path = Path(sys.argv[1])
readers = Readers(Rows(path, "/x", "|u1", path.parent), 3)
batches = readers.read(np.arange(50).repeat(1000) for _ in range(100))
next(batches)
print(*readers.pids, flush=True)
time.sleep(60)
"""


def test_readers_end_with_a_killed_parent(rows: Callable[..., Rows]) -> None:
    """SIGKILL of the trainer, with batches under way, leaves no process."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(rows().path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with parent:
        assert parent.stdout is not None
        pids = list(map(int, parent.stdout.readline().split()))
        try:
            assert len(pids) == 3
            assert all(map(is_alive, pids))
        finally:
            parent.kill()
    assert eventually(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_readers_leave_signals_to_their_parent(
    rows: Callable[..., Rows], reading: Callable[..., Readers], number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM, which reach the whole group, end no reader."""
    where = rows()
    readers = reading(where, 2)
    asked = some_batches(where, [4] * 9)
    list(readers.read(asked))
    for pid in readers.pids:
        os.kill(pid, number)
    found = list(readers.read(asked))
    assert all(map(is_alive, readers.pids))
    assert all(map(np.array_equal, found, [gathered(where, one) for one in asked]))


@pytest.mark.parametrize("n_killed", [1, 2])
def test_reading_goes_on_without_a_killed_reader(
    rows: Callable[..., Rows],
    reading: Callable[..., Readers],
    caplog: pytest.LogCaptureFixture,
    n_killed: int,
) -> None:
    """The batches stay the same, and one warning says so, also an epoch later."""
    where = rows(3)
    readers = reading(where, 2)
    asked = some_batches(where, [5] * 12)
    found = []
    with caplog.at_level(logging.WARNING):
        for epoch in range(2):
            for step, batch in enumerate(readers.read(asked)):
                found.append(batch)
                if (epoch, step) == (0, 3):
                    for pid in readers.pids[:n_killed]:
                        os.kill(pid, signal.SIGKILL)
    assert len(found) == 24
    expected = [gathered(where, one) for one in asked * 2]
    assert all(map(np.array_equal, found, expected))
    texts = [record.getMessage() for record in caplog.records]
    assert texts == ["a process that reads ahead has died; reading goes on"]


def test_a_file_that_vanished_is_an_error_of_the_parent(
    rows: Callable[..., Rows], reading: Callable[..., Readers]
) -> None:
    """What a reader cannot open is told as the DataError that it is."""
    where = rows()
    readers = reading(where, 2)
    where.path.unlink()
    with pytest.raises(DataError, match=r"array\.h5.*cannot be read|array\.h5: not a"):
        list(readers.read(some_batches(where, [4] * 5)))
    assert all(map(is_alive, readers.pids))


def test_a_row_beyond_the_end_is_an_error_of_the_parent(
    rows: Callable[..., Rows], reading: Callable[..., Readers]
) -> None:
    """The batches before the wrong one are still given."""
    found = reading(rows(), 2).read([np.array([1]), np.array([N_ROWS])])
    assert len(next(found)) == 1
    with pytest.raises(IndexError):
        next(found)


# --- training ---------------------------------------------------------------------


@pytest.fixture
def configurations(
    recording: Path,
    image_set: Path,
    retina_hyps: Callable[..., Any],
    image_hyps: Callable[..., Any],
) -> dict[str, Callable[..., Any]]:
    """Functions that give a configuration of either library; images are augmented."""
    keys = {"n_epochs": 2, "batch_size": 16}
    own = {"torchdeepretina": {"noise": 0.1}, "imgclass": {"augment": ["flip", "crop"]}}
    make = {
        "torchdeepretina": functools.partial(retina_hyps, recording),
        "imgclass": functools.partial(image_hyps, image_set),
    }
    return {name: functools.partial(make[name], **keys, **own[name]) for name in make}


@pytest.mark.parametrize("library", ["torchdeepretina", "imgclass"])
def test_training_is_bit_identical_for_any_number_of_readers(
    configurations: dict[str, Callable[..., Any]],
    train: Callable[..., Any],
    last_state: Callable[..., Any],
    same: Callable[[Any, Any], bool],
    library: str,
) -> None:
    """Weights, metrics and checkpoints of 0, 2 and 4 readers are equal."""
    states, rows, tests = [], [], []
    for n_workers in (0, 2, 4):
        hyps = configurations[library](n_workers=n_workers)
        (folder,) = train([hyps])
        state = last_state(folder)
        assert state["hyps"].pop("n_workers") == n_workers
        assert folder.read()["state"] == "done"
        states.append(state)
        rows.append([row | {"time_s": 0} for row in folder.epochs.read()])
        tests.append(folder.read()["test"])
    assert len(rows[0]) == 2
    assert len(tests[0]) >= 2
    for state, row, test in zip(states[1:], rows[1:], tests[1:], strict=True):
        assert same(state, states[0])
        assert same(row, rows[0])
        assert same(test, tests[0])


@pytest.mark.parametrize("library", ["torchdeepretina", "imgclass"])
@pytest.mark.parametrize("batch_size", [7, 16, 1000])
def test_batches_of_a_split_are_the_same_read_ahead(
    configurations: dict[str, Callable[..., Any]],
    reading: Callable[..., Readers],
    same: Callable[[Any, Any], bool],
    library: str,
    batch_size: int,
) -> None:
    """Inputs and targets of an epoch are equal with and without readers."""
    hyps = configurations[library]()
    trainer = libraries()[library].load_trainer()
    split = trainer.open_data(hyps, torch.device("cpu")).train
    order = epoch_order(3, 1, len(split))
    readers = reading(split.rows, 2)
    ahead = list(in_batches(split, batches(order, batch_size), readers))
    direct = list(in_batches(split, batches(order, batch_size), None))
    assert sum(map(len, direct)) == len(split)
    for one, other in zip(ahead, direct, strict=True):
        assert same(one.inputs, other.inputs)
        assert same(one.targets, other.targets)


class Watch:
    """Looks at this process's readers at each step of a training."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.others = readers_of_this_process()
        self.pids: list[set[int]] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "step":
            self.pids.append(readers_of_this_process() - self.others)

    def should_stop(self) -> bool:
        return len(self.pids) == self.stop_at


def readers_of_this_process() -> set[int]:
    """Numbers of the live reader processes that this process started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            pid = int(folder.name)
            is_ours = b"gridrun.readers" in command and parent_of(pid) == os.getpid()
            if is_ours and is_alive(pid):
                found.add(pid)
    return found


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_n_workers_processes_read_during_training(
    configurations: dict[str, Callable[..., Any]],
    train: Callable[..., Any],
    n_workers: int,
) -> None:
    """The same n_workers processes live in every step, and none after training."""
    watch = Watch()
    hyps = configurations["torchdeepretina"](n_workers=n_workers)
    train([hyps], report=watch)
    assert {len(pids) for pids in watch.pids} == {n_workers}
    assert all(pids == watch.pids[0] for pids in watch.pids)
    assert readers_of_this_process() == watch.others


def test_an_interruption_closes_the_readers(
    configurations: dict[str, Callable[..., Any]],
    make_folder: Callable[[Any], Any],
    train: Callable[..., Any],
) -> None:
    """A stop in the middle of an epoch leaves no process, and the run interrupted."""
    watch = Watch(stop_at=3)
    hyps = configurations["torchdeepretina"](n_workers=2)
    folder = make_folder(hyps)
    with pytest.raises(Interrupted):
        train([hyps], [folder], watch.should_stop, watch)
    assert [len(pids) for pids in watch.pids] == [2, 2, 2]
    assert readers_of_this_process() == watch.others
    assert folder.read()["state"] == "interrupted"


def test_n_workers_is_no_part_of_a_run(
    configurations: dict[str, Callable[..., Any]],
) -> None:
    """Runs that differ in it have one identity, but no common stream of batches."""
    for make in configurations.values():
        hyps = [make(n_workers=n) for n in (0, 2)]
        specs = [make_spec(one, {}, 0, one.seed, ()) for one in hyps]
        assert specs[0].identity == specs[1].identity
        assert specs[0].point == specs[1].point
        assert cohort_key(hyps[0]) != cohort_key(hyps[1])


@pytest.mark.parametrize("library", ["torchdeepretina", "imgclass"])
def test_a_notice_says_when_readers_do_not_help(
    configurations: dict[str, Callable[..., Any]],
    monkeypatch: pytest.MonkeyPatch,
    library: str,
) -> None:
    """Readers of data that fit in memory are noticed; none, or larger data, are not."""
    text = "n_workers: the data fit in memory, where 0 is faster"
    trainer = libraries()[library].load_trainer()
    with_readers, without = (configurations[library](n_workers=n) for n in (2, 0))
    info = trainer.inspect_data(with_readers)
    assert text in trainer.notices(with_readers, info)
    assert text not in trainer.notices(without, info)
    monkeypatch.setattr(
        "gridrun.training.trainer.available_memory", lambda: 2 * info.n_bytes
    )
    assert text not in trainer.notices(with_readers, info)


@pytest.mark.parametrize("library", ["torchdeepretina", "imgclass"])
def test_size_of_the_data_is_that_of_both_inputs(
    configurations: dict[str, Callable[..., Any]], library: str
) -> None:
    """Bytes are counted as stored: train and test."""
    info = libraries()[library].load_trainer().inspect_data(configurations[library]())
    name = "stimulus" if library == "torchdeepretina" else "images"
    with h5py.File(info.files[0]) as file:
        expected = sum(file[f"{split}/{name}"].nbytes for split in ("train", "test"))
    assert info.n_bytes == expected
