"""Training of retina models: the objectives, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from gridrun.config import Hyperparams, shown
from gridrun.config.keys import NORMALIZERS
from gridrun.durable import write_durably
from gridrun.errors import ConfigError
from gridrun.nn import Spectrum, central_place, field_side, semantic_loss
from gridrun.plugins import Library
from gridrun.training import checkpoint as checkpoints
from gridrun.training.cohort import Diverged, LiveRun
from gridrun.training.data import Batch, Data, DataInfo, Split
from gridrun.training.losses import l1_of_outputs, mean_squared_error, poisson_nll
from gridrun.training.models import build_model
from gridrun.training.normalise import OwnNormaliser
from gridrun.training.seeding import generator
from gridrun.training.terms import Terms
from gridrun.training.trainer import Trainer
from gridrun.training.trials import refuse_shape
from torchdeepretina import analysis, datas, metrics
from torchdeepretina.blocks import RetinaModel
from torchdeepretina.hyperparams import RetinaHyperparams
from torchdeepretina.pruning import Pruning, masked_channels, reduced_checkpoint
from torchdeepretina.windows import Windows, model_inputs


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

    @classmethod
    def try_out(cls, library: Library, hyps: Hyperparams, info: DataInfo) -> None:
        """Adds: a plug-in has what criteria and scores ask of a retina model."""
        if not issubclass(library.model(hyps.model_type, hyps.plugins), RetinaModel):
            text = f"{hyps.model_type} must derive from torchdeepretina.blocks."
            raise ConfigError(f"model_type: {text}RetinaModel")
        super().try_out(library, hyps, info)

    @staticmethod
    def trial(hyps: Hyperparams, info: DataInfo, n: int) -> tuple[Any, Batch]:
        """Windows of noise, and rates."""
        own = cast(RetinaHyperparams, hyps)
        windows = torch.randn(n, *own.img_shape)
        if own.normalizer not in NORMALIZERS:
            made = OwnNormaliser.fitted(own.normalizer, hyps.plugins, windows)
            windows = made(windows)
        return SimpleNamespace(info=info), Batch(windows, torch.rand(n, info.n_units))

    @staticmethod
    def open_data(hyps: Hyperparams, device: torch.device) -> Data:
        """Read the recording that the keys name."""
        return datas.open_data(cast(RetinaHyperparams, hyps), device)

    @staticmethod
    def prepare_model(model: nn.Module, data: Data) -> None:
        """Give each cell's output its standard deviation in training, if asked."""
        if not model.scales_output:  # a warm start may bring another scale
            cast(Tensor, model.output_scale).fill_(1.0)
        else:
            targets = cast(Windows, data.train).targets.double()
            scale = targets.std(0)
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            cast(Tensor, model.output_scale).copy_(scale)

    @staticmethod
    def predict(model: nn.Module, hyps: Hyperparams, split: str) -> Any:
        """Rates of a split; see `torchdeepretina.analysis.predict`."""
        return analysis.predict(model, cast(RetinaHyperparams, hyps), split)

    def train_objective(self, run: LiveRun, batch: Batch, x: Any) -> Terms:
        """Criterion plus the l1 term."""
        z = run.model(x)
        loss = criterion(run.model, run.hyps.lossfxn, z, batch.targets)
        if not run.hyps.l1:
            return {"loss": loss}
        penalty = run.hyps.l1 * l1_of_outputs(z)
        return {"loss": loss + penalty, "l1_term": penalty}

    def retinotopic_objective(self, run: LiveRun, batch: Batch, x: Any) -> Terms:
        """That of `train_loop` plus what makes one-hot weights one-hot and small."""
        hyps, onehot = cast(RetinaHyperparams, run.hyps), cast(Any, run.model).onehot
        terms = self.train_objective(run, batch, x)
        own = {
            "semantic_term": hyps.semantic_scale
            * semantic_loss(onehot.probabilities()),
            "semantic_l1_term": hyps.semantic_l1 * onehot.weight.abs().sum(1).mean(),
        }
        return terms | own | {"loss": terms["loss"] + sum(own.values())}

    loops: ClassVar = {
        "train_loop": train_objective,
        "retinotopic_loop": retinotopic_objective,
    }

    # pruning: epochs beyond n_epochs, see `torchdeepretina.pruning`

    @staticmethod
    def pruning(run: LiveRun) -> Pruning:
        """Where the run's pruning stands."""
        return Pruning.load(run.progress.extra)

    def is_finished(self, run: LiveRun) -> bool:
        """With `prune`: once no layer is open."""
        hyps = cast(RetinaHyperparams, run.hyps)
        if not run.is_trained or not hyps.prune:
            return run.is_trained
        pruning = self.pruning(run)
        return pruning.attempt is None and not pruning.next_layer(run.model, hyps)

    def begin_epoch(self, run: LiveRun) -> None:
        """Remove the next channel, if pruning is due and no attempt is under way."""
        hyps, pruning = cast(RetinaHyperparams, run.hyps), self.pruning(run)
        if pruning.baseline is None or pruning.attempt is not None:
            return
        layer = pruning.next_layer(run.model, hyps)
        assert layer is not None
        n_samples = len(self.data.train)
        use = f"pruning:{len(pruning.steps)}"
        random = generator(run.seed, use)
        chosen = torch.randperm(n_samples, generator=random)[: hyps.intg_bsize]
        batch = self.data.train.batch(chosen.sort().values).to(run.dtype)
        run.model.eval()
        pruning.begin(run.model, run.optimizer, hyps, layer, batch.inputs)
        if hyps.reset_sd:
            self._reset_weights(run)
            pruning.hold(run.model, hyps)
        if hyps.reset_lr:
            for group in run.optimizer.param_groups:
                group["lr"] = hyps.lr
        run.progress.extra = pruning.state()

    def _reset_weights(self, run: LiveRun) -> None:
        """Initial parameters and buffers, masks kept; a fresh optimizer."""
        first = run.initial_model(
            lambda: build_model(self.library, run.hyps, self.data.info)
        )
        self.prepare_model(first, self.data)
        masks = {n: b for n, b in run.model.named_buffers() if n.endswith("mask")}
        run.model.load_state_dict({**first.state_dict(), **masks})
        run.optimizer.state.clear()

    def train_step(self, run: LiveRun, batch: Batch) -> Terms:
        """Adds: an attempt that diverges is rejected, and the run goes on."""
        pruning = self.pruning(run)
        if pruning.attempt is None:
            return super().train_step(run, batch)
        try:
            terms = super().train_step(run, batch)
        except Diverged:  # every column of metrics.csv is filled all the same
            names = [n for n in run.hyps.metrics() if not n.startswith("val_")]
            return {name: torch.tensor(math.nan) for name in names}
        pruning.hold(run.model, cast(RetinaHyperparams, run.hyps))
        return terms

    def close_epoch(self, run: LiveRun, found: dict[str, float]) -> None:
        """While pruning, judge attempts; scheduler, best epoch and patience rest."""
        hyps, pruning = cast(RetinaHyperparams, run.hyps), self.pruning(run)
        if pruning.attempt is None:
            super().close_epoch(run, found)
            if hyps.prune and run.is_trained:
                pruning.baseline = found["val_acc"]
                pruning.removed = masked_channels(run.model)
        else:
            run.metrics = dict(found)
            losses = (found["loss"], found["val_loss"])
            is_sound = all(math.isfinite(loss) for loss in losses)
            val_acc = found["val_acc"] if is_sound else math.nan
            pruning.end_epoch(
                run.model, run.optimizer, val_acc, run.epoch, hyps.prune_tolerance
            )
            write_durably(run.folder.path / "pruning.csv", pruning.table())
        run.progress.extra = pruning.state()

    def tested_epoch(self, run: LiveRun) -> int:
        """With `prune`: the last, which is what was accepted last."""
        hyps = cast(RetinaHyperparams, run.hyps)
        return run.epoch if hyps.prune else super().tested_epoch(run)

    def finish(self, runs: Sequence[LiveRun]) -> None:
        """Adds, of a pruned model, the same function without the removed channels."""
        for run in runs:
            hyps = cast(RetinaHyperparams, run.hyps)
            if hyps.prune and hyps.zero_bias:
                with self.guarded(run):
                    self._write_reduced(run, hyps)
        super().finish(runs)

    def _write_reduced(self, run: LiveRun, hyps: RetinaHyperparams) -> None:
        whole = run.checkpoint(self.data.norm_stats, self.data.info.labels)
        state = reduced_checkpoint(whole, run.model, hyps)
        path = run.folder.path / "pruned_model.pt"
        write_durably(path, checkpoints.to_bytes(state))

    def inputs(self, run: LiveRun, batch: Batch) -> Tensor | Spectrum:
        """Windows, or their transform where the model can start from it."""
        if run.extras.distorter is not None and run.model.training:
            return self.distorted(run, batch.inputs)
        return model_inputs(run.model, batch)

    def plain_batch(self, run: LiveRun, batch: Batch) -> Batch:
        """Normalised windows, never their transform."""
        return Batch(self.distorted(run, batch.inputs), batch.targets, batch.dtype)

    def predicted(self, run: LiveRun, model: nn.Module, inputs: Tensor) -> Tensor:
        """Rates (B, U) in the unit of the targets."""
        own: Any = model
        found: Tensor = own.link(own(inputs))
        return found

    def try_batch(self, run: LiveRun, batch: Batch) -> None:
        """Adds the number of outputs."""
        super().try_batch(run, batch)
        with torch.no_grad():
            refuse_shape(run, run.model(self.inputs(run, batch)), self.data.info)

    def evaluate(self, run: LiveRun, batch: Batch) -> Terms:
        """Criterion times samples, and rates (B, U) beside targets."""
        model: Any = run.model
        z = model(self.inputs(run, batch))
        loss = criterion(model, run.hyps.lossfxn, z, batch.targets)
        return {
            "loss": loss.double() * len(batch),
            "rates": model.link(z),
            "targets": batch.targets,
        }

    def measure(
        self, run: LiveRun, split: Split, found: Sequence[Terms]
    ) -> dict[str, float]:
        """Criterion, mean Pearson r over cells and, of repeats, what they allow."""
        loss = sum(float(part["loss"]) for part in found) / len(split)
        x = torch.cat([part["rates"] for part in found])
        targets = torch.cat([part["targets"] for part in found])
        r = metrics.pearson_per_cell(x, targets)
        own = {"loss": loss, "acc": float(r.mean())}
        return own | self._of_repeats(run, cast(Windows, split), x)

    def _of_repeats(self, run: LiveRun, split: Windows, x: Tensor) -> dict[str, float]:
        """Means over the cells that allow it, of the metrics of the test split."""
        unit_hz = split.unit_hz(cast(RetinaHyperparams, run.hyps).response_type)
        found: dict[str, Tensor] = {}
        if split.repeats is not None:
            found |= metrics.of_repeats(x * unit_hz, split.repeats * unit_hz)
            del found["explainable"]  # of the recording alone; `data check` tells it
        if split.counts is not None:
            train = cast(Windows, self.data.train)
            base = train.targets.double().mean(0) * unit_hz
            found["bits_per_spike"] = metrics.bits_per_spike(
                x * unit_hz, split.counts, base, split.dt_s
            )
        means = {name: float(values.nanmean()) for name, values in found.items()}
        return {name: value for name, value in means.items() if value == value}
