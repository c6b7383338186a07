"""Attention and GELU as single operators, for ONNX Runtime on a GPU.

The operators are ONNX Runtime's own (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md), so what is
fused is a second form of a segment, beside the one that every library reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

import onnx
from onnx import helper

from ...ir.graph import Body, Graph, Node, Primitive
from ...ir.primitives import precision
from .export import export
from .models import DOMAIN, composed, typed

FUSED_OPS = frozenset({"sdpa", "gelu_tanh"})  # primitives that are one operator there


def fused_bodies(bodies: Mapping[str, Body], dtype: str) -> dict[str, onnx.ModelProto]:
    """The second form of every operation that has one: of those that compute in half precision."""
    if dtype != "float16":
        return {}
    narrow = {op: body for op, body in bodies.items() if precision(body.primitives, body.values, dtype) == dtype}
    return {op: fused(body) for op, body in narrow.items() if any(map(is_one, body.primitives))}


def is_one(primitive: Primitive) -> bool:
    """Whether it is one operator; attention with a mask is none."""
    return primitive.op in FUSED_OPS and len(primitive.inputs) <= 3


def fused(body: Body) -> onnx.ModelProto:
    """The operation in plain operators, but for its attention and its GELU."""
    nodes, models = [], {}
    for n, piece in enumerate(pieces(body)):
        name = f"{body.kind}.{n}"
        nodes.append(Node(name, name, piece.inputs, piece.outputs))
        (first, *_) = piece.primitives
        models[name] = operator(first, piece) if is_one(first) else export(canonical(piece))
    names = dict(zip(body.outputs, (f"o{i}" for i in range(len(body.outputs))), strict=True))
    renamed = tuple(
        Node(n.op, n.name, tuple(names.get(i, i) for i in n.inputs), tuple(names.get(o, o) for o in n.outputs)) for n in nodes
    )
    values = {names.get(name, name): value for name, value in body.values.items()}
    return composed(body.kind, Graph(renamed, values, tuple(names.values())), models)


def pieces(body: Body) -> Iterator[Body]:
    """A body cut before and after what is one operator."""
    numbered = enumerate(body.primitives)
    runs = [[p for _, p in run] for _, run in groupby(numbered, lambda pair: pair[0] if is_one(pair[1]) else -1)]
    for n, run in enumerate(runs):
        made = [o for p in run for o in p.outputs]
        inputs = dict.fromkeys(i for p in run for i in p.inputs if i not in made)
        later = {i for other in runs[n + 1 :] for p in other for i in p.inputs} | set(body.outputs)
        values = {name: body.values[name] for name in (*inputs, *made)}
        yield Body(body.kind, tuple(inputs), tuple(o for o in made if o in later), tuple(run), values)


def canonical(piece: Body) -> Body:
    """The same with its inputs called i0, i1, .., so that equal pieces are exported once."""
    names = {name: f"i{n}" for n, name in enumerate(piece.inputs)}
    names |= {name: f"v{n}" for n, name in enumerate(name for name in piece.values if name not in piece.inputs)}

    def renamed(those: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names[name] for name in those)

    primitives = tuple(Primitive(p.op, p.attributes, renamed(p.inputs), renamed(p.outputs)) for p in piece.primitives)
    values = {names[name]: value for name, value in piece.values.items()}
    return Body(piece.kind, renamed(piece.inputs), renamed(piece.outputs), primitives, values)


def operator(primitive: Primitive, piece: Body) -> onnx.ModelProto:
    """A primitive as one operator of ONNX Runtime's."""
    inputs = [f"i{n}" for n in range(len(piece.inputs))]
    if primitive.op == "sdpa":
        heads = dict(primitive.attributes)["heads"]
        assert isinstance(heads, int)
        width = piece.values[primitive.inputs[0]].shape[2]
        assert isinstance(width, int)
        attributes = {"num_heads": heads, "scale": (width // heads) ** -0.5}
        node = helper.make_node("MultiHeadAttention", inputs, ["o0"], domain=DOMAIN, **attributes)
    else:
        node = helper.make_node("FastGelu", inputs, ["o0"], domain=DOMAIN)
    given = [typed(i, piece.values[name]) for i, name in zip(inputs, piece.inputs, strict=True)]
    made = [typed("o0", piece.values[piece.outputs[0]])]
    return helper.make_model(helper.make_graph([node], primitive.op, given, made))
