"""How a hyperparameter is declared."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Group = Literal["sweep", "model", "data", "training", "pruning", "runner"]
Identity = Literal["yes", "no", "guard"]


@dataclasses.dataclass(frozen=True)
class Key:
    """What the runner knows of a hyperparameter beside type, default and meaning.

    Args:
        group: The section of the reference that holds it.
        identity: Whether its value is part of what a run is: `yes`; `no` (never
            changes results); `guard` (changes bits, not meaning).
        sweepable: Whether it may stand in hyperranges.json.
        is_path: Whether relative values are relative to the file that holds them.
    """

    group: Group
    identity: Identity
    sweepable: bool
    is_path: bool


def key(
    default: Any,
    meaning: str,
    *,
    group: Group,
    identity: Identity = "yes",
    sweepable: bool | None = None,
    is_path: bool = False,
    expected: str | None = None,
    **constraints: Any,
) -> Any:
    """Declare a hyperparameter; `...` as default makes it required.

    Keys that never change results are not sweepable unless told. `expected` says in
    words what the constraints allow, where they are a pattern.
    """
    swept = identity == "yes" if sweepable is None else sweepable
    facts = Key(group, identity, swept, is_path)
    extra = {"gridrun": dataclasses.asdict(facts)}
    if expected is not None:
        extra["gridrun"]["expected"] = expected
    options = {"description": meaning, "json_schema_extra": extra, **constraints}
    if isinstance(default, (list, dict)):
        return Field(default_factory=lambda: copy.deepcopy(default), **options)
    return Field(default, **options)


class StrictModel(BaseModel):
    """Strict types, no other keys, finite numbers, fixed once made."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
