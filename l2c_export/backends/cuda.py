"""CUDA for the backends that need it: memory, one stream, and graphs, through cuda-python's bindings."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import BackendError, RunError
from . import WeightView, needs

ALIGNED = 256  # what TensorRT asks of addresses


class Allocation:
    """Device memory that is freed with its last array."""

    def __init__(self, cudart: Any, size: int) -> None:
        self.size = size
        self.pointer: int = call(cudart, "cudaMalloc", max(size, 1))
        weakref.finalize(self, cudart.cudaFree, self.pointer)


@dataclass(frozen=True)
class DeviceArray:
    """An array on the GPU: as much of numpy's as the loop uses.  Other libraries read it without a copy, for example
    `torch.as_tensor(array)` or `cupy.asarray(array)`."""

    memory: Allocation
    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 3, "strides": None}

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

    def __init__(self, device: str) -> None:
        self._cudart = needs("cuda.bindings.runtime", "tensorrt")
        kind, _, number = device.partition(":")
        count = self._call("cudaGetDeviceCount")
        if kind != "cuda" or not (number or "0").isdecimal() or int(number or 0) >= count:
            raise BackendError(f"device {device!r}: use cuda:0 .. cuda:{count - 1}")
        self.index = int(number or 0)
        self._call("cudaSetDevice", self.index)
        self.stream: int = int(self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking))
        properties = self._call("cudaGetDeviceProperties", self.index)
        self.name = properties.name.split(b"\0")[0].decode()
        self.architecture = f"sm{properties.major}{properties.minor}"

    def _call(self, function: str, *arguments: Any) -> Any:
        return call(self._cudart, function, *arguments)

    def allocate(self, size: int) -> Allocation:
        return Allocation(self._cudart, size)

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        kind = np.dtype(dtype)
        memory = self.allocate(math.prod(shape) * kind.itemsize)
        return DeviceArray(memory, memory.pointer, shape, kind)

    def put(self, array: DeviceArray, values: np.ndarray) -> None:
        given = np.ascontiguousarray(values, array.dtype)
        assert given.nbytes == array.nbytes, (given.shape, array.shape)
        down = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", array.pointer, given.ctypes.data, given.nbytes, down, self.stream)

    def get(self, array: DeviceArray) -> np.ndarray:
        found = np.empty(array.shape, array.dtype)
        up = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", found.ctypes.data, array.pointer, found.nbytes, up, self.stream)
        self.synchronise()
        return found

    def weights(self, view: WeightView, names: Collection[str]) -> WeightView:
        """One allocation with a copy of every weight, each at an address that engines accept."""
        views = {name: view(name) for name in sorted(names)}
        sizes = [-(-v.nbytes // ALIGNED) * ALIGNED for v in views.values()]
        memory, arrays, position = self.allocate(sum(sizes)), {}, 0
        for (name, values), size in zip(views.items(), sizes, strict=True):
            arrays[name] = DeviceArray(memory, memory.pointer + position, values.shape, values.dtype)
            self.put(arrays[name], values)
            position += size
        self.synchronise()
        return arrays.__getitem__

    def synchronise(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` enqueues, as one launch."""
        self._call("cudaStreamBeginCapture", self.stream, self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return lambda: self._call("cudaGraphLaunch", ready, self.stream)


def call(cudart: Any, function: str, *arguments: Any) -> Any:
    """A runtime function's result.  Raises RunError when memory is short, BackendError for everything else."""
    error, *results = getattr(cudart, function)(*arguments)
    if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
        _, free, total = cudart.cudaMemGetInfo()
        wanted = f"{arguments[0] / 2**20:.0f} MB more, but " if function == "cudaMalloc" else ""
        raise RunError(
            f"the GPU is out of memory: it needs {wanted}{free / 2**20:.0f} of {total / 2**20:.0f} MB are free: "
            "generate fewer images at once, use --precision fp16, or free the GPU"
        )
    if error != cudart.cudaError_t.cudaSuccess:
        raise BackendError(f"CUDA: {function} failed with {error.name}: check the driver with nvidia-smi and l2c doctor")
    return results[0] if len(results) == 1 else results
