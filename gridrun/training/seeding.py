"""One random generator per run and use, all derived from the run's seed alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import random
from collections.abc import Iterator
from typing import Any, cast

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
    number = derive_seed(seed, use)
    with kept_globals():
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(number)
        yield


class RunRandom:
    """A run's generators: one per use, and the global ones for other layers.

    Args:
        seed: The run's seed.
        device: Where the run trains.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]  # its generator too
        self.seed = seed
        self._is_active = False
        self.generators = {use: generator(seed, use, device) for use in USES}
        self._numpy: Any = np.random.MT19937()
        with seeded_globals(seed, "global"):
            self._numpy.state = cast(Any, np.random.get_state(legacy=False))
            self._globals = _GlobalStates.now()

    def attach(self, model: nn.Module) -> None:
        """Give each random layer the run's generator of its use."""
        for module in model.modules():
            if isinstance(module, RandomModule):
                module.generator = self.generators[module.random_use]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the global generators the run's own inside.

        numpy's is exchanged as a whole, since it takes 70 µs to copy its state: half a
        pair of its normal numbers does not outlive a turn.
        """
        numpy_random: Any = np.random
        outside, numpy_outside = _GlobalStates.now(), numpy_random.get_bit_generator()
        self._globals.restore()
        numpy_random.set_bit_generator(self._numpy)
        self._is_active = True
        try:
            yield
        finally:
            self._is_active = False
            self._globals = _GlobalStates.now()
            numpy_random.set_bit_generator(numpy_outside)
            outside.restore()

    def state(self) -> dict[str, Any]:
        """Everything as tensors, numbers and text, for a checkpoint."""
        own = torch.stack([one.get_state() for one in self.generators.values()])
        version, numbers, gauss = self._globals.python
        words = self._numpy.state["state"]
        return {
            "generators": own,
            "python": [version, torch.tensor(numbers), gauss],
            "numpy": [torch.from_numpy(words["key"].astype(np.int64)), words["pos"]],
            "torch": self._globals.torch,
            "cuda": self._globals.cuda,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        states = state["generators"]
        for one, own in zip(self.generators.values(), states, strict=True):
            one.set_state(own.clone())
        version, numbers, gauss = state["python"]
        python = (version, tuple(numbers.tolist()), gauss)
        keys, position = state["numpy"]
        words = {"key": keys.numpy().astype(np.uint32), "pos": position}
        self._numpy.state = {"bit_generator": "MT19937", "state": words}
        self._globals = _GlobalStates(python, state["torch"], state["cuda"])
        if self._is_active:
            self._globals.restore()

    @functools.cached_property
    def _of_evaluation(self) -> tuple[_GlobalStates, Any, Any]:
        """Torch's and python's states, numpy's generator and its state."""
        with seeded_globals(self.seed, "evaluation"):
            state: Any = np.random.get_state(legacy=False)
            return _GlobalStates.now(), np.random.MT19937(), state

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Global random numbers of their own, the same at every evaluation.

        A model may draw in evaluation, too; the run's numbers do not move.
        """
        own = self._globals, self._numpy
        self._globals, self._numpy, state = self._of_evaluation
        self._numpy.state = state
        try:
            yield
        finally:
            self._globals, self._numpy = own


@contextlib.contextmanager
def kept_globals() -> Iterator[None]:
    """Put the states of the global generators back afterwards."""
    states: Any = np.random.get_state(legacy=False)
    saved = _GlobalStates.now()
    try:
        yield
    finally:
        np.random.set_state(states)
        saved.restore()


@dataclasses.dataclass(frozen=True)
class _GlobalStates:
    """Of python's and torch's global generators, as each library gives them."""

    python: tuple[Any, ...]
    torch: Tensor
    cuda: list[Tensor] | None

    @classmethod
    def now(cls) -> _GlobalStates:
        is_on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state_all() if is_on_gpu else None
        return cls(random.getstate(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
