"""Which trackers there are, what they take, and what all of them record; no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gridrun.config import shown, suggest

if TYPE_CHECKING:
    from gridrun.tracking.callback import Callback
    from gridrun.training.cohort import LiveRun

TRACKERS: Mapping[str, str] = {
    "tensorboard": "gridrun.tracking.tensorboard:TensorBoard",
    "wandb": "gridrun.tracking.wandb:WandB",
    "mlflow": "gridrun.tracking.mlflow:MLflow",
}
PACKAGES: Mapping[str, Sequence[str]] = {
    "tensorboard": ["tensorboard"],
    "wandb": ["wandb"],
    "mlflow": ["mlflow", "sqlalchemy", "alembic"],
}


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument of a tracker.

    Args:
        is_allowed: Whether a value of any type will do.
        expected: What will, in words.
    """

    is_allowed: Callable[[Any], bool]
    expected: str


def _matching(pattern: str, expected: str) -> Argument:
    def is_allowed(value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(pattern, value) is not None

    return Argument(is_allowed, expected)


def _are_tags(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(tag, str) and 1 <= len(tag) <= 64 for tag in value
    )


ARGUMENTS: Mapping[str, Mapping[str, Argument]] = {
    "tensorboard": {},
    "wandb": {
        "project": _matching(
            r"[^/\\#?%:]{1,128}", "at most 128 characters without / \\ # ? % :"
        ),
        "entity": _matching(r"[^/\\#?%:]+", "the name of a user or team"),
        "mode": _matching("online|offline", "online or offline"),
        "tags": Argument(_are_tags, "a list of texts of 1 to 64 characters"),
    },
    "mlflow": {
        "tracking_uri": _matching(
            r"databricks.*|(?!file:)[a-z][a-z0-9+.-]*://.+",
            "the address of a server or a database, such as http://localhost:5000 or "
            "sqlite:////folder/mlflow.db (MLflow has given up plain folders)",
        ),
        "experiment": _matching(r"(?s).*\S.*", "a name"),
    },
}


def tracker_problems(name: str, args: Mapping[str, Any]) -> list[str]:
    """What is wrong with a tracker, found without loading it.

    Args:
        name: Of the tracker.
        args: As given in `tracker_args`.
    """
    if name not in TRACKERS:
        return [f"unknown tracker {name!r}{suggest(name, TRACKERS)}"]
    problems = []
    absent = [one for one in PACKAGES[name] if importlib.util.find_spec(one) is None]
    if absent:
        what = "is" if absent == [name] else f"needs {', '.join(absent)}, which is"
        problems.append(f"{name} {what} not installed: pip install 'gridrun[{name}]'")
    known = ARGUMENTS[name]
    for argument, value in args.items():
        if argument not in known:
            text = f"unknown argument {argument!r}{suggest(argument, known)}"
            problems.append(f"{name}: {text}")
        elif value is not None and not known[argument].is_allowed(value):
            text = f"expected {known[argument].expected}, got {shown(value)}"
            problems.append(f"{name}: {argument}: {text}")
    return problems


def make_tracker(name: str, args: Mapping[str, Any]) -> Callback:
    """A tracker for one run.

    Args:
        name: One of `TRACKERS`.
        args: In which `tracker_problems` finds nothing wrong.
    """
    module, _, kind = TRACKERS[name].partition(":")
    made: Callback = getattr(importlib.import_module(module), kind)(**args)
    return made


# --- what all of them record ------------------------------------------------------


def sweep_name(run: LiveRun) -> str:
    """What groups the runs of a sweep: the name of its folder."""
    return run.folder.path.parent.name


def run_key(run: LiveRun) -> str:
    """The same for every attempt of a run, and another for every other run.

    A run of the same number in a sweep made anew is another.
    """
    first = run.record["attempts"][0]
    parts = [first.get(name) for name in ("started", "host", "pid")]
    text = json.dumps([run.hyps.exp_name, run.number, *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def configuration(run: LiveRun) -> dict[str, Any]:
    """The complete configuration, as in hyperparams.json."""
    return run.hyps.model_dump(mode="json")


def facts(run: LiveRun) -> dict[str, Any]:
    """Which run it is, and what computes it."""
    return {
        "sweep": sweep_name(run),
        "run": run.folder.path.name,
        "number": run.number,
        "repeat": run.record["repeat"],
        "axes": run.record["axes"],
        "seed": run.seed,
        "device": str(run.device),
        **run.record["attempts"][-1],
    }


def as_text(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numeric columns of a row."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a diagnostic has found, by kind, each with its name in trackers.

    Args:
        scalars: Numbers.
        arrays: Numpy arrays of more than one number.
        figures: Of matplotlib.
    """

    scalars: Mapping[str, float]
    arrays: Mapping[str, Any]
    figures: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, found: Mapping[str, Any]) -> Findings:
        """Sort what a diagnostic has found.

        Args:
            name: Of the diagnostic.
            found: Name to float, array, tensor or figure.
        """
        import numpy as np

        kinds: tuple[dict[str, Any], ...] = ({}, {}, {})
        for key, value in found.items():
            path = f"diagnostics/{name}/{key}"
            if hasattr(value, "savefig"):
                kinds[2][path] = value
                continue
            array = np.asarray(value.detach().cpu() if hasattr(value, "cpu") else value)
            if array.size == 1:
                kinds[0][path] = float(array.item())
            else:
                kinds[1][path] = array
        return cls(*kinds)


def finite(array: Any) -> Any:
    """The finite numbers of an array, flat: histograms take no others."""
    flat = array.astype(float).ravel()
    return flat[abs(flat) < math.inf]
