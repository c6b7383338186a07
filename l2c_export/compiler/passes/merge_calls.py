"""Share: at most K distinct graphs, by computing a little more and never less.

Calls are distinct because they compute different sublayers, or because their readers want different sums from them.  So there
are two ways to merge: two sets of computed sublayers become their union (quality can only move towards the uncached
model), and two sets of sums become their union (a sum that nobody reads is written and forgotten).  Only calls that derive
the same levels can compute the same.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...ir.graph import PLAIN_OPS, Graph
from ...ir.primitives import flops
from ...schedules.schedule import Schedule
from ...support.files import Report
from ..plan import Derivation, Key, Plan, make_plan

if TYPE_CHECKING:
    from ..source import Source


def share_graphs(source: Source, schedule: Schedule, most: int | None, call: Graph, report: Report) -> Shared:
    """Merge a schedule's calls until at most `most` graphs are left, if that is asked for."""
    if most is None:
        return Shared(schedule, make_plan(schedule), 0.0)
    bodies = {node.name: call.bodies[node.op] for node in call.nodes if node.op not in PLAIN_OPS}
    cost = [float(flops(bodies[name].primitives, bodies[name].values)) for name in source.family.sublayers]
    shared = share(schedule, most, cost)
    report(f"max_graphs={most}: {shared.added:.2%} more computation than the schedule asks for")
    return shared


# Computing a sublayer's share of a sum, relative to computing the sublayer: 1 % on a CPU, 6 % on an H100.
SUM_COST = 0.03


class Shared(NamedTuple):
    schedule: Schedule  # every call computes at least what it did
    plan: Plan
    added: float  # cost of what is computed in addition, over the cost of what was


def share(schedule: Schedule, most: int, cost: Sequence[float]) -> Shared:
    """Merge the cheapest pair of calls until at most `most` graphs are left; cost[j] is that of sublayer j."""
    schedule = schedule.explicit()
    written: list[set[int]] = [{n} for n in range(len(schedule.calls))]  # calls that write the same sums
    total, extra = sum(cost[j] for call in schedule.calls for j in call.computed), 0.0
    plan = make_plan(schedule)
    while len(plan.distinct()) > most:
        merges = [*_computed_merges(schedule, cost), *_written_merges(plan, schedule.sublayers, cost)]
        if not merges:
            break  # what is left derives different levels
        price, merge = min(merges, key=lambda m: m[0])
        extra += price
        if isinstance(merge, Writes):
            _join(written, merge)
        else:
            union = merge.a.computed | merge.b.computed
            schedule = schedule.computing(
                [union if _set(schedule, n) in merge else c.computed for n, c in enumerate(schedule.calls)]
            )
        plan = _with_joint_writes(make_plan(schedule), written)
    return Shared(schedule, plan, extra / total)


class Computed(NamedTuple):
    """The sublayers that a call computes, and the levels that it derives."""

    computed: frozenset[int]
    levels: frozenset[str]


class Computes(NamedTuple):
    """Two sets of computed sublayers that are to be one."""

    a: Computed
    b: Computed


class Writes(NamedTuple):
    """Two calls (by index) that are to write the same sums."""

    a: int
    b: int


def _set(schedule: Schedule, n: int) -> Computed:
    call = schedule.calls[n]
    return Computed(frozenset(call.computed), frozenset(level for level in schedule.values.levels if level in call.rules))


def _computed_merges(schedule: Schedule, cost: Sequence[float]) -> list[tuple[float, Computes | Writes]]:
    counts = Counter(_set(schedule, n) for n in range(len(schedule.calls)))
    merges: list[tuple[float, Computes | Writes]] = []
    for a, b in itertools.combinations(counts, 2):
        if a.levels == b.levels:
            price = sum(cost[j] for j in b.computed - a.computed) * counts[a]
            price += sum(cost[j] for j in a.computed - b.computed) * counts[b]
            merges.append((price, Computes(a, b)))
    return merges


def _written_merges(plan: Plan, sublayers: Sequence[str], cost: Sequence[float]) -> list[tuple[float, Computes | Writes]]:
    first: dict[Key, int] = {}
    counts = Counter(plan.keys)
    for n, key in enumerate(plan.keys):
        first.setdefault(key, n)
    column = {name: j for j, name in enumerate(sublayers)}

    def price(readers: Counter[tuple[int, Derivation]]) -> float:
        return SUM_COST * sum(times * _read(reader, column, cost) for reader, times in readers.items())

    merges: list[tuple[float, Computes | Writes]] = []
    for a, b in itertools.combinations(first, 2):
        if a.own == b.own:
            of_a, of_b = Counter(a.readers), Counter(b.readers)
            merges.append((price(of_b - of_a) * counts[a] + price(of_a - of_b) * counts[b], Writes(first[a], first[b])))
    return merges


def _read(reader: tuple[int, Derivation], column: Mapping[str, int], cost: Sequence[float]) -> float:
    """The cost of the sublayers that a reader reads from a call."""
    which, own = reader
    names = (name for name, terms in own.derived if which in (source for source, _ in terms))
    return sum(cost[column[name]] for name in names if name in column)


def _join(groups: list[set[int]], merge: Writes) -> None:
    a = next(g for g in groups if merge.a in g)
    b = next(g for g in groups if merge.b in g)
    if a is not b:
        a |= b
        groups.remove(b)


def _with_joint_writes(plan: Plan, groups: Sequence[set[int]]) -> Plan:
    """Calls of one group, and calls equal to one of them, write all sums that any of them is to write."""
    joint: dict[Key, set[Key]] = {key: {key} for key in plan.keys}
    for group in groups:
        for own in {plan.keys[n].own for n in group}:
            keys = {plan.keys[n] for n in group if plan.keys[n].own == own}
            merged = set().union(*(joint[k] for k in keys))
            for key in merged:
                joint[key] = merged
    united = {key: _united(key, same) for key, same in joint.items()}
    later = [_placed(key, united[key], calls) for key, calls in zip(plan.keys, plan.later, strict=True)]
    return plan._replace(keys=tuple(united[key] for key in plan.keys), later=tuple(later))


def _united(key: Key, same: set[Key]) -> Key:
    """With the readers of all of them, each as often as one has it."""
    readers = Counter[tuple[int, Derivation]]()
    for other in same:
        readers |= Counter(other.readers)
    return Key(key.own, tuple(sorted(readers.elements())))


def _placed(key: Key, united: Key, later: Sequence[int]) -> tuple[int, ...]:
    """Where the readers of a united key are: those that a call does not have come after all that it has."""
    own: dict[tuple[int, Derivation], list[int]] = {}
    for reader, calls in zip(key.readers, later, strict=True):
        own.setdefault(reader, []).append(calls)
    absent = itertools.count(max(later, default=0) + 1)
    return tuple(own[reader].pop(0) if own.get(reader) else next(absent) for reader in united.readers)
