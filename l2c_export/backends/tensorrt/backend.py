"""TensorRT and TensorRT-RTX on a GPU: engines that `l2c build` made, one CUDA graph for a whole generation."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...artefact.integrity import verified
from ...artefact.records import Build
from ...errors import ArtefactError, BackendError
from ...support.cache import cache_folder, keep, kept
from ..contract import Arrays, Nodes, Request, Run, SegmentFile
from ..cuda.device import Allocation, Cuda
from ..descriptors import named
from ..host import in_order


def logger(trt: Any) -> Any:
    """Errors reach the user as exceptions; the library's own words are shown where it fails."""

    class Quiet(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = message

    return Quiet()


class TrtEngine:
    """A deserialised engine.  A context belongs to the shapes of its inputs, so that nothing is set up again in the loop."""

    def __init__(self, backend: TensorRtBackend, engine: Any, name: str, config: Any) -> None:
        self._backend, self._engine, self._name, self._config = backend, engine, name, config
        self._contexts: dict[tuple[tuple[int, ...], ...], tuple[Any, Allocation]] = {}

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        context, scratch = self._context(inputs)
        addresses = [(name, array.pointer) for name, array in (*inputs.items(), *outputs.items())]
        keep, stream = (dict(inputs), dict(outputs), scratch), self._backend.memory.stream

        def run() -> None:
            _ = keep  # the context holds addresses only
            for name, address in addresses:
                context.set_tensor_address(name, address)
            if not context.execute_async_v3(stream):
                raise BackendError(f"{self._backend.name}: {self._name} did not run: {self._backend.log.last}")

        return run

    def _context(self, inputs: Arrays) -> tuple[Any, Allocation]:
        shapes = tuple(array.shape for array in inputs.values())
        if shapes not in self._contexts:
            context, scratch = self._backend.new_context(self._engine, self._config), self._backend.scratch()
            self._backend.give_memory(context, scratch)
            context.set_optimization_profile_async(0, self._backend.memory.stream)  # only the first context has it by itself
            for name, shape in zip(inputs, shapes, strict=True):
                if not context.set_input_shape(name, shape):
                    raise BackendError(
                        f"{self._backend.name}: {self._name} was not built for {name} of shape {list(shape)}: "
                        "build it again with another batch=.."
                    )
            self._contexts[shapes] = context, scratch
        return self._contexts[shapes]


class TensorRtBackend:
    """One GPU, one stream, one scratch memory for all engines: they run one after the other."""

    forks = False
    spins = False

    def __init__(self, name: str, request: Request) -> None:
        self.name, self._trt = name, named(name).imported()
        self.memory = Cuda(request.device or "cuda", name)
        self.log = logger(self._trt)
        self._folder, self._files, self._build = request.folder, request.files, self._choose(request)
        self._runtime = self._trt.Runtime(self.log)
        self._runtime.engine_host_code_allowed = bool(self._build and self._build.version_compatible)
        self._largest, self._scratch = 0, self.memory.allocate(0)

    def _choose(self, request: Request) -> Build | None:
        """The build of the artefact that this GPU and this library can run; None when there is no artefact yet."""
        if request.folder is None:
            return None
        architecture, version = self.memory.architecture, self._trt.__version__
        builds = [build for build in request.builds if build.backend == self.name]
        for build in reversed(builds):  # the newest
            if build.runs_on(architecture, version):
                return build
        present = "; ".join(f"{b.version} for {', '.join(b.targets)}" for b in builds) or "no such engines"
        remedy = self._remedy(request.folder)
        raise BackendError(f"{self.name}: the artefact has {present}, needed are {version} for {architecture}: {remedy}")

    def _remedy(self, folder: Path) -> str:
        variable = f" with CUDA_VISIBLE_DEVICES={self.memory.index}" if self.memory.index and self.name == "tensorrt" else ""
        on_this_machine = self.name == "tensorrt"
        target = "" if on_this_machine else f", targets={self.memory.architecture!r}"
        call = f"l2c_export.build({str(folder)!r}, backend={self.name!r}{target})"
        return f"run {call}{' on this machine' if on_this_machine else ''}{variable}"

    def describe(self) -> str:
        return f"{self.memory.name} ({self.memory.architecture}), {self._trt.__version__}"

    def load(self, segment: SegmentFile) -> TrtEngine:
        return self._load(segment.path)

    def link(
        self, path: Path, nodes: Nodes, segments: Mapping[str, SegmentFile], outputs: tuple[str, ...], weights: Arrays
    ) -> TrtEngine:
        """The engine of a whole graph; its weights were built into it."""
        return self._load(path)

    def _load(self, model: Path) -> TrtEngine:
        assert self._folder is not None
        assert self._build is not None
        name = self._build.engines[model.stem]
        plan, info = self._folder / name, self._files.get(name)
        data = verified(plan, info) if info else plan.read_bytes()
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            problem = f"{plan} cannot be read by {self.name} {self._trt.__version__}: {self.log.last}"
            raise ArtefactError(f"{problem}: {self._remedy(self._folder)}")
        self._largest = max(self._largest, self._size(engine))
        if self.name == "tensorrt":
            return TrtEngine(self, engine, model.name, None)
        place = f"{self.memory.architecture}-{self._trt.__version__}"
        kernels = cache_folder("kernels") / place / f"{hashlib.sha256(data).hexdigest()[:24]}.cache"
        config = self._rtx_config(engine)
        result = TrtEngine(self, engine, model.name, config)
        keep_kernels(config, kernels, result)
        return result

    # TensorRT 8 and later name the same things differently.

    def _size(self, engine: Any) -> int:
        new = hasattr(engine, "device_memory_size_v2")
        return int(engine.device_memory_size_v2 if new else engine.device_memory_size)

    def new_context(self, engine: Any, config: Any) -> Any:
        """A context without memory of its own."""
        strategy = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        if config is not None:
            return engine.create_execution_context(config)
        if strategy is None:
            return engine.create_execution_context_without_device_memory()
        return engine.create_execution_context(strategy.USER_MANAGED)

    def _rtx_config(self, engine: Any) -> Any:
        """Kernels are compiled when a context first runs, not in the background of the first images."""
        trt, config = self._trt, engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the whole loop is one graph already
        return config

    def give_memory(self, context: Any, memory: Allocation) -> None:
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(memory.pointer, self._largest)
        else:
            context.device_memory = memory.pointer

    def scratch(self) -> Allocation:
        """Memory for the activations inside an engine, as large as the largest loaded engine asks for."""
        if self._largest > self._scratch.size:
            self.memory.reserve(self._largest, "the engines' activations")
            self._scratch = self.memory.allocate(self._largest)
        return self._scratch

    def sequence(self, runs: Sequence[Run]) -> Run:
        in_order(runs)()  # the first run of a context allocates, which cannot be captured
        self.memory.finish()
        return self.memory.capture(in_order(runs))


def keep_kernels(config: Any, path: Path, owner: object) -> None:
    """Give an engine the kernels that were compiled for this GPU before, and write them down when its owner is dropped."""
    cache, stored = config.create_runtime_cache(), kept(path)
    if stored:
        cache.deserialize(stored)  # the library itself refuses what was made for another GPU, driver or version
    config.set_runtime_cache(cache)

    def write() -> None:
        present = bytes(cache.serialize())
        if present != stored:
            keep(path, present)

    weakref.finalize(owner, write)


def open_backend(name: str, request: Request) -> TensorRtBackend:
    return TensorRtBackend(name, request)
