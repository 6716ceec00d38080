"""README, the hyperparameter reference and the notebooks are true."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from gridrun.cli import main
from gridrun.config.reference import MARK, reference

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("*/*.md")]
    if ".venv" not in path.parts
)


def test_the_reference_is_made_from_the_schemas() -> None:
    """training_scripts/README.md is what `make reference` writes."""
    text = (REPOSITORY / "training_scripts" / "README.md").read_text()
    assert text.partition(MARK)[2].strip() == reference().strip()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(path: Path) -> None:
    """Every relative link of a document points at a file of the repository."""
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not (path.parent / link).exists()]
    assert not missing


def test_readme_is_short() -> None:
    """README stays a page that is read."""
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


def test_readme_names_the_two_commands() -> None:
    """README's commands are targets of the Makefile."""
    text = (REPOSITORY / "README.md").read_text()
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M)
    for name in ("demo", "test"):
        assert f"make {name}" in text
        assert name in targets


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["01_sweep"])
def test_notebooks_run(name: str, tmp_path: Path) -> None:
    """A notebook runs from top to bottom in a copy of the repository's folders."""
    for folder in ("training_scripts", "data"):
        (tmp_path / folder).symlink_to(REPOSITORY / folder)
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / f"{name}.ipynb"
    shutil.copy(REPOSITORY / "notebooks" / f"{name}.ipynb", path)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    assert len(list((tmp_path / "runs" / "notebook").glob("notebook_*"))) == 12
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5


PAIRS = sorted((REPOSITORY / "training_scripts").glob("*hyperparams.json"))


@pytest.fixture(scope="session")
def small_retina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that holds the small virtual retina, as the documents make it."""
    root = tmp_path_factory.mktemp("data")
    argv = ["data", "simulate", "sim-small", "--size", "small"]
    assert main([*argv, "--data-root", str(root)]) == 0
    return root


@pytest.mark.e2e
@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.name)
def test_shipped_configurations_run(
    path: Path, tmp_path: Path, small_retina: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pair trains, on data that ship or that its README line makes."""
    monkeypatch.setenv("GRIDRUN_DATA", str(small_retina))
    ranges = path.with_name(path.name.replace("params", "ranges"))
    files = [str(path), *([str(ranges)] if ranges.exists() else [])]
    brief = ["n_repeats=1", "n_epochs=1", "--executor", "serial", "--quiet"]
    if json.loads(path.read_text())["dataset"] == "sim-small":
        brief += ["train_set_size=300", "val_set_size=60"]
    assert main(["run", *files, *brief, "--save-root", str(tmp_path)]) == 0
