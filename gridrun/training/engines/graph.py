"""Gradients from CUDA graphs, run by run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from gridrun.nn import Tape
from gridrun.training.cohort import LiveRun
from gridrun.training.data import Batch
from gridrun.training.engines.feed import Buffers, Feed, Objective, Rehearsal
from gridrun.training.engines.solo import Engine, refuse_infinite
from gridrun.training.seeding import kept_globals
from gridrun.training.terms import Terms

if TYPE_CHECKING:
    from gridrun.training.trainer import Trainer


class GraphEngine(Engine):
    """Runs replay their step from a CUDA graph, one after the other.

    Networks of a few small layers are bound by the time that launching takes; a graph
    is launched as a whole. Random numbers are drawn outside it.
    """

    needs_gpu = True
    n_rehearsals: ClassVar[int] = 3  # torch's own number for what libraries set up

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self._graphs: dict[tuple[int, Any], CapturedStep] = {}

    @classmethod
    def try_out(cls, trainer: Trainer, run: LiveRun, batch: Batch) -> None:
        """The objective keeps no state; see `Engine`."""
        Rehearsal(trainer, run)

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
            self._graphs[key] = CapturedStep(self, run, feed)
        terms = self._graphs[key].replayed(feed)
        refuse_infinite(terms)
        return terms


class CapturedStep:
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
def _aside(device: torch.device) -> Iterator[None]:
    """A stream of its own, as torch asks for before a capture."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
