"""Levels: values that span several sublayers become values of the call, so that they can be cached like any other.

`stack` is what all blocks add to the stream that the head reads, `stack[F:L]` what the blocks from F up to L add: the
difference of the stream behind and before them.  `output` is the model's prediction, which the sampler reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from ...errors import ScheduleError
from ...ir.graph import Graph, Node, Primitive, Value, producers
from ...schedules.values import OUTPUT, STACK, Cacheable, values_of
from .weigh import difference


class Stream(NamedTuple):
    """The stream that the head reads: its names behind every block, -1 before the first.

    Behind the last block of a model that joins streams it has two: one for all rows, one for those that are read on.
    """

    names: dict[int, tuple[str, ...]]
    joined: dict[int, str]  # by the block that first reads them as one, another stream that goes on in it


def with_levels(call: Graph, levels: Iterable[str]) -> Graph:
    """The call that also makes these levels.  Raises ScheduleError for one that the model does not have."""
    names = {level: prediction(call) for level in levels if level == OUTPUT}
    nodes, values, bodies = list(call.nodes), dict(call.values), dict(call.bodies)
    for level in (level for level in levels if level != OUTPUT):
        before, after = span_of(call, level)
        name = level.replace("[", ".").replace(":", ".").removesuffix("]")
        op, body = difference(values[after], values[before])
        place = next(i for i, node in enumerate(nodes) if after in node.outputs) + 1
        nodes.insert(place, Node(op, name, (after, before), (name,)))
        values[name], bodies[op] = Value(values[after].shape, values[after].dtype), body
        names[level] = name
    return msgspec.structs.replace(call, nodes=tuple(nodes), values=values, bodies=bodies, levels=names)


def spans(call: Graph) -> dict[str, tuple[str, str]]:
    """The stream before and behind every level of the stack that the call makes."""
    maker = producers(call.nodes)
    nodes = {level: maker[name] for level, name in call.levels.items() if level != OUTPUT}
    return {level: (node.inputs[1], node.inputs[0]) for level, node in nodes.items()}


def prediction(call: Graph) -> str:
    """What the sampler is given: the model's output, every row, before guidance."""
    maker = producers(call.nodes)
    return (maker.get("x.data") or maker["x.next"]).inputs[0]


def span_of(call: Graph, level: str) -> tuple[str, str]:
    """The stream before and behind the blocks of a level.  Raises ScheduleError where they are not of one shape."""
    sublayers = values_of(tuple(names[0] for names in call.sublayers))
    stream = _stream(call, sublayers)
    span = sublayers.span(level)
    starts, ends = (stream.names.get(block, ()) for block in (span.start - 1, span.stop - 1))
    for before, after in itertools.product(starts, ends):
        if call.values[before].shape == call.values[after].shape:
            return before, after
    other = next((name for block, name in stream.joined.items() if block in span), "")
    why = f"behind it the stream of {other!r} is also read" if other else "it is no difference of one stream in this model"
    others = "output" if level == STACK else "stack, output"
    raise ScheduleError(f"schedule: {level}: {why}: use {others}, or rules for sublayers")


def _stream(call: Graph, sublayers: Cacheable) -> Stream:
    """Back from the prediction: additions of sublayers; and where streams are joined, the one whose rows are read on."""
    column = {name: j for j, names in enumerate(call.sublayers) for name in names}
    maker, behind = producers(call.nodes), _behind(call, column)
    names, joined = dict[int, tuple[str, ...]](), dict[int, str]()
    rows: range | None = None  # of a joined stream, those that are read on
    part: tuple[str, ...] = ()  # their name
    name, block = prediction(call), max(sublayers.blocks) + 1
    while name in behind:
        node = maker[name]
        if node.op == "Add":
            owner = _sublayer(node.inputs[1], maker, column)
            if owner is not None:
                block = sublayers.blocks[owner]
                names.setdefault(block, (name, *part))
                part = ()
            name = node.inputs[0]
            continue
        read = [i for i in node.inputs if i in behind]
        move = _only(call, node)
        if move and move.op == "part":
            attributes: Any = dict(move.attributes)
            rows, part = range(attributes["first"], attributes["last"]), (name,)
        elif move and move.op == "concat" and rows in (spans := _parts(call, node, move)):
            others = [maker[other] for other in spans.values() if other != spans[rows] and other in maker]
            owners = [_sublayer(other.inputs[1], maker, column) for other in others if other.op == "Add"]
            joined.update((block, call.sublayers[owner][0]) for owner in owners if owner is not None)
            name, rows = spans[rows], None
            continue
        name = read[0]
    return Stream(names | {-1: (name,)}, joined)


def _only(call: Graph, node: Node) -> Primitive | None:
    """The one primitive that a node is."""
    primitives = call.bodies[node.op].primitives if node.op in call.bodies else ()
    return primitives[0] if len(primitives) == 1 else None


def _parts(call: Graph, node: Node, concat: Primitive) -> dict[range, str]:
    """What is joined, by its rows."""
    axis: Any = dict(concat.attributes)["axis"]
    inputs = dict(zip(call.bodies[node.op].inputs, node.inputs, strict=True))
    names = [inputs[i] for i in concat.inputs]
    ends = [0, *itertools.accumulate(int(call.values[name].shape[axis]) for name in names)]
    return {range(*ends): name for ends, name in zip(itertools.pairwise(ends), names, strict=True)}


def _behind(call: Graph, column: Mapping[str, int]) -> set[str]:
    """Every value that depends on a sublayer."""
    behind = set[str](column)
    for node in call.nodes:
        if behind.intersection(node.inputs):
            behind.update(node.outputs)
    return behind


def _sublayer(name: str, maker: Mapping[str, Node], column: Mapping[str, int]) -> int | None:
    """The column of the sublayer whose value this is, or that with its gate."""
    while name not in column and name in maker and maker[name].op == "Mul":
        name = maker[name].inputs[1]
    return column.get(name)
