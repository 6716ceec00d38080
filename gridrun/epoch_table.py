"""Tables of a run that grow by the epoch: metrics, evaluations, batches; no torch."""

from __future__ import annotations

import csv
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gridrun.durable import sync_folder, write_durably, writing
from gridrun.errors import StoreError


@dataclasses.dataclass(frozen=True)
class EpochTable:
    """A CSV file that rows are added to, and that is cut back on resuming.

    Args:
        path: The file. The column `epoch` comes first.
    """

    path: Path

    def append(self, rows: Sequence[Mapping[str, float | int]]) -> None:
        """Add rows, on disk when this returns."""
        with (
            writing(self.path),
            self.path.open("a+", encoding="utf-8", newline="") as file,
        ):
            file.seek(0)
            columns = next(csv.reader(file), None)
            writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
            if columns is None:
                writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        if columns is None:
            sync_folder(self.path.parent)

    def read(self) -> list[dict[str, float]]:
        """All complete rows, by column.

        Raises:
            StoreError: If the file is damaged.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise StoreError(f"{self.path}: damaged: {error}") from error
        complete = text[: text.rfind("\n") + 1].splitlines()
        names, *lines = list(csv.reader(complete)) or [[]]
        names = [sys.intern(name) for name in names]
        rows = []
        try:
            for line in lines:
                row = dict(zip(names, map(float, line), strict=True))
                rows.append(row | {"epoch": int(row["epoch"])})
        except (ValueError, KeyError) as error:
            raise StoreError(f"{self.path}: damaged: {error}") from error
        return rows

    def cut(self, epoch: int) -> None:
        """Drop rows after an epoch, and one that was not wholly written."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        header, *lines = text.splitlines(keepends=True) or [""]
        kept = [
            line for line in lines if line.endswith("\n") and _epoch_of(line) <= epoch
        ]
        if not kept:
            with writing(self.path):
                self.path.unlink()
        elif kept != lines:
            write_durably(self.path, "".join([header, *kept]))


def _epoch_of(line: str) -> float:
    try:
        return int(line.partition(",")[0])
    except ValueError:  # damaged: not kept
        return float("inf")
