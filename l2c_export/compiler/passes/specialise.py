"""Prune one call: what the schedule does not compute becomes cache reads, and what only that needed goes."""

from __future__ import annotations

import msgspec

from ...errors import ScheduleError
from ...ir.graph import CACHE, FORECAST, Body, Graph, Node, Value, live
from ...ir.names import at
from ...schedules.values import OUTPUT
from ..plan import Derivation, Sum
from .weigh import forecast


def specialise(call: Graph, own: Derivation) -> Graph:
    """The call in which some values are computed, and the others follow from earlier calls.

    A reused value `v` becomes the input `v@-k`, of the k-th of the calls that are read from, and so does all else that its
    sublayer makes; its norm, modulation and projections are gone.  A forecast one becomes the sum of such inputs, each with a
    coefficient, which is an input too.  A level is added to the stream before it.  A computed value stays even where only
    later calls have a use for it.
    """
    derived = {value: terms for name, terms in own.derived for value in names_of(call, name)}
    added = {call.levels[name] for name, _ in own.derived if name in call.levels and name != OUTPUT}
    values, bodies = dict(call.values), dict(call.bodies)
    nodes: list[Node] = []
    read: dict[str, str] = {}  # by its name in the uncached call, what this one reads instead
    for node in call.nodes:
        if node.outputs[0] not in derived:
            nodes.append(Node(node.op, node.name, tuple(read.get(i, i) for i in node.inputs), node.outputs))
            continue
        for value in node.outputs:
            read[value] = _follow(value, derived[value], nodes, values, bodies)
        if value in added:
            after, before = node.inputs
            total = f"{value}.added"
            nodes.append(Node("Add", total, (read.get(before, before), read[value]), (total,)))
            values[total] = call.values[after]
            read[after] = total
    pruned = live(msgspec.structs.replace(call, nodes=tuple(nodes), values=values, bodies=bodies), kept(call, own))
    _check_jumped(pruned, own)
    return pruned


def _follow(value: str, terms: Sum, nodes: list[Node], values: dict[str, Value], bodies: dict[str, Body]) -> str:
    """What a derived value is read as: a cached one, or the sum of several that is appended to the nodes."""
    cached = [at(value, -which) for which, _ in terms]
    values.update((name, msgspec.structs.replace(values[value], kind=CACHE)) for name in cached)
    numbers = [number for _, number in terms if number]
    if not numbers:
        return cached[0]
    one = Value((1,), "float32", FORECAST)
    values.update(dict.fromkeys(numbers, one))
    op, body = forecast([values[name] for name in cached], [one] * len(numbers), values[value].dtype)
    bodies[op] = body
    name = f"{value}.forecast"
    nodes.append(Node(op, name, (*cached, *numbers), (name,)))
    values[name] = values[value]
    return name


def names_of(call: Graph, name: str) -> tuple[str, ...]:
    """The values of the graph that a sublayer or a level is; none for a level that nothing in the schedule derives."""
    if name in call.levels:
        return (call.levels[name],)
    return next((names for names in call.sublayers if names[0] == name), ())


def kept(call: Graph, own: Derivation) -> set[str]:
    """What a call computes for the sake of later ones."""
    return {value for name in own.computed for value in names_of(call, name)}


def _check_jumped(pruned: Graph, own: Derivation) -> None:
    """Raises ScheduleError where something reads from inside a level that is derived: it is no one stream's."""
    needed = {name for node in pruned.nodes for name in node.outputs}
    known = {*own.computed, *(name for name, _ in own.derived)}
    inside = [names[0] for names in pruned.sublayers if names[0] not in known and not needed.isdisjoint(names)]
    if inside:
        levels = ", ".join(name for name, _ in own.derived if name in pruned.levels)
        why = f"behind it the stream of {inside[-1]!r} is also read"
        raise ScheduleError(f"schedule: {levels}: {why}: use stack, output, or rules for sublayers")
