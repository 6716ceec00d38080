"""What Python files define and import, read from their syntax: nothing of them runs."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# what reading a source can raise: of a file, its encoding, its syntax, its depth
UNREADABLE = (SyntaxError, ValueError, OSError, MemoryError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Definition:
    """A public class or function of a file.

    Args:
        name: Its name.
        path: The file.
        library: What a class states as LIBRARY, if it does.
    """

    name: str
    path: Path
    library: str | None = None


def definitions_of(path: Path) -> Iterator[Definition]:
    """The public classes and functions of a file, read from its source.

    Raises:
        SyntaxError, ValueError, OSError: If it cannot be read.
    """
    tree = _parsed(path)
    names: dict[str, str] = {}  # and what each stands for
    for node in _statements(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            for target in node.targets:
                if isinstance(target, ast.Name) and node.value.id in names:
                    names[target.id] = names[node.value.id]
    for name, own in names.items():
        if name[0] != "_":
            yield Definition(name, path, _library(path, tree, own))


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, also those that stand under a condition."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from _statements(node.body)
            for handler in getattr(node, "handlers", ()):
                yield from _statements(handler.body)
            yield from _statements(getattr(node, "orelse", ()))
            yield from _statements(getattr(node, "finalbody", ()))


def definition_of(path: Path, name: str) -> Definition | None:
    """A class or function that a file defines, or takes over from one of its package.

    Raises:
        SyntaxError, ValueError, OSError: If a file cannot be read.
    """
    waiting, seen = [(path, name)], set()
    while waiting:
        place = waiting.pop(0)
        if place in seen:
            continue
        seen.add(place)
        for one in definitions_of(place[0]):
            if one.name == place[1]:
                return dataclasses.replace(one, name=name)
        waiting += _origins(place[0], _parsed(place[0]), place[1])
    return None


def _library(
    path: Path, tree: ast.Module, name: str, seen: frozenset[Any] = frozenset()
) -> str | None:
    """What a class states as LIBRARY, or inherits from classes of its package."""
    if (path, name) in seen:
        return None
    seen |= {(path, name)}
    statements = _statements(tree.body)
    classes = (node for node in statements if isinstance(node, ast.ClassDef))
    if (node := next((one for one in classes if one.name == name), None)) is not None:
        bases = [one.id for one in node.bases if isinstance(one, ast.Name)]
        inherited = (_library(path, tree, base, seen) for base in bases)
        return next((one for one in [*_stated_library(node), *inherited] if one), None)
    for file, own_name in _origins(path, tree, name):
        with contextlib.suppress(*UNREADABLE):  # told when it is imported
            if found := _library(file, _parsed(file), own_name, seen):
                return found
    return None


def _origins(path: Path, tree: ast.Module, name: str) -> Iterator[tuple[Path, str]]:
    """Files of its package, and the names there, from which a file imports a name."""
    for node in _statements(tree.body):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if alias.name == "*" or (alias.asname or alias.name) == name:
                own_name = name if alias.name == "*" else alias.name
                for module in _sibling_modules(path, node):
                    yield from ((file, own_name) for file in _files_of(module))


def _parsed(path: Path) -> ast.Module:
    """The syntax of a file, in whatever encoding it declares."""
    return ast.parse(path.read_bytes(), str(path))


def _stated_library(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign):
            targets: list[ast.expr] = [line.target]
        elif isinstance(line, ast.Assign):
            targets = line.targets
        else:
            continue
        names = [one.id for one in targets if isinstance(one, ast.Name)]
        if "LIBRARY" in names and isinstance(line.value, ast.Constant):
            yield str(line.value.value)


def with_siblings(paths: Iterable[Path]) -> list[Path]:
    """Files, and those of their packages that they import, sorted."""
    waiting = list(paths)
    found: dict[Path, None] = {}
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = None
            waiting += _imported_siblings(path)
    return sorted(found)


def _imported_siblings(path: Path) -> Iterator[Path]:
    """Files of its own package that a file imports, relatively or by full name."""
    try:
        tree = _parsed(path)
    except UNREADABLE:  # told when it is imported
        return
    for node in ast.walk(tree):
        modules: list[Path] = []
        if isinstance(node, ast.ImportFrom):
            for module in _sibling_modules(path, node):
                modules += [module, *(module / alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                folder = _top(path, alias.name)
                if folder is not None:
                    modules.append(folder.joinpath(*alias.name.split(".")))
        for one in modules:
            yield from _files_of(one)


def _sibling_modules(path: Path, node: ast.ImportFrom) -> list[Path]:
    """The module of its own package that a file imports from, without suffix."""
    name = node.module or ""
    folder = path.parents[node.level - 1] if node.level else _top(path, name)
    return [] if folder is None else [folder.joinpath(*filter(None, name.split(".")))]


def _files_of(module: Path) -> list[Path]:
    """The file of a module given without suffix, if it is there."""
    places = (module.with_name(f"{module.name}.py"), module / "__init__.py")
    return [place for place in places if place.is_file()]


def _top(path: Path, module: str) -> Path | None:
    """The folder that holds a file's package, if a module is of that package."""
    package = module.partition(".")[0]
    return next((one.parent for one in path.parents if one.name == package), None)
