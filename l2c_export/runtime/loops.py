"""Loops of several programs and batch sizes, side by side over one arena."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..artefact.compiled import Compiled
from ..artefact.guidance import guided_request
from ..ir.inputs import Inputs, usual
from ..support.words import counted
from . import loop
from . import request as asked
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


class Generation(NamedTuple):
    """What a request asks of the loop, besides the noise."""

    loop: Loop
    inputs: Inputs  # (R, ..) by name, the unconditional half last
    guidance: np.ndarray  # (B, C, 1, ..) float32: an image's scale - 1, or 0 for an unguided channel


class Warm(NamedTuple):
    """Batches that are made ready for."""

    sizes: tuple[int, ...]  # in images
    guidance_scale: float | None
    steps: int | None
    axes: asked.Axes = None  # of the latents; None: the first program's


class Loops:
    """The loops of a loaded artefact.  Their arena is as large as the largest has asked for."""

    def __init__(self, loaded: LoadedArtefact) -> None:
        self.loaded = loaded
        self.kept = KEPT
        self._arena: Arena | None = None
        self._constants: dict[str, Constants] = {}
        self._bound: dict[Batch, Loop] = {}

    def generation(
        self, inputs: Inputs, guidance_scale: asked.Scales, images: int, steps: int | None = None, axes: asked.Axes = None
    ) -> Generation:
        """A program's loop for a batch of this size, and what it is told besides the noise."""
        compiled = self.loaded.manifest.program(steps, axes)
        scales = asked.scales(compiled, guidance_scale, images)
        bound = self.loop(compiled, images, compiled.guidance.doubled(scales))
        return Generation(bound, *guided_request(compiled, inputs, scales))

    def warm(self, batches: Sequence[Warm]) -> None:
        """Take memory for the largest of these batches, and run each of them once."""
        manifest = self.loaded.manifest
        self.kept = max(KEPT, sum(len(batch.sizes) for batch in batches))
        for images, warm in sorted(
            ((size, batch) for batch in batches for size in batch.sizes), reverse=True, key=lambda p: p[0]
        ):
            request = usual(manifest.inputs, images)
            generation = self.generation(request, warm.guidance_scale, images, warm.steps, warm.axes)
            noise = asked.noise(generation.loop.compiled, images, 0)
            generation.loop.whole(noise, generation.inputs, generation.guidance)
            generation.loop.memory.finish()

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
        size = size_of(slot.nbytes for slot in loop.layout(compiled, images, rows, self.loaded.link).values())
        if self._arena is None or self._arena.size < size:
            self._bound.clear()  # a device may have no room for two arenas
            self._arena = None
            self._arena = Arena(self.loaded.backend.memory, size, f"the buffers of {counted(images, 'image')}")
        return self._arena

    def _forget(self, program: str) -> None:
        """The loops that read a program's constants, and these."""
        self._constants.pop(program, None)
        self._bound = {batch: bound for batch, bound in self._bound.items() if batch.program != program}
