"""A segment's primitives with concrete shapes, and with every change of type written out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...ir.graph import Primitive, Value
from ...ir.primitives import apply
from ...ir.signature import Misfit
from ...ir.signatures import TABLE
from .views import shape_of

LARGEST = 2**31  # entries: indices are ints of C


@dataclass(frozen=True)
class Normal:
    """Primitives in order, and the types of all values."""

    primitives: tuple[Primitive, ...]
    types: Mapping[str, Value]


def normal(primitives: Iterable[Primitive], inputs: Mapping[str, Value]) -> Normal:
    """Raises Misfit for primitives that do not fit, or a value that is too large."""
    types, result = dict(inputs), list[Primitive]()

    def take(primitive: Primitive) -> None:
        primitive = _with_numbers(primitive, types)
        result.append(primitive)
        types.update(zip(primitive.outputs, _types(primitive, types), strict=True))

    def narrowed(name: str, dtype: str) -> str:
        if types[name].dtype == dtype:
            return name
        if f"{name}:{dtype}" not in types:
            take(Primitive("cast", (("dtype", dtype),), (name,), (f"{name}:{dtype}",)))
        return f"{name}:{dtype}"

    for primitive in primitives:
        if primitive.op in TABLE:
            TABLE[primitive.op].check(dict(primitive.attributes))
        wanted = _wanted(primitive, types)
        operands = tuple(narrowed(name, wanted.get(n, types[name].dtype)) for n, name in enumerate(primitive.inputs))
        take(Primitive(primitive.op, primitive.attributes, operands, primitive.outputs))
    large = [name for name, value in types.items() if math.prod(shape_of(value)) >= LARGEST]
    if large:
        raise Misfit(f"{large[0]} has {math.prod(shape_of(types[large[0]])):,} entries, more than an index reaches")
    return Normal(tuple(result), types)


def _wanted(primitive: Primitive, types: Mapping[str, Value]) -> dict[int, str]:
    """The types that a library wants of some inputs."""
    dtypes = [types[name].dtype for name in primitive.inputs if name in types]
    if primitive.op == "linear":
        return {0: dtypes[1]}
    if primitive.op == "sdpa" and len(dtypes) == 4:
        return {3: dtypes[0]}
    if primitive.op == "bank":
        values, gates = _inputs_of_bank(primitive)
        wide = {n for group in (values, gates) if len({dtypes[i] for i in group}) > 1 for n in group}
        return dict.fromkeys(wide, "float32")
    return {}


def _inputs_of_bank(primitive: Primitive) -> tuple[range, range]:
    """Which inputs are values, and which are gates."""
    gated = dict(primitive.attributes)["gated"]
    assert isinstance(gated, tuple)
    first = 1 + len(gated)
    return range(1, first), range(first, first + sum(gated))


def _with_numbers(primitive: Primitive, types: Mapping[str, Value]) -> Primitive:
    """A reshape whose batch axis is a number."""
    shape = dict(primitive.attributes).get("shape")
    if primitive.op != "reshape" or not isinstance(shape, tuple) or shape[0] != -1:
        return primitive
    count = math.prod(shape_of(types[primitive.inputs[0]]))
    return Primitive("reshape", (("shape", (count // math.prod(shape[1:]), *shape[1:])),), primitive.inputs, primitive.outputs)


def _types(primitive: Primitive, types: Mapping[str, Value]) -> tuple[Value, ...]:
    if primitive.op != "bank":
        return apply(primitive, types)
    rows = types[primitive.inputs[1]].shape[0]  # its rule wants a batch axis by name
    values, gates = _inputs_of_bank(primitive)
    named = {name: types[name] for name in primitive.inputs}
    for n, name in enumerate(primitive.inputs):
        shape = types[name].shape
        if n in gates:
            named[name] = Value((shape[0], "R", *shape[2:]), types[name].dtype)
        elif n in values or len(shape) == 4:
            named[name] = Value(("R", *shape[1:]), types[name].dtype)
    (value,) = apply(primitive, named)
    return (Value(tuple(rows if n == "R" else n for n in value.shape), value.dtype),)
