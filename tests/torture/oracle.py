"""What two sweeps must have in common to count as the same, by content."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import torch

PLACES = {"save_root", "executor", "executor_args", "workers", "cohort_size"}
PLACES |= {"max_attempts", "hang_timeout_s", "claim_timeout_s"}
TIMES = {"time_s", "duration_s"}


def contents(sweep: Path) -> dict[str, Any]:
    """SHA-256 of each checkpoint's content, metrics and tables; places and times aside.

    An archive's own bytes are not compared: torch writes the file's name into them.
    """
    found: dict[str, Any] = {}
    for path in sorted(sweep.glob("*/checkpoints/*.pt")):
        state = _plain(torch.load(path, weights_only=True))
        found[f"{path.parent.parent.name}/{path.name}"] = _digest(state)
    for name in ("metrics.csv", "batches.csv", "evaluations.csv"):
        for path in sorted(sweep.glob(f"*/{name}")):
            found[f"{path.parent.name}/{name}"] = _table(path)
    for path in sorted(sweep.glob("*/examples.h5")):
        with h5py.File(path) as file:
            arrays = {name: file[name][:].tobytes() for name in file}
        found[f"{path.parent.name}/examples"] = _digest(arrays)
    for path in sorted(sweep.glob("*/diagnostics/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[f"{path.parent.parent.name}/{path.name}"] = _plain(result)
    for path in sorted(sweep.glob("*/checkpoints/index.json")):
        index = json.loads(path.read_text(encoding="utf-8"))
        found[f"{path.parent.parent.name}/index"] = (index["last"], index["best"])
    for path in sorted(sweep.glob("*/hyperparams.json")):
        hyps = json.loads(path.read_text(encoding="utf-8"))
        found[f"{path.parent.name}/hyperparams"] = _plain(hyps)
    for name in ("results.csv", "summary.csv"):
        found[name] = _table(sweep / name)
    return found


def assert_same(sweep: Path, expected: dict[str, Any]) -> None:
    """The sweep is finished and as expected, and nothing is left lying about."""
    found = contents(sweep)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name
    left = list(sweep.rglob(".*")) + list(sweep.rglob("claim"))
    assert not left
    for path in sweep.glob("*/run.json"):
        assert json.loads(path.read_text(encoding="utf-8"))["state"] == "done"


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in PLACES | TIMES}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
