"""The primitives as nodes of ONNX, in operators of opset 17, which the oldest supported parser reads (TensorRT 8.6).

One function each, of a writer, operands and attributes.  They are those of `models/primitives.py`, in the forms that
libraries run fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...ir.dtypes import E4M3
from ...models.primitives import frequencies, rotations
from .models import TYPES
from .writer import Operand, Writer, count, sized

Written = Operand | tuple[Operand, ...]
Rule = Callable[..., Written]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Add the function to the rules, under its own name."""
    RULES[function.__name__] = function
    return function


@rule
def add(w: Writer, a: Operand, b: Operand) -> Operand:
    return w.pair("Add", a, b)


@rule
def mul(w: Writer, a: Operand, b: Operand) -> Operand:
    return w.pair("Mul", a, b)


@rule
def cast(w: Writer, x: Operand, *, dtype: str) -> Operand:
    return w.node("Cast", x, dtype=dtype, to=TYPES[dtype])


@rule
def affine(w: Writer, x: Operand, *, scale: float, shift: float) -> Operand:
    product = x if scale == 1 and shift else w.scaled("Mul", x, scale)
    return w.scaled("Add", product, shift) if shift else product


@rule
def gelu(w: Writer, x: Operand) -> Operand:
    erf = w.node("Erf", w.scaled("Div", x, math.sqrt(2)))
    return w.node("Mul", x, w.scaled("Mul", w.scaled("Add", erf, 1.0), 0.5))


@rule
def gelu_tanh(w: Writer, x: Operand) -> Operand:
    """0.5 (1 + tanh u) = sigmoid(2u), which is three operations fewer."""
    square = w.scaled("Add", w.scaled("Mul", w.node("Mul", x, x), 0.044715), 1.0)
    angle = w.node("Mul", w.scaled("Mul", x, 2 * math.sqrt(2 / math.pi)), square)
    return w.node("Mul", x, w.node("Sigmoid", angle))


@rule
def silu(w: Writer, x: Operand) -> Operand:
    return w.node("Mul", x, w.node("Sigmoid", x))


@rule
def relu(w: Writer, x: Operand) -> Operand:
    return w.node("Relu", x)


@rule
def modulate(w: Writer, x: Operand, shift: Operand, scale: Operand) -> Operand:
    return w.pair("Add", w.pair("Mul", x, w.scaled("Add", scale, 1.0)), shift)


@rule
def layer_norm(w: Writer, x: Operand, weight: Operand | None = None, bias: Operand | None = None, *, eps: float) -> Operand:
    """In float32, as PyTorch's own kernel is inside."""
    scale = w.constant(np.ones(x.shape[-1:]), "float32") if weight is None else w.wide(weight)
    shift = () if bias is None else (w.wide(bias),)
    norm = w.node("LayerNormalization", w.wide(x), scale, *shift, axis=-1, epsilon=eps, stash_type=1)
    return w.cast(norm, x.dtype)


@rule
def rms_norm(w: Writer, x: Operand, weight: Operand | None = None, *, eps: float) -> Operand:
    wide = w.wide(x)
    mean = w.node("ReduceMean", w.node("Mul", wide, wide), axes=[-1], keepdims=1)
    norm = w.node("Mul", wide, w.node("Reciprocal", w.node("Sqrt", w.scaled("Add", mean, eps))))
    return w.cast(norm if weight is None else w.node("Mul", norm, w.wide(weight)), x.dtype)


@rule
def linear(w: Writer, x: Operand, weight: Operand, bias: Operand | None = None, *, parts: int) -> Written:
    """On tokens flattened to two dimensions: one Gemm with its bias is faster than MatMul + Add."""
    rows, *columns = sized(weight.shape)
    matrix = weight if len(columns) == 1 else w.reshape(weight, rows, -1)
    flat = x if len(x.shape) == 2 else w.reshape(x, -1, math.prod(columns))
    product = w.node("Gemm", w.cast(flat, weight.dtype), matrix, *([] if bias is None else [bias]), transB=1)
    products = [product] if parts == 1 else w.several("Split", product, count=parts, axis=1)
    if len(x.shape) == 2:
        return tuple(products)
    return tuple(w.reshape(part, *sized(x.shape[:-1]), rows // parts) for part in products)


@rule
def quantise(w: Writer, x: Operand, scale: Operand) -> Operand:
    """As QuantizeLinear of opset 19; a cast beyond the largest number gives that."""
    zero, first = w.constant(0.0, E4M3), w.part(scale, 0, 0, 1)
    return w.node("QuantizeLinear", w.wide(x), first, zero, dtype=E4M3)._replace(shape=x.shape)


@rule
def linear_fp8(
    w: Writer, x: Operand, weight: Operand, x_scale: Operand, weight_scale: Operand, bias: Operand | None = None, *, parts: int
) -> Written:
    """Between DequantizeLinear and the product a library finds that it is one of e4m3."""
    pairs = ((factor, w.cast(w.part(scale, 0, 0, 1), "bfloat16")) for factor, scale in ((x, x_scale), (weight, weight_scale)))
    wide = [w.node("DequantizeLinear", factor, scale, dtype="bfloat16")._replace(shape=factor.shape) for factor, scale in pairs]
    return linear(w, *wide, bias, parts=parts)


@rule
def sdpa(w: Writer, q: Operand, k: Operand, v: Operand, mask: Operand | None = None, *, heads: int) -> Operand:
    """As separate operations: opset 17 has no attention."""
    size = count(q.shape[2:]) // heads
    query, key, value = (
        w.permute(w.reshape(part, *sized(part.shape[:2]), heads, size), *axes)
        for part, axes in ((q, (0, 2, 1, 3)), (k, (0, 2, 3, 1)), (v, (0, 2, 1, 3)))
    )
    scores = w.node("MatMul", w.scaled("Mul", query, size**-0.5), key)
    scores = scores if mask is None else w.pair("Add", scores, mask)
    mixed = w.node("MatMul", w.cast(w.node("Softmax", w.wide(scores), axis=-1), v.dtype), value)
    return w.reshape(w.permute(mixed, 0, 2, 1, 3), *sized(q.shape))


@rule
def linear_attention(w: Writer, q: Operand, k: Operand, v: Operand, *, heads: int) -> Operand:
    """In float32: a row of ones below the values makes the sums of the scores."""
    size = count(q.shape[2:]) // heads
    query, key, value = (
        w.permute(w.reshape(w.wide(part), *sized(part.shape[:2]), heads, size), 0, 2, *axes)
        for part, axes in ((q, (3, 1)), (k, (1, 3)), (v, (3, 1)))
    )
    ones = w.scaled("Add", w.scaled("Mul", w.part(value, 2, 0, 1), 0.0), 1.0)
    mixed = w.node("MatMul", w.node("Concat", value, ones, axis=2), w.node("Relu", key))
    mixed = w.node("MatMul", mixed, w.node("Relu", query))
    sums = w.scaled("Add", w.part(mixed, 2, size, size + 1), 1e-15)
    ratio = w.node("Div", w.part(mixed, 2, 0, size), sums)
    return w.cast(w.reshape(w.permute(ratio, 0, 3, 1, 2), *sized(v.shape)), v.dtype)


@rule
def depthwise(w: Writer, x: Operand, weight: Operand, bias: Operand | None = None, *, padding: int) -> Operand:
    return convolution(w, x, weight, bias, padding, count(x.shape[1:2]))


@rule
def conv2d(w: Writer, x: Operand, weight: Operand, bias: Operand | None = None, *, padding: int) -> Operand:
    return convolution(w, x, weight, bias, padding, 1)


def convolution(w: Writer, x: Operand, weight: Operand, bias: Operand | None, padding: int, groups: int) -> Operand:
    biases = [] if bias is None else [bias]
    kernel = sized(weight.shape[2:])
    return w.node("Conv", x, weight, *biases, group=groups, pads=[padding] * 4, kernel_shape=kernel)


@rule
def sinusoid(w: Writer, t: Operand, *, half: int, shift: int) -> Operand:
    turns = w.constant(frequencies(half, shift).numpy()[None], "float32")
    angle = w.node("Mul", w.node("Unsqueeze", t, w.integers(1)), turns)
    return w.node("Concat", w.node("Cos", angle), w.node("Sin", angle), axis=-1)


@rule
def rope(w: Writer, x: Operand, *, heads: int, theta: float) -> Operand:
    rows, tokens, width = sized(x.shape)
    size = width // heads
    cosine, sine = (w.constant(table.numpy()[:, None], "float32") for table in rotations(tokens, size // 2, theta))
    first, second = w.several("Split", w.wide(w.reshape(x, rows, tokens, heads, size)), count=2, axis=3)
    turned = (
        w.node("Sub", w.node("Mul", first, cosine), w.node("Mul", second, sine)),
        w.node("Add", w.node("Mul", first, sine), w.node("Mul", second, cosine)),
    )
    return w.cast(w.reshape(w.node("Concat", *turned, axis=-1), rows, tokens, width), x.dtype)


@rule
def patchify(w: Writer, x: Operand, *, patch: int) -> Operand:
    n, channels, height, width = sized(x.shape)
    rows, columns = height // patch, width // patch
    cells = w.permute(w.reshape(x, n, channels, rows, patch, columns, patch), 0, 2, 4, 1, 3, 5)
    return w.reshape(cells, n, rows * columns, channels * patch * patch)


@rule
def unpatchify(w: Writer, x: Operand, *, patch: int, channels: int, height: int, width: int) -> Operand:
    n = sized(x.shape)[0]
    cells = w.reshape(x, n, height // patch, width // patch, patch, patch, channels)
    return w.reshape(w.permute(cells, 0, 5, 1, 3, 2, 4), n, channels, height, width)


@rule
def gather(w: Writer, x: Operand, rows: Operand) -> Operand:
    return w.node("Gather", x, rows, axis=0)


@rule
def concat(w: Writer, *values: Operand, axis: int) -> Operand:
    return w.node("Concat", *values, axis=axis)


@rule
def unsqueeze(w: Writer, x: Operand, *, axis: int) -> Operand:
    return w.node("Unsqueeze", x, w.integers(axis))


@rule
def reshape(w: Writer, x: Operand, *, shape: tuple[int, ...]) -> Operand:
    return w.reshape(x, *shape)


@rule
def permute(w: Writer, x: Operand, *, axes: tuple[int, ...]) -> Operand:
    return w.permute(x, *axes)


@rule
def part(w: Writer, x: Operand, *, axis: int, first: int, last: int) -> Operand:
    return w.part(x, axis, first, last)


@rule
def tail(w: Writer, x: Operand, *, start: int) -> Operand:
    return w.part(x, 1, start, sized(x.shape)[1])
