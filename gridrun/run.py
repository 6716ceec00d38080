"""What a run is: its configuration, identity, number and states."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gridrun.config import Hyperparams, Variant, keys_of

MAX_NAME_LENGTH = 120


class RunState(enum.StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to it unless asked for."""
        return self in (RunState.DONE, RunState.FAILED, RunState.DIVERGED)


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One training of the grid: everything that its result depends on.

    Args:
        variant: The complete configuration, seed included.
        axes: Swept key to value, in the order of the ranges.
        repeat: Replicate index within the grid point, from 0.
        identity: SHA-256 of the keys that act; equal runs have equal identities.
        point: The same without the repeat's seed: equal within a grid point.
    """

    variant: Variant
    axes: Mapping[str, Any]
    repeat: int
    identity: str
    point: str

    @property
    def hyps(self) -> Hyperparams:
        """The complete configuration, seed included."""
        return self.variant.hyps

    def folder_name(self, number: int) -> str:
        """`<exp_name>_<number>_<axis><value>...`, safe in every file system."""
        parts = [f"{name}{_plain(value)}" for name, value in self.axes.items()]
        name = "_".join([self.hyps.exp_name, str(number), *map(_safe, parts)])
        return name[:MAX_NAME_LENGTH].rstrip("._-")


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "-".join(map(_plain, value))
    if isinstance(value, dict):
        return "-".join(f"{name}{_plain(inner)}" for name, inner in value.items())
    return str(value)


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]+", "-", text).strip("-") or "-"


def make_spec(
    hyps: Hyperparams,
    axes: Mapping[str, Any],
    repeat: int,
    base_seed: int,
    inactive: Iterable[str],
    base: Hyperparams | None = None,
) -> RunSpec:
    """One repeat of a grid point, as a run that can be trained alone.

    Args:
        hyps: The completed configuration of the grid point.
        axes: Its swept values.
        repeat: From 0.
        base_seed: Seeds the split, and repeat r with r more, unless `seeds` are given.
        inactive: Keys that change nothing here, left out of the identity.
        base: A configuration that many runs share most of, to take less memory.
    """
    alone: dict[str, Any] = {
        "split_seed": base_seed if hyps.split_seed is None else hyps.split_seed,
        "n_repeats": 1,
        "seeds": None,
        "bootstrap": 0,
        "starting_exp_num": None,
        "skip_nums": None,
    }
    of_repeat = {
        "seed": hyps.seeds[repeat] if hyps.seeds else base_seed + repeat,
        "bootstrap_index": repeat if hyps.bootstrap else hyps.bootstrap_index,
    }
    run = hyps.model_copy(update=alone | of_repeat)
    inactive = frozenset(inactive)
    is_replicate = run.bootstrap_index is not None and "bootstrap_index" not in axes
    index = 0 if is_replicate else run.bootstrap_index
    first = run.model_copy(update={"seed": base_seed, "bootstrap_index": index})
    own = {"seed", "split_seed"} - set(axes)
    return RunSpec(
        variant=Variant.of(run, base or run),
        axes=axes,
        repeat=repeat,
        identity=identity(run, inactive),
        point=identity(first, inactive | own),
    )


def identity(hyps: Hyperparams, inactive: Iterable[str]) -> str:
    """SHA-256 of the keys that act on a run's result, with their values."""
    without = frozenset(inactive)
    acting = {
        name: hyps.identity_value(name)
        for name in _identity_keys(type(hyps))
        if name not in without
    }
    text = json.dumps(acting, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _identity_keys(schema: type[Hyperparams]) -> tuple[str, ...]:
    return tuple(n for n, facts in keys_of(schema).items() if facts.identity == "yes")
