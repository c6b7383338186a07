"""The intermediate representation: one denoising call as a list of named operations.

A `Graph` is what every compiler pass takes and returns, what is written as ONNX, and (grouped into
segments) what the runtime executes.  Everything is frozen; a pass builds a new graph.

Names are the interface.  `blocks.3.attn` is the module, the value, the cache slot and the manifest key:

    blocks.3.attn              the value computed in this call
    blocks.3.attn@-1           the value that the call before computed, read from the cache
    blocks.3.attn.gate@+1      the value that belongs to the next call (hoisted rows only)
    blocks.3.fc.weight[0:384]  the rows 0..383 of a weight tensor
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from .dtypes import BYTES
from .names import split_at

T = TypeVar("T")

# Where a graph's input comes from.  Everything else is computed by a node.
WEIGHT = "weight"  # a tensor of the checkpoint, or some rows of one
TIME = "time"  # the timestep of the call: known when compiling
REQUEST = "request"  # what is declared as an input: known when a request arrives
REQUESTED = "request."  # begins the name of such an input, before that of what is declared
STATE = "state"  # the latents and whatever else the loop keeps
INDEX = "index"  # which rows make which image
GUIDANCE = "guidance"  # its strength
COEFFICIENTS = "coefficients"  # the sampler's numbers of this call
FORECAST = "forecast"  # a number of this call, with which it takes a cached value
BANK = "bank"  # which sum of a bank, or how the sums change: numbers of this call
WINDOW = "window"  # a hoisted value, for all the calls that come next
CACHE = "cache"  # a value filled by an earlier call
PROLOGUE = "prologue"  # a hoisted value: computed before the loop, one row block per call
ONCE = "once"  # a hoisted value of the request alone: computed before the loop, one row block for all calls
INNER = ""  # computed by a node of the graph itself
LOOP = frozenset({STATE, INDEX, GUIDANCE, COEFFICIENTS, FORECAST, BANK})  # known in the loop only

Attribute = int | float | str | tuple[int, ...]


class Value(msgspec.Struct, frozen=True):
    """The type of a named value: its shape (int, "B" images or "R" rows of the model's batch) and dtype."""

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    kind: str = INNER

    @property
    def row_bytes(self) -> int:
        """Bytes per image or row, for a value with a batch axis."""
        return math.prod(n for n in self.shape if isinstance(n, int)) * BYTES[self.dtype]


class Node(msgspec.Struct, frozen=True, array_like=True):
    """One operation: one of a graph's bodies by name, or the plain ONNX `Add` and `Mul`."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


PLAIN_OPS = frozenset({"Add", "Mul"})


class Primitive(msgspec.Struct, frozen=True, array_like=True):
    """One of the operations that segments are written in (`ir/signatures.py`)."""

    op: str
    attributes: tuple[tuple[str, Attribute], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Body(msgspec.Struct, frozen=True):
    """What an operation computes: primitives from its inputs i0, i1, .. to its outputs.

    `kind` is the family's name of it.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    primitives: tuple[Primitive, ...]
    values: Mapping[str, Value]


class Graph(msgspec.Struct, frozen=True):
    """Nodes in topological order, the values' types, what is read and what is written.

    `sublayers` names the cacheable values, in the order of the router's columns: those that a sublayer makes are cached
    together, and the first bears its name.  `levels` are other cacheable values, by the schedule's name for them.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    outputs: tuple[str, ...]
    sublayers: tuple[tuple[str, ...], ...] = ()
    levels: Mapping[str, str] = {}
    bodies: Mapping[str, Body] = {}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names that are read before they are computed, in order of first use."""
        return unmade(self.nodes, self.outputs)

    def kind(self, name: str) -> str:
        return self.values[name].kind


NOTHING = Graph((), {}, ())


def unmade(nodes: Sequence[Node], outputs: Sequence[str]) -> tuple[str, ...]:
    """The names that nodes and outputs read and no node makes, in order of first use."""
    computed = {name for node in nodes for name in node.outputs}
    names = [name for node in nodes for name in node.inputs] + list(outputs)
    return tuple(dict.fromkeys(name for name in names if name not in computed))


def live(graph: Graph, also: Iterable[str] = ()) -> Graph:
    """Drop every node whose outputs nobody reads (dead code elimination), and the types of dropped values.

    `also` names values that are kept although the graph has no use for them.
    """
    nodes = needed_for((*graph.outputs, *also), graph.nodes)
    names = {name for node in nodes for name in (*node.inputs, *node.outputs)} | set(graph.outputs)
    values = {name: value for name, value in graph.values.items() if name in names}
    return msgspec.structs.replace(graph, nodes=nodes, values=values)


Step = TypeVar("Step", Node, Primitive)


def needed_for(outputs: Iterable[str], steps: Sequence[Step]) -> tuple[Step, ...]:
    """The nodes or primitives that these values depend on, in order."""
    needed, kept = set(outputs), []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            needed.update(step.inputs)
            kept.append(step)
    return tuple(reversed(kept))


def rename(nodes: Iterable[Node], name: Callable[[str], str]) -> tuple[Node, ...]:
    """The same nodes under other value names; a node is called after what it makes."""
    return tuple(Node(n.op, name(n.name), tuple(map(name, n.inputs)), tuple(map(name, n.outputs))) for n in nodes)


def producers(nodes: Iterable[Node]) -> dict[str, Node]:
    """Which node computes which value."""
    return {name: node for node in nodes for name in node.outputs}


def dependencies(graph: Graph, reach: Callable[[str], T]) -> dict[str, frozenset[T]]:
    """Data flow: for every value, the set of reach(input) over all inputs that it depends on."""
    reached: dict[str, frozenset[T]] = {name: frozenset([reach(name)]) for name in graph.inputs}
    for node in graph.nodes:
        joined: frozenset[T] = frozenset().union(*(reached[name] for name in node.inputs))
        reached.update(dict.fromkeys(node.outputs, joined))
    return reached


def check(graph: Graph, stage: str) -> Graph:
    """The contract between stages: every name has a type, is made once and before it is read."""
    defined = set(graph.inputs)
    for node in graph.nodes:
        missing = [n for n in (*node.inputs, *node.outputs) if n not in graph.values]
        late = [n for n in node.inputs if n not in defined]
        twice = [n for n in node.outputs if n in defined]
        if missing or late or twice:
            raise AssertionError(f"{stage}: {node.name}: {missing=} {late=} {twice=}")
        defined.update(node.outputs)
    undefined = [n for n in graph.inputs if graph.kind(n) == INNER or (graph.kind(n) == CACHE and split_at(n)[1] >= 0)]
    assert not undefined, f"{stage}: read but never made: {undefined}"
    return graph


def text(graph: Graph) -> str:
    """The graph in ONNX's text notation, weights left out of the signature."""

    def typed(name: str) -> str:
        value = graph.values[name]
        return f"{value.dtype}[{','.join(map(str, value.shape))}] {name}"

    inputs = [typed(n) for n in graph.inputs if graph.kind(n) != WEIGHT]
    lines = [f"  {', '.join(n.outputs)} = {n.op}({', '.join(n.inputs)})" for n in graph.nodes]
    outputs = [typed(n) for n in graph.outputs]
    return "\n".join([f"({', '.join(inputs)}) => ({', '.join(outputs)}) {{", *lines, "}"]) + "\n"
