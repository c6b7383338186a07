"""Our own calls under torch.compile, as one more backend: what PyTorch's compiler makes of what is hoisted, folded and skipped.

    from torch_backend import use_torch
    use_torch()
    l2c_export.load(engines, backend="torch", device="cuda")

By segments, or whole calls with link="static"; a generation on a GPU is one CUDA graph, as with the other backends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from l2c_export.backends import descriptors
from l2c_export.backends.contract import Arrays, Request, Run
from l2c_export.backends.cuda.device import Cuda
from l2c_export.backends.descriptor import CPU, GPU, Descriptor, Site
from l2c_export.backends.host import HostMemory, in_order
from l2c_export.backends.nvidia.graphs import inlined
from l2c_export.ir.graph import Primitive
from l2c_export.models import updates  # noqa: F401  the samplers' primitive, which is looked up by its name
from l2c_export.models.primitives import execute
from l2c_export.pytorch.stored import as_tensor

TORCH = Descriptor(
    name="torch",
    home=__name__,
    library="torch",
    extra="export",
    precisions=("fp32", "bf16", "fp16"),
    sites=(Site(GPU, "torch"), Site(CPU, "torch")),
    reads_onnx=False,
)


def use_torch() -> None:
    """Add it to the backends of this process."""
    if TORCH not in descriptors.BACKENDS:
        descriptors.BACKENDS += (TORCH,)


class TorchEngine:
    """Primitives as one function that fills its outputs, compiled for each set of shapes."""

    def __init__(self, backend: TorchBackend, primitives: Sequence[Primitive], weights: Mapping[str, torch.Tensor]) -> None:
        self._backend, self._primitives, self._weights = backend, primitives, weights
        self._compiled: dict[tuple[str, ...], Callable[..., None]] = {}

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        values = {name: tensor(array) for name, array in inputs.items()} | self._weights
        results = {name: tensor(array) for name, array in outputs.items()}
        function, arguments = self._function(tuple(values), tuple(results)), (*values.values(), *results.values())

        def run() -> None:
            with torch.no_grad(), self._backend.stream():
                function(*arguments)

        return run

    def _function(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Callable[..., None]:
        def fill(*tensors: torch.Tensor) -> None:
            values = execute(self._primitives, dict(zip(inputs, tensors, strict=False)))
            for name, array in zip(outputs, tensors[len(inputs) :], strict=True):
                array.copy_(values[name])

        if inputs + outputs not in self._compiled:
            self._compiled[inputs + outputs] = torch.compile(fill, dynamic=False, fullgraph=True)
        return self._compiled[inputs + outputs]


class TorchBackend:
    """The default mode of torch.compile on one device."""

    name = "torch"
    forks = False
    spins = False

    def __init__(self, request: Request) -> None:
        self.memory: Any = Cuda(request.device, "cuda") if request.device else HostMemory()
        torch._dynamo.config.cache_size_limit = 256
        on_gpu = bool(request.device)
        self._stream = torch.cuda.ExternalStream(self.memory.stream) if on_gpu else None
        self._linked: dict[str, torch.Tensor] = {}  # weights of whole calls, once for all of them

    def stream(self) -> Any:
        return torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext()

    def describe(self) -> str:
        return f"torch.compile of PyTorch {torch.__version__}"

    def load(self, segment: Any) -> TorchEngine:
        return TorchEngine(self, segment.primitives, {})

    def link(self, path: object, nodes: Any, segments: Any, outputs: object, weights: Arrays) -> TorchEngine:
        new = [name for name in weights if name not in self._linked]
        view = self.memory.weights(weights.__getitem__, new)
        self._linked |= {name: tensor(view(name)) for name in new}
        primitives = [p for node in nodes for p in inlined(node, segments[node.op])]
        return TorchEngine(self, primitives, {name: self._linked[name] for name in weights})

    def sequence(self, runs: Sequence[Run]) -> Run:
        work = in_order(runs)
        if not self._stream:
            return work
        work()  # compiles
        self.memory.finish()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            with self.stream():
                graph.replay()

        return replay


def tensor(array: Any) -> torch.Tensor:
    """An array of ours as PyTorch sees it, in place."""
    return as_tensor(array) if isinstance(array, np.ndarray) else torch.from_dlpack(array)


def open_backend(name: str, request: Request) -> TorchBackend:
    return TorchBackend(request)
