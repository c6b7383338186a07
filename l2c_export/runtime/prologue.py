"""What leaves the loop: evaluated before it, for many calls at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..artefact.compiled import Compiled
from ..backends.contract import Array
from ..ir.inputs import Inputs
from .arena import Slot
from .loaded import Bound, LoadedArtefact, bind_graph, concrete, filled

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
    per_call = rows * sum(compiled.value(n).row_bytes for n in (*_outputs(compiled, compiled.prologue), *compiled.requested))
    fits = HOISTED_BYTES // max(per_call, 1)
    window = calls if fits >= calls else max(fits, ahead + 1)
    return Window(window, window if window >= calls else window - ahead)


def layout(compiled: Compiled, rows: int) -> dict[str, Slot]:
    """The arrays that a prologue works on: what the request says, and every value that its graph makes."""
    rows *= window_of(compiled, rows).calls
    graph = compiled.graphs[compiled.prologue] if compiled.prologue else None
    names = [name for node in graph.nodes for name in node.outputs] if graph else []
    return {
        **{f"input.{field.name}": Slot((rows, *field.shape), field.dtype) for field in compiled.inputs},
        **{f"hoisted.{n}": Slot(concrete(value, rows, rows), value.dtype) for n in names for value in (compiled.value(n),)},
    }


def _outputs(compiled: Compiled, graph: str | None) -> tuple[str, ...]:
    return compiled.graphs[graph].outputs if graph else ()


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
    """The values that leave the loop: the prologue's rows once per request, window by window, and the constants."""

    def __init__(
        self, loaded: LoadedArtefact, compiled: Compiled, rows: int, arrays: Mapping[str, Array], constants: Constants
    ) -> None:
        self._loaded, self._compiled, self._rows = loaded, compiled, rows
        self._last = len(compiled.calls) - 1
        self.window = window_of(compiled, rows)
        self._hoisted = {name.removeprefix("hoisted."): array for name, array in arrays.items() if name.startswith("hoisted.")}
        self._constants = constants
        self.inputs = {field.name: arrays[f"input.{field.name}"] for field in compiled.inputs}
        self.take(
            {field.name: np.zeros((rows, *field.shape), field.dtype) for field in compiled.inputs}
        )  # all engines may read
        self.engines = [self._bind(first) if compiled.prologue else [] for first in self.window.starts(len(compiled.calls))]

    def take(self, inputs: Inputs) -> None:
        """What a new request says, (R, ..) by name: nothing that was computed before holds any more."""
        for name, values in inputs.items():
            repeats = (self.window.calls, *(1 for _ in values.shape[1:]))
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
        compiled, loaded = self._compiled, self._loaded
        assert compiled.prologue
        constants = self._constants.before_loop(first, self.window.calls, self._rows)
        inputs = {
            **{name: filled(loaded.backend, values) for name, values in constants.items()},
            **{name: self.inputs[of] for name, of in compiled.requested.items()},
        }

        def array(name: str) -> Array:
            for place in (inputs, self._hoisted):
                if name in place:
                    return place[name]
            return loaded.weights(name)

        return bind_graph(loaded, compiled, compiled.prologue, array)
