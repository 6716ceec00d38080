"""Whether what a configuration names beyond a library fits its data; before a start."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch

from gridrun.config import Hyperparams, shown
from gridrun.errors import ConfigError
from gridrun.plugins import Library
from gridrun.training.cohort import LiveRun
from gridrun.training.data import DataInfo
from gridrun.training.engines import ENGINES
from gridrun.training.extras import Extras
from gridrun.training.models import build_model
from gridrun.training.seeding import RunRandom, kept_globals

if TYPE_CHECKING:
    from gridrun.training.trainer import Trainer

N_TRIED = 8  # samples
BROADCAST = "Using a target size"  # torch's warning of a loss between other shapes
# functions of trainers in which what a key names is called
KEYS = {"augmented": "augmenters", "distorted": "distorter", "measure": "dataset"}


def try_out(
    trainer: type[Trainer], library: Library, hyps: Hyperparams, info: DataInfo
) -> None:
    """Try what is not the library's own on a few samples, without an update.

    Args:
        trainer: Of the library.
        library: Whose keys apply.
        hyps: A configuration.
        info: Of its data.

    Raises:
        ConfigError: With the key first.
    """
    own = set(hyps.plugin_names()) - set(library.model_names)
    if not own and not hyps.augmenters and hyps.distorter is None:
        return
    with kept_globals():
        given = {
            "model": build_model(library, hyps, info),
            "hyps": hyps,
            "extras": Extras.of(hyps, trainer.augmenters),
            "random": RunRandom(0, torch.device("cpu")),
            "number": 0,
            "device": torch.device("cpu"),
            "dtype": torch.float32,
            "autocast": contextlib.nullcontext,
        }
        run = cast(LiveRun, SimpleNamespace(**given))
        made = trainer.trial(hyps, info, min(hyps.batch_size, N_TRIED))
        if made is None:
            return
        data, batch = made
        shape = list(batch.inputs.shape)
        made_trainer = trainer(library, [run], data)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", BROADCAST)
                made_trainer.try_batch(run, batch)
            ENGINES[hyps.engine].try_out(made_trainer, run, batch)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            key = guilty_key(error)
            text = f"inputs of {shape} cannot be trained on: {place_of(error)}"
            value = getattr(hyps, key)
            named = value if isinstance(value, str) else shown(value)
            raise ConfigError(f"{key}: {named}: {text}") from error


def guilty_key(error: BaseException) -> str:
    """The key whose value raised an error, by the functions that it went through."""
    found = "model_type"
    for frame in traceback.extract_tb(error.__traceback__):
        place = Path(frame.filename)
        if place.name == "loss.py" and place.parent.name == "modules":
            found = "lossfxn"
        elif place.name == "normalise.py":
            found = "normalizer"
        else:
            found = KEYS.get(frame.name, found)
    return found


def refuse_shape(run: LiveRun, outputs: Any, info: DataInfo) -> None:
    """Refuse outputs that are not (B, n_units).

    Raises:
        ConfigError: With what they are.
    """
    shape = list(getattr(outputs, "shape", ()))
    if len(shape) != 2 or shape[1] != info.n_units:
        text = f"outputs are {shape or type(outputs).__name__}, not (B, {info.n_units})"
        raise ConfigError(f"model_type: {run.hyps.model_type}: {text}")


def place_of(error: BaseException) -> str:
    """An error in a line, with the place where it was raised."""
    text = str(error).strip().splitlines()
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}"
    return f"{type(error).__name__}: {text[0] if text else ''} ({where})"
