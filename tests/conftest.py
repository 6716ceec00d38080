"""What several test files share, as fixtures: small data, configurations, training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from cluster.slurm_site import SlurmSite, missing, running_site
from strategies import OF_SET

from gridrun.config import complete
from gridrun.planner import Job
from gridrun.plugins import libraries
from gridrun.run import make_spec
from gridrun.store import RunFolder, SweepFolder
from gridrun.training import checkpoint as checkpoints
from gridrun.training.data import DataInfo
from gridrun.training.job import train_job
from gridrun.training.models import build_model

torch.set_num_threads(1)

RETINA: dict[str, Any] = {
    "exp_name": "test",
    "model_type": "VaryModel",
    "dataset": "rec",
    "stim_type": "movie",
    "img_shape": [4, 8, 8],
    "chans": [3],
    "ksizes": [5, 4],
    "bnorm_d": 2,
    "batch_size": 32,
    "n_epochs": 3,
    "lr": 0.01,
    "seed": 5,
}
IMAGES: dict[str, Any] = {
    "exp_name": "test",
    **OF_SET,
    "batch_size": 16,
    "n_epochs": 3,
    "lr": 0.01,
    "seed": 5,
    "split_seed": 5,
}


def _hyps(library: str, base: Mapping[str, Any], root: Path, given: Any) -> Any:
    values = {**base, "data_root": str(root), **given}
    hyps, problems = complete(values, libraries()[library].schema)
    assert not problems, problems
    return hyps


@pytest.fixture(scope="session")
def retina_hyps() -> Callable[..., Any]:
    """Function (data root, **keys) that gives a complete retina configuration."""
    return lambda root, **given: _hyps("torchdeepretina", RETINA, root, given)


@pytest.fixture(scope="session")
def image_hyps() -> Callable[..., Any]:
    """Function (data root, **keys) that gives a complete image configuration."""
    return lambda root, **given: _hyps("imgclass", IMAGES, root, given)


@pytest.fixture(scope="session")
def build() -> Callable[..., torch.nn.Module]:
    """Function that builds a model from keys, all others at their defaults."""

    def make(
        library: str,
        model_type: str,
        n_units: int,
        centers: Sequence[tuple[int, int]] | None = None,
        seed: int = 0,
        device: str = "cpu",
        **keys: Any,
    ) -> torch.nn.Module:
        given = {"exp_name": "test", "dataset": "none", "batch_size": 2}
        given |= {"n_epochs": 1, "lr": 0.1, "model_type": model_type, **keys}
        if library == "torchdeepretina":
            given["stim_type"] = "none"
        hyps, problems = complete(given, libraries()[library].schema)
        assert hyps is not None, problems
        info = DataInfo(n_units, {}, {}, (), centers)
        torch.manual_seed(seed)
        with torch.device(device):
            return build_model(libraries()[library], hyps, info)

    return make


@pytest.fixture(scope="session")
def write_recording() -> Callable[..., dict[str, np.ndarray]]:
    """Function that writes a random recording and returns its arrays by path."""

    def write(
        path: Path,
        n_train: int = 135,
        n_test: int = 40,
        side: tuple[int, int] = (8, 8),
        n_cells: int = 3,
        n_blocks: int | None = None,
        extra_bins: int = 0,
        dtype: Any = np.uint8,
        centers: bool = True,
        changes: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        random = np.random.default_rng(3)
        arrays: dict[str, np.ndarray] = {}
        for split, n in (("train", n_train), ("test", n_test)):
            frames = random.integers(0, 256, (n, *side))
            arrays[f"{split}/stimulus"] = frames.astype(dtype)
            arrays[f"{split}/time"] = np.arange(n) * 0.01
            for kind in ("binned", "firing_rate_5ms", "firing_rate_10ms"):
                rates = random.gamma(1.0, 8.0, (n_cells, n + extra_bins))
                arrays[f"{split}/response/{kind}"] = rates
        if centers:
            arrays["centers"] = random.integers(2, 6, (n_cells, 2))
        for name, value in (changes or {}).items():
            if value is None:
                del arrays[name]
            else:
                arrays[name] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
            if n_blocks is not None:
                file["train"].attrs["n_blocks"] = n_blocks
        return arrays

    return write


@pytest.fixture(scope="session")
def write_images() -> Callable[..., dict[str, np.ndarray]]:
    """Function that writes a random image set and returns its arrays by path."""

    def write(
        path: Path,
        n_train: int = 66,
        n_test: int = 20,
        shape: tuple[int, int, int] = (1, 6, 6),
        n_classes: int = 3,
        augment: str | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        random = np.random.default_rng(4)
        arrays: dict[str, Any] = {
            "class_names": np.array([f"class {k}".encode() for k in range(n_classes)])
        }
        for split, n in (("train", n_train), ("test", n_test)):
            images = random.integers(0, 256, (n, *shape))
            arrays[f"{split}/images"] = images.astype(np.uint8)
            arrays[f"{split}/labels"] = np.arange(n) % n_classes
        for name, value in (changes or {}).items():
            if value is None:
                del arrays[name]
            else:
                arrays[name] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
            if augment is not None:
                file.attrs["augment"] = augment
        return arrays

    return write


@pytest.fixture(scope="session")
def recording(
    tmp_path_factory: pytest.TempPathFactory, write_recording: Callable[..., Any]
) -> Path:
    """A data root with a small recording `rec/movie.h5`."""
    root = tmp_path_factory.mktemp("recording")
    write_recording(root / "rec" / "movie.h5")
    return root


@pytest.fixture(scope="session")
def image_set(
    tmp_path_factory: pytest.TempPathFactory, write_images: Callable[..., Any]
) -> Path:
    """A data root with a small image set `set/images.h5`."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "set" / "images.h5", augment='["flip"]')
    return root


@pytest.fixture(scope="session")
def slurm_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmSite | None]:
    """A real Slurm on this machine, as long as the tests take; None without Slurm."""
    if missing():
        yield None
        return
    with running_site(tmp_path_factory.mktemp("slurm")) as site:
        yield site


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[Any], RunFolder]:
    """Function that makes the folder of a run of a configuration."""
    numbers = iter(range(1000))

    def make(hyps: Any) -> RunFolder:
        number = next(numbers)
        sweep = tmp_path / f"sweep{number}"
        sweep.mkdir()
        spec = make_spec(hyps, {}, 0, hyps.seed, ())
        return SweepFolder(sweep).create_run(number, spec)

    return make


@pytest.fixture
def train(make_folder: Callable[[Any], RunFolder]) -> Callable[..., list[RunFolder]]:
    """Function that trains configurations as one cohort and returns their folders."""

    def run(
        hyps: Sequence[Any],
        folders: Sequence[RunFolder] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        report: Callable[[Any], None] = lambda event: None,
    ) -> list[RunFolder]:
        made = list(folders or [make_folder(one) for one in hyps])
        name = type(hyps[0]).__module__.partition(".")[0]
        job = Job(
            library=name,
            folders=tuple(str(folder.path) for folder in made),
            hyps=tuple(one.model_dump(mode="json") for one in hyps),
            threads=1,
            device="cpu",
        )
        train_job(job, report, should_stop)
        return made

    return run


@pytest.fixture(scope="session")
def last_state() -> Callable[[RunFolder], dict[str, Any]]:
    """Function that gives the content of a run's last checkpoint."""

    def read(folder: RunFolder) -> dict[str, Any]:
        last = folder.read_index()["last"]
        return checkpoints.from_bytes(folder.read_checkpoint(last), folder.path)

    return read


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], bool]:
    """Function that says whether two nested values are equal bit for bit."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return (
                isinstance(b, torch.Tensor)
                and a.dtype == b.dtype
                and a.shape == b.shape
                and a.cpu().numpy().tobytes() == b.cpu().numpy().tobytes()
            )
        if isinstance(a, Mapping):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(equal, a, b))
        return type(a) is type(b) and a == b

    return equal
