"""What is done with trained image classifiers."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gridrun.errors import ConfigError
from gridrun.training.data import in_order
from gridrun.training.normalise import load_normaliser
from gridrun.training.trainer import EVAL_BATCH_SIZE
from imgclass import datas
from imgclass.hyperparams import ImageHyperparams


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's classes beside the true ones.

    Args:
        logits: (N, U).
        labels: (N,) true classes.
        class_names: (U,).
        split: train, val or test.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    split: str

    @property
    def classes(self) -> NDArray[np.int64]:
        """Predicted classes, (N,)."""
        found: NDArray[np.int64] = self.logits.argmax(1)
        return found

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return float((self.classes == self.labels).mean())


def predict(model: nn.Module, hyps: ImageHyperparams, split: str) -> Predictions:
    """Predict all images of a split; of a bootstrap replicate, each image once.

    Args:
        model: In eval mode, on the CPU.
        hyps: Name the image set.
        split: train, val or test.

    Raises:
        ConfigError: For another split.
        DataError: If the image set is not there as it was.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"split: expected train, val or test, got {split!r}")
    whole = hyps.model_copy(update={"bootstrap_index": None})
    data = datas.open_data(whole, torch.device("cpu"))
    images = cast(datas.Images, getattr(data, split))
    normalise = load_normaliser(data.norm_stats, hyps.plugins)
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        logits = [
            model(normalise(batch.inputs.to(dtype)))
            for batch in in_order(images, EVAL_BATCH_SIZE)
        ]
    return Predictions(
        logits=torch.cat(logits).numpy(),
        labels=images.labels.numpy(),
        class_names=tuple(data.info.labels["class_names"]),
        split=split,
    )
