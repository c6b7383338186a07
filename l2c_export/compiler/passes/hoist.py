"""Hoist: what does not depend on the latents leaves the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from ...ir.graph import INNER, ONCE, PROLOGUE, REQUEST, TIME, WEIGHT, Graph, Node, dependencies, live

EARLY = frozenset({WEIGHT, TIME, REQUEST})


class Hoisted(NamedTuple):
    """Graphs with different binding times; together they are the call that went in."""

    constants: Graph  # depends on the timesteps alone: evaluated once per loaded artefact
    request: Graph  # depends on what is asked for alone: evaluated once per request, the same for all calls
    prologue: Graph  # depends on both: evaluated once per request, for many calls at once
    call: Graph  # the rest


def hoist(call: Graph) -> Hoisted:
    """Split a call by data flow: a value belongs to the earliest time at which its inputs are known.

    A hoisted value that a later part reads becomes an input there: of kind ONCE what is the same in every call, else PROLOGUE.
    The prologue has rows for every call, and makes again what it reads of the request alone: little, beside a call.  What is
    large, the keys and values of a prompt, the loop reads itself.
    """
    needs = dependencies(call, call.kind)
    constant = {name for name, kinds in needs.items() if kinds <= {WEIGHT, TIME} and TIME in kinds}
    once = {name for name, kinds in needs.items() if kinds <= {WEIGHT, REQUEST} and REQUEST in kinds}
    early = {name for name, kinds in needs.items() if kinds <= EARLY and kinds != {WEIGHT}} - _of_both(call, needs)
    hoisted = {n for node in call.nodes if node.outputs[0] in early for n in node.outputs}

    def part(nodes: list[Node], outputs: tuple[str, ...]) -> Graph:
        computed = {name for node in nodes for name in node.outputs}

        def kind(name: str) -> str:
            value = call.values[name]
            if value.kind != INNER or name in computed:
                return value.kind
            return ONCE if name in once else PROLOGUE

        names = {name for node in nodes for name in node.inputs} | set(outputs)
        values = {n: msgspec.structs.replace(call.values[n], kind=kind(n)) for n in names | computed}
        return live(Graph(tuple(nodes), values, outputs, bodies=call.bodies), call.levels.values())

    loop = part([n for n in call.nodes if n.outputs[0] not in hoisted], call.outputs)
    loop = msgspec.structs.replace(loop, sublayers=call.sublayers, levels=call.levels)
    rows = tuple(n for n in loop.inputs if n in hoisted)
    prologue_nodes = [n for n in call.nodes if n.outputs[0] in hoisted - constant]
    prologue = part(prologue_nodes, tuple(n for n in rows if n not in constant | once))
    request = part([n for n in call.nodes if n.outputs[0] in once], tuple(n for n in rows if n in once))
    inner = tuple(n for n in hoisted & constant if n in {*prologue.inputs, *loop.inputs})
    order = [o for node in call.nodes for o in node.outputs if o in inner]
    constants = part([n for n in call.nodes if n.outputs[0] in hoisted & constant], tuple(order))
    return Hoisted(constants, request, prologue, loop)


def _of_both(call: Graph, needs: Mapping[str, frozenset[str]]) -> set[str]:
    """What an operation makes of the timestep itself and of what is asked for, and all that follows from it.

    Before the loop the timestep is there for the constants only, which are made without a request.
    """
    late = set[str]()
    for node in call.nodes:
        reads_time = any(call.kind(name) == TIME for name in node.inputs)
        if (reads_time and REQUEST in needs[node.outputs[0]]) or late.intersection(node.inputs):
            late.update(node.outputs)
    return late
