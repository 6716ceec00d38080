"""Processes that read batches ahead of the one that trains; no torch.

Each is started as `python -m gridrun.readers <descriptor>`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import queue
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridrun.child import start_child
from gridrun.hdf5 import mapped_array

logger = logging.getLogger(__name__)
DEPTH = 2  # batches that each process is ahead
Starts = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Samples that are consecutive rows of one array in a file.

    Args:
        path, name, dtype, cache: As in `gridrun.hdf5.mapped_array`.
        span: Rows of a sample.
    """

    path: Path
    name: str
    dtype: str
    cache: Path
    span: int = 1

    def open(self) -> NDArray[Any]:
        """The samples as a view (N, span, ...), or (N, ...) for a span of one row."""
        array = mapped_array(self.path, self.name, self.dtype, self.cache)
        if self.span == 1:
            return array
        windows = np.lib.stride_tricks.sliding_window_view(array, self.span, axis=0)
        return np.moveaxis(windows, -1, 1)


class Readers:
    """Reader processes for one array; leave with `close`.

    Args:
        rows: What they read.
        n: Number of processes.
    """

    def __init__(self, rows: Rows, n: int) -> None:
        self.rows = rows
        self._children = [start_child("gridrun.readers", threads=1) for _ in range(n)]
        self._waiting: collections.deque[tuple[int, Starts]] = collections.deque()
        self._own: NDArray[Any] | None = None
        for _, connection in self._children:
            with contextlib.suppress(OSError):
                connection.send(rows)

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        return [process.pid for process, _ in self._children]

    def read(self, batches: Iterable[Starts]) -> Iterator[NDArray[Any]]:
        """The samples that start at the given rows, batch by batch, in order.

        A batch whose reader has died is read here.
        """
        waiting = self._waiting
        while waiting:  # left by an iteration that was given up
            self._received(*waiting.popleft())
        for number, starts in enumerate(batches):
            child = number % len(self._children)
            with contextlib.suppress(OSError):
                self._children[child][1].send(starts)
            waiting.append((child, starts))
            if len(waiting) >= DEPTH * len(self._children):
                yield self._received(*waiting.popleft())
        while waiting:
            yield self._received(*waiting.popleft())

    def _received(self, child: int, starts: Starts) -> NDArray[Any]:
        try:
            found: NDArray[Any] | Exception = self._children[child][1].recv()
        except (EOFError, OSError):
            if self._own is None:
                logger.warning("a process that reads ahead has died; reading goes on")
                self._own = self.rows.open()
            return np.ascontiguousarray(self._own[starts])
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """End the processes."""
        for process, connection in self._children:
            connection.close()
            process.kill()
            process.wait()


def main() -> None:
    """Entry of a reader process: ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
    arguments = (connection, sent)
    threading.Thread(target=_receive, args=arguments, daemon=True).start()
    samples: NDArray[Any] | None = None
    rows: Rows | None = sent.get()
    while rows is not None and (starts := sent.get()) is not None:
        try:
            samples = rows.open() if samples is None else samples
            answer: Any = np.ascontiguousarray(samples[starts])
        except Exception as error:  # noqa: BLE001 - told to the parent
            answer = error
        try:
            connection.send(answer)
        except OSError:
            return


def _receive(connection: Connection[Any, Any], sent: queue.SimpleQueue[Any]) -> None:
    """Take all that the parent sends, so that it never waits; at its end, None."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            sent.put(connection.recv())
    sent.put(None)


if __name__ == "__main__":
    main()
