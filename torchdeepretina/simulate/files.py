"""The files of a virtual retina, and the command `gridrun data simulate`."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import h5py
from tqdm.auto import tqdm

from gridrun.config import data_root
from gridrun.errors import ConfigError, DataError
from gridrun.hdf5 import new_file
from torchdeepretina.simulate.interneurons import write_interneurons
from torchdeepretina.simulate.recipe import (
    N_BOX_FRAMES,
    SIZES,
    Recipe,
    Size,
    SizeName,
)
from torchdeepretina.simulate.recording import work_frames, write_recording
from torchdeepretina.simulate.retina import ABLATIONS

logger = logging.getLogger(__name__)

StimOption = Literal["naturalscene", "whitenoise", "both"]
FileKind = Literal["naturalscene", "whitenoise", "interneurons"]
KINDS: Final[dict[StimOption, tuple[FileKind, ...]]] = {
    "naturalscene": ("naturalscene", "interneurons"),
    "whitenoise": ("whitenoise", "interneurons"),
    "both": ("naturalscene", "whitenoise", "interneurons"),
}


def simulate(
    folder: Path,
    *,
    size: SizeName = "tiny",
    stim: StimOption = "both",
    seed: int = 7,
    ablate: Collection[str] = (),
    force: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write the recordings of a virtual retina.

    A file that is there already and would come out the same is left alone. Each file
    appears under its name only once it is complete.

    Args:
        folder: Where naturalscene.h5, whitenoise.h5 and interneurons.h5 go.
        size: tiny (tests), small (minutes of training) or full (like a recording).
        stim: Which movie, or both.
        seed: Of all random numbers, ≥ 0; the same seed gives the same bytes.
        ablate: Stages to leave out: "gain" (no division), "subunits" (no
            rectification); both give a linear-nonlinear retina.
        force: Replace files that differ from what is asked.
        progress: Show a progress bar on standard error.

    Returns:
        The files, whether written now or found.

    Raises:
        ConfigError: An argument is wrong.
        DataError: A file differs from what is asked, or cannot be written.
    """
    recipe = _recipe(size, stim, seed, ablate)
    paths = {kind: folder / f"{kind}.h5" for kind in KINDS[stim]}
    problems = {
        kind: _difference(path, recipe.record(kind))
        for kind, path in paths.items()
        if path.exists()
    }
    if not force and any(problems.values()):
        raise DataError([problem for problem in problems.values() if problem])
    for kind, path in paths.items():
        if kind in problems and problems[kind] is None:
            logger.info("%s: already there, nothing to do", path)
        else:
            _write(path, kind, recipe, progress)
    return [*paths.values()]


def _recipe(
    size: SizeName, stim: StimOption, seed: int, ablate: Collection[str]
) -> Recipe:
    choices: list[tuple[str, str, Sequence[str]]] = [
        ("size", size, [*SIZES]),
        ("stim", stim, [*KINDS]),
        *(("ablate", stage, ABLATIONS) for stage in ablate),
    ]
    problems = [
        f"{name}: unknown value {value!r}{_nearest(value, known)}; known are "
        f"{', '.join(known)}"
        for name, value, known in choices
        if value not in known
    ]
    if seed < 0:
        problems.append(f"seed: {seed} is negative; expected an integer ≥ 0")
    if problems:
        raise ConfigError(problems)
    return Recipe(SIZES[size], seed, tuple(sorted(set(ablate))))


def _nearest(value: str, known: Collection[str]) -> str:
    matches = difflib.get_close_matches(value, known, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _difference(path: Path, record: str) -> str | None:
    """What keeps an existing file from being the one asked for; None if nothing."""
    advice = "; give another name, or --force to replace it"
    try:
        with h5py.File(path, "r") as file:
            found, is_complete = file.attrs.get("recipe"), "complete" in file.attrs
    except OSError as error:
        return f"{path}: exists but is not a readable HDF5 file ({error}){advice}"
    if not isinstance(found, str):
        return f"{path}: exists and was not made by the simulator{advice}"
    if found != record:
        return f"{path}: exists and differs: {_changes(found, record)}{advice}"
    if not is_complete:
        return f"{path}: exists but is incomplete{advice}"
    return None


def _changes(found: str, asked: str) -> str:
    try:
        before = _flat(json.loads(found))
    except ValueError:
        return "its recipe is not JSON"
    after = _flat(json.loads(asked))
    return ", ".join(
        f"{key} is {before.get(key)!r}, asked {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    )


def _flat(record: Any, prefix: str = "") -> dict[str, object]:
    if not isinstance(record, dict):
        return {prefix: record}
    flat: dict[str, object] = {}
    for key, value in record.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _write(path: Path, kind: FileKind, recipe: Recipe, progress: bool) -> None:
    try:
        with _bar(kind, recipe.size, progress) as bar, new_file(path) as file:
            if kind == "interneurons":
                write_interneurons(file, recipe, bar.update)
            else:
                write_recording(file, kind, recipe, bar.update)
            file.attrs["recipe"] = recipe.record(kind)
            file.attrs["complete"] = True
    except OSError as error:
        raise DataError(
            f"{path}: could not be written ({error}); expected a writable folder with "
            "enough free space (a full-size movie takes 1.1 GB)"
        ) from error
    logger.info("%s: written, %.1f MB", path, path.stat().st_size / 1e6)


def _bar(kind: FileKind, size: Size, progress: bool) -> tqdm[NoReturn]:
    n_frames = N_BOX_FRAMES if kind == "interneurons" else work_frames(kind, size)
    return tqdm(
        total=n_frames,
        desc=kind,
        unit=" frames",
        unit_scale=True,
        disable=not progress,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `gridrun data simulate`."""
    parser.add_argument("name", metavar="NAME", help="folder to make in the data root")
    parser.add_argument("--size", choices=[*SIZES], default="tiny")
    parser.add_argument("--stim", choices=[*KINDS], default="both")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--ablate",
        default="",
        metavar="STAGES",
        help=f"stages to leave out, comma-separated: {', '.join(ABLATIONS)}",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace files that differ"
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="default: $GRIDRUN_DATA, else ~/experiments/data",
    )


def main(args: argparse.Namespace) -> int:
    """Run `gridrun data simulate` with arguments from `add_arguments`.

    Returns:
        0; what was written is logged.

    Raises:
        ConfigError: An argument is wrong.
        DataError: A file differs from what is asked, or cannot be written.
    """
    root, _ = data_root(args.data_root)
    stages = [stage.strip() for stage in args.ablate.split(",")]
    simulate(
        Path(root).expanduser() / _folder_name(args.name),
        size=args.size,
        stim=args.stim,
        seed=args.seed,
        ablate=[stage for stage in stages if stage],
        force=args.force,
    )
    return 0


def _folder_name(name: str) -> str:
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise ConfigError(
            f"NAME: {name!r} is not the name of one folder; expected something like "
            "'sim-small', and the folder around it as --data-root"
        )
    return name
