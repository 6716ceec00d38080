"""Peer 4: Lightning, which open-retina trains through, with the plain model."""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.peers.data import samples
from benchmarks.peers.train import (
    loaders,
    make_loss,
    make_model,
    make_optimizer,
    metrics_of,
)


def run(runs: Sequence[Mapping[str, Any]], n_cores: int) -> list[dict[str, Any]]:
    """Metrics of the first run, with those of each epoch and when it ended."""
    torch.set_num_threads(n_cores)
    return [fit(runs[0])]


def fit(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train one run; `epochs` holds (seconds since the epoch 1970, val_acc)."""
    lightning: Any = importlib.import_module("lightning")

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = samples(settings)
    started = time.perf_counter()
    lightning.seed_everything(settings["seed"], verbose=False)
    loss_of = make_loss(settings)
    epochs: list[tuple[float, dict[str, float]]] = []

    class Module(lightning.LightningModule):  # type: ignore[misc]
        """The plain model with its loss, optimizer and validation."""

        def __init__(self) -> None:
            super().__init__()
            self.model = make_model(settings, data)
            self.found: list[tuple[torch.Tensor, torch.Tensor]] = []

        def training_step(self, batch: Any, index: int) -> Any:
            """Loss of a batch."""
            return loss_of(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            """Keep predictions."""
            self.found.append((self.model(batch[0]), batch[1]))

        def on_validation_epoch_end(self) -> None:
            """Score the whole split."""
            parts = zip(*self.found, strict=True)
            predictions, targets = (torch.cat(part) for part in parts)
            self.found = []
            epochs.append((time.time(), metrics_of(settings, predictions, targets)))

        def configure_optimizers(self) -> Any:
            """Adam."""
            return make_optimizer(settings, self.model)

    trainer = lightning.Trainer(
        max_epochs=settings["n_epochs"],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Module(), *loaders(settings, data))
    return {
        **epochs[-1][1],
        "run_s": time.perf_counter() - started,
        "epochs": [(when, metrics["val_acc"]) for when, metrics in epochs],
    }
