"""Share: at most K distinct graphs, by computing a little more and never less.

Calls are distinct because they compute different sublayers, or because their readers want different sums from them.  So there
are two ways to merge: two sets of computed sublayers become their union (quality can only move towards the uncached
model), and two sets of sums become their union (a sum that nobody reads is written and forgotten).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...ir.graph import PLAIN_OPS, Graph
from ...ir.primitives import flops
from ...schedules.schedule import Schedule
from ...support.files import Report
from ..plan import Key, Plan, make_plan, plan_of

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
    computed = [frozenset(call.computed) for call in schedule.calls]
    written: list[set[int]] = [{n} for n in range(len(computed))]  # calls that write the same sums
    total, extra = sum(cost[j] for run in computed for j in run), 0.0
    plan = make_plan(schedule)
    while len(plan.distinct()) > most:
        price, merge = min([*_computed_merges(computed, cost), *_written_merges(plan, cost)], key=lambda m: m[0])
        extra += price
        if isinstance(merge, Writes):
            _join(written, merge)
        else:
            union = merge.a | merge.b
            computed = [union if run in merge else run for run in computed]
        plan = _with_joint_writes(plan_of(schedule.columns, computed), written)
    return Shared(schedule.computing(computed), plan, extra / total)


class Computes(NamedTuple):
    """Two sets of computed sublayers that are to be one."""

    a: frozenset[int]
    b: frozenset[int]


class Writes(NamedTuple):
    """Two calls (by index) that are to write the same sums."""

    a: int
    b: int


def _computed_merges(computed: Sequence[frozenset[int]], cost: Sequence[float]) -> list[tuple[float, Computes | Writes]]:
    counts: dict[frozenset[int], int] = {}
    for run in computed:
        counts[run] = counts.get(run, 0) + 1
    merges: list[tuple[float, Computes | Writes]] = []
    for a, b in itertools.combinations(counts, 2):
        price = sum(cost[j] for j in b - a) * counts[a] + sum(cost[j] for j in a - b) * counts[b]
        merges.append((price, Computes(a, b)))
    return merges


def _written_merges(plan: Plan, cost: Sequence[float]) -> list[tuple[float, Computes | Writes]]:
    first: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    for n, key in enumerate(plan.keys):
        first.setdefault(key, n)
        counts[key] = counts.get(key, 0) + 1

    def price(readers: set[tuple[int, tuple[int, ...]]]) -> float:
        return SUM_COST * sum(cost[j] for offset, sources in readers for j, age in enumerate(sources) if age == offset)

    merges: list[tuple[float, Computes | Writes]] = []
    for a, b in itertools.combinations(first, 2):
        if a.sources == b.sources:
            of_a, of_b = set(a.readers), set(b.readers)
            merges.append((price(of_b - of_a) * counts[a] + price(of_a - of_b) * counts[b], Writes(first[a], first[b])))
    return merges


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
        for sources in {plan.keys[n].sources for n in group}:
            keys = {plan.keys[n] for n in group if plan.keys[n].sources == sources}
            merged = set().union(*(joint[k] for k in keys))
            for key in merged:
                joint[key] = merged
    united = {key: Key(key.sources, tuple(sorted({r for k in same for r in k.readers}))) for key, same in joint.items()}
    return Plan(tuple(united[key] for key in plan.keys))
