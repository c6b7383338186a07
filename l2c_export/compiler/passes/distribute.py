"""Distribute: gate x (c_1 v_1 + c_2 v_2 + ..) -> c_1 (gate x v_1) + c_2 (gate x v_2) + .., so that fold can move the products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from ...ir.graph import INNER, Body, Graph, Node, producers
from . import weigh


class Forecast(NamedTuple):
    """A sum of cached values, or of sums of them, with coefficients."""

    terms: tuple[str, ...]
    numbers: tuple[str, ...]

    @staticmethod
    def of(node: Node | None, bodies: Mapping[str, Body]) -> Forecast | None:
        """What a node is, if it is one."""
        if node is None or node.op not in bodies or bodies[node.op].kind != weigh.FORECAST:
            return None
        half = len(node.inputs) // 2
        return Forecast(node.inputs[:half], node.inputs[half:])


def older(name: str, term: int) -> str:
    """The name of what is computed for a later term of a forecast, where the first has this name."""
    return f"{name}.older{term}" if term else name


def distribute(call: Graph) -> Graph:
    """The call whose gates are behind the coefficients."""
    maker = producers(call.nodes)
    uses = Counter(name for node in call.nodes for name in node.inputs) + Counter(call.outputs)
    values, bodies, read = dict(call.values), dict(call.bodies), dict[str, str]()
    nodes: list[Node] = []
    for node in call.nodes:
        gated = maker.get(node.inputs[1]) if node.op == "Mul" else None
        forecast = Forecast.of(gated, call.bodies)
        if forecast is None or gated is None or uses[node.inputs[1]] > 1:
            nodes.append(msgspec.structs.replace(node, inputs=tuple(read.get(i, i) for i in node.inputs)))
            continue
        nodes.remove(gated)
        (product,) = node.outputs
        terms = [older(product, n) for n in range(len(forecast.terms))]
        values.update(dict.fromkeys(terms, msgspec.structs.replace(call.values[product], kind=INNER)))
        nodes += [Node("Mul", new, (node.inputs[0], old), (new,)) for new, old in zip(terms, forecast.terms, strict=True)]
        op, body = weigh.forecast([values[t] for t in terms], [values[n] for n in forecast.numbers], values[product].dtype)
        bodies[op], read[product] = body, f"{product}.forecast"
        values[read[product]] = values[product]
        nodes.append(Node(op, read[product], (*terms, *forecast.numbers), (read[product],)))
    return msgspec.structs.replace(call, nodes=tuple(nodes), values=values, bodies=bodies)
