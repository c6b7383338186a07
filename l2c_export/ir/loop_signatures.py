"""The primitives of a loop: guidance and the sampler's update, and the bank of sums that goes from call to call."""

from __future__ import annotations

from .graph import Value
from .signature import DTYPE, Allowed, joined, need, numbers, ranked, signature, sizes

MOST_VALUES = 2**10  # that a sum is of

# guidance and the sampler's update, in float32 (models/updates.py)


def _guided(noise: Value, x: Value, conditional: Value, unconditional: Value, guidance: Value) -> tuple[Value, ...]:
    numbers(noise)
    need(len(x.shape) >= 2 and len(noise.shape) == len(x.shape), "latents and the prediction are of different ranks")
    need(noise.shape[2:] == x.shape[2:], "latents and the prediction differ")
    (most,), (channels,) = sizes(noise.shape[1:2]), sizes(x.shape[1:2])
    need(most >= channels, "the prediction has too few channels")
    for rows in (conditional, unconditional):
        need((rows.shape, rows.dtype) == (x.shape[:1], "int32"), "rows are int32, one per image")
    need(x.dtype == "float32" and joined(guidance, x) == Value(x.shape), "guidance does not fit the latents")
    return (Value(x.shape),)


def _coefficients(value: Value, least: int) -> None:
    need(value.dtype == "float32" and sizes(ranked(value, 1))[0] >= least, f"there are fewer than {least} coefficients")


@signature(7)
def update(
    noise: Value, x: Value, base: Value, conditional: Value, unconditional: Value, guidance: Value, coefficients: Value
) -> tuple[Value, ...]:
    need(coefficients.shape == (3,) and coefficients.dtype == "float32", "there are not 3 coefficients")
    need(Value(base.shape, base.dtype) == Value(x.shape), "the step's first latents are others")
    return _guided(noise, x, conditional, unconditional, guidance)


@signature(6)
def data(
    noise: Value, x: Value, conditional: Value, unconditional: Value, guidance: Value, coefficients: Value
) -> tuple[Value, ...]:
    _coefficients(coefficients, 2)
    return _guided(noise, x, conditional, unconditional, guidance)


@signature(3, 8)
def multistep(x: Value, *predicted_and_coefficients: Value) -> tuple[Value, ...]:
    *predicted, coefficients = predicted_and_coefficients
    _coefficients(coefficients, 3 + len(predicted))
    need(coefficients.shape == (3 + len(predicted),), "there are more coefficients than predictions")
    need(all(Value(v.shape, v.dtype) == Value(x.shape) for v in predicted), "predictions differ from the latents")
    return (Value(x.shape),)


# the bank of sums (models/bank.py)

GATED = Allowed("of every value whether it has a gate", lambda value: isinstance(value, tuple) and {*value} <= {0, 1})


@signature(2, 3 + 2 * MOST_VALUES, gated=GATED)
def bank(weights: Value, *inputs: Value, gated: tuple[int, ...]) -> tuple[Value, ...]:
    count, both = len(gated), len(gated) + sum(gated)
    need(0 < count <= MOST_VALUES and len(inputs) in (both, both + 2), "there are not as many values and gates as it says")
    sums, calls = sizes(ranked(weights, 2))
    rows, tokens, width = ranked(inputs[0], 3)
    made = Value((rows, width, sums, tokens))
    need(weights.dtype == "float32" and isinstance(rows, str), "weights are float32, and values have a batch axis")
    need(all(v.shape == inputs[0].shape for v in inputs[:count]), "values are of several shapes")
    need(all(g.shape == (calls, rows, 1, width) for g in inputs[count:both]), "gates are not those of the calls")
    numbers(*inputs[:both])
    if len(inputs) > both:
        keep, before = inputs[both:]
        need((keep.shape, keep.dtype) == ((sums,), "float32") and before.shape == made.shape, "the sums are others")
    return (made,)


@signature(2, dtype=DTYPE)
def banked(sums: Value, slot: Value, dtype: str) -> tuple[Value, ...]:
    rows, width, _, tokens = ranked(sums, 4)
    need((slot.shape, slot.dtype) == ((1,), "int32"), "the slot is one int32")
    return (Value((rows, tokens, width), dtype),)
