"""What leaves the loop: evaluated before it, once for all calls or for many of them at once.

What such a graph makes for itself lies where the calls put theirs: all of it is over when they begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..artefact.compiled import Compiled
from ..artefact.records import GraphRecord
from ..backends.contract import Array
from ..ir.inputs import Inputs
from .arena import Slot, cut
from .loaded import Bound, LoadedArtefact, bind_graph, concrete, filled, typed

# Hoisted rows of more calls than fit in here are computed in several chunks.
HOISTED_BYTES = 256 * 2**20


class Window(NamedTuple):
    """The calls whose rows are computed together.

    Those at its end are also the first of the next one, as far as calls read the rows of later ones.
    """

    calls: int
    step: int  # from a window's first call to the next one's

    def starts(self, calls: int) -> range:
        return range(0, calls, self.step)


def window_of(compiled: Compiled, rows: int) -> Window:
    """As many calls as fit into memory."""
    calls = len(compiled.calls)
    ahead = compiled.reach
    graph = compiled.graphs[compiled.prologue] if compiled.prologue else None
    held = (*graph.outputs, *_requested(compiled)) if graph else ()
    per_row = sum(compiled.value(n).row_bytes for n in held) + sum(graph.slot_bytes if graph else ())
    fits = HOISTED_BYTES // max(rows * per_row, 1)
    window = calls if fits >= calls else max(fits, ahead + 1)
    return Window(window, window if window >= calls else window - ahead)


def layout(compiled: Compiled, rows: int) -> dict[str, Slot]:
    """The arrays that stay while the loop runs: what the request says, and what is made of it.

    What a prologue reads of the request has rows for all calls of a window.
    """
    repeated = rows * window_of(compiled, rows).calls
    read = {compiled.requested[name] for name in _requested(compiled)}

    def outputs(graph: str | None, rows: int) -> Iterator[tuple[str, Slot]]:
        for name in compiled.graphs[graph].outputs if graph else ():
            value = compiled.value(name)
            yield name, Slot(concrete(value, rows, rows), value.dtype)

    return {
        **{f"input.{i.name}": Slot((repeated if i.name in read else rows, *i.shape), i.dtype) for i in compiled.inputs},
        **{f"once.{name}": slot for name, slot in outputs(compiled.request, rows)},
        **{f"hoisted.{name}": slot for name, slot in outputs(compiled.prologue, repeated)},
    }


def rows_of(compiled: Compiled, rows: int) -> dict[str, int]:
    """The rows of what the graphs before the loop make of a request, by graph."""
    repeated = rows * window_of(compiled, rows).calls
    return {name: n for name, n in ((compiled.request, rows), (compiled.prologue, repeated)) if name is not None}


def slot_sizes(graph: GraphRecord, rows: int, link: str) -> list[int]:
    """Bytes of what a graph's segments make for each other; where it is one engine, that has memory of its own for it."""
    return [size * rows for size in graph.slot_bytes] if link == "shared" else []


def _requested(compiled: Compiled) -> list[str]:
    """What the prologue reads of the request, by its own names."""
    inputs = compiled.graphs[compiled.prologue].inputs if compiled.prologue else ()
    return [name for name in inputs if name in compiled.requested]


class Constants:
    """What depends on the timesteps alone: computed once, for all requests and batch sizes.

    Every row of a call is the same, so that a call of few rows reads the first ones of `rows`.
    """

    def __init__(self, loaded: LoadedArtefact, compiled: Compiled, rows: int) -> None:
        self.rows, self._last = rows, len(compiled.calls) - 1
        self.of_calls = self._evaluate(loaded, compiled) if compiled.constants else {}
        self._prologue = set(compiled.graphs[compiled.prologue].inputs) if compiled.prologue else set()
        in_loop = {name for graph in compiled.step_graphs for name in compiled.graphs[graph].inputs}
        read = {
            of for name in in_loop if (origin := compiled.origin(name)) and origin.kind == "prologue" for of in (origin.of,)
        }
        self._rows = {
            name: filled(loaded.backend, np.repeat(values, rows, axis=0))
            for name, values in self.of_calls.items()
            if name in read
        }

    def _evaluate(self, loaded: LoadedArtefact, compiled: Compiled) -> dict[str, np.ndarray]:
        """(calls, ..) by name, on the host."""
        assert compiled.constants
        memory, graph = loaded.backend.memory, compiled.graphs[compiled.constants]
        calls = len(compiled.calls)
        arrays = {"t": filled(loaded.backend, np.array([call.timestep for call in compiled.calls], np.float32))}
        for name in (name for node in graph.nodes for name in node.outputs):
            value = compiled.value(name)
            arrays[name] = memory.empty(concrete(value, calls, calls), value.dtype)
        for bound in bind_graph(
            loaded, compiled, compiled.constants, lambda n: arrays[n] if n in arrays else loaded.weights(n)
        ):
            bound.run()
        return {name: memory.get(arrays[name]).copy() for name in graph.outputs}

    def row(self, name: str, index: int, rows: int) -> Array:
        """The rows of a value for call `index`."""
        return self._rows[name][index * self.rows : index * self.rows + rows]

    def before_loop(self, first: int, window: int, rows: int) -> dict[str, np.ndarray]:
        """What a prologue reads for the calls of a window, those past the last call as of the last."""
        order = np.repeat(np.minimum(np.arange(first, first + window), self._last), rows)
        return {name: values[order] for name, values in self.of_calls.items() if name in self._prologue}


class Prologue:
    """The values that leave the loop: for every request those that are the same in all calls once, and the prologue's rows
    window by window; and the constants."""

    def __init__(
        self, loaded: LoadedArtefact, compiled: Compiled, rows: int, arrays: Mapping[str, Array], constants: Constants
    ) -> None:
        self._loaded, self._compiled, self._rows = loaded, compiled, rows
        self._last = len(compiled.calls) - 1
        self.window = window_of(compiled, rows)
        self._scratch = arrays["scratch"]
        self._hoisted = _under("hoisted.", arrays)
        self.once = _under("once.", arrays)
        self._constants = constants
        self.inputs = {field.name: arrays[f"input.{field.name}"] for field in compiled.inputs}
        self.take(
            {field.name: np.zeros((rows, *field.shape), field.dtype) for field in compiled.inputs}
        )  # all engines may read
        self.engines = [self._bind(first) if compiled.prologue else [] for first in self.window.starts(len(compiled.calls))]
        self.engines[0] = [*self._bind_once(), *self.engines[0]]

    def take(self, inputs: Inputs) -> None:
        """What a new request says, (R, ..) by name: nothing that was computed before holds any more."""
        for name, values in inputs.items():
            repeats = (self.inputs[name].shape[0] // self._rows, *(1 for _ in values.shape[1:]))
            self._loaded.backend.memory.put(self.inputs[name], np.tile(values, repeats))

    def before(self, index: int) -> list[Bound]:
        """What has to run before call `index`: calls run in order."""
        return [] if index % self.window.step else self.engines[index // self.window.step]

    def row(self, name: str, index: int, of: int) -> Array:
        """The rows of a hoisted value for call `index`, as call `of` reads them.

        Past the last call there are only sums that nobody reads; they are made of the last call's rows.
        """
        index = min(index, self._last)
        if name in self._constants.of_calls:
            return self._constants.row(name, index, self._rows)
        first = index - of // self.window.step * self.window.step
        return self._hoisted[name][first * self._rows : (first + 1) * self._rows]

    def first_after(self, index: int, count: int) -> int:
        """The first of the `count` calls whose rows call `index` reads at once: the next one, or where rows end one before."""
        calls = self._last + 1
        return min(index + 1, calls - count) if self.window.calls >= calls else index + 1

    def rows_after(self, name: str, index: int, count: int) -> Array:
        """The rows of a hoisted value for those calls, (count, R, ..)."""
        start = self.first_after(index, count)
        if name in self._constants.of_calls:
            calls = np.minimum(np.arange(start, start + count), self._last)
            values = np.repeat(self._constants.of_calls[name][calls], self._rows, axis=0)
            return filled(self._loaded.backend, values.reshape(count, self._rows, *values.shape[1:]))
        first = start - index // self.window.step * self.window.step
        rows = self._hoisted[name][first * self._rows : (first + count) * self._rows]
        return rows.reshape((count, self._rows, *rows.shape[1:]))

    def _bind(self, first: int) -> list[Bound]:
        """The prologue for the window that begins with call `first`."""
        assert self._compiled.prologue
        constants = self._constants.before_loop(first, self.window.calls, self._rows)
        known = {
            **{name: filled(self._loaded.backend, values) for name, values in constants.items()},
            **{name: self.inputs[self._compiled.requested[name]] for name in _requested(self._compiled)},
            **self._hoisted,
        }
        return self._bound(self._compiled.prologue, known, self._rows * self.window.calls)

    def _bind_once(self) -> list[Bound]:
        """What is the same in all calls."""
        if self._compiled.request is None:
            return []
        known = {name: self.inputs[of][: self._rows] for name, of in self._compiled.requested.items()}
        return self._bound(self._compiled.request, {**known, **self.once}, self._rows)

    def _bound(self, name: str, known: Mapping[str, Array], rows: int) -> list[Bound]:
        """A graph before the loop, bound to what is known by name, and for what it makes for itself to the calls' scratch."""
        graph = self._compiled.graphs[name]
        slots = cut(self._scratch, slot_sizes(graph, rows, self._loaded.link))

        def array(name: str) -> Array:
            if name in graph.slots:
                return typed(slots[graph.slots[name]], self._compiled.value(name), rows, rows)
            return known[name] if name in known else self._loaded.weights(name)

        return bind_graph(self._loaded, self._compiled, name, array)


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
