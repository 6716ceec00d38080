"""What a configuration adds to training: distorters, augmenters, objectives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gridrun import plugin_files
from gridrun.config import Hyperparams
from gridrun.config.keys import class_name
from gridrun.errors import ConfigError

Change = Callable[[Tensor, torch.Generator], Tensor]
Distorter = Change
Augmenter = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


class Gaussian:
    """Adds independent normal numbers.

    Args:
        std: Their standard deviation, in the unit of the normalised inputs; ≥ 0.
    """

    def __init__(self, std: float) -> None:
        self.std = _number("std", std, 0)

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs (B, ...) with noise."""
        return inputs + self.std * _draws(torch.randn, inputs.shape, inputs, generator)


class Dropout:
    """Sets single values to 0, which is the mean of normalised inputs.

    Args:
        p: Probability of each, in [0, 1].
    """

    def __init__(self, p: float) -> None:
        self.p = _number("p", p, 0, 1)

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs (B, ...), some of them 0."""
        draws = _draws(torch.rand, inputs.shape, inputs, generator)
        return inputs * (draws >= self.p)


class Jitter:
    """Moves each sample by whole pixels along its last two axes; 0 comes in.

    Args:
        pixels: Largest move in either direction; an integer ≥ 0.
    """

    def __init__(self, pixels: int) -> None:
        if not isinstance(pixels, int) or isinstance(pixels, bool) or pixels < 0:
            raise ConfigError(
                f"distorter_args: pixels: expected an integer ≥ 0, got {pixels!r}"
            )
        self.pixels = pixels

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Inputs (B, ..., H, W), moved."""
        if inputs.ndim < 3:
            text = f"jitter needs images; inputs are {list(inputs.shape)}"
            raise ConfigError(f"distorter: {text}")
        most = self.pixels
        moves = torch.randint(
            2 * most + 1, (len(inputs), 2), generator=generator, device=generator.device
        ).to(inputs.device)
        for axis in (-2, -1):
            side = inputs.shape[axis]
            sources = torch.arange(side, device=inputs.device) + moves[:, axis, None]
            sources -= most
            shape = [len(inputs), *[1] * (inputs.ndim - 1)]
            shape[axis] = side
            is_inside = ((sources >= 0) & (sources < side)).view(shape)
            places = sources.clamp(0, side - 1).view(shape).expand_as(inputs)
            inputs = inputs.gather(inputs.ndim + axis, places) * is_inside
        return inputs


OWN: dict[str, Any] = {"gaussian": Gaussian, "dropout": Dropout, "jitter": Jitter}


def _number(name: str, value: Any, low: float, high: float = float("inf")) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        limits = f"≥ {low}" if high == float("inf") else f"from {low} to {high}"
        text = f"expected a number {limits}, got {value!r}"
        raise ConfigError(f"distorter_args: {name}: {text}")
    return float(value)


def _draws(
    draw: Any, shape: Sequence[int], like: Tensor, generator: torch.Generator
) -> Tensor:
    """Random numbers that depend on neither type nor device of the inputs."""
    drawn = draw(shape, generator=generator, device=generator.device)
    found: Tensor = drawn.to(like.device, like.dtype)
    return found


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a run's configuration adds to training.

    Args:
        augmenters: Change inputs and targets of training batches, in order.
        distorter: Changes normalised inputs of training batches.
        objective: Of a plug-in: `(model, inputs, targets)` to a loss, or to terms with
            `loss` among them.
    """

    augmenters: Sequence[Augmenter] = ()
    distorter: Distorter | None = None
    objective: Callable[[Any, Any, Tensor], Any] | None = None

    @classmethod
    def of(cls, hyps: Hyperparams, known: Mapping[str, Change]) -> Extras:
        """Those that the keys name.

        Args:
            hyps: They name them.
            known: The library's augmenters by name; they change inputs alone.

        Raises:
            ConfigError: With the key first, for an unknown name or argument.
        """
        augmenters: list[Augmenter] = []
        for entry in hyps.augmenters:
            if class_name(entry) in known:
                plugin_files.refuse_clash("augmenters", class_name(entry), hyps.plugins)
                if plugin_files.args_of("augmenters", entry):
                    text = f"{class_name(entry)} takes no args"
                    raise ConfigError(f"augmenters: {text}")
                change = known[class_name(entry)]
                augmenters.append(functools.partial(_of_inputs, change))
            else:
                made = plugin_files.make("augmenters", entry, hyps.plugins, known)
                augmenters.append(made)
        objective = None
        if hyps.train_loop not in hyps.loops:
            objective = plugin_files.make("train_loop", hyps.train_loop, hyps.plugins)
        return cls(augmenters, _distorter(hyps), objective)

    def state(self) -> dict[str, Any]:
        """What those that have a `state_dict` keep, by place, for checkpoints."""
        return {name: part.state_dict() for name, part in self._with_state().items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        for name, part in self._with_state().items():
            part.load_state_dict(state[name])

    def _with_state(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"distorter": self.distorter}
        parts["objective"] = self.objective
        parts |= {f"augmenters.{i}": one for i, one in enumerate(self.augmenters)}
        return {
            name: part for name, part in parts.items() if hasattr(part, "state_dict")
        }


def _distorter(hyps: Hyperparams) -> Distorter | None:
    name, args = hyps.distorter, hyps.distorter_args
    made: Distorter | None = None
    if name in OWN:
        plugin_files.refuse_clash("distorter", str(name), hyps.plugins)
        made = plugin_files.construct("distorter_args", OWN[name], args)
    elif name is not None:
        entry = {"class": name, "args": args}
        made = plugin_files.make("distorter", entry, hyps.plugins, OWN)
    return made


def _of_inputs(
    change: Change, inputs: Tensor, targets: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    return change(inputs, generator), targets
