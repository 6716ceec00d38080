"""Imports point one way, and what needs no model loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LIBRARIES = ("torchdeepretina", "imgclass")
WITHOUT_TORCH = (
    "gridrun",
    "gridrun.cli",
    "gridrun.config",
    "gridrun.effects",
    "gridrun.data_check",
    "gridrun.grid",
    "gridrun.guard",
    "gridrun.hdf5",
    "gridrun.plan",
    "gridrun.planner",
    "gridrun.plugins",
    "gridrun.readers",
    "gridrun.request",
    "gridrun.run",
    "gridrun.durable",
    "gridrun.claims",
    "gridrun.repair",
    "gridrun.store",
    "gridrun.sources",
    "gridrun.sweep",
    "gridrun.analysis.tables",
    "gridrun.analysis.plots",
    "gridrun.analysis.report",
    "gridrun.analysis.run",
    "gridrun.analysis.sweep",
    "gridrun.diagnostics",
    "gridrun.experiment",
    "gridrun.general.hyperparams",
    "gridrun.plugin_files",
    "gridrun.recordable",
    "gridrun.tracking.trackers",
    "gridrun.tracking.watchers",
    "gridrun.tracking.progress",
    "gridrun.executors.process",
    "gridrun.executors.cluster",
    "gridrun.executors.ray_tasks",
    "gridrun.executors.slurm",
    "torchdeepretina.hyperparams",
    "torchdeepretina.recordings",
    "torchdeepretina.simulate",
    "imgclass.hyperparams",
    "imgclass.importers",
)


def imported(package: str) -> Iterator[tuple[Path, str]]:
    """Every module that a package's files import, with the file."""
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path, node.module or ""


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("gridrun", (*LIBRARIES, "training_scripts")),
        ("torchdeepretina", ("imgclass", "training_scripts")),
        ("imgclass", ("torchdeepretina", "training_scripts")),
    ],
)
def test_imports_point_one_way(package: str, forbidden: tuple[str, ...]) -> None:
    """The runner imports no library, and no library another."""
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path, name in imported(package)
        if name.partition(".")[0] in forbidden
    ]
    assert not wrong


def modules_after(code: str, cwd: Path) -> tuple[int, set[str]]:
    """Exit code of some code in a fresh interpreter, and what it has imported."""
    script = (
        f"import sys\ncode = 0\ntry:\n    {code}\n"
        "except SystemExit as error:\n    code = error.code\n"
        "print('\\n' + ' '.join({n.partition('.')[0] for n in sys.modules}))\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=cwd
    )
    return done.returncode, set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("package", ["gridrun", *LIBRARIES, "benchmarks"])
def test_no_file_is_loaded_with_code_in_it(package: str) -> None:
    """Every torch.load says weights_only=True, and no array may hold objects."""
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert keywords.get("weights_only") == "True", (path, node.lineno)
            assert keywords.get("allow_pickle", "False") == "False", (path, node.lineno)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_modules_that_load_no_torch(module: str, tmp_path: Path) -> None:
    """What plans, stores and shows sweeps can be imported without torch."""
    code, modules = modules_after(f"import {module}", tmp_path)
    assert code == 0
    assert not {"torch", "ray", "submitit"} & modules


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["schema", "imgclass"], 0),
        (["status", "nowhere"], 2),
        (["results", "nowhere"], 2),
        (["repair", "nowhere"], 2),
        (["run", "nowhere.json"], 2),
        (["run", "typo.json"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_that_load_no_torch(
    arguments: list[str], expected: int, tmp_path: Path
) -> None:
    """Help, schemas, looking at sweeps and mistakes in the files answer at once."""
    (tmp_path / "typo.json").write_text('{"model_type": "SmallNet", "lrr": 0.1}')
    code, modules = modules_after(
        f"from gridrun.cli import main; sys.exit(main({arguments!r}))", tmp_path
    )
    assert code == expected
    assert not {"torch", "ray", "submitit"} & modules
    assert [path.name for path in tmp_path.iterdir()] == ["typo.json"]
