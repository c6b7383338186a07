"""Writing the nodes of one operation: names, types and constants."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from ...ir.dtypes import HALVES
from .models import TYPES

Shape = tuple[int | str, ...]


class Operand(NamedTuple):
    """A value while its operation is written; `shape` is known of what primitives read."""

    name: str
    dtype: str
    shape: Shape = ()


class Writer:
    """The nodes of an operation so far, each called after the primitive that it belongs to, and their constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], TensorProto] = {}
        self.primitive = ""
        self._taken: Counter[str] = Counter()

    def node(self, op: str, *inputs: Operand, dtype: str = "", domain: str = "", **how: Any) -> Operand:
        """What a node makes, of the type of its first input if no other is said."""
        return self.several(op, *inputs, count=1, dtype=dtype, domain=domain, **how)[0]

    def several(self, op: str, *inputs: Operand, count: int, dtype: str = "", domain: str = "", **how: Any) -> list[Operand]:
        """The same of a node that makes several values."""
        names = [self._name(self.primitive) for _ in range(count)]
        self.nodes.append(helper.make_node(op, [i.name for i in inputs], names, domain=domain or None, **how))
        return [Operand(name, dtype or inputs[0].dtype) for name in names]

    def _name(self, base: str) -> str:
        self._taken[base] += 1
        return f"{base}_{self._taken[base]}"

    def constant(self, values: Any, dtype: str) -> Operand:
        """Numbers that are part of the operation, there once."""
        array = np.asarray(values, dtype)
        key = dtype, array.shape, array.tobytes()
        if key not in self.constants:
            kind = TensorProto.INT64 if dtype == "int64" else TYPES[dtype]
            name = self._name("constant")
            self.constants[key] = helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
        return Operand(self.constants[key].name, dtype, array.shape)

    def integers(self, *values: int) -> Operand:
        """Axes, sizes and positions."""
        return self.constant(values, "int64")

    def cast(self, x: Operand, dtype: str) -> Operand:
        """In a type, if it is another."""
        if x.dtype == dtype:
            return x
        return self.node("Cast", x, dtype=dtype, to=TYPES[dtype])._replace(shape=x.shape)

    def wide(self, x: Operand) -> Operand:
        """float32 for what half precision is too coarse for."""
        return self.cast(x, "float32" if x.dtype in HALVES else x.dtype)

    def pair(self, op: str, a: Operand, b: Operand) -> Operand:
        """An operation of two values in the wider of their types."""
        if a.dtype != b.dtype:
            a, b = self.wide(a), self.wide(b)
        return self.node(op, a, b)

    def scaled(self, op: str, x: Operand, number: float) -> Operand:
        """An operation of a value and one number, in the value's type."""
        return self.node(op, x, self.constant(number, x.dtype))

    def reshape(self, x: Operand, *shape: int) -> Operand:
        """In another shape, of which one size may be -1."""
        return self.node("Reshape", x, self.integers(*shape))

    def permute(self, x: Operand, *axes: int) -> Operand:
        """With its axes in another order."""
        return self.node("Transpose", x, perm=axes)

    def part(self, x: Operand, axis: int, first: int, last: int) -> Operand:
        """Entries of an axis."""
        return self.node("Slice", x, *(self.integers(n) for n in (first, last, axis)))


def sized(shape: Shape) -> list[int]:
    """Sizes for a Reshape: a batch axis is what is left."""
    return [-1 if isinstance(n, str) else n for n in shape]


def count(shape: Shape) -> int:
    """How many numbers there are, the batch axis aside."""
    return math.prod(n for n in shape if isinstance(n, int))
