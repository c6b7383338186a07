"""Backends: one file per library, all behind one small contract.

A backend turns a segment into an `Engine`, or links a whole graph into one; binding an engine to arrays gives a function
of no arguments that runs it.  Binding happens once per batch size, running once per call.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..artefact import check_closed, verified
from ..ending import stop
from ..errors import BackendError, L2CError, RunError, UsageError
from ..machine import version
from ..manifest import Build, FileInfo
from ..program import Node

# An array where the backend computes: of numpy on the host, or one of `cuda.DeviceArray`, which has the same slicing.
Array = Any
Arrays = Mapping[str, Array]
WeightView = Callable[[str], Array]  # a weight, or some rows of one, by name
Run = Callable[[], None]
Nodes = tuple[Node, ...]

BACKENDS = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
BUILT = ("tensorrt", "tensorrt-rtx")  # these run engines that `l2c build` has added to the artefact
AUTO = "auto"
ALIGNED = 256  # bytes: what TensorRT asks of addresses
FUSED = ".fused.onnx"  # ends the name of a segment's second form, with operators that only ONNX Runtime has
# What each can be asked for at all; whether this machine has it is found out when it is opened.
PRECISIONS = {
    "tensorrt": ("fp32", "bf16", "fp16"),
    "tensorrt-rtx": ("fp32", "bf16", "fp16"),
    "openvino": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "fp16"),
}


class Request(NamedTuple):
    """What is asked of a backend; None leaves the choice to it."""

    device: str | None = None
    threads: int | None = None
    precision: str = "fp32"
    folder: Path | None = None  # of the artefact
    builds: tuple[Build, ...] = ()  # and the engines in it
    files: Mapping[str, FileInfo] = {}  # what the engines' files must look like


class SegmentFile(NamedTuple):
    """A compiled unit on disk: plain ONNX operators, with its inputs and outputs by name."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    info: FileInfo | None = None
    fused: FileInfo | None = None  # its second form, if there is one
    weights_inside: bool = False  # a model of its own, in float32

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


@functools.cache
def host_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class HostMemory:
    """Plain numpy: nothing is copied without being asked for, and a run that returns has ended."""

    on_host = True

    def enter(self) -> None:
        pass

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > host_bytes():  # the system lends more than there is, and ends the process when it is used
            raise RunError(
                f"{size / 2**20:,.0f} MB are needed at once, the machine has {host_bytes() / 2**20:,.0f}: use fewer images"
            )
        return np.empty(shape, dtype)

    def put(self, array: Array, values: np.ndarray) -> None:
        if array is not values:
            array[...] = values

    def get(self, array: Array) -> np.ndarray:
        found: np.ndarray = array
        return found

    def copy(self, array: Array) -> Array:
        return array.copy()

    def reserve(self, size: int, what: str) -> None:
        pass  # the system's to know: it lends more than it has

    def finish(self) -> None:
        pass

    def clock(self) -> Clock:
        return HostClock()

    def weights(self, view: WeightView, names: Collection[str]) -> WeightView:
        return view


class HostClock:
    """The host's clock, for runs that end before they return."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self._marks)]


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


def in_order(runs: Sequence[Run]) -> Run:
    """One run that does all of these."""

    def all_of_them() -> None:
        for run in runs:
            stop()
            run()

    return all_of_them


class OnHost:
    """What backends have in common whose engines work on numpy's arrays and return when they are done."""

    memory: Memory = HostMemory()
    forks = False
    spins = False

    def sequence(self, runs: Sequence[Run]) -> Run:
        return in_order(runs)


class Opened(NamedTuple):
    backend: Backend
    why: str


def open_backend(name: str, request: Request = Request()) -> Opened:  # noqa: B008  (frozen)
    """The backend of that name, or with "auto" the first that works here.

    Raises BackendError if it is unknown or cannot do what is asked, MissingExtra if it is not installed.
    """
    most = os.cpu_count() or 1
    if request.threads is not None and not 1 <= request.threads <= most:
        raise UsageError(f"--threads {request.threads}: must be at least 1, and at most {most}, the processors of this machine")
    if name == AUTO:
        return _fastest(request)
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: known are {AUTO}, {', '.join(BACKENDS)}")
    module = importlib.import_module(f"{__name__}.{name.partition('-')[0]}_backend")
    return Opened(module.open_backend(name, request), "as asked")


def _fastest(request: Request) -> Opened:
    refused = []
    for name, device in _candidates(request):
        try:
            backend = open_backend(name, request._replace(device=device)).backend
        except L2CError as error:
            refused.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
        else:
            return Opened(backend, f"the first that works here{'; ' if refused else ''}{'; '.join(refused)}")
    raise BackendError(f"no backend can run this: {'; '.join(refused) or f'none is for device {request.device}'}")


def _candidates(request: Request) -> Iterator[tuple[str, str | None]]:
    """What is worth a try, and a word if it fails, with the device to use."""
    built = {build.backend for build in request.builds}
    on_gpu = (request.device or "").startswith("cuda")
    if on_gpu or request.device is None:
        yield from ((name, request.device) for name in BUILT if name in built)
    if on_gpu or (request.device is None and version("onnxruntime-gpu")):
        yield "onnxruntime", request.device or "cuda"
    if not on_gpu:  # in float32 ONNX Runtime is the faster one (scripts/results/cpu_xeon.json, cpu_epyc.json)
        order = ("onnxruntime", "openvino") if request.precision == "fp32" else ("openvino", "onnxruntime")
        yield from ((name, request.device) for name in order)
