"""What was asked: two files and overrides -> checked grid points -> runs.

`read_request` and `Request.points` need no torch; `check_effects` and `check_data`
import the models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun.config import (
    Hyperparams,
    Problem,
    complete,
    data_root,
    defaults_of,
    keys_of,
    parse_override,
    raise_problems,
    read_json,
    resolve_paths,
    set_nested,
    shown,
    suggest,
)
from gridrun.config.files import absolute, not_finite
from gridrun.errors import ConfigError, DataError
from gridrun.grid import MAX_RUNS, SWEEP_OPTION, Grid, axis_keys, parse_ranges, points
from gridrun.planner import data_key
from gridrun.plugins import Library, libraries, library_of, reads
from gridrun.run import RunSpec, identity, make_spec

COMMAND_LINE = "command line"
MAX_PROBLEMS = 30


@dataclasses.dataclass(frozen=True)
class Point:
    """A grid point: its swept values, and its completed configuration."""

    axes: Mapping[str, Any]
    hyps: Hyperparams


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
    """

    base: Mapping[str, Any]
    ranges: Any
    grids: tuple[Grid, ...]
    library: Library
    sources: Mapping[str, str]
    overridden: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

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
                found.append(Point(axes, hyps))
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
        wrong += _unknown_names(values, self.library)
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
) -> Request:
    """Read both files and the command line.

    Args:
        hyperparams: Path of hyperparams.json, or its content.
        hyperranges: Path of hyperranges.json, or its content; None: no ranges.
        overrides: `key=value` texts, which win over hyperparams.json.
        options: Keys given as options of the command; they win over everything.

    Raises:
        ConfigError: With every problem that keeps the files from being understood.
    """
    base_file = _read(hyperparams, "hyperparams")
    ranges_file = _read({} if hyperranges is None else hyperranges, "hyperranges")
    problems = [*base_file.problems, *ranges_file.problems]
    if base_file.is_read and not isinstance(base_file.content, dict):
        problems.append(Problem(base_file.name, "", "expected an object of key: value"))
    grids: tuple[Grid, ...] = (Grid(),)
    if ranges_file.is_read:
        grids, wrong = parse_ranges(ranges_file.content)
        problems += [Problem(ranges_file.name, key, text) for key, text in wrong]
    if not isinstance(base_file.content, dict):
        raise_problems(problems)
    base: dict[str, Any] = base_file.content
    sources = {"base": base_file.name, "ranges": ranges_file.name}
    named = [text.partition("=") for text in overrides]
    early = {key: value for key, sign, value in named if sign}
    library = _choose_library({**base, **early}, grids)
    try:
        base = resolve_paths(base, library.schema, base_file.folder)
    except ConfigError as error:
        problems.append(Problem(base_file.name, "", str(error)))
    overridden, wrong_overrides = _override(base, overrides, library)
    problems += wrong_overrides
    for key, value in (options or {}).items():
        base |= resolve_paths({key: value}, library.schema, Path.cwd())
        overridden.append(key)
    sources |= {key.partition(".")[0]: COMMAND_LINE for key in overridden}
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
    )


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
            set_nested(base, key, given[key])
            overridden.append(key)
        except (ConfigError, TypeError) as error:
            message = str(error).removeprefix(f"{COMMAND_LINE}: ")
            problems.append(Problem(COMMAND_LINE, "", message))
    return overridden, problems


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
        wrong = [(k, f"{n} is not a finite number") for k, n in not_finite(plain)]
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
    swept = [
        value
        for grid in grids
        for axis in grid.axes
        for values in axis.values
        for key, value in zip(axis.keys, values, strict=True)
        if key == "model_type"
    ]
    for name in [base.get("model_type"), *swept]:
        if isinstance(name, str) and (library := library_of(name)):
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
    repeats = base.get("n_repeats", 1)
    n_repeats = repeats if isinstance(repeats, int) and repeats > 0 else 1
    n_runs = sum(grid.n_points for grid in grids) * n_repeats
    if n_runs > MAX_RUNS:
        raise ConfigError(
            f"{name}: {_count(n_runs)} runs, more than {MAX_RUNS:,}; sweep fewer "
            f'values, or draw some with "{SWEEP_OPTION}"'
        )


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**18 else "over 10^18"


# --- what needs the models ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Effects:
    """Which keys act at each grid point, and notices about those that do not."""

    inactive: tuple[frozenset[str], ...]
    notices: tuple[str, ...]


def _unknown_names(
    values: Mapping[str, Any], library: Library
) -> list[tuple[str, str]]:
    """Unknown models and libraries, told without torch."""
    problems = []
    asked, model = values.get("library"), values.get("model_type")
    if isinstance(asked, str) and asked not in libraries():
        text = f"unknown library {asked!r}{suggest(asked, libraries())}"
        problems.append(("library", text))
    if isinstance(model, str) and model not in library.model_names:
        other = library_of(model)
        text = (
            f"{model} is a model of {other.name}, but the sweep is of {library.name}; "
            "a sweep has one library"
            if other
            else f"unknown model {model!r}{suggest(model, _all_models())}"
        )
        problems.append(("model_type", text))
    return problems


def _all_models() -> list[str]:
    return [name for one in libraries().values() for name in one.model_names]


def check_effects(request: Request, grid_points: Sequence[Point]) -> Effects:
    """Refuse axes without effect, equal grid points, and unknown optimizers.

    Raises:
        ConfigError: With every problem.
    """
    from gridrun.training.schedules import check_names as check_optimizers

    problems: list[Problem] = []
    reasons = [
        point.hyps.inactive(reads(request.library.model(point.hyps.model_type)))
        for point in grid_points
    ]
    for swept in axis_keys(request.grids):
        outer = swept.partition(".")[0]
        if all(outer in one for one in reasons):
            text = f"has no effect: {reasons[0][outer]}"
            problems.append(Problem(request.sources["ranges"], swept, text))
    if not problems:
        problems += _equal_points(request, grid_points, reasons)
    checked: set[str] = set()
    for point in grid_points:
        hyps = point.hyps
        settings = repr(
            (
                hyps.optimizer,
                hyps.optimizer_args,
                hyps.scheduler,
                hyps.scheduler_args,
                hyps.l2 > 0,
                hyps.monitor,
            )
        )
        if settings not in checked:
            checked.add(settings)
            problems += [
                Problem(request.source_of(key), key, text)
                for key, text in check_optimizers(hyps)
            ]
    raise_problems(problems)
    return Effects(
        tuple(frozenset(one) for one in reasons),
        tuple(_notices(request, grid_points, reasons)),
    )


def _equal_points(
    request: Request,
    grid_points: Sequence[Point],
    reasons: Sequence[Mapping[str, str]],
) -> Iterable[Problem]:
    seen: dict[str, tuple[Point, Mapping[str, str]]] = {}
    for point, inactive in zip(grid_points, reasons, strict=True):
        name = identity(point.hyps, inactive)
        if name not in seen:
            seen[name] = (point, inactive)
            continue
        other = seen[name][0]
        differing = [
            key for key, value in point.axes.items() if other.axes.get(key) != value
        ]
        why = [
            f"{key} ({inactive[key.partition('.')[0]]})"
            for key in differing
            if key.partition(".")[0] in inactive
        ]
        hint = (
            f"; without effect: {', '.join(why)}. Link the keys instead" if why else ""
        )
        yield Problem(
            request.sources["ranges"],
            ", ".join(differing) or ", ".join(point.axes),
            f"two grid points would train the same runs: {shown(dict(other.axes))} "
            f"and {shown(dict(point.axes))}{hint}",
        )
        return


def _notices(
    request: Request,
    grid_points: Sequence[Point],
    reasons: Sequence[Mapping[str, str]],
) -> Iterable[str]:
    schema = request.library.schema
    said = {told for point in grid_points for told in point.hyps.notices()}
    for key, text in sorted(said):
        yield f"{request.source_of(key)}: {key}: {text}"
    if set(request.base) >= set(schema.model_fields):
        return  # a run's own file holds every key
    for key in request.base:
        if not all(key in one for one in reasons):
            continue
        model_default = schema.model_defaults(grid_points[0].hyps.model_type)
        usual = {**defaults_of(schema), **model_default}.get(key)
        if request.base[key] != usual:
            yield f"{request.source_of(key)}: {key} has no effect: {reasons[0][key]}"


def check_data(request: Request, grid_points: Sequence[Point]) -> None:
    """Check the data against every grid point, and that the models can be built.

    Raises:
        DataError, ConfigError: With every problem.
    """
    import torch

    from gridrun.training.job import pick_device
    from gridrun.training.trainer import build_model

    trainer = request.library.load_trainer()
    infos: dict[str, Any] = {}
    data_problems: list[str] = []
    model_problems: list[Problem] = []
    built: set[str] = set()
    for point in grid_points:
        hyps = point.hyps
        key = data_key(hyps)
        if key not in infos:
            try:
                infos[key] = trainer.inspect_data(hyps)
            except DataError as error:
                infos[key] = None
                data_problems += error.problems
            pick_device(hyps.device)
        if infos[key] is None:
            continue
        read = reads(request.library.model(hyps.model_type))
        settings = repr([key, hyps.model_type, *(getattr(hyps, n, 0) for n in read)])
        if settings in built:
            continue
        built.add(settings)
        try:
            with torch.device("meta"):
                build_model(request.library, hyps, infos[key])
        except ConfigError as error:
            for text in error.problems:
                name, _, message = text.partition(": ")
                model_problems.append(Problem(request.source_of(name), name, message))
    raise_problems(model_problems)
    if data_problems:
        raise DataError(list(dict.fromkeys(data_problems)))


def make_specs(
    request: Request,
    grid_points: Sequence[Point],
    effects: Effects,
    base_seed: int,
) -> list[RunSpec]:
    """The runs in grid order, repeats innermost.

    Args:
        request: Names the ranges in errors.
        grid_points: Checked grid points.
        effects: Their inactive keys.
        base_seed: Where a point gives no seed.

    Raises:
        ConfigError: If two runs are equal, seed included.
    """
    specs = []
    for point, inactive in zip(grid_points, effects.inactive, strict=True):
        hyps = _with_final_values(point.hyps, request.library)
        seed = base_seed if hyps.seed is None else hyps.seed
        for repeat in range(hyps.n_repeats):
            specs.append(make_spec(hyps, point.axes, repeat, seed, inactive))
    _refuse_equal_runs(request, specs)
    return specs


def _with_final_values(hyps: Hyperparams, library: Library) -> Hyperparams:
    root, _ = data_root(hyps.data_root)
    save = hyps.save_root if hyps.save_root is not None else str(Path.cwd())
    final = {"data_root": root, "save_root": save, "library": library.name}
    return hyps.model_copy(update=final)


def _refuse_equal_runs(request: Request, specs: Sequence[RunSpec]) -> None:
    seen: dict[str, RunSpec] = {}
    for spec in specs:
        other = seen.setdefault(spec.identity, spec)
        if other is not spec:
            raise ConfigError(
                f"{request.sources['ranges']}: seed: seeds overlap: repeat "
                f"{other.repeat} of {shown(dict(other.axes))} and repeat {spec.repeat} "
                f"of {shown(dict(spec.axes))} both have seed {spec.hyps.seed}; keep "
                "seeds n_repeats apart"
            )
