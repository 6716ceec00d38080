"""Experiments in Python: three dictionaries and registered options become a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun.analysis.sweep import Sweep
from gridrun.config import Hyperparams
from gridrun.config.files import resolve_paths
from gridrun.durable import write_durably, writing
from gridrun.errors import ConfigError
from gridrun.recordable import recordable
from gridrun.sweep import run_sweep

# names of the three dictionaries and ours; in JSON they are errors that give ours
NAMES = {
    "name": "exp_name",
    "train_set": "dataset",
    "target_device": "device",
    "n_repetitions": "n_repeats",
    "num_epochs": "n_epochs",
    "model": "model_type",
    "loss_function": "lossfxn",
}


class Experiment:
    """A grid that is put together in Python; the same sweep as from JSON.

    Args:
        experiment_config, solver_config, base_hyperparams: Keys and values, each in one
            of the three. Beside the hyperparameters' own names those of `NAMES` do. A
            value may be a class or an object where a name may (`gridrun.recordable`);
            what `model_args` and the like hold beside an object, options included,
            counts before the arguments that it was made of. `interest_keys` is a list
            that `run` fills with the keys that have options.

    Raises:
        ConfigError: If a key is given twice, or a value cannot be recorded.
    """

    def __init__(
        self,
        experiment_config: Mapping[str, Any],
        solver_config: Mapping[str, Any],
        base_hyperparams: Mapping[str, Any],
    ) -> None:
        self.base: dict[str, Any] = {}
        self.ranges: dict[str, list[Any]] = {}
        self._interest_keys: list[str] | None = None
        groups = {
            "experiment_config": experiment_config,
            "solver_config": solver_config,
            "base_hyperparams": base_hyperparams,
        }
        for group, given in groups.items():
            if not isinstance(given, Mapping):
                text = f"expected a dictionary, got a {type(given).__name__}"
                raise ConfigError(f"{group}: {text}")
            for name, value in given.items():
                self._take(name, value)
        needs_metric = self.base.pop("scheduler_requires_metric", None)
        is_plateau = self.base.get("scheduler") == "ReduceLROnPlateau"
        if needs_metric is not None and bool(needs_metric) != is_plateau:
            raise ConfigError(
                f"scheduler_requires_metric: {needs_metric} is wrong for "
                f"{self.base.get('scheduler')}; leave it out"
            )

    def _take(self, name: str, value: Any) -> None:
        key = NAMES.get(name, name)
        if key == "interest_keys":
            if not isinstance(value, list):
                text = f"expected a list, which run fills; got a {type(value).__name__}"
                raise ConfigError(f"{name}: {text}")
            self._interest_keys = value
            return
        if key in self.base:
            raise ConfigError(f"{name}: given twice; keep one")
        self.base[key] = recordable(value, name)

    def add_options(self, key: str | Sequence[str], values: Iterable[Any]) -> None:
        """Try each of several values of a key; the first key added varies slowest.

        Args:
            key: Its name, or the path to a value inside it.
            values: To try.

        Raises:
            ConfigError: If there are none, or the key has options already.
        """
        path = _path(key)
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
            raise ConfigError(f"{path}: expected a list of values, got {values!r}")
        self._add(path, [recordable(value, path) for value in values])

    def add_linked_options(
        self, keys: Sequence[str | Sequence[str]], values: Iterable[Sequence[Any]]
    ) -> None:
        """Try values of several keys that change together.

        Args:
            keys: As in `add_options`.
            values: One tuple for each option, with a value for each key.

        Raises:
            ConfigError: As of `add_options`, or for a tuple of another length.
        """
        if isinstance(keys, str):
            raise ConfigError(f"{keys}: expected a list of keys, which change together")
        name = ", ".join(map(_path, keys))
        options = [[recordable(value, name) for value in one] for one in values]
        for option in options:
            if len(option) != len(keys):
                raise ConfigError(
                    f"{name}: an option needs {len(keys)} values; got {option}"
                )
        self._add(name, options)

    def _add(self, name: str, options: list[Any]) -> None:
        if not options:
            raise ConfigError(f"{name}: no option given")
        taken = {key for known in self.ranges for key in known.split(", ")}
        for key in name.split(", "):
            if key in taken:
                raise ConfigError(f"{key}: has options already; give all at once")
        self.ranges[name] = options

    def run(self, **options: Any) -> Sweep:
        """Train what is missing of the grid.

        Args:
            **options: As of `gridrun.run_sweep`, keys of the runner included.
        """
        sweep = run_sweep(self.base, self.ranges or None, **options)
        if self._interest_keys is not None:
            names = ", ".join(self.ranges)
            self._interest_keys[:] = names.split(", ") if names else []
        return sweep

    def to_json(self, folder: str | Path) -> list[Path]:
        """Write hyperparams.json and, with options, hyperranges.json; their paths.

        Without options a hyperranges.json of an earlier call is removed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        base, beside = self.base, Path.cwd() / "plugins"
        if beside.is_dir():  # where `run` finds them
            base = {"plugins": str(beside), **base}
        # relative paths are relative to the file there
        base = resolve_paths(base, Hyperparams, Path.cwd())
        paths = [folder / "hyperparams.json", folder / "hyperranges.json"]
        if not self.ranges:
            with writing(paths[1]):
                paths.pop().unlink(missing_ok=True)
        for path, content in zip(paths, (base, self.ranges), strict=False):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            write_durably(path, text + "\n")
        return paths


def _path(key: str | Sequence[str]) -> str:
    """The dotted name of a key or of a path of names."""
    name = key if isinstance(key, str) else ".".join(key)
    first, *rest = name.split(".")
    return ".".join([NAMES.get(first, first), *rest])
