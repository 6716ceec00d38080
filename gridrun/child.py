"""Child processes: fresh interpreters that run a module of this package."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any


def start_child(
    module: str, threads: int
) -> tuple[subprocess.Popen[bytes], Connection[Any, Any]]:
    """Run `python -m module <descriptor>` and connect to it.

    Not `multiprocessing`, which would import the caller's main script again.

    Args:
        module: Its last argument is the descriptor of its end of the connection.
        threads: CPU threads of numerical libraries.
    """
    connection, other = multiprocessing.Pipe()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(other.fileno())],
        pass_fds=[other.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    other.close()
    return process, connection
