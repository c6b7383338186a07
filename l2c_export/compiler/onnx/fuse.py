"""Attention and GELU as single operators, for ONNX Runtime on a GPU.

The operators are ONNX Runtime's own (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md), so what is
fused is a second form of a segment, beside the one that every library reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from ...ir.graph import Body, Primitive
from ...ir.primitives import precision
from .export import export
from .models import DOMAIN
from .operators import RULES, Rule, Written, sdpa
from .writer import Operand, Writer, count


def fused_bodies(bodies: Mapping[str, Body], dtype: str) -> dict[str, onnx.ModelProto]:
    """The second form of every operation that has one: of those that compute in half precision."""
    if dtype != "float16":
        return {}
    narrow = {op: body for op, body in bodies.items() if precision(body.primitives, body.values, dtype) == dtype}
    return {op: fused(body) for op, body in narrow.items() if any(map(is_one, body.primitives))}


def is_one(primitive: Primitive) -> bool:
    """Whether it is one operator; attention with a mask is none."""
    return primitive.op in FUSED and len(primitive.inputs) <= 3


def fused(body: Body) -> onnx.ModelProto:
    """The operation in plain operators, but for its attention and its GELU."""
    return export(body, {**RULES, **FUSED})


def attention(w: Writer, q: Operand, k: Operand, v: Operand, mask: Operand | None = None, *, heads: int) -> Written:
    if mask is not None:
        return sdpa(w, q, k, v, mask, heads=heads)
    scale = (count(q.shape[2:]) // heads) ** -0.5
    return w.node("MultiHeadAttention", q, k, v, domain=DOMAIN, num_heads=heads, scale=scale)


def fast_gelu(w: Writer, x: Operand) -> Operand:
    return w.node("FastGelu", x, domain=DOMAIN)


FUSED: Mapping[str, Rule] = {"sdpa": attention, "gelu_tanh": fast_gelu}
