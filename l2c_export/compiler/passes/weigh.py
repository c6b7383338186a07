"""Weigh: the operation that makes a forecast value, a sum of coefficient x value, and the difference that a level is.

Both are bodies like a family's own operations.  They are called after what they compute, since every graph has its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from ...ir.graph import Body, Value
from ...models import layers
from ...models.primitives import add, affine, cast, mul
from ...models.tape import body

FORECAST, DIFFERENCE = "forecast", "difference"  # kinds


def forecast(values: Sequence[Value], coefficients: Sequence[Value], dtype: str) -> tuple[str, Body]:
    """The operation values.., coefficients.. -> their sum, of type `dtype`; it is computed in float32.  Its name is its own."""

    def weighted(*inputs: Any) -> Any:
        terms = [mul(number, layers.wide(v)) for v, number in zip(inputs[: len(values)], inputs[len(values) :], strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = add(total, term)
        return total if dtype == "float32" else cast(total, dtype=dtype)

    return _named(body(FORECAST, weighted, [*values, *coefficients]), f"{FORECAST}{len(values)}")


def difference(after: Value, before: Value) -> tuple[str, Body]:
    """The operation after, before -> after - before, in the type of the stream."""

    def apart(a: Any, b: Any) -> Any:
        return layers.to(add(layers.wide(a), affine(layers.wide(b), scale=-1.0, shift=0.0)), a.dtype)

    return _named(body(DIFFERENCE, apart, [after, before]), DIFFERENCE)


def _named(made: Body, title: str) -> tuple[str, Body]:
    digest = hashlib.sha256(msgspec.json.encode(made, order="deterministic")).hexdigest()
    return f"{title}_{digest[:6]}", made
