"""CUDA for the backends that need it: memory, one stream, events and graphs, through cuda-python's bindings."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import BackendError, L2CError, RunError
from ...support.extras import needs
from ..contract import ALIGNED, Clock, WeightView
from . import dlpack

OLDEST_FP8 = 89  # Ada: the first architecture with products of e4m3
SMALLER = "generate fewer images at once, use precision='fp16', or free the GPU"


class Allocation:
    """Device memory that is freed with its last array."""

    def __init__(self, cudart: Any, size: int) -> None:
        self.size = size
        self.pointer: int = call(cudart, "cudaMalloc", max(size, 1))
        weakref.finalize(self, cudart.cudaFree, self.pointer)


@dataclass(frozen=True)
class DeviceArray:
    """An array on the GPU: as much of numpy's as the loop uses.

    Other libraries read it without a copy: `torch.from_dlpack(array)`, `torch.as_tensor(array)`, `cupy.asarray(array)`.
    """

    memory: Allocation
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 3, "strides": None}

    def __dlpack__(self, *, stream: object = None, **_: object) -> Any:
        """What the array holds must be there already: a pipeline waits for it before it gives an array away."""
        return dlpack.capsule(self.pointer, self.shape, str(self.dtype), self.__dlpack_device__(), self.memory)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __getitem__(self, rows: slice) -> DeviceArray:
        first, last, _ = rows.indices(self.shape[0])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return replace(self, pointer=self.pointer + first * row, shape=(last - first, *self.shape[1:]))

    def view(self, dtype: str) -> DeviceArray:
        """A one-dimensional array as another type."""
        kind = np.dtype(dtype)
        return replace(self, dtype=kind, shape=(self.nbytes // kind.itemsize,))

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        return replace(self, shape=shape)


class Cuda:
    """One device and one stream; a `backends.Memory`."""

    on_host = False

    def __init__(self, device: str, extra: str) -> None:
        """`device` is cuda or cuda:N; `extra` is what installs the bindings for the backend that asks.

        Raises MissingExtra, or BackendError where there is no such GPU or its driver is too old.
        """
        self._cudart = needs("cuda.bindings.runtime", extra)
        kind, _, number = device.partition(":")
        count = self._call("cudaGetDeviceCount")
        if kind != "cuda" or not (number or "0").isdecimal() or int(number or 0) >= count:
            raise BackendError(f"device {device!r}: use {' or '.join(f'cuda:{i}' for i in range(count))}")
        self.index = int(number or 0)
        self.device = f"cuda:{self.index}"
        self.enter()
        self.stream: int = int(self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking))
        weakref.finalize(self, self._cudart.cudaStreamDestroy, self.stream)
        properties = self._call("cudaGetDeviceProperties", self.index)
        self.name = properties.name.split(b"\0")[0].decode()
        self.architecture = f"sm{properties.major}{properties.minor}"

    def _call(self, function: str, *arguments: Any) -> Any:
        return call(self._cudart, function, *arguments)

    def enter(self) -> None:
        """CUDA has a current device by thread, and another pipeline may have set it."""
        self._call("cudaSetDevice", self.index)

    def allocate(self, size: int) -> Allocation:
        return Allocation(self._cudart, size)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        kind = np.dtype(dtype)
        memory = self.allocate(math.prod(shape) * kind.itemsize)
        return DeviceArray(memory, memory.pointer, shape, kind, self.index)

    def free(self) -> int:
        """Bytes of the GPU's memory that nobody has taken."""
        return int(self._call("cudaMemGetInfo")[0])

    def reserve(self, size: int, what: str) -> None:
        """Raise RunError if `size` bytes more are not free, before some of them are taken."""
        free = self.free()
        if size > free:
            raise RunError(
                f"{what} need {size / 2**20:,.0f} MB of GPU memory, but only {free / 2**20:,.0f} MB are free: {SMALLER}"
            )

    def put(self, array: DeviceArray, values: np.ndarray) -> None:
        dense = np.ascontiguousarray(values, array.dtype)
        assert dense.nbytes == array.nbytes, (dense.shape, array.shape)
        down = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", array.pointer, dense.ctypes.data, dense.nbytes, down, self.stream)

    def get(self, array: DeviceArray) -> np.ndarray:
        values = np.empty(array.shape, array.dtype)
        up = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", values.ctypes.data, array.pointer, values.nbytes, up, self.stream)
        self.finish()
        return values

    def copy(self, array: DeviceArray) -> DeviceArray:
        duplicate = self.empty(array.shape, str(array.dtype))
        across = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", duplicate.pointer, array.pointer, duplicate.nbytes, across, self.stream)
        self.finish()
        return duplicate

    def weights(self, view: WeightView, names: Collection[str]) -> WeightView:
        """One allocation with a copy of every weight, each at an address that engines accept."""
        views = {name: view(name) for name in sorted(names)}
        sizes = [-(-v.nbytes // ALIGNED) * ALIGNED for v in views.values()]
        self.reserve(sum(sizes), "the weights")
        memory, arrays, position = self.allocate(sum(sizes)), {}, 0
        for (name, values), size in zip(views.items(), sizes, strict=True):
            arrays[name] = DeviceArray(memory, memory.pointer + position, values.shape, values.dtype, self.index)
            self.put(arrays[name], values)
            position += size
        self.finish()
        return arrays.__getitem__

    def finish(self) -> None:
        """Return when the stream is empty."""
        self._call("cudaStreamSynchronize", self.stream)

    def clock(self) -> Clock:
        return EventClock(self._cudart, self.stream)

    def capture(self, work: Callable[[], None], relaxed: bool = False) -> Callable[[], None]:
        """What `work` enqueues, as one launch.

        Raises BackendError for work that cannot be captured, or not be repeated: a captured call into the host would run
        with whatever its memory holds by then.  `relaxed` lets this thread free memory meanwhile, which a library does when its
        work fails; what is captured so is for trying alone.
        """
        modes = self._cudart.cudaStreamCaptureMode
        mode = modes.cudaStreamCaptureModeRelaxed if relaxed else modes.cudaStreamCaptureModeThreadLocal
        with uncollected():
            self._call("cudaStreamBeginCapture", self.stream, mode)
            try:
                work()
            except BaseException:  # which says more than how the capture ends
                _, graph = self._cudart.cudaStreamEndCapture(self.stream)
                self._cudart.cudaGraphDestroy(graph)
                self._cudart.cudaGetLastError()
                raise
            graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            if self._cudart.cudaGraphNodeType.cudaGraphNodeTypeHost in self._nodes(graph):
                raise BackendError("CUDA: a call into the host cannot be repeated by a graph")
            ready = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        return Replay(self._cudart, ready, self.stream)

    def _nodes(self, graph: Any) -> set[Any]:
        """The kinds of a graph's nodes."""
        _, count = self._call("cudaGraphGetNodes", graph, 0)
        nodes, _ = self._call("cudaGraphGetNodes", graph, count)
        return {self._call("cudaGraphNodeGetType", node) for node in nodes}


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's cycle collector: what it frees of a GPU's memory would end a capture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Replay:
    """An instantiated graph, destroyed with its last user."""

    def __init__(self, cudart: Any, ready: Any, stream: int) -> None:
        self._cudart, self._ready, self._stream = cudart, ready, stream
        weakref.finalize(self, cudart.cudaGraphExecDestroy, ready)

    def __call__(self) -> None:
        call(self._cudart, "cudaGraphLaunch", self._ready, self._stream)


class EventClock:
    """Times on the device, whatever the host does meanwhile."""

    def __init__(self, cudart: Any, stream: int) -> None:
        self._cudart, self._stream, self._events = cudart, stream, list[Any]()

    def mark(self) -> None:
        self._events.append(call(self._cudart, "cudaEventCreate"))
        call(self._cudart, "cudaEventRecord", self._events[-1], self._stream)

    def seconds(self) -> list[float]:
        call(self._cudart, "cudaStreamSynchronize", self._stream)
        times = [1e-3 * call(self._cudart, "cudaEventElapsedTime", a, b) for a, b in itertools.pairwise(self._events)]
        while self._events:
            call(self._cudart, "cudaEventDestroy", self._events.pop())
        return times


def call(cudart: Any, function: str, *arguments: Any) -> Any:
    """A runtime function's result.  Raises RunError when memory is short, BackendError for everything else."""
    error, *results = getattr(cudart, function)(*arguments)
    if error != cudart.cudaError_t.cudaSuccess:
        cudart.cudaGetLastError()  # or the next library to look would take it for its own
        raise explained(cudart, error, function, arguments)
    return results[0] if len(results) == 1 else results


def explained(cudart: Any, error: Any, function: str, arguments: tuple[Any, ...]) -> L2CError:
    """What an error code means for the user."""
    codes = cudart.cudaError_t
    if error == codes.cudaErrorMemoryAllocation:
        _, free, total = cudart.cudaMemGetInfo()
        request = f"{arguments[0] / 2**20:,.0f} MB more, but " if function == "cudaMalloc" else ""
        available = f"{free / 2**20:,.0f} of {total / 2**20:,.0f} MB are free"
        return RunError(f"the GPU is out of memory: it needs {request}{available}: {SMALLER}")
    if error in (codes.cudaErrorInsufficientDriver, codes.cudaErrorNoDevice):
        (_, driver), (_, runtime) = cudart.cudaDriverGetVersion(), cudart.cudaRuntimeGetVersion()
        if error == codes.cudaErrorNoDevice or not driver:
            return BackendError(
                "CUDA: no GPU and driver on this machine: look at nvidia-smi, or use what needs none (l2c_export.doctor())"
            )
        own, needed = (f"{version // 1000}.{version % 1000 // 10}" for version in (driver, runtime))
        return BackendError(
            f"CUDA: the driver is for CUDA {own}, needed is {needed}: update it, or pip install 'cuda-bindings<={own}.99'"
        )
    return BackendError(f"CUDA: {function} failed with {error.name}: check the driver with nvidia-smi and l2c_export.doctor()")
