"""Memory: every buffer's place is known before anything runs.

Two levels of liveness: values inside one call share slots with each other, and cached values, which live from
the call that fills them to the last call that reads them, share slots over the loop.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ...ir.graph import CACHE, Graph
from ...ir.names import at, split_at

if TYPE_CHECKING:
    from ..plan import Plan

STATES = ("x.next", "x.data")  # outputs that are not cached values but the loop's own

K = TypeVar("K", bound=Hashable)


class Life(NamedTuple):
    """A buffer of `size` (in any unit) is written at `start` and last read at `end`."""

    start: int
    end: int
    size: int


def assign(lives: Mapping[K, Life]) -> tuple[dict[K, int], list[int]]:
    """Give every buffer a slot; buffers in one slot are never alive together.  Returns the slots' sizes.

    Greedy by start; a free slot of the best fitting size is taken, and grown if none is large enough.
    """
    slots: dict[K, int] = {}
    sizes: list[int] = []
    free: set[int] = set()
    busy: list[tuple[int, int]] = []
    for key, life in sorted(lives.items(), key=lambda item: (item[1].start, -item[1].size, str(item[0]))):
        while busy and busy[0][0] < life.start:
            free.add(heapq.heappop(busy)[1])
        if free:
            slot = min(free, key=lambda s: (sizes[s] < life.size, abs(sizes[s] - life.size), s))
            free.discard(slot)
            sizes[slot] = max(sizes[slot], life.size)
        else:
            slot = len(sizes)
            sizes.append(life.size)
        slots[key] = slot
        heapq.heappush(busy, (life.end, slot))
    return slots, sizes


def temporaries(graph: Graph, size: Mapping[str, int]) -> tuple[dict[str, int], list[int]]:
    """Slots of the values that live inside one call: made by a node, and not an output."""
    first = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs if name not in graph.outputs}
    last = dict(first)
    for i, node in enumerate(graph.nodes):
        last.update({name: i for name in node.inputs if name in first})
    return assign({name: Life(first[name], last[name], size[name]) for name in first})


class Wiring(NamedTuple):
    """The cache slots of one call: which input reads which slot, which output fills which."""

    reads: dict[str, int]
    writes: dict[str, int]


def caches(calls: Sequence[Graph], plan: Plan, size: Mapping[str, int]) -> tuple[list[Wiring], list[int]]:
    """Slots of the cached values over the whole loop."""
    reads: list[dict[str, tuple[int, str]]] = []
    for n, graph in enumerate(calls):
        sources = {}
        for name in graph.inputs:
            if graph.kind(name) == CACHE:
                base, back = split_at(name)
                age = plan.earlier[n][-back - 1]
                own = at(base, plan.later[n - age].index(age) + 1)  # what the call makes for this one alone
                sources[name] = (n - age, own if own in calls[n - age].outputs else base)
        reads.append(sources)
    ends: dict[tuple[int, str], int] = {}
    for n, sources in enumerate(reads):
        ends.update(dict.fromkeys(sources.values(), n))
    for n, graph in enumerate(calls):  # a call that shares its graph may write what nobody reads
        ends.update({(n, name): n for name in graph.outputs if (n, name) not in ends and name not in STATES})
    slots, sizes = assign({key: Life(key[0], end, size[split_at(key[1])[0]]) for key, end in ends.items()})
    writes = _by_call(ends, len(calls))
    return [
        Wiring({i: slots[key] for i, key in reads[n].items()}, {name: slots[n, name] for name in writes[n]})
        for n in range(len(calls))
    ], sizes


def _by_call(keys: Iterable[tuple[int, str]], count: int) -> list[list[str]]:
    names: list[list[str]] = [[] for _ in range(count)]
    for n, name in keys:
        names[n].append(name)
    return names
