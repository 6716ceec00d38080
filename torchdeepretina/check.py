"""What is in the file of a recording, for `gridrun data check`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from gridrun.analysis.tables import text_table
from gridrun.data_check import Report, Scan, array_hashes, size_text
from gridrun.hdf5 import find_array, members, type_of
from torchdeepretina import metrics
from torchdeepretina.centers import Centers, sta_peaks
from torchdeepretina.recordings import (
    RESPONSE_TYPES,
    SPLITS,
    Floats,
    Recording,
)
from torchdeepretina.windows import window_starts

N_LAGS = 40
FAR_PX = 3.0


def check_recording(path: Path, file: Any) -> Report | None:
    """Everything about a recording; None if the file is something else."""
    names = {*file, *members(file, "train"), *members(file, "test")}
    if not names & {"stimulus", "response"}:
        return None
    recording = Recording(path, file)
    report = Report(path, problems=recording.problems, warnings=recording.warnings)
    facts = report.facts
    facts["kind"] = "recording"
    facts["dt_s"] = recording.dt_s
    facts["sha256"] = {}
    for split in SPLITS:
        facts[split] = _movie(recording, split, facts["sha256"])
    sides = [facts[split].get("frame_shape") for split in SPLITS]
    if None not in sides and sides[0] != sides[1]:
        recording.problems.append(
            f"/train/stimulus has frames of {sides[0]}, /test/stimulus of {sides[1]}"
        )
    responses = {split: _responses(recording, split, facts) for split in SPLITS}
    n_cells = {len(r) for found in responses.values() for r in found.values()}
    if len(n_cells) > 1:
        recording.problems.append(
            f"responses of different types or splits have {sorted(n_cells)} cells"
        )
    if len(n_cells) == 1 and all(responses.values()):
        _cells(recording, responses, facts)
        if facts["train"].get("blocks"):
            _windows(facts)
    other = _other_arrays(recording, set(facts["sha256"]))
    facts["sha256"] |= array_hashes(file, other)
    report.lines = _lines(facts)
    return report


def _movie(recording: Recording, split: str, hashes: dict[str, str]) -> dict[str, Any]:
    data = recording.stimulus(split, None)
    if data is None or not data.size:
        return {"n_frames": 0}
    scan = Scan()
    name = f"/{split}/stimulus"
    recording.check_grey(name, data, needs_bytes=False, visit=scan.add)
    facts = scan.facts()
    hashes[name.strip("/")] = facts.pop("sha256")
    n_frames, height, width = data.shape
    facts |= {"n_frames": n_frames, "frame_shape": [height, width]}
    facts |= {"dtype": str(data.dtype), "n_bytes": data.size * data.dtype.itemsize}
    time = recording.time(split, n_frames)
    if time is None:
        return facts
    facts["duration_s"] = n_frames * recording.dt_s
    blocks = [(0, n_frames)]
    if split == "train":
        blocks = recording.blocks(recording.path.parent.name, n_frames, time)
    facts["blocks"] = [list(block) for block in blocks]
    recording.check_steps(split, time, [first for first, _ in blocks])
    return facts


def _responses(
    recording: Recording, split: str, facts: dict[str, Any]
) -> dict[str, Floats]:
    """Every response type that the file holds."""
    held = members(recording.file, f"{split}/response")
    kinds = [kind for kind in RESPONSE_TYPES if kind in held]
    n_frames = facts[split]["n_frames"]
    if not kinds:
        recording.array(f"/{split}/response/{RESPONSE_TYPES[2]}", 2)
    found = {kind: recording.response(split, kind, n_frames) for kind in kinds}
    return {kind: values for kind, values in found.items() if values is not None}


def _cells(
    recording: Recording,
    responses: dict[str, dict[str, Floats]],
    facts: dict[str, Any],
) -> None:
    train, test = responses["train"], responses["test"]
    n_cells = len(next(iter(train.values())))
    repeats = None
    for kind in ("firing_rate_10ms", *test):
        if repeats is None and kind in test:
            n_warnings = len(recording.warnings)
            repeats = recording.repeats(kind, test, facts["test"]["n_frames"])
            if repeats is not None:
                facts["repeats"] = {"n": len(repeats), "response_type": kind}
            else:
                odd = recording.warnings[n_warnings:]
                del recording.warnings[n_warnings:]
                facts["repeats"] = {"n": 0, "why": odd[-1] if odd else "none stored"}
    held = members(recording.file, "test/repeats")
    if repeats is not None:
        kind = facts["repeats"]["response_type"]
        by_type = "one array per response type"
        facts["repeats"]["layout"] = by_type if kind in held else "one array per cell"
    shape = tuple(facts["train"].get("frame_shape", (0, 0)))
    centers, origin = recording.centers(
        recording.path.parent.name, n_cells, shape, by_sta=True
    )
    peaks = sta_peaks(recording.path.with_name("whitenoise.h5"), shape)
    facts["centers_from"] = origin if centers else "nowhere"
    dt_s = recording.dt_s
    rates = train.get("firing_rate_10ms", next(iter(train.values())))
    spikes = train.get("binned", rates * dt_s)
    ceiling = _ceiling(repeats, n_cells)
    facts["cells"] = []
    for cell in range(n_cells):
        row: dict[str, Any] = {
            "cell": cell,
            "spikes": float(spikes[cell].sum()),
            "mean_hz": float(spikes[cell].mean() / dt_s),
            "peak_hz": float(rates[cell].max()),
            "explainable": ceiling["explainable"][cell],
            "cc_max": ceiling["cc_max"][cell],
            "centre": list(centers[cell]) if cell in centers else None,
        }
        row["from_sta_px"] = _distance(cell, centers, peaks)
        facts["cells"].append(row)
        far = row["from_sta_px"]
        if far is not None and far > FAR_PX:
            recording.warnings.append(
                f"the centre of cell {cell}, {row['centre']} from {origin}, is "
                f"{far:.1f} px from the peak of its STA, {list(peaks[cell])}"
            )
    silent = [row["cell"] for row in facts["cells"] if not row["spikes"]]
    if silent:
        recording.warnings.append(f"cells {silent} never fire in /train: r counts as 0")


def _ceiling(repeats: Floats | None, n_cells: int) -> dict[str, list[float | None]]:
    if repeats is None:
        return {"explainable": [None] * n_cells, "cc_max": [None] * n_cells}
    values = torch.from_numpy(repeats.swapaxes(1, 2).copy())
    found = {
        "explainable": metrics.explainable_fraction(values),
        "cc_max": metrics.largest_correlation(values),
    }
    return {
        name: [None if math.isnan(v) else v for v in one.tolist()]
        for name, one in found.items()
    }


def _distance(cell: int, centers: Centers, peaks: Centers) -> float | None:
    if cell not in centers or cell not in peaks:
        return None
    return float(np.hypot(*np.subtract(centers[cell], peaks[cell])))


def _windows(facts: dict[str, Any]) -> None:
    """How much there is to train on, at 40 frames of history."""
    train, test = facts["train"], facts["test"]
    starts = window_starts([tuple(block) for block in train["blocks"]], N_LAGS, 1)
    n_test = max(test["n_frames"] - N_LAGS, 0)
    pixels = train["frame_shape"][0] * train["frame_shape"][1]
    n_frames = train["n_frames"] + test["n_frames"]
    facts["windows"] = {"n_lags": N_LAGS, "train": len(starts), "test": n_test}
    facts["memory_bytes"] = {
        "stored": train["n_bytes"] + test.get("n_bytes", 0),
        "float32": n_frames * pixels * 4,
        "copied_windows": (len(starts) + n_test) * N_LAGS * pixels * 4,
    }


def _other_arrays(recording: Recording, known: set[str]) -> list[str]:
    """Arrays of numbers that can be read; others are warned of, unless errors."""
    names: list[str] = []

    def visit(name: str, node: Any) -> None:
        if not isinstance(node, h5py.Dataset) or not node.ndim or name in known:
            return
        dtype = type_of(node)
        if dtype is None or dtype.kind not in "iuf":
            return
        found = find_array(recording.file, f"/{name}", node.ndim)
        if not isinstance(found, str):
            names.append(name)
        elif found not in recording.problems:
            recording.warnings.append(found)

    recording.file.visititems(visit)
    return names


def _lines(facts: dict[str, Any]) -> list[str]:
    cells = facts.get("cells", [])
    lines = [f"recording of {len(cells)} cells, bins of {facts['dt_s'] * 1000:g} ms"]
    for split in SPLITS:
        one = facts[split]
        if "frame_shape" not in one:
            continue
        n_blocks = len(one.get("blocks", []))
        blocks = (
            f", {n_blocks} block{'s' * (n_blocks != 1)}" if split == "train" else ""
        )
        lines.append(
            f"{split:5}  {one['n_frames']:,} frames of "
            f"{one['frame_shape'][0]}×{one['frame_shape'][1]} {one['dtype']}, "
            f"{one.get('duration_s', 0):.1f} s{blocks}; grey "
            f"{one['min']:g} to {one['max']:g}, mean {one['mean']:.1f}, "
            f"s.d. {one['sd']:.1f}"
        )
    repeats = facts.get("repeats")
    if repeats and repeats["n"]:
        lines.append(
            f"{repeats['n']} repeats of {repeats['response_type']}, {repeats['layout']}"
        )
    elif repeats:
        lines.append(f"no noise ceiling: {repeats['why']}")
    if cells:
        lines.append(f"centres from {facts['centers_from']}")
        shown = [
            {
                "cell": row["cell"],
                "spikes": round(row["spikes"]),
                "mean Hz": row["mean_hz"],
                "peak Hz": row["peak_hz"],
                "explainable": row["explainable"],
                "CC_max": row["cc_max"],
                "centre": None if row["centre"] is None else str(row["centre"]),
                "px from STA": row["from_sta_px"],
            }
            for row in cells
        ]
        lines += text_table(shown).splitlines()
    if "windows" in facts:
        windows, memory = facts["windows"], facts["memory_bytes"]
        lines.append(
            f"windows of {windows['n_lags']} frames: {windows['train']:,} train, "
            f"{windows['test']:,} test"
        )
        lines.append(
            f"memory: {size_text(memory['stored'])} as stored, "
            f"{size_text(memory['float32'])} as float32, "
            f"{size_text(memory['copied_windows'])} if windows were copied"
        )
    lines += [
        f"sha256 {value[:16]}…  {name}" for name, value in facts["sha256"].items()
    ]
    return lines
