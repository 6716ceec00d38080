"""One training step, ours against plain PyTorch, one thread each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cohort import Ours
from benchmarks.measure import Setting, median, one_thread, timed_s
from benchmarks.peers.data import samples
from benchmarks.peers.models import copy_weights
from benchmarks.peers.train import (
    loaders,
    make_loss,
    make_model,
    make_optimizer,
    train_step,
)
from benchmarks.scenarios import (
    DENSE,
    QUICK_DENSE,
    QUICK_RECIPE,
    RECIPE,
    completed,
    retina_data,
)
from benchmarks.table import Row
from gridrun.machine import keep_freed_memory

GROUP = "One training step"
COHORT = 6  # runs of a cohort in the 24-run grids on two workers
MATRIX = 2048
EQUAL = {"noise": 0.0, "drop_p": 0.0}


def rows(setting: Setting) -> Iterator[Row]:
    """The rows of this group, as they are measured."""
    n_frames = 300 if setting.is_quick else 1500
    keys = retina_data(setting.folder, n_frames, 20 if setting.is_quick else 50)
    dense = DENSE | (QUICK_DENSE if setting.is_quick else {}) | keys
    recipe = RECIPE | (QUICK_RECIPE if setting.is_quick else {}) | keys
    keep_freed_memory()  # as in our workers; the peer's steps gain by it too
    with one_thread():
        rate = sgemm_rate(2 if setting.is_quick else 8)
        yield Row(GROUP, "matrix multiplication, float32", rate / 1e9, "GFLOP/s")
        yield from compared("BNCNN dense", dense, 20, rate, setting)
        yield from compared("published recipe", recipe, 4, rate, setting)
        dropped = recipe | {"drop_p": 0.05}
        yield from compared(
            "published recipe, dropout 0.05", dropped, None, rate, setting
        )


def compared(
    name: str,
    values: Mapping[str, Any],
    target: float | None,
    rate: float,
    setting: Setting,
) -> Iterator[Row]:
    """Speed against the peer, agreement with it, and the parts of our step."""
    setting.note(f"step: {name}")
    ours = Ours.of(completed(values))
    parts, peer_s = interleaved(ours, values, n_rounds=2 if setting.is_quick else 7)
    shared_s, own_s = parts["shared"], parts["step"]
    sense: Any = ">=" if target else ""
    seconds = {"ours_ms": own_s * 1e3, "shared_ms": shared_s * 1e3}
    seconds["plain_ms"] = peer_s * 1e3
    yield Row(
        GROUP,
        f"{name}: against nn.Conv2d, in a cohort of {COHORT}",
        peer_s / (own_s + shared_s / COHORT),
        "×",
        sense,
        target,
        seconds | {"batch": values["batch_size"], "threads": 1},
    )
    yield Row(
        GROUP,
        f"{name}: against nn.Conv2d, a run alone",
        peer_s / (own_s + shared_s),
        "×",
    )
    yield Row(
        GROUP,
        f"{name}: time of our step",
        (own_s + shared_s) * 1e3,
        "ms",
        details={f"{part}_ms": value * 1e3 for part, value in parts.items()},
    )
    n_operations = direct_operations(ours, values)
    yield Row(
        GROUP,
        f"{name}: rate of direct convolution that our step equals",
        n_operations / own_s / rate,
        "of matrix multiplication",
        details={
            "plain": n_operations / peer_s / rate,
            "gflop_direct": n_operations / 1e9,
        },
    )
    if not values.get("drop_p"):
        yield from agreement(name, values)


def agreement(name: str, values: Mapping[str, Any]) -> Iterator[Row]:
    """How far loss and gradients are from the peer's, without noise."""
    loss, _ = differences({**values, "precision": "float32"})
    text = f"{name}: loss, float32, relative difference"
    yield Row(GROUP, text, loss, "", "<=", 1e-5)
    _, gradient = differences({**values, "precision": "float64"})
    text = f"{name}: gradients, float64, relative difference"
    yield Row(GROUP, text, gradient, "", "<=", 1e-9)


def interleaved(
    ours: Ours, values: Mapping[str, Any], n_rounds: int
) -> tuple[dict[str, float], float]:
    """Median seconds of our step by part, and of a peer's with its batch."""
    settings = completed(values).model_dump(mode="json")
    data = samples(settings)
    model = make_model(settings, data).train()
    optimizer, loss_of = make_optimizer(settings, model), make_loss(settings)
    loader = iter(loaders(settings, data)[0])
    n_samples = len(ours.trainer.data.train)
    measured: list[dict[str, float]] = []
    plain: list[float] = []
    for round_ in range(n_rounds + 1):
        order = torch.randperm(n_samples)[: values["batch_size"]]
        parts = our_parts(ours, order)
        try:
            started = time.perf_counter()
            batch = next(loader)
        except StopIteration:
            loader = iter(loaders(settings, data)[0])
            started = time.perf_counter()
            batch = next(loader)
        train_step(model, optimizer, loss_of, batch)
        if round_:  # the first step of each allocates
            measured.append(parts)
            plain.append(time.perf_counter() - started)
    return {name: median([m[name] for m in measured]) for name in measured[0]}, median(
        plain
    )


def our_parts(ours: Ours, order: Tensor) -> dict[str, float]:
    """Seconds of one step of ours: shared by a cohort, a run's own, and its parts."""
    started = time.perf_counter()
    batch = ours.batch(order)
    shared_s = time.perf_counter() - started
    with ours.profiled() as found:
        step_s = timed_s(lambda: ours.step(batch))
    rest = step_s - sum(found.values())
    return {"shared": shared_s, "step": step_s, **found, "bookkeeping": rest}


def differences(values: Mapping[str, Any]) -> tuple[float, float]:
    """Of the loss, relative; of the gradients, relative to the largest of the peer's.

    Both start from the same weights, without noise, on the same batch.
    """
    hyps = completed({**values, **EQUAL})
    ours = Ours.of(hyps)
    settings = hyps.model_dump(mode="json")
    plain = make_model(settings, samples(settings)).to(ours.run.dtype).train()
    copy_weights(ours.run.model, plain)
    # not the first windows, where the loss is nearly 0
    n_samples = len(ours.trainer.data.train)
    batch = ours.batch(torch.arange(n_samples)[-hyps.batch_size :])
    same = batch.to(ours.run.dtype)
    expected = train_step(
        plain,
        torch.optim.SGD(plain.parameters(), lr=0.0),
        make_loss(settings),
        (same.inputs.clone(), same.targets),
    )
    loss = ours.step(batch)
    relative = float((loss - expected).abs() / expected.abs())
    return relative, gradient_difference(ours.run.model, plain)


def gradient_difference(ours: nn.Module, plain: nn.Module) -> float:
    """Largest difference over the largest gradient of the plain model."""
    largest = difference = 0.0
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        largest = max(largest, float(other.grad.abs().max()))
        difference = max(difference, float((mine.grad - other.grad).abs().max()))
    return difference / largest


def sgemm_rate(n_rounds: int) -> float:
    """Floating-point operations per second of a large matrix product."""
    a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    times = [timed_s(lambda: a @ b) for _ in range(n_rounds + 1)]
    return 2 * MATRIX**3 / median(times[1:])


def direct_operations(ours: Ours, values: Mapping[str, Any]) -> float:
    """Floating-point operations of a step if all convolutions are done directly.

    Forward, weight gradient and, beyond the first layer, input gradient.
    """
    settings = completed(values).model_dump(mode="json")
    data = samples(settings)
    model = make_model(settings, data).eval()
    counts: list[float] = []

    def count(layer: Any, inputs: Any, output: Tensor) -> None:
        per_output = layer.weight[0].numel()
        counts.append(2.0 * output[0].numel() * per_output)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(ours.batch(torch.arange(2)).inputs)
    n_samples: int = values["batch_size"]
    return n_samples * (2 * counts[0] + 3 * sum(counts[1:]))
