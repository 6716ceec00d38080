"""Gradients from CUDA graphs, run by run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gridrun.errors import ConfigError
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
        self.recorder = Recorder(trainer.runs[0].device)
        self._graphs: dict[tuple[int, Any], CapturedStep] = {}

    @classmethod
    def try_out(cls, trainer: Trainer, run: LiveRun, batch: Batch) -> None:
        """The objective keeps no state, and never waits for the GPU; see `Engine`."""
        feed = Feed.of(trainer, run, batch)
        rehearsal = Rehearsal(trainer, run)
        try:
            with NoWaiting():  # type: ignore[no-untyped-call]
                rehearsal.tape(feed)
        except WaitsForGpu as error:
            text = f"graph: {run.hyps.model_type} cannot be captured: {error}"
            raise ConfigError(f"engine: {text}; use solo or stacked") from error

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
        with engine.recorder.aside():
            self.tape = rehearsal.tape(self.feed)
            for _ in range(engine.n_rehearsals - 1):
                rehearsal.compute(self.feed)
        with kept_globals():
            self.draws = self.tape.draws(rehearsal.run.model, run.device)
        self._buffers = Buffers(run.model)
        self._replay = engine.recorder.captured(self._step)

    def _step(self) -> None:
        parameters = list(self.run.model.parameters())
        for parameter in parameters:
            parameter.grad = None
        with self.tape.attached(self.run.model, self.draws):
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


class Recorder:
    """Captures steps on a GPU, on one stream and in one pool of memory.

    Steps that are replayed one after the other may share the memory of what they keep
    no longer.

    Args:
        device: The GPU; on another device nothing can be captured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = None
        self._pool: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, work goes to the stream, as torch asks for before a capture."""
        if self._stream is None:
            yield
            return
        around = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(around)
        with torch.cuda.stream(self._stream):
            yield
        around.wait_stream(self._stream)

    def captured(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that repeats on the GPU what a step launches there.

        Capturing computes nothing, and the step's Python runs this once only.
        """
        graph = torch.cuda.CUDAGraph()
        around = torch.cuda.current_stream(self.device)
        capture = torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=self._stream,
            capture_error_mode="thread_local",  # other threads may go on
        )
        # the stream around comes back also from a capture that fails
        with torch.cuda.device(self.device), torch.cuda.stream(around), capture:
            step()
        replay: Callable[[], None] = graph.replay
        return replay


class WaitsForGpu(Exception):
    """Python needs a number from the GPU, or sends one, in the midst of a step."""


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what cannot be captured; it is seen on any device."""

    waits: ClassVar[Mapping[str, str]] = {
        "_local_scalar_dense": "it asks for a number in Python (.item(), if, float)",
        "lift_fresh": "it makes a tensor from numbers in each step: use a buffer",
        "nonzero": "sizes depend on values (nonzero, indexing by a mask)",
        "masked_select": "sizes depend on values (masked_select)",
        "_unique2": "sizes depend on values (unique)",
        "unique_dim": "sizes depend on values (unique)",
        "unique_consecutive": "sizes depend on values (unique_consecutive)",
        "bincount": "sizes depend on values (bincount)",
        "equal": "it compares tensors in Python (torch.equal)",
    }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call an operator that does not wait.

        Raises:
            WaitsForGpu: If it does.
        """
        name = func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8)
            for one in args[1]
        ):
            name = "nonzero"
        reason = self.waits.get(name)
        if reason is not None:
            raise WaitsForGpu(reason)
        return func(*args, **(kwargs or {}))
