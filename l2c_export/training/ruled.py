"""What was learned under a rule, as a schedule of version 2."""

from __future__ import annotations

from typing import Any

import msgspec

from ..schedules.forecast import Terms
from ..schedules.forms import ScheduleSource
from ..schedules.resolve import resolve
from ..schedules.schedule import Schedule
from ..schedules.values import OUTPUT, STACK
from .loop import Choice, RuledLoop


def schedule_of(loop: RuledLoop, choice: Choice, rule: str) -> Schedule:
    """The schedule that does what the loop does by `kept`: by the rule's name where that means the same, else as terms."""
    uncached, wanted, kept = loop.subject.source.schedule, loop.terms(choice), choice.kept.tolist()
    columns = range(uncached.columns)
    computed: list[Any] = [columns for _ in loop.calls]
    rules: dict[int, dict[str, Any]] = {}
    whole = loop.values[0] in (STACK, OUTPUT)
    for n, row in zip(loop.light, kept, strict=True):
        computed[n] = (columns if row[0] else ()) if whole else [j for j, keeps in enumerate(row) if keeps]
        if not all(row):
            rules[n] = {loop.values[0] if whole else "*": rule}
    named = uncached.computing(computed).following(rules)
    read = resolve(named.cacheable, named.calls)
    for n, terms in zip(loop.light, wanted, strict=True):
        if n in rules:
            own = {name: terms[name] for name in named.derived(n) if not close(read[n][name], terms[name])}
            rules[n] = {**rules[n], **own}
    return msgspec.structs.replace(named.following(rules), source=ScheduleSource())


def close(a: Terms, b: Terms) -> bool:
    """Whether terms are the same, but for the rounding of a coefficient."""
    if [age for age, _ in a] != [age for age, _ in b]:
        return False
    return all(abs(x - y) <= 1e-5 * max(1.0, abs(x)) for (_, x), (_, y) in zip(a, b, strict=True))
