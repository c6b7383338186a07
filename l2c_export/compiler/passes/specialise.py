"""Prune one call: sublayers that the schedule skips become cache reads, and what only they needed goes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...ir.graph import CACHE, Graph, Node, live
from ...ir.names import at


def specialise(call: Graph, sources: Sequence[int]) -> Graph:
    """The call in which sublayer j is computed (sources[j] == 0) or reused from sources[j] calls ago.

    A reused value `v` becomes the input `v@-k`; its norm, modulation and projections are gone.
    """
    reused = {name: at(name, -k) for name, k in zip(call.sublayers, sources, strict=True) if k}

    def read(name: str) -> str:
        return reused.get(name, name)

    nodes = tuple(Node(n.op, n.name, tuple(map(read, n.inputs)), n.outputs) for n in call.nodes if n.outputs[0] not in reused)
    cached = {new: msgspec.structs.replace(call.values[old], kind=CACHE) for old, new in reused.items()}
    return live(msgspec.structs.replace(call, nodes=nodes, values={**call.values, **cached}))
