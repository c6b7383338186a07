"""Products in e4m3: what the sublayers multiply large matrices with, and what they multiply.

Embeddings, conditioning and the last layer stay as they are, and so does all that is no product: norms, attention, sums.
Numbers of e4m3 have a scale for a whole array: of a weight it follows from the weight, of what is multiplied with it from some
trajectories (`pytorch/calibrate.py`).  Both are tensors of the artefact, which the graphs read like weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ...ir.dtypes import E4M3
from ...ir.graph import WEIGHT, Body, Graph, Node, Primitive, Value
from ...ir.signature import sizes
from ...ir.signatures import fp8_fits
from ...weights.e4m3 import input_scale, weight_scale
from ...weights.recipe import TensorRecord

GATED = "Mul"  # the operation that multiplies a sublayer's value with its gate
SCALE = Value((2,), "float32")  # itself, and 1 over it


class Narrowed(NamedTuple):
    """A body whose products are in e4m3, and which of its old inputs its new ones are the scales of."""

    body: Body
    weights: tuple[int, ...]  # the inputs that are in e4m3 now
    scales: tuple[tuple[bool, int], ...]  # of every new input: whether it is an activation's, and the input of its weight


def with_fp8(call: Graph, kept: Collection[str]) -> Graph:
    """The call with the products of its sublayers in e4m3, but for the sublayers that are `kept` as they are."""
    sublayers = {names[0] for names in call.sublayers} - set(kept)
    readers: dict[str, list[Node]] = {}
    for node in call.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    shared = {name for name, several in readers.items() if len(several) > 1 and call.kind(name) == WEIGHT}
    nodes, values, bodies = [], dict(call.values), dict[str, Body]()
    for node in call.nodes:
        narrowed = None
        if node.outputs[0] in sublayers:
            gated = [all(_is_gated(reader, name, call) for reader in readers.get(name, ())) for name in node.outputs]
            narrowed = _narrowed(call.bodies[node.op], node, shared, gated)
        if narrowed is None:
            nodes.append(node)
            bodies |= {node.op: call.bodies[node.op]} if node.op in call.bodies else {}
            continue
        names = (f"{node.op}_fp8_{n}" if n else f"{node.op}_fp8" for n in range(len(bodies) + 1))
        op = next(name for name in names if bodies.get(name, narrowed.body) == narrowed.body)
        bodies[op] = narrowed.body
        for n in narrowed.weights:
            values[node.inputs[n]] = Value(values[node.inputs[n]].shape, E4M3, WEIGHT)
        scales = [(input_scale if activation else weight_scale)(node.inputs[n]) for activation, n in narrowed.scales]
        values |= dict.fromkeys(scales, msgspec.structs.replace(SCALE, kind=WEIGHT))
        nodes.append(Node(op, node.name, (*node.inputs, *scales), node.outputs))
        for name, inner in zip(node.outputs, narrowed.body.outputs, strict=True):
            values[name] = msgspec.structs.replace(values[name], dtype=narrowed.body.values[inner].dtype)
    return msgspec.structs.replace(call, nodes=tuple(nodes), values=values, bodies=bodies)


def _is_gated(reader: Node, name: str, call: Graph) -> bool:
    """Whether a value is multiplied with a gate whose type the product has, whatever the value's is."""
    dtype = call.values[reader.outputs[0]].dtype
    return reader.op == GATED and any(call.values[i].dtype == dtype for i in reader.inputs if i != name)


def _narrowed(body: Body, node: Node, shared: Collection[str], gated: Sequence[bool]) -> Narrowed | None:
    """The same operation with its products in e4m3; None for one that has none.

    What gates alone read (`gated`, of every output) stays bfloat16 as the product makes it: float32 would be the same number.
    """
    place = {name: n for n, name in enumerate(body.inputs)}
    chosen = {p.inputs[1]: p for p in body.primitives if _is_product(p, body, place, node, shared)}
    if not chosen:
        return None
    inputs, scales, values = list(body.inputs), list[tuple[bool, int]](), dict(body.values)
    quantised: dict[str, tuple[str, str]] = {}  # of every activation: its e4m3 and its scale, one for all its products

    def scale(activation: bool, weight: str) -> str:
        inputs.append(f"i{len(inputs)}")
        scales.append((activation, place[weight]))
        values[inputs[-1]] = SCALE
        return inputs[-1]

    def rewritten() -> Iterator[Primitive]:
        for p in body.primitives:
            x, weight, *bias = p.inputs if p.inputs[1:2] and chosen.get(p.inputs[1]) is p else ("", "")
            if not weight:
                yield p
                continue
            if x not in quantised:
                quantised[x] = f"{x}.e4m3", scale(True, weight)
                values[quantised[x][0]] = Value(values[x].shape, E4M3)
                yield Primitive("quantise", (), (x, quantised[x][1]), (quantised[x][0],))
            values[weight] = Value(values[weight].shape, E4M3)
            narrow, own = quantised[x]
            yield Primitive("linear_fp8", p.attributes, (narrow, weight, own, scale(False, weight), *bias), p.outputs)

    primitives = tuple(rewritten())
    products = {name for p in primitives if p.op == "linear_fp8" for name in p.outputs}
    casts = {p.outputs[0]: p.inputs[0] for p in primitives if p.op == "cast" and p.inputs[0] in products}
    outputs = tuple(casts.get(name, name) if only else name for name, only in zip(body.outputs, gated, strict=True))
    read = {*outputs, *(name for p in primitives for name in p.inputs)}
    primitives = tuple(p for p in primitives if read.intersection(p.outputs))
    narrow_body = Body(body.kind, tuple(inputs), outputs, primitives, values)
    return Narrowed(narrow_body, tuple(place[weight] for weight in chosen), tuple(scales))


def _is_product(p: Primitive, body: Body, place: Mapping[str, int], node: Node, shared: Collection[str]) -> bool:
    """Whether a primitive multiplies with a whole weight of bfloat16, which is its own, and as large as cuBLASLt wants it."""
    if p.op != "linear" or p.inputs[1] not in place:
        return False
    tensor, value = node.inputs[place[p.inputs[1]]], body.values[p.inputs[1]]
    readers = sum(primitive.inputs.count(p.inputs[1]) for primitive in body.primitives)
    if value.dtype != "bfloat16" or len(value.shape) != 2 or not tensor.endswith(".weight") or tensor in shared or readers > 1:
        return False
    rows, columns = sizes(value.shape)
    return fp8_fits(rows, columns, len(p.outputs))


def records_of(tensors: Mapping[str, TensorRecord], call: Graph) -> dict[str, TensorRecord]:
    """A model's tensors as they are stored, with the weights of these products in e4m3, and the scales."""
    records = dict(tensors)
    for name in (name for name, value in call.values.items() if value.dtype == E4M3):
        records[name] = msgspec.structs.replace(tensors[name], dtype=E4M3, stored=msgspec.UNSET)
        records[weight_scale(name)] = TensorRecord(sizes(SCALE.shape), SCALE.dtype, scale="weight")
        if input_scale(name) in call.values:
            records[input_scale(name)] = TensorRecord(sizes(SCALE.shape), SCALE.dtype, scale="input")
    return records
