"""What the models and the data say of a request: effects, fitting shapes, runs.

The checks import torch; `make_specs` does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gridrun.config import (
    Hyperparams,
    Problem,
    data_root,
    defaults_of,
    raise_problems,
    shown,
    weights_hash,
)
from gridrun.errors import CheckpointError, ConfigError, DataError
from gridrun.grid import axis_keys
from gridrun.planner import data_key
from gridrun.plugins import Library, reads
from gridrun.request import Point, Request
from gridrun.run import RunSpec, identity, make_spec

SPLITS = ("train", "val", "test")
# keys beside those that a model reads on which depends what is built and checked
BUILT_KEYS = (
    "model_type",
    "model_args",
    "init_weights_path",
    "train_loop",
    "lossfxn",
    "normalizer",
    "distorter",
    "distorter_args",
    "augmenters",
)


@dataclasses.dataclass(frozen=True)
class Effects:
    """Which keys act at each grid point, and notices about those that do not."""

    inactive: tuple[frozenset[str], ...]
    notices: tuple[str, ...]


def check_effects(request: Request, grid_points: Sequence[Point]) -> Effects:
    """Refuse axes without effect, equal grid points, and unknown optimizers.

    Raises:
        ConfigError: With every problem.
    """
    from gridrun.training.schedules import check_names as check_optimizers

    problems: list[Problem] = []
    reasons = _reasons(request, grid_points)
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
    keys = {id(one): frozenset(one) for one in reasons}
    return Effects(
        tuple(keys[id(one)] for one in reasons),
        tuple(_notices(request, grid_points, reasons)),
    )


def _reasons(request: Request, grid_points: Sequence[Point]) -> list[Mapping[str, str]]:
    """Why keys are inactive at each point; one object for points where it is equal."""
    library = request.library
    equal: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
    read: dict[str, frozenset[str]] = {}
    found = []
    for point in grid_points:
        hyps = point.hyps
        name = hyps.model_type
        if name not in read:
            try:
                read[name] = reads(library.model(name, hyps.plugins))
            except ConfigError as error:
                source = request.source_of("model_type")
                raise ConfigError(f"{source}: {error}") from error
        reasons = hyps.inactive(read[name])
        found.append(equal.setdefault(tuple(reasons.items()), reasons))
    return found


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


def check_data(request: Request, grid_points: Sequence[Point]) -> tuple[str, ...]:
    """Check the data against every grid point, and that the models can be built.

    Returns:
        Notices about them.

    Raises:
        DataError, ConfigError: With every problem.
    """
    from gridrun.training.extras import Extras

    trainer = request.library.load_trainer()
    infos: dict[str, Any] = {}
    read: dict[str, frozenset[str]] = {}
    data_problems: list[str] = []
    model_problems: list[Problem] = []
    built: set[str] = set()
    notices: dict[str, None] = {}
    model_problems += _watcher_problems(request, grid_points[0].hyps)
    model_problems += _cluster_problems(request, grid_points[0].hyps)
    for point in grid_points:
        hyps = point.hyps
        key = data_key(hyps)
        if key not in infos:
            infos[key], wrong = _inspected(request, hyps)
            data_problems += wrong
        if infos[key] is None:
            continue
        model_problems += _frequency_problems(request, hyps, infos[key])
        model_problems += _example_problems(request, hyps, infos[key])
        kind = hyps.model_type
        if kind not in read:
            read[kind] = reads(request.library.model(kind, hyps.plugins))
        values = [getattr(hyps, name, None) for name in read[kind]]
        values += [getattr(hyps, name, None) for name in BUILT_KEYS]
        settings = repr([key, *values])
        if settings in built:
            continue
        built.add(settings)
        try:
            _try_model(request, hyps, infos[key])
            Extras.of(hyps, trainer.augmenters)
            trainer.try_out(request.library, hyps, infos[key])
            notices |= dict.fromkeys(trainer.notices(hyps, infos[key]))
        except ConfigError as error:
            for text in error.problems:
                name, _, message = text.partition(": ")
                model_problems.append(Problem(request.source_of(name), name, message))
    raise_problems(model_problems)
    if data_problems:
        raise DataError(list(dict.fromkeys(data_problems)))
    return tuple(notices)


def _inspected(request: Request, hyps: Hyperparams) -> tuple[Any, list[str]]:
    """Facts about the data of a grid point, or None and what is wrong."""
    try:
        return request.library.load_trainer().inspect_data(hyps), []
    except (ConfigError, DataError) as error:
        return None, [_with_file(text, request) for text in error.problems]
    except OSError as error:  # a name that the system cannot have, say
        names = ("data_root", "dataset", "stim_type", "val_set")
        named = [name for name in names if getattr(hyps, name, None) is not None]
        text = f"one of {', '.join(named)}: {error}"
        return None, [f"{request.source_of('dataset')}: {text}"]


def _frequency_problems(
    request: Request, hyps: Hyperparams, info: Any
) -> Iterator[Problem]:
    from gridrun.training.data import n_batches

    n_steps = n_batches(info.n_samples["train"], hyps.batch_size)
    if hyps.log_frequency > n_steps:
        text = f"{hyps.log_frequency} evaluations, but an epoch has {n_steps} batches"
        source = request.source_of("log_frequency")
        yield Problem(source, "log_frequency", f"{text}; use at most {n_steps}")


def _example_problems(
    request: Request, hyps: Hyperparams, info: Any
) -> Iterator[Problem]:
    from gridrun.training.examples import index_problem

    subset = hyps.val_example_subset
    name = "val" if subset == "DEFAULT" else subset
    if name not in info.n_samples or (name in SPLITS and subset != "DEFAULT"):
        text = f"this data set has no subset {subset!r}; use DEFAULT"
        source = request.source_of("val_example_subset")
        yield Problem(source, "val_example_subset", text)
        return
    outside = index_problem(hyps.val_example_indices, info.n_samples[name], subset)
    if outside is not None:
        source = request.source_of("val_example_indices")
        yield Problem(source, "val_example_indices", outside)


def _watcher_problems(request: Request, hyps: Hyperparams) -> Iterator[Problem]:
    """Trackers and diagnostics that are unknown, not installed or ill-configured."""
    from gridrun.tracking.trackers import TRACKERS, tracker_problems
    from gridrun.tracking.watchers import tracker
    from gridrun.training.diagnose import schedule_problems

    for name in hyps.trackers:
        texts = []
        if name in TRACKERS:
            texts = tracker_problems(name, hyps.tracker_args.get(name, {}))
        else:
            try:
                tracker(hyps, name)
            except ConfigError as error:
                texts = [text.removeprefix("trackers: ") for text in error.problems]
        for text in texts:
            yield Problem(request.source_of("trackers"), "trackers", text)
    if len(set(hyps.trackers)) < len(hyps.trackers):
        yield Problem(request.source_of("trackers"), "trackers", "one stands twice")
    for text in schedule_problems(hyps):
        yield Problem(request.source_of("diagnostics"), "diagnostics", text)


def _cluster_problems(request: Request, hyps: Hyperparams) -> Iterator[Problem]:
    """What keeps a cluster from taking jobs, where one is asked for."""
    from gridrun.executors import ray_tasks, slurm

    found: Iterable[tuple[str, str]] = ()
    if hyps.executor == "slurm":
        found = slurm.problems(hyps)
    elif hyps.executor == "ray":
        found = ray_tasks.problems(hyps)
    for key, text in found:
        yield Problem(request.source_of(key), key, text)


def _try_model(request: Request, hyps: Hyperparams, info: Any) -> None:
    """Build a grid point's model without storage, and check what it must fit.

    Raises:
        ConfigError: With the key first.
    """
    import torch
    from torch import nn

    from gridrun.training.engines import chosen_engine
    from gridrun.training.job import pick_device
    from gridrun.training.models import build_model
    from gridrun.training.seeding import kept_globals

    if not hyps.is_on_cluster:  # whose machines may have other devices
        chosen_engine(hyps, pick_device(hyps.device))
    is_own = hyps.model_type not in request.library.model_names
    with kept_globals(), torch.device("cpu" if is_own else "meta"):
        model = build_model(request.library, hyps, info)
    parameters = list(model.parameters())
    if any(isinstance(one, nn.UninitializedParameter) for one in parameters):
        text = "has layers whose size is not known when it is made (nn.Lazy...)"
        raise ConfigError(f"model_type: {hyps.model_type} {text}; give their sizes")
    if not any(one.requires_grad for one in parameters):
        raise ConfigError(f"model_type: {hyps.model_type} has no parameter to train")
    if hyps.init_weights_path is not None:
        _check_weights(Path(hyps.init_weights_path), model)
    if hyps.conv_method == "fourier":
        _check_fourier(hyps.model_type, model)


def _with_file(text: str, request: Request) -> str:
    """A message about data with the configuration file that asks for them."""
    key = text.partition(": ")[0]
    if key in request.library.schema.model_fields:
        return f"{request.source_of(key)}: {text}"
    return f"{text} (the dataset of {request.source_of('dataset')})"


def _check_weights(path: Path, model: Any) -> None:
    from gridrun.training.checkpoint import misfits, read_weights

    try:
        wrong = misfits(read_weights(path), model)
    except CheckpointError as error:
        raise ConfigError(f"init_weights_path: {error}") from error
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ConfigError(
            f"init_weights_path: {path} does not fit this model: {wrong[0]}{more}"
        )


def _check_fourier(name: str, model: Any) -> None:
    from gridrun.nn import chosen_methods

    methods = chosen_methods(model)
    direct = [layer for layer, method in methods.items() if method == "direct"]
    if not methods:
        raise ConfigError(f"conv_method: fourier: {name} has no layer for it; use auto")
    if direct:
        raise ConfigError(
            f"conv_method: fourier: {direct[0]} of {name} has padding, strides or "
            "dropout within; use auto"
        )


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
    specs: list[RunSpec] = []
    for point, inactive in zip(grid_points, effects.inactive, strict=True):
        hyps = _with_final_values(point.hyps, request.library)
        seed = base_seed if hyps.base_seed is None else hyps.base_seed
        for repeat in range(hyps.n_runs):
            base = specs[0].variant.base if specs else None
            specs.append(make_spec(hyps, point.axes, repeat, seed, inactive, base))
    _refuse_equal_runs(request, specs)
    return specs


def _with_final_values(hyps: Hyperparams, library: Library) -> Hyperparams:
    final: dict[str, Any] = {"library": library.name}
    if hyps.data_root is None:
        final["data_root"] = data_root(None)[0]
    if hyps.save_root is None:
        final["save_root"] = str(Path.cwd())
    if hyps.init_weights_path is not None:
        final["init_weights_path"] = str(kept_weights(hyps))
    return hyps.model_copy(update=final)


def kept_weights(hyps: Hyperparams) -> Path:
    """Where a sweep keeps the weights that its runs start from, by their hash."""
    assert hyps.init_weights_path is not None
    sweep = Path(hyps.save_root or Path.cwd()) / hyps.exp_name
    digest = weights_hash(Path(hyps.init_weights_path))
    return sweep.absolute() / "init_weights" / f"{digest}.pt"


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
