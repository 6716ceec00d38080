"""Whole grids: the command of ours against the peers, start-up included."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import GRIDRUN, Finished, Setting, median, run_command
from benchmarks.peers.__main__ import NOT_INSTALLED
from benchmarks.scenarios import (
    DENSE,
    DIGITS,
    DIGITS_AXES,
    IMAGE_AXES,
    PLAIN16,
    QUICK_DENSE,
    QUICK_RECIPE,
    RECIPE,
    RETINA_AXES,
    TINY10,
    Grid,
    image_data,
    retina_data,
)
from benchmarks.table import Row, n_cores

GROUP = "Whole grids"
PEERS = {"loop": "plain loop", "pool": "joblib pool", "tune": "Ray Tune"}


def rows(setting: Setting) -> Iterator[Row]:
    """The rows of this group, as they are measured."""
    for grid, target in grids(setting):
        yield from against_peers(grid, target, setting)
    if not setting.is_quick:
        yield from against_lightning(retina_grid(setting), setting)


def retina_grid(setting: Setting, recipe: bool = False) -> Grid:
    """12 grid points with 2 repeats each."""
    quick = QUICK_RECIPE if recipe else QUICK_DENSE
    base = (RECIPE if recipe else DENSE) | (quick if setting.is_quick else {})
    n_frames = 400 if setting.is_quick else 2600
    data = retina_data(setting.folder, n_frames, 20 if setting.is_quick else 50)
    name = "published recipe" if recipe else "BNCNN dense"
    size = {"n_epochs": 1 if setting.is_quick else 2, "n_repeats": 2}
    axes = {"lr": RETINA_AXES["lr"][:1]} if setting.is_quick else RETINA_AXES
    return Grid(name, base | data | size, axes, n_peer_runs=2 * n_cores())


def grids(setting: Setting) -> Iterator[tuple[Grid, float | None]]:
    """Every grid with the target against the best peer; one in a smoke run."""
    yield retina_grid(setting), 20.0
    if setting.is_quick:
        return
    yield retina_grid(setting, recipe=True), 4.0
    digits = DIGITS | {"n_epochs": 15, "n_repeats": 3}
    yield Grid("digits", digits, DIGITS_AXES), 1.3
    still: dict[str, Any] = {"augment": []}
    yield Grid("digits, no augmentation", digits | still, DIGITS_AXES), None
    patterns = image_data(setting.folder, 2000) | {"n_epochs": 4, "n_repeats": 2}
    yield Grid("Tiny10", TINY10 | patterns, IMAGE_AXES), 1.3
    yield Grid("Tiny10, no augmentation", TINY10 | patterns | still, IMAGE_AXES), None
    yield Grid("PlainN width 16", PLAIN16 | patterns, IMAGE_AXES), 1.3


def against_peers(grid: Grid, target: float | None, setting: Setting) -> Iterator[Row]:
    """Ours, a peer, ours, the next peer, ...; then the ratios."""
    runs = grid.runs()
    mine: list[Finished] = []
    estimates: dict[str, float] = {}
    facts: dict[str, Any] = {"runs": len(runs), "epochs": runs[0]["n_epochs"]}
    peers = {"loop": PEERS["loop"]} if setting.is_quick else PEERS
    for peer, label in peers.items():
        setting.note(f"grid {grid.name}: ours")
        finished, table = our_command(grid, setting.folder / f"ours-{time.time_ns()}")
        mine.append(finished)
        facts["val_acc_ours"] = statistics.fmean(float(r["val_acc"]) for r in table)
        setting.note(f"grid {grid.name}: {label}")
        measured = peer_command(peer, runs[: grid.n_peer_runs], setting)
        if measured is None:
            yield Row(GROUP, f"{grid.name}: {label}", None, "× not installed")
            continue
        command, results = measured
        estimates[peer] = whole_s(peer, command, results, len(runs))
        facts[f"val_acc_{peer}"] = statistics.fmean(r["val_acc"] for r in results)
        facts[f"runs_of_{peer}"] = len(results)
        facts[f"mib_{peer}"] = command.peak_mib
    ours_s = median([one.wall_s for one in mine])
    yield Row(
        GROUP,
        f"{grid.name}: ours",
        3600 * len(runs) / ours_s,
        "runs/h",
        details={"seconds": [one.wall_s for one in mine]},
    )
    for peer, seconds in estimates.items():
        yield Row(
            GROUP,
            f"{grid.name}: {PEERS[peer]}",
            3600 * len(runs) / seconds,
            "runs/h",
            details={
                "seconds": seconds,
                "timed_on_runs": facts[f"runs_of_{peer}"],
                "ours_is_faster_by": seconds / ours_s,
            },
        )
    if estimates:
        yield Row(
            GROUP,
            f"{grid.name}: against the best peer",
            min(estimates.values()) / ours_s,
            "×",
            ">=" if target else "",
            target,
            facts,
        )
    largest = max(one.peak_mib for one in mine)
    yield Row(GROUP, f"{grid.name}: memory of our largest process", largest, "MiB")


def our_command(
    grid: Grid, save_root: Path, *options: str
) -> tuple[Finished, list[dict[str, str]]]:
    """Train a grid with `gridrun run`; returns the command and results.csv."""
    save_root.mkdir(parents=True)
    pair = []
    base = {"exp_name": "bench", **grid.hyperparams}
    for name, content in (("hyperparams", base), ("hyperranges", grid.hyperranges)):
        path = save_root / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        pair.append(str(path))
    command = [*GRIDRUN, *pair, "--save-root", str(save_root), "--quiet", *options]
    finished = run_command(command).checked()
    with (save_root / "bench" / "results.csv").open(encoding="utf-8") as file:
        return finished, list(csv.DictReader(file))


def peer_command(
    peer: str, runs: Sequence[Any], setting: Setting
) -> tuple[Finished, list[dict[str, Any]]] | None:
    """Train runs as a peer does; None if it is not installed."""
    stem = setting.folder / f"{peer}-{time.time_ns()}"
    grid, out = stem.with_suffix(".json"), stem.with_suffix(".out")
    grid.write_text(json.dumps(runs), encoding="utf-8")
    command = [setting.peer_python, "-m", "benchmarks.peers", peer, str(grid), str(out)]
    finished = run_command([*command, "--cores", str(n_cores())])
    if finished.code == NOT_INSTALLED:
        return None
    finished.checked()
    return finished, json.loads(out.read_text(encoding="utf-8"))


def whole_s(peer: str, command: Finished, results: Sequence[Any], n_runs: int) -> float:
    """Seconds of the whole grid from those of some runs; start-up is counted once."""
    n_processes = 1 if peer == "loop" else n_cores()
    trained_s = float(sum(result["run_s"] for result in results)) / n_processes
    rest_s = max(command.wall_s - trained_s, 0.0)
    return rest_s + (command.wall_s - rest_s) * n_runs / len(results)


def against_lightning(grid: Grid, setting: Setting) -> Iterator[Row]:
    """Seconds from the start of the command to the same validation correlation."""
    name = f"{grid.name}: Lightning, time to the same validation correlation"
    setting.note(name)
    one = Grid(grid.name, {**grid.hyperparams, "n_repeats": 1}, {"seed": [0]})
    started = time.time()
    measured = peer_command("lightning", one.runs(), setting)
    if measured is None:
        yield Row(GROUP, name, None, "× not installed")
        return
    epochs = measured[1][0]["epochs"]
    peer = [(when - started, r) for when, r in epochs]
    root = setting.folder / f"ours-{time.time_ns()}"
    finished, _ = our_command(one, root)
    path = next((root / "bench").glob("bench_0*")) / "metrics.csv"
    with path.open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    times = [float(row["time_s"]) for row in table]
    rest_s = finished.wall_s - sum(times)  # all of it is counted before epoch 1
    ours = [
        (rest_s + sum(times[: i + 1]), float(row["val_acc"]))
        for i, row in enumerate(table)
    ]
    goal = min(max(r for _, r in peer), max(r for _, r in ours))
    ours_s, peer_s = (min(s for s, r in c if r >= goal) for c in (ours, peer))
    details = {"correlation": goal, "ours_s": ours_s, "lightning_s": peer_s}
    yield Row(GROUP, name, peer_s / ours_s, "×", details=details)
