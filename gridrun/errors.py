"""The errors that a person can mend; each message says what, where and how."""

from __future__ import annotations

import signal
from collections.abc import Sequence


class GridrunError(Exception):
    """Base of all errors that gridrun raises on purpose.

    Args:
        problems: One text or several; all of them are shown together.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(GridrunError, ValueError):
    """A hyperparameter, a range, an option or their combination is wrong."""


class DataError(GridrunError):
    """A data file is absent, damaged or does not fit the configuration."""


class StoreError(GridrunError):
    """A sweep folder cannot be read or written as asked."""


class StorageError(GridrunError):
    """A file of a sweep cannot be written: a full or failing disk, or no permission.

    Args:
        problems: Of the base class; they name the file and the cause.
    """


class ClusterError(GridrunError):
    """The engine of a cluster does not answer, or refuses jobs."""


class SweepStopped(GridrunError):
    """A signal stopped a sweep; asking again continues it.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; the same command continues")


class CheckpointError(GridrunError):
    """A checkpoint is absent, damaged or does not fit its model."""
