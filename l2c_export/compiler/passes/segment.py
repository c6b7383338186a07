"""Group: cut a call into segments, the units that are compiled once and called many times.

A segment is one operation of the family together with the residual arithmetic behind it: an attention with
its gate and its addition to the stream.  The sums that go from call to call are segments of their own, so that there are as
many kinds of segments as of sublayers, whatever the schedule skips: an engine for an attention takes seconds to build
(TensorRT 8.6), and one more addition takes microseconds to run.  Two segments that differ only in the names they are called
with are the same, so their number does not grow with the schedule's length or the model's depth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from ...ir.graph import CACHE, PLAIN_OPS, Graph, Node, Value, live
from ...ir.names import split_at
from ..plan import Key
from .hoist import Hoisted


@dataclass(frozen=True)
class Linked:
    """Graphs as calls of segments and as a whole, and the name of the graph of every distinct call."""

    segments: dict[str, Graph]
    graphs: dict[str, Graph]
    whole: dict[str, Graph]
    names: Mapping[Key, str]


def cut(parts: Hoisted, calls: Mapping[Key, Graph]) -> Linked:
    """Cut every graph into segments and share the equal ones."""
    names = {key: f"step-{i:03d}" for i, key in enumerate(calls)}
    uncut = {n: live(g) for n, g in (("constants", parts.constants), ("prologue", parts.prologue)) if g.nodes}
    uncut |= {names[key]: live(graph) for key, graph in calls.items()}
    graphs, segments = {}, {}
    for name, graph in uncut.items():
        graphs[name], own = group(graph)
        segments.update(own)
    return Linked(segments, graphs, uncut, names)


def group(graph: Graph) -> tuple[Graph, dict[str, Graph]]:
    """The graph as calls of segments, and those segments by name.

    A segment's own inputs and outputs are called i0, i1, .. and o0, o1, .. in the order of its callers'.
    """
    calls, segments = [], {}
    for nodes in _pieces(graph):
        inputs, outputs = _interface(nodes, graph)
        segment = _canonical(nodes, inputs, outputs, graph.values)
        name = _name(segment)
        segments[name] = segment
        calls.append(Node(name, nodes[0].name, inputs, outputs))
    return msgspec.structs.replace(graph, nodes=tuple(calls)), segments


def _pieces(graph: Graph) -> list[list[Node]]:
    pieces: list[list[Node]] = []
    for node in graph.nodes:
        if pieces and _continues(node, pieces[-1][-1], graph):
            pieces[-1].append(node)
        else:
            pieces.append([node])
    return pieces


def _continues(node: Node, before: Node, graph: Graph) -> bool:
    """Whether a node belongs to the piece that ends with `before`: residual arithmetic behind its sublayer, and in
    the sums between calls an addition behind the gate."""
    if node.op not in PLAIN_OPS or _between_calls(node, graph) != _between_calls(before, graph):
        return False
    return not _between_calls(node, graph) or (before.op == "Mul" and before.outputs[0] in node.inputs)


def _between_calls(node: Node, graph: Graph) -> bool:
    """Whether this is arithmetic on a cached value, or for a later call's sake."""
    later = any(split_at(name)[1] > 0 for name in node.outputs)
    return node.op in PLAIN_OPS and (later or any(graph.kind(i) == CACHE for i in node.inputs))


def _interface(nodes: list[Node], graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    computed = [name for n in nodes for name in n.outputs]
    inputs = dict.fromkeys(name for n in nodes for name in n.inputs if name not in computed)
    inside = {n.name for n in nodes}
    outside = {name for n in graph.nodes if n.name not in inside for name in n.inputs} | set(graph.outputs)
    return tuple(inputs), tuple(name for name in computed if name in outside)


def _canonical(nodes: list[Node], inputs: tuple[str, ...], outputs: tuple[str, ...], values: Mapping[str, Value]) -> Graph:
    computed = [name for n in nodes for name in n.outputs]
    names = {name: f"i{i}" for i, name in enumerate(inputs)}
    names |= {name: f"v{i}" for i, name in enumerate(computed)}
    names |= {name: f"o{i}" for i, name in enumerate(outputs)}
    body = tuple(
        Node(n.op, names[n.outputs[0]], tuple(names[i] for i in n.inputs), tuple(names[o] for o in n.outputs)) for n in nodes
    )
    types = {names[n]: msgspec.structs.replace(values[n], kind="") for n in (*inputs, *computed)}
    return Graph(body, types, tuple(names[o] for o in outputs))


def _name(segment: Graph) -> str:
    """The operations, shortened, and a hash of the whole: "attn-mul-add.3f2a9c"."""
    ops = "-".join(n.op.lower() for n in segment.nodes)
    digest = hashlib.sha256(msgspec.json.encode(segment, order="deterministic")).hexdigest()
    return f"{ops if len(ops) < 40 else ops[:36] + '...'}.{digest[:6]}"
