"""The hyperparameters of plug-in models and data sets; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from gridrun.config import Hyperparams, key
from gridrun.config.keys import class_name


class GeneralHyperparams(Hyperparams):
    """Keys of `general`: those of every library, for plug-in models and data sets."""

    is_pair_data: ClassVar[bool] = True

    dataset: str = key(
        ...,
        "class of a plug-in data set, or its import path package.module:Class",
        group="data",
        min_length=1,
    )
    normalizer: str | dict[str, Any] = key(
        "none",
        "how inputs (of pair data: and targets) are normalised, fitted on training "
        "samples: none, global, per_channel, per_sample, or a plug-in",
        group="data",
    )
    lossfxn: str | dict[str, Any] = key(  # type: ignore[assignment]
        ...,
        'a loss of torch.nn or a plug-in, by name or {"class", "args"}',
        group="training",
    )

    def problems(self) -> Iterable[tuple[str, str]]:
        """Adds what pair data need."""
        yield from super().problems()
        if self.spectra_cache_mib != "auto":
            yield "spectra_cache_mib", "of recordings only"
        for name in ("loss_space", "eval_space"):
            if getattr(self, name) == "original" and self.normalizer == "none":
                yield name, "original needs a normalizer, whose inverse it takes"

    def _monitor_problems(self) -> Iterable[tuple[str, str]]:
        """The data set's own metrics are known later; what is better is not."""
        metric, _, mode = self.monitor.partition(":")
        if mode not in ("max", "min") and metric not in ("val_loss", "val_acc", "loss"):
            yield "monitor", f"say what is better: {metric}:max or {metric}:min"

    def for_models(self) -> dict[str, Any]:
        """Nothing: a model's settings are `model_args`."""
        return {}

    def plugin_names(self) -> Iterable[str]:
        """Adds data sets and loss."""
        from gridrun.training.losses import is_of_torch

        yield from super().plugin_names()
        yield self.dataset
        if self.val_set is not None:
            yield self.val_set
        if not is_of_torch(class_name(self.lossfxn)):
            yield class_name(self.lossfxn)

    def inactive(self, reads: frozenset[str]) -> dict[str, str]:
        """Adds the conditions of data in memory."""
        reasons = super().inactive(reads)
        conditions = {"n_workers": "samples of plug-in data sets are in memory"}
        if self.val_set is not None:
            conditions["val_p"] = "val_set holds the validation samples"
        if self.shuffle:
            conditions["val_loc"] = "needs shuffle false; else the split is random"
        is_split = self.shuffle and self.val_set is None
        is_drawn = self.bootstrap or self.bootstrap_index is not None
        if not is_split and not is_drawn and self.distorter is None:
            conditions["split_seed"] = "needs a random split"
        if self.train_loop not in self.loops:
            conditions["loss_space"] = f"{self.train_loop} gets normalised values"
        return conditions | reasons
