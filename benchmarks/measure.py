"""Runs and times commands, and what the groups of benchmarks share."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
GRIDRUN = (sys.executable, str(ROOT / "training_scripts" / "main.py"))
# any other subcommand; tells on stderr whether torch was imported
COMMAND = (
    sys.executable,
    "-c",
    "import sys; from gridrun.cli import main; code = main(sys.argv[1:]); "
    "sys.stderr.write('torch imported\\n' if 'torch' in sys.modules else ''); "
    "sys.exit(code)",
)

# a small process between: the peak memory of a child starts with that of its parent
MEASURE = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
wall_s = time.perf_counter() - started
code = process.returncode = os.waitstatus_to_exitcode(status)
cpu_s = usage.ru_utime + usage.ru_stime
with open(sys.argv[1], "w") as file:
    json.dump([wall_s, cpu_s, usage.ru_maxrss, code], file)
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the benchmarks are run.

    Args:
        is_quick: Whether sizes are cut for a smoke run.
        folder: For everything that is made on the way.
        peer_python: The interpreter that has the peers installed.
        note: Called with what is being done.
    """

    is_quick: bool
    folder: Path
    peer_python: str = sys.executable
    note: Callable[[str], None] = lambda text: None


@dataclasses.dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Args:
        wall_s, cpu_s: Wall-clock time, and processor time with its children.
        peak_mib: Largest resident size of one of its processes.
        code: Exit code.
        stdout, stderr: What it said.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float
    code: int
    stdout: str
    stderr: str

    def checked(self) -> Finished:
        """Itself.

        Raises:
            RuntimeError: If the command failed.
        """
        if self.code:
            raise RuntimeError(f"exit code {self.code}: {self.stderr[-2000:]}")
        return self


def run_command(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Finished:
    """Run a command to its end and measure it, start-up included."""
    given = os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.NamedTemporaryFile() as figures,
    ):
        command = [sys.executable, "-S", "-c", MEASURE, figures.name, *arguments]
        subprocess.run(command, stdout=out, stderr=err, env=given, check=True)
        wall_s, cpu_s, peak, code = json.loads(figures.read())
        out.seek(0)
        err.seek(0)
        return Finished(
            wall_s=wall_s,
            cpu_s=cpu_s,
            peak_mib=peak / (2**20 if sys.platform == "darwin" else 2**10),
            code=code,
            stdout=out.read().decode(errors="replace"),
            stderr=err.read().decode(errors="replace"),
        )


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def resident_mib() -> float:
    """Resident size of this process now; its peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_mib()
    n_pages = int(statm.read_text(encoding="ascii").split()[1])
    return n_pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def median(values: Sequence[float]) -> float:
    """The median; single slow measurements do not move it."""
    return statistics.median(values)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread inside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed_s(work: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
