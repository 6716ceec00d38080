"""What was asked: two files and overrides -> checked grid points; no torch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun import plugin_files
from gridrun.config import (
    Hyperparams,
    Problem,
    Variant,
    complete,
    keys_of,
    parse_override,
    raise_problems,
    read_json,
    resolve_paths,
    set_nested,
    suggest,
)
from gridrun.config.checks import given_twice, lift_classes
from gridrun.config.files import absolute, odd_values
from gridrun.config.keys import NORMALIZERS, class_name
from gridrun.errors import ConfigError
from gridrun.grid import MAX_RUNS, SWEEP_OPTION, Grid, axis_keys, parse_ranges, points
from gridrun.plugins import Library, libraries, library_of

COMMAND_LINE = "command line"
MAX_PROBLEMS = 30


@dataclasses.dataclass(frozen=True)
class Point:
    """A grid point: its swept values, and its completed configuration."""

    axes: Mapping[str, Any]
    variant: Variant

    @property
    def hyps(self) -> Hyperparams:
        """Its complete configuration."""
        return self.variant.hyps


@dataclasses.dataclass(frozen=True)
class Request:
    """One request for a sweep, read and found well-formed.

    Args:
        base: Keys of hyperparams.json and of the command line, as given.
        ranges: Content of hyperranges.json.
        grids: The same, parsed.
        library: Whose keys apply.
        sources: File to name in messages, for `base`, `ranges` and overridden keys.
        overridden: Keys of the command line, in its order.
        problems: Found while reading; `points` raises them with its own.
        plugins: Folder of the plug-ins, if there is one.
    """

    base: Mapping[str, Any]
    ranges: Any
    grids: tuple[Grid, ...]
    library: Library
    sources: Mapping[str, str]
    overridden: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    plugins: str | None = None

    def points(self) -> list[Point]:
        """Every grid point, completed and checked without torch.

        Raises:
            ConfigError: With every problem of both files.
        """
        found: list[Point] = []
        problems = dict.fromkeys(self.problems)
        broken = {(problem.file, problem.key) for problem in self.problems}
        for axes in points(self.grids):
            hyps, wrong = self._completed(axes)
            for name, message in wrong:
                problem = Problem(self.source_of(name), name, message)
                if (problem.file, name) not in broken and not (
                    self.is_partial and message.startswith("required")
                ):
                    problems[problem] = None
            if hyps is not None:
                first = found[0].variant.base if found else hyps
                found.append(Point(axes, Variant.of(hyps, first)))
            if len(problems) >= MAX_PROBLEMS:
                break
        problems |= dict.fromkeys(self._never_swept())
        raise_problems(list(problems))
        return found

    @property
    def is_partial(self) -> bool:
        """Whether part of the ranges could not be read, so that keys may be missing."""
        return any(one.file == self.sources["ranges"] for one in self.problems)

    def _completed(
        self, axes: Mapping[str, Any]
    ) -> tuple[Hyperparams | None, list[tuple[str, str]]]:
        values = dict(self.base)
        wrong: list[tuple[str, str]] = []
        for name, value in axes.items():
            try:
                set_nested(values, name, value)
            except TypeError as error:
                wrong.append((name, str(error)))
        wrong += lift_classes(values)
        wrong += _unknown_names(values, self.library, self.plugins)
        hyps, more = complete(values, self.library.schema)
        return hyps, wrong + more

    def source_of(self, name: str) -> str:
        """The file that gave a key its value."""
        for swept in axis_keys(self.grids):
            if swept == name or swept.startswith(f"{name}."):
                return self.sources["ranges"]
        return self.sources.get(name, self.sources["base"])

    def _never_swept(self) -> Iterable[Problem]:
        facts = keys_of(self.library.schema)
        for swept in axis_keys(self.grids):
            outer = swept.partition(".")[0]
            if outer in facts and not facts[outer].sweepable:
                yield Problem(
                    self.sources["ranges"],
                    swept,
                    "cannot be swept; give one value in hyperparams.json",
                )
            for given in self.overridden:
                if f"{given}.".startswith(f"{swept}.") or swept.startswith(f"{given}."):
                    yield Problem(
                        COMMAND_LINE,
                        given,
                        f"is swept in {self.sources['ranges']}; leave one of them out",
                    )


def read_request(
    hyperparams: str | Path | Mapping[str, Any],
    hyperranges: str | Path | Mapping[str, Any] | Sequence[Any] | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    giver: str = COMMAND_LINE,
) -> Request:
    """Read both files and the command line.

    Args:
        hyperparams: Path of hyperparams.json, or its content.
        hyperranges: Path of hyperranges.json, or its content; None: no ranges.
        overrides: `key=value` texts, which win over hyperparams.json.
        options: Keys given as options of the command; they win over everything.
        giver: Who gives the options, for errors.

    Raises:
        ConfigError: With every problem that keeps the files from being understood.
    """
    base_file, ranges_file, grids, problems = _read_both(hyperparams, hyperranges)
    base: dict[str, Any] = base_file.content
    sources = {"base": base_file.name, "ranges": ranges_file.name}
    named = [text.partition("=") for text in overrides]
    early = {key: value for key, sign, value in named if sign}
    folder, absent = _plugins(base, base_file, {**early, **(options or {})})
    problems += absent
    if absent:  # names of plug-ins would be called unknown
        raise_problems(problems)
    library = _choose_library({**base, **early, "plugins": folder}, grids)
    try:
        base = resolve_paths(base, library.schema, base_file.folder)
    except ConfigError as error:
        problems.append(Problem(base_file.name, "", str(error)))
    overridden, wrong_overrides = _override(base, overrides, library)
    problems += wrong_overrides
    if folder is not None:
        base = {**base, "plugins": folder}
    for key, value in _joined(options or {}, base).items():
        base |= resolve_paths({key: value}, library.schema, Path.cwd())
        overridden.append(key)
    sources |= {key.partition(".")[0]: COMMAND_LINE for key in overridden}
    sources |= dict.fromkeys(options or {}, giver)
    grids = _with_absolute_paths(grids, library, ranges_file.folder)
    _refuse_too_many(base, grids, ranges_file.name)
    return Request(
        base=base,
        ranges=ranges_file.content,
        grids=grids,
        library=library,
        sources=sources,
        overridden=tuple(overridden),
        problems=tuple(problems),
        plugins=folder,
    )


def _read_both(
    hyperparams: str | Path | Mapping[str, Any],
    hyperranges: str | Path | Mapping[str, Any] | Sequence[Any] | None,
) -> tuple[_File, _File, tuple[Grid, ...], list[Problem]]:
    """Both files, the grids of the second, and what is wrong.

    Raises:
        ConfigError: If the first holds no keys.
    """
    base = _read(hyperparams, "hyperparams")
    ranges = _read({} if hyperranges is None else hyperranges, "hyperranges")
    problems = [*base.problems, *ranges.problems]
    if base.is_read and not isinstance(base.content, dict):
        problems.append(Problem(base.name, "", "expected an object of key: value"))
    grids: tuple[Grid, ...] = (Grid(),)
    if ranges.is_read:
        grids, wrong = parse_ranges(ranges.content)
        problems += [Problem(ranges.name, key, text) for key, text in wrong]
    if not isinstance(base.content, dict):
        raise_problems(problems)
    problems += [Problem(base.name, *one) for one in given_twice(base.content)]
    return base, ranges, grids, problems


def _plugins(
    base: Mapping[str, Any], file: _File, given: Mapping[str, Any]
) -> tuple[str | None, list[Problem]]:
    """The folder of the plug-ins, if there is one, and what is wrong."""
    plugin_files.look_again()
    asked, source, beside = base.get("plugins"), file.name, file.folder
    if "plugins" in given:
        asked, source, beside = given["plugins"], COMMAND_LINE, Path.cwd()
    if not isinstance(asked, str) or list(odd_values(asked)):  # told elsewhere
        usual = file.folder / "plugins"
        return (str(usual) if asked is None and usual.is_dir() else None), []
    try:
        folder = absolute(asked, beside)
        is_there = Path(folder).is_dir()
    except (ConfigError, OSError, ValueError) as error:
        return None, [Problem(source, "plugins", str(error))]
    if not is_there:
        return None, [Problem(source, "plugins", f"no folder {folder}")]
    return folder, []


def _override(
    base: dict[str, Any], overrides: Sequence[str], library: Library
) -> tuple[list[str], list[Problem]]:
    """Set `key=value` texts in a base; the keys set, and what is wrong."""
    overridden: list[str] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            key, value = parse_override(text, library.schema)
            given = resolve_paths({key: value}, library.schema, Path.cwd())
            if key in overridden:
                raise ConfigError(f"{key}: stands twice; keep one")
            set_nested(base, key, given[key])
            overridden.append(key)
        except (ConfigError, TypeError) as error:
            message = str(error).removeprefix(f"{COMMAND_LINE}: ")
            problems.append(Problem(COMMAND_LINE, "", message))
    return overridden, problems


def _joined(options: Mapping[str, Any], base: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of a cluster beside those of the file, if they are of the same one."""
    own, beside = options.get("executor_args"), base.get("executor_args")
    executor = base.get("executor")
    if options.get("executor", executor) != executor:
        return options
    if not isinstance(own, dict) or not isinstance(beside, dict):
        return options
    return {**options, "executor_args": beside | own}


@dataclasses.dataclass(frozen=True)
class _File:
    """An input as read: content, name for messages, folder of relative paths."""

    content: Any
    name: str
    folder: Path
    problems: tuple[Problem, ...] = ()
    is_read: bool = True


def _read(given: str | Path | Mapping[str, Any] | Sequence[Any], kind: str) -> _File:
    if not isinstance(given, str | Path):
        plain = dict(given) if isinstance(given, Mapping) else list(given)
        wrong = list(odd_values(plain))
        found = tuple(Problem(kind, key, text) for key, text in wrong)
        return _File(plain, kind, Path.cwd(), found)
    path, name = Path(given), str(given)
    folder = path.absolute().parent
    try:
        content, wrong = read_json(path)
    except ConfigError as error:
        texts = [text.removeprefix(f"{path}: ") for text in error.problems]
        found = tuple(Problem(name, "", text) for text in texts)
        return _File(None, name, folder, found, is_read=False)
    found = tuple(Problem(name, key, text) for key, text in wrong)
    return _File(content, name, folder, found)


def _choose_library(base: Mapping[str, Any], grids: Sequence[Grid]) -> Library:
    """The library of the model types; where they are unknown, of the most keys."""
    known = libraries()
    if isinstance(base.get("library"), str) and base["library"] in known:
        return known[base["library"]]
    plugins = base.get("plugins")
    swept = [
        value
        for grid in grids
        for axis in grid.axes
        for values in axis.values
        for key, value in zip(axis.keys, values, strict=True)
        if key == "model_type"
    ]
    for value in [base.get("model_type"), *swept]:
        name = class_name(value) if value is not None else ""
        with contextlib.suppress(ConfigError):  # told with its file and key later
            if name and (library := library_of(name, plugins)):
                return library
    given = {*base, *axis_keys(grids)}
    return max(
        known.values(), key=lambda one: len(given & set(one.schema.model_fields))
    )


def _with_absolute_paths(
    grids: tuple[Grid, ...], library: Library, folder: Path
) -> tuple[Grid, ...]:
    paths = {n for n, facts in keys_of(library.schema).items() if facts.is_path}

    def fix(key: str, value: Any) -> Any:
        is_relative = key in paths and isinstance(value, str)
        return absolute(value, folder) if is_relative else value

    def fixed(grid: Grid) -> Grid:
        axes = tuple(
            dataclasses.replace(
                axis,
                values=tuple(
                    tuple(map(fix, axis.keys, values)) for values in axis.values
                ),
            )
            for axis in grid.axes
        )
        return dataclasses.replace(grid, axes=axes)

    return tuple(map(fixed, grids))


def _refuse_too_many(base: Mapping[str, Any], grids: Sequence[Grid], name: str) -> None:
    repeats = [base.get("n_repeats"), base.get("bootstrap")]
    if isinstance(base.get("seeds"), list):
        repeats.append(len(base["seeds"]))
    n_repeats = max([1, *(n for n in repeats if isinstance(n, int))])
    n_points = sum(grid.n_points for grid in grids)
    if n_points * n_repeats > MAX_RUNS:
        less = f", or less than {n_repeats:,} n_repeats" if n_repeats > 1 else ""
        raise ConfigError(
            f"{name}: {_count(n_points * n_repeats)} runs, more than {MAX_RUNS:,}; "
            f'sweep fewer values, or draw some with "{SWEEP_OPTION}"{less}'
        )


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**18 else "over 10^18"


def _unknown_names(
    values: Mapping[str, Any], library: Library, plugins: str | None
) -> list[tuple[str, str]]:
    """Unknown models, loops and libraries, told without torch."""
    problems = []
    asked = values.get("library")
    if isinstance(asked, str) and asked not in libraries():
        text = f"unknown library {asked!r}{suggest(asked, libraries())}"
        problems.append(("library", text))
    model = values.get("model_type")
    if isinstance(model, str) and model not in library.model_names:
        problems += _model_problems(model, library, plugins, is_given=asked is not None)
    loop, loops = values.get("train_loop"), library.schema.loops
    if isinstance(loop, str) and loop not in loops:
        problems += _unknown_plugin("train_loop", loop, plugins, loops)
    normalizer = values.get("normalizer")
    if isinstance(normalizer, str | dict):
        name = class_name(normalizer)
        if name not in NORMALIZERS:
            problems += _unknown_plugin("normalizer", name, plugins, NORMALIZERS)
        elif isinstance(normalizer, dict) and normalizer.get("args"):
            problems.append(("normalizer", f"{name} takes no args"))
    return problems


def _model_problems(
    model: str, library: Library, plugins: str | None, is_given: bool
) -> list[tuple[str, str]]:
    try:
        other = library_of(model, plugins)
    except ConfigError as error:
        return [("model_type", str(error))]
    if other is None:
        return [("model_type", f"unknown model {model!r}{_near(model, plugins)}")]
    if other is library or (is_given and model not in other.model_names):
        return []
    text = f"{model} is a model of {other.name}, but the sweep is of {library.name}"
    return [("model_type", f"{text}; a sweep has one library")]


def _near(model: str, plugins: str | None) -> str:
    known = [name for one in libraries().values() for name in one.model_names]
    return plugin_files.hint(model, plugins, known)


def _unknown_plugin(
    key: str, name: str, plugins: str | None, known: Iterable[str]
) -> list[tuple[str, str]]:
    try:
        if plugin_files.find(name, plugins) is not None:
            return []
    except ConfigError as error:
        return [(key, str(error))]
    return [(key, f"unknown {name!r}{plugin_files.hint(name, plugins, known)}")]
