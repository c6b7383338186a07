"""NVIDIA's libraries called directly: cuBLASLt for products, cuDNN for attention, generated kernels for all between them.

Nothing is built beforehand: a segment's plan follows from its primitives and the shapes that it is bound with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import BackendError
from ...ir.graph import Primitive, Value
from ...ir.precisions import FP8
from ...ir.signature import Misfit
from ...support.words import first_line
from ..contract import Arrays, Nodes, Request, Run, SegmentFile
from ..cuda.device import OLDEST_FP8, Allocation, Cuda
from ..host import in_order
from .attention import FusedAttention
from .graphs import inlined
from .launches import Launcher
from .plan import plan, uncovered
from .products import Products
from .steps import Attention, Product, Step, StepPlan
from .views import ArrayView

Shapes = tuple[tuple[tuple[int, ...], str], ...]

OLDEST = 80  # Ampere: the first with bfloat16
IN_BF16 = "compile with precision='bf16' for it"


class CudaEngine:
    """A segment, or a whole graph with its weights: its plans by the shapes of its inputs."""

    def __init__(
        self, backend: CudaBackend, name: str, primitives: Sequence[Primitive], outputs: Sequence[str], weights: Arrays
    ) -> None:
        if missing := uncovered(primitives):
            raise BackendError(f"cuda: {name} has primitives that there is nothing for: {', '.join(missing)}")
        self._backend, self.name, self._weights = backend, name, weights
        self._primitives, self._outputs = primitives, outputs
        self._plans: dict[Shapes, tuple[StepPlan, dict[str, Any]]] = {}

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        arrays = {**self._weights, **inputs}
        plan, tables = self._plan(arrays)
        return self._backend.bind(plan, {**arrays, **outputs, **tables})

    def _plan(self, inputs: Arrays) -> tuple[StepPlan, dict[str, Any]]:
        shapes = tuple((tuple(array.shape), str(array.dtype)) for array in inputs.values())
        if shapes not in self._plans:
            types = {name: Value(*shape) for name, shape in zip(inputs, shapes, strict=True)}
            try:
                own_plan = plan(self._primitives, types, self._outputs)
            except Misfit as error:
                raise BackendError(f"cuda: {self.name}: {error}") from None
            self._plans[shapes] = own_plan, {name: self._backend.filled(table) for name, table in own_plan.tables.items()}
        return self._plans[shapes]


class CudaBackend:
    """One GPU, one stream, and one scratch memory for all segments: they run one after the other."""

    name = "cuda"
    forks = False
    spins = False

    def __init__(self, request: Request) -> None:
        self.memory = Cuda(request.device or "cuda", "cuda")
        if int(self.memory.architecture.removeprefix("sm")) < OLDEST:
            raise BackendError(
                f"cuda: {self.memory.name} is {self.memory.architecture}, older than sm{OLDEST}: use another backend"
            )
        if request.precision == FP8 and int(self.memory.architecture.removeprefix("sm")) < OLDEST_FP8:
            raise BackendError(f"cuda: {self.memory.name} is {self.memory.architecture}: {FP8} needs sm{OLDEST_FP8}: {IN_BF16}")
        self.products = Products(self.memory)
        self.attention = FusedAttention(self.memory)
        self._launcher = Launcher(self.memory)
        self._scratch = self.memory.allocate(0)
        self._wanted = 0  # bytes of scratch, of the segment that takes most
        self._linked: dict[str, Any] = {}  # weights of whole graphs, once for all of them

    def describe(self) -> str:
        return (
            f"{self.memory.name} ({self.memory.architecture}), cuBLASLt {self.products.version}, cuDNN {self.attention.version}"
        )

    def load(self, segment: SegmentFile) -> CudaEngine:
        if not segment.primitives:  # a decoder, a text encoder, or of format 1
            raise BackendError(f"cuda: {segment.path.name} is ONNX alone: use backend='onnxruntime', device='cuda'")
        return CudaEngine(self, segment.path.name, segment.primitives, segment.outputs, {})

    def link(
        self, path: Path, nodes: Nodes, segments: Mapping[str, SegmentFile], outputs: tuple[str, ...], weights: Arrays
    ) -> CudaEngine:
        """All segments of a graph as one: kernels take from one of them to the next, and nothing is built."""
        new = [name for name in weights if name not in self._linked]
        view = self.memory.weights(weights.__getitem__, new)
        self._linked |= {name: view(name) for name in new}
        primitives = [p for node in nodes for p in inlined(node, segments[node.op])]
        return CudaEngine(self, path.name, primitives, outputs, {name: self._linked[name] for name in weights})

    def filled(self, values: np.ndarray) -> Any:
        array = self.memory.empty(values.shape, str(values.dtype))
        self.memory.put(array, values)
        return array

    def bind(self, plan: StepPlan, arrays: Mapping[str, Any]) -> Run:
        """The steps of a plan over these arrays.

        Where temporary values lie is decided when a run first takes place: the segments of a loop are bound before, and by then
        the memory for all of them has its size.
        """
        self._wanted = max(self._wanted, plan.scratch)
        return CudaRun(lambda: self._steps(plan, arrays))

    def _steps(self, plan: StepPlan, arrays: Mapping[str, Any]) -> Steps:
        scratch = self._room()

        def address(buffer: str) -> int:
            if not buffer:
                return 0
            return arrays[buffer].pointer if buffer in arrays else scratch.pointer + plan.places[buffer]

        def pointer(view: ArrayView) -> int:
            return address(view.buffer) + view.offset * np.dtype(view.dtype).itemsize

        runs: list[Run] = []
        for step in self.supported(plan):
            if isinstance(step, Product):
                runs.append(self.products.bind(step, pointer))
            elif isinstance(step, Attention):
                runs.append(self.attention.bind(step, pointer) or self._own(step, address))
            else:
                runs.append(self._launcher.bind(step, address))
        return Steps(runs, (arrays, scratch))

    def supported(self, plan: StepPlan) -> list[Step]:
        """The steps, with others for the products that the library does not have."""
        several = (step.otherwise if isinstance(step, Product) and step.otherwise and not self.products.has(step) else (step,)
                   for step in plan.steps)  # fmt: skip
        return [step for group in several for step in group]

    def _own(self, step: Attention, address: Callable[[str], int]) -> Run:
        if step.own is None:
            raise BackendError(f"cuda: there is no attention for {step.q.dtype} heads of {step.q.shape[2] // step.heads}")
        return self._launcher.bind(step.own, address)

    def _room(self) -> Allocation:
        """Memory for temporary values of whatever is bound; a run keeps what it began with."""
        if self._wanted > self._scratch.size:
            self.memory.reserve(self._wanted, "temporary values")
            self._scratch = self.memory.allocate(self._wanted)
        return self._scratch

    def sequence(self, runs: Sequence[Run]) -> Run:
        in_order(runs)()  # what a library sets up in its first run cannot be captured
        self.memory.finish()
        return self.memory.capture(in_order(runs))


class Steps(NamedTuple):
    """What a segment enqueues, and the memory that it is about: the runs hold addresses only."""

    runs: Sequence[Run]
    keep: object


class CudaRun:
    """A segment's steps, enqueued one after the other; `prepare` makes them before the first time."""

    def __init__(self, prepare: Callable[[], Steps]) -> None:
        self._prepare = functools.cache(prepare)

    def __call__(self) -> None:
        steps = self._prepare()
        try:
            for step in steps.runs:
                step()
        except Exception as error:
            raise BackendError(f"cuda: a step did not run: {first_line(error)}") from None


def open_backend(name: str, request: Request) -> CudaBackend:
    return CudaBackend(request)
