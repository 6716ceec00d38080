"""Rows of the table, and the files that they are written to."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

PACKAGES = ("torch", "numpy", "gridrun", "joblib", "ray", "lightning", "openretina")


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        group: Which part of the benchmarks measured it.
        name: What it is.
        measured: The figure; None if it could not be measured.
        unit: Of both figures.
        sense: How the figure must compare with the target; empty: for information.
        target: What performance.md of the design asks for.
        details: How it was measured, and what it was made of.
    """

    group: str
    name: str
    measured: float | None
    unit: str
    sense: Literal[">=", "<=", ""] = ""
    target: float | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def margin(self) -> float | None:
        """By what factor the target is met, at most 1e6; below 1 it is missed."""
        if self.target is None or self.measured is None or not self.sense:
            return None
        above, below = self.measured, self.target
        if self.sense == "<=":
            above, below = below, above
        return above / max(below, above * 1e-6, 1e-30)

    @property
    def passed(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None or not self.sense:
            return None
        return self.margin is not None and self.margin >= 1

    def record(self, is_quick: bool) -> dict[str, Any]:
        """As plain data; a smoke run judges nothing."""
        return {
            "group": self.group,
            "name": self.name,
            "target": f"{self.sense} {self.target:g}" if self.target else None,
            "measured": self.measured,
            "unit": self.unit,
            "passed": None if is_quick else self.passed,
            "details": dict(self.details),
        }


def figure(value: float | None) -> str:
    """A number for people."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def line(row: Row, is_quick: bool) -> list[str]:
    """The cells of a row: name, target, measured, margin, passed."""
    record = row.record(is_quick)
    judged = {True: "yes", False: "no", None: ""}[record["passed"]]
    return [
        row.name,
        f"{record['target']} {row.unit}" if record["target"] else "",
        f"{figure(row.measured)} {row.unit}" if row.measured is not None else "–",
        figure(row.margin) if row.margin is not None else "",
        judged,
    ]


def circumstances(packages: Mapping[str, str]) -> dict[str, Any]:
    """Date, hardware and versions.

    Args:
        packages: Version of each package, or why there is none.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": n_cores(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "revision": _revision(),
        **packages,
    }


def package_versions() -> dict[str, str]:
    """Versions of what is measured, in this interpreter."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for text in cpuinfo.read_text(encoding="utf-8").splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _revision() -> str:
    """The commit that is measured, and whether files differ from it."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def markdown(rows: Sequence[Row], facts: Mapping[str, Any], is_quick: bool) -> str:
    """The table with its heading."""
    parts = ["# Benchmarks", ""]
    if is_quick:
        parts += ["**Smoke run: sizes are cut, so the figures mean nothing.**", ""]
    parts += [", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    for group in dict.fromkeys(row.group for row in rows):
        parts += [f"## {group}", ""]
        parts += [
            "| work | target | measured | margin | passed |",
            "|---|---|---|---|---|",
        ]
        members = [row for row in rows if row.group == group]
        parts += [f"| {' | '.join(line(row, is_quick))} |" for row in members]
        parts.append("")
        for row in members:
            if row.details:
                facts_of_row = "; ".join(
                    f"{k}: {_text(v)}" for k, v in row.details.items()
                )
                parts.append(f"- {row.name}: {facts_of_row}")
        parts.append("")
    return "\n".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)


def write_results(
    folder: Path, rows: Sequence[Row], facts: Mapping[str, Any], is_quick: bool
) -> None:
    """Write results.json, results.md and results.png.

    Args:
        folder: Made if it is not there.
        rows: In the order of the table.
        facts: Date, hardware and versions.
        is_quick: Whether sizes were cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "circumstances": dict(facts),
        "is_quick": is_quick,
        "rows": [row.record(is_quick) for row in rows],
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    table = markdown(rows, facts, is_quick)
    (folder / "results.md").write_text(table, encoding="utf-8")
    if any(row.margin is not None for row in rows):
        plot(folder / "results.png", rows, facts, is_quick)


def plot(
    path: Path, rows: Sequence[Row], facts: Mapping[str, Any], is_quick: bool
) -> None:
    """Draw by what factor each target is met, a bar a row."""
    from matplotlib.figure import Figure

    judged = [row for row in rows if row.margin is not None][::-1]
    margins = [min(max(row.margin or 0.0, 0.01), 100.0) for row in judged]
    labels = [
        f"{row.name}   {figure(row.measured)} {row.unit} ({row.sense} {row.target:g})"
        for row in judged
    ]
    colours = [
        "#888888" if is_quick else "#3b7a57" if row.passed else "#b3472f"
        for row in judged
    ]
    drawing = Figure(figsize=(11, 1.2 + 0.3 * len(judged)), layout="constrained")
    axes = drawing.add_subplot()
    # bars start at the target: to the right it is met, to the left missed
    axes.barh(
        range(len(judged)),
        [margin - 1 for margin in margins],
        left=1,
        color=colours,
        height=0.7,
    )
    axes.set_yticks(range(len(judged)), labels, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(min([0.5, *margins]) / 1.2, max([2.0, *margins]) * 1.2)
    axes.set_ylim(-0.7, len(judged) - 0.3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel(
        "factor by which the target is met (right of 1: met; cut at 0.01 and 100)"
    )
    title = f"{facts.get('processor', '')}, {facts.get('cores', '?')} cores, "
    title += f"{facts.get('date', '')}, revision {facts.get('revision', '')}"
    axes.set_title(("smoke run, " if is_quick else "") + title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=130)
