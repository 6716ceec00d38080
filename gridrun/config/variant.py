"""Many configurations that differ little, each kept as what differs.

10,000 whole ones take 70 MB, these 10.
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from gridrun.config.keys import Hyperparams

EXACT = (str, int, bool)


@dataclasses.dataclass(frozen=True, slots=True)
class Variant:
    """A configuration as its differences from another.

    Args:
        base: The other, of the same schema.
        changes: Key to value, where they differ.
    """

    base: Hyperparams
    changes: Mapping[str, Any]

    @classmethod
    def of(cls, hyps: Hyperparams, base: Hyperparams) -> Variant:
        """A configuration as its differences from `base`."""
        return cls(base, differences(vars(hyps), vars(base)))

    @property
    def hyps(self) -> Hyperparams:
        """The configuration."""
        return self.base.model_copy(update=self.changes)


def varied(values: dict[str, Any], base: dict[str, Any]) -> Mapping[str, Any]:
    """A mapping equal to `values`, which shares with `base` what they have in common.

    Args:
        values: Plain data.
        base: Plain data that nobody changes.
    """
    if values is base or values.keys() != base.keys():
        return values
    return ChainMap(differences(values, base), base)


def varying(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every key in which the mappings differ, and perhaps others, in their order."""
    keys = list(mappings[0]) if mappings else []
    bases = {id(m.maps[-1]) if isinstance(m, ChainMap) else id(m) for m in mappings}
    if len(bases) > 1:
        return list(dict.fromkeys(key for mapping in mappings for key in mapping))
    own = {key for m in mappings if isinstance(m, ChainMap) for key in m.maps[0]}
    return [key for key in keys if key in own]


def differences(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `values` that are not the same, type and all, in `base`."""
    return {
        name: value
        for name, other in base.items()
        if (value := values[name]) is not other and not _is_same(value, other)
    }


def _is_same(value: Any, other: Any) -> bool:
    kind = type(value)
    if kind is not type(other) or value != other:
        return False
    # 0.0 and -0.0 are equal, and so are [1] and [True]
    return kind in EXACT or (kind is float and value != 0) or repr(value) == repr(other)
