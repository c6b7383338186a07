"""Fold: a run of skipped sublayers becomes one tensor, computed by the call that filled the cache.

Between two computed sublayers a cached call adds gate_j * cached_j for every skipped j.  The gates are
known before the loop and the cached values are known to the filling call, so the whole sum is: the filling
call emits it, and the cached call adds one tensor.  Sublayers never move.  The addition is reassociated,
(h + a) + b = h + (a + b), which is exact up to rounding.

A forecast value is coefficient x cached, summed over several filling calls.  Its coefficients stay in the reading call, where
they are numbers, and what they are taken of is folded: coefficient x (gate_1 x cached_1 + gate_2 x cached_2 + ..).

Like hoisting this is a question of binding time and is answered by data flow alone: whatever depends on the
values of one filling call, and otherwise only on what is known before the loop, moves into that call.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ...ir.graph import (
    CACHE,
    INNER,
    LOOP,
    PLAIN_OPS,
    PROLOGUE,
    TIME,
    Graph,
    Node,
    Value,
    dependencies,
    live,
    producers,
    rename,
)
from ...ir.names import at, split_at
from .weigh import Forecast, distribute, older


class Fragment(NamedTuple):
    """What a reading call wants its filling call to compute: one value, from that call's own values."""

    name: str  # "run.blocks.0.attn..blocks.2.mlp", or "blocks.0.attn.gated" for a run of one
    nodes: tuple[Node, ...]  # in the reading call's own naming
    values: Mapping[str, Value]


class Folded(NamedTuple):
    call: Graph
    fragments: tuple[tuple[int, Fragment], ...]  # in which of the calls that it reads from, and what is to be computed there


def fold(call: Graph, kept: Collection[str]) -> Folded:
    """The reading side: the call with one cache read per run, and the fragments that fill them.

    `kept` are the values that it computes for later calls.
    """
    call = reassociate(distribute(call), kept)
    filled = _filling_calls(call)
    maker = producers(call.nodes)
    rest = [n for n in call.nodes if filled[n.outputs[0]] is None]
    frontier = dict.fromkeys(i for n in rest for i in n.inputs if filled[i] is not None and call.kind(i) != CACHE)
    values = dict(call.values)
    fragments: list[tuple[int, Fragment]] = []
    for name in frontier:
        age = filled[name]
        assert age is not None
        values[at(name, -age)] = msgspec.structs.replace(call.values[name], kind=CACHE)
        nodes = _closure(name, maker)
        used = {i for n in nodes for i in (*n.inputs, *n.outputs)}
        fragments.append((age, Fragment(name, nodes, {i: call.values[i] for i in used})))

    def read(name: str) -> str:
        return at(name, -(filled[name] or 0)) if name in frontier else name

    nodes = tuple(Node(n.op, n.name, tuple(map(read, n.inputs)), n.outputs) for n in rest)
    folded = msgspec.structs.replace(call, nodes=nodes, values=values)
    return Folded(live(folded, kept), tuple(fragments))


def fill(call: Graph, fragments: Iterable[tuple[int, Fragment]]) -> Graph:
    """The filling side: the call that also computes the `fragments` that later calls read.

    A fragment of the k-th call that reads from this one reads that call's rows (`gate@+k`) and this call's values; its
    result is called `run...@+k`.
    """
    nodes, values, outputs = list(call.nodes), dict(call.values), list(call.outputs)
    for k, fragment in fragments:

        def here(name: str, k: int = k, values: Mapping[str, Value] = fragment.values) -> str:
            if values[name].kind == CACHE:
                return split_at(name)[0]  # what the later call reads from the cache is made here
            return at(name, k) if values[name].kind in (INNER, PROLOGUE, TIME) else name

        for node in rename(fragment.nodes, here):
            if node not in nodes:  # without hoisting, two runs share the conditioning behind their gates
                nodes.insert(_place(node, nodes), node)
        for name, value in fragment.values.items():
            values.setdefault(here(name), value)
        outputs.append(at(fragment.name, k))
    return msgspec.structs.replace(call, nodes=tuple(nodes), values=values, outputs=tuple(dict.fromkeys(outputs)))


def _place(node: Node, nodes: Sequence[Node]) -> int:
    """As early as its inputs allow, but behind the residual arithmetic of the sublayer that it reads."""
    sources = [i for i, n in enumerate(nodes) if not set(n.outputs).isdisjoint(node.inputs)]
    place = max(sources, default=-1) + 1
    while place and place < len(nodes) and nodes[place].op in PLAIN_OPS:
        place += 1
    return place


def reassociate(call: Graph, kept: Collection[str]) -> Graph:
    """(h + a) + b -> h + (a + b), where a and b come from the same filling call, or are forecasts from the same ones.

    A sum is called after the sublayers that it spans, so that equal sums of several readers have one name.
    """
    filled = _filling_calls(call)
    uses = Counter(name for n in call.nodes for name in n.inputs) + Counter(call.outputs)
    members: dict[str, tuple[str, ...]] = {}  # of a sum
    nodes: list[Node] = []
    maker: dict[str, Node] = {}
    values = dict(call.values)
    name_of = _names(call)

    def sum_of(first: str, second: str, term: int = 0) -> str:
        summed = (*members.get(first, (first,)), second)
        total = older(name_of(summed), term)
        nodes.append(Node("Add", total, (first, second), (total,)))
        values[total] = msgspec.structs.replace(values[second], kind=INNER)
        filled[total], members[total] = filled[second], summed
        return total

    for node in call.nodes:
        inner = maker.get(node.inputs[0]) if node.op == "Add" else None
        if inner and inner.op == "Add" and uses[node.inputs[0]] == 1:
            first, second = inner.inputs[1], node.inputs[1]
            a, b = (Forecast.of(maker.get(name), call.bodies) for name in (first, second))
            total = None
            if filled[second] is not None and filled[first] == filled[second]:
                nodes.remove(inner)
                total = sum_of(first, second)
            elif a and b and uses[first] == uses[second] == 1 and _same_calls(a, b, filled):
                nodes = [n for n in nodes if n not in (inner, maker[first], maker[second])]
                terms = [sum_of(*pair, term) for term, pair in enumerate(zip(a.terms, b.terms, strict=True))]
                total = f"{terms[0]}.forecast"
                maker[total] = msgspec.structs.replace(maker[second], name=total, inputs=(*terms, *b.numbers), outputs=(total,))
                nodes.append(maker[total])
                values[total] = values[second]
                uses[total], filled[total] = 1, None
            if total:
                node = msgspec.structs.replace(node, inputs=(inner.inputs[0], total))
        nodes.append(node)
        maker.update(dict.fromkeys(node.outputs, node))
    summed = msgspec.structs.replace(call, nodes=tuple(nodes), values=values)
    return live(summed, kept)


def _same_calls(a: Forecast, b: Forecast, filled: Mapping[str, int | None]) -> bool:
    """Whether two forecasts take, with the same coefficients, what the same calls have computed."""
    calls = [[filled[term] for term in forecast.terms] for forecast in (a, b)]
    return a.numbers == b.numbers and calls[0] == calls[1] and None not in calls[0]


def _names(call: Graph) -> Callable[[tuple[str, ...]], str]:
    """What sums of these terms are called: after the first and the last sublayer in them.

    That is all there is to say where every sublayer has one value, and that one reader: a run of sublayers has one sum.
    Where there are several streams, the terms themselves decide, by their hash.
    """
    cacheable = [*call.sublayers, *((name,) for name in call.levels.values())]
    column = {name: i for i, names in enumerate(cacheable) for name in names}
    readers = Counter(name for n in call.nodes for name in n.inputs if call.kind(name) == CACHE)
    alone = all(len(names) == 1 for names in call.sublayers) and set(readers.values()) <= {1}
    columns = dependencies(call, lambda name: column[split_at(name)[0]] if call.kind(name) == CACHE else -1)

    def name(terms: tuple[str, ...]) -> str:
        spanned = sorted(set().union(*(columns[term] for term in terms)) - {-1})
        title = f"run.{cacheable[spanned[0]][0]}..{cacheable[spanned[-1]][0]}"
        return title if alone else f"{title}.{hashlib.sha256(' '.join(terms).encode()).hexdigest()[:8]}"

    return name


def _filling_calls(call: Graph) -> dict[str, int | None]:
    """For each value: in which of the calls that are read from it could have been computed because all its inputs were
    known; None if only now, or before the loop, or by several calls.

    Only sums move: what else reads a cached value is computed now, whatever it could be.
    """

    def reach(name: str) -> object:
        value = call.values[name]
        if value.kind == CACHE:
            return -split_at(name)[1]
        return "now" if value.kind in LOOP else "early"

    reached: dict[str, frozenset[object]] = {name: frozenset([reach(name)]) for name in call.inputs}
    for node in call.nodes:
        joined: frozenset[object] = frozenset().union(*(reached[name] for name in node.inputs))
        stays = node.op not in PLAIN_OPS and joined != {"early"}
        reached.update(dict.fromkeys(node.outputs, frozenset(["now"]) if stays else joined))
    ages: dict[str, int | None] = {}
    for name, sources in reached.items():
        loop = sources - {"early"}
        (age,) = loop if len(loop) == 1 else (None,)
        ages[name] = age if isinstance(age, int) else None
    return ages


def _closure(name: str, maker: Mapping[str, Node]) -> tuple[Node, ...]:
    """All nodes that compute `name` from cached values and what is known before the loop, in order."""
    order: dict[str, Node] = {}

    def visit(value: str) -> None:
        node = maker.get(value)
        if node and node.name not in order:
            for i in node.inputs:
                visit(i)
            order[node.name] = node

    visit(name)
    return tuple(order.values())
