"""Where does the time go: every engine run of the loop, by itself.

The runs that a loop has bound are replaced by ones that note when they ran; the loop itself stays what it is.  With the shared
link that is a run per segment; a static engine runs a whole call, and shows nothing of what is inside.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np

from .backends import Run
from .pipeline import Pipeline
from .runtime import Loop


class Event(msgspec.Struct, frozen=True):
    """One engine run; `start` counts from the beginning of the loop, in seconds."""

    call: int  # a run of the prologue belongs to the call that needed it
    name: str  # the sublayer, or what else the engine computes
    engine: str
    start: float
    seconds: float


class Recording(msgspec.Struct, frozen=True):
    """One image's engine runs, and how long each call and all of it took."""

    events: tuple[Event, ...]
    calls: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return sum(self.calls)

    @property
    def overhead(self) -> float:
        """What the loop adds to its engine runs, as a share of them."""
        return self.seconds / sum(event.seconds for event in self.events) - 1


def record(pipe: Pipeline, labels: Sequence[int], scale: float | None, noise: np.ndarray) -> Recording:
    """Make one image, timing every engine run.  Its bindings go with it: the pipeline's own stay as they are."""
    asked = pipe.generation(labels, scale)
    loop = Loop(asked.loop.program, asked.loop.images, asked.loop.rows > asked.loop.images)
    for _ in loop.denoise(noise, asked.labels, asked.guidance):
        pass  # binds and warms up
    events: list[Event] = []
    calls: list[float] = []
    started = time.perf_counter()
    watch(loop, events, calls, started)
    before = started
    for _ in loop.denoise(noise, asked.labels, asked.guidance):
        now = time.perf_counter()
        calls.append(now - before)
        before = now
    return Recording(tuple(events), tuple(calls))


def watch(loop: Loop, events: list[Event], done: Sequence[object], zero: float) -> None:
    """Make every bound run of a loop write an Event; `done` has an item for every finished call."""
    manifest = loop.manifest

    def watched(graph: str, runs: list[Run]) -> list[Run]:
        whole = [(graph, graph)]
        parts = [(n.name, n.op) for n in manifest.graphs[graph].nodes] if manifest.link == "shared" else whole
        return [noted(name, engine, run) for (name, engine), run in zip(parts, runs, strict=True)]

    def noted(name: str, engine: str, run: Run) -> Run:
        def timed() -> None:
            started = time.perf_counter()
            run()
            events.append(Event(len(done), name, engine, started - zero, time.perf_counter() - started))

        return timed

    if manifest.prologue:
        loop.hoisted.prologue[:] = watched(manifest.prologue, loop.hoisted.prologue)
    for index, call in enumerate(manifest.calls):
        loop.bound(index)[:] = watched(call.graph, loop.bound(index))
