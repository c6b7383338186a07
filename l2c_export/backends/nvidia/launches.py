"""Generated kernels, loaded once for each source, and launched over addresses."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import BackendError
from ...support.extras import needs
from ..cuda.device import Cuda
from .compiling import NAME, compiled
from .kernels import Kernel

Address = Callable[[str], int]  # of a buffer by name; 0 of ""


class LoadedKernel:
    """A kernel's code on the device, unloaded with its last user."""

    def __init__(self, driver: Any, code: bytes) -> None:
        self._driver = driver
        module = _result(driver, driver.cuModuleLoadData(code))
        weakref.finalize(self, driver.cuModuleUnload, module)
        self.function = _result(driver, driver.cuModuleGetFunction(module, NAME))


class Launcher:
    """Kernels of one device and one stream."""

    def __init__(self, memory: Cuda) -> None:
        self._driver: Any = needs("cuda.bindings.driver", "cuda")
        self._memory = memory
        self._loaded: dict[str, LoadedKernel] = {}

    def bind(self, kernel: Kernel, address: Address) -> Callable[[], None]:
        """A function that enqueues a kernel over the buffers at these addresses."""
        loaded = self._load(kernel.source)
        pointers = [address(buffer) for buffer in kernel.buffers]
        for buffer, least in kernel.vectors.items():
            assert address(buffer) % least == 0, f"{buffer} is not aligned to {least} bytes"
        table = None
        if kernel.addresses:
            table = self._memory.empty((len(kernel.addresses),), "int64")
            self._memory.put(table, np.array([address(buffer) for buffer in kernel.addresses], np.int64))
            self._memory.finish()
            pointers = [table.pointer, *pointers]
        values = (ctypes.c_void_p * len(pointers))(*pointers)
        size = ctypes.sizeof(ctypes.c_void_p)
        places = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(values) + n * size for n in range(len(pointers))))
        keep, parameters = (values, places, table), ctypes.addressof(places)
        driver, stream, blocks, threads = self._driver, self._memory.stream, kernel.blocks, kernel.threads

        def run() -> None:
            _ = keep
            _result(driver, driver.cuLaunchKernel(loaded.function, blocks, 1, 1, threads, 1, 1, 0, stream, parameters, 0))

        return run

    def _load(self, source: str) -> LoadedKernel:
        if source not in self._loaded:
            self._loaded[source] = LoadedKernel(self._driver, compiled(source, self._memory.architecture))
        return self._loaded[source]


def _result(driver: Any, returned: tuple[Any, ...]) -> Any:
    """What a function of the driver returns behind its error.  Raises BackendError."""
    error, *results = returned
    if error != driver.CUresult.CUDA_SUCCESS:
        raise BackendError(f"CUDA: {error.name}: check the driver with nvidia-smi and l2c_export.doctor()")
    return results[0] if results else None
