"""Pending runs -> cohorts -> jobs for workers; no torch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gridrun.config import Hyperparams, keys_of
from gridrun.run import RunState

LARGEST_AUTO_COHORT = 8
# keys of other groups that the data depend on
DATA_KEYS = (
    "img_shape",
    "split_seed",
    "bootstrap_index",
    "train_set_size",
    "val_set_size",
    "convgc",  # asks where the cells lie
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A cohort to train: what a worker needs, as plain data.

    Args:
        library: Name of the library.
        folders: Run folders.
        hyps: The complete configuration of each.
        threads: CPU threads.
        device: As in the key `device`, or the worker's own GPU.
        final_states: States that leave nothing to do.
    """

    library: str
    folders: tuple[str, ...]
    hyps: tuple[Mapping[str, Any], ...]
    threads: int
    device: str
    final_states: tuple[str, ...] = (RunState.DONE.value,)

    @property
    def n_epochs(self) -> int:
        """Epochs of all runs together, an upper bound."""
        return sum(int(hyps["n_epochs"]) for hyps in self.hyps)

    def singles(self) -> list[Job]:
        """The same runs, each as a job of its own."""
        return [
            dataclasses.replace(self, folders=(folder,), hyps=(hyps,))
            for folder, hyps in zip(self.folders, self.hyps, strict=True)
        ]

    def on(self, device: str) -> Job:
        """The same job on another device."""
        return dataclasses.replace(self, device=device)


def data_key(hyps: Hyperparams) -> str:
    """Equal for runs that use the same data, split and normalisation."""
    names = [n for n, facts in keys_of(type(hyps)).items() if facts.group == "data"]
    values = {name: getattr(hyps, name, None) for name in [*names, *DATA_KEYS]}
    return json.dumps([type(hyps).__name__, values], sort_keys=True)


def cohort_key(hyps: Hyperparams) -> str:
    """Equal for runs that can share one stream of batches."""
    guarded = [hyps.threads, hyps.device, hyps.engine, hyps.conv_method]
    return json.dumps([data_key(hyps), hyps.seed, hyps.batch_size, guarded])


def plan_cohorts(
    runs: Sequence[Hyperparams], n_workers: int, cohort_size: int | str = "auto"
) -> list[list[int]]:
    """Group runs into cohorts, keeping the order of the grid.

    Args:
        runs: Configuration of each pending run.
        n_workers: Workers to keep busy.
        cohort_size: Most runs of a cohort; auto: enough cohorts for all workers.

    Returns:
        Positions in `runs`, one list a cohort.
    """
    groups: dict[str, list[int]] = {}
    for position, hyps in enumerate(runs):
        groups.setdefault(cohort_key(hyps), []).append(position)
    if cohort_size == "auto":
        share = math.ceil(len(runs) / max(n_workers, 1))
        size = max(1, min(share, LARGEST_AUTO_COHORT))
    else:
        size = int(cohort_size)
    cohorts = []
    for positions in groups.values():
        n_parts = math.ceil(len(positions) / size)
        each = math.ceil(len(positions) / n_parts)
        cohorts += [positions[i : i + each] for i in range(0, len(positions), each)]
    if cohort_size == "auto":
        _occupy(cohorts, min(len(runs), n_workers))
    return sorted(cohorts)


def _occupy(cohorts: list[list[int]], n_cohorts: int) -> None:
    """Halve the largest cohort until there are enough for all workers."""
    while len(cohorts) < n_cohorts:
        largest = max(cohorts, key=len)
        cohorts.remove(largest)
        middle = math.ceil(len(largest) / 2)
        cohorts += [largest[:middle], largest[middle:]]
