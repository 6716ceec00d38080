"""Find libraries and their models without importing them.

A library is a package with an entry point in the group `gridrun.libraries` that
names a `Library`. Every public class of its models module is a model; a user's own
(`gridrun.plugin_files`) belongs to the library that it names as LIBRARY, or else to
`general`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gridrun import plugin_files
from gridrun.config.messages import suggest
from gridrun.errors import ConfigError, GridrunError

if TYPE_CHECKING:
    from gridrun.config import Hyperparams


@dataclasses.dataclass(frozen=True)
class Library:
    """Where a model library keeps its parts; nothing is imported until used.

    Args:
        name: As in the key `library`.
        hyperparams: `module:class` of the schema; imports no torch.
        models: Module whose public classes are the models; empty: all are plug-ins.
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

    def model(self, name: str, plugins: str | None = None) -> type[Any]:
        """The model class of that name; imports torch.

        Args:
            name: Of a model of the library or of a plug-in, or an import path.
            plugins: Folder of the plug-ins.

        Raises:
            ConfigError: If there is no such model.
        """
        if name in self.model_names:
            return cast("type[Any]", load_object(f"{self.models}:{name}"))
        from torch import nn

        found = plugin_files.load("model_type", name, plugins)
        if not inspect.isclass(found) or not issubclass(found, nn.Module):
            raise ConfigError(f"model_type: {name} is no class derived from nn.Module")
        return found

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


def library_of(model_type: str, plugins: str | None = None) -> Library | None:
    """The library whose keys apply to a model.

    Args:
        model_type: Of a library or of a plug-in, or an import path.
        plugins: Folder of the plug-ins.

    Raises:
        ConfigError: If a plug-in has the name of a library's model or names no library,
            or an import path leads nowhere.
    """
    own = next((x for x in libraries().values() if model_type in x.model_names), None)
    found = plugin_files.find(model_type, plugins)
    if found is None:
        return own
    if own is not None:
        raise ConfigError(
            f"{model_type} is a model of {own.name} and stands in {found.path}; "
            "rename that"
        )
    name = found.library or "general"
    if name not in libraries():
        raise ConfigError(
            f"{found.path}: {model_type}: LIBRARY {name!r} is unknown"
            f"{suggest(name, libraries())}"
        )
    return libraries()[name]


def recorded_library(hyps: Mapping[str, Any]) -> Library | None:
    """The library that a run's record names, by plain names: nothing is imported."""
    known, model = libraries(), hyps.get("model_type")
    own = next((x for x in known.values() if model in x.model_names), None)
    return known.get(str(hyps.get("library")), own)


def permitted(
    library: Library,
    hyps: Hyperparams,
    plugins: str | Path | None,
    imports: Sequence[str],
) -> Hyperparams:
    """A recorded configuration whose own classes may be run.

    Records are data: what they name beyond the libraries is followed only if the caller
    names it.

    Args:
        library: That the record names.
        hyps: As recorded.
        plugins: Folder of plug-ins that may be run, if any.
        imports: Modules, or packages of them, that may be imported.

    Raises:
        ConfigError: If it names another class, with what to pass.
    """
    for name in hyps.plugin_names():
        if name in library.model_names:
            continue
        if ":" not in name:
            if plugins is None:
                raise ConfigError(
                    f"{name} is a plug-in, which a record does not run by itself: pass "
                    f"plugins={hyps.plugins!r} (--plugins)"
                )
            continue
        module = name.partition(":")[0]
        if not any(f"{module}.".startswith(f"{one}.") for one in imports):
            raise ConfigError(
                f"{name} is no part of a library; a record does not import it by "
                f"itself: pass imports=[{module!r}] (--imports)"
            )
    folder = None if plugins is None else str(Path(plugins).absolute())
    return hyps.model_copy(update={"plugins": folder})


def load_object(path: str) -> object:
    """Import `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def reads(model: type[Any]) -> frozenset[str]:
    """The parameters of a model's constructor: the hyperparameters that it uses."""
    return frozenset(inspect.signature(model).parameters)


@functools.cache
def _public_classes(module: str) -> tuple[str, ...]:
    spec = importlib.util.find_spec(module) if module else None
    if spec is None or spec.origin is None:
        return ()
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return tuple(
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
