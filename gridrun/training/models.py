"""Models of configurations and of checkpoints: built, rebuilt, described."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gridrun.config import Hyperparams, defaults_of
from gridrun.nn import set_method
from gridrun.plugin_files import construct
from gridrun.plugins import Library
from gridrun.training.data import DataInfo


def build_model(library: Library, hyps: Hyperparams, info: DataInfo) -> nn.Module:
    """A model of the class and settings that the keys name.

    Raises:
        ConfigError: If its layers do not fit the image.
    """
    kind = library.model(hyps.model_type, hyps.plugins)
    facts = {"n_units": info.n_units, "centers": info.centers}
    shapes = ("input_shape", "target_shape")
    facts |= {name: info.labels[name] for name in shapes if name in info.labels}
    args = {name: value for name, value in hyps.model_args.items() if name not in facts}
    facts |= {name: hyps.model_args[name] for name in facts if name in hyps.model_args}
    keys = hyps.for_models() | facts
    model: nn.Module = construct("model_args", kind, args, keys)
    set_method(model, hyps.conv_method)
    return model


def default_model(library: Library, name: str, n_units: int) -> nn.Module:
    """A model under the default keys, without storage (on torch's meta device)."""
    schema = library.schema
    values: dict[str, Any] = {**defaults_of(schema), **schema.model_defaults(name)}
    values["model_type"] = name
    hyps = schema.model_construct(None, **values)
    hyps = hyps.model_copy(update=hyps.resolved())
    with torch.device("meta"):
        return build_model(library, hyps, DataInfo(n_units, {}, {}, ()))


def n_parameters(model: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def describe_model(model: nn.Module) -> str:
    """What was built, with the shape of each parameter, for model.txt."""
    lines = [str(model), "", "trainable parameters:"]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shape = "×".join(map(str, parameter.shape)) or "1"
            lines.append(f"{parameter.numel():12,}  {name}  ({shape})")
    lines.append(f"{n_parameters(model):12,}  in total")
    return "\n".join(lines) + "\n"


def rebuild_model(library: Library, state: Mapping[str, Any]) -> nn.Module:
    """The model of a checkpoint, in eval mode on the CPU; draws no random number.

    It carries `hyps` and `norm_stats` as attributes, and `cells` and `centers` where
    the data had them.
    """
    hyps = library.schema.model_validate(state["hyps"])
    labels = state["data"]
    info = DataInfo(labels["n_units"], labels, {}, (), labels.get("centers"))
    with torch.random.fork_rng(devices=[]):
        model = build_model(library, hyps, info)
    is_double = hyps.precision == "float64"
    model.to(torch.float64 if is_double else torch.float32)
    model.load_state_dict(state["model_state_dict"])
    facts: dict[str, Any] = {"hyps": hyps, "norm_stats": state["norm_stats"]}
    facts |= {name: labels.get(name) for name in ("cells", "centers", "class_names")}
    vars(model).update(facts)
    return model.eval()
