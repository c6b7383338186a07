"""The primitives of a bank of sums, which goes from call to call (`models/bank.py`)."""

from __future__ import annotations

from .graph import Value
from .signature import DTYPE, FLAGS, need, numbers, ranked, signature, sizes

MOST_VALUES = 2**10  # that a sum is of


@signature(2, 3 + 2 * MOST_VALUES, gated=FLAGS)
def bank(weights: Value, *inputs: Value, gated: tuple[int, ...]) -> tuple[Value, ...]:
    count, both = len(gated), len(gated) + sum(gated)
    need(0 < count <= MOST_VALUES and len(inputs) in (both, both + 2), "there are not as many values and gates as it says")
    sums, calls = sizes(ranked(weights, 2))
    rows, tokens, width = ranked(inputs[0], 3)
    total = Value((rows, width, sums, tokens))
    need(weights.dtype == "float32" and isinstance(rows, str), "weights are float32, and values have a batch axis")
    need(all(v.shape == inputs[0].shape for v in inputs[:count]), "values are of several shapes")
    need(all(g.shape == (calls, rows, 1, width) for g in inputs[count:both]), "gates are not those of the calls")
    numbers(*inputs[:both])
    if len(inputs) > both:
        keep, before = inputs[both:]
        need((keep.shape, keep.dtype) == ((sums,), "float32") and before.shape == total.shape, "the sums are others")
    return (total,)


@signature(2, dtype=DTYPE)
def banked(sums: Value, slot: Value, dtype: str) -> tuple[Value, ...]:
    rows, width, _, tokens = ranked(sums, 4)
    need((slot.shape, slot.dtype) == ((1,), "int32"), "the slot is one int32")
    return (Value((rows, tokens, width), dtype),)
