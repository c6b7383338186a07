"""Primitives as they are written down: what undoes or repeats the step before is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...ir.graph import Attribute, Value
from ..tape import Recorded, Tape

Shape = tuple[int | str, ...]


class PrimitiveBuilder:
    """A tape, and moves of numbers on it that are merged where two follow each other."""

    def __init__(self, kind: str) -> None:
        self.tape = Tape(kind)
        self._inputs: list[Recorded] = []
        self._known: dict[tuple[Any, ...], Any] = {}
        self._moves: dict[str, tuple[str, Any, Recorded]] = {}  # a value's last move: operation, attribute, from what

    def input(self, name: str, value: Value) -> Recorded:
        self._inputs.append(self.tape.value(name, value))
        return self._inputs[-1]

    def rows(self) -> Recorded:
        """(R,) zeros, as many as the batch has rows."""
        row = next(v for v in self._inputs if isinstance(v.shape[0], str) and v.value.dtype != "int32")
        for axis in range(1, len(row.shape)):
            row = self.part(row, axis, 0, 1)
        return self.affine(self.reshape(row, row.shape[:1]), scale=0.0)

    def apply(self, op: str, *inputs: Recorded, **attributes: Attribute) -> Any:
        """What a primitive makes; what was made before is not made again."""
        key = (op, tuple(i.name for i in inputs), tuple(attributes.items()))
        if key not in self._known:
            self._known[key] = self.tape.take(op, inputs, attributes)
        return self._known[key]

    def reshape(self, x: Recorded, shape: Sequence[int | str]) -> Recorded:
        """x in another shape."""
        op, _, source = self._moves.get(x.name, ("", None, x))
        x = source if op == "reshape" else x
        if tuple(shape) == x.shape:
            return x
        numbers = tuple(-1 if isinstance(n, str) else n for n in shape)
        return self._moved("reshape", numbers, x, self.apply("reshape", x, shape=numbers))

    def permute(self, x: Recorded, axes: Sequence[int]) -> Recorded:
        """x with its axes in another order."""
        op, before, source = self._moves.get(x.name, ("", None, x))
        if op == "permute":
            x, axes = source, [before[axis] for axis in axes]
        order = tuple(axes)
        if order == tuple(range(len(order))):
            return x
        return self._moved("permute", order, x, self.apply("permute", x, axes=order))

    def part(self, x: Recorded, axis: int, first: int, last: int) -> Recorded:
        """Entries of an axis."""
        if (first, last) == (0, x.shape[axis]):
            return x
        result: Recorded = self.apply("part", x, axis=axis, first=first, last=last)
        return result

    def affine(self, x: Recorded, scale: float = 1.0, shift: float = 0.0) -> Recorded:
        """scale x + shift."""
        result: Recorded = self.apply("affine", x, scale=float(scale), shift=float(shift))
        return result

    def joined(self, values: Sequence[Recorded], axis: int) -> Recorded:
        result: Recorded = self.apply("concat", *values, axis=axis) if len(values) > 1 else values[0]
        return result

    def _moved(self, op: str, how: Any, source: Recorded, result: Recorded) -> Recorded:
        self._moves[result.name] = op, how, source
        return result


def flat(shape: Sequence[int | str]) -> int:
    """How many numbers are behind the batch axis."""
    return math.prod(n for n in shape if isinstance(n, int))
