"""The command `gridrun data import`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from gridrun.config import absolute, data_root, suggest
from gridrun.errors import ConfigError, DataError
from imgclass.importers.cifar import read_cifar
from imgclass.importers.digits import read_digits
from imgclass.importers.files import save
from imgclass.importers.folder import read_folder
from imgclass.importers.idx import read_idx
from imgclass.importers.image_set import ImageSet, image_problems
from imgclass.importers.npz import LAYOUTS, read_npz

logger = logging.getLogger(__name__)

FILE_NAME: Final = "images.h5"
MAX_CLASSES_LISTED: Final = 20
MAX_SIDE: Final = 8192
OPTIONS: Final = ("from", "side", "channels", "test-p", "layout", "skip-corrupt")
USED: Final[dict[str, frozenset[str]]] = {
    "cifar10": frozenset({"from"}),
    "cifar100": frozenset({"from"}),
    "idx": frozenset({"from"}),
    "folder": frozenset({"from", "side", "channels", "test-p", "skip-corrupt"}),
    "npz": frozenset({"from", "test-p", "layout"}),
    "digits": frozenset(),
}
"""Kind to the options that it reads, beside those of all kinds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `gridrun data import`."""
    parser.description = (
        "Make an image set from files that are here already; nothing is downloaded. "
        "KIND: cifar10, cifar100 (the python archive, .tar.gz or unpacked), idx (MNIST "
        "and the like, a folder), folder ({train,test}/<class>/*.png, jpg, bmp; links "
        "are followed), npz (x_train, y_train, x_test, y_test, or images, labels), "
        "digits (from scikit-learn)."
    )
    # Checked in `main`, which can suggest a name; argparse cannot.
    parser.add_argument("source_kind", metavar="KIND", help=", ".join(USED))
    parser.add_argument("--from", dest="source", metavar="PATH", help="what to read")
    parser.add_argument(
        "--name", required=True, metavar="NAME", help="folder to make in the data root"
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="default: $GRIDRUN_DATA, else ~/experiments/data",
    )
    parser.add_argument(
        "--side",
        type=int,
        metavar="S",
        help="folder: resize the shorter side to S pixels, then crop the centre",
    )
    parser.add_argument(
        "--channels",
        type=int,
        choices=[1, 3],
        help="folder: grey or colour (default: 1 if all are grey, else 3)",
    )
    parser.add_argument(
        "--test-p",
        type=float,
        metavar="P",
        help="folder, npz: share of test images, where the source has no split",
    )
    parser.add_argument(
        "--layout", choices=LAYOUTS, help="npz: which axis is the channels"
    )
    parser.add_argument(
        "--skip-corrupt",
        action="store_true",
        help="folder: leave corrupt pictures out, and list them in the file",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file that is there"
    )


def main(args: argparse.Namespace) -> int:
    """Run `gridrun data import` with arguments from `add_arguments`.

    Returns:
        0; what was written is logged.

    Raises:
        ConfigError: An argument is wrong.
        DataError: The source cannot be used, the file that is there differs, or it
            cannot be written.
    """
    _check(args)
    root = (
        absolute(args.data_root, Path.cwd()) if args.data_root else data_root(None)[0]
    )
    path = Path(root) / args.name / FILE_NAME
    image_set = _READERS[args.source_kind](args)
    problems = image_problems(image_set.images, image_set.labels, image_set.class_names)
    if problems:
        raise DataError([f"{args.source}: {problem}" for problem in problems])
    is_new = save(path, image_set, force=args.force, progress=True)
    _report(path, image_set, is_new)
    return 0


def _source(args: argparse.Namespace) -> Path:
    return Path(absolute(args.source, Path.cwd()))


def _read_folder(args: argparse.Namespace) -> ImageSet:
    return read_folder(
        _source(args),
        side=args.side,
        n_channels=args.channels,
        test_p=args.test_p,
        skip_corrupt=args.skip_corrupt,
        progress=True,
    )


_READERS: Final[dict[str, Callable[[argparse.Namespace], ImageSet]]] = {
    "cifar10": lambda args: read_cifar(_source(args), "cifar10"),
    "cifar100": lambda args: read_cifar(_source(args), "cifar100"),
    "idx": lambda args: read_idx(_source(args)),
    "folder": _read_folder,
    "npz": lambda args: read_npz(_source(args), test_p=args.test_p, layout=args.layout),
    "digits": lambda args: read_digits(),
}


def _check(args: argparse.Namespace) -> None:
    """Refuse arguments that are wrong whatever the source holds."""
    kind = args.source_kind
    if kind not in USED:
        raise ConfigError(f"KIND: unknown {kind!r}{suggest(kind, USED)}")
    given: dict[str, Any] = {
        "from": args.source,
        "side": args.side,
        "channels": args.channels,
        "test-p": args.test_p,
        "layout": args.layout,
        "skip-corrupt": args.skip_corrupt or None,
    }
    problems = [
        f"--{name}: not for {kind}; for "
        f"{', '.join(one for one, used in USED.items() if name in used)}"
        for name in OPTIONS
        if given[name] is not None and name not in USED[kind]
    ]
    if "from" in USED[kind] and not args.source:
        problems.append(f"--from: missing; {kind} needs the path to read")
    if args.side is not None and not 1 <= args.side <= MAX_SIDE:
        problems.append(f"--side: {args.side}; expected 1 to {MAX_SIDE:,} pixels")
    if args.test_p is not None and not 0 < args.test_p < 1:
        problems.append(f"--test-p: {args.test_p}; expected a share between 0 and 1")
    if args.name in ("", ".", "..") or any(mark in args.name for mark in "/\\\0"):
        problems.append(
            f"--name: {args.name!r} is not the name of one folder; expected something "
            "like 'beans', and the folder around it as --data-root"
        )
    if problems:
        raise ConfigError(problems)


def _report(path: Path, image_set: ImageSet, is_new: bool) -> None:
    """Log the file, what is in it, and the two keys that training on it needs."""
    images = image_set.images
    done = (
        f"written, {path.stat().st_size / 1e6:,.1f} MB"
        if is_new
        else "already there, nothing to do"
    )
    logger.info(
        "%s: %s; %s train and %s test images",
        path,
        done,
        f"{len(images['train']):,}",
        f"{len(images['test']):,}",
    )
    logger.info("%s", _class_counts(image_set))
    logger.info(
        '"dataset": "%s", "img_shape": %s',
        path.parent.name,
        list(images["train"].shape[1:]),
    )


def _class_counts(image_set: ImageSet) -> str:
    """Images per class in one line, train + test; of many classes the extremes."""
    names = image_set.class_names
    train, test = (
        np.bincount(image_set.labels[split], minlength=len(names)).tolist()
        for split in ("train", "test")
    )
    if len(names) <= MAX_CLASSES_LISTED:
        counts = ", ".join(
            f"{name} {n_train:,} + {n_test:,}"
            for name, n_train, n_test in zip(names, train, test, strict=True)
        )
        return f"{len(names)} classes, train + test: {counts}"
    return (
        f"{len(names)} classes of {min(train):,} to {max(train):,} train and "
        f"{min(test):,} to {max(test):,} test images"
    )
