"""Bounds the memory of a command, so that a file that fills it is found."""

import resource

MORE_BYTES = 2**30


def memory() -> None:
    """Allow a GiB more than what is mapped already."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MORE_BYTES, mapped + MORE_BYTES))
