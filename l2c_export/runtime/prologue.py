"""What leaves the loop: evaluated before it, for many calls at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..artefact.compiled import Compiled
from ..backends.contract import Array
from ..ir.inputs import Inputs
from .loaded import Bound, LoadedArtefact, bind_graph, concrete, filled

# Hoisted rows of more calls than fit in here are computed in several chunks.
HOISTED_BYTES = 256 * 2**20


class Prologue:
    """The values that leave the loop: constants once, the prologue's rows once per request, chunk by chunk.

    A chunk is a window of calls whose rows fit into memory; the calls at its end are also the first of the next one, as
    far as calls read the rows of later ones.
    """

    def __init__(self, loaded: LoadedArtefact, compiled: Compiled, rows: int) -> None:
        self.compiled, self.loaded, self.rows = compiled, loaded, rows
        self.calls = len(self.compiled.calls)
        ahead = max((origin.offset for origin in compiled.size.origins.values()), default=0)
        names = self.compiled.graphs[self.compiled.prologue].outputs if self.compiled.prologue else ()
        per_call = rows * sum(compiled.value(n).row_bytes for n in (*names, *compiled.requested))
        fits = HOISTED_BYTES // max(per_call, 1)
        self.window = self.calls if fits >= self.calls else max(fits, ahead + 1)
        self.step = self.window if self.window >= self.calls else self.window - ahead
        chunks = range(0, self.calls, self.step)
        loaded.backend.memory.reserve(self.window * per_call, f"what is computed before the loop for {rows} rows")
        self.inputs = {
            declared.name: loaded.backend.memory.empty((self.window * rows, *declared.shape), declared.dtype)
            for declared in compiled.inputs
        }
        self.take({d.name: np.zeros((rows, *d.shape), d.dtype) for d in compiled.inputs})  # which all engines may read
        self._constants = self._evaluate_constants(chunks[-1] + self.window) if self.compiled.constants else {}
        self._rows = {n: self._many(n, self.window * rows) for n in names}
        self.prologue = [self._bind_prologue(first) for first in chunks] if self.compiled.prologue else [[] for _ in chunks]

    def take(self, inputs: Inputs) -> None:
        """What a new request says, (R, ..) by name: nothing that was computed before holds any more."""
        for name, values in inputs.items():
            self.loaded.backend.memory.put(self.inputs[name], np.tile(values, (self.window, *(1 for _ in values.shape[1:]))))

    def before(self, index: int) -> list[Bound]:
        """What has to run before call `index`: calls run in order."""
        return [] if index % self.step else self.prologue[index // self.step]

    def row(self, name: str, index: int, of: int) -> Array:
        """The rows of a hoisted value for call `index`, as call `of` reads them.

        Past the last call there are only sums that nobody reads; they are made of the last call's rows.
        """
        index = min(index, self.calls - 1)
        is_constant = name in self._constants
        first = index if is_constant else index - of // self.step * self.step
        return (self._constants if is_constant else self._rows)[name][first * self.rows : (first + 1) * self.rows]

    def _many(self, name: str, rows: int) -> Array:
        value = self.compiled.value(name)
        return self.loaded.backend.memory.empty(concrete(value, rows, rows), value.dtype)

    def _evaluate_constants(self, padded: int) -> dict[str, Array]:
        """What depends on the timesteps alone: `padded` times `rows` rows, those past the last call as of the last."""
        assert self.compiled.constants
        backend = self.loaded.backend
        values = {n: self._many(n, self.calls) for n in self.compiled.graphs[self.compiled.constants].outputs}
        times = filled(backend, np.array([call.timestep for call in self.compiled.calls], np.float32))
        for bound in self._bind(self.compiled.constants, {**values, "t": times}, self.calls):
            bound.run()
        order = np.repeat(np.minimum(np.arange(padded), self.calls - 1), self.rows)
        return {name: filled(backend, backend.memory.get(value)[order]) for name, value in values.items()}

    def _bind_prologue(self, first: int) -> list[Bound]:
        assert self.compiled.prologue
        rows = slice(first * self.rows, (first + self.window) * self.rows)
        constants = {name: values[rows] for name, values in self._constants.items()}
        inputs = {name: self.inputs[of] for name, of in self.compiled.requested.items()}
        return self._bind(self.compiled.prologue, {**constants, **self._rows, **inputs}, self.window * self.rows)

    def _bind(self, name: str, outer: Mapping[str, Array], rows: int) -> list[Bound]:
        nodes = self.compiled.graphs[name].nodes
        inner = {n: self._many(n, rows) for node in nodes for n in node.outputs if n not in outer}
        arrays = {**outer, **inner}
        return bind_graph(self.loaded, self.compiled, name, lambda n: arrays[n] if n in arrays else self.loaded.weights(n))
