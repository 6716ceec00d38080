"""Commands in processes that are forked from one which has loaded torch.

Each is `gridrun ...` in a process group of its own, killed or failed on purpose as
asked; a trial takes a tenth of the time of a fresh interpreter's.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KILL = -1
SABOTAGE = str(Path(__file__).parent / "sabotage")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: Exit code; negative for a signal.
        errors: What it wrote to stderr.
        n_calls: Changes of files that it made below the watched folder, if it could
            still tell.
        seconds: It took.
    """

    code: int
    errors: str
    n_calls: int
    seconds: float


class Nursery:
    """Starts commands; leave with `close`.

    Args:
        shim: The compiled shim.c.
        modules: Imported before the first command.
    """

    def __init__(self, shim: Path, modules: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(shim), *modules],
            env={
                **os.environ,
                "LD_PRELOAD": str(shim),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([SABOTAGE, *filter(None, sys.path)]),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *arguments: object,
        root: Path,
        at: int = 0,
        how: int = KILL,
        repeats: bool = False,
        kill_after_s: float | None = None,
        hook: str = "",
    ) -> Ended:
        """Run `gridrun` with arguments.

        Args:
            arguments: Of the command line.
            root: Folder whose changes are counted.
            at: Which of them is struck, from 1; 0: none.
            how: KILL, or the number of the error that it gives.
            repeats: Whether all later ones give the error too.
            kill_after_s: SIGKILL to the group after so long.
            hook: `module:function` called in the process first.
        """
        order = {
            "arguments": [str(argument) for argument in arguments],
            "root": f"{root}/",
            "at": at,
            "how": how,
            "repeats": repeats,
            "kill_after_s": kill_after_s,
            "hook": hook,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def build_shim(folder: Path) -> Path:
    """Compile shim.c."""
    path = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(path), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return path


def main() -> None:
    """Entry of the nursery: load, then a child for every line of stdin."""
    shim = ctypes.CDLL(sys.argv[1])
    import torch

    from gridrun.plugins import libraries, load_object
    from gridrun.training.schedules import load_optimizers

    torch.set_num_threads(1)
    for module in sys.argv[2:]:
        __import__(module)
    for library in libraries().values():
        library.load_trainer()
        if library.models:
            __import__(library.models)
    load_optimizers()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as count:
            started = time.perf_counter()
            pid = os.fork()
            if pid == 0:
                _be_command(order, shim, errors.fileno(), count.fileno(), load_object)
            code = _wait(pid, order["kill_after_s"])
            seconds = time.perf_counter() - started
            errors.seek(0)
            count.seek(0)
            text = errors.read().decode(errors="replace")
            ended = Ended(code, text, int(count.read() or 0), seconds)
        answers.write(json.dumps(dataclasses.asdict(ended)) + "\n")
        answers.flush()


def _be_command(
    order: dict[str, Any], shim: Any, errors: int, count: int, load_object: Any
) -> None:
    from gridrun.cli import main as command

    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    code = 99
    try:
        if order["hook"]:
            load_object(order["hook"])()
        root = order["root"].encode()
        shim.torture_arm(root, order["at"], order["how"], int(order["repeats"]))
        code = command(order["arguments"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001 - told to the test
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os.write(count, str(shim.torture_calls()).encode())
        os._exit(code)


def _wait(pid: int, kill_after_s: float | None) -> int:
    if kill_after_s is not None:
        until = time.perf_counter() + kill_after_s
        while time.perf_counter() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.0005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
