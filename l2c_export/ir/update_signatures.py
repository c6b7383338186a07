"""The primitives that end every call: guidance and the sampler's update, in float32 (`models/updates.py`)."""

from __future__ import annotations

from .graph import Value
from .signature import joined, need, numbers, ranked, signature, sizes


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
