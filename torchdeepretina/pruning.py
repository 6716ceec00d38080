"""Pruning of hidden channels by integrated gradients, one at a time, with rollback.

After `n_epochs` a channel is removed and the run trained on; the removal is kept if
val_acc holds, else everything goes back to where it was and the layer is left alone.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gridrun.nn import FlatBatchNorm, LinearStackedConv2d
from torchdeepretina.blocks import HiddenBlock
from torchdeepretina.hyperparams import RetinaHyperparams

COLUMNS = (
    "attempt",
    "epoch",
    "layer",
    "channel",
    "score",
    "scores",
    "baseline",
    "val_acc",
    "verdict",
)


@dataclasses.dataclass
class Attempt:
    """A removal that is being tried.

    Args:
        layer, channel: What was removed.
        scores: Of the layer's channels; NaN where removed before.
        epochs_left: To train before it is judged.
        model, optimizer: State dicts to go back to, lr included.
    """

    layer: str
    channel: int
    scores: list[float]
    epochs_left: int
    model: dict[str, Any]
    optimizer: dict[str, Any]


@dataclasses.dataclass
class Pruning:
    """Where a run's pruning stands; plain data in its checkpoints.

    Args:
        baseline: val_acc that must hold; None before the last regular epoch.
        removed: Layer to the channels removed from it.
        closed: Layers that are left alone from here on.
        steps: One record for each judged attempt.
        attempt: The one under way.
    """

    baseline: float | None = None
    removed: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    closed: list[str] = dataclasses.field(default_factory=list)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    attempt: Attempt | None = None

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Pruning:
        """Of a checkpoint's plain data; empty data: not begun."""
        fields = dict(state)
        if fields.get("attempt") is not None:
            fields["attempt"] = Attempt(**fields["attempt"])
        return cls(**fields)

    def state(self) -> dict[str, Any]:
        """As plain data."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.attempt is not None:
            fields["attempt"] = {
                f.name: getattr(self.attempt, f.name)
                for f in dataclasses.fields(Attempt)
            }
        return fields

    def next_layer(self, model: nn.Module, hyps: RetinaHyperparams) -> str | None:
        """The layer to try next; None where pruning has ended.

        The first open one, or with `altn_layers` the one that has lost least.
        """
        blocks = hidden_blocks(model)
        is_open = [
            name
            for name in hyps.prune_layers or blocks
            if name not in self.closed
            and len(self.removed.get(name, ())) < blocks[name].n_chans - 1
        ]
        if hyps.altn_layers:
            is_open.sort(key=lambda name: len(self.removed.get(name, ())))
        return is_open[0] if is_open else None

    def begin(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        hyps: RetinaHyperparams,
        layer: str,
        inputs: Tensor,
    ) -> None:
        """Remove the channel of a layer that matters least.

        Args:
            model, optimizer: Of the run; changed.
            hyps: Of the run.
            layer: As from `next_layer`.
            inputs: (B, C, H, W) normalised, for the scores.
        """
        block = hidden_blocks(model)[layer]
        scores = channel_scores(model, block, inputs, hyps.alpha_steps, hyps.abssum)
        gone = self.removed.get(layer, [])
        scores[gone] = math.nan
        ranked = torch.where(scores.isnan(), torch.full_like(scores, math.inf), scores)
        channel = int(ranked.argmin())
        self.attempt = Attempt(
            layer=layer,
            channel=channel,
            scores=scores.tolist(),
            epochs_left=hyps.prune_intvl,
            model=copied(model.state_dict()),
            optimizer=copied(optimizer.state_dict()),
        )
        self.removed[layer] = [*gone, channel]
        if hyps.zero_bias:
            block.close(channel)
        self.hold(model, hyps)

    def hold(self, model: nn.Module, hyps: RetinaHyperparams) -> None:
        """Keep the kernels of removed channels at 0 where their bias is kept."""
        if hyps.zero_bias:
            return
        blocks = hidden_blocks(model)
        with torch.no_grad():
            for layer, channels in self.removed.items():
                last_kernel(blocks[layer].conv)[channels] = 0.0

    def end_epoch(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        val_acc: float,
        epoch: int,
        tolerance: float,
    ) -> None:
        """Count an epoch of the attempt, and judge it after the last.

        Args:
            model, optimizer: Of the run; put back on rejection.
            val_acc: Of the epoch; not finite rejects at once.
            epoch: Its number.
            tolerance: Largest accepted fall of val_acc.
        """
        attempt, baseline = self.attempt, self.baseline
        assert attempt is not None
        assert baseline is not None
        attempt.epochs_left -= 1
        is_finite = math.isfinite(val_acc)
        if attempt.epochs_left > 0 and is_finite:
            return
        is_kept = is_finite and val_acc >= baseline - tolerance
        self.steps.append(
            {
                "attempt": len(self.steps) + 1,
                "epoch": epoch,
                "layer": attempt.layer,
                "channel": attempt.channel,
                "score": attempt.scores[attempt.channel],
                "scores": attempt.scores,
                "baseline": baseline,
                "val_acc": val_acc,
                "verdict": "accept" if is_kept else "reject",
            }
        )
        self.attempt = None
        if is_kept:
            self.baseline = val_acc
            return
        model.load_state_dict(attempt.model)
        optimizer.load_state_dict(copied(attempt.optimizer))
        self.removed[attempt.layer].remove(attempt.channel)
        self.closed.append(attempt.layer)

    def table(self) -> str:
        """The judged attempts as CSV."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for step in self.steps:
            writer.writerow(step | {"scores": json.dumps(step["scores"])})
        return buffer.getvalue()


def hidden_blocks(model: nn.Module) -> dict[str, HiddenBlock]:
    """The hidden blocks of a model by name, in order; none for models without."""
    layers = getattr(model, "layers", ())
    return {f"layers.{i}": cast(HiddenBlock, block) for i, block in enumerate(layers)}


def masked_channels(model: nn.Module) -> dict[str, list[int]]:
    """Layer to the channels that emit 0: a warm start may bring some."""
    return {
        name: (block.mask == 0).nonzero().flatten().tolist()
        for name, block in hidden_blocks(model).items()
    }


def last_kernel(conv: nn.Module) -> Tensor:
    """The weight (cout, ...) that makes the output channels of a conv or a stack."""
    last = conv.convs[-1] if isinstance(conv, LinearStackedConv2d) else conv
    return cast(Tensor, last.weight)


def copied(value: Any) -> Any:
    """A deep copy of nested data, tensors cloned."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(inner) for inner in value)
    return value


def channel_scores(
    model: nn.Module, block: nn.Module, inputs: Tensor, n_steps: int, use_abs: bool
) -> Tensor:
    """How much each channel of a block contributes to the outputs, in eval mode.

    Integrated gradients (Sundararajan et al. 2017) of the summed outputs along the
    block's activations from grey to the inputs.

    Args:
        model: Left in its mode.
        block: Whose output (B, C, H, W) is scored.
        inputs: (B, ...) normalised; grey is 0.
        n_steps: Steps of the path.
        use_abs: Sum absolute values over space, instead of taking that of the sum.

    Returns:
        (C,) float64, mean over samples.
    """
    outputs: list[Tensor] = []
    hook = block.register_forward_hook(lambda *args: outputs.append(args[2]))
    was_training = model.training
    model.eval()
    total: Tensor | None = None
    before: Tensor | None = None
    try:
        for step in range(n_steps + 1):
            outputs.clear()
            with torch.enable_grad():
                z = model(inputs * (step / n_steps))
                (gradient,) = torch.autograd.grad(z.sum(), outputs[0])
            now = outputs[0].detach()
            if before is not None:
                part = gradient * (now - before)
                total = part if total is None else total + part
            before = now
    finally:
        hook.remove()
        model.train(was_training)
    assert total is not None
    total = total.double()
    if use_abs:
        return total.abs().sum((2, 3)).mean(0)
    return total.sum((2, 3)).abs().mean(0)


def reduced_state(model: nn.Module, removed: Mapping[str, Sequence[int]]) -> Any:
    """The tensors of the same function without the removed channels.

    Stacks are collapsed. For channels that emit 0.

    Args:
        model: With masks.
        removed: Layer to channels.

    Returns:
        State dict of the model with `stackconvs` false and the `chans` that are left.
    """
    state = copied(model.state_dict())
    kept_before: Tensor | None = None
    for name, block in hidden_blocks(model).items():
        gone = set(removed.get(name, ()))
        kept = torch.tensor([c for c in range(block.n_chans) if c not in gone])
        conv = block.conv
        whole = conv
        if isinstance(conv, LinearStackedConv2d):
            dtype = last_kernel(conv).dtype
            whole = copy.deepcopy(conv).double().collapse().to(dtype)
        for key in [k for k in state if k.startswith(f"{name}.conv.")]:
            del state[key]
        weight = cast(Tensor, whole.weight).detach()
        if kept_before is not None:
            weight = weight[:, kept_before]
        state[f"{name}.conv.weight"] = weight[kept].clone()
        if whole.bias is not None:
            state[f"{name}.conv.bias"] = cast(Tensor, whole.bias).detach()[kept].clone()
        per_unit = isinstance(block.norm, FlatBatchNorm)
        for key in [k for k in state if k.startswith(f"{name}.norm.")]:
            if state[key].ndim:
                state[key] = _kept_features(state[key], block.n_chans, kept, per_unit)
        state[f"{name}.mask"] = state[f"{name}.mask"][kept]
        kept_before, n_before = kept, block.n_chans
    if kept_before is not None:
        for key in ("ganglion.weight", "ganglion.1.weight"):
            if key in state and state[key].ndim == 4:
                state[key] = state[key][:, kept_before].clone()
            elif key in state:
                weight = state[key].view(len(state[key]), n_before, -1)
                state[key] = weight[:, kept_before].flatten(1)
    return state


def reduced_checkpoint(
    state: Mapping[str, Any], model: nn.Module, hyps: RetinaHyperparams
) -> dict[str, Any]:
    """A checkpoint, without an optimizer, of the model less its removed channels.

    Args:
        state: The run's checkpoint.
        model: The run's, masked.
        hyps: The run's.
    """
    removed = Pruning.load(state["progress"]["extra"]).removed
    blocks = hidden_blocks(model)
    left = {
        "chans": [
            block.n_chans - len(removed.get(name, ())) for name, block in blocks.items()
        ],
        "n_layers": len(blocks) + 1,  # LinearStackedBNCNN does not read it
        "stackconvs": False,
        "prune": False,
    }
    if hyps.model_type == "LinearStackedBNCNN":
        left["model_type"] = "VaryModel"
    kept = ("schema_version", "epoch", "metrics", "norm_stats", "data")
    return {name: state[name] for name in kept} | {
        "hyps": {**state["hyps"], **left},
        "model_state_dict": reduced_state(model, removed),
    }


def _kept_features(
    values: Tensor, n_chans: int, kept: Tensor, per_unit: bool
) -> Tensor:
    if not per_unit:
        return values[kept].clone()
    return values.view(n_chans, -1)[kept].flatten()
