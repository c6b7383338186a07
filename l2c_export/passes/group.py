"""Group: cut a call into segments, the units that are compiled once and called many times.

A segment is one operation of the family together with the residual arithmetic behind it: an attention with
its gate, its addition to the stream, and its share of the sums that a later call reads.  Two segments
that differ only in the names they are called with are the same, so their number depends on the
structure of the schedule and not on its length or on the depth of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from ..program import PLAIN_OPS, Graph, Node, Value


def group(graph: Graph) -> tuple[Graph, dict[str, Graph]]:
    """The graph as calls of segments, and those segments by name.

    A segment's own inputs and outputs are called i0, i1, .. and o0, o1, .. in the order of its callers'.
    """
    calls, segments = [], {}
    for nodes in _pieces(graph.nodes):
        inputs, outputs = _interface(nodes, graph)
        segment = _canonical(nodes, inputs, outputs, graph.values)
        name = _name(segment)
        segments[name] = segment
        calls.append(Node(name, nodes[0].name, inputs, outputs))
    return msgspec.structs.replace(graph, nodes=tuple(calls)), segments


def _pieces(nodes: Iterable[Node]) -> list[list[Node]]:
    pieces: list[list[Node]] = []
    for node in nodes:
        if node.op not in PLAIN_OPS or not pieces:
            pieces.append([])
        pieces[-1].append(node)
    return pieces


def _interface(nodes: list[Node], graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    made = [name for n in nodes for name in n.outputs]
    inputs = dict.fromkeys(name for n in nodes for name in n.inputs if name not in made)
    inside = {n.name for n in nodes}
    outside = {name for n in graph.nodes if n.name not in inside for name in n.inputs} | set(graph.outputs)
    return tuple(inputs), tuple(name for name in made if name in outside)


def _canonical(nodes: list[Node], inputs: tuple[str, ...], outputs: tuple[str, ...], values: Mapping[str, Value]) -> Graph:
    made = [name for n in nodes for name in n.outputs]
    names = {name: f"i{i}" for i, name in enumerate(inputs)}
    names |= {name: f"v{i}" for i, name in enumerate(made)}
    names |= {name: f"o{i}" for i, name in enumerate(outputs)}
    body = tuple(
        Node(n.op, names[n.outputs[0]], tuple(names[i] for i in n.inputs), tuple(names[o] for o in n.outputs)) for n in nodes
    )
    types = {names[n]: msgspec.structs.replace(values[n], kind="") for n in (*inputs, *made)}
    return Graph(body, types, tuple(names[o] for o in outputs))


def _name(segment: Graph) -> str:
    """The operations, shortened, and a hash of the whole: "attn-mul-add.3f2a9c"."""
    ops = "-".join(n.op.lower() for n in segment.nodes)
    digest = hashlib.sha256(msgspec.json.encode(segment, order="deterministic")).hexdigest()
    return f"{ops if len(ops) < 40 else ops[:36] + '...'}.{digest[:6]}"
