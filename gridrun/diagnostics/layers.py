"""Which modules of a model are layers, and what flows through them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gridrun.config import suggest
from gridrun.diagnostics.context import NotApplicable
from gridrun.nn import LinearStackedConv2d, OneHot

See = Callable[[str, nn.Module, Tensor, Tensor], None]
ROOT = "model"  # name of a model that is one layer


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All modules below a model by name; a stack of convolutions is one of them.

    A model that is itself a linear map has one layer, `model`.
    """
    is_single = isinstance(model, LinearStackedConv2d) or not any(model.children())
    if is_single and _is_map(model):
        return {ROOT: model}
    found = {}
    stacks: list[str] = []
    for name, module in model.named_modules():
        if not name or name.startswith(tuple(stacks)):
            continue
        found[name] = module
        if isinstance(module, LinearStackedConv2d):
            stacks.append(f"{name}.")
    return found


def named_maps(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are linear maps with weights of their own, as defined."""
    return {name: one for name, one in named_layers(model).items() if _is_map(one)}


def _is_map(module: nn.Module) -> bool:
    if isinstance(module, OneHot):  # reads units at places, makes none
        return False
    weight = module._parameters.get("weight")
    has_matrix = weight is not None and weight.ndim >= 2
    return has_matrix or isinstance(module, LinearStackedConv2d)


def layer_named(model: nn.Module, name: str) -> nn.Module:
    """A layer by its name.

    Raises:
        NotApplicable: If there is none.
    """
    layers = named_layers(model)
    if name not in layers:
        raise NotApplicable(f"layer: no layer {name!r}{suggest(name, layers)}")
    return layers[name]


@contextlib.contextmanager
def watched(model: nn.Module, see: See) -> Iterator[None]:
    """Inside, call `see(name, layer, input, output)` after each call of a layer.

    Calls whose input or output is no tensor are passed over.
    """

    def hook(name: str) -> Callable[..., None]:
        def called(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                see(name, module, args[0], output)

        return called

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in named_layers(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch(model: nn.Module, inputs: Tensor, see: See) -> Tensor:
    """Run a model on inputs (B, ...) without gradients, watched; its output."""
    with watched(model, see), torch.no_grad():
        output: Tensor = model(inputs)
    return output
