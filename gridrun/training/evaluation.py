"""Scores of a recorded run, computed as at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gridrun.claims import Claim
from gridrun.errors import ConfigError
from gridrun.plugins import Library
from gridrun.store import RunFolder
from gridrun.training.cohort import LiveRun
from gridrun.training.data import in_order
from gridrun.training.extras import Extras
from gridrun.training.job import opened_data, pick_device
from gridrun.training.models import rebuild_model
from gridrun.training.seeding import kept_globals
from gridrun.training.trainer import EVAL_BATCH_SIZE, Trainer

SPLITS = ("train", "val", "test")


def evaluate_checkpoint(
    library: Library,
    folder: RunFolder,
    state: Mapping[str, Any],
    split: str = "test",
    device: str = "auto",
) -> dict[str, float]:
    """Loss and metrics on a split; writes nothing.

    Args:
        library: Of the run's model.
        folder: Of the run.
        state: One of its checkpoints.
        split: train, val or test.
        device: As the key of that name.

    Returns:
        `<split>_loss` and so on. On the device and with the threads of training, those
        of the tested epoch on test are the recorded ones to the last bit.

    Raises:
        ConfigError, DataError: If there is no such split or device, or no data.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: expected one of {', '.join(SPLITS)}; got {split!r}")
    hyps = library.schema.model_validate(state["hyps"])
    place = pick_device(device)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(hyps.threads)
    try:
        trainer_class: type[Trainer] = library.load_trainer()
        data = opened_data(trainer_class, hyps, place)
        run = LiveRun(hyps, Claim(folder.claim), folder, place)
        run.model = rebuild_model(library, state).to(place)
        run.extras = Extras.of(hyps, trainer_class.augmenters)
        trainer = trainer_class(library, [run], data)
        samples = getattr(data, split)
        with kept_globals(), run.random.evaluating(), run.random.active():
            with torch.no_grad(), run.autocast():
                found = [
                    trainer.evaluate(run, batch.to(run.dtype))
                    for batch in in_order(samples, EVAL_BATCH_SIZE)
                ]
            with torch.no_grad():
                scores = trainer.measure(run, samples, found)
    finally:
        torch.set_num_threads(n_threads)
    return {f"{split}_{name}": value for name, value in scores.items()}
