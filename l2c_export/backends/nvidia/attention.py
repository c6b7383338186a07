"""Attention by cuDNN's fused kernel, in half precision; what it does not take goes to a kernel of our own.

https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Attention.html
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from ...errors import BackendError
from ...support.extras import needs
from ...support.words import first_line
from ..cuda.device import Allocation, Cuda
from .steps import Attention
from .views import ArrayView

KINDS = {"float16": "HALF", "bfloat16": "BFLOAT16"}
Q, K, V, MASK, OUT = range(1, 6)  # how a graph calls its tensors


class AttentionShape(NamedTuple):
    """What a graph of cuDNN depends on: shapes and strides (R, H, T, size) of what it reads and makes."""

    q: tuple[tuple[int, ...], tuple[int, ...]]
    k: tuple[tuple[int, ...], tuple[int, ...]]
    v: tuple[tuple[int, ...], tuple[int, ...]]
    mask: tuple[tuple[int, ...], tuple[int, ...]] | None
    out: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: str


class FusedAttention:
    """cuDNN on one stream."""

    def __init__(self, memory: Cuda) -> None:
        self._cudnn: Any = needs("cudnn", "cuda")
        self._memory = memory
        try:
            self._handle = self._cudnn.create_handle()
            weakref.finalize(self, self._cudnn.destroy_handle, self._handle)
            self._cudnn.set_stream(handle=self._handle, stream=memory.stream)
        except Exception as error:
            raise BackendError(f"cuda: cuDNN does not start: {first_line(error)}: pip install 'l2c-export[cuda]'") from None
        self._graphs: dict[AttentionShape, tuple[Any, Allocation] | None] = {}
        self.refused: dict[AttentionShape, str] = {}  # and why

    @property
    def version(self) -> str:
        number = int(self._cudnn.backend_version())
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def bind(self, step: Attention, pointer: Callable[[ArrayView], int]) -> Callable[[], None] | None:
        """A function that enqueues an attention of these pointers; None where cuDNN has none."""
        if step.q.dtype not in KINDS:
            return None
        q, k, v, out = (_heads(view, step.heads) for view in (step.q, step.k, step.v, step.out))
        shape = AttentionShape(q, k, v, (step.mask.shape, step.mask.strides) if step.mask else None, out, step.q.dtype)
        if shape not in self._graphs:
            self._graphs[shape] = self._graph(shape)
        pair = self._graphs[shape]
        if pair is None:
            return None
        graph, workspace = pair
        views = {Q: step.q, K: step.k, V: step.v, OUT: step.out, **({MASK: step.mask} if step.mask else {})}
        addresses = {name: pointer(view) for name, view in views.items()}

        def run() -> None:
            graph.execute(addresses, workspace.pointer, handle=self._handle)

        return run

    def _graph(self, shape: AttentionShape) -> tuple[Any, Allocation] | None:
        cudnn = self._cudnn
        kind = getattr(cudnn.data_type, KINDS[shape.dtype])
        try:
            graph = cudnn.pygraph(
                io_data_type=kind, intermediate_data_type=cudnn.data_type.FLOAT, compute_data_type=cudnn.data_type.FLOAT,
                handle=self._handle,
            )  # fmt: skip

            def tensor(name: int, described: tuple[tuple[int, ...], tuple[int, ...]]) -> Any:
                return graph.tensor(dim=list(described[0]), stride=list(described[1]), data_type=kind, uid=name)

            mask = {"bias": tensor(MASK, shape.mask)} if shape.mask else {}
            output, _ = graph.sdpa(
                q=tensor(Q, shape.q), k=tensor(K, shape.k), v=tensor(V, shape.v), attn_scale=shape.q[0][3] ** -0.5,
                generate_stats=False, use_causal_mask=False, **mask,
            )  # fmt: skip
            output.set_output(True).set_dim(list(shape.out[0])).set_stride(list(shape.out[1])).set_data_type(kind).set_uid(OUT)
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.check_support()
            graph.build_plans()
            return graph, self._memory.allocate(graph.get_workspace_size())
        except Exception as error:
            self.refused[shape] = first_line(error)
            return None


def _heads(view: ArrayView, heads: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """AttentionShape and strides of (R, T, D) as (R, heads, T, size)."""
    rows, tokens, width = view.shape
    size = width // heads
    return (rows, heads, tokens, size), (view.strides[0], size, view.strides[1], 1)
