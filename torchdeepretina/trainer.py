"""Training of retina models: the objectives, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gridrun.config import Hyperparams, shown
from gridrun.nn import central_place, field_side
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch, Data, DataInfo, Split, in_order
from gridrun.training.losses import l1_of_outputs, mean_squared_error, poisson_nll
from gridrun.training.trainer import EVAL_BATCH_SIZE, Terms, Trainer
from torchdeepretina import analysis, datas, metrics
from torchdeepretina.hyperparams import RetinaHyperparams
from torchdeepretina.windows import Windows


def criterion(model: Any, lossfxn: str, z: Tensor, targets: Tensor) -> Tensor:
    """The loss of outputs z (B, U) against targets (B, U), by name."""
    if lossfxn == "PoissonNLLLoss":
        return poisson_nll(model.scaled(z), targets, log_rate=model.is_log_rate)
    return mean_squared_error(model.scaled(z), targets)


class RetinaTrainer(Trainer):
    """Trains retina models on windows of a recording."""

    @staticmethod
    def inspect_data(hyps: Hyperparams) -> DataInfo:
        """Facts about the recording that the keys name."""
        return datas.inspect_data(cast(RetinaHyperparams, hyps))

    @staticmethod
    def notices(hyps: Hyperparams, info: DataInfo) -> Sequence[str]:
        """Adds the cells at whose centre no unit of the map can look."""
        assert isinstance(hyps, RetinaHyperparams)
        if hyps.model_type == "RetinotopicModel" or not hyps.has_ganglion_kernel:
            return Trainer.notices(hyps, info)
        field = field_side(hyps.ksizes)
        clipped = [
            f"{cell} {tuple(center)}"
            for cell, center in zip(
                info.labels["cells"], info.centers or (), strict=True
            )
            if not all(
                central_place(at, size, field)[1]
                for at, size in zip(center, hyps.img_shape[1:], strict=True)
            )
        ]
        if not clipped:
            return Trainer.notices(hyps, info)
        text = (
            f"convgc: ksizes {shown(hyps.ksizes)}: no receptive field of "
            f"{field}×{field} pixels is centred on cell {', '.join(clipped)}; the "
            "nearest is read"
        )
        return [*Trainer.notices(hyps, info), text]

    @staticmethod
    def open_data(hyps: Hyperparams, device: torch.device) -> Data:
        """Read the recording that the keys name."""
        return datas.open_data(cast(RetinaHyperparams, hyps), device)

    @staticmethod
    def prepare_model(model: nn.Module, data: Data) -> None:
        """Give each cell's output its standard deviation in training, if asked."""
        if model.scales_output:
            targets = cast(Windows, data.train).targets.double()
            scale = targets.std(0)
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            cast(Tensor, model.output_scale).copy_(scale)

    @staticmethod
    def predict(model: nn.Module, hyps: Hyperparams, split: str) -> Any:
        """Rates of a split; see `torchdeepretina.analysis.predict`."""
        return analysis.predict(model, cast(RetinaHyperparams, hyps), split)

    def train_objective(self, run: LiveRun, batch: Batch) -> Terms:
        """Criterion plus the l1 term."""
        z = run.model(self.inputs(run, batch))
        hyps = run.hyps
        loss = criterion(run.model, hyps.lossfxn, z, batch.targets)
        if not hyps.l1:
            return {"loss": loss}
        penalty = hyps.l1 * l1_of_outputs(z)
        return {"loss": loss + penalty, "l1_term": penalty}

    loops: ClassVar = {"train_loop": train_objective}

    def evaluate(self, run: LiveRun, split: Split) -> dict[str, float]:
        """Criterion, mean Pearson r over cells and, of repeats, what they allow."""
        model: Any = run.model
        rates, targets, total = [], [], 0.0
        for batch in in_order(split, EVAL_BATCH_SIZE):
            z = run.model(self.inputs(run, batch))
            loss = criterion(run.model, run.hyps.lossfxn, z, batch.targets)
            total += float(loss) * len(batch)
            rates.append(model.link(z))
            targets.append(batch.targets)
        x = torch.cat(rates)
        r = metrics.pearson_per_cell(x, torch.cat(targets))
        found = {"loss": total / len(split), "acc": float(r.mean())}
        return found | self._of_repeats(run, cast(Windows, split), x)

    def _of_repeats(self, run: LiveRun, split: Windows, x: Tensor) -> dict[str, float]:
        """Means over the cells that allow it, of the metrics of the test split."""
        unit_hz = split.unit_hz(cast(RetinaHyperparams, run.hyps).response_type)
        found: dict[str, Tensor] = {}
        if split.repeats is not None:
            found |= metrics.of_repeats(x * unit_hz, split.repeats * unit_hz)
        if split.counts is not None:
            train = cast(Windows, self.data.train)
            base = train.targets.double().mean(0) * unit_hz
            found["bits_per_spike"] = metrics.bits_per_spike(
                x * unit_hz, split.counts, base, split.dt_s
            )
        means = {name: float(values.nanmean()) for name, values in found.items()}
        return {name: value for name, value in means.items() if value == value}
