"""One random generator per run and use, all derived from the run's seed alone."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gridrun.nn import RandomModule

USES = ("noise", "dropout", "shakes", "augmentation", "distortion")


def derive_seed(seed: int, use: str) -> int:
    """A 63-bit seed for one use, independent of all others.

    Args:
        seed: The run's seed.
        use: Any text.
    """
    digest = hashlib.sha256(f"{seed}:{use}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, use: str, device: torch.device | str = "cpu") -> Any:
    """A fresh torch generator for one use."""
    return torch.Generator(device).manual_seed(derive_seed(seed, use))


def epoch_order(seed: int, epoch: int, n_samples: int) -> Tensor:
    """The seeded order of an epoch's samples, (n_samples,) int64."""
    return torch.randperm(n_samples, generator=generator(seed, f"order:{epoch}"))


def random_subset(seed: int, n_samples: int, n_chosen: int) -> Tensor:
    """Sorted indices of a seeded random subset, for the train/validation split."""
    chosen = torch.randperm(n_samples, generator=generator(seed, "split"))[:n_chosen]
    return chosen.sort().values


@contextlib.contextmanager
def seeded_globals(seed: int, use: str) -> Iterator[None]:
    """Seed python, numpy and torch inside; put their states back afterwards."""
    saved = _global_states()
    number = derive_seed(seed, use)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
    try:
        yield
    finally:
        _set_global_states(saved)


class RunRandom:
    """A run's generators: one per use, and the global ones for other layers.

    Args:
        seed: The run's seed.
        device: Where the run trains.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generators = {use: generator(seed, use, device) for use in USES}
        with seeded_globals(seed, "global"):
            self._globals = _global_states()

    def attach(self, model: nn.Module) -> None:
        """Give each random layer the run's generator of its use."""
        for module in model.modules():
            if isinstance(module, RandomModule):
                module.generator = self.generators[module.random_use]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the global generators the run's own inside."""
        outside = _global_states()
        _set_global_states(self._globals)
        try:
            yield
        finally:
            self._globals = _global_states()
            _set_global_states(outside)

    def state(self) -> dict[str, Any]:
        """Everything as tensors, numbers and text, for a checkpoint."""
        states: dict[str, Any] = {
            use: one.get_state() for use, one in self.generators.items()
        }
        return states | self._globals

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        for use, one in self.generators.items():
            one.set_state(state[use])
        self._globals = {name: state[name] for name in self._globals}


def _global_states() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = legacy
    states: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(keys.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _set_global_states(states: dict[str, Any]) -> None:
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
