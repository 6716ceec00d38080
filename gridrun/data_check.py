"""What is in a data file, and every defect of it: for `gridrun data check`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from gridrun.config import data_root, suggest
from gridrun.errors import DataError
from gridrun.hdf5 import chunks, open_file
from gridrun.plugins import libraries, load_object


@dataclasses.dataclass
class Report:
    """What a check found.

    Args:
        path: The file.
        facts: What is in it, as plain data.
        lines: The same for people.
        problems: What keeps it from being trained on.
        warnings: What is odd.
    """

    path: Path
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def verdict(self) -> str:
        """One line."""
        if self.problems:
            return f"{len(self.problems)} error{'s' * (len(self.problems) > 1)}"
        if not self.facts:
            return "not checked"
        if self.warnings:
            return f"OK, {len(self.warnings)} warning{'s' * (len(self.warnings) > 1)}"
        return "OK"


Check = Callable[[Path, Any], Report | None]


def as_json(report: Report) -> dict[str, Any]:
    """A report as plain data."""
    found = dataclasses.asdict(report) | {"path": str(report.path)}
    del found["lines"]
    return found | {"verdict": report.verdict}


def files_of(named: str, given_root: str | None) -> list[Path]:
    """The files of a path or of a data set.

    Raises:
        DataError: If there are none.
    """
    path = Path(named).expanduser()
    if path.is_file():
        return [path]
    root = Path(data_root(given_root)[0])
    folder = path if path.is_dir() else root / named
    if not folder.is_dir():
        there = [one.name for one in root.iterdir()] if root.is_dir() else []
        raise DataError(f"{named}: no such file, nor in {root}{suggest(named, there)}")
    found = sorted(folder.glob("*.h5"))
    if not found:
        raise DataError(f"{folder}: holds no .h5 file")
    return found


def check_file(path: Path) -> Report:
    """The report of the library whose kind of file it is."""
    try:
        with open_file(path) as file:
            for library in libraries().values():
                if not library.data_check:
                    continue
                report = cast(Check, load_object(library.data_check))(path, file)
                if report is not None:
                    return report
            held = ", ".join(f"/{name}" for name in file) or "nothing"
            report = Report(path)
            report.lines.append(f"not checked: no data to train on; holds {held}")
            return report
    except DataError as error:
        return Report(path, problems=list(error.problems))
    except (OSError, KeyError, RuntimeError, MemoryError, ValueError) as error:
        return Report(path, problems=[f"cannot be read: {error}"])


class Scan:
    """Range, mean, s.d. and SHA-256 of an array seen in parts."""

    def __init__(self) -> None:
        self._n, self._sum, self._squares = 0, 0.0, 0.0
        self._low, self._high = np.inf, -np.inf
        self._hash = hashlib.sha256()

    def add(self, part: Any) -> None:
        """Take in a part."""
        self._hash.update(np.ascontiguousarray(part).tobytes())
        values = part.astype(np.float64)
        self._n += values.size
        self._sum += float(values.sum())
        self._squares += float(np.square(values).sum())
        self._low = min(self._low, float(values.min()))
        self._high = max(self._high, float(values.max()))

    def facts(self) -> dict[str, Any]:
        """What was seen."""
        mean = self._sum / max(self._n, 1)
        variance = max(self._squares / max(self._n, 1) - mean**2, 0.0)
        return {
            "min": self._low,
            "max": self._high,
            "mean": mean,
            "sd": variance**0.5,
            "sha256": self._hash.hexdigest(),
        }


def array_hashes(file: Any, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the values of each array, read in parts."""
    found = {}
    for name in names:
        scan = hashlib.sha256()
        for _, part in chunks(file[name]):
            scan.update(np.ascontiguousarray(part).tobytes())
        found[name] = scan.hexdigest()
    return found


def size_text(n_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"
