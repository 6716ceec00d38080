"""A reader who follows a document: finds its code blocks and does what they say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gridrun.cli import main
from gridrun.plugin_files import look_again

REPOSITORY = Path(__file__).parents[1]
COMMANDS = ("cd", "make", "gridrun", "train", "evaluate", "python", "python3", "pytest")
TIMEOUT_S = 300


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block.

    Args:
        place: Document and line.
        language: Of the fence; empty if it names none, and of indented blocks.
        text: Its lines.
        above: The paragraph before it.
    """

    place: str
    language: str
    text: str
    above: str

    @property
    def lines(self) -> list[str]:
        """Its lines."""
        return self.text.splitlines()


def blocks_of(path: Path) -> Iterator[Block]:
    """Fenced and indented code blocks of a document.

    Raises:
        ValueError: If a fence is not closed, or is another than three backticks at the
            beginning of a line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        first, language = at, ""
        if lines[at].startswith("```"):
            language = lines[at].removeprefix("```").strip()
            at = lines.index("```", at + 1)
            inner = lines[first + 1 : at]
        elif lines[at].lstrip().startswith(("```", "~~~")):
            raise ValueError(f"{path}, line {at + 1}: no rule for such a fence")
        else:
            indented = itertools.takewhile(lambda x: x.startswith("    "), lines[at:])
            inner = [line.removeprefix("    ") for line in indented]
            at += max(len(inner) - 1, 0)
        at += 1
        if inner:
            text = "\n".join(inner)
            place = f"{path.parent.name}/{path.name}, line {first + 1}"
            *_, above = "\n".join(lines[:first]).strip().split("\n\n")
            yield Block(place, language, text.strip(), above)


def kind_of(block: Block) -> str:
    """How a block is to be run: a method of `Reader`.

    Raises:
        ValueError: If no rule says so.
    """
    first = block.lines[0]
    if block.language == "python":
        return "write" if re.fullmatch(r"# [\w/]+\.py", first) else "execute"
    if block.language == "json":
        return "configure"
    if block.language in ("", "sh"):
        if first.startswith("$ "):
            return "converse"
        if first.endswith("/"):
            return "look_at_tree"
        if first.startswith("number "):
            return "compare_table"
        words = [shlex.split(line, comments=True) for line in block.lines]
        if all(one and one[0] in COMMANDS for one in words):
            return "command"
    raise ValueError(f"{block.place}: no rule runs this block:\n{block.text}")


class Reader:
    """Follows documents in a folder.

    Args:
        folder: Where to begin; holds copies of training_scripts and data.
        chdir: Changes this process's working directory.
        variables: Of the environment of commands, beside the present ones.
    """

    def __init__(
        self, folder: Path, chdir: Callable[[Path], None], **variables: Any
    ) -> None:
        self.chdir = chdir
        self.environment = os.environ | {n: str(v) for n, v in variables.items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment["PATH"] = path
        self.root = folder
        self.names: dict[str, Any] = {"__name__": "document"}
        self.printed = ""
        self.go_to(folder)

    def go_to(self, folder: Path) -> None:
        """Change the working directory."""
        self.here = folder.resolve()
        self.chdir(self.here)

    def read(self, path: Path) -> None:
        """Run every block of a document."""
        for block in blocks_of(path):
            kind = kind_of(block)
            try:
                getattr(self, kind)(block)
            except BaseException as error:
                error.add_note(f"{block.place} ({kind}):\n{block.text}")
                raise

    # kinds of blocks

    def write(self, block: Block) -> None:
        """A Python file, which names itself in its first line."""
        path = self.here / block.lines[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text + "\n", encoding="utf-8")
        look_again()  # as in a new session

    def execute(self, block: Block) -> None:
        """Python, in one namespace for each document."""
        exec(compile(block.text, block.place, "exec"), self.names)

    def configure(self, block: Block) -> None:
        """Ranges, if the paragraph above names their file: checked as a grid.

        Else keys of hyperparams.json, all or some: put into the file, and trained.
        """
        hyperparams = self.here / "hyperparams.json"
        given = json.loads(block.text)
        if "hyperranges.json" in block.above:
            (self.here / "hyperranges.json").write_text(block.text, encoding="utf-8")
            files = ["hyperparams.json", "hyperranges.json"]
            assert main(["run", *files, "--dry-run"]) == 0
            return
        if "exp_name" not in given:
            given = json.loads(hyperparams.read_text(encoding="utf-8")) | given
        hyperparams.write_text(json.dumps(given), encoding="utf-8")
        folder = self.root / "checked" / block.place.rpartition(" ")[2]
        options = ["--executor", "serial", "--save-root", str(folder), "--quiet"]
        assert main(["run", "hyperparams.json", *options]) == 0
        for record in folder.rglob("run.json"):
            found = json.loads(record.read_text(encoding="utf-8"))
            assert "tracker_errors" not in found, found["tracker_errors"]
            assert "diagnostic_errors" not in found, found["diagnostic_errors"]

    def command(self, block: Block) -> None:
        """Commands, a line each, which succeed; what they print is kept."""
        for line in block.lines:
            words = shlex.split(line, comments=True)
            if words[0] == "cd":
                self.go_to(self.here / words[1])
            elif words[0] == "make":  # CI gives these
                makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
                assert f"\n{words[1]}: " in makefile
            elif "--slurm" in words and "SLURM_CONF" not in self.environment:
                continue  # there is none here
            else:
                done = self.run(words + shorter(words))
                assert done.returncode == 0, done.stdout + done.stderr
                self.printed = done.stdout

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Run an installed command."""
        return subprocess.run(
            words,
            cwd=self.here,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def converse(self, block: Block) -> None:
        """A command after `$`, and what it says, to the letter."""
        asked, _, answer = block.text.removeprefix("$ ").partition("\n")
        done = self.run(shlex.split(asked))
        assert (done.stdout + done.stderr).strip() == answer

    def look_at_tree(self, block: Block) -> None:
        """Files that are there, nested by indentation; text after two spaces."""
        parents: dict[int, Path] = {0: self.here}
        for line in block.lines:
            depth = len(line) - len(line.lstrip())
            names = line.strip().split("  ")[0]
            names = names.replace("<data root>", self.environment["GRIDRUN_DATA"])
            above = parents[max(at for at in parents if at <= depth)]
            for name in names.split(" "):
                assert (above / name).exists(), f"{above / name} is not there"
                parents = {at: one for at, one in parents.items() if at <= depth}
                parents[depth + 1] = above / name

    def compare_table(self, block: Block) -> None:
        """Runs as the last command printed them: all that was not measured."""
        shown, found = (_table(text) for text in (block.text, self.printed))
        columns = [name for name in shown[0] if name != "..."]
        assert set(columns) <= set(found[0])
        fixed = columns[: columns.index("best_epoch")]
        rows = [[row[name] for name in fixed] for row in found]
        for row in shown:
            assert [row[name] for name in fixed] in rows
        assert int(shown[-1]["number"]) == len(rows) - 1


def _table(text: str) -> list[dict[str, str]]:
    """Rows of a table as printed; rows of dots stand for others."""
    header, *lines = text.partition("\n\n")[0].splitlines()
    names = re.split(" {2,}", header.strip())
    rows = [re.split(" {2,}", line.strip()) for line in lines if line != "..."]
    return [dict(zip(names, row, strict=True)) for row in rows]


def shorter(words: list[str]) -> list[str]:
    """What keeps benchmarks, and commands which train on the data that ship, short."""
    if "benchmarks" in words:
        return ["--quick", "--out", "results"]
    if not any("main.py" in word or "training_scripts" in word for word in words):
        return []
    return ["n_epochs=1", *(["prune_intvl=1"] if "prune=true" in words else [])]
