"""What the tests of the importers share: running the command, reading the result."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gridrun.cli import main


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a command did: exit code, what it said, and the file, if there is one."""

    code: int
    text: str
    path: Path

    @property
    def datasets(self) -> dict[str, Any]:
        """All data sets by path; texts as lists."""
        found: dict[str, Any] = {}

        def add(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                is_text = h5py.check_string_dtype(item.dtype) is not None
                found[name] = [*item.asstr()[:]] if is_text else item[:]

        with h5py.File(self.path) as file:
            file.visititems(add)
        return found

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the file."""
        with h5py.File(self.path) as file:
            return dict(file.attrs)

    def sha256(self, name: str) -> str:
        """SHA-256 of the levels of a data set, which must be bytes."""
        array = self.datasets[name]
        assert array.dtype == np.uint8
        return hashlib.sha256(array.tobytes()).hexdigest()

    def refused(self, *words: str) -> bool:
        """Whether it was an error that says these words, and nothing was written."""
        assert self.code == 2, self.text
        assert "error: " in self.text
        assert "Traceback" not in self.text
        for word in words:
            assert word in self.text
        assert not self.path.parent.exists()
        return True


@pytest.fixture
def run_import(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Imported]:
    """Function that runs `gridrun data import KIND ... --name set`."""

    def run(*words: Any) -> Imported:
        caplog.set_level(logging.INFO)
        caplog.clear()
        given = [*map(str, words), "--name", "set", "--data-root", str(tmp_path / "r")]
        try:
            code = main(["data", "import", *given])
        except SystemExit as stop:
            code = int(str(stop.code))
        captured = capsys.readouterr()
        assert captured.out == ""
        text = captured.err + "\n" + caplog.text
        return Imported(code, text, tmp_path / "r" / "set" / "images.h5")

    return run
