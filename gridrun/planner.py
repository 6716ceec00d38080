"""Pending runs -> cohorts -> jobs for workers; no torch."""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from gridrun.config import Hyperparams, keys_of
from gridrun.run import RunState

LARGEST_AUTO_COHORT = 8
TOLERATED_IMBALANCE = 0.05  # a smaller cohort shares less
# keys of other groups that the data depend on
DATA_KEYS = (
    "img_shape",
    "split_seed",
    "bootstrap_index",
    "train_set_size",
    "val_set_size",
    "convgc",  # asks where the cells lie
    "dataset_args",
    "val_set",
    "use_preset",
    "val_example_subset",
    "plugins",
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
        return self._cut(1)

    def halves(self) -> list[Job]:
        """The same runs as two jobs; one, if there is a single run."""
        return self._cut(math.ceil(len(self.folders) / 2))

    def only(self, folders: Container[str]) -> Job:
        """The same job with those of its runs whose folders are given."""
        return self._with(
            [i for i, folder in enumerate(self.folders) if folder in folders]
        )

    def _cut(self, size: int) -> list[Job]:
        n_runs = len(self.folders)
        return [
            self._with(range(i, min(i + size, n_runs))) for i in range(0, n_runs, size)
        ]

    def _with(self, places: Sequence[int]) -> Job:
        return dataclasses.replace(
            self,
            folders=tuple(self.folders[i] for i in places),
            hyps=tuple(self.hyps[i] for i in places),
        )

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
    """Group runs into cohorts for workers that take one after the other.

    Args:
        runs: Configuration of each pending run.
        n_workers: Workers to keep busy.
        cohort_size: Most runs of a cohort; auto: as many as leave all workers busy to
            the end.

    Returns:
        Positions in `runs`, in order, one list a cohort; the most work comes first.
    """
    groups: dict[str, list[int]] = {}
    for position, hyps in enumerate(runs):
        groups.setdefault(cohort_key(hyps), []).append(position)
    size = LARGEST_AUTO_COHORT if cohort_size == "auto" else int(cohort_size)
    cohorts = [
        part for positions in groups.values() for part in _parts(positions, size)
    ]
    work = [hyps.work() for hyps in runs]

    def work_of(cohorts: Iterable[Sequence[int]]) -> float:
        return sum(work[i] for cohort in cohorts for i in cohort)

    if cohort_size == "auto" and runs:
        enough = max(sum(work) / n_workers, max(work)) * (1 + TOLERATED_IMBALANCE)
        n_busy = min(len(runs), n_workers)
        finer, best, n_longest = cohorts, math.inf, math.inf
        while best > enough and n_longest > 1:
            busiest = _busiest(finer, work_of, n_workers)
            if len(finer) >= n_busy and work_of(busiest) < best:
                cohorts, best = finer, work_of(busiest)
            longest = max(busiest, key=len)
            n_longest = len(longest)
            halves = _parts(longest, math.ceil(len(longest) / 2))
            finer = [one for one in finer if one is not longest] + halves
    return sorted(cohorts, key=lambda cohort: (-work_of([cohort]), cohort))


def _parts(positions: list[int], size: int) -> list[list[int]]:
    """Even parts, none larger than a size."""
    n_parts = math.ceil(len(positions) / size)
    each = math.ceil(len(positions) / n_parts)
    return [positions[i : i + each] for i in range(0, len(positions), each)]


def _busiest(
    cohorts: Sequence[list[int]],
    work_of: Callable[[Iterable[Sequence[int]]], float],
    n_workers: int,
) -> list[list[int]]:
    """The cohorts of the worker that ends last, if each takes the next when free."""
    workers: list[tuple[float, int, list[list[int]]]] = [
        (0.0, i, []) for i in range(n_workers)
    ]
    for cohort in sorted(cohorts, key=lambda cohort: -work_of([cohort])):
        load, i, taken = heapq.heappop(workers)
        taken.append(cohort)
        heapq.heappush(workers, (load + work_of([cohort]), i, taken))
    return max(workers)[2]
