"""In which values of which calls two schedules differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ScheduleError
from ..schedules.forecast import COMPUTED, Terms, shown
from ..schedules.resolve import resolve
from ..schedules.schedule import Schedule
from ..schedules.values import values_of
from ..support.words import counted


@dataclass(frozen=True)
class DifferentCall:
    """A call in which some values differ: for each what it is in the one schedule, and what in the other."""

    index: int
    timesteps: tuple[float, float]
    computed: tuple[int, int]  # sublayers
    values: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Difference:
    """Two schedules of one model, value by value and call by call."""

    cells: int  # values times calls
    calls: tuple[DifferentCall, ...]  # that differ
    samplers: tuple[str, str]

    def table(self) -> list[tuple[Any, ...]]:
        """A line for every call that differs, with the first of its values."""
        rows: list[tuple[Any, ...]] = [("call", "timestep", "computed, first", "second", "different", "as")]
        for call in self.calls:
            name, (a, b) = next(iter(call.values.items()))
            rows.append((call.index, round(call.timesteps[0], 2), *call.computed, len(call.values), f"{name}: {a} / {b}"))
        return rows

    def summary(self) -> str:
        different = sum(len(call.values) for call in self.calls)
        a, b = self.samplers
        other = "" if a == b else f"; the first is for {a}, the second for {b}"
        return f"{different} of {counted(self.cells, 'value')} differ, in {counted(len(self.calls), 'call')}{other}"


def compare(a: Schedule, b: Schedule) -> Difference:
    """Values are equal where they are the same sum over the same calls, whatever the rule.

    Raises ScheduleError for schedules of other models, or of other numbers of calls.
    """
    if odd := sorted({*a.sublayers} ^ {*b.sublayers}):
        raise ScheduleError(f"{odd[0]} is a sublayer of one of the schedules: compare schedules of one model")
    if len(a.calls) != len(b.calls):
        raise ScheduleError(f"the schedules have {len(a.calls)} and {len(b.calls)} calls: compare schedules of equally many")
    levels = tuple(dict.fromkeys((*a.values.levels, *b.values.levels)))
    names, different = (*a.sublayers, *levels), []
    for n, (one, other) in enumerate(zip(sums(a, levels), sums(b, levels), strict=True)):
        values = {
            name: (_words(a, n, name, one), _words(b, n, name, other)) for name in names if one.get(name) != other.get(name)
        }
        if values:
            calls = a.calls[n], b.calls[n]
            times, counts = tuple(c.timestep for c in calls), tuple(len(c.computed) for c in calls)
            different.append(DifferentCall(n, times, counts, values))  # type: ignore[arg-type]  # pairs
    return Difference(len(names) * len(a.calls), tuple(different), (a.sampler, b.sampler))


def sums(schedule: Schedule, levels: Sequence[str]) -> list[dict[str, Terms]]:
    """What every value is in every call, those levels included that this schedule has no rule for."""
    whole = values_of((*schedule.sublayers, *levels))
    terms = [dict(values) for values in resolve(schedule.cacheable, schedule.calls)]
    for values, call in zip(terms, schedule.calls, strict=True):
        derived = [level for level in schedule.values.levels if level in call.rules]
        for level in levels:
            if level not in values and level not in derived and whole.is_whole(level, derived):
                values[level] = COMPUTED
    return terms


def _words(schedule: Schedule, call: int, name: str, values: dict[str, Terms]) -> str:
    """What a value is in a call: the rule that it follows, if it follows one."""
    if name not in values:
        return "jumped over"
    return "computed" if values[name] == COMPUTED else shown(schedule.derived(call)[name])
