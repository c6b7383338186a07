"""One graph per distinct call: pruned to what it computes, folded, and filled with what later calls read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from ...ir.graph import CACHE, Graph, check, live
from ...ir.names import split_at
from ..plan import Derivation, Key, Plan
from .bank import NO_BANKS, Banked, deposit, take, with_banks
from .fold import Folded, fill, fold
from .specialise import kept, specialise

# A call that so many forecasts read from is cheaper if it keeps its values as they are: it would compute a sum for each.
MOST_SUMS = 3


def specialise_calls(call: Graph, plans: Sequence[Plan], folding: bool, banks: Banked = NO_BANKS) -> dict[Key, Graph]:
    """The distinct calls of all plans: each prunes what it derives, and computes what later calls read."""
    folded = {}
    keys = list(dict.fromkeys(key for plan in plans for key in plan.keys))
    by_value = kept_as_they_are(keys)
    for own in dict.fromkeys(own for key in keys for own in (key.own, *(reader for _, reader in key.readers))):
        pruned = check(specialise(call, own), "specialise")
        pruned = check(take(pruned, banks.runs.get(own, ()), banks.banks, kept(call, own)), "take")
        folds = folding and own not in by_value
        folded[own] = fold(pruned, kept(call, own)) if folds else Folded(pruned, ())
        check(folded[own].call, "fold")
    filled = {key: deposit(fill_for_readers(key, folded), key.fills, banks.banks, call) for key in keys}
    return {key: check(live(graph), "fill") for key, graph in filled.items()}


def banked(call: Graph, plans: Sequence[Plan]) -> Banked:
    """The plans with the banks that are worth it."""
    readers = kept_as_they_are(key for plan in plans for key in plan.keys)
    return with_banks(plans, {own: (specialise(call, own), kept(call, own)) for own in readers})


def kept_as_they_are(keys: Iterable[Key]) -> set[Derivation]:
    """The calls that read values, not sums of them: forecasts from calls that many of them read from."""
    chosen = set[Derivation]()
    for key in keys:
        forecasts = Counter(reader for _, reader in key.readers if not reader.is_reuse)
        if forecasts.total() > MOST_SUMS:
            chosen.update(forecasts)
    return chosen


def fill_for_readers(key: Key, folded: Mapping[Derivation, Folded]) -> Graph:
    """A call with everything that its readers want from it: folded sums, and values as they are."""
    graph = folded[key.own].call
    fragments, plain = [], []
    for position, (which, own) in enumerate(key.readers, 1):
        reader = folded[own]
        fragments += [(position, fragment) for source, fragment in reader.fragments if source == which]
        plain += cached(reader.call, which, {fragment.name for _, fragment in reader.fragments})
    outputs = tuple(dict.fromkeys((*graph.outputs, *plain)))
    return fill(msgspec.structs.replace(graph, outputs=outputs), fragments)


def cached(reader: Graph, which: int, folded: Collection[str]) -> list[str]:
    """The values that a call reads as they are from the `which`-th of the calls that it reads from."""
    names = (split_at(name) for name in reader.inputs if reader.kind(name) == CACHE)
    return [name for name, back in names if back == -which and name not in folded]
