"""A user's own classes and functions: files dropped into a folder, and import paths.

What a file holds is read from its source; it runs only when something of it is used.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gridrun.config.keys import class_name
from gridrun.config.messages import shown, suggest
from gridrun.errors import ConfigError
from gridrun.sources import (
    UNREADABLE,
    Definition,
    definition_of,
    definitions_of,
    with_siblings,
)


@dataclasses.dataclass(frozen=True)
class PluginFolder:
    """What the files of a folder and its subfolders define.

    Args:
        path: The folder.
        definitions: Those of each name; of several only one can be meant.
        broken: Files that are no Python, with the reason.
    """

    path: Path
    definitions: dict[str, list[Definition]]
    broken: dict[Path, str]

    def find(self, name: str) -> Definition | None:
        """What the folder has of that name.

        Raises:
            ConfigError: If two files have it.
        """
        found = self.definitions.get(name, [])
        if len(found) > 1:
            raise ConfigError(
                f"{name} stands in {found[0].path} and in {found[1].path}; rename one"
            )
        return found[0] if found else None

    def module(self, path: Path) -> ModuleType:
        """The module of one of the files; all run again if one of it has changed since.

        Raises:
            ConfigError: If it cannot be imported.
        """
        package = _package(self.path)
        parts = path.relative_to(self.path).with_suffix("").parts
        name = ".".join([package, *parts])
        stamps = stamps_of(path)
        known = vars(sys.modules[package]).setdefault("__stamps__", {})
        if any(known.get(file, stamp) != stamp for file, stamp in stamps.items()):
            for other in [one for one in sys.modules if one.startswith(f"{package}.")]:
                del sys.modules[other]
            known.clear()
            importlib.invalidate_caches()
        known |= stamps
        return imported(name, path)


def stamps_of(path: Path) -> dict[str, tuple[int, int]]:
    """Time and size of a file, and of those of its package that it imports."""
    return {
        str(file): (file.stat().st_mtime_ns, file.stat().st_size)
        for file in with_siblings([path])
    }


def imported_unchanged(name: str, path: Path) -> ModuleType:
    """A module by its import path, which Python imports once in a process.

    Raises:
        ConfigError: If it cannot be imported, or is no longer what this process uses:
            the record would name a source that did not train.
    """
    module, stamps = imported(name, path), stamps_of(path)
    before = vars(module).setdefault("__gridrun_stamps__", stamps)
    changed = [file for file, stamp in stamps.items() if before.get(file) != stamp]
    if changed:
        text = f"{changed[0]} has changed since this process imported it"
        raise ConfigError(f"{text}; start Python (or the notebook's kernel) anew")
    return module


def imported(name: str, path: Path) -> ModuleType:
    """A user's module.

    Raises:
        ConfigError: If it cannot be imported, also if it would end the program.
    """
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} cannot be imported: {text}") from error


def _package(folder: Path) -> str:
    """A package whose modules are the files of a folder, so that they find each other.

    Files import each other by `from .other import name`.
    """
    name = "gridrun_plugins_" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


@functools.cache
def plugin_folder(path: str) -> PluginFolder:
    """What a folder holds; kept until `look_again`."""
    folder = Path(path)
    definitions: dict[str, list[Definition]] = {}
    broken: dict[Path, str] = {}
    for file in sorted(folder.rglob("*.py")):
        relative = file.relative_to(folder)
        if any(part.startswith((".", "_")) for part in relative.parts):
            continue
        try:
            found = list(definitions_of(file))
        except UNREADABLE as error:
            broken[file] = f"{type(error).__name__}: {error}"
            continue
        for one in found:
            definitions.setdefault(one.name, []).append(one)
    return PluginFolder(folder, definitions, broken)


def look_again() -> None:
    """Forget what folders held."""
    plugin_folder.cache_clear()


def find(name: str, plugins: str | None) -> Definition | None:
    """The definition of a plug-in's name or of an import path; None if there is none.

    Args:
        name: `Class` of the folder, or `package.module:Class`.
        plugins: The folder, if there is one.

    Raises:
        ConfigError: If the name stands in two files, or the module is not there.
    """
    if ":" not in name:
        return plugin_folder(plugins).find(name) if plugins else None
    module, _, own = name.partition(":")
    path = _module_file(module)
    try:
        return definition_of(path, own)
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _module_file(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"no module {module!r}: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ConfigError(f"no module {module!r} for this Python ({sys.executable})")
    return Path(spec.origin)


def load(key: str, name: str, plugins: str | None, known: Iterable[str] = ()) -> Any:
    """The class or function of a plug-in's name or of an import path.

    Args:
        key: That names it, for errors.
        name, plugins: As of `find`.
        known: Names that are ours, for errors.

    Raises:
        ConfigError: If there is none, or its file cannot be imported.
    """
    try:
        found = find(name, plugins)
        if found is None:
            raise ConfigError(f"unknown {name!r}{hint(name, plugins, known)}")
        if plugins and ":" not in name:
            module = plugin_folder(plugins).module(found.path)
        else:
            module = imported_unchanged(name.partition(":")[0], found.path)
        return getattr(module, found.name)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def refuse_clash(key: str, name: str, plugins: str | None) -> None:
    """Refuse a plug-in that has a name of ours.

    Raises:
        ConfigError: With its file.
    """
    if (found := find(name, plugins)) is not None:
        raise ConfigError(f"{key}: {name} is ours and stands in {found.path}; rename")


def args_of(key: str, entry: Any) -> Mapping[str, Any]:
    """The arguments of a name or `{"class", "args"}`.

    Raises:
        ConfigError: If it is something else.
    """
    args = entry.get("args", {}) if isinstance(entry, Mapping) else {}
    if isinstance(entry, Mapping) and set(entry) - {"class", "args"}:
        text = f'expected a name or {{"class", "args"}}, got {shown(entry)}'
        raise ConfigError(f"{key}: {text}")
    if not isinstance(args, Mapping):
        raise ConfigError(f"{key}: args: expected an object, got {shown(args)}")
    return args


def make(key: str, entry: Any, plugins: str | None, known: Iterable[str] = ()) -> Any:
    """What a name or `{"class", "args"}` stands for: a class is made, a function kept.

    Args:
        key: That holds it, for errors.
        entry: Its value.
        plugins: Folder of the plug-ins.
        known: Names that are ours, for errors.

    Raises:
        ConfigError: If there is none, or it refuses the arguments.
    """
    args = args_of(key, entry)
    found = load(key, class_name(entry), plugins, known)
    if inspect.isclass(found):
        return construct(key, found, args)
    if args:
        raise ConfigError(f"{key}: {class_name(entry)} is a function; it takes no args")
    return found


def construct(
    key: str,
    kind: Any,
    args: Mapping[str, Any],
    automatic: Mapping[str, Any] | None = None,
) -> Any:
    """An object of a class.

    Args:
        key: That holds the arguments, for errors.
        kind: The class.
        args: Its arguments, as given.
        automatic: Arguments that it gets if its constructor has them.

    Raises:
        ConfigError: If the constructor has other arguments, needs more, or raises.
    """
    automatic = automatic or {}
    parameters = inspect.signature(kind).parameters.values()
    known = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    takes_any = len(known) < len(parameters)
    for name in args:
        if name in automatic and name in known:
            raise ConfigError(f"{key}: {name} is a key; give it outside {key}")
        if name not in known and not takes_any:
            text = suggest(name, known - set(automatic))
            raise ConfigError(f"{key}: {kind.__name__} has no argument {name!r}{text}")
    given = {name: value for name, value in automatic.items() if name in known}
    given |= args
    for one in parameters:
        is_named = one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        if is_named and one.default is one.empty and one.name not in given:
            text = f"{kind.__name__} needs the argument {one.name!r}"
            raise ConfigError(f"{key}: {text}")
    try:
        return kind(**given)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        of = ", ".join(f"{name} {shown(value)}" for name, value in given.items())
        text = f"{kind.__name__} cannot be made of {of or 'nothing'}"
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}: {text}: {reason}") from error


def hint(name: str, plugins: str | None, known: Iterable[str] = ()) -> str:
    """What to say of a name that is not there: near ones, and files that are broken."""
    if ":" in name:
        return " in that module"
    folder = plugin_folder(plugins) if plugins else None
    names = [*known, *(folder.definitions if folder else ())]
    broken = folder.broken.items() if folder else ()
    texts = [f"{path} is no Python ({why})" for path, why in broken]
    near = suggest(name, names)
    if "did you mean" not in near:
        texts.append(f"plugins: {folder.path if folder else 'no folder'}")
    return "; ".join([near, *texts])


def source_files(names: Iterable[str], plugins: str | None) -> list[Path]:
    """The files that define names, and those of the folder that they import.

    Args:
        names: Plug-ins and import paths.
        plugins: The folder, if there is one.
    """
    return with_siblings(
        one.path for name in names if (one := find(name, plugins)) is not None
    )
