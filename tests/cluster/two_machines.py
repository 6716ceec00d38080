"""Two machines of Ray on one; a line on standard input removes the second.

A process of its own: the driver of a sweep is then no part of the cluster's. With a
folder as argument the second machine, where all is trained, does not see what is in it.
"""

from __future__ import annotations

import ctypes
import os
import sys

from ray.cluster_utils import Cluster

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


def hide(folder: str) -> None:
    """Let this process, and what it starts, see nothing in a folder.

    Raises:
        OSError: If that is not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    calls = [
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"none", folder.encode(), b"tmpfs", 0, None),
    ]
    for call in calls:
        if call() != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def say(text: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(hidden: str | None) -> None:
    """Be the cluster until standard input ends."""
    n_cpus = 0 if hidden else 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": n_cpus})
    try:
        if hidden:
            hide(hidden)
        second = cluster.add_node(num_cpus=2 - n_cpus)
        say(cluster.address)
        if sys.stdin.readline():
            cluster.remove_node(second, allow_graceful=False)
            sys.stdin.read()
    except OSError as error:
        say(f"not allowed: {error}")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
