"""Whether every value is there when it is read: made before, and in memory that nothing else has used since.

What goes wrong otherwise raises no error: a graph computes with what happens to lie there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from ..schedules.values import OUTPUT
from .call_record import CallRecord
from .compiled import Compiled
from .records import GraphRecord, SizeRecord

STATES = frozenset({"x.next", "x.data"})  # what a call makes that the loop keeps: they have places of their own


class Held(NamedTuple):
    """What a cache slot holds: a value, the call that made it, and the one that it belongs to."""

    of: str
    filling: int
    belongs: int


def in_graph(size: SizeRecord, name: str) -> Iterator[str]:
    """What is wrong inside a graph of a size."""
    graph, early = size.graphs[name], name in (size.constants, size.request, size.prologue)
    outputs = Counter(output for node in graph.nodes for output in node.outputs)
    yield from (f"{output!r} is made twice" for output, count in outputs.items() if count > 1)
    yield from (f"nothing makes {output!r}" for output in graph.outputs if output not in outputs)
    yield from (f"{output!r} is not its own to make" for output in outputs if not _is_free(size, output, early))
    inner = set(outputs) - set(graph.outputs)
    yield from (f"{value!r} is no inner value, and has a slot" for value in graph.slots if value not in inner)
    yield from (f"{value!r} is an inner value, and has no slot" for value in sorted(inner - graph.slots.keys()))
    yield from _in_order(size, graph, set(outputs))


def _in_order(size: SizeRecord, graph: GraphRecord, outputs: set[str]) -> Iterator[str]:
    """Node by node: what it reads is there, and it writes over nothing that it reads."""
    ready: set[str] = set()
    held: dict[int, str] = {}
    for node in graph.nodes:
        for value in node.inputs:
            slot = graph.slots.get(value)
            if value in outputs and (value not in ready or (slot is not None and held.get(slot) != value)):
                yield f"{node.name} reads {value!r}, which is not there"
            if value not in outputs and (value not in size.origins or size.origins[value].kind == "later"):
                yield f"{node.name} reads {value!r}, which is from nowhere"
        read = {graph.slots[value] for value in node.inputs if value in graph.slots}
        filled = {graph.slots[value]: value for value in node.outputs if value in graph.slots}
        if read & filled.keys() or len(filled) < sum(value in graph.slots for value in node.outputs):
            yield f"{node.name} writes two values, or over what it reads, in one slot"
        held.update(filled)
        ready.update(node.outputs)


def _is_free(size: SizeRecord, output: str, early: bool) -> bool:
    """Whether a graph may make a value of this name: what the loop provides lies in memory that others read."""
    origin = size.origins.get(output)
    return origin is None or origin.kind in (("prologue", "once") if early else ("later",))


def in_calls(compiled: Compiled) -> Iterator[str]:
    """What is wrong between the calls of a program: in the caches, and in what the sampler keeps."""
    cached = {name: _cached(compiled, graph) for name, graph in compiled.graphs.items()}
    offsets = {name: compiled.offsets(name) for name in cached}
    held: dict[int, Held] = {}
    for n, call in enumerate(compiled.calls):
        if call.graph not in compiled.graphs:
            continue
        graph = compiled.graphs[call.graph]
        if not _related(len(compiled.calls), offsets[call.graph], n, call):
            yield f"call {n}: its graph knows of other calls than it says"
            return
        if call.reads.keys() != cached[call.graph] or call.writes.keys() != set(graph.outputs) - STATES:
            yield f"call {n}: it has other slots than its graph reads and makes"
        elif wrong := _in_call(compiled, n, call, held):
            yield f"call {n}: {wrong}"
        if ("x.data" in graph.outputs) != bool(compiled.history) or _reach(compiled, graph) > compiled.history:
            yield f"call {n}: its graph is for another number of earlier predictions than {compiled.history}"


def histories(compiled: Compiled) -> Iterator[str]:
    """Calls that follow from what no call before them computed."""
    names, computed, ever = compiled.denoiser.sublayers, list[set[str]](), set[str]()
    for n, call in enumerate(compiled.calls):
        derived = call.derived or {}
        sources = [(name, n - age) for name, terms in derived.items() for age, _ in terms]
        wrong = [name for name, m in sources if not 0 <= m < n or name not in computed[m]]
        wrong += [names[j] for j in call.reused if names[j] not in ever]
        yield from (f"call {n}: {name!r} follows from a call that does not compute it" for name in wrong)
        levels = () if OUTPUT in derived else (*(compiled.denoiser.levels or ()), OUTPUT)
        computed.append({*(names[j] for j in call.computed), *(level for level in levels if level not in derived)})
        ever |= computed[n]


def _related(most: int, offsets: Iterable[int], n: int, call: CallRecord) -> bool:
    """Whether all of the `most` calls exist that call `n` says it has to do with, and are those that its graph knows of."""
    if call.earlier is not msgspec.UNSET and not all(1 <= age <= n for age in call.earlier):
        return False
    if call.later is not msgspec.UNSET and not all(1 <= calls <= 2 * most for calls in call.later):
        return False
    try:
        distances = [call.distance(offset) for offset in offsets]
    except LookupError:
        return False
    ages = [age for terms in (call.derived or {}).values() for age, _ in terms]
    readers = [n + calls for use in (call.banks or {}).values() for _, calls, _ in use.adds]
    return (
        all(-n <= distance for distance in distances) and all(1 <= age <= n for age in ages) and max(readers, default=0) < most
    )


def _in_call(compiled: Compiled, n: int, call: CallRecord, held: dict[int, Held]) -> str | None:
    """What is wrong with the slots of call `n`; `held` becomes what they hold after it."""
    for name, slot in call.reads.items():
        origin = compiled.size.origins[name]
        filling = n + call.distance(origin.offset)
        if held.get(slot) not in (Held(origin.of, filling, filling), Held(origin.of, filling, n)):
            return f"it reads {name!r} from a slot that holds something else"
    filled = set(call.writes.values())
    if filled & set(call.reads.values()) or len(filled) < len(call.writes):
        return "it writes two values, or over what it reads, in one slot"
    for name, slot in call.writes.items():
        later = compiled.origin(name)
        held[slot] = Held(later.of, n, n + call.distance(later.offset)) if later else Held(name, n, n)
    return None


def _cached(compiled: Compiled, graph: GraphRecord) -> set[str]:
    """The cached values that a graph reads."""
    origins = ((name, compiled.origin(name)) for name in graph.inputs)
    return {name for name, origin in origins if origin and origin.kind == "cache"}


def _reach(compiled: Compiled, graph: GraphRecord) -> int:
    """How many calls ago the oldest prediction was made that a graph reads."""
    origins = (compiled.origin(name) for name in graph.inputs)
    return max((-origin.offset for origin in origins if origin and origin.kind == "state"), default=0)
