"""What the units of each layer do on a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gridrun.diagnostics.context import Context, Found, Samples
from gridrun.diagnostics.layers import watch


def activations(model: nn.Module, batch: Samples, context: Context) -> Found:
    """Statistics of each layer's output over the batch, as `<layer>/<statistic>`.

    A layer is a module whose output is new: not its input, nor what a module inside
    it gave already. What functions make between layers is seen where a layer takes it,
    as `input of <layer>`. Of a layer that is called several times the last call counts.

    Returns:
        For each `mean`; `sd`; `zeros`, share of exact zeros; `n_units`, channels of
        maps (B, C, ...) or neurons (B, ..., N) of linear layers; `n_dead`, units that
        are zero for all samples at all places.
    """
    found: Found = {}
    seen: dict[tuple[int, int, int], Tensor] = {}  # kept alive: no address comes twice
    values: set[tuple[float, ...]] = set()
    with_units_last: set[tuple[Any, ...]] = set()

    def note(x: Tensor) -> bool:
        """Whether a tensor is not one of those before, nor a view of it."""
        is_new = x.is_floating_point() and _content(x) not in seen
        seen[_content(x)] = x
        return is_new

    def see(name: str, layer: nn.Module, given: Tensor, output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            with_units_last.update([_layout(given), _layout(output)])
        elif isinstance(layer, nn.Embedding) or (
            _layout(given) in with_units_last and _keeps_units(layer, given, output)
        ):
            with_units_last.add(_layout(output))
        if note(output):
            values.add(_extremes(output))
            is_last = _layout(output) in with_units_last
            found.update(_statistics(name, output, is_last))
        if note(given) and _extremes(given) not in values:
            values.add(_extremes(given))
            is_last = _layout(given) in with_units_last
            found.update(_statistics(f"input of {name}", given, is_last))

    note(batch.inputs)
    values.add(_extremes(batch.inputs))
    output = watch(model, batch.inputs, see)
    see("output", model, batch.inputs, output)
    return found


def _content(x: Tensor) -> tuple[int, int, int]:
    """Equal for views of the same numbers, unless these were changed in between."""
    return x.data_ptr(), x.numel(), x._version


def _extremes(x: Tensor) -> tuple[float, ...]:
    """Equal for copies in another order of dimensions."""
    n_zeros = float((x == 0).sum())
    return float(x.numel()), float(x.min()), float(x.max()), n_zeros


def _layout(x: Tensor) -> tuple[Any, ...]:
    """Equal for the same tensor, also after it was changed in place."""
    return x.data_ptr(), x.shape, x.stride()


def _keeps_units(layer: nn.Module, given: Tensor, output: Tensor) -> bool:
    """Whether a layer, as an activation function, leaves the units where they are."""
    has_own = any(True for _ in layer.parameters())
    is_plain = isinstance(layer, nn.LayerNorm) or not has_own
    return is_plain and given.shape == output.shape


def _statistics(name: str, x: Tensor, units_last: bool) -> dict[str, float]:
    """Of activations (B, C, ...), (B, ..., N) if the units are last, or (B,)."""
    if units_last and x.ndim > 2:
        x = x.movedim(-1, 1)
    units = x.double().reshape(len(x), -1 if x.ndim == 1 else x.shape[1], -1)
    is_zero = units == 0
    found: dict[str, Any] = {
        "mean": units.mean(),
        "sd": units.std(correction=0),
        "zeros": is_zero.double().mean(),
        "n_units": units.shape[1],
        "n_dead": is_zero.all(2).all(0).sum(),
    }
    return {f"{name}/{statistic}": float(value) for statistic, value in found.items()}
