"""`gridrun new`: a small project to start from."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from gridrun.errors import ConfigError

TEMPLATE = Path(__file__).parent.parent / "template"


def add_new(commands: Any) -> None:
    """Declare `gridrun new`."""
    command = commands.add_parser("new", help="a small project to start from")
    command.add_argument("folder", type=Path, help="made by this command")
    command.set_defaults(function=new)


def new(given: argparse.Namespace) -> int:
    """`gridrun new`."""
    folder = given.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and not empty; give another name")
    try:
        shutil.copytree(
            TEMPLATE,
            folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
            dirs_exist_ok=True,
        )
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(path)
    print(f"\nnext: cd {folder} && train hyperparams.json hyperranges.json && evaluate")
    return 0
