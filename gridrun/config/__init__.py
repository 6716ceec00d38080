"""The two JSON files: read, completed by a schema and checked, without torch.

A library's hyperparameters are one pydantic class derived from `Hyperparams`. Each key
carries, beside type and default, what the runner must know of it (`Key`).
"""

from gridrun.config.checks import complete, json_schema
from gridrun.config.declare import Key, key
from gridrun.config.files import (
    absolute,
    data_root,
    get_nested,
    parse_override,
    read_json,
    resolve_paths,
    set_nested,
)
from gridrun.config.keys import Hyperparams, defaults_of, keys_of, weights_hash
from gridrun.config.messages import Problem, raise_problems, shown, suggest
from gridrun.config.variant import Variant, varied, varying

__all__ = [
    "Hyperparams",
    "Key",
    "Problem",
    "Variant",
    "absolute",
    "complete",
    "data_root",
    "defaults_of",
    "get_nested",
    "json_schema",
    "key",
    "keys_of",
    "parse_override",
    "raise_problems",
    "read_json",
    "resolve_paths",
    "set_nested",
    "shown",
    "suggest",
    "varied",
    "varying",
    "weights_hash",
]
