"""What a trainer tells of its work; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from gridrun.run import RunState


@dataclasses.dataclass(frozen=True)
class Event:
    """What a trainer tells of its work, as it goes.

    Args:
        kind: `start` (a run, `epoch` already done), `step` (of the cohort, at
            `step` of `n_steps`), `epoch` (of a run), `end` (of a run).
        number: The run; of a step the first of the cohort.
        metrics: Of the epoch, or the final ones.
    """

    kind: Literal["start", "step", "epoch", "end"]
    number: int
    epoch: int
    step: int = 0
    n_steps: int = 0
    n_runs: int = 1
    state: str = RunState.RUNNING.value
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
