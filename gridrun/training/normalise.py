"""How inputs are normalised, by statistics of training samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gridrun import plugin_files
from gridrun.config.keys import NORMALIZERS

NORM_EPS = 1e-7
FITTED_VALUES = 2**26


@dataclasses.dataclass(frozen=True)
class Normaliser:
    """Normalises inputs (B, C, H, W), or (B, C, ...).

    Args:
        kind: `global`, `per_channel`: (x − mean)/(std + 1e-7), one pair of numbers for
            all or for each channel; `per_sample`: each sample less its mean; `none`.
        mean, std: A number, or one a channel; of training samples.
    """

    kind: str
    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0
    _tensors: dict[Any, tuple[Tensor, Tensor]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of_channels(
        cls, kind: str, means: list[float], variances: list[float]
    ) -> Normaliser:
        """From each channel's mean and variance, all over equally many values."""
        if kind == "per_channel":
            return cls(kind, means, [value**0.5 for value in variances])
        if kind != "global":
            return cls(kind)
        n = len(means)
        mean = sum(means) / n
        squares = sum(v + m**2 for m, v in zip(means, variances, strict=True)) / n
        return cls(kind, mean, max(squares - mean**2, 0.0) ** 0.5)

    @classmethod
    def load(cls, norm_stats: Mapping[str, Any]) -> Normaliser:
        """As kept in a checkpoint."""
        return cls(norm_stats["normalizer"], norm_stats["mean"], norm_stats["std"])

    @property
    def is_of_frames(self) -> bool:
        """Whether each frame of a movie is treated alike, wherever it stands."""
        return self.kind in ("global", "none")

    def stats(self) -> dict[str, Any]:
        """As plain data, for checkpoints."""
        return {"normalizer": self.kind, "mean": self.mean, "std": self.std}

    def __call__(self, x: Tensor, in_place: bool = False) -> Tensor:
        """Normalise x, same shape; in place if nobody else holds it."""
        if self.kind == "none":
            return x
        y = x if in_place else x.clone()
        if self.kind == "per_sample":
            return y.sub_(_sample_means(y))
        if isinstance(self.mean, float) and isinstance(self.std, float):
            return y.sub_(self.mean).div_(self.std + NORM_EPS)
        mean, std = self._of_channels_of(x)
        return y.sub_(mean).div_(std + NORM_EPS)

    def _of_channels_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, shaped to fit x; made once."""
        key = (x.dtype, x.device, x.ndim)
        if key not in self._tensors:
            shape = [-1, *[1] * (x.ndim - 2)]
            mean, std = (
                torch.tensor(values, dtype=x.dtype, device=x.device).view(shape)
                for values in (self.mean, self.std)
            )
            self._tensors[key] = (mean, std)
        return self._tensors[key]

    def inverse(self, y: Tensor, inputs: Tensor) -> Tensor:
        """What y was before, for values of the normalised inputs' kind.

        Args:
            y: (B, ...) normalised.
            inputs: (B, ...) as they were before: per_sample adds their means.
        """
        if self.kind == "none":
            return y
        if self.kind == "per_sample":
            return y + _sample_means(inputs)
        if isinstance(self.mean, float) and isinstance(self.std, float):
            return y * (self.std + NORM_EPS) + self.mean
        mean, std = self._of_channels_of(y)
        return y * (std + NORM_EPS) + mean


class OwnNormaliser:
    """A plug-in's normaliser in the place of ours.

    Args:
        entry: The value of the key `normalizer`.
        made: Its object: `fit(inputs)`, `stats()`, `load(stats)`, a call and `inverse`.
    """

    kind = "own"

    def __init__(self, entry: Any, made: Any) -> None:
        self.entry = entry
        self.made = made

    @classmethod
    def fitted(cls, entry: Any, plugins: str | None, inputs: Tensor) -> OwnNormaliser:
        """One fitted on inputs (N, ...).

        Raises:
            ConfigError: If there is none, or it refuses its arguments.
        """
        made = plugin_files.make("normalizer", entry, plugins, NORMALIZERS)
        made.fit(inputs)
        return cls(entry, made)

    def stats(self) -> dict[str, Any]:
        """As plain data, for checkpoints."""
        return {"normalizer": self.entry, "stats": self.made.stats()}

    def __call__(self, x: Tensor, in_place: bool = False) -> Tensor:
        """x (B, ...) normalised."""
        found: Tensor = self.made(x)
        return found

    def inverse(self, y: Tensor, inputs: Tensor) -> Tensor:
        """What y was before; `inputs` as they were before."""
        found: Tensor = self.made.inverse(y, inputs)
        return found


def load_normaliser(
    norm_stats: Mapping[str, Any], plugins: str | None
) -> Normaliser | OwnNormaliser:
    """The normaliser of a checkpoint."""
    if "stats" not in norm_stats:
        return Normaliser.load(norm_stats)
    entry = norm_stats["normalizer"]
    made = plugin_files.make("normalizer", entry, plugins, NORMALIZERS)
    made.load(norm_stats["stats"])
    return OwnNormaliser(entry, made)


def evenly_spaced(n_samples: int, n_values: int) -> Tensor:
    """Which of the samples a plug-in is fitted on: all that 256 MiB hold.

    Args:
        n_samples: How many there are.
        n_values: Of each.
    """
    n = max(min(n_samples, FITTED_VALUES // n_values), 1)
    return torch.arange(n) * n_samples // n


def _sample_means(x: Tensor) -> Tensor:
    return x.mean(tuple(range(1, x.ndim)), keepdim=True)
