"""A call of a schedule: what it computes, and by which rules the rest follows from earlier calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from ..errors import ScheduleError
from .forecast import REUSE, Rule, fault, is_reuse
from .values import Cacheable, apart, is_level, matched

EVERYTHING = {"*": REUSE}


class Call(msgspec.Struct, frozen=True):
    """One network evaluation: its timestep (0..1000), and columns, ascending: those that it computes, and those that it
    reuses.  What it neither computes nor reuses follows by other rules, or is jumped over by the rule of a level.

    `rules` are those of the schedule's file: a value's name, or a pattern, and how it follows from earlier calls.
    """

    timestep: float
    computed: tuple[int, ...]
    reused: tuple[int, ...]
    rules: dict[str, Rule] = {}


def call_of(
    timestep: float, computed: Collection[int], values: Cacheable, rules: Mapping[str, Rule] | None = None, number: int = 0
) -> Call:
    """A call that computes these columns; the others follow the rules, or are reused.  Raises ScheduleError."""
    columns = tuple(sorted(computed))
    if rules is None:
        rules = {} if len(columns) == len(values.sublayers) else EVERYTHING
    derivations = applied(values, columns, rules, number)
    reused = tuple(j for j, name in enumerate(values.sublayers) if name in derivations and is_reuse(derivations[name]))
    return Call(timestep, columns, reused, dict(rules))


def applied(values: Cacheable, computed: Collection[int], rules: Mapping[str, Rule], number: int) -> dict[str, Rule]:
    """The rule of everything that call `number` derives: what it neither computes nor jumps over."""
    derivations = {level: rules[level] for level in values.levels if level in rules}
    passed = {*computed, *(j for level in derivations for j in values.spanned(level))}
    patterns = sorted((key for key in rules if not _is_name(values, key)), key=len, reverse=True)
    for j, name in enumerate(values.sublayers):
        if j not in passed:
            derivations[name] = rules[name] if name in rules else _by_pattern(values, name, patterns, rules, number)
    return derivations


def _is_name(values: Cacheable, key: str) -> bool:
    return key in values.levels or key in values.sublayers or is_level(key)


def _by_pattern(values: Cacheable, name: str, patterns: list[str], rules: Mapping[str, Rule], number: int) -> Rule:
    """Of the longest pattern that matches; reuse where none does."""
    matches = [key for key in patterns if name in matched(key, values.sublayers)]
    if len(matches) > 1 and len(matches[0]) == len(matches[1]):
        raise ScheduleError(
            f"schedule: call {number} has two rules for {name!r}, {matches[0]!r} and {matches[1]!r}, which are equally long: "
            "name it, or make one of them longer"
        )
    return rules[matches[0]] if matches else REUSE


def remaining(values: Cacheable, computed: Collection[int], rules: Mapping[str, Rule]) -> dict[str, Rule] | None:
    """Of a call's rules those that are not for what it computes, nor for a level that spans it; None where none are left."""
    names = {values.sublayers[j] for j in computed}
    spanning = {level for level in values.levels if set(computed) & set(values.spanned(level))}
    kept = {key: rule for key, rule in rules.items() if key not in names and key not in spanning}
    return None if len(names) == len(values.sublayers) else kept or None


def check(values: Cacheable, number: int, call: Call) -> None:
    """Whether a call says one thing of every value.  Raises ScheduleError."""
    count = len(values.sublayers)
    if list(call.computed) != sorted(set(call.computed)) or not set(call.computed) <= set(range(count)):
        raise ScheduleError(f"schedule: call {number} must compute columns from 0 to {count - 1}, each once, ascending")
    for key, rule in call.rules.items():
        _check_key(values, number, key)
        if wrong := fault(rule):
            raise ScheduleError(f"schedule: call {number}, rule of {key!r}: {wrong}")
    for j in call.computed:
        if (name := values.sublayers[j]) in call.rules:
            raise ScheduleError(f"schedule: call {number} computes {name!r}, and has a rule for it: drop one of the two")
    _check_levels(values, number, call)
    if call != call_of(call.timestep, call.computed, values, call.rules, number):
        raise ScheduleError(f"schedule: call {number} must list as reused what its rules say")


def _check_key(values: Cacheable, number: int, key: str) -> None:
    if key in values.levels or key in values.sublayers:
        return
    if is_level(key):
        raise ScheduleError(f"schedule: call {number} has a rule for {key!r}: list it as cacheable")
    if not matched(key, values.sublayers):
        raise ScheduleError(f"schedule: call {number} has a rule for {key!r}, which is no cacheable value and matches none")


def _check_levels(values: Cacheable, number: int, call: Call) -> None:
    derived = [level for level in values.levels if level in call.rules]
    for n, level in enumerate(derived):
        for other in derived[:n]:
            if not apart(values.span(level), values.span(other)):
                raise ScheduleError(f"schedule: call {number} has rules for {other!r} and {level!r}, which overlap: use one")
        if both := set(call.computed) & set(values.spanned(level)):
            name = values.sublayers[min(both)]
            raise ScheduleError(
                f"schedule: call {number} has a rule for {level!r}, so it cannot compute {name!r}: drop one of the two"
            )
