"""The options of clusters, which the key `executor_args` holds; no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from gridrun.config.declare import StrictModel
from gridrun.config.messages import expectation, shown

TIME = r"^(\d+-)?\d+(:\d\d?){0,2}$"


def _facts(expected: str) -> dict[str, Any]:
    return {"gridrun": {"expected": expected}}


Word = Annotated[
    str, Field(pattern=r"^\S+$", json_schema_extra=_facts("text without spaces"))
]
Line = Annotated[
    str, Field(pattern=r"^[^\n]*$", json_schema_extra=_facts("a line of text"))
]
Minutes = Annotated[int, Field(ge=1, json_schema_extra=_facts("minutes"))]
Time = Annotated[
    str, Field(pattern=TIME, json_schema_extra=_facts('"hours:minutes:seconds"'))
]
Memory = Annotated[
    str, Field(pattern=r"^\d+[KMGT]$", json_schema_extra=_facts('text such as "8G"'))
]
Option = Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)*$")]
Positive = Annotated[float, Field(gt=0)]


class SlurmArgs(StrictModel):
    """Options of Slurm's jobs; what is null is the site's to say.

    Args:
        time: Limit of a job, after which it is queued again and continues.
        mem: Of a job; a number is in MB.
        cpus_per_task: Of a job; null: as many as `threads`.
        max_parallel: Jobs at once; runs are divided for so many.
        max_array_size: Jobs of an array at most; null: the site's MaxArraySize.
        setup: Shell lines before the worker.
        extra: Further options of sbatch, by name without dashes.
    """

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    time: Minutes | Time = 60
    mem: Annotated[int, Field(ge=1)] | Memory | None = None
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    gpus_per_node: Annotated[int, Field(ge=1)] | None = None
    max_parallel: Annotated[int, Field(ge=1)] | None = None
    max_array_size: Annotated[int, Field(ge=1)] | None = None
    setup: Line | list[Line] = Field(default_factory=list)
    extra: dict[Option, Line | int | bool] = Field(
        default_factory=dict,
        json_schema_extra=_facts('an object such as {"mail-type": "END"}'),
    )

    @property
    def time_min(self) -> int:
        """The time limit in minutes, rounded up."""
        if isinstance(self.time, int):
            return self.time
        days, sign, rest = self.time.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if not sign and len(parts) < 3:  # minutes, or minutes:seconds
            parts = [0, *parts]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        total = (int(days or 0) * 24 + hours) * 60 + minutes + math.ceil(seconds / 60)
        return max(total, 1)

    @property
    def setup_lines(self) -> list[str]:
        """Shell lines before the worker."""
        return [self.setup] if isinstance(self.setup, str) else self.setup


class RayArgs(StrictModel):
    """What a cohort asks of Ray.

    Args:
        address: Of a cluster; null: a Ray of this machine, started for the sweep.
        num_cpus: Cores; null: as many as `threads`.
        num_gpus: GPUs; a part of one may be asked for.
        resources: Further ones, by name.
        max_retries: Of a cohort whose node is lost.
    """

    address: Word | None = None
    num_cpus: Annotated[float, Field(ge=0)] | None = None
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: dict[str, Positive] = Field(
        default_factory=dict, json_schema_extra=_facts("an object of numbers > 0")
    )
    max_retries: Annotated[int, Field(ge=0)] = 3


ARGS: Mapping[str, type[BaseModel]] = {"slurm": SlurmArgs, "ray": RayArgs}
# options of sbatch that are not the user's to set
OWN_OPTIONS = {
    *("array", "error", "input", "job-name", "no-requeue", "nodes", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "signal", "wrap"),
}


def args_problems(executor: str, args: Mapping[str, Any]) -> Iterable[str]:
    """Yield what is wrong with the options of a cluster.

    Args:
        executor: As in the key; those that are no clusters have no options.
        args: As in `executor_args`.
    """
    if executor not in ARGS:
        return
    model = ARGS[executor]
    properties = model.model_json_schema()["properties"]
    try:
        model.model_validate(dict(args))
    except ValidationError as error:
        for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors()):
            if name in properties:
                text = f"expected {expectation(properties[name])}"
                yield f"{name}: {text}; got {shown(args[name])}"
            else:
                yield unknown_option(name, executor)
        return
    yield from _contradictions(executor, args)


def unknown_option(name: str, executor: str) -> str:
    """What to say of an option that a cluster does not have."""
    known = list(ARGS[executor].model_fields)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown option {name!r} of {executor}{hint}; known: {', '.join(known)}"


def _contradictions(executor: str, args: Mapping[str, Any]) -> Iterable[str]:
    for name in args.get("extra", {}):
        if name in OWN_OPTIONS:
            yield f"extra: {name} is set by gridrun; leave it out"
        elif name.replace("-", "_") in SlurmArgs.model_fields:
            yield f"extra: {name} is an option of its own; give it there"
    for name in ("num_cpus", "num_gpus"):
        value = args.get(name) or 0
        if value > 1 and value != int(value):
            yield f"{name}: above 1 it must be a whole number; got {shown(value)}"
