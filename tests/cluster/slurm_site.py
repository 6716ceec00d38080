"""A cluster of one machine, run by the real Slurm."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MaxArraySize=100
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here, if there cannot."""
    absent = [n for n in PROGRAMS if shutil.which(n, path=search_path()) is None]
    if absent:
        names = ", ".join(absent)
        return f"no {names}: apt-get install slurm-wlm munge (.ci/run does, as root)"
    if importlib.util.find_spec("submitit") is None:
        return "no submitit: pip install submitit"
    return None if os.geteuid() == 0 else "Slurm's daemons are started by root only"


def search_path() -> str:
    """PATH with the folders of daemons."""
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


class SlurmSite:
    """A running Slurm.

    Args:
        folder: Of its configuration, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints; it must succeed."""
        environment = {**os.environ, **self.variables}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def jobs(self, *states: str) -> list[str]:
        """Ids of jobs in these states."""
        form = ["--noheader", "--array", "--format=%i", f"--states={','.join(states)}"]
        return self.ask("squeue", *form).split()

    def is_up(self) -> bool:
        """Whether jobs can start."""
        try:
            return self.ask("sinfo", "--noheader", "--format=%T") == "idle"
        except AssertionError:
            return False


@contextlib.contextmanager
def running_site(folder: Path) -> Iterator[SlurmSite]:
    """Start munged, slurmctld and slurmd; stop them in the end."""
    site = SlurmSite(folder)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    (folder / "cgroup.conf").write_text("")
    text = CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0], folder=folder, ports=free_ports(2)
    )
    (folder / "slurm.conf").write_text(text)
    munge = [f"--{n}-file={folder}/munge.{n}" for n in ("key", "log", "pid", "seed")]
    commands = [
        [
            "munged",
            "--foreground",
            "--force",
            f"--socket={folder}/munge.socket",
            *munge,
        ],
        ["slurmctld", "-D", "-i"],
        ["slurmd", "-D"],
    ]
    daemons = []
    try:
        for command in commands:
            daemons.append(start_daemon(command, folder, site.variables))
            time.sleep(0.5)
        until = time.monotonic() + 30
        while not site.is_up():
            assert time.monotonic() < until, logs(folder)
            time.sleep(0.2)
        yield site
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=20)


def start_daemon(
    command: Sequence[str], folder: Path, variables: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start one of the three; what it says goes to a file."""
    with (folder / f"{command[0]}.out").open("wb") as out:
        environment = {**os.environ, **variables, "PATH": search_path()}
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out)


def free_ports(n: int) -> list[int]:
    """Numbers of ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def logs(folder: Path) -> str:
    """What the daemons said last."""
    paths = [*folder.glob("*.out"), *folder.glob("*.log")]
    texts = [path.read_text(errors="replace")[-2000:] for path in paths]
    return "\n".join(
        f"{path.name}: {text}" for path, text in zip(paths, texts, strict=True)
    )
