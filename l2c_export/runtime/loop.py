"""The denoising loop over compiled engines.  It needs numpy and one backend; torch ended before here.

Every call is bound once for a batch size, to arrays that are cut out of an arena; `denoise` and `whole` are the loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ..artefact.call_record import CallRecord
from ..artefact.compiled import Compiled
from ..artefact.records import Origin
from ..backends.contract import Array, Run
from ..errors import Cancelled
from ..ir.inputs import Inputs
from ..support.ending import stop
from . import prologue
from .arena import Arena, Slot, cut, size_of
from .loaded import Bound, LoadedArtefact, bind_graph, concrete, filled, typed
from .prologue import Constants, Prologue, slot_sizes

# A generation on a device is captured in at most so many pieces, between which it can be stopped.
PIECES = 8


@dataclass(frozen=True)
class Step:
    """What a call leaves behind, on the host."""

    call: CallRecord
    index: int
    x: np.ndarray  # (B, C, ..) float32: the latents for the next call, a copy


Execute = Callable[[int, Bound], None]  # what is done with every engine of a call, instead of only running it


def execute(index: int, bound: Bound) -> None:
    """Run an engine of call `index`."""
    bound.run()


class Cancel(Protocol):
    """What stops a generation once it is set, from another thread: a `threading.Event`."""

    def is_set(self) -> bool: ...


class Piece(NamedTuple):
    """Some calls as one run."""

    first: int  # the index of its first call
    run: Run


class LatentTurn(NamedTuple):
    """Which of the three latent buffers a call reads, and which it fills."""

    now: int
    base: int  # the latents at the start of the solver step
    after: int


def turns(calls: Sequence[CallRecord]) -> list[LatentTurn]:
    """Rotate the buffers so that no call overwrites latents that are still needed."""
    now, base, result = 0, 0, []
    for call in calls:
        after = next(i for i in range(3) if i not in (now, base))
        result.append(LatentTurn(now, base, after))
        now, base = after, after if call.ends_step else base
    return result


def layout(compiled: Compiled, images: int, rows: int, link: str) -> dict[str, Slot]:
    """The arrays that a loop works on: latents, earlier predictions, scratch, caches, and what is computed before it."""
    latent = Slot((images, *compiled.latent), "float32")
    graphs = {**dict.fromkeys(compiled.step_graphs, rows), **prologue.rows_of(compiled, rows)}
    scratch = max(size_of(slot_sizes(compiled.graphs[graph], of_graph, link)) for graph, of_graph in graphs.items())
    predictions = compiled.history + 1 if compiled.history else 0
    return {
        **{f"latents.{n}": latent for n in range(3)},
        **{f"prediction.{n}": latent for n in range(predictions)},
        "scratch": Slot((scratch,), "uint8"),
        "caches": Slot((size_of(size * rows for size in compiled.cache_bytes),), "uint8"),
        **prologue.layout(compiled, rows),
    }


class Loop:
    """Every call of a program bound for one batch: `images` latents and `rows` rows of the model's batch."""

    def __init__(
        self, loaded: LoadedArtefact, compiled: Compiled, images: int, guided: bool, arena: Arena, constants: Constants
    ) -> None:
        self.loaded, self.compiled, self.images = loaded, compiled, images
        self.memory = loaded.backend.memory
        self.rows = compiled.rows(images, guided)
        arrays = arena.cut(layout(compiled, images, self.rows, loaded.link))
        self.states = [arrays[f"latents.{n}"] for n in range(3)]
        self.history = [array for name, array in arrays.items() if name.startswith("prediction.")]
        self.slots = {
            name: cut(arrays["scratch"], slot_sizes(compiled.graphs[name], self.rows, loaded.link))
            for name in compiled.step_graphs
        }
        self.caches = cut(arrays["caches"], [size * self.rows for size in compiled.cache_bytes])
        index = np.arange(images, dtype=np.int32)
        self.inputs = {
            "rows": self._new(np.tile(index, self.rows // images)),
            "conditional": self._new(index),
            "unconditional": self._new(index + (self.rows - images)),
            "guidance": self._new(np.zeros(concrete(compiled.value("guidance"), images, self.rows), np.float32)),
        }
        self.hoisted = Prologue(loaded, compiled, self.rows, arrays, constants)
        self._turns = turns(compiled.calls)
        self._bound: dict[int, list[Bound]] = {}
        self._pieces: list[Piece] = []

    def _new(self, values: np.ndarray) -> Array:
        return filled(self.loaded.backend, values)

    def denoise(
        self,
        x: np.ndarray,
        inputs: Inputs,
        guidance: np.ndarray,
        execute: Execute = execute,
        every: int = 1,
        cancel: Cancel | None = None,
    ) -> Iterator[Step]:
        """Run the calls in order, and yield every `every`th and the last: the others leave nothing on the host.

        The latents of a yielded step may be changed before the next is asked for.
        `execute` is given every engine in its turn, to run it: for those who measure it or look at what it reads and makes.
        Raises Cancelled before the next call once `cancel` is set.
        """
        self.start(x, inputs, guidance)
        last = len(self.compiled.calls) - 1
        for index in range(last + 1):
            self._check(cancel, index)
            for bound in self.engines(index):
                stop()
                execute(index, bound)
            if (index + 1) % every and index != last:
                continue
            step = self.after(index)
            yield step
            self.go_on_from(step)

    def whole(self, x: np.ndarray, inputs: Inputs, guidance: np.ndarray, cancel: Cancel | None = None) -> None:
        """All calls, as few pieces; `after` the last one are the latents.  Raises Cancelled between two pieces."""
        if not self._pieces:
            self.start(x, inputs, guidance)  # a backend may rehearse, on inputs that are allowed
            self._pieces = list(self._sequences())
        self.start(x, inputs, guidance)
        for piece in self._pieces:
            if piece.first:
                self.memory.finish()  # or a device would have all of them in its queue
            self._check(cancel, piece.first)
            stop()
            piece.run()

    def _sequences(self) -> Iterator[Piece]:
        """The calls in pieces that end where a solver step does: one for each step where launching costs nothing."""
        ends = [n for n, call in enumerate(self.compiled.calls, 1) if call.ends_step]
        most = len(ends) if self.memory.on_host else min(PIECES, len(ends))
        cuts = [0, *(int(part[-1]) for part in np.array_split(ends, most))]
        for first, end in itertools.pairwise(cuts):
            runs = [bound.run for index in range(first, end) for bound in self.engines(index)]
            yield Piece(first, self.loaded.backend.sequence(runs))

    def _check(self, cancel: Cancel | None, index: int) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled(f"cancelled before call {index + 1} of {len(self.compiled.calls)}")

    @property
    def latents(self) -> Array:
        """Where the last call leaves the latents."""
        return self.states[self._turns[-1].after]

    def timed(self, x: np.ndarray, inputs: Inputs, guidance: np.ndarray) -> list[float]:
        """The seconds of every call, on the clock of the device that runs them, which nothing holds up between two calls."""
        self.start(x, inputs, guidance)
        clock = self.memory.clock()
        clock.mark()
        for index in range(len(self.compiled.calls)):
            for bound in self.engines(index):
                bound.run()
            clock.mark()
        return clock.seconds()

    def start(self, x: np.ndarray, inputs: Inputs, guidance: np.ndarray) -> None:
        """Take a request: latents (B, C, ..), inputs (R, ..) by name, and an image's guidance per channel (B, C, 1, ..)."""
        scale = np.float32(self.compiled.noise_scale)
        self.memory.put(self.states[0], np.multiply(x, scale, dtype=np.float32))
        for predicted in self.history:  # what the first calls read of before them counts nothing
            self.memory.put(predicted, np.zeros(predicted.shape, np.float32))
        self.memory.put(self.inputs["guidance"], guidance[: self.inputs["guidance"].shape[0]])  # of format 1: one for all
        self.hoisted.take(inputs)

    def after(self, index: int) -> Step:
        """What call `index` leaves behind."""
        return Step(self.compiled.calls[index], index, self.memory.get(self.states[self._turns[index].after]).copy())

    def go_on_from(self, step: Step) -> None:
        """Take the latents of a step as they are now, in case that somebody has changed them."""
        self.memory.put(self.states[self._turns[step.index].after], step.x)

    def engines(self, index: int) -> list[Bound]:
        """What runs for call `index`, in order: what has to be computed before it, and its own engines."""
        return [*self.hoisted.before(index), *self.bound(index)]

    def bound(self, index: int) -> list[Bound]:
        """A call's own engines, bound to its buffers on first use."""
        if index not in self._bound:
            graph = self.compiled.calls[index].graph
            self._bound[index] = bind_graph(self.loaded, self.compiled, graph, lambda name: self.array(index, name))
        return self._bound[index]

    def array(self, index: int, name: str) -> Array:
        """The memory behind a name in call `index`."""
        call, turn = self.compiled.calls[index], self._turns[index]
        graph, origin = self.compiled.graphs[call.graph], self.compiled.origin(name)
        for place, slots in ((graph.slots, self.slots[call.graph]), (call.reads, self.caches), (call.writes, self.caches)):
            if name in place:
                return typed(slots[place[name]], self.compiled.value(name), self.images, self.rows)
        if origin is None or origin.kind == "state":
            state = {"x": turn.now, "base": turn.base, "x.next": turn.after}
            if name in state:
                return self.states[state[name]]
            return self.history[(index + (origin.offset if origin else 0)) % len(self.history)]
        return self._input_array(index, origin, name)

    def _input_array(self, index: int, origin: Origin, name: str) -> Array:
        """The memory behind what no call makes."""
        call = self.compiled.calls[index]
        if origin.kind == "weight":
            return self.loaded.weights(name)
        if origin.kind == "once":
            return self.hoisted.once[origin.of]
        if origin.kind == "prologue":
            return self.hoisted.row(origin.of, index + call.distance(origin.offset), of=index)
        if origin.kind == "coefficients":
            return self._new(np.array(call.coefficients, np.float32))
        if origin.kind == "window":
            return self.hoisted.rows_after(origin.of, index, concrete(self.compiled.value(name), self.images, self.rows)[0])
        if origin.kind == "bank":
            return self._new(self._of_bank(index, *origin.of.rsplit(".", 1)))
        if origin.kind == "forecast":
            return self._new(np.array([(call.forecast or {})[origin.of]], np.float32))
        if origin.kind == "time":
            later = self.compiled.calls[min(index + call.distance(origin.offset), len(self.compiled.calls) - 1)]
            return self._new(np.full(self.rows, later.timestep, np.float32))
        if origin.kind == "request":
            return self.hoisted.inputs[origin.of][: self.rows]
        return self.inputs[origin.of]

    def _of_bank(self, index: int, bank: str, part: str) -> np.ndarray:
        """A number of call `index` of a bank of sums: the slot that it takes, which it keeps, what it adds with what weight."""
        use = (self.compiled.calls[index].banks or {})[bank]
        shape = concrete(self.compiled.value(f"{bank}.{part}"), self.images, self.rows)
        if part == "slot":
            return np.full(shape, use.slot, np.int32)
        numbers = np.zeros(shape, np.float32)
        if part == "keep":
            numbers[list(use.kept)] = 1
            return numbers
        start = self.hoisted.first_after(index, shape[1])
        for slot, calls, coefficient in use.adds:
            numbers[slot, index + calls - start] = coefficient
        return numbers
