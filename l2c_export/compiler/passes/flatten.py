"""A segment's whole computation as primitives: the bodies of its operations in their places, residual arithmetic between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ...ir.graph import PLAIN_OPS, Graph, Node, Primitive, Value, needed_for
from ...ir.primitives import flops, infer, precision

SUM = "sum"  # the kind of a segment that is residual arithmetic alone


class Flat(NamedTuple):
    """What a segment is, and what it computes."""

    kind: str  # of its operation
    primitives: tuple[Primitive, ...]
    values: dict[str, Value]  # of all their inputs and outputs

    @property
    def flops(self) -> int:
        """Per row of the model's batch."""
        return flops(self.primitives, self.values)

    def precision(self, dtype: str) -> str:
        """What it is to be computed in, where weights are of type `dtype`."""
        return precision(self.primitives, self.values, dtype)


def flatten(segment: Graph) -> Flat:
    """The primitives of a segment, or of any graph, under its own names; without those that make nothing of its outputs, as
    where a graph wants one of several that an operation makes.
    """
    primitives = needed_for(segment.outputs, [p for node in segment.nodes for p in of_node(segment, node)])
    kinds = [segment.bodies[node.op].kind for node in segment.nodes if node.op not in PLAIN_OPS]
    values = infer(primitives, {name: segment.values[name] for name in segment.inputs})
    for name in segment.outputs:
        value, said = values[name], segment.values[name]
        assert (value.shape, value.dtype) == (said.shape, said.dtype), f"primitives make another {name} than the graph says"
    return Flat("-".join(dict.fromkeys(kinds)) or SUM, primitives, values)


def of_node(graph: Graph, node: Node) -> Iterator[Primitive]:
    """What a node computes, its inner values called after it."""
    if node.op in PLAIN_OPS:
        yield Primitive(node.op.lower(), (), node.inputs, node.outputs)
        return
    body = graph.bodies[node.op]
    names = dict(zip((*body.inputs, *body.outputs), (*node.inputs, *node.outputs), strict=True))

    def name(inner: str) -> str:
        return names.get(inner, f"{node.name}.{inner}")

    for p in body.primitives:
        yield Primitive(p.op, p.attributes, tuple(map(name, p.inputs)), tuple(map(name, p.outputs)))
