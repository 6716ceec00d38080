"""Strategies, configurations and hand-made folders that several test files share."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from gridrun.config import Hyperparams, complete
from gridrun.plugins import libraries

# a busy machine must not fail a test; the number of examples bounds the time
# the same examples at every run of CI: a new find should not stop another change
settings.register_profile(
    "unit", deadline=None, max_examples=60, derandomize="CI" in os.environ
)
settings.load_profile("unit")

RETINA: Mapping[str, Any] = {
    "exp_name": "sweep",
    "seed": 5,
    "model_type": "VaryModel",
    "dataset": "recording",
    "stim_type": "movie",
    "img_shape": [4, 8, 8],
    "chans": [3],
    "ksizes": [5],
    "batch_size": 8,
    "n_epochs": 2,
    "lr": 0.01,
}
IMAGES: Mapping[str, Any] = {
    "exp_name": "sweep",
    "seed": 5,
    "model_type": "SmallNet",
    "dataset": "images",
    "img_shape": [1, 8, 8],
    "chans": [3],
    "ksizes": [3],
    "batch_size": 8,
    "n_epochs": 2,
    "lr": 0.01,
}
OF_SWEEP: Mapping[str, Any] = {  # in this process, in the working directory
    "exp_name": "sweep",
    "n_epochs": 2,
    "lr": 0.01,
    "seed": 5,
    "data_root": "data",
    "executor": "serial",
    "workers": 1,
}
OF_MOVIE: Mapping[str, Any] = {  # of the recordings that `write_recording` makes
    "model_type": "VaryModel",
    "dataset": "rec",
    "stim_type": "movie",
    "img_shape": [4, 8, 8],
    "chans": [2],
    "ksizes": [5, 4],
}
OF_SET: Mapping[str, Any] = {  # of the image sets that `write_images` makes
    "model_type": "SmallNet",
    "dataset": "set",
    "img_shape": [1, 6, 6],
    "chans": [3],
    "ksizes": [3],
    "mid_dims": 5,
}
BREAKING = """
from torch import nn

class Breaking(nn.Module):
    LIBRARY = "imgclass"

    def __init__(self, img_shape, n_units, breaks):
        super().__init__()
        self.linear = nn.Linear(img_shape[0] * img_shape[1] * img_shape[2], n_units)
        self.breaks = breaks

    def forward(self, x):
        if self.breaks and len(x) > 8:  # more than are tried before a start
            raise ArithmeticError("it breaks")
        return self.linear(x.flatten(1))
"""
BASES: Mapping[str, Mapping[str, Any]] = {"torchdeepretina": RETINA, "imgclass": IMAGES}


def completed(base: Mapping[str, Any] = IMAGES, **given: Any) -> Hyperparams:
    """A configuration that must be right, completed by its library's schema."""
    library = "torchdeepretina" if "stim_type" in base else "imgclass"
    hyps, problems = complete({**base, **given}, libraries()[library].schema)
    assert hyps is not None, problems
    return hyps


def problems_of(base: Mapping[str, Any] = IMAGES, **given: Any) -> dict[str, str]:
    """Key to message of everything that is wrong with a configuration."""
    library = "torchdeepretina" if "stim_type" in base else "imgclass"
    _, problems = complete({**base, **given}, libraries()[library].schema)
    return dict(problems)


json_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
json_values = st.recursive(
    json_scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
exp_names = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", fullmatch=True)
key_names = st.text(string.ascii_lowercase, min_size=1, max_size=6)
axis_values = st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True)


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, list[Any]]:
    """The content of a hyperranges.json: single and linked axes, values distinct."""
    names = draw(st.lists(key_names, max_size=4, unique=True))
    content: dict[str, list[Any]] = {}
    while names:
        linked = [names.pop() for _ in range(draw(st.integers(1, min(2, len(names)))))]
        values = draw(axis_values)
        if len(linked) == 1:
            content[linked[0]] = values
        else:
            content[", ".join(linked)] = [[value, -value] for value in values]
    return content


def write_sweep(folder: Path) -> Path:
    """Make a sweep's folder by hand, without runs."""
    folder.mkdir()
    record = {"exp_name": folder.name, "library": "imgclass", "requests": []}
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def write_run(
    sweep: Path,
    number: int,
    axes: Mapping[str, Any] | None = None,
    repeat: int = 0,
    state: str = "done",
    val_acc: Sequence[float] = (),
    terms: Mapping[str, float] | None = None,
    base: Mapping[str, Any] = IMAGES,
    record: Mapping[str, Any] | None = None,
    **given: Any,
) -> Path:
    """Make a run's folder by hand, as if it had been trained.

    Args:
        sweep: The sweep's folder.
        number: Of the run.
        axes: Its swept values, which the point is named by.
        repeat: Its replicate index; seeds start at 5.
        state: As recorded.
        val_acc: Of each epoch; val_loss is 1 - val_acc.
        terms: Further columns of metrics.csv, the same in each epoch.
        base: Of the configuration.
        record: Further entries of run.json.
        **given: Keys that differ from the base and are not swept.
    """
    axes = dict(axes or {})
    plain = {key: value for key, value in axes.items() if "." not in key}
    seeds = {"seed": 5 + repeat, "split_seed": 5}
    hyps = completed(base, exp_name=sweep.name, **seeds, **plain, **given)
    folder = sweep / f"{sweep.name}_{number}"
    folder.mkdir()
    (folder / "hyperparams.json").write_text(hyps.model_dump_json())
    content = {
        "number": number,
        "state": state,
        "repeat": repeat,
        "axes": axes,
        "point": json.dumps([axes, given]),
        "attempts": [{"engine": "solo", "host": "here", "pid": 1}] if val_acc else [],
        "parameters": 42 if val_acc else None,
        "best_epoch": val_acc.index(max(val_acc)) + 1 if val_acc else None,
        **(record or {}),
    }
    (folder / "run.json").write_text(json.dumps(content))
    if val_acc:
        extra = dict(terms or {})
        header = ["epoch", "lr", "loss", *extra, "val_loss", "val_acc", "time_s"]
        lines = [",".join(header)]
        for epoch, acc in enumerate(val_acc, 1):
            row = [epoch, 0.01, 1 / epoch, *extra.values(), 1 - acc, acc, 0.25]
            lines.append(",".join(map(str, row)))
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder
