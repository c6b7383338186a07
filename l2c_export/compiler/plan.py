"""The plan: what a schedule means for each call, and which calls are the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..schedules.schedule import Schedule


class Key(NamedTuple):
    """Everything that decides the graph of a call; calls with equal keys share one."""

    sources: tuple[int, ...]  # per column: 0 computed here, k > 0 reused from k calls ago
    readers: tuple[tuple[int, tuple[int, ...]], ...]  # later calls that read from this one: (offset, their sources)


class Plan(NamedTuple):
    """keys[n] decides the graph of call n."""

    keys: tuple[Key, ...]

    def distinct(self) -> tuple[Key, ...]:
        return tuple(dict.fromkeys(self.keys))


def make_plan(schedule: Schedule) -> Plan:
    """Find for every reused column the call that filled it, and for every call who reads from it."""
    return plan_of(schedule.columns, [call.computed for call in schedule.calls])


def plan_of(columns: int, computed: Sequence[Collection[int]]) -> Plan:
    """The plan of calls that compute these columns and reuse the others."""
    filled_by = [0] * columns
    sources = []
    for n, run in enumerate(computed):
        for j in run:
            filled_by[j] = n
        sources.append(tuple(n - by for by in filled_by))
    readers: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in sources]
    for n, ages in enumerate(sources):
        for age in sorted(set(ages) - {0}):
            readers[n - age].append((age, ages))
    return Plan(tuple(Key(s, tuple(r)) for s, r in zip(sources, readers, strict=True)))
