"""A recorded run for people: its metrics, checkpoints, model, predictions, scores."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gridrun import plugin_files
from gridrun.analysis import tables
from gridrun.durable import read_record, write_json
from gridrun.errors import CheckpointError, ConfigError, StoreError
from gridrun.plugins import Library, permitted, recorded_library
from gridrun.run import RunState
from gridrun.store import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gridrun.config import Hyperparams

Epoch = int | Literal["best", "last", "pruned"]


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
        evaluator: str,
        split: str = "test",
        epoch: Epoch = "best",
        is_saved: bool = False,
        **args: Any,
    ) -> dict[str, Any]:
        """What a plug-in makes of this run.

        Args:
            evaluator: Function `(run, split, epoch, **args)` to a dict of plain data; a
                name in the folder of plug-ins, or an import path.
            split: train, val or test.
            epoch: best, last or a number from `epochs()`.
            is_saved: Whether to write the result to
                `analysis/<evaluator>/<split>_<epoch>.json`.
            **args: Its further arguments.

        Raises:
            ConfigError: If there is none, or it refuses the arguments.
        """
        folder = None if self.plugins is None else str(Path(self.plugins).absolute())
        plugin_files.look_again()
        function = plugin_files.load("evaluator", evaluator, folder)
        try:
            inspect.signature(function).bind(self, split, epoch, **args)
        except TypeError as error:
            raise ConfigError(f"evaluator: {evaluator}: {error}") from error
        found = _plain_result(evaluator, function(self, split, epoch, **args))
        if is_saved:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", evaluator)
            folder_path = self.folder.path / "analysis" / name
            folder_path.mkdir(parents=True, exist_ok=True)
            facts = {"split": split, "checkpoint": epoch, "args": args}
            write_json(folder_path / f"{split}_{epoch}.json", facts | {"result": found})
        return found


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
