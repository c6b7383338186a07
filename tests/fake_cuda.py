"""A CUDA runtime whose device memory is the host's: what `backends.cuda` does with pointers, run for real without a GPU."""

# ruff: noqa: N802, N815  (the names are CUDA's)
from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace

import numpy as np


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorNotPermitted = 800
    cudaErrorUnknown = 999


class FakeCudart:
    """As much of cuda.bindings.runtime as is used; `failing` maps a function to the error that it returns."""

    cudaError_t = Error
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1, cudaStreamCaptureModeRelaxed=2)
    cudaGraphNodeType = SimpleNamespace(cudaGraphNodeTypeHost="host")
    cudaStreamNonBlocking = 1

    def __init__(self, free: int = 2**40, driver: int = 13000, failing: dict[str, Error] | None = None) -> None:
        self.free, self.driver, self.failing = free, driver, failing or {}
        self.held: dict[int, np.ndarray] = {}
        self.current: int | None = None  # device
        self.capturing: int | None = None  # in which mode
        self.capability = 9, 0

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        failing = super().__getattribute__("__dict__").get("failing", {})
        return (lambda *_: (failing[name], *[None] * 2)) if name in failing else value

    def cudaGetDeviceCount(self):
        return Error.cudaSuccess, 2

    def cudaSetDevice(self, index):
        self.current = index
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags):
        return Error.cudaSuccess, 7

    def cudaStreamDestroy(self, stream):
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, index):
        return Error.cudaSuccess, SimpleNamespace(name=b"Fake GPU\0\0", major=self.capability[0], minor=self.capability[1])

    def cudaMemGetInfo(self):
        return Error.cudaSuccess, self.free, 2**40

    def cudaMalloc(self, size):
        if size > self.free:
            return Error.cudaErrorMemoryAllocation, None
        memory = np.zeros(size + 256, np.uint8)
        pointer = -(-memory.ctypes.data // 256) * 256
        self.held[pointer] = memory
        self.free -= size
        return Error.cudaSuccess, pointer

    def cudaFree(self, pointer):
        self.free += self.held.pop(pointer).size - 256
        return (Error.cudaSuccess,)

    def cudaFreeHost(self, pointer):
        """Not permitted to a thread that captures, unless it is relaxed."""
        allowed = self.capturing != self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        return (Error.cudaSuccess if allowed else Error.cudaErrorNotPermitted,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.capturing = mode
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        self.capturing = None
        return Error.cudaSuccess, "graph"

    def cudaGraphGetNodes(self, graph, count):
        return Error.cudaSuccess, [], 0

    def cudaGraphInstantiate(self, graph, flags):
        return Error.cudaSuccess, "ready"

    def cudaGraphDestroy(self, graph):
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, ready):
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        ctypes.memmove(to, source, size)
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        return (Error.cudaSuccess,)

    def cudaGetLastError(self):
        return (Error.cudaSuccess,)

    def cudaDriverGetVersion(self):
        return Error.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self):
        return Error.cudaSuccess, 13050
