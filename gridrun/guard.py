"""What must be as it was for a half-trained run to continue bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from gridrun.claims import Claim
from gridrun.config import Hyperparams
from gridrun.errors import ConfigError, StoreError
from gridrun.plugins import Library
from gridrun.run import RunState
from gridrun.store import RunFolder

OnChange = Literal["refuse", "continue", "restart"]
GUARDED = (
    "threads",
    "device",
    "engine",
    "conv_method",
    "versions",
    "model_source_sha256",
    "plugin_sha256",
)
MAX_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Change:
    """A run whose recorded circumstances differ from the present ones."""

    number: int
    folder: RunFolder
    is_finished: bool
    differences: tuple[str, ...]


def changes(
    library: Library, runs: Iterable[tuple[int, Hyperparams, RunFolder]]
) -> list[Change]:
    """Runs that were trained, wholly or in part, under other circumstances.

    Args:
        library: Whose models they are.
        runs: Number, requested configuration and folder of each.
    """
    from gridrun.training.job import circumstances, content_hashes, pick_device

    found = []
    files: dict[str, dict[str, str]] = {}
    present: dict[str, dict[str, Any]] = {}
    for number, hyps, folder in runs:
        try:
            record = folder.read()
            if not record["attempts"] or not _is_begun(record, folder):
                continue
        except StoreError:
            continue
        names = ("data_root", "dataset", "stim_type", "dataset_args", "val_set")
        data = repr([getattr(hyps, name, None) for name in names])
        if data not in files:
            files[data] = content_hashes(library.load_trainer().inspect_data(hyps))
        keys = (hyps.device, hyps.threads, hyps.engine, hyps.conv_method)
        settings = repr((list(hyps.plugin_names()), keys))
        if settings not in present:
            device = pick_device(hyps.device)
            present[settings] = circumstances(library, hyps, device)
        now = present[settings] | {"threads": hyps.threads}
        was = record["attempts"][-1]
        different = _differences(was, now)
        hashes = record.get("data_sha256", {})
        for name, digest in files[data].items():
            if name in hashes and hashes[name] != digest:
                different.append(f"the data: {name} has other content")
        if different:
            is_finished = RunState(record["state"]).is_final
            found.append(Change(number, folder, is_finished, tuple(different)))
    return found


def _is_begun(record: Mapping[str, Any], folder: RunFolder) -> bool:
    """Whether an epoch is saved; the index need not be read where the record tells."""
    if record["attempts"][-1].get("last_epoch"):
        return True
    return folder.read_index()["last"] is not None


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    for name in GUARDED:
        old, new = was.get(name), now.get(name)
        if name == "device":
            old, new = str(old).partition(":")[0], str(new).partition(":")[0]
        if name == "versions":
            names = ("torch", "numpy", "gridrun")
            pairs = [(n, (old or {}).get(n), (new or {}).get(n)) for n in names]
            found += [f"{n} {a}, now {b}" for n, a, b in pairs if a != b]
        elif name == "plugin_sha256":
            both = dict(old or {}), dict(new or {})
            files = sorted({*both[0], *both[1]})
            changed = [file for file in files if both[0].get(file) != both[1].get(file)]
            found += [f"the source of {file}" for file in changed]
        elif old != new:
            is_source = name == "model_source_sha256"
            text = "the model's source" if is_source else f"{name} {old}, now {new}"
            found.append(text)
    return found


def refuse_changed(found: Sequence[Change], on_change: OnChange) -> str | None:
    """Refuse to continue half-trained runs under other circumstances.

    Returns:
        A warning about finished runs, if there is one to give.

    Raises:
        ConfigError: Unless `on_change` says what to do.
    """
    half = [change for change in found if not change.is_finished]
    if half and on_change == "refuse":
        lines = [
            f"run {change.number} is half-trained under other circumstances: "
            f"{'; '.join(change.differences)}"
            for change in half[:MAX_SHOWN]
        ]
        if len(half) > MAX_SHOWN:
            lines.append(f"and {len(half) - MAX_SHOWN} more runs")
        lines.append(
            "its bits would differ from an uninterrupted run: go back to the earlier "
            "circumstances, or give --on-change continue or --on-change restart"
        )
        raise ConfigError(lines)
    finished = [change for change in found if change.is_finished]
    if not finished:
        return None
    what = dict.fromkeys(text for change in finished for text in change.differences)
    return (
        f"{len(finished)} finished runs stay as they are, trained under other "
        f"circumstances: {'; '.join(what)}"
    )


def set_aside(found: Sequence[Change]) -> None:
    """Record of half-trained runs why they are not continued here."""
    for change in found:
        claim = Claim(change.folder.claim)
        if not claim.acquire():
            continue
        text = (
            f"half-trained under other circumstances: {'; '.join(change.differences)}; "
            "give --on-change continue or --on-change restart"
        )
        change.folder.update(state=RunState.INTERRUPTED.value, error=text)
        claim.release()


def is_set_aside(record: Mapping[str, Any]) -> bool:
    """Whether a machine of a cluster has declined to continue a run."""
    is_interrupted = record["state"] == RunState.INTERRUPTED.value
    return is_interrupted and bool(record.get("error"))


def restart(found: Sequence[Change]) -> None:
    """Drop the epochs of half-trained runs, so that they start anew."""
    for change in found:
        claim = Claim(change.folder.claim)
        if change.is_finished or not claim.acquire():
            continue
        change.folder.forget_after(0, best=0)
        change.folder.cut_tables(0)
        for derived in ("pruning.csv", "pruned_model.pt"):
            (change.folder.path / derived).unlink(missing_ok=True)
        claim.release()
