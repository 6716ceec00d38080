"""Find libraries and their models without importing them.

A library is a package with an entry point in the group `gridrun.libraries` that
names a `Library`. Every public class of its models module is a model.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gridrun.errors import ConfigError, GridrunError

if TYPE_CHECKING:
    from gridrun.config import Hyperparams


@dataclasses.dataclass(frozen=True)
class Library:
    """Where a model library keeps its parts; nothing is imported until used.

    Args:
        name: As in the key `library`.
        hyperparams: `module:class` of the schema; imports no torch.
        models: Module whose public classes are the models.
        trainer: `module:class` of the trainer.
        data_commands: Subcommand of `gridrun data` to the module that has
            `add_arguments(parser)` and `main(args)`.
        data_check: `module:function` that reports on an open data file of this
            library's kind, and gives None for others.
    """

    name: str
    hyperparams: str
    models: str
    trainer: str
    data_commands: Mapping[str, str] = dataclasses.field(default_factory=dict)
    data_check: str = ""

    @property
    def schema(self) -> type[Hyperparams]:
        """The hyperparameters of this library."""
        return cast("type[Hyperparams]", load_object(self.hyperparams))

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models, read from the source without running it."""
        return _public_classes(self.models)

    def model(self, name: str) -> type[Any]:
        """The model class of that name; imports torch.

        Raises:
            ConfigError: If the library has no such model.
        """
        if name not in self.model_names:
            raise ConfigError(f"{self.name} has no model {name!r}")
        return cast("type[Any]", load_object(f"{self.models}:{name}"))

    def load_trainer(self) -> type[Any]:
        """The trainer class; imports torch."""
        return cast("type[Any]", load_object(self.trainer))


@functools.cache
def libraries() -> dict[str, Library]:
    """The installed libraries by name.

    Raises:
        GridrunError: If none is installed.
    """
    found: dict[str, Library] = {}
    for entry in entry_points(group="gridrun.libraries"):
        library = entry.load()
        found[library.name] = library
    if not found:
        raise GridrunError(
            "no model library is installed for this Python; "
            "run `pip install -e .` in the repository"
        )
    return dict(sorted(found.items()))


def library_of(model_type: str) -> Library | None:
    """The library whose models hold that name."""
    for library in libraries().values():
        if model_type in library.model_names:
            return library
    return None


def load_object(path: str) -> object:
    """Import `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def reads(model: type[Any]) -> frozenset[str]:
    """The parameters of a model's constructor: the hyperparameters that it uses."""
    return frozenset(inspect.signature(model).parameters)


@functools.cache
def _public_classes(module: str) -> tuple[str, ...]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ()
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return tuple(
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
