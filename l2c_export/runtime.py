"""The denoising loop over compiled engines.  It needs numpy and one backend; torch ended before here.

`bind` places every buffer and binds every call once for a batch size; `denoise` is the loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import weights
from .backends import Backend, Engine, Run, SegmentFile
from .manifest import Call, Manifest
from .program import Value, split_at, stored

# Hoisted rows of more calls than fit in here are computed in several chunks.
HOISTED_BYTES = 256 * 2**20


WeightView = Callable[[str], np.ndarray]


class Program(NamedTuple):
    """An artefact's engines and weights, ready to be bound: what all batch sizes have in common."""

    folder: Path
    manifest: Manifest
    backend: Backend
    weights: WeightView
    engines: Mapping[str, Engine]  # segments (shared link) or whole graphs (static link), by name


def load_program(folder: Path, manifest: Manifest, backend: Backend, view: WeightView | None = None) -> Program:
    """Load every engine that the artefact's link needs, over the memory-mapped weights (or over `view`)."""
    view = view or mapped_weights(folder, manifest)
    files = {name: SegmentFile(folder / s.file, s.inputs, s.outputs) for name, s in manifest.segments.items()}
    if manifest.link == "shared":
        return Program(folder, manifest, backend, view, {name: backend.load(file) for name, file in files.items()})
    whole = {}
    for name, graph in manifest.graphs.items():
        stored = {i: view(i) for i in graph.inputs if manifest.is_weight(i)}
        whole[name] = backend.link(folder / graph.file, graph.nodes, files, graph.outputs, stored)
    return Program(folder, manifest, backend, view, whole)


def mapped_weights(folder: Path, manifest: Manifest) -> WeightView:
    """Weights by name, as views of the file.

    Nothing writes to them; the mapping is copy-on-write because some libraries do not take read-only memory.
    """
    layout = weights.Layout(manifest.tensors, manifest.weight_types)
    memory = np.memmap(folder / weights.FILE, mode="c")
    return lambda name: layout.view(memory, name)


@dataclass(frozen=True)
class Step:
    """What a call leaves behind."""

    call: Call
    index: int
    x: np.ndarray  # (B, C, H, W) float32: the latents for the next call


class Turn(NamedTuple):
    """Which of the three latent buffers a call reads, and which it fills."""

    now: int
    base: int  # the latents at the start of the solver step
    after: int


def turns(calls: Sequence[Call]) -> list[Turn]:
    """Rotate the buffers so that no call overwrites latents that are still needed."""
    now, base, found = 0, 0, []
    for call in calls:
        after = next(i for i in range(3) if i not in (now, base))
        found.append(Turn(now, base, after))
        now, base = after, after if call.ends_step else base
    return found


class Loop:
    """Every call of a program bound for one batch: `images` latents and `rows` rows of the model's batch."""

    def __init__(self, program: Program, images: int, guided: bool) -> None:
        self.program, self.manifest, self.images = program, program.manifest, images
        self.rows = images * (2 if guided else 1)
        latent = (images, *self.manifest.model.latent)
        self.states = [np.zeros(latent, np.float32) for _ in range(3)]
        index = np.arange(images, dtype=np.int32)
        self.inputs = {
            "rows": np.tile(index, self.rows // images),
            "conditional": index,
            "unconditional": index + (self.rows - images),
            "guidance": np.zeros((1, latent[1], 1, 1), np.float32),
            "y": np.zeros(self.rows, np.int32),
        }
        steps = {call.graph: self.manifest.graphs[call.graph].slot_bytes for call in self.manifest.calls}
        scratch = np.empty(max(self._size(sizes) for sizes in steps.values()), np.uint8)
        self.slots = {name: self._cut(scratch, sizes) for name, sizes in steps.items()}
        self.caches = self._cut(np.empty(self._size(self.manifest.cache_bytes), np.uint8), self.manifest.cache_bytes)
        self.hoisted = Hoisted(program, self.rows)
        self._turns = turns(self.manifest.calls)
        self._runs: dict[int, list[Run]] = {}

    def _size(self, row_bytes: tuple[int, ...]) -> int:
        return sum(aligned(size * self.rows) for size in row_bytes)

    def _cut(self, memory: np.ndarray, row_bytes: tuple[int, ...]) -> list[np.ndarray]:
        """Consecutive aligned slots of the given bytes per row."""
        starts = np.cumsum([0, *(aligned(size * self.rows) for size in row_bytes)]).tolist()
        return [memory[a:b] for a, b in itertools.pairwise(starts)]

    def denoise(self, x: np.ndarray, labels: np.ndarray, guidance: np.ndarray) -> Iterator[Step]:
        """Run the calls in order.  The latents of a yielded step may be changed before the next is asked for."""
        self.start(x, labels, guidance)
        for index in range(len(self.manifest.calls)):
            self.hoisted.reach(index)
            for run in self.bound(index):
                run()
            yield self.after(index)

    def start(self, x: np.ndarray, labels: np.ndarray, guidance: np.ndarray) -> None:
        """Take a request: latents (B, C, H, W), labels (R,), and the guidance of every latent channel (C,)."""
        self.states[0][...] = x
        self.inputs["y"][...] = labels
        self.inputs["guidance"][...] = guidance.reshape(1, -1, 1, 1)
        self.hoisted.labels(labels)

    def after(self, index: int) -> Step:
        """What call `index` leaves behind."""
        return Step(self.manifest.calls[index], index, self.states[self._turns[index].after])

    def bound(self, index: int) -> list[Run]:
        """The engine runs of a call, bound to its buffers on first use."""
        if index not in self._runs:
            graph = self.manifest.calls[index].graph
            self._runs[index] = bind_graph(self.program, graph, lambda name: self.array(index, name))
        return self._runs[index]

    def array(self, index: int, name: str) -> np.ndarray:
        """The memory behind a name in call `index`."""
        call, turn = self.manifest.calls[index], self._turns[index]
        graph = self.manifest.graphs[call.graph]
        base, offset = split_at(name)
        state = {"x": turn.now, "base": turn.base, "x.next": turn.after}
        if name in state:
            return self.states[state[name]]
        if name in self.inputs:
            return self.inputs[name]
        if name == "coefficients":
            return np.array(call.coefficients, np.float32)
        if name in graph.slots:
            return self._typed(self.slots[call.graph][graph.slots[name]], self.manifest.values[base])
        if name in call.reads or name in call.writes:
            slot = call.reads[name] if name in call.reads else call.writes[name]
            return self._typed(self.caches[slot], self.manifest.values[base])
        if base == "t":
            later = self.manifest.calls[min(index + offset, len(self.manifest.calls) - 1)]
            return np.full(self.rows, later.timestep, np.float32)
        if base in self.manifest.values:
            return self.hoisted.row(base, index + offset)
        return self.program.weights(name)

    def _typed(self, memory: np.ndarray, value: Value) -> np.ndarray:
        shape = concrete(value, self.images, self.rows)
        size = value.row_bytes * shape[0]
        return memory[:size].view(stored(value.dtype)).reshape(shape)


class Hoisted:
    """The values that leave the loop: constants once, the prologue's rows once per request, chunk by chunk."""

    def __init__(self, program: Program, rows: int) -> None:
        self.manifest, self.program, self.rows = program.manifest, program, rows
        self.calls = len(self.manifest.calls)
        self.ahead = max((split_at(i)[1] for g in self.manifest.graphs.values() for i in g.inputs), default=0)
        names = [n for g in (self.manifest.constants, self.manifest.prologue) if g for n in self.manifest.graphs[g].outputs]
        per_call = rows * sum(self.manifest.values[n].row_bytes for n in names)
        fits = HOISTED_BYTES // max(per_call, 1)
        self.window = self.calls if fits >= self.calls else max(fits, self.ahead + 1)
        self.chunk = 0
        self._arrays = {n: self._many(n, self.window * rows) for n in names}
        self._y = np.zeros(self.window * rows, np.int32)
        self._constants = self._evaluate_constants() if self.manifest.constants else {}
        self.prologue = self._bind(self.manifest.prologue, self._arrays) if self.manifest.prologue else []
        self._ready = -1

    def labels(self, y: np.ndarray) -> None:
        """New labels: nothing that was computed before holds any more."""
        self._y[...] = np.tile(y, self.window)
        self._ready = -1

    def reach(self, index: int) -> None:
        """Make the rows of call `index` and of those that it fills available."""
        step = self.window if self.window >= self.calls else self.window - self.ahead
        self.chunk = index // step
        if self._ready == self.chunk:
            return
        first = self.chunk * step
        for name, values in self._constants.items():
            here = np.take(values, range(first, first + self.window), axis=0, mode="clip")
            self._arrays[name][...] = np.repeat(here, self.rows, axis=0)
        for run in self.prologue:
            run()
        self._ready = self.chunk

    def row(self, name: str, index: int) -> np.ndarray:
        """The rows of a hoisted value for call `index`, which must be within reach.

        Past the last call there are only sums that nobody reads; they are made of the last call's rows.
        """
        index = min(index, self.calls - 1)
        step = self.window if self.window >= self.calls else self.window - self.ahead
        first = (index - self.chunk * step) * self.rows
        return self._arrays[name][first : first + self.rows]

    def _many(self, name: str, rows: int) -> np.ndarray:
        value = self.manifest.values[name]
        return np.zeros(concrete(value, rows, rows), stored(value.dtype))

    def _evaluate_constants(self) -> dict[str, np.ndarray]:
        """What depends on the timesteps alone, one row per call."""
        assert self.manifest.constants
        values = {n: self._many(n, self.calls) for n in self.manifest.graphs[self.manifest.constants].outputs}
        times = np.array([call.timestep for call in self.manifest.calls], np.float32)
        for run in self._bind(self.manifest.constants, values, t=times):
            run()
        return values

    def _bind(self, name: str, known: Mapping[str, np.ndarray], t: np.ndarray | None = None) -> list[Run]:
        graph = self.manifest.graphs[name]
        rows = self.window * self.rows if t is None else self.calls
        given = {"y": self._y, **({} if t is None else {"t": t})}
        inner = {n: self._many(n, rows) for node in graph.nodes for n in node.outputs if n not in known}
        return bind_graph(self.program, name, lambda n: _first(n, known, given, inner, self.program.weights))


def _first(name: str, *places: Mapping[str, np.ndarray] | Callable[[str], np.ndarray]) -> np.ndarray:
    *maps, last = places
    found = next((m[name] for m in maps if name in m), None)  # type: ignore[operator,index]
    return last(name) if found is None else found  # type: ignore[operator]


def bind_graph(program: Program, name: str, array: Callable[[str], np.ndarray]) -> list[Run]:
    """Bind a graph's engines to arrays found by name: one per segment call, or one for the whole graph."""
    manifest, graph = program.manifest, program.manifest.graphs[name]
    if manifest.link == "static":
        inputs = {i: array(i) for i in graph.inputs if not manifest.is_weight(i)}
        return [program.engines[name].bind(inputs, {o: array(o) for o in graph.outputs})]
    runs = []
    for node in graph.nodes:
        segment = manifest.segments[node.op]
        inputs = {i: array(given) for i, given in zip(segment.inputs, node.inputs, strict=True)}
        outputs = {o: array(made) for o, made in zip(segment.outputs, node.outputs, strict=True)}
        runs.append(program.engines[node.op].bind(inputs, outputs))
    return runs


def concrete(value: Value, images: int, rows: int) -> tuple[int, ...]:
    """A value's shape with the batch axes filled in."""
    sizes = {"B": images, "R": rows}
    return tuple(sizes[n] if isinstance(n, str) else n for n in value.shape)


def aligned(size: int) -> int:
    """The next multiple of a cache line."""
    return -(-size // 64) * 64
