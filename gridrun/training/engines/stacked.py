"""Gradients of runs that differ only in what follows the gradient, together."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gridrun.config import Hyperparams, keys_of
from gridrun.errors import ConfigError
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch
from gridrun.training.engines.feed import Buffers, Feed, Rehearsal
from gridrun.training.engines.solo import Engine, refuse_infinite
from gridrun.training.terms import Terms

if TYPE_CHECKING:
    from gridrun.training.trainer import Trainer

# keys that act after the gradient only; runs that differ in nothing else are stacked
OF_THE_UPDATE = {
    "lr",
    "l2",
    "optimizer",
    "optimizer_args",
    "scheduler",
    "scheduler_args",
    "grad_clip",
    "n_epochs",
    "monitor",
    "early_stop_patience",
    "early_stop_min_delta",
    "init_weights_path",
}


class StackedEngine(Engine):
    """Runs that differ only in what follows the gradient compute it together.

    Their parameters lie in tensors with one more axis, over which torch maps the
    objective (`torch.vmap`): one launch for all.
    """

    needs_gpu = True

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._rehearsals: dict[str, Rehearsal] = {}
        self._stacks: dict[str, Stack] = {}
        self._feeds: dict[int, Feed] = {}
        self._draws: dict[int, list[Tensor]] = {}
        self._terms: dict[int, Terms] = {}
        self._runs: Sequence[LiveRun] = ()
        self._keys = {run.number: stack_key(trainer, run) for run in trainer.runs}

    @classmethod
    def try_out(cls, trainer: Trainer, run: LiveRun, batch: Batch) -> None:
        """The objective keeps no state, and torch can map it; see `Engine`."""
        rehearsal = Rehearsal(trainer, run)
        feed = Feed.of(trainer, run, batch)
        draws = rehearsal.tape(feed).draws(run.model, run.device)
        try:
            stack = Stack(rehearsal, [run])
            for _ in range(2):  # the first may leave traces
                stack.backward([feed], [draws])
        except Exception as error:
            reason = str(error).partition("\n")[0]
            text = f"stacked: torch.vmap cannot map {run.hyps.model_type}: {reason}"
            raise ConfigError(f"engine: {text}; use solo") from error

    def prepare(self, runs: Sequence[LiveRun], batch: Batch) -> None:
        """Make each run's feed and draws, in its turn."""
        self._runs = runs
        self._feeds, self._draws, self._terms = {}, {}, {}
        self._forget_ended()
        for run in runs:
            with self.trainer.guarded(run), run.timed():
                feed = Feed.of(self.trainer, run, batch)
                tape = self._rehearsal(run).tape(feed)
                self._draws[run.number] = tape.draws(run.model, run.device)
                self._feeds[run.number] = feed

    def backward(self, run: LiveRun, batch: Batch) -> Terms:
        """As of `Engine`; the first run's call computes for all like it."""
        if run.number not in self._terms:
            self._compute(run)
        terms = self._terms.pop(run.number)
        refuse_infinite(terms)
        return terms

    def _forget_ended(self) -> None:
        """Let go of what no living run needs."""
        live = {run.number for run in self.trainer.live()}
        for key, stack in list(self._stacks.items()):
            if not live.issuperset(stack.numbers):
                self._stacks.pop(key).release()
        needed = {self._keys[number] for number in live}
        for key in self._rehearsals.keys() - needed:
            del self._rehearsals[key]

    def _rehearsal(self, run: LiveRun) -> Rehearsal:
        key = self._keys[run.number]
        if key not in self._rehearsals:
            self._rehearsals[key] = Rehearsal(self.trainer, run)
        return self._rehearsals[key]

    def _compute(self, first: LiveRun) -> None:
        key = self._keys[first.number]
        like = [
            run
            for run in self._runs
            if run.number in self._feeds and self._keys[run.number] == key
        ]
        numbers = [run.number for run in like]
        started = time.perf_counter()
        stack = self._stacks.get(key)
        if stack is None or stack.numbers != numbers:
            if stack is not None:
                stack.release()
            stack = self._stacks[key] = Stack(self._rehearsal(first), like)
        feeds = [self._feeds[number] for number in numbers]
        draws = [self._draws[number] for number in numbers]
        self._terms |= stack.backward(feeds, draws)
        spent_s = time.perf_counter() - started
        first.time_s -= spent_s  # it is counted as the first run's, and is all runs'
        for run in like:
            run.time_s += spent_s / len(like)


@functools.cache
def _keys_that_stack(kind: type[Hyperparams]) -> tuple[str, ...]:
    """Keys in which stacked runs must be equal."""
    return tuple(
        name
        for name, facts in keys_of(kind).items()
        if facts.identity != "no"
        and facts.group != "pruning"
        and name not in OF_THE_UPDATE
    )


def stack_key(trainer: Trainer, run: LiveRun) -> str:
    """Equal for runs whose objectives differ in parameters and draws only."""
    names = _keys_that_stack(type(run.hyps))
    values = {name: getattr(run.hyps, name) for name in names}
    is_own = run.hyps.model_type in trainer.library.model_names
    if is_own and "noise" in values:  # our layers draw it and need it for nothing else
        values["noise"] = values["noise"] > 0
    return json.dumps(values, sort_keys=True)


class Stack:
    """The parameters and buffers of several runs, as views of common tensors.

    Args:
        rehearsal: Its objective is mapped over them.
        runs: Whose models they are; they keep their parameters, which now lie there.
    """

    def __init__(self, rehearsal: Rehearsal, runs: Sequence[LiveRun]) -> None:
        self.rehearsal = rehearsal
        self.runs = runs
        self.numbers = [run.number for run in runs]
        models = [run.model for run in runs]
        self.parameters = _stacked([dict(one.named_parameters()) for one in models])
        self.buffers = _stacked([dict(one.named_buffers()) for one in models])
        self._places = [Buffers(one) for one in models]
        for name, parameter in models[0].named_parameters():
            self.parameters[name].requires_grad_(parameter.requires_grad)
        self._slots = slots_of(rehearsal.run.model)

    def release(self) -> None:
        """Give the models parameters and buffers of their own again."""
        for run in self.runs:
            for tensor in (*run.model.parameters(), *run.model.buffers()):
                tensor.data = tensor.data.clone()
                tensor.grad = None

    def backward(
        self, feeds: Sequence[Feed], draws: Sequence[Sequence[Tensor]]
    ) -> dict[int, Terms]:
        """Set the gradients of all runs; returns each one's terms, by its number."""
        first = feeds[0]
        columns = list(zip(*(feed.tensors for feed in feeds), strict=True))
        is_shared = [all(one is column[0] for one in column) for column in columns]
        tensors = [
            column[0] if shared else torch.stack(column)
            for column, shared in zip(columns, is_shared, strict=True)
        ]
        axes = [None if shared else 0 for shared in is_shared]
        given = [torch.stack(column) for column in zip(*draws, strict=True)]
        tape = self.rehearsal.tape(first)

        def objective(
            state: Mapping[str, Tensor],
            tensors: Sequence[Tensor],
            given: Sequence[Tensor],
        ) -> Terms:
            at = {f"model.{slot}": state[name] for slot, name in self._slots.items()}
            feed = first.with_tensors(tensors)
            with tape.attached(self.rehearsal.run.model, given):
                found = functional_call(
                    self.rehearsal.objective, at, (feed,), tie_weights=False
                )
            return cast(Terms, found)

        for buffers in self._places:
            buffers.keep()
        for parameter in self.parameters.values():
            parameter.grad = None
        mapped = torch.vmap(objective, in_dims=(0, axes, 0))
        terms = mapped(self.parameters | self.buffers, tensors, given)
        terms["loss"].sum().backward()  # type: ignore[no-untyped-call]
        for place, run in enumerate(self.runs):
            for name, parameter in run.model.named_parameters():
                whole = self.parameters[name].grad
                parameter.grad = None if whole is None else whole[place]
        return {
            number: {name: term[place].detach() for name, term in terms.items()}
            for place, number in enumerate(self.numbers)
        }


def slots_of(model: nn.Module) -> dict[str, str]:
    """Each place of a model that holds a parameter or buffer, and the tensor's name.

    A module that stands at two places of the model is one.
    """
    found: dict[str, str] = {}
    names: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                slot = f"{prefix}.{name}" if prefix else name
                found[slot] = names.setdefault(id(tensor), slot)
    return found


def _stacked(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of equal names on a new first axis; the parts become views of them."""
    found = {}
    for name in parts[0]:
        whole = torch.stack([part[name].detach() for part in parts])
        for place, part in enumerate(parts):
            part[name].data = whole[place]
        found[name] = whole
    return found
