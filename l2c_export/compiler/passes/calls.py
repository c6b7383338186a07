"""One graph per distinct call: pruned to what it computes, folded, and filled with what later calls read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ...ir.graph import CACHE, Graph, check, computed_sublayers, live
from ...ir.names import split_at
from ..plan import Key, Plan
from .fold import Folded, fill, fold
from .specialise import specialise


def specialise_calls(call: Graph, plans: Sequence[Plan], folding: bool) -> dict[Key, Graph]:
    """The distinct calls of all plans: each prunes what it reuses, and computes what later calls read."""
    folded = {}
    keys = list(dict.fromkeys(key for plan in plans for key in plan.keys))
    for sources in {s for key in keys for s in (key.sources, *(r for _, r in key.readers))}:
        pruned = check(specialise(call, sources), "specialise")
        folded[sources] = fold(pruned) if folding else Folded(pruned, ())
        check(folded[sources].call, "fold")
    return {key: check(live(fill_for_readers(key, folded)), "fill") for key in keys}


def fill_for_readers(key: Key, folded: Mapping[tuple[int, ...], Folded]) -> Graph:
    """A call with everything that its readers want from it: folded sums, and values as they are."""
    graph = folded[key.sources].call
    cacheable = computed_sublayers(graph)
    fragments, plain = [], []
    for offset, sources in key.readers:
        reader = folded[sources]
        fragments += [(offset, fragment) for age, fragment in reader.fragments if age == offset]
        names = [split_at(name) for name in reader.call.inputs if reader.call.kind(name) == CACHE]
        plain += [name for name, back in names if back == -offset and name in cacheable]
    outputs = tuple(dict.fromkeys((*graph.outputs, *plain)))
    return fill(msgspec.structs.replace(graph, outputs=outputs), fragments)
