"""What a backend is once it is open: it turns segments into engines, and engines bound to arrays into runs.

Binding happens once per batch size, running once per call.  Nothing is closed by hand: an engine, an array or a captured run
holds what it needs, and what a library does not free by itself is freed with the last that holds it (`weakref.finalize`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..artefact.integrity import check_closed, verified
from ..artefact.records import Build, FileInfo
from ..ir.graph import Node, Primitive

# An array where the backend computes: of numpy on the host, or one of `cuda.DeviceArray`, which has the same slicing.
Array = Any
Arrays = Mapping[str, Array]
WeightView = Callable[[str], Array]  # a weight, or some rows of one, by name
Run = Callable[[], None]
Nodes = tuple[Node, ...]

ALIGNED = 256  # bytes: what TensorRT asks of addresses
FUSED = ".fused.onnx"  # ends the name of a segment's second form, with operators that only ONNX Runtime has


class Request(NamedTuple):
    """What is asked of a backend; None leaves the choice to it."""

    device: str | None = None
    threads: int | None = None
    precision: str = "fp32"
    folder: Path | None = None  # of the artefact
    builds: tuple[Build, ...] = ()  # and the engines in it
    files: Mapping[str, FileInfo] = {}  # what the engines' files must look like
    onnx_alone: bool = False  # whether something of it is a model that no primitives say


class SegmentFile(NamedTuple):
    """A compiled unit on disk: plain ONNX operators, with its inputs and outputs by name."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    info: FileInfo | None = None
    fused: FileInfo | None = None  # its second form, if there is one
    island: bool = False  # computed in float32 whatever the precision
    weights_inside: bool = False  # a model of its own, in float32
    primitives: tuple[Primitive, ...] = ()  # what it computes; of format 1, and of a model of its own, there are none

    def read(self, fused: bool = False) -> bytes:
        """Its bytes, hashed once more: what is parsed is what was verified, whoever else writes to the file."""
        path, info = (self.path.with_suffix(FUSED), self.fused) if fused else (self.path, self.info)
        return check_closed(verified(path, info) if info else path.read_bytes(), path)


class Engine(Protocol):
    """A compiled segment or graph."""

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        """A function that reads `inputs` and fills `outputs` in place, whenever it is called.

        The arrays must stay where they are.  The engine runs on any batch; their shapes say which.
        """


class Clock(Protocol):
    """Measures what runs between marks, where it runs."""

    def mark(self) -> None: ...

    def seconds(self) -> list[float]:
        """The times between the marks, when all of it has run."""


class Memory(Protocol):
    """Where the arrays of a loop live."""

    on_host: bool
    device: str  # as a request names it: cpu, cuda:0 ..

    def enter(self) -> None:
        """Make this the memory that the calling thread works with."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new array."""

    def put(self, array: Array, values: np.ndarray) -> None:
        """Fill an array from the host."""

    def get(self, array: Array) -> np.ndarray:
        """An array on the host, when all runs before have ended; it may be the array itself."""

    def copy(self, array: Array) -> Array:
        """A new array where this one is, when all runs before have ended."""

    def reserve(self, size: int, what: str) -> None:
        """Raise RunError if `size` bytes for `what` are more than is free, where that can be known before."""

    def finish(self) -> None:
        """Return when all runs before have ended."""

    def clock(self) -> Clock:
        """A clock for runs."""

    def weights(self, view: WeightView, names: Collection[str]) -> WeightView:
        """The same weights where the backend reads them."""


class Backend(Protocol):
    """A library that runs engines on one device, with a fixed number of threads."""

    name: str
    forks: bool  # whether its engines work in a process that was forked from the one that loaded them
    spins: bool  # whether its threads keep their processors while they wait for each other

    @property
    def memory(self) -> Memory:
        """Where its arrays live."""

    def describe(self) -> str:
        """One line for people: device, threads, precisions."""

    def load(self, segment: SegmentFile) -> Engine:
        """Compile a segment; its weights are inputs like any other."""

    def link(
        self,
        path: Path,
        nodes: tuple[Node, ...],
        segments: Mapping[str, SegmentFile],
        outputs: tuple[str, ...],
        weights: Arrays,
    ) -> Engine:
        """Compile a whole graph with its weights inside, all sharing the one copy given.

        `path` is the graph as one ONNX model; `nodes` say the same as calls of segments.
        """

    def sequence(self, runs: Sequence[Run]) -> Run:
        """One run that does all of these in order, with as little launching as the device allows.

        They may be run once for rehearsal.
        """
