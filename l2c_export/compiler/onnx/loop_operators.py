"""What goes from call to call as nodes of ONNX: guidance and the sampler's update, and the bank of sums; more of the rules."""

from __future__ import annotations

import numpy as np

from ...models.bank import MOST
from .operators import rule
from .writer import Operand, Writer, count, sized


@rule
def update(w: Writer, noise: Operand, x: Operand, base: Operand, conditional: Operand, unconditional: Operand,
           guidance: Operand, coefficients: Operand) -> Operand:  # fmt: skip
    of_base, of_x, of_noise = numbers(w, coefficients)
    guided = guidance_of(w, noise, x, conditional, unconditional, guidance)
    kept = w.node("Add", w.node("Mul", of_base, base), w.node("Mul", of_x, x))
    return w.node("Add", kept, w.node("Mul", of_noise, guided))


@rule
def data(w: Writer, noise: Operand, x: Operand, conditional: Operand, unconditional: Operand, guidance: Operand,
         coefficients: Operand) -> Operand:  # fmt: skip
    of_x, of_noise, *_ = numbers(w, coefficients)
    guided = guidance_of(w, noise, x, conditional, unconditional, guidance)
    return w.node("Add", w.node("Mul", of_x, x), w.node("Mul", of_noise, guided))


@rule
def multistep(w: Writer, x: Operand, *predicted_and_coefficients: Operand) -> Operand:
    *predicted, coefficients = predicted_and_coefficients
    _, _, of_x, *weights = numbers(w, coefficients)
    total = w.node("Mul", of_x, x)
    for weight, value in zip(weights, predicted, strict=True):
        total = w.node("Add", total, w.node("Mul", weight, value))
    return total


def numbers(w: Writer, coefficients: Operand) -> list[Operand]:
    """Each of some coefficients by itself."""
    return [w.node("Gather", coefficients, w.constant(n, "int64"), axis=0) for n in range(count(coefficients.shape))]


def guidance_of(
    w: Writer, noise: Operand, x: Operand, conditional: Operand, unconditional: Operand, guidance: Operand
) -> Operand:
    """c + guidance (c - u) of the prediction, cut to the latents' channels."""
    channels = count(x.shape[1:2])
    cut = noise if noise.shape[1] == channels else w.part(noise, 1, 0, channels)
    c, u = (w.node("Gather", w.wide(cut), rows, axis=0) for rows in (conditional, unconditional))
    return w.node("Add", c, w.node("Mul", guidance, w.node("Sub", c, u)))


@rule
def bank(w: Writer, weights: Operand, *inputs: Operand, gated: tuple[int, ...]) -> Operand:
    count_of, gates = len(gated), list(inputs[len(gated) : len(gated) + sum(gated)])
    values = stacked(w, [w.permute(w.wide(value), 0, 2, 1) for value in inputs[:count_of]], 2)  # (R, D, J, T)
    sums, calls = sized(weights.shape)
    width = sized(inputs[0].shape)[2]
    strengths = [gate(w, gates.pop(0)) if has else ungated(w, inputs[0], calls) for has in gated]
    factors = w.reshape(stacked(w, strengths, 3), calls, -1)  # (W, R D J)
    factors = w.reshape(w.node("MatMul", weights, factors), sums, -1, width, count_of)
    terms = w.node("MatMul", w.permute(factors, 1, 2, 0, 3), values)
    if len(inputs) == count_of + sum(gated):
        return terms
    keep, before = inputs[-2:]
    return w.node("Add", terms, w.node("Mul", w.reshape(keep, -1, 1), before))


def gate(w: Writer, x: Operand) -> Operand:
    """(W, R, 1, D) -> (W, R, D), in float32."""
    return w.node("Squeeze", w.wide(x), w.integers(2))


def ungated(w: Writer, value: Operand, calls: int) -> Operand:
    """(W, R, D) of ones, as many rows as a value has."""
    row = w.node("Squeeze", w.part(w.wide(value), 1, 0, 1), w.integers(1))
    ones = w.constant(np.ones((calls, 1, 1)), "float32")
    return w.node("Add", w.node("Unsqueeze", w.scaled("Mul", row, 0.0), w.integers(0)), ones)


def stacked(w: Writer, values: list[Operand], axis: int) -> Operand:
    """Side by side along a new axis; of many, ONNX Runtime would have to allocate memory in the middle of a captured graph."""
    wide = [w.node("Unsqueeze", value, w.integers(axis)) for value in values]
    parts = [joined(w, wide[first : first + MOST], axis) for first in range(0, len(wide), MOST)]
    return joined(w, parts, axis)


def joined(w: Writer, values: list[Operand], axis: int) -> Operand:
    return w.node("Concat", *values, axis=axis) if len(values) > 1 else values[0]


@rule
def banked(w: Writer, sums: Operand, slot: Operand, *, dtype: str) -> Operand:
    one = w.node("Squeeze", w.node("Gather", sums, slot, axis=2), w.integers(2))
    return w.cast(w.permute(one, 0, 2, 1), dtype)
