"""What segments are written in: small graphs of primitives, their types and what they cost.

`ir/signatures.py` has the table of them, `ir/update_signatures.py` those of it that end a call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from . import bank_signatures, update_signatures  # noqa: F401  (more of the table)
from .graph import Primitive, Value
from .signature import Misfit
from .signatures import TABLE

# What may run in half precision, and is counted in FLOPs.
PRODUCTS = frozenset({"linear", "linear_fp8", "sdpa", "linear_attention", "conv2d", "depthwise"})
SUMS = frozenset({"add", "mul"})  # residual arithmetic
# Angles go up to 999, and the sampler amplifies an error up to 150 times: half precision is too coarse for these.
WIDE = frozenset({"sinusoid", "update", "data", "multistep"})
SIZES = {"R": 2, "B": 1}  # rows and images for counting: two rows an image, as with guidance


def apply(primitive: Primitive, values: Mapping[str, Value]) -> tuple[Value, ...]:
    """The types of what a primitive makes.  Raises Misfit."""
    signature = TABLE.get(primitive.op)
    if signature is None:
        raise Misfit(f"there is no primitive {primitive.op!r}")
    missing = [name for name in primitive.inputs if name not in values]
    if missing:
        raise Misfit(f"{primitive.op} reads {missing[0]!r}, which nothing makes")
    results = signature.outputs([values[name] for name in primitive.inputs], dict(primitive.attributes))
    if len(results) != len(primitive.outputs):
        raise Misfit(f"{primitive.op} makes {len(results)} values, not {len(primitive.outputs)}")
    return results


def infer(primitives: Iterable[Primitive], inputs: Mapping[str, Value]) -> dict[str, Value]:
    """The types of all values of a graph, given those of its inputs.  Raises Misfit for one that is none."""
    values = dict(inputs)
    for primitive in primitives:
        for name, value in zip(primitive.outputs, apply(primitive, values), strict=True):
            if name in values:
                raise Misfit(f"{name!r} is made twice")
            values[name] = value
    return values


def flops(primitives: Iterable[Primitive], values: Mapping[str, Value]) -> int:
    """The products, two FLOPs each, per row of the model's batch."""
    return sum(_flops(p, [values[i] for i in p.inputs], [values[o] for o in p.outputs]) for p in primitives) // SIZES["R"]


def _flops(p: Primitive, inputs: Sequence[Value], outputs: Sequence[Value]) -> int:
    if p.op == "sdpa":
        q, k, *_ = inputs
        return 4 * _count(q) * _count(Value(k.shape[1:2]))
    if p.op == "linear_attention":
        q, *_ = inputs
        heads = dict(p.attributes)["heads"]
        assert isinstance(heads, int)
        return 4 * _count(q) * (_count(Value(q.shape[2:])) // heads + 1)  # with the sum of the scores
    count = sum(map(_count, outputs))
    return 2 * count * _count(Value(inputs[1].shape[1:])) if p.op in PRODUCTS else 0


def _count(value: Value) -> int:
    return math.prod(SIZES[n] if isinstance(n, str) else n for n in value.shape)


def precision(primitives: Iterable[Primitive], values: Mapping[str, Value], dtype: str) -> str:
    """What a segment is to be computed in: the weights' `dtype`, or float32, for an island.

    That is one without products in less, as the last layer, or one that holds what half precision is too coarse for.
    Residual arithmetic by itself is none.
    """
    primitives = tuple(primitives)
    ops = {p.op for p in primitives}
    if ops <= SUMS:
        return dtype
    narrow = any(p.op in PRODUCTS and values[p.outputs[0]].dtype != "float32" for p in primitives)
    return dtype if narrow and not ops & WIDE else "float32"
