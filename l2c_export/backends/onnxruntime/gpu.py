"""ONNX Runtime on an NVIDIA GPU: the same segments over device memory, all on one stream that CUDA graphs are made of.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import BackendError, RunError
from ...support.extras import needs
from ...support.words import first_line
from ..contract import Arrays, Nodes, Request, Run, SegmentFile
from ..cuda.device import SMALLER, Cuda
from ..host import in_order
from .session import BFLOAT16, initialised, not_loaded, session_options, share_pool

ort = needs("onnxruntime", "onnxruntime-gpu")

PROVIDER = "CUDAExecutionProvider"
RUNS_TO_SETTLE = 8  # at most: another process may be taking memory
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


class OrtCudaEngine:
    """One inference session, bound to device memory in place."""

    def __init__(self, backend: OrtCudaBackend, session: Any, name: str, weights: Mapping[str, Any]) -> None:
        self.name, self.session = name, session
        self.repeats: bool | None = None  # whether a CUDA graph may hold its runs; None until that was tried
        self._backend, self._weights = backend, weights  # the session reads them in place
        ports = (*session.get_inputs(), *session.get_outputs())
        self._coded = {port.name: BFLOAT16 for port in ports if port.type == "tensor(bfloat16)"}

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        binding, device = self.session.io_binding(), self._backend.where
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                bind(name, *device, self._coded.get(name, array.dtype), array.shape, array.pointer)
        return OrtCudaRun(self, binding, self._backend.run_options, (dict(inputs), dict(outputs)))


class OrtCudaRun:
    """A bound session.  It returns when its work is on the stream."""

    def __init__(self, engine: OrtCudaEngine, binding: Any, options: Any, keep: object) -> None:
        self.engine, self._binding, self._options = engine, binding, options
        self._keep = keep  # the binding holds addresses only

    def __call__(self) -> None:
        try:
            self.engine.session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            what = first_line(error)
            remedy = f": {SMALLER}" if "allocate memory" in what else ""
            raise RunError(f"onnxruntime: {self.engine.name} did not run: {what}{remedy}") from None


class OrtCudaBackend:
    """Sessions on one GPU and one stream.  Each has memory for its own intermediate values."""

    name = "onnxruntime"
    forks = False
    spins = False
    provider = PROVIDER

    def __init__(self, request: Request) -> None:
        if self.provider not in ort.get_available_providers():
            raise BackendError(
                f"onnxruntime: the installed package ({ort.__version__}) is the one for CPUs: "
                "pip uninstall onnxruntime, then pip install 'l2c-export[onnxruntime-gpu]'"
            )
        self.memory = Cuda(request.device or "cuda", "onnxruntime-gpu")
        self.where = ("cuda", self.memory.index)
        self.run_options = ort.RunOptions()
        self.run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.run_options.add_run_config_entry("gpu_graph_id", "-1")  # no CUDA graph of its own
        self._weights: dict[str, Any] = {}  # of whole graphs, once for all of them
        self._start()

    def _start(self) -> None:
        """Load the provider's libraries now: a session would only warn and run on the CPU."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                ort.preload_dlls()  # those of pip's packages
            ort.OrtValue.ortvalue_from_shape_and_type([1], "float32", *self.where)
        except Exception as error:
            raise BackendError(
                f"onnxruntime: its CUDA provider does not start: {first_line(error)}: pip install 'onnxruntime-gpu[cuda,cudnn]'"
            ) from None

    def describe(self) -> str:
        return f"{self.memory.name} ({self.memory.architecture}), {ort.__version__}"

    def load(self, segment: SegmentFile) -> OrtCudaEngine:
        return self._session(segment.path, segment.read(fused=segment.fused is not None), self._options(), {})

    def link(
        self, path: Path, nodes: Nodes, segments: Mapping[str, SegmentFile], outputs: tuple[str, ...], weights: Arrays
    ) -> OrtCudaEngine:
        options, new = self._options(), [name for name in weights if name not in self._weights]
        device_weights = self.memory.weights(weights.__getitem__, new)
        self._weights |= {name: ort.OrtValue.from_dlpack(device_weights(name)) for name in new}
        values = {name: self._weights[name] for name in weights}
        return self._session(path, str(path), options, initialised(options, path, values))

    def _options(self) -> Any:
        # a process has one pool, which a pipeline on the CPU may have made; the host computes nothing but shapes
        options = session_options(bool(share_pool(None)), 1)
        options.enable_mem_pattern = False  # it would allocate in the second run, which may be one that is captured
        return options

    def _providers(self, graphs: bool) -> list[Any]:
        options = {
            "device_id": str(self.memory.index),
            "user_compute_stream": str(self.memory.stream),
            "use_tf32": "0",  # float32 means float32
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(graphs)),
        }
        return [(self.provider, options), "CPUExecutionProvider"]  # the latter for shapes

    def _session(self, path: Path, model: str | bytes, options: Any, keep: Mapping[str, Any]) -> OrtCudaEngine:
        """A session that is ready for graphs of its own, of which it makes none (`run_options`): it frees pinned memory in the
        run that took it.  Any other one leaves that to a call into the host, from where CUDA may not be called: ONNX Runtime
        then ends the process.  Sessions with work for the processor cannot be made so."""
        try:
            with small_workspace():
                try:
                    session = self._loaded(model, options, graphs=True)
                except Exception as error:
                    if "graph capture" not in str(error):
                        raise
                    session = self._loaded(model, options, graphs=False)
        except Exception as error:
            raise not_loaded(path, error) from None
        return OrtCudaEngine(self, session, path.name, keep)

    def _loaded(self, model: str | bytes, options: Any, graphs: bool) -> Any:
        return ort.InferenceSession(model, options, providers=self._providers(graphs), enable_fallback=0)

    def sequence(self, runs: Sequence[Run]) -> Run:
        """CUDA graphs of the runs that can be captured, the others by hand between them."""
        self._settle(in_order(runs))
        parts = [
            self.memory.capture(in_order(part)) if captured else in_order(part)
            for captured, part in ((key, list(group)) for key, group in itertools.groupby(runs, self._repeats))
        ]
        return parts[0] if len(parts) == 1 else in_order(parts)

    def _settle(self, work: Run) -> None:
        """Run until the sessions take no more memory: while a graph is captured there is none to be had.

        What they freed is divided in another way by the second run, which may need more.
        """
        for _ in range(RUNS_TO_SETTLE):
            free = self.memory.free()
            work()
            self.memory.finish()
            if self.memory.free() >= free:
                return

    def _repeats(self, run: Run) -> bool:
        assert isinstance(run, OrtCudaRun)
        engine = run.engine
        if engine.repeats is None:
            try:
                # a session that copies from the host fails, and frees pinned memory on its way out: where that is not
                # permitted, ONNX Runtime ends the process
                self.memory.capture(run, relaxed=True)
                self.memory.capture(run)
            except (BackendError, RunError):  # it waits for the GPU, or calls back into the host
                engine.repeats = False
            else:
                engine.repeats = True
        return engine.repeats


@contextlib.contextmanager
def small_workspace() -> Iterator[None]:
    """Have cuBLAS take 128 KB of scratch for a session instead of 64 MB, unless the user has said how much.

    Thirteen sessions of DiT-XL/2 take 1.6 GB so, not 2.4, and are as fast (scripts/results/tensorrt_h200.json).
    https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility
    """
    is_set = WORKSPACE in os.environ
    if not is_set:
        os.environ[WORKSPACE] = ":16:8"
    try:
        yield
    finally:
        if not is_set:
            del os.environ[WORKSPACE]
