"""The plan: what a schedule means for each call, and which calls are the same.

Calls of one structure share a graph whatever the spacing between them.  So a graph does not say how many calls ago a value
was made, but that it is of the first, second, .. call that this one reads from (`earlier`), or for the first, second, ..
call that reads from this one (`later`); which calls those are is a number of every call, and so are the coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..schedules.forecast import COMPUTED, Terms
from ..schedules.resolve import resolve

if TYPE_CHECKING:
    from ..schedules.schedule import Schedule

Sum = tuple[tuple[int, str], ...]  # (which of `earlier`, from 1; the name of its coefficient, "" for 1), ..
COEFFICIENT = "forecast"  # begins the names of coefficients


class Derivation(NamedTuple):
    """What a call computes, and how what it does not compute follows: values are sublayers and levels, by their names."""

    computed: tuple[str, ...]
    derived: tuple[tuple[str, Sum], ...]

    @property
    def is_reuse(self) -> bool:
        """Whether every derived value is a value of one earlier call as it was."""
        return all(len(terms) == 1 and not terms[0][1] for _, terms in self.derived)


class Add(NamedTuple):
    """What a call adds to a sum of a bank: which sum, in how many calls that is read, and the coefficient."""

    slot: int
    calls: int
    coefficient: float


class BankUse(NamedTuple):
    """What a call does with a bank (passes/bank.py): it takes a sum out, or keeps some, adds to some and forgets the others."""

    sums: int
    slot: int | None = None
    kept: tuple[int, ...] = ()
    adds: tuple[Add, ...] = ()


class Key(NamedTuple):
    """Everything that decides the graph of a call; calls with equal keys share one."""

    own: Derivation
    readers: tuple[tuple[int, Derivation], ...]  # of `later`: as which of its `earlier` it reads from this one, and what it is
    fills: tuple[tuple[str, int], ...] = ()  # the banks that it adds to, and which of `earlier` has the sums so far, 0 for none


class Plan(NamedTuple):
    """keys[n] decides the graph of call n; the rest are its numbers."""

    keys: tuple[Key, ...]
    earlier: tuple[tuple[int, ...], ...]  # how many calls ago each call was that it reads from
    later: tuple[tuple[int, ...], ...]  # in how many calls each call comes that reads from it
    coefficients: tuple[Mapping[str, float], ...]
    banks: tuple[Mapping[str, BankUse], ...] = ()  # by name, of every call, where there are any

    def distinct(self) -> tuple[Key, ...]:
        return tuple(dict.fromkeys(self.keys))


def make_plan(schedule: Schedule) -> Plan:
    """What every call reads from which earlier ones, and who reads from it."""
    own, earlier, coefficients = [], [], []
    for values in resolve(schedule.cacheable, schedule.calls):
        derived = {name: values[name] for name in schedule.cacheable if values.get(name, COMPUTED) != COMPUTED}
        ages = tuple(sorted({age for terms in derived.values() for age, _ in terms}))
        vectors = list(dict.fromkeys(_numbers(terms) for terms in derived.values() if _numbers(terms) != (1.0,)))
        sums = ((name, _sum(terms, ages, vectors)) for name, terms in derived.items())
        computed = tuple(name for name in schedule.cacheable if values.get(name) == COMPUTED)
        own.append(Derivation(computed, tuple(sums)))
        earlier.append(ages)
        coefficients.append({coefficient(v, i): c for v, vector in enumerate(vectors) for i, c in enumerate(vector)})
    readers: list[list[tuple[int, Derivation]]] = [[] for _ in own]
    later: list[list[int]] = [[] for _ in own]
    for n, ages in enumerate(earlier):
        for which, age in enumerate(ages, 1):
            readers[n - age].append((which, own[n]))
            later[n - age].append(age)
    keys = tuple(Key(derivation, tuple(r)) for derivation, r in zip(own, readers, strict=True))
    return Plan(keys, tuple(earlier), tuple(map(tuple, later)), tuple(coefficients))


def coefficient(vector: int, term: int) -> str:
    """The name of a coefficient: of the call's distinct vectors of them, and of the terms."""
    return f"{COEFFICIENT}.{vector}.{term}"


def _numbers(terms: Terms) -> tuple[float, ...]:
    return tuple(c for _, c in terms)


def _sum(terms: Terms, ages: tuple[int, ...], vectors: list[tuple[float, ...]]) -> Sum:
    numbers = _numbers(terms)
    names = ("",) if numbers == (1.0,) else tuple(coefficient(vectors.index(numbers), i) for i in range(len(numbers)))
    return tuple((ages.index(age) + 1, name) for (age, _), name in zip(terms, names, strict=True))
