"""A recorded run for people: its metrics, checkpoints, model, predictions, scores."""

from __future__ import annotations

import inspect
import operator
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gridrun import plugin_files
from gridrun.analysis import tables
from gridrun.config.files import odd_values
from gridrun.durable import json_text, read_record, write_json
from gridrun.errors import CheckpointError, ConfigError, GridrunError, StoreError
from gridrun.plugins import Library, permitted, recorded_library
from gridrun.run import RunState
from gridrun.store import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

    from gridrun.config import Hyperparams

Epoch = int | Literal["best", "last", "pruned"]
SPLITS = ("train", "val", "test")
NAMED_EPOCHS = ("best", "last", "pruned")
# what an evaluator is told otherwise than by its arguments
NO_ARGUMENTS = ("self", "evaluator", "split", "epoch", "is_saved", "device")


class EvaluatorError(GridrunError):
    """An evaluator raised an error.

    Args:
        problems: Of the base class; they name the error and its place.
    """


class Run:
    """A recorded run.

    Args:
        path: Its folder.
        plugins: Folder of plug-ins that its record may run.
        imports: Modules, or packages of them, that its record may import.
    """

    def __init__(
        self,
        path: str | Path,
        plugins: str | Path | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        self.folder = RunFolder(Path(path))
        self.plugins = plugins
        self.imports = imports
        self.record = self.folder.read()
        self.number: int = self.record["number"]

    def __repr__(self) -> str:
        return f"Run({self.number}, {self.state.value}, {self.folder.path.name!r})"

    @property
    def state(self) -> RunState:
        """Where the run stands now."""
        return self.folder.state()

    @property
    def library(self) -> Library:
        """The library that its model belongs to."""
        found = recorded_library(read_record(self.folder.hyperparams))
        if found is None:
            raise StoreError(f"{self.folder.path}: its model is of no known library")
        return found

    @property
    def hyps(self) -> Hyperparams:
        """Its complete configuration."""
        values = read_record(self.folder.hyperparams)
        return self.library.schema.model_validate(values)

    def _permitted(self, hyps: Hyperparams) -> Hyperparams:
        return permitted(self.library, hyps, self.plugins, self.imports)

    def metrics(self) -> pd.DataFrame:
        """One row an epoch: losses, metrics, learning rate, seconds."""
        import pandas as pd

        return pd.DataFrame(self.folder.epochs.read())

    def epochs(self) -> list[int]:
        """Epochs whose checkpoint is kept."""
        return [f["epoch"] for f in self.folder.read_index()["files"].values()]

    def checkpoint(self, epoch: Epoch = "best") -> dict[str, Any]:
        """Everything that was saved at an epoch.

        Args:
            epoch: best, last, a number from `epochs()`, or pruned: the smaller model
                of a run with `prune`, without an optimizer.

        Raises:
            CheckpointError: If that epoch is not saved or its file is damaged.
        """
        from gridrun.training.checkpoint import from_bytes

        if epoch == "pruned":
            path = self.folder.path / "pruned_model.pt"
            if not path.exists():
                text = "no pruned model (of runs with prune and zero_bias, when done)"
                raise CheckpointError(f"{self.folder.path}: {text}")
            return read_checkpoint(path)
        if isinstance(epoch, str) and epoch not in ("best", "last"):
            raise ConfigError(
                f"epoch: expected best, last, pruned or a number, got {epoch!r}"
            )
        index = self.folder.read_index()
        number = index[epoch] if isinstance(epoch, str) else epoch
        if number is None:
            raise CheckpointError(f"{self.folder.path}: no epoch is saved yet")
        content = self.folder.read_checkpoint(number)
        return from_bytes(content, self.folder.checkpoint_path(number))

    def load_model(self, epoch: Epoch = "best") -> nn.Module:
        """Its model in eval mode, on the CPU, with `hyps` and `norm_stats`.

        Args:
            epoch: best, last, a number from `epochs()`, or pruned.

        Raises:
            CheckpointError: If that epoch is not saved or its file is damaged.
            ConfigError: If its class may not be run, with what to pass.
        """
        from gridrun.training.models import rebuild_model

        return rebuild_model(self.library, self._state(epoch))

    def _state(self, epoch: Epoch) -> dict[str, Any]:
        """A checkpoint whose configuration names only what may be run."""
        state = self.checkpoint(epoch)
        hyps = self._permitted(self.library.schema.model_validate(state["hyps"]))
        return state | {"hyps": hyps.model_dump(mode="json")}

    def predict(self, split: str = "test", epoch: Epoch = "best") -> Any:
        """Predictions on train, val or test, as the run's library defines them."""
        trainer = self.library.load_trainer()
        model = self.load_model(epoch)
        return trainer.predict(model, self._permitted(self.hyps), split)

    def evaluate(
        self,
        split: str = "test",
        epoch: Epoch = "best",
        device: str = "auto",
        is_saved: bool = False,
    ) -> dict[str, float]:
        """Loss and metrics on train, val or test.

        Args:
            split: train, val or test.
            epoch: best, last or a number from `epochs()`.
            device: As the key of that name.
            is_saved: Whether to write them to `evaluation_<split>_<epoch>.json`.

        Raises:
            CheckpointError: If that epoch is not saved or its file is damaged.
            ConfigError, DataError: If there is no such split or device, or no data.
        """
        from gridrun.training.evaluation import evaluate_checkpoint

        if epoch == "pruned":
            raise ConfigError("epoch: a pruned model is tested when it is made")
        existing_device(device)
        state = self._state(epoch)
        scores = evaluate_checkpoint(self.library, self.folder, state, split, device)
        if is_saved:
            facts: dict[str, Any] = {
                "split": split,
                "checkpoint": epoch,
                "epoch": state["epoch"],
            }
            path = self.folder.path / f"evaluation_{split}_{epoch}.json"
            write_json(path, facts | {"metrics": tables.without_nan(scores)})
        return scores

    def evaluate_by(
        self,
        /,
        evaluator: str,
        split: str = "test",
        epoch: Epoch = "best",
        is_saved: bool = False,
        device: str = "auto",
        **args: Any,
    ) -> dict[str, Any]:
        """What a plug-in makes of this run.

        Args:
            evaluator: Function `(run, split, epoch, **args)` to a dict of plain data; a
                name in the folder of plug-ins, or an import path.
            split: train, val or test.
            epoch: best, last, pruned or a number from `epochs()`.
            is_saved: Whether to write the result to
                `analysis/<evaluator>/<split>_<epoch>.json`.
            device: As the key of that name, for a function with a parameter `device`;
                auto leaves that at its default, if it has one.
            **args: Its further arguments, plain data.

        Raises:
            ConfigError: If there is none, it refuses the arguments, or there is no such
                split, epoch or device.
            EvaluatorError: If it raises an error that is none of ours.
        """
        return self.evaluate_with(evaluator, args, split, epoch, is_saved, device)

    def evaluate_with(
        self,
        evaluator: str,
        args: Mapping[str, Any],
        split: str = "test",
        epoch: Epoch = "best",
        is_saved: bool = False,
        device: str = "auto",
    ) -> dict[str, Any]:
        """As `evaluate_by`, which raises the same, with the arguments as a dict."""
        if split not in SPLITS:
            text = f"expected one of {', '.join(SPLITS)}; got {split!r}"
            raise ConfigError(f"split: {text}")
        epoch = self._known_epoch(epoch)
        _refuse_unrecordable(evaluator, args)
        function = self._evaluator(evaluator)
        given = {**args, **_device_argument(evaluator, function, device)}
        try:
            inspect.signature(function).bind(self, split, epoch, **given)
        except TypeError as error:
            raise ConfigError(f"evaluator: {evaluator}: {error}") from error
        try:
            made = function(self, split, epoch, **given)
        except GridrunError:
            raise
        except (Exception, SystemExit) as error:
            text = f"{type(error).__name__}: {error}".removesuffix(": ")
            text = f"evaluator {evaluator} fails: {text}{_place_of(error)}"
            raise EvaluatorError(text) from error
        found = _plain_result(evaluator, made)
        if is_saved:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", evaluator)
            folder_path = self.folder.path / "analysis" / name
            folder_path.mkdir(parents=True, exist_ok=True)
            facts = {"split": split, "checkpoint": epoch, "args": given}
            write_json(folder_path / f"{split}_{epoch}.json", facts | {"result": found})
        return found

    def _known_epoch(self, epoch: Epoch) -> Epoch:
        """An epoch that a checkpoint may be of.

        Raises:
            ConfigError: If it is neither a name of one nor the number of a kept one.
        """
        if isinstance(epoch, str) and epoch in NAMED_EPOCHS:
            return epoch
        kept = self.epochs()
        try:
            number = (
                None if isinstance(epoch, bool) else operator.index(cast(int, epoch))
            )
        except TypeError:
            number = None
        if number is None:
            names = ", ".join(NAMED_EPOCHS)
            raise ConfigError(f"epoch: expected {names} or a number, got {epoch!r}")
        if number not in kept:
            numbers = ", ".join(map(str, sorted(kept))) or "none"
            raise ConfigError(f"epoch: {number} is not kept; kept: {numbers}")
        return number

    def _evaluator(self, name: str) -> Callable[..., Any]:
        """The function of a plug-in's name or of an import path.

        Raises:
            ConfigError: If there is none, with what to pass.
        """
        folder = None
        if self.plugins is not None:
            folder = existing_folder(self.plugins)
        elif ":" not in name:
            recorded = read_record(self.folder.hyperparams).get("plugins")
            usual = f"; the run's record names {recorded}" if recorded else ""
            raise ConfigError(
                f"evaluator: {name} is a plug-in: pass --plugins FOLDER "
                f"(plugins= in Python){usual}"
            )
        plugin_files.look_again()
        return cast("Callable[..., Any]", plugin_files.load("evaluator", name, folder))


def existing_folder(plugins: str | Path) -> str:
    """The full path of a folder of plug-ins.

    Raises:
        ConfigError: If it is not there.
    """
    folder = Path(plugins).absolute()
    if not folder.is_dir():
        raise ConfigError(f"plugins: no folder {folder}")
    return str(folder)


def _refuse_unrecordable(evaluator: str, args: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments that cannot be given, or not be written back."""
    for name in args:
        if name in NO_ARGUMENTS:
            text = f"{name} is no argument of an evaluator"
            if name in ("split", "epoch", "device"):
                option = "checkpoint" if name == "epoch" else name
                text += f"; give --{option} ({name}= in Python)"
            raise ConfigError(f"evaluator: {evaluator}: {text}")
    wrong = [f"{name}: {text}" for name, text in odd_values(dict(args))]
    for name, value in args.items():
        if wrong:
            break
        try:
            json_text({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            wrong = [f"{name}: cannot be recorded: {error}"]
    if wrong:
        raise ConfigError([f"evaluator: {evaluator}: {text}" for text in wrong])


def _device_argument(
    evaluator: str, function: Callable[..., Any], name: str
) -> dict[str, str]:
    """The device as an argument of an evaluator, where it takes one.

    Raises:
        ConfigError: If there is no such device, or one is asked for in vain.
    """
    place = str(existing_device(name))
    parameters = inspect.signature(function).parameters
    own = parameters.get("device")
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if name == "auto":
        needs = own is not None and own.default is own.empty
        return {"device": place} if needs else {}
    if own is None and not takes_any:
        text = f"has no parameter 'device'; leave {name} out"
        raise ConfigError(f"evaluator: {evaluator}: {text}")
    return {"device": place}


def existing_device(name: str) -> torch.device:
    """The device that the key `device` names.

    Raises:
        ConfigError: If there is none of that name, or it is not there.
    """
    from gridrun.training.job import pick_device

    try:
        return pick_device(name)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        text = f"expected auto, cpu, cuda or cuda:i; got {name!r}"
        raise ConfigError(f"device: {text}") from error


def _place_of(error: BaseException) -> str:
    """` (file, line N)`: where an error left the file of the evaluator."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _plain_result(name: str, found: Any) -> dict[str, Any]:
    """A dict that JSON can hold: numbers of arrays become Python's."""
    import numpy as np

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        text = f"a {type(value).__name__} cannot be written"
        raise ConfigError(f"evaluator: {name}: {text}; return numbers, texts, lists")

    if not isinstance(found, dict):
        kind = type(found).__name__
        raise ConfigError(f"evaluator: {name}: returned a {kind}; expected a dict")
    return cast("dict[str, Any]", tables.without_nan(plain(found)))


def read_checkpoint(path: Path) -> dict[str, Any]:
    from gridrun.training.checkpoint import from_bytes

    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return from_bytes(content, path)
