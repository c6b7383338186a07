"""ONNX Runtime on the CPU: the embedded default."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import BackendError, RunError
from ...ir import dtypes
from ...support.machine import cores
from ...support.words import counted
from ..contract import Arrays, Backend, Nodes, Request, Run, SegmentFile
from ..host import OnHost
from .session import BFLOAT16, _once, initialised, not_loaded, ort, reason, session_options, share_pool


class OrtEngine:
    """One inference session; arrays are bound in place, nothing is copied."""

    def __init__(self, session: Any, weights: Mapping[str, Any]) -> None:
        self._session = session
        self._weights = weights  # the session reads them in place

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        binding = self._session.io_binding()
        try:
            for name, array in inputs.items():
                code = BFLOAT16 if array.dtype == dtypes.BFLOAT16 else array.dtype
                binding.bind_input(name, "cpu", 0, code, array.shape, array.ctypes.data)
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
        return self._session(path, str(path), options, initialised(options, path, values))

    def _options(self) -> Any:
        options = session_options(bool(self._shared_pool), self._threads)
        options.add_session_config_entry("session.use_env_allocators", "1")
        if not self._shared_pool:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def _session(self, path: Path, model: str | bytes, options: Any, keep: Mapping[str, Any]) -> OrtEngine:
        quiet: dict[str, Any] = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}  # else it prints, and tries again
        try:
            return OrtEngine(ort.InferenceSession(model, options, **quiet), keep)
        except Exception as error:
            raise not_loaded(path, error) from None


@functools.cache
def _share_arena() -> None:
    """One arena for all sessions: they run one after the other and can use the same scratch memory."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def open_backend(name: str, request: Request) -> Backend:
    if (request.device or "").startswith("cuda"):
        from .gpu import OrtCudaBackend

        return OrtCudaBackend(request)
    if request.device not in (None, "cpu"):
        raise BackendError(f"onnxruntime: device {request.device!r} is not supported here: use cpu, or cuda for an NVIDIA GPU")
    if request.precision == "bf16":
        raise BackendError("onnxruntime: bf16 is not supported on a CPU: use fp32, backend='openvino', or device='cuda'")
    return OrtBackend(request.threads, request.precision)
