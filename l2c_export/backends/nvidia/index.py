"""Indices as text: sums, products, quotients and remainders of C, folded where they are plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

Index = tuple[str, ...]  # of every axis


def times(a: str, n: int) -> str:
    if a.isdecimal():
        return str(int(a) * n)
    return "0" if n == 0 else a if n == 1 else f"({a} * {n})"


def plus(*terms: str) -> str:
    number = sum(int(term) for term in terms if term.isdecimal())
    others = [term for term in terms if not term.isdecimal()]
    if not others:
        return str(number)
    total = " + ".join([*others, str(number)] if number else others)
    return total if len(others) == 1 and not number else f"({total})"


def over(a: str, n: int) -> str:
    if a.isdecimal():
        return str(int(a) // n)
    return a if n == 1 else f"({a} / {n})"


def rest(a: str, n: int) -> str:
    if a.isdecimal():
        return str(int(a) % n)
    return "0" if n == 1 else f"({a} % {n})"


def flat(index: Sequence[str], shape: Sequence[int]) -> str:
    """The place of an entry in a dense array."""
    terms = [times(i, math.prod(shape[axis + 1 :])) for axis, i in enumerate(index)]
    return plus(*terms)


def unflat(place: str, shape: Sequence[int]) -> Index:
    """The entry at a place of a dense array."""
    entries = []
    for axis, size in enumerate(shape):
        quotient = over(place, math.prod(shape[axis + 1 :]))
        entries.append(quotient if axis == 0 and size > 1 else rest(quotient, size))
    return tuple(entries)


def reshaped(index: Index, shape: Sequence[int], of: Sequence[int]) -> Index:
    """The entry of an array of shape `of` that is entry `index` of the same numbers in `shape`.

    Axes that both shapes begin or end with stay what they are.
    """
    first = 0
    while first < min(len(shape), len(of)) and shape[first] == of[first]:
        first += 1
    last = 0
    while last < min(len(shape), len(of)) - first and shape[-1 - last] == of[-1 - last]:
        last += 1
    middle = flat(index[first : len(shape) - last], shape[first : len(shape) - last])
    return (*index[:first], *unflat(middle, of[first : len(of) - last]), *index[len(shape) - last :])


def broadcast(index: Index, shape: Sequence[int]) -> Index:
    """The entry of what is broadcast from this shape."""
    aligned = index[len(index) - len(shape) :]
    return tuple("0" if size == 1 else i for i, size in zip(aligned, shape, strict=True))
