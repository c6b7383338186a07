"""Rules: how a value that a call does not compute follows from calls that did.

Every rule is a sum of coefficient x value over earlier calls, known before the loop.  `reuse` is `taylor:0`.  `taylor:M`
is the Taylor expansion of order M whose derivatives are repeated backward differences, as in TaylorSeer
(arXiv 2503.06923): with F0, F1, .. the values that were computed last, d_j the number of calls between F_j and F_j+1, and
k the number of calls since F0,

    D_0(j) = F_j,    D_i(j) = (D_i-1(j) - D_i-1(j + 1)) / d_j,    F(k) = sum over i of k^i / i! D_i(0)
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Sequence
from fractions import Fraction

Terms = tuple[tuple[int, float], ...]  # (age in calls, coefficient), ages ascending
Rule = str | Terms

REUSE = "reuse"
COMPUTED: Terms = ((0, 1.0),)
TAYLOR = re.compile(r"taylor:([0-9])")
LARGEST = 3.4e38  # of float32, in which coefficients are given to a call


def order_of(rule: str) -> int:
    """The order of the expansion that a rule's name means."""
    match = TAYLOR.fullmatch(rule)
    return int(match[1]) if match else 0


def is_reuse(rule: Rule) -> bool:
    return isinstance(rule, str) and order_of(rule) == 0


def shown(rule: Rule) -> str:
    """In a few words."""
    return rule if isinstance(rule, str) else "explicit terms"


def fault(rule: Rule) -> str | None:
    """What is wrong with a rule by itself, and what to do."""
    if isinstance(rule, str):
        known = rule == REUSE or TAYLOR.fullmatch(rule)
        return None if known else f"{rule!r} is no rule: use reuse, taylor:M with M from 0 to 9, or [[age, coefficient], ..]"
    ages = [age for age, _ in rule]
    if not rule or min(ages) < 1 or len(set(ages)) != len(ages):
        return f"terms of the ages {ages}: give one or more ages, each once, 1 for the call before"
    if not all(abs(coefficient) <= LARGEST for _, coefficient in rule):
        return f"terms with the coefficients {[coefficient for _, coefficient in rule]}: they must be finite numbers"
    return None


def terms_of(rule: Rule, call: int, computed: Sequence[int]) -> Terms:
    """What a rule means in a call, where these earlier calls (ascending, one or more) computed the value.

    Raises ValueError, with the call that it would need, for terms of a call that has not.
    """
    if isinstance(rule, str):
        return taylor(tuple(call - earlier for earlier in reversed(computed[-1 - order_of(rule) :])))
    for age, _ in rule:
        if call - age not in computed:
            raise ValueError(call - age)
    return tuple(sorted(rule))


@functools.lru_cache(4096)
def taylor(ages: tuple[int, ...]) -> Terms:
    """The coefficients of values of these ages (ascending), of an order that is one less than there are."""
    total = [sum(column, Fraction(0)) for column in zip(*parts(ages), strict=True)]
    return tuple(zip(ages, map(float, total), strict=True))


def parts(ages: tuple[int, ...]) -> list[list[Fraction]]:
    """The expansion by its orders: for each, k^i / i! D_i(0) as coefficients of the values of these ages."""
    distances = [after - before for before, after in itertools.pairwise(ages)]
    differences = [[Fraction(i == j) for i in range(len(ages))] for j in range(len(ages))]  # D_i(j), as coefficients
    orders = []
    for i in range(len(ages)):
        factor = Fraction(ages[0] ** i, math.factorial(i))
        orders.append([factor * coefficient for coefficient in differences[0]])
        differences = [
            [(newer - older) / d for newer, older in zip(now, before, strict=True)]
            for now, before, d in zip(differences, differences[1:], distances, strict=False)
        ]
    return orders
