"""Levels: values that span several sublayers become values of the call, so that they can be cached like any other.

`stack` is what all blocks add to the stream that the head reads, `stack[F:L]` what the blocks from F up to L add: the
difference of the stream behind and before them.  `output` is the model's prediction, which the sampler reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from ...errors import ScheduleError
from ...ir.graph import Graph, Node, Value, producers
from ...schedules.values import OUTPUT, Cacheable, values_of
from .weigh import difference


class Residual(NamedTuple):
    """An addition to the stream that the head reads."""

    before: str
    after: str
    block: int


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
    """The stream before and behind the blocks of a level."""
    sublayers = values_of(tuple(names[0] for names in call.sublayers))
    chain, start = _chain(call, sublayers)
    behind = {-1: start, **{residual.block: residual.after for residual in chain}}
    span = sublayers.span(level)
    first, last = span.start - 1, span.stop - 1
    if first not in behind or last not in behind or call.values[behind[first]].shape != call.values[behind[last]].shape:
        raise ScheduleError(
            f"schedule: {level!r} is no difference of one stream in this model: use the level output, or rules for sublayers"
        )
    return behind[first], behind[last]


def _chain(call: Graph, sublayers: Cacheable) -> tuple[list[Residual], str]:
    """The additions to the stream that the head reads, in order, and the stream before all of them."""
    column = {name: j for j, names in enumerate(call.sublayers) for name in names}
    maker, behind = producers(call.nodes), _behind(call, column)
    chain: list[Residual] = []
    name = prediction(call)
    while name in behind:
        node = maker[name]
        owner = _sublayer(node.inputs[1], maker, column) if node.op == "Add" else None
        if owner is not None:
            chain.append(Residual(node.inputs[0], name, sublayers.blocks[owner]))
        name = node.inputs[0] if node.op == "Add" else next(i for i in node.inputs if i in behind)
    return chain[::-1], name


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
