"""What a diagnostic found, as files that can be read without our code; no torch."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gridrun.durable import sync_folder, write_durably, write_json, writing

MAX_LISTED = 100  # numbers of an array that stand in the JSON file itself
DPI = 120


def save_result(folder: Path, name: str, epoch: int, found: Mapping[str, Any]) -> None:
    """Write what was found; the same names and content at a second time.

    `<name>_<epoch>.json` holds scalars and short arrays, and names the files of the
    rest: `<name>_<epoch>.npz`, and a PNG for each figure. It is written last: where it
    is, all is. Numbers that are not finite are the texts nan, inf and -inf.

    Args:
        folder: Made if absent.
        name: Of the diagnostic.
        epoch: Epochs trained.
        found: Name to number, array or matplotlib figure.

    Raises:
        TypeError: For a value of another kind.
        StorageError: If the disk is full or fails.
    """
    stem = f"{name}_{epoch:04d}"
    record: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    figures: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, np.ndarray) and value.size > MAX_LISTED:
            arrays[_plain(key)] = _checked(name, key, value)
            record[key] = {"file": f"{stem}.npz", "shape": list(value.shape)}
        elif hasattr(value, "savefig"):
            figures[f"{stem}_{_plain(key)}.png"] = value
            record[key] = {"file": f"{stem}_{_plain(key)}.png"}
        else:
            record[key] = _json_value(_checked(name, key, value).tolist())
    _make_folder(folder)
    if arrays:
        write_durably(folder / f"{stem}.npz", _npz_bytes(arrays))
    for file, figure in figures.items():
        write_durably(folder / file, _png_bytes(figure))
    write_json(folder / f"{stem}.json", record)


def _checked(name: str, key: str, value: Any) -> NDArray[Any]:
    """A number or an array of numbers."""
    if isinstance(value, (bool, int, float, np.generic, np.ndarray)):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array
    raise TypeError(
        f"{name}: {key}: expected a number, an array of numbers or a matplotlib "
        f"figure; got {type(value).__name__}"
    )


def _json_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_value(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _plain(key: str) -> str:
    """A key as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", key)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)


def _npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    content = io.BytesIO()
    keys: Any = arrays
    np.savez_compressed(content, **keys)
    return content.getvalue()


def _png_bytes(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()
