"""Whether the primitives of a manifest's segments are ones, and compute what the graphs that call them say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from ..ir.graph import Node, Primitive, Value
from ..ir.primitives import flops, infer, precision
from ..ir.signature import Misfit
from .records import DenoiserRecord, SegmentRecord, SizeRecord

Type = tuple[tuple[int | str, ...], str]  # shape, dtype
MOST = 10_000  # primitives of a segment
KIND = re.compile(r"[A-Za-z0-9_-]{1,100}")


def problems(denoiser: DenoiserRecord, size: SizeRecord) -> Iterator[str]:
    """What is wrong with the segments as the graphs of a size call them, each way of calling one once."""
    for name, segment in denoiser.segments.items():
        yield from (f"segment {name}: {wrong}" for wrong in _alone(segment, denoiser.weight_dtype))
    seen: set[tuple[str, tuple[Type | None, ...]]] = set()
    nodes = [node for graph in size.graphs.values() for node in graph.nodes]
    names = {name for node in nodes for name in (*node.inputs, *node.outputs)}
    known = {name: _type(denoiser, size, name) for name in names}
    for node in nodes:
        types = tuple(known[name] for name in (*node.inputs, *node.outputs))
        if (node.op, types) not in seen and node.op in denoiser.segments:
            seen.add((node.op, types))
            wrong = _called(denoiser.segments[node.op], node, types, denoiser.weight_dtype)
            yield from (f"segment {node.op}: {wrong}" for wrong in ([wrong] if wrong else []))


def _alone(segment: SegmentRecord, dtype: str) -> Iterator[str]:
    if not KIND.fullmatch(segment.kind):
        yield f"a kind of {len(segment.kind)} letters is none"
    if segment.precision not in ("float32", dtype):
        yield f"it is computed in {segment.precision!r}, and the weights are {dtype}"
    if segment.primitives is not msgspec.UNSET and not 0 < len(segment.primitives) <= MOST:
        yield f"it has {len(segment.primitives)} primitives"
    names = (*segment.inputs, *segment.outputs)
    if len(set(names)) < len(names):
        yield "two of its inputs and outputs have one name"


def _called(segment: SegmentRecord, node: Node, types: Sequence[Type | None], dtype: str) -> str | None:
    """What is wrong with one call: types do not fit, or what a segment says of itself is not what its primitives say."""
    names = (*segment.inputs, *segment.outputs)
    if segment.primitives is msgspec.UNSET:
        return None
    if None in types or len(names) != len(types) or len(node.inputs) != len(segment.inputs):
        return f"{node.name} does not fit it"
    ports = {name: Value(*kind) for name, kind in zip(names, types, strict=True) if kind}
    return _computed(segment, segment.primitives, ports, dtype)


def _computed(segment: SegmentRecord, primitives: tuple[Primitive, ...], ports: dict[str, Value], dtype: str) -> str | None:
    try:
        values = infer(primitives, {name: ports[name] for name in segment.inputs})
    except Misfit as error:
        return str(error)
    for name in segment.outputs:
        if name not in values or (values[name].shape, values[name].dtype) != (ports[name].shape, ports[name].dtype):
            return f"its primitives do not make {name!r} as the graphs read it"
    if segment.precision != precision(primitives, values, dtype):
        return f"its primitives are not computed in {segment.precision}"
    return None if segment.flops == flops(primitives, values) else f"its primitives are not {segment.flops} FLOPs"


def _type(denoiser: DenoiserRecord, size: SizeRecord, name: str) -> Type | None:
    """The type of a value or weight as a graph names it."""
    origin = size.origins.get(name)
    if origin is None or origin.kind != "weight":
        value = size.type_of(name)
        return (value.shape, value.dtype) if value else None
    tensor = denoiser.tensors.get(origin.of)
    if tensor is None or not tensor.shape:
        return None
    return ((len(range(tensor.shape[0])[origin.first : origin.last]), *tensor.shape[1:]), tensor.dtype)
