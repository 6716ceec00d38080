"""One worker's piece of work: claim runs, open their data, train them."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import logging
import os
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gridrun
from gridrun import plugin_files
from gridrun.claims import ClaimLost
from gridrun.config import Hyperparams
from gridrun.durable import sha256_of_file
from gridrun.errors import ConfigError, DataError, StorageError
from gridrun.planner import Job
from gridrun.plugins import Library, libraries
from gridrun.run import RunState
from gridrun.store import RunFolder
from gridrun.training.cohort import (
    CohortTooLarge,
    LiveRun,
    claimed,
    describe_failure,
)
from gridrun.training.data import Data, DataInfo
from gridrun.training.engines import chosen_engine
from gridrun.training.event import Event
from gridrun.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train_job(
    job: Job,
    report: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train the runs of a job that no other live process holds.

    A cohort that does not fit in memory goes on as two halves, one after the other.

    Args:
        job: The cohort.
        report: Called with each `Event`.
        should_stop: Asked before each step.

    Raises:
        Interrupted: If it was asked to stop; the runs are recorded as interrupted.
    """
    try:
        _train_cohort(job, report, should_stop)
        return
    except CohortTooLarge:
        logger.warning("%d runs do not fit in memory together", len(job.folders))
    finally:
        _free_gpu_memory()
    for half in job.halves():
        train_job(half, report, should_stop)


def _free_gpu_memory() -> None:
    """Give back what a cohort held on a GPU: its parts know each other."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


def _train_cohort(
    job: Job,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> None:
    torch.set_num_threads(job.threads)
    library = libraries()[job.library]
    device = pick_device(job.device)
    with claimed([RunFolder(Path(path)) for path in job.folders]) as claims:
        hyps = dict(zip(job.folders, job.hyps, strict=True))
        held = [
            LiveRun(
                library.schema.model_validate(dict(hyps[str(folder.path)])),
                claim,
                folder,
                device,
            )
            for folder, claim in claims
        ]
        runs = [run for run in held if run.record["state"] not in job.final_states]
        if runs:
            chosen_engine(runs[0].hyps, device)  # as the device: known before a start
            _train(library, runs, device, report, should_stop)


def _train(
    library: Library,
    runs: Sequence[LiveRun],
    device: torch.device,
    report: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> None:
    trainer_class: type[Trainer] = library.load_trainer()
    try:
        for run in runs:
            run.begin_attempt(circumstances(library, run.hyps, device))
        files = content_hashes(trainer_class.inspect_data(runs[0].hyps))
        for run in runs:
            run.note(data_sha256=files)
            run.write_record()
        data = opened_data(trainer_class, runs[0].hyps, device)
        trainer_class(library, runs, data, report, should_stop).fit()
    except StorageError:
        raise
    except ClaimLost as error:  # before or after training: the others are free again
        logger.warning("%s", error)
        for run in _unfinished(runs):
            run.abandon()
    except Exception as error:
        line, text = describe_failure(error)
        for run in _unfinished(runs):
            run.folder.write_text(run.folder.failure, text)
            run.end_attempt(RunState.FAILED, line)
            report(Event("end", run.number, run.epoch, state="failed"))
        if not isinstance(error, ConfigError | DataError):
            logger.exception("a cohort failed")
    except BaseException:
        for run in _unfinished(runs):
            with contextlib.suppress(ClaimLost):
                run.end_attempt(RunState.INTERRUPTED)
        raise


def _unfinished(runs: Sequence[LiveRun]) -> list[LiveRun]:
    return [run for run in runs if run.state is RunState.RUNNING]


def pick_device(name: str) -> torch.device:
    """The device that the key `device` names.

    Raises:
        ConfigError: If it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        n_devices = torch.cuda.device_count()
        if (device.index or 0) >= n_devices:
            raise ConfigError(
                f"device: {name} is not there ({n_devices} CUDA devices found); "
                "use auto or cpu"
            )
    return device


def content_hashes(info: DataInfo) -> dict[str, str]:
    """SHA-256 of the data of a run, by the name of the file or of the data set."""
    found = dict(info.contents)
    for path in map(Path, info.files):
        name = (
            path.name if path.name not in found else f"{path.parent.name}/{path.name}"
        )
        found[name] = file_hash(str(path))
    return found


_opened: dict[str, Data] = {}


def opened_data(
    trainer_class: type[Trainer], hyps: Hyperparams, device: torch.device
) -> Data:
    """The data of a cohort; kept for the next cohort if that uses the same."""
    from gridrun.planner import data_key

    hashes = content_hashes(trainer_class.inspect_data(hyps))
    name = f"{data_key(hyps)}:{device}:{hashes}"
    if name not in _opened:
        _opened.clear()
        _opened[name] = trainer_class.open_data(hyps, device)
    return _opened[name]


def circumstances(
    library: Library, hyps: Hyperparams, device: torch.device
) -> dict[str, Any]:
    """What can change bits, or tell where an attempt ran."""
    source = inspect.getsourcefile(library.model(hyps.model_type, hyps.plugins))
    plugins = plugin_files.source_files(hyps.plugin_names(), hyps.plugins)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else processor_name(),
        "threads": torch.get_num_threads(),
        "engine": chosen_engine(hyps, device),
        "conv_method": hyps.conv_method,
        "versions": versions(),
        "model_source_sha256": file_hash(source) if source else None,
        "plugin_sha256": _short_names({str(p): file_hash(str(p)) for p in plugins}),
    }


def _short_names(hashes: Mapping[str, str]) -> dict[str, str]:
    """By path below the folder that holds all."""
    root = os.path.commonpath(hashes) if len(hashes) > 1 else ""
    return {
        os.path.relpath(path, root) if root else Path(path).name: digest
        for path, digest in hashes.items()
    }


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "gridrun": gridrun.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


@functools.cache
def processor_name() -> str:
    """The processor's model, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        logger.debug("no /proc/cpuinfo")
    return platform.processor() or platform.machine()


_hashes: dict[tuple[str, int, int], str] = {}


def file_hash(path: str) -> str:
    """SHA-256 of a file, computed once while it does not change."""
    status = Path(path).stat()
    key = (path, status.st_mtime_ns, status.st_size)
    if key not in _hashes:
        _hashes[key] = sha256_of_file(Path(path))
    return _hashes[key]
