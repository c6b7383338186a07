"""What a search tries: which calls are full, and how the others follow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from ..schedules.forecast import REUSE, order_of
from ..schedules.forms import ScheduleSource
from ..schedules.rules import LEVELS, SUBLAYER, Caching
from ..schedules.schedule import Schedule

STRIDES, MOST_ORDER = range(2, 11), 3
MOVES = ("move", "drop", "add", "order", "level")


class Candidate(NamedTuple):
    """Full calls, ascending, and by which rules the others follow: of "*.attn" and its kin, or of a level."""

    full: tuple[int, ...]
    rules: tuple[tuple[str, str], ...]

    def schedule(self, uncached: Schedule) -> Schedule:
        """The schedule of the calls of this one."""
        computed = [range(uncached.columns) if n in self.full else () for n in range(len(uncached.calls))]
        rules = {n: dict(self.rules) for n in range(len(uncached.calls)) if n not in self.full}
        return msgspec.structs.replace(uncached.computing(computed).following(rules), source=ScheduleSource())

    def describe(self) -> str:
        """Its rules in a few words: "taylor:2", "stack reuse", "*.attn taylor:2, *.mlp taylor:1"."""
        names = {rule for _, rule in self.rules}
        if len(names) == 1 and self.level == SUBLAYER:
            return f"{SUBLAYER} {names.pop()}"
        return ", ".join(f"{key} {rule}" for key, rule in self.rules)

    @property
    def level(self) -> str:
        return self.rules[0][0] if self.rules[0][0] in LEVELS else SUBLAYER


def kinds(sublayers: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of the kinds of sublayers that a model has, such as "*.attn" and "*.mlp"."""
    ends = dict.fromkeys(name.rpartition(".")[2] for name in sublayers)
    return tuple(f"*.{end}" for end in ends) if all("." in name for name in sublayers) else ("*",)


def rule_of(order: int) -> str:
    return f"taylor:{order}" if order else REUSE


def of_level(level: str, rule: str, patterns: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((key, rule) for key in (patterns if level == SUBLAYER else (level,)))


def by_stride(count: int, patterns: tuple[str, ...], levels: tuple[str, ...]) -> Iterator[Candidate]:
    """Every stride, order and level, with as many full calls at first as the rule reads."""
    for stride in (stride for stride in STRIDES if stride < count):
        for level in levels:
            for order in range(MOST_ORDER + 1):
                full = Caching(rule_of(order), level).full(f"every:{stride}", count)
                if len(full) < count:
                    yield Candidate(tuple(sorted(full)), of_level(level, rule_of(order), patterns))


def neighbour(candidate: Candidate, count: int, patterns: tuple[str, ...], levels: tuple[str, ...],
              chance: np.random.Generator) -> Candidate:  # fmt: skip
    """One that differs in a full call, in an order, or in the level; call 0 stays full."""
    full, move = set(candidate.full), MOVES[chance.integers(len(MOVES))]
    later, light = sorted(full - {0}), sorted(set(range(count)) - full)
    if move == "level":
        return candidate._replace(rules=of_level(levels[chance.integers(len(levels))], candidate.rules[0][1], patterns))
    if move == "order":
        n = int(chance.integers(len(candidate.rules)))
        key, rule = candidate.rules[n]
        order = order_of(rule)
        changed = rule_of(int(np.clip(order + chance.choice((-1, 1)), 0, MOST_ORDER)))
        return candidate._replace(rules=(*candidate.rules[:n], (key, changed), *candidate.rules[n + 1 :]))
    if move in ("move", "drop") and later:
        gone = later[chance.integers(len(later))]
        full.remove(gone)
        near = [gone - 1, gone + 1] if move == "move" else []
        full.update([n for n in near if n in light][:: int(chance.choice((-1, 1)))][:1])
    if move == "add" and len(light) > 1:
        full.add(light[chance.integers(len(light))])
    return candidate._replace(full=tuple(sorted(full)))
