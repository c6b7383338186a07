"""ONNX Runtime on the CPU: the embedded default."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..artefact import leaves
from ..errors import BackendError, RunError
from ..extras import needs
from ..machine import cores
from ..weights import FILE as WEIGHTS
from ..words import counted
from . import Arrays, Backend, Nodes, OnHost, Request, Run, SegmentFile

ort = needs("onnxruntime", "onnxruntime")

# The pool of threads that all sessions of this process share; None until the first backend is opened.
_global_threads: int | None = None
_once = threading.Lock()  # what a process has once is made by one thread


def reason(error: Exception) -> str:
    """One of ONNX Runtime's errors, which have no base of their own, in one line."""
    return f"ONNX Runtime {ort.__version__}: {(str(error) or repr(error)).splitlines()[0]}"


class OrtEngine:
    """One inference session; arrays are bound in place, nothing is copied."""

    def __init__(self, session: Any, weights: Mapping[str, Any]) -> None:
        self._session = session
        self._weights = weights  # the session reads them in place

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        binding = self._session.io_binding()
        try:
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        except RuntimeError as error:
            raise BackendError(reason(error)) from None
        session, keep = self._session, (dict(inputs), dict(outputs))

        def run() -> None:
            _ = keep  # the binding holds addresses only
            try:  # which costs nothing in the loop
                session.run_with_iobinding(binding)
            except Exception as error:
                raise RunError(reason(error)) from None

        return run


class OrtBackend(OnHost):
    """Sessions that share one thread pool and one arena: pools of their own would spin against each other."""

    name = "onnxruntime"
    forks = True

    def __init__(self, threads: int | None, precision: str) -> None:
        self._precision = precision
        self._shared_pool = share_pool(threads)
        self._threads = self._shared_pool or threads or cores()
        self.spins = bool(self._shared_pool) and self._threads > 1
        with _once:
            _share_arena()

    def describe(self) -> str:
        return f"CPU, {counted(self._threads, 'thread')}, {self._precision}"

    def load(self, segment: SegmentFile) -> OrtEngine:
        return self._session(segment.path, segment.read(), self._options(), {})

    def link(
        self,
        path: Path,
        nodes: Nodes,
        segments: Mapping[str, SegmentFile],
        outputs: tuple[str, ...],
        weights: Arrays,
    ) -> OrtEngine:
        options = self._options()
        # packed copies of the weights would be one more copy per session
        options.add_session_config_entry("session.disable_prepacking", "1")
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
        for name, value in values.items():
            options.add_initializer(name, value)
        return self._session(path, str(path), options, {**values, **linked_weights(options, path)})

    def _options(self) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.use_env_allocators", "1")
        if self._shared_pool:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self._threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def _session(self, path: Path, model: str | bytes, options: Any, keep: Mapping[str, Any]) -> OrtEngine:
        quiet: dict[str, Any] = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}  # else it prints, and tries again
        try:
            return OrtEngine(ort.InferenceSession(model, options, **quiet), keep)
        except Exception as error:
            what = (str(error) or repr(error)).splitlines()[0]
            raise BackendError(f"ONNX Runtime {ort.__version__} cannot load {path}: {what}") from None


def linked_weights(options: Any, path: Path) -> dict[str, Any]:
    """Give a session the weights of a graph's folder as a file in memory, if they are a link out of it.  Keep what is returned.

    ONNX Runtime refuses such a link, and looks at the file even for weights that it is given one by one.
    """
    file = path.parent / WEIGHTS
    if not leaves(path.parent, file) or not hasattr(options, "add_external_initializers_from_files_in_memory"):
        return {}  # releases without it open any file
    memory = np.memmap(file, mode="c")
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [memory.data], [memory.nbytes])
    return {WEIGHTS: memory}


def share_pool(threads: int | None) -> int:
    """The size of the process's pool, which can be set once; 0 where this ONNX Runtime does not let us.

    Raises BackendError if another size is asked for later: ONNX Runtime then has no other pool to offer.
    """
    global _global_threads
    with _once:
        if _global_threads is None:
            size = threads or cores()
            try:
                ort.set_global_thread_pool_sizes(size, 1)
            except Exception:
                size = 0
            _global_threads = size
    if _global_threads and threads not in (None, _global_threads):
        raise BackendError(
            f"onnxruntime: this process has a pool of {_global_threads} threads already: "
            f"use --threads {_global_threads}, leave it out, or load the other pipeline in another process"
        )
    return _global_threads


@functools.cache
def _share_arena() -> None:
    """One arena for all sessions: they run one after the other and can use the same scratch memory."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def open_backend(name: str, request: Request) -> Backend:
    if (request.device or "").startswith("cuda"):
        from .onnxruntime_cuda import OrtCudaBackend

        return OrtCudaBackend(request)
    if request.device not in (None, "cpu"):
        raise BackendError(f"onnxruntime: device {request.device!r} is not supported here: use cpu, or cuda for an NVIDIA GPU")
    if request.precision == "bf16":
        raise BackendError("onnxruntime: bf16 is not supported on a CPU: use fp32, --backend openvino, or --device cuda")
    return OrtBackend(request.threads, request.precision)
