"""Loops of several programs and batch sizes, side by side over one arena."""

from __future__ import annotations

from typing import NamedTuple

from ..artefact.compiled import Compiled
from ..support.words import counted
from . import loop
from .arena import Arena, size_of
from .loaded import LoadedArtefact
from .loop import Loop
from .prologue import Constants

KEPT = 16  # so many loops stay bound, the last used ones: each holds its bindings, or captured launches


class Batch(NamedTuple):
    """What a loop is bound for."""

    program: str
    images: int
    guided: bool


class Loops:
    """The loops of a loaded artefact.  Their arena is as large as the largest has asked for."""

    def __init__(self, loaded: LoadedArtefact) -> None:
        self.loaded = loaded
        self.kept = KEPT
        self._arena: Arena | None = None
        self._constants: dict[str, Constants] = {}
        self._bound: dict[Batch, Loop] = {}

    def loop(self, compiled: Compiled, images: int, guided: bool) -> Loop:
        """A program's loop for a batch of this size."""
        batch = Batch(compiled.name, images, guided)
        bound = self._bound.pop(batch, None) or self._bind(compiled, batch)
        self._bound[batch] = bound
        while len(self._bound) > self.kept:
            del self._bound[next(iter(self._bound))]
        return bound

    def _bind(self, compiled: Compiled, batch: Batch) -> Loop:
        rows = compiled.rows(batch.images, batch.guided)
        arena = self._roomy(compiled, batch.images, rows)
        constants = self._constants.get(compiled.name)
        if constants is None or constants.rows < rows:
            self._forget(compiled.name)
            constants = self._constants[compiled.name] = Constants(self.loaded, compiled, rows)
        return Loop(self.loaded, compiled, batch.images, batch.guided, arena, constants)

    def _roomy(self, compiled: Compiled, images: int, rows: int) -> Arena:
        """The arena, or a larger one where this loop does not fit in."""
        size = size_of(slot.nbytes for slot in loop.layout(compiled, images, rows).values())
        if self._arena is None or self._arena.size < size:
            self._bound.clear()  # a device may have no room for two arenas
            self._arena = None
            self._arena = Arena(self.loaded.backend.memory, size, f"the buffers of {counted(images, 'image')}")
        return self._arena

    def _forget(self, program: str) -> None:
        """The loops that read a program's constants, and these."""
        self._constants.pop(program, None)
        self._bound = {batch: bound for batch, bound in self._bound.items() if batch.program != program}
