"""The training function that all peers share: one run from settings to metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.peers.data import Samples, samples
from benchmarks.peers.models import RetinaCNN, image_network

EVAL_BATCH_SIZE = 500


def make_model(settings: Mapping[str, Any], data: Samples) -> nn.Module:
    """The model that the settings name."""
    if "stim_type" in settings:
        return RetinaCNN(settings, data.n_outputs, data.centers)
    return image_network(settings, data.n_outputs)


def make_optimizer(settings: Mapping[str, Any], model: nn.Module) -> torch.optim.Adam:
    """Adam as the settings say."""
    assert settings["optimizer"] == "Adam"
    parameters = model.parameters()
    return torch.optim.Adam(parameters, settings["lr"], weight_decay=settings["l2"])


def poisson_loss(rates: Tensor, targets: Tensor) -> Tensor:
    """Mean of rate − target · ln rate."""
    return (rates - targets * (rates + 1e-8).log()).mean()


def make_loss(settings: Mapping[str, Any]) -> Any:
    """Function of predictions and targets."""
    return poisson_loss if "stim_type" in settings else F.cross_entropy


def loaders(
    settings: Mapping[str, Any], data: Samples
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Shuffled training and ordered validation batches; the data are in memory."""
    train = DataLoader(data.train, settings["batch_size"], shuffle=True)
    return train, DataLoader(data.val, EVAL_BATCH_SIZE)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Any, batch: Any
) -> Tensor:
    """One update; returns the loss."""
    inputs, targets = batch
    loss: Tensor = loss_of(model(inputs), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def metrics_of(
    settings: Mapping[str, Any], predictions: Tensor, targets: Tensor
) -> dict[str, float]:
    """`val_loss`, and `val_acc`: mean Pearson r over cells, or accuracy."""
    loss = float(make_loss(settings)(predictions, targets))
    if "stim_type" not in settings:
        accuracy = float((predictions.argmax(1) == targets).double().mean())
        return {"val_loss": loss, "val_acc": accuracy}
    x = predictions.double() - predictions.double().mean(0)
    y = targets.double() - targets.double().mean(0)
    scale = (x.square().sum(0) * y.square().sum(0)).sqrt()
    r = (x * y).sum(0) / scale.clamp(min=1e-12)
    return {"val_loss": loss, "val_acc": float(r.mean())}


@torch.no_grad()
def validate(
    settings: Mapping[str, Any], model: nn.Module, loader: DataLoader[Any]
) -> dict[str, float]:
    """Metrics over the whole validation split."""
    model.eval()
    found = [(model(inputs), targets) for inputs, targets in loader]
    predictions, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    return metrics_of(settings, predictions, targets)


def train(settings: Mapping[str, Any]) -> dict[str, float]:
    """Train one run; returns the last epoch's metrics and the seconds it took."""
    data = samples(settings)
    started = time.perf_counter()
    torch.manual_seed(settings["seed"])
    model = make_model(settings, data)
    optimizer, loss_of = make_optimizer(settings, model), make_loss(settings)
    train_loader, val_loader = loaders(settings, data)
    metrics: dict[str, float] = {}
    for _ in range(settings["n_epochs"]):
        model.train()
        losses = [train_step(model, optimizer, loss_of, b) for b in train_loader]
        loss = float(torch.stack(losses).mean())
        metrics = {"loss": loss, **validate(settings, model, val_loader)}
    return metrics | {"run_s": time.perf_counter() - started}
