"""Random layers; each draws from a generator that belongs to one run and one use."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn


class RandomModule(nn.Module, abc.ABC):
    """A layer that draws random numbers in training.

    `generator` is set by the trainer to the run's own for `random_use`; None draws
    from torch's global one. With a `tape` it takes what was drawn before.
    """

    random_use: ClassVar[str]
    generator: torch.Generator | None = None
    tape: Tape | None = None

    @abc.abstractmethod
    def draw(self, like: Tensor) -> Tensor:
        """Random numbers, a new tensor of the shape, type and place of another."""

    def drawn(self, like: Tensor) -> Tensor:
        """What the layer draws now, or has drawn before for this pass."""
        return self.draw(like) if self.tape is None else self.tape.drawn(self, like)


class Tape:
    """What a model's random layers draw in a forward pass, in order.

    Functions that torch transforms or captures cannot draw from a run's generators.
    A tape records a pass once; then the same draws are made outside, by the same
    generators, and handed in. It holds no model.
    """

    def __init__(self) -> None:
        self._names: dict[RandomModule, str] = {}
        self._entries: list[tuple[str, Tensor]] = []
        self._given: Iterator[Tensor] | None = None

    @contextlib.contextmanager
    def attached(
        self, model: nn.Module, given: Sequence[Tensor] | None = None
    ) -> Iterator[None]:
        """Inside, a model's layers draw through the tape.

        Args:
            model: Of the kind that is recorded.
            given: What they draw, in order; None: their own draws, which are recorded.
        """
        self._given = None if given is None else iter(given)
        self._names = {
            module: name
            for name, module in model.named_modules()
            if isinstance(module, RandomModule)
        }
        for module in self._names:
            module.tape = self
        try:
            yield
        finally:
            for module in self._names:
                module.tape = None
            self._names, self._given = {}, None

    def drawn(self, module: RandomModule, like: Tensor) -> Tensor:
        """The next draw."""
        if self._given is not None:
            return next(self._given).clone()  # it may be changed in place
        self._entries.append(
            (self._names[module], torch.empty_like(like, device="meta"))
        )
        return module.draw(like)

    def draws(self, model: nn.Module, device: torch.device) -> list[Tensor]:
        """The recorded draws, made anew by the layers of a model of the same kind."""
        found = []
        for name, shape in self._entries:
            module = model.get_submodule(name)
            assert isinstance(module, RandomModule)
            found.append(module.draw(torch.empty_like(shape, device=device)))
        return found


class GaussianNoise(RandomModule):
    """Adds noise of an absolute standard deviation in training.

    Args:
        std: Standard deviation, ≥ 0, in units of the activations. 0 draws nothing.
    """

    random_use = "noise"

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def draw(self, like: Tensor) -> Tensor:
        """Normal numbers."""
        return torch.empty_like(like).normal_(0.0, self.std, generator=self.generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with noise (training) or x itself (evaluation), same shape."""
        if not self.training or self.std == 0:
            return x
        return self.drawn(x).add_(x)

    def extra_repr(self) -> str:
        return f"std={self.std}"


class Dropout(RandomModule):
    """Zeroes single values in training and scales the rest by 1/(1 - p).

    Args:
        p: Probability of zero, in [0, 1). 0 draws nothing.
    """

    random_use = "dropout"

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def draw(self, like: Tensor) -> Tensor:
        """1 for what is kept, else 0."""
        return torch.empty_like(like).bernoulli_(1 - self.p, generator=self.generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with dropout (training) or x itself (evaluation), same shape."""
        if not self.training or self.p == 0:
            return x
        return x * self.drawn(x) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
