"""What a primitive's signature is: how many inputs, which attributes, and a rule from types to types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .dtypes import BYTES, E4M3
from .graph import Attribute, Value

LARGEST = 2**31  # no size is larger
LARGEST_FLOAT = 3.4e38
FLOATS = frozenset(BYTES) - {"int32", E4M3}  # what is computed with; e4m3 is only multiplied
Rule = Callable[..., tuple[Value, ...]]


class Misfit(ValueError):
    """What is no primitive, or does not fit one."""


class Allowed(NamedTuple):
    """Of an attribute: what it may be, in words and as a test."""

    said: str
    holds: Callable[[Any], bool]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ints(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_int, value))


SIZE = Allowed("a size", lambda value: _is_int(value) and 0 < value < LARGEST)
INDEX = Allowed("an index", lambda value: _is_int(value) and 0 <= value < LARGEST)
EPSILON = Allowed("between 0 and 1", lambda value: isinstance(value, float) and 0 <= value < 1)
FREQUENCY = Allowed("a number from 1 on", lambda value: isinstance(value, float) and 1 <= value < LARGEST)
NUMBER = Allowed("a finite number", lambda value: isinstance(value, float) and abs(value) < LARGEST_FLOAT)
DTYPE = Allowed("a type of numbers", lambda value: isinstance(value, str) and value in FLOATS)
MOST_AXES = 8


def _are_sizes(value: object) -> bool:
    if not isinstance(value, tuple) or not 0 < len(value) <= MOST_AXES:
        return False
    first, *others = value
    return all(map(SIZE.holds, others)) and (first == -1 or SIZE.holds(first))


SHAPE = Allowed("a shape", _are_sizes)  # -1 is a batch axis, which is the first
AXES = Allowed("an order of axes", lambda value: _are_ints(value) and sorted(value) == list(range(len(value))))
FLAGS = Allowed("of every value whether it has a gate", lambda value: _are_ints(value) and {*value} <= {0, 1})


class Signature(NamedTuple):
    """A primitive: how many inputs it takes, its attributes, and its rule."""

    op: str
    least: int
    most: int
    attributes: Mapping[str, Allowed]
    rule: Rule

    def outputs(self, inputs: Sequence[Value], attributes: Mapping[str, Attribute]) -> tuple[Value, ...]:
        """The types of what it makes.  Raises Misfit."""
        if not self.least <= len(inputs) <= self.most:
            raise Misfit(f"{self.op} takes {self.least} to {self.most} inputs, not {len(inputs)}")
        self.check(attributes)
        try:
            return self.rule(*inputs, **attributes)
        except Misfit as error:
            shapes = ", ".join(f"{value.dtype}{list(value.shape)}" for value in inputs)
            raise Misfit(f"{self.op} of {shapes}: {error}") from None

    def check(self, attributes: Mapping[str, Attribute]) -> None:
        """Raises Misfit for attributes that it does not have, or that are not what they may be."""
        if attributes.keys() != self.attributes.keys():
            raise Misfit(f"{self.op} has the attributes {sorted(self.attributes)}, not {sorted(attributes)}")
        for name, kind in self.attributes.items():
            if not kind.holds(attributes[name]):
                raise Misfit(f"{self.op}: {name} is {attributes[name]!r}, not {kind.said}")


SIGNATURES: dict[str, Signature] = {}


def signature(least: int, most: int | None = None, **attributes: Allowed) -> Callable[[Rule], Rule]:
    """Add a primitive to the table: the name of its rule is its own."""

    def add(rule: Rule) -> Rule:
        op = rule.__name__.strip("_")
        SIGNATURES[op] = Signature(op, least, most or least, attributes, rule)
        return rule

    return add


def need(condition: bool, what: str) -> None:
    if not condition:
        raise Misfit(what)


def numbers(*values: Value) -> None:
    need(all(value.dtype in FLOATS for value in values), "its inputs are no floating point numbers")


def sizes(shape: Sequence[int | str]) -> tuple[int, ...]:
    """A shape without a batch axis."""
    lengths = tuple(n for n in shape if isinstance(n, int))
    need(len(lengths) == len(shape), f"{list(shape)} has a batch axis")
    return lengths


def ranked(value: Value, rank: int) -> tuple[int | str, ...]:
    need(len(value.shape) == rank, f"{list(value.shape)} is not of rank {rank}")
    return value.shape


def joined(a: Value, b: Value) -> Value:
    """The type of a sum: shapes are broadcast, and float32 is the wider of two types."""
    numbers(a, b)
    rank = max(len(a.shape), len(b.shape))
    pairs = zip(*((1,) * (rank - len(v.shape)) + v.shape for v in (a, b)), strict=True)
    shape = []
    for m, n in pairs:
        need(m == n or 1 in (m, n), f"{list(a.shape)} and {list(b.shape)} do not go together")
        shape.append(n if m == 1 else m)
    need(a.dtype == b.dtype or "float32" in (a.dtype, b.dtype), f"{a.dtype} and {b.dtype} do not go together")
    return Value(tuple(shape), a.dtype if a.dtype == b.dtype else "float32")
