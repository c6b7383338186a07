"""Fold: a run of skipped sublayers becomes one tensor, computed by the call that filled the cache.

Between two computed sublayers a cached call adds gate_j * cached_j for every skipped j.  The gates are
known before the loop and the cached values are known to the filling call, so the whole sum is: the filling
call emits it, and the cached call adds one tensor.  The addition is reassociated,
(h + a) + b = h + (a + b), which is exact up to rounding.

Like hoisting this is a question of binding time and is answered by data flow alone: whatever depends on the
values of one filling call, and otherwise only on what is known before the loop, moves into that call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ..program import (
    CACHE,
    INNER,
    LOOP,
    PLAIN_OPS,
    ROW,
    TIME,
    Graph,
    Node,
    Value,
    at,
    dependencies,
    live,
    producers,
    rename,
    split_at,
)


class Fragment(NamedTuple):
    """What a reading call wants its filling call to compute: one sum, from that call's own values."""

    name: str  # of the sum: "run.blocks.0.attn..blocks.2.mlp"
    nodes: tuple[Node, ...]  # in the reading call's own naming
    values: Mapping[str, Value]


class Folded(NamedTuple):
    call: Graph
    fragments: tuple[tuple[int, Fragment], ...]  # how many calls ago it is to be computed, and what


def fold(call: Graph) -> Folded:
    """The reading side: the call with one cache read per run, and the fragments that fill them."""
    call = reassociate(call)
    filled = _filling_calls(call)
    made = producers(call.nodes)
    kept = [n for n in call.nodes if filled[n.outputs[0]] is None]
    frontier = dict.fromkeys(name for n in kept for name in n.inputs if filled[name] is not None and call.kind(name) != CACHE)
    new_names, values = {}, dict(call.values)
    fragments: list[tuple[int, Fragment]] = []
    for name in frontier:
        age = filled[name]
        assert age is not None
        nodes = _closure(name, made)
        cached = sorted({i for n in nodes for i in n.inputs if call.kind(i) == CACHE}, key=_column(call))
        first, last = (split_at(cached[i])[0] for i in (0, -1))
        base = f"run.{first}..{last}"
        new_names[name] = at(base, -age)
        values[new_names[name]] = msgspec.structs.replace(call.values[name], kind=CACHE)
        renamed = tuple(Node(n.op, base, n.inputs, (base,)) if n.outputs[0] == name else n for n in nodes)
        types = {**call.values, base: call.values[name]}
        used = {i for n in renamed for i in (*n.inputs, *n.outputs)}
        fragments.append((age, Fragment(base, renamed, {i: types[i] for i in used})))
    nodes = tuple(msgspec.structs.replace(n, inputs=tuple(new_names.get(i, i) for i in n.inputs)) for n in kept)
    return Folded(live(msgspec.structs.replace(call, nodes=nodes, values=values)), tuple(fragments))


def fill(call: Graph, wanted: Iterable[tuple[int, Fragment]]) -> Graph:
    """The filling side: the call that also computes `wanted`, the fragments of calls that come later.

    A fragment of the call k later reads that call's rows (`gate@+k`) and this call's values; its result is
    called `run...@+k`.
    """
    nodes, values, outputs = list(call.nodes), dict(call.values), list(call.outputs)
    for k, fragment in wanted:

        def here(name: str, k: int = k, values: Mapping[str, Value] = fragment.values) -> str:
            if values[name].kind == CACHE:
                return split_at(name)[0]  # what the later call reads from the cache is made here
            return at(name, k) if values[name].kind in (INNER, ROW, TIME) else name

        for node in rename(fragment.nodes, here):
            if node not in nodes:  # without hoisting, two runs share the conditioning behind their gates
                nodes.insert(_place(node, nodes), node)
        for name, value in fragment.values.items():
            values.setdefault(here(name), value)
        outputs.append(at(fragment.name, k))
    return msgspec.structs.replace(call, nodes=tuple(nodes), values=values, outputs=tuple(dict.fromkeys(outputs)))


def _place(node: Node, nodes: Sequence[Node]) -> int:
    """As early as its inputs allow, but behind the residual arithmetic of the sublayer that it reads."""
    made = [i for i, n in enumerate(nodes) if not set(n.outputs).isdisjoint(node.inputs)]
    place = max(made, default=-1) + 1
    while place and place < len(nodes) and nodes[place].op in PLAIN_OPS:
        place += 1
    return place


def reassociate(call: Graph) -> Graph:
    """(h + a) + b -> h + (a + b), where a and b come from the same filling call."""
    filled = _filling_calls(call)
    uses = Counter(name for n in call.nodes for name in n.inputs) + Counter(call.outputs)
    nodes: list[Node] = []
    made: dict[str, Node] = {}
    values = dict(call.values)
    for node in call.nodes:
        if node.op == "Add":
            stream, value = node.inputs
            before = made.get(stream)
            k = filled[value]
            if before and before.op == "Add" and uses[stream] == 1 and k is not None and filled[before.inputs[1]] == k:
                total = f"{node.outputs[0]}.sum"
                nodes.remove(before)
                nodes.append(Node("Add", total, (before.inputs[1], value), (total,)))
                values[total], filled[total] = msgspec.structs.replace(values[value], kind=INNER), k
                made[total] = nodes[-1]
                node = msgspec.structs.replace(node, inputs=(before.inputs[0], total))
        nodes.append(node)
        made[node.outputs[0]] = node
    return live(msgspec.structs.replace(call, nodes=tuple(nodes), values=values))


def _filling_calls(call: Graph) -> dict[str, int | None]:
    """For each value: how many calls ago it could have been computed because all its inputs were known; None if
    only now, or before the loop, or by several calls."""

    def reach(name: str) -> object:
        value = call.values[name]
        if value.kind == CACHE:
            return -split_at(name)[1]
        return "now" if value.kind == LOOP else "early"

    ages: dict[str, int | None] = {}
    for name, found in dependencies(call, reach).items():
        late = found - {"early"}
        (age,) = late if len(late) == 1 else (None,)
        ages[name] = age if isinstance(age, int) else None
    return ages


def _closure(name: str, made: Mapping[str, Node]) -> tuple[Node, ...]:
    """All nodes that compute `name` from cached values and what is known before the loop, in order."""
    order: dict[str, Node] = {}

    def visit(value: str) -> None:
        node = made.get(value)
        if node and node.name not in order:
            for i in node.inputs:
                visit(i)
            order[node.name] = node

    visit(name)
    return tuple(order.values())


def _column(call: Graph) -> Callable[[str], int]:
    order = {name: i for i, name in enumerate(call.sublayers)}
    return lambda name: order[split_at(name)[0]]
