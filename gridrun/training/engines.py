"""How a cohort computes the gradients of a step: run by run, captured, or stacked."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gridrun.config import Hyperparams, keys_of
from gridrun.errors import ConfigError
from gridrun.nn import Spectrum, Tape
from gridrun.training.cohort import Diverged, LiveRun
from gridrun.training.data import Batch
from gridrun.training.losses import is_finite
from gridrun.training.seeding import kept_globals
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
    "noise",  # the draws have it; without any, the tapes differ
}


def chosen_engine(hyps: Hyperparams, device: torch.device) -> str:
    """The engine that trains a run on a device.

    Raises:
        ConfigError: If it is not for this device.
    """
    if hyps.engine == "auto":
        return "solo"
    if hyps.engine != "solo" and device.type != "cuda":
        text = f"{hyps.engine} is for GPUs (CUDA), and the device is {device}"
        raise ConfigError(f"engine: {text}; use auto or solo")
    return hyps.engine


def make_engine(name: str, trainer: Trainer) -> Engine:
    """An engine by name."""
    kinds = {"solo": Engine, "graph": GraphEngine, "stacked": StackedEngine}
    return kinds[name](trainer)


class Engine:
    """Runs compute loss and gradient one after the other.

    Args:
        trainer: Of their cohort.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def prepare(self, runs: Sequence[LiveRun], batch: Batch) -> None:
        """Take in who trains on a batch, before the first of them does."""

    def backward(self, run: LiveRun, batch: Batch) -> Terms:
        """Set the gradients of a run's parameters; returns the loss and its terms.

        Raises:
            Diverged: If the loss is not finite.
        """
        batch, x = fed(self.trainer, run, batch)
        with run.autocast():
            terms = self.trainer.objective(run, batch, x)
        refuse_infinite(terms)
        run.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        return terms


def fed(trainer: Trainer, run: LiveRun, batch: Batch) -> tuple[Batch, Any]:
    """A batch as a run trains on it, and what its model, now training, takes of it."""
    if not run.model.training:
        run.model.train()
    batch = trainer.augmented(run, batch.to(run.dtype))
    with run.autocast():
        return batch, trainer.inputs(run, batch)


def refuse_infinite(terms: Terms) -> None:
    """Refuse a loss that is no number.

    Raises:
        Diverged: If it is NaN or infinite.
    """
    if not is_finite(terms["loss"]):
        raise Diverged(f"training loss became {terms['loss'].item()}")


# --- what engines hand to torch -----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Feed:
    """What an objective is computed from, beside parameters and buffers.

    Args:
        tensors: What the model takes (of maps, or of their spectrum), the targets and,
            if the objective looks at them, the batch's own inputs.
        size: (H, W) of the maps, if the model takes their spectrum.
        dtype: Of the inputs.
    """

    tensors: tuple[Tensor, ...]
    size: tuple[int, int] | None
    dtype: torch.dtype

    @classmethod
    def of(cls, trainer: Trainer, run: LiveRun, batch: Batch) -> Feed:
        """A run's own, augmented and distorted."""
        batch, x = fed(trainer, run, batch)
        own = (batch.inputs,) if trainer.reads_inputs else ()
        size = x.size if isinstance(x, Spectrum) else None
        values = x.values if isinstance(x, Spectrum) else x
        return cls((values, batch.targets, *own), size, run.dtype)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the tensors."""
        return tuple(tuple(one.shape) for one in self.tensors)

    def with_tensors(self, tensors: Iterable[Tensor]) -> Feed:
        """The same of other tensors of these shapes."""
        return dataclasses.replace(self, tensors=tuple(tensors))


class Buffers:
    """Where a model's buffers are, which it may assign anew instead of changing them.

    Args:
        model: Its buffers' present places are what is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (module, name, buffer)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def keep(self) -> None:
        """Bring what has been assigned back to the places."""
        for module, name, buffer in self._places:
            assigned = module._buffers[name]
            if assigned is not None and assigned is not buffer:
                buffer.copy_(assigned.detach())
                module._buffers[name] = buffer


class Objective(nn.Module):
    """A run's training loss and its terms as a function of a feed.

    Args:
        trainer: Computes it.
        run: Whose model, a part of this module, is used.
    """

    def __init__(self, trainer: Trainer, run: LiveRun) -> None:
        super().__init__()
        self.model = run.model
        self._compute = functools.partial(trainer.objective, run)
        self._autocast = run.autocast

    def forward(self, feed: Feed) -> Terms:
        """The terms, `loss` among them."""
        values, targets, *own = feed.tensors
        batch = Batch(own[0] if own else _no_inputs, targets, feed.dtype)
        x = values if feed.size is None else Spectrum(values, feed.size)
        buffers = Buffers(self.model)
        with self._autocast():
            terms = self._compute(batch, x)
        buffers.keep()
        return terms


def _no_inputs() -> Tensor:
    raise AssertionError("only trainers whose `reads_inputs` is true have them")


class Rehearsal:
    """A copy of a run's model on which steps are tried; the run does not notice.

    Args:
        trainer: Of the run.
        run: To copy.
    """

    def __init__(self, trainer: Trainer, run: LiveRun) -> None:
        if hasattr(run.extras.objective, "state_dict"):
            text = f"{run.hyps.engine}: {run.hyps.train_loop} keeps a state of its own"
            raise ConfigError(f"engine: {text}; use solo")
        self.run = copy.copy(run)
        with kept_globals():
            self.run.model = trainer.copied_model(run).train()
        self.objective = Objective(trainer, self.run)
        self._tapes: dict[Any, Tape] = {}

    def tape(self, feed: Feed) -> Tape:
        """What the random layers draw for feeds of this shape."""
        if feed.shapes not in self._tapes:
            tape = Tape(self.run.model)
            with kept_globals(), tape.attached():
                self.objective(feed)["loss"].backward()
            self._tapes[feed.shapes] = tape
        return self._tapes[feed.shapes]


# --- captured -----------------------------------------------------------------------


class GraphEngine(Engine):
    """Runs replay their step from a CUDA graph, one after the other.

    Networks of a few small layers are bound by the time that launching takes; a graph
    is launched as a whole. Random numbers are drawn outside it.
    """

    n_rehearsals: ClassVar[int] = 3  # torch's own number for what libraries set up

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._graphs: dict[tuple[int, Any], _CapturedStep] = {}

    def prepare(self, runs: Sequence[LiveRun], batch: Batch) -> None:
        """Forget the graphs of runs that have ended."""
        numbers = {run.number for run in self.trainer.live()}
        ended = [key for key in self._graphs if key[0] not in numbers]
        for key in ended:
            del self._graphs[key]

    def backward(self, run: LiveRun, batch: Batch) -> Terms:
        """As of `Engine`, by the graph for batches of this shape."""
        feed = Feed.of(self.trainer, run, batch)
        key = (run.number, feed.shapes)
        if key not in self._graphs:
            self._graphs[key] = _CapturedStep(self, run, feed)
        terms = self._graphs[key].replayed(feed)
        refuse_infinite(terms)
        return terms


class _CapturedStep:
    """Loss and gradient of a run for feeds of one shape, at fixed addresses.

    Args:
        engine: Whose trainer computes them.
        run: The run.
        feed: The first.
    """

    terms: Terms
    gradients: list[Tensor | None]

    def __init__(self, engine: GraphEngine, run: LiveRun, feed: Feed) -> None:
        self.run = run
        self.feed = feed.with_tensors(one.clone() for one in feed.tensors)
        self._objective = Objective(engine.trainer, run)
        rehearsal = Rehearsal(engine.trainer, run)
        with _aside(run.device):
            self.tape = rehearsal.tape(self.feed)
            for _ in range(engine.n_rehearsals - 1):
                with kept_globals():
                    rehearsal.objective(self.feed)["loss"].backward()
        with kept_globals():
            self.draws = self.tape.draws(rehearsal.run.model, run.device)
        self._buffers = Buffers(run.model)
        self._own_tape = Tape(run.model)
        self._replay = captured(self._step, run.device)

    def _step(self) -> None:
        parameters = list(self.run.model.parameters())
        for parameter in parameters:
            parameter.grad = None
        with self._own_tape.attached(self.draws):
            terms = self._objective(self.feed)
        terms["loss"].backward()
        self.terms = {name: term.detach() for name, term in terms.items()}
        self.gradients = [parameter.grad for parameter in parameters]

    def replayed(self, feed: Feed) -> Terms:
        """Set the gradients for a feed; returns the terms."""
        self._buffers.keep()
        for own, given in zip(self.feed.tensors, feed.tensors, strict=True):
            own.copy_(given)
        drawn = self.tape.draws(self.run.model, self.run.device)
        for own, given in zip(self.draws, drawn, strict=True):
            own.copy_(given)
        self._replay()
        parameters = self.run.model.parameters()
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return {name: term.clone() for name, term in self.terms.items()}


def captured(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that repeats on a GPU what a step launches there.

    Capturing computes nothing, and the step's Python runs this once only.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    mode = "thread_local"  # other threads may go on
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=stream, capture_error_mode=mode),
    ):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


@contextlib.contextmanager
def _aside(device: torch.device) -> Any:
    """A stream of its own, as torch asks for before a capture."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


# --- stacked ------------------------------------------------------------------------


class StackedEngine(Engine):
    """Runs that differ only in what follows the gradient compute it together.

    Their parameters lie in tensors with one more axis, over which torch maps the
    objective (`torch.vmap`): one launch for all.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._rehearsals: dict[str, Rehearsal] = {}
        self._stacks: dict[str, _Stack] = {}
        self._feeds: dict[int, Feed] = {}
        self._draws: dict[int, list[Tensor]] = {}
        self._terms: dict[int, Terms] = {}
        self._runs: Sequence[LiveRun] = ()
        self._keys = {run.number: stack_key(run.hyps) for run in trainer.runs}

    def prepare(self, runs: Sequence[LiveRun], batch: Batch) -> None:
        """Make each run's feed and draws, in its turn."""
        self._runs = runs
        self._feeds, self._draws, self._terms = {}, {}, {}
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
        stack = self._stacks.get(key)
        if stack is None or stack.numbers != numbers:
            stack = self._stacks[key] = _Stack(self._rehearsal(first), like)
        feeds = [self._feeds[number] for number in numbers]
        draws = [self._draws[number] for number in numbers]
        self._terms |= stack.backward(feeds, draws)


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


def stack_key(hyps: Hyperparams) -> str:
    """Equal for runs whose objectives differ in parameters and draws only."""
    values = {name: getattr(hyps, name) for name in _keys_that_stack(type(hyps))}
    has_noise = getattr(hyps, "noise", 0.0) > 0
    return json.dumps([values, has_noise], sort_keys=True)


class _Stack:
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
            parameters: Mapping[str, Tensor],
            buffers: Mapping[str, Tensor],
            tensors: Sequence[Tensor],
            given: Sequence[Tensor],
        ) -> Terms:
            state = {
                f"model.{n}": t for n, t in (*parameters.items(), *buffers.items())
            }
            feed = first.with_tensors(tensors)
            with tape.attached(given):
                found = functional_call(self.rehearsal.objective, state, (feed,))
            return cast(Terms, found)

        for buffers in self._places:
            buffers.keep()
        for parameter in self.parameters.values():
            parameter.grad = None
        mapped = torch.vmap(objective, in_dims=(0, 0, axes, 0))
        terms = mapped(self.parameters, self.buffers, tensors, given)
        terms["loss"].sum().backward()  # type: ignore[no-untyped-call]
        for place, run in enumerate(self.runs):
            for name, parameter in run.model.named_parameters():
                whole = self.parameters[name].grad
                parameter.grad = None if whole is None else whole[place]
        return {
            number: {name: term[place].detach() for name, term in terms.items()}
            for place, number in enumerate(self.numbers)
        }


def try_engine(trainer: Trainer, run: LiveRun, batch: Batch) -> None:
    """Try on a batch what a run's engine asks of what it computes, as far as possible.

    Raises:
        ConfigError: If an objective keeps a state, or torch cannot map it.
    """
    if run.hyps.engine in ("auto", "solo"):
        return
    feed = Feed.of(trainer, run, batch)
    rehearsal = Rehearsal(trainer, run)
    if run.hyps.engine != "stacked":
        return
    draws = rehearsal.tape(feed).draws(run.model, run.device)
    try:
        _Stack(rehearsal, [run]).backward([feed], [draws])
    except Exception as error:
        reason = str(error).partition("\n")[0]
        text = f"stacked: torch.vmap cannot map {run.hyps.model_type}: {reason}"
        raise ConfigError(f"engine: {text}; use solo") from error


def _stacked(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of equal names on a new first axis; the parts become views of them."""
    found = {}
    for name in parts[0]:
        whole = torch.stack([part[name].detach() for part in parts])
        for place, part in enumerate(parts):
            part[name].data = whole[place]
        found[name] = whole
    return found
