"""Prune one call: sublayers that the schedule skips become cache reads, and what only they needed goes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...ir.graph import CACHE, Graph, Node, computed_sublayers, live
from ...ir.names import at


def specialise(call: Graph, sources: Sequence[int]) -> Graph:
    """The call in which sublayer j is computed (sources[j] == 0) or reused from sources[j] calls ago.

    A reused value `v` becomes the input `v@-k`, and so does all else that its sublayer makes; its norm, modulation and
    projections are gone.  A computed sublayer stays even where only later calls have a use for it.
    """
    columns = zip(call.sublayers, sources, strict=True)
    reused = {name: at(name, -k) for names, k in columns for name in names if k}

    def read(name: str) -> str:
        return reused.get(name, name)

    nodes = tuple(Node(n.op, n.name, tuple(map(read, n.inputs)), n.outputs) for n in call.nodes if n.outputs[0] not in reused)
    cached = {new: msgspec.structs.replace(call.values[old], kind=CACHE) for old, new in reused.items() if old in call.values}
    pruned = msgspec.structs.replace(call, nodes=nodes, values={**call.values, **cached})
    return live(pruned, computed_sublayers(pruned))
