"""A real Slurm, and small sweeps as processes train them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster.commands import train, write_request
from cluster.slurm_site import SlurmSite, missing
from torture.oracle import contents


@pytest.fixture
def slurm(slurm_site: SlurmSite | None) -> SlurmSite:
    """A real Slurm on this machine."""
    if slurm_site is None:
        pytest.skip(missing() or "no Slurm")
    return slurm_site


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory, image_set: Path) -> list[str]:
    """A request of four runs."""
    return write_request(tmp_path_factory.mktemp("quick") / "of", image_set)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory, image_set: Path) -> list[str]:
    """The same, whose epochs take a while."""
    return write_request(tmp_path_factory.mktemp("slow") / "of", image_set, 0.6)


def by_processes(root: Path, files: list[str]) -> dict[str, Any]:
    """What a request comes to with worker processes."""
    done = train(*files, "--save-root", root, "--executor", "process")
    assert done.returncode == 0, done.stderr
    return contents(root / "sweep")


@pytest.fixture(scope="session")
def expected(
    tmp_path_factory: pytest.TempPathFactory, quick: list[str]
) -> dict[str, Any]:
    """What the quick request comes to."""
    return by_processes(tmp_path_factory.mktemp("expected"), quick)


@pytest.fixture(scope="session")
def expected_slow(
    tmp_path_factory: pytest.TempPathFactory, slow: list[str]
) -> dict[str, Any]:
    """What the slow request comes to."""
    return by_processes(tmp_path_factory.mktemp("expected_slow"), slow)
