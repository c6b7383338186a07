"""Weigh: the operations that schedules add, which are bodies like a family's own.

A forecast value is a sum of coefficient x value, a level a difference.  They are called after what they compute, since every
graph has its own.  `distribute` takes gates inside, so that fold can move the products:
gate x (c_1 v_1 + c_2 v_2 + ..) -> c_1 (gate x v_1) + c_2 (gate x v_2) + ..
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ...ir.graph import INNER, Body, Graph, Node, Value, producers
from ...models import layers
from ...models.primitives import add, affine, cast, mul
from ...models.tape import body

FORECAST, DIFFERENCE = "forecast", "difference"  # kinds


def forecast(values: Sequence[Value], coefficients: Sequence[Value], dtype: str) -> tuple[str, Body]:
    """The operation values.., coefficients.. -> their sum, of type `dtype`; it is computed in float32.  Its name is its own."""

    def weighted(*inputs: Any) -> Any:
        terms = [mul(number, layers.wide(v)) for v, number in zip(inputs[: len(values)], inputs[len(values) :], strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = add(total, term)
        return total if dtype == "float32" else cast(total, dtype=dtype)

    return named(body(FORECAST, weighted, [*values, *coefficients]), f"{FORECAST}{len(values)}")


def difference(after: Value, before: Value) -> tuple[str, Body]:
    """The operation after, before -> after - before, in the type of the stream."""

    def apart(a: Any, b: Any) -> Any:
        return layers.to(add(layers.wide(a), affine(layers.wide(b), scale=-1.0, shift=0.0)), a.dtype)

    return named(body(DIFFERENCE, apart, [after, before]), DIFFERENCE)


def named(definition: Body, title: str) -> tuple[str, Body]:
    """A body and a name that no other has."""
    digest = hashlib.sha256(msgspec.json.encode(definition, order="deterministic")).hexdigest()
    return f"{title}_{digest[:6]}", definition


class Forecast(NamedTuple):
    """A sum of cached values, or of sums of them, with coefficients."""

    terms: tuple[str, ...]
    numbers: tuple[str, ...]

    @staticmethod
    def of(node: Node | None, bodies: Mapping[str, Body]) -> Forecast | None:
        """What a node is, if it is one."""
        if node is None or node.op not in bodies or bodies[node.op].kind != FORECAST:
            return None
        half = len(node.inputs) // 2
        return Forecast(node.inputs[:half], node.inputs[half:])


def older(name: str, term: int) -> str:
    """The name of what is computed for a later term of a forecast, where the first has this name."""
    return f"{name}.older{term}" if term else name


def distribute(call: Graph) -> Graph:
    """The call whose gates are behind the coefficients."""
    maker = producers(call.nodes)
    uses = Counter(name for node in call.nodes for name in node.inputs) + Counter(call.outputs)
    values, bodies, read = dict(call.values), dict(call.bodies), dict[str, str]()
    nodes: list[Node] = []
    for node in call.nodes:
        gated = maker.get(node.inputs[1]) if node.op == "Mul" else None
        known = Forecast.of(gated, call.bodies)
        if known is None or gated is None or uses[node.inputs[1]] > 1:
            nodes.append(msgspec.structs.replace(node, inputs=tuple(read.get(i, i) for i in node.inputs)))
            continue
        nodes.remove(gated)
        (product,) = node.outputs
        terms = [older(product, n) for n in range(len(known.terms))]
        values.update(dict.fromkeys(terms, msgspec.structs.replace(call.values[product], kind=INNER)))
        nodes += [Node("Mul", new, (node.inputs[0], old), (new,)) for new, old in zip(terms, known.terms, strict=True)]
        op, body = forecast([values[t] for t in terms], [values[n] for n in known.numbers], values[product].dtype)
        bodies[op], read[product] = body, f"{product}.forecast"
        values[read[product]] = values[product]
        nodes.append(Node(op, read[product], (*terms, *known.numbers), (read[product],)))
    return msgspec.structs.replace(call, nodes=tuple(nodes), values=values, bodies=bodies)
