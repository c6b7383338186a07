"""Group: cut a call into segments, the units that are compiled once and called many times.

A segment is one operation of the family together with the residual arithmetic that consumes its value: an attention with
its gate and its addition to the stream, wherever in the call these are.  The sums that go from call to call are segments of
their own, so that there are as many kinds of segments as of sublayers, whatever the schedule skips: an engine for an attention
takes seconds to build (TensorRT 8.6), and one more addition takes microseconds to run.  Two segments that differ only in the
names they are called with are the same, so their number does not grow with the schedule's length or the model's depth.
"""

from __future__ import annotations

import graphlib
import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from ...ir.graph import CACHE, PLAIN_OPS, Graph, Node, live, text
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
    prefix: str = ""  # of its graphs' names


def cut(parts: Hoisted, calls: Mapping[Key, Graph], prefix: str = "") -> Linked:
    """Cut every graph into segments and share the equal ones."""
    distinct = list(dict.fromkeys(text(graph) for graph in calls.values()))  # what readers want may come to the same
    names = {key: f"{prefix}step-{distinct.index(text(graph)):03d}" for key, graph in calls.items()}
    early = (("constants", parts.constants), ("request", parts.request), ("prologue", parts.prologue))
    uncut = {f"{prefix}{n}": live(g) for n, g in early if g.nodes}
    uncut |= {names[key]: live(graph) for key, graph in calls.items()}
    graphs, segments = {}, {}
    for name, graph in uncut.items():
        graphs[name], own = group(graph)
        segments.update(own)
    return Linked(segments, graphs, uncut, names, prefix)


def group(graph: Graph) -> tuple[Graph, dict[str, Graph]]:
    """The graph as calls of segments, and those segments by name.

    A segment's own inputs and outputs are called i0, i1, .. and o0, o1, .. in the order of its callers'.
    """
    calls, segments = [], {}
    for nodes in _pieces(graph):
        inputs, outputs = _interface(nodes, graph)
        segment = _canonical(nodes, inputs, outputs, graph)
        name = _name(segment)
        segments[name] = segment
        calls.append(Node(name, nodes[0].name, inputs, outputs))
    return msgspec.structs.replace(graph, nodes=tuple(calls), bodies={}), segments


def _pieces(graph: Graph) -> list[list[Node]]:
    """The nodes of every segment, in an order in which they can run."""
    pieces: list[list[Node]] = []
    needs: list[set[int]] = []  # the pieces that a piece reads from
    maker: dict[str, int] = {}  # value -> piece
    for node in graph.nodes:
        read = {maker[i] for i in node.inputs if i in maker}
        home = maker.get(node.inputs[-1], -1) if node.op in PLAIN_OPS else -1  # gate * value, stream + value
        if home < 0 or not _joins(node, pieces[home], graph) or home in _reached(read - {home}, needs):
            home = len(pieces)
            pieces.append([])
            needs.append(set())
        pieces[home].append(node)
        needs[home] |= read - {home}
        maker.update(dict.fromkeys(node.outputs, home))
    order = graphlib.TopologicalSorter(dict(enumerate(needs)))
    return [pieces[n] for n in _first_first(order)]


def _joins(node: Node, piece: list[Node], graph: Graph) -> bool:
    """Whether arithmetic is of one segment with what made its value: with an operation, and in the sums between calls an
    addition with the gate."""
    first = piece[0]
    if _between_calls(node, graph):
        return len(piece) == 1 and first.op == "Mul" and _between_calls(first, graph)
    return first.op not in PLAIN_OPS


def _reached(start: set[int], needs: Sequence[set[int]]) -> set[int]:
    """All pieces that some depend on, and those themselves."""
    seen, ahead = set(start), list(start)
    while ahead:
        new = needs[ahead.pop()] - seen
        seen |= new
        ahead += new
    return seen


def _first_first(order: graphlib.TopologicalSorter[int]) -> Iterator[int]:
    """In topological order, the lowest number first."""
    order.prepare()
    ready: list[int] = []
    while order.is_active():
        for n in order.get_ready():
            heapq.heappush(ready, n)
        n = heapq.heappop(ready)
        yield n
        order.done(n)


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


def _canonical(nodes: list[Node], inputs: tuple[str, ...], outputs: tuple[str, ...], graph: Graph) -> Graph:
    computed = [name for n in nodes for name in n.outputs]
    names = {name: f"i{i}" for i, name in enumerate(inputs)}
    names |= {name: f"v{i}" for i, name in enumerate(computed)}
    names |= {name: f"o{i}" for i, name in enumerate(outputs)}
    body = tuple(
        Node(n.op, names[n.outputs[0]], tuple(names[i] for i in n.inputs), tuple(names[o] for o in n.outputs)) for n in nodes
    )
    types = {names[n]: msgspec.structs.replace(graph.values[n], kind="") for n in (*inputs, *computed)}
    bodies = {n.op: graph.bodies[n.op] for n in nodes if n.op in graph.bodies}
    return Graph(body, types, tuple(names[o] for o in outputs), bodies=bodies)


def _name(segment: Graph) -> str:
    """The operations, shortened, and a hash of the whole: "attn-mul-add.3f2a9c"."""
    ops = "-".join(n.op.lower() for n in segment.nodes)
    digest = hashlib.sha256(msgspec.json.encode(segment, order="deterministic")).hexdigest()
    return f"{ops if len(ops) < 40 else ops[:36] + '...'}.{digest[:6]}"
