"""Training of image classifiers: the objective, and what is measured."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gridrun.config import Hyperparams
from gridrun.config.keys import NORMALIZERS
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch, Data, DataInfo, Split
from gridrun.training.losses import class_loss, l1_of_outputs
from gridrun.training.normalise import Normaliser, OwnNormaliser, load_normaliser
from gridrun.training.terms import Terms
from gridrun.training.trainer import Trainer
from gridrun.training.trials import refuse_shape
from imgclass import analysis, datas
from imgclass.augment import AUGMENTATIONS, augment_images
from imgclass.hyperparams import ImageHyperparams
from imgclass.metrics import n_correct


class ImageTrainer(Trainer):
    """Trains classifiers on image sets."""

    augmenters: ClassVar = AUGMENTATIONS

    @staticmethod
    def inspect_data(hyps: Hyperparams) -> DataInfo:
        """Facts about the image set that the keys name."""
        return datas.inspect_data(cast(ImageHyperparams, hyps))

    @staticmethod
    def trial(hyps: Hyperparams, info: DataInfo, n: int) -> tuple[Any, Batch]:
        """Images of noise, and labels."""
        hyps_of_images = cast(ImageHyperparams, hyps)
        images = torch.rand(n, *hyps_of_images.img_shape)
        info = dataclasses.replace(info, labels={**info.labels, "augment": []})
        stats = Normaliser("none").stats()
        if hyps_of_images.normalizer not in NORMALIZERS:
            entry = hyps_of_images.normalizer
            stats = OwnNormaliser.fitted(entry, hyps.plugins, images).stats()
        data = SimpleNamespace(info=info, norm_stats=stats)
        return data, Batch(images, torch.arange(n) % info.n_units)

    @staticmethod
    def open_data(hyps: Hyperparams, device: torch.device) -> Data:
        """Read the image set that the keys name."""
        return datas.open_data(cast(ImageHyperparams, hyps), device)

    @staticmethod
    def predict(model: nn.Module, hyps: Hyperparams, split: str) -> Any:
        """Classes of a split; see `imgclass.analysis.predict`."""
        return analysis.predict(model, cast(ImageHyperparams, hyps), split)

    def inputs(self, run: LiveRun, batch: Batch) -> Tensor:
        """Images normalised; in training augmented before that, distorted after."""
        images = batch.inputs
        if run.model.training:
            names = self.data.info.labels["augment"]
            images = augment_images(
                images, names, run.random.generators["augmentation"]
            )
        return self.distorted(run, self.normalise(images))

    @functools.cached_property
    def normalise(self) -> Normaliser | OwnNormaliser:
        """Of images, as fitted on the training images."""
        stats = self.data.norm_stats
        plugins = self.runs[0].hyps.plugins if "stats" in stats else None
        return load_normaliser(stats, plugins)

    def train_objective(self, run: LiveRun, batch: Batch, x: Tensor) -> Terms:
        """Loss of the labels plus the l1 term."""
        logits = run.model(x)
        loss = class_loss(run.hyps.lossfxn, logits, batch.targets)
        if not run.hyps.l1:
            return {"loss": loss}
        penalty = run.hyps.l1 * l1_of_outputs(logits)
        return {"loss": loss + penalty, "l1_term": penalty}

    loops: ClassVar = {"train_loop": train_objective}

    def try_batch(self, run: LiveRun, batch: Batch) -> None:
        """Adds the number of outputs."""
        super().try_batch(run, batch)
        with torch.no_grad():
            refuse_shape(run, run.model(self.inputs(run, batch)), self.data.info)

    def evaluate(self, run: LiveRun, batch: Batch) -> Terms:
        """Loss times samples, and correct answers."""
        logits = run.model(self.inputs(run, batch))
        loss = class_loss(run.hyps.lossfxn, logits, batch.targets)
        correct = n_correct(logits, batch.targets)
        return {"loss": loss.double() * len(batch), "acc": correct}

    def measure(
        self, run: LiveRun, split: Split, found: Sequence[Terms]
    ) -> dict[str, float]:
        """Loss and accuracy on the whole split."""
        return {
            name: sum(float(part[name]) for part in found) / len(split)
            for name in ("loss", "acc")
        }
