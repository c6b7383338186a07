"""The primitives: what each takes, and the types of what it makes of that.

`models/primitives.py` has the same in PyTorch.  Activations come first, then weights; an input at the end may be left out
where a signature takes a range of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .dtypes import E4M3
from .graph import Value
from .signature import (
    AXES,
    DTYPE,
    EPSILON,
    FREQUENCY,
    INDEX,
    NUMBER,
    SHAPE,
    SIGNATURES,
    SIZE,
    Signature,
    joined,
    need,
    numbers,
    ranked,
    signature,
    sizes,
)

MOST_PARTS = 64  # of a linear layer
FP8_ALIGNED = 16  # what rows and columns of a product in e4m3 are multiples of

# elementwise


@signature(2)
def add(a: Value, b: Value) -> tuple[Value, ...]:
    """a + b."""
    return (joined(a, b),)


@signature(2)
def mul(a: Value, b: Value) -> tuple[Value, ...]:
    """a * b."""
    return (joined(a, b),)


@signature(1, dtype=DTYPE)
def cast(x: Value, dtype: str) -> tuple[Value, ...]:
    """Numbers, or whole numbers, as numbers of another type."""
    return (Value(x.shape, dtype),)


@signature(1, scale=NUMBER, shift=NUMBER)
def affine(x: Value, scale: float, shift: float) -> tuple[Value, ...]:
    """scale x + shift."""
    return same(x)


def same(x: Value) -> tuple[Value, ...]:
    numbers(x)
    return (Value(x.shape, x.dtype),)


for name in ("gelu", "gelu_tanh", "silu", "relu"):
    SIGNATURES[name] = Signature(name, 1, 1, {}, same)


@signature(3)
def modulate(x: Value, shift: Value, scale: Value) -> tuple[Value, ...]:
    """x (1 + scale) + shift."""
    result = joined(joined(x, scale), shift)
    need(result.shape == x.shape, "shift and scale are larger than what they change")
    return (result,)


# norms over the last axis; their statistics are float32


@signature(1, 3, eps=EPSILON)
def layer_norm(x: Value, weight: Value | None = None, bias: Value | None = None, *, eps: float) -> tuple[Value, ...]:
    need(bool(x.shape), "a number has no last axis")
    for vector in (weight, bias):
        need(vector is None or vector.shape == x.shape[-1:], "a weight is not as wide as what is normalised")
        numbers(*(vector,) if vector else ())
    return same(x)


@signature(1, 2, eps=EPSILON)
def rms_norm(x: Value, weight: Value | None = None, *, eps: float) -> tuple[Value, ...]:
    return layer_norm(x, weight, eps=eps)


# products, in the type of the weights


@signature(2, 3, parts=SIZE)
def linear(x: Value, weight: Value, bias: Value | None = None, *, parts: int) -> tuple[Value, ...]:
    """x weight' + bias over the last axis; the rows of the weight are those of `parts` results, one after the other."""
    numbers(x, weight)
    need(len(weight.shape) >= 2 and len(x.shape) >= 2, "a product needs matrices")
    rows, *columns = sizes(weight.shape)
    need(x.shape[-1] == math.prod(columns), "the weight is not as wide as what it multiplies")
    need(rows % parts == 0, f"{rows} rows are not {parts} equal parts")
    need(bias is None or (bias.shape, bias.dtype) == ((rows,), weight.dtype), "the bias does not fit the weight")
    need(parts <= MOST_PARTS, f"{parts} parts are too many")
    return (Value((*x.shape[:-1], rows // parts), weight.dtype),) * parts


@signature(2)
def quantise(x: Value, scale: Value) -> tuple[Value, ...]:
    """x / scale as e4m3, rounded to the nearest, the largest number of that type where it is more.

    A scale is (2,) float32: itself, and 1 over it.
    """
    numbers(x)
    _scale(scale)
    return (Value(x.shape, E4M3),)


@signature(4, 5, parts=SIZE)
def linear_fp8(
    x: Value, weight: Value, x_scale: Value, weight_scale: Value, bias: Value | None = None, *, parts: int
) -> tuple[Value, ...]:
    """`linear` of e4m3 numbers, each with one scale for all of them; what it makes is bfloat16."""
    need(x.dtype == weight.dtype == E4M3, "the product is one of e4m3")
    for scale in (x_scale, weight_scale):
        _scale(scale)
    rows, columns = sizes(ranked(weight, 2))
    need(fp8_fits(rows, columns, parts), f"{rows} x {columns} are no multiples of {FP8_ALIGNED}")
    return linear(Value(x.shape, "bfloat16"), Value(weight.shape, "bfloat16"), bias, parts=parts)


def fp8_fits(rows: int, columns: int, parts: int) -> bool:
    """Whether libraries multiply with such a weight of e4m3."""
    return rows % (FP8_ALIGNED * parts) == 0 and columns % FP8_ALIGNED == 0


def _scale(scale: Value) -> None:
    need((scale.shape, scale.dtype) == ((2,), "float32"), "a scale is two numbers of float32")


@signature(3, 4, heads=SIZE)
def sdpa(q: Value, k: Value, v: Value, mask: Value | None = None, *, heads: int) -> tuple[Value, ...]:
    """Scaled dot-product attention of q (R, T, D) over k and v (R, S, D), whose last axes hold heads.

    A mask (R or 1, heads or 1, T or 1, S) is added to the scores.
    """
    numbers(q, k, v)
    rows, _, width = ranked(q, 3)
    need(k.shape == v.shape and ranked(k, 3)[::2] == (rows, width), "queries, keys and values do not go together")
    need(q.dtype == k.dtype == v.dtype, "queries, keys and values are of several types")
    sizes((*q.shape[1:], *k.shape[1:]))
    need(isinstance(width, int) and width % heads == 0, f"{width} is not a multiple of {heads} heads")
    if mask is not None:
        numbers(mask)
        scores = zip(ranked(mask, 4)[:3], (rows, heads, q.shape[1]), strict=True)
        need(mask.shape[3] == k.shape[1] and all(a in (1, b) for a, b in scores), "the mask is not one of the scores")
    return (Value(q.shape, q.dtype),)


@signature(3, heads=SIZE)
def linear_attention(q: Value, k: Value, v: Value, heads: int) -> tuple[Value, ...]:
    """Attention whose scores are products of what is positive in q and k (arXiv 2410.10629), of q, k and v (R, T, D)."""
    need(q.shape == k.shape, "queries and keys do not go together")
    return sdpa(q, k, v, heads=heads)


@signature(2, 3, padding=INDEX)
def depthwise(x: Value, weight: Value, bias: Value | None = None, *, padding: int) -> tuple[Value, ...]:
    """A convolution of every channel of (N, C, H, W) with its own kernel of weight (C, 1, H, W), with a stride of 1."""
    channels, one, *_ = sizes(ranked(weight, 4))
    need(one == 1 and channels == ranked(x, 4)[1], "the weight is for other channels")
    within = conv2d(Value((*x.shape[:1], 1, *x.shape[2:]), x.dtype), weight, bias, padding=padding)
    return (Value((*within[0].shape[:1], channels, *within[0].shape[2:]), x.dtype),)


@signature(2, 3, padding=INDEX)
def conv2d(x: Value, weight: Value, bias: Value | None = None, *, padding: int) -> tuple[Value, ...]:
    """Over (N, C, H, W), with a stride of 1."""
    numbers(x, weight)
    n, channels, *plane = ranked(x, 4)
    out, inner, *kernel = sizes(ranked(weight, 4))
    need(channels == inner and x.dtype == weight.dtype, "the weight is for other channels or another type")
    need(bias is None or (bias.shape, bias.dtype) == ((out,), weight.dtype), "the bias does not fit the weight")
    moved = tuple(size + 2 * padding - k + 1 for size, k in zip(sizes(plane), kernel, strict=True))
    need(min(moved) > 0, "the kernel is larger than the picture")
    return (Value((n, out, *moved), x.dtype),)


# positions


@signature(1, half=SIZE, shift=INDEX)
def sinusoid(t: Value, half: int, shift: int) -> tuple[Value, ...]:
    """t (R,) -> (R, 2 half): cosines, then sines, of t exp(-ln(10000) k / (half - shift)) for k < half."""
    need(ranked(t, 1) is not None and t.dtype == "float32", "times are float32")
    need(shift < half, f"a shift of {shift} leaves none of {half} frequencies")
    return (Value((*t.shape, 2 * half), "float32"),)


@signature(1, heads=SIZE, theta=FREQUENCY)
def rope(x: Value, heads: int, theta: float) -> tuple[Value, ...]:
    """Rotary positions (arXiv 2104.09864) of x (R, T, D): token t turns pair k of a head of size s by t theta^(-2k / s); the
    pairs are the first and the second half of a head."""
    *_, width = ranked(x, 3)
    sizes(x.shape[1:])
    need(isinstance(width, int) and width % (2 * heads) == 0, f"{width} is not {heads} heads of an even size")
    return same(x)


# moving


@signature(1, patch=SIZE)
def patchify(x: Value, patch: int) -> tuple[Value, ...]:
    """(N, C, H, W) -> (N, T, C patch patch), row major over patches."""
    n, *picture = ranked(x, 4)
    channels, height, width = sizes(picture)
    need(height % patch == 0 and width % patch == 0, f"its sides are no multiples of {patch}")
    return (Value((n, (height // patch) * (width // patch), channels * patch * patch), x.dtype),)


@signature(1, patch=SIZE, channels=SIZE, height=SIZE, width=SIZE)
def unpatchify(x: Value, patch: int, channels: int, height: int, width: int) -> tuple[Value, ...]:
    """(N, T, patch patch C), with C fastest, -> (N, C, H, W)."""
    n, *tokens = ranked(x, 3)
    need(height % patch == 0 and width % patch == 0, f"its sides are no multiples of {patch}")
    wanted = [(height // patch) * (width // patch), patch * patch * channels]
    need(tokens == wanted, f"its tokens are not {wanted}")
    return (Value((n, channels, height, width), x.dtype),)


@signature(2)
def gather(x: Value, rows: Value) -> tuple[Value, ...]:
    """Entries of the first axis, by number: one for each row (R,), or for each token (R, T)."""
    need(bool(x.shape) and rows.dtype == "int32" and len(rows.shape) in (1, 2), "rows are int32, of what has some")
    return (Value((*rows.shape, *x.shape[1:]), x.dtype),)


@signature(2, 8, axis=SIZE)
def concat(*values: Value, axis: int) -> tuple[Value, ...]:
    """Along an axis behind the batch."""
    first = values[0]
    need(axis < len(first.shape), f"there is no axis {axis}")
    others = {(*v.shape[:axis], *v.shape[axis + 1 :], v.dtype, len(v.shape)) for v in values}
    need(len(others) == 1, "they differ beside that axis")
    total = sum(sizes([v.shape[axis] for v in values]))
    return (Value((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype),)


@signature(1, axis=SIZE)
def unsqueeze(x: Value, axis: int) -> tuple[Value, ...]:
    """A new axis of 1, behind the batch."""
    need(axis <= len(x.shape), f"there is no axis {axis}")
    return (Value((*x.shape[:axis], 1, *x.shape[axis:]), x.dtype),)


@signature(1, shape=SHAPE)
def reshape(x: Value, shape: tuple[int, ...]) -> tuple[Value, ...]:
    """The same numbers in another shape, behind the batch axis where there is one."""
    first, *others = shape
    batch = x.shape[:1] if x.shape and isinstance(x.shape[0], str) else ()
    need(bool(batch) == (first == -1), f"{list(x.shape)} and {list(shape)} are not both with a batch axis, or both without")
    result: tuple[int | str, ...] = (*batch, *others) if batch else shape
    inner = sizes(x.shape[len(batch) :])
    need(math.prod(inner) == math.prod(result[len(batch) :]), f"{list(x.shape)} does not fill {list(shape)}")
    return (Value(result, x.dtype),)


@signature(1, axes=AXES)
def permute(x: Value, axes: tuple[int, ...]) -> tuple[Value, ...]:
    """Axes in another order; a batch axis stays the first."""
    need(len(axes) == len(x.shape), f"there are {len(x.shape)} axes")
    need(isinstance(x.shape[0], int) or axes[0] == 0, "a batch axis is the first")
    return (Value(tuple(x.shape[axis] for axis in axes), x.dtype),)


@signature(1, axis=INDEX, first=INDEX, last=SIZE)
def part(x: Value, axis: int, first: int, last: int) -> tuple[Value, ...]:
    """From entry `first` of an axis up to `last`, not including it."""
    need(axis < len(x.shape), f"there is no axis {axis}")
    length = x.shape[axis]
    need(isinstance(length, int) and first < last <= length, f"{length} has no part from {first} to {last}")
    return (Value((*x.shape[:axis], last - first, *x.shape[axis + 1 :]), x.dtype),)


@signature(1, start=INDEX)
def tail(x: Value, start: int) -> tuple[Value, ...]:
    """Tokens (R, T, D) from `start` on."""
    rows, tokens, width = ranked(x, 3)
    need(isinstance(tokens, int) and start < tokens, f"none of {tokens} tokens are left")
    assert isinstance(tokens, int)
    return (Value((rows, tokens - start, width), x.dtype),)


TABLE: Mapping[str, Signature] = SIGNATURES
