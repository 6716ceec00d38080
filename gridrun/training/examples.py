"""Validation samples whose predictions are kept at every evaluation (examples.h5)."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
from torch import Tensor

from gridrun.claims import ClaimLost
from gridrun.durable import write_durably
from gridrun.errors import DataError, StorageError
from gridrun.hdf5 import open_file
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch

if TYPE_CHECKING:
    from gridrun.training.trainer import Trainer

logger = logging.getLogger(__name__)
PER_EVALUATION = ("prediction", "epoch", "step")


class Examples:
    """The examples of one run.

    Args:
        trainer: Whose run it is.
        run: The run.
    """

    def __init__(self, trainer: Trainer, run: LiveRun) -> None:
        self.trainer = trainer
        self.run = run
        self.indices = run.hyps.val_example_indices
        self.path = run.folder.path / "examples.h5"
        self.error: str | None = None
        self.rows: list[dict[str, Any]] = self._earlier() if self.indices else []

    def _earlier(self) -> list[dict[str, Any]]:
        """What earlier attempts have kept, up to the epoch that is trained."""
        if not self.path.exists():
            return []
        try:
            with open_file(self.path) as file:
                if list(file["indices"][:]) != self.indices:
                    return []
                kept = {name: file[name][:] for name in PER_EVALUATION}
        except (DataError, OSError, KeyError):  # damaged
            return []
        rows = [
            dict(zip(PER_EVALUATION, row, strict=True))
            for row in zip(*kept.values(), strict=True)
        ]
        return [row for row in rows if row["epoch"] <= self.run.epoch]

    def add(self, epoch: int, step: int) -> None:
        """Predict the samples and write the file anew.

        Args:
            epoch: That is under way or ends.
            step: After which of its steps.
        """
        if not self.indices or self.error is not None:
            return
        try:
            self._add(epoch, step)
        except (ClaimLost, StorageError):
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told, and harmless
            self.error = f"{type(error).__name__}: {error}"
            text = f"examples fail and are left out: {self.error}"
            logger.warning("run %d: %s", self.run.number, text)
            self.run.log(text)
            self.run.note(examples_error=self.error)

    def _add(self, epoch: int, step: int) -> None:
        run = self.run
        with torch.no_grad(), run.autocast():
            inputs, predictions, targets = self.trainer.shown(run, self._batch())
        row = {"prediction": _array(predictions), "epoch": epoch, "step": step}
        self.rows.append(row)
        run.claim.check()
        whole = {"input": _array(inputs), "target": _array(targets)}
        whole |= {
            name: np.stack([r[name] for r in self.rows]) for name in PER_EVALUATION
        }
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            for name, values in whole.items():
                file[name] = values
            file["indices"] = np.array(self.indices, np.int64)
            file.attrs["subset"] = run.hyps.val_example_subset
        write_durably(self.path, content.getvalue())
        if run.hyps.show_plots:
            from gridrun.training.example_plot import examples_figure

            shown = [_array(one) for one in (inputs, predictions, targets)]
            picture = examples_figure(
                shown[0], shown[1], shown[2], indices=self.indices
            )
            content = io.BytesIO()
            picture.savefig(content, format="png", dpi=120)
            write_durably(run.folder.path / "examples.png", content.getvalue())

    def _batch(self) -> Batch:
        name = self.run.hyps.val_example_subset
        data = self.trainer.data
        split = data.val if name == "DEFAULT" else data.subsets[name]
        return split.batch(torch.tensor(self.indices)).to(self.run.dtype)


def index_problem(indices: Sequence[int], n_samples: int, subset: str) -> str | None:
    """What is wrong with the key `val_example_indices`, if anything."""
    outside = [index for index in indices if index >= n_samples]
    if not outside:
        return None
    return f"{outside} are not there; {subset} has samples 0 to {n_samples - 1}"


def _array(values: Tensor) -> Any:
    """As float32 where it is not whole numbers."""
    own = values.detach().cpu()
    return (own.float() if own.is_floating_point() else own).numpy()
