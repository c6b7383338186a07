"""From the operations of ATen to primitives: one rule each.  What has no rule is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from ...errors import ModelError
from ..tape import Recorded
from .build import PrimitiveBuilder
from .leaves import linear_attention_op, sinusoid_op

aten = torch.ops.aten
Rule = Callable[..., Any]  # of a builder, the node, and its arguments
UNSEEN = 10000.0  # what is taken from a score that is not seen: nothing is left of it, in half precision, too
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return add


def lower(builder: PrimitiveBuilder, node: Node, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Write a node as primitives of its arguments.  Raises ModelError for one that is none."""
    function = RULES.get(node.target)
    if function is None:
        raise unknown(node, "no primitive does this")
    try:
        return function(builder, node, *arguments, **options)
    except (TypeError, AssertionError) as error:
        raise unknown(node, str(error).splitlines()[0]) from None


def unknown(node: Node, why: str) -> ModelError:
    return ModelError(f"{node.target} in {node.meta.get('nn_module_stack') and _path(node)}: {why}: it cannot be captured")


def _path(node: Node) -> str:
    return str(list(node.meta["nn_module_stack"].values())[-1][0]).removeprefix("model.")


# arithmetic


@rule(aten.add.Tensor)
def add(b: PrimitiveBuilder, node: Node, x: Any, y: Any) -> Any:
    x, y = (x, y) if isinstance(x, Recorded) else (y, x)
    return b.apply("add", x, y) if isinstance(y, Recorded) else b.affine(x, shift=y)


@rule(aten.sub.Tensor)
def sub(b: PrimitiveBuilder, node: Node, x: Recorded, y: Any) -> Any:
    return b.apply("add", x, b.affine(y, -1.0)) if isinstance(y, Recorded) else b.affine(x, shift=-y)


@rule(aten.rsub.Scalar)
def rsub(b: PrimitiveBuilder, node: Node, x: Recorded, y: float) -> Any:
    return b.affine(x, -1.0, y)


@rule(aten.neg.default)
def neg(b: PrimitiveBuilder, node: Node, x: Recorded) -> Any:
    return b.affine(x, -1.0)


@rule(aten.div.Tensor)
def div(b: PrimitiveBuilder, node: Node, x: Recorded, y: float) -> Any:
    return b.affine(x, 1.0 / y)


@rule(aten.mul.Tensor)
def mul(b: PrimitiveBuilder, node: Node, x: Any, y: Any) -> Any:
    x, y = (x, y) if isinstance(x, Recorded) else (y, x)
    eps = _rms(node)
    if eps is not None:
        return b.apply("rms_norm", x, eps=eps)
    return b.apply("mul", x, y) if isinstance(y, Recorded) else b.affine(x, y)


def _rms(node: Node) -> float | None:
    """The epsilon of a norm, where a product is x rsqrt(mean(x^2) + eps) over the last axis."""
    for x, inverse in (node.args[:2], node.args[1::-1]):
        if not isinstance(x, Node) or not isinstance(inverse, Node) or inverse.target is not aten.rsqrt.default:
            continue
        total = inverse.args[0]
        if not isinstance(total, Node) or total.target is not aten.add.Tensor or not isinstance(total.args[1], float):
            continue
        mean = total.args[0]
        if not isinstance(mean, Node) or mean.target is not aten.mean.dim or list(mean.args[1:]) not in ([[-1], True],):
            continue
        square = mean.args[0]
        if isinstance(square, Node) and square.target is aten.pow.Tensor_Scalar and square.args == (x, 2):
            return total.args[1]
    return None


@rule(aten.pow.Tensor_Scalar)
def power(b: PrimitiveBuilder, node: Node, x: Recorded, exponent: float) -> Any:
    assert exponent == 2, f"a power of {exponent}"
    return b.apply("mul", x, x)


@rule(aten.mean.dim, aten.rsqrt.default)
def part_of_norm(b: PrimitiveBuilder, node: Node, *_: Any) -> Any:
    """Only within a norm, which is written as one primitive: nothing reads this value."""
    return None


@rule(aten._to_copy.default, aten.to.dtype, aten.type_as.default)
def cast(b: PrimitiveBuilder, node: Node, x: Recorded, *_: Any, **__: Any) -> Any:
    """A truth is 1.0 or 0.0: attention, which alone reads some, makes of them what it adds."""
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    dtype = "float32" if dtype == "bool" else dtype
    return x if x.value.dtype == dtype else b.apply("cast", x, dtype=dtype)


@rule(aten.relu.default)
def relu(b: PrimitiveBuilder, node: Node, x: Recorded) -> Any:
    return b.apply("relu", x)


@rule(aten.silu.default)
def silu(b: PrimitiveBuilder, node: Node, x: Recorded) -> Any:
    return b.apply("silu", x)


@rule(aten.gelu.default)
def gelu(b: PrimitiveBuilder, node: Node, x: Recorded, approximate: str = "none") -> Any:
    return b.apply("gelu_tanh" if approximate == "tanh" else "gelu", x)


@rule(sinusoid_op._opoverload)
def sinusoid(b: PrimitiveBuilder, node: Node, t: Recorded, half: int, shift: int) -> Any:
    return b.apply("sinusoid", t, half=half, shift=shift)


@rule(linear_attention_op._opoverload)
def linear_attention(b: PrimitiveBuilder, node: Node, q: Recorded, k: Recorded, v: Recorded, heads: int) -> Any:
    return b.apply("linear_attention", q, k, v, heads=heads)


# norms and products


@rule(aten.layer_norm.default)
def layer_norm(b: PrimitiveBuilder, node: Node, x: Recorded, shape: Sequence[int], weight: Any = None, bias: Any = None,
               eps: float = 1e-5, *_: Any) -> Any:  # fmt: skip
    assert tuple(shape) == x.shape[-1:], "a norm over several axes"
    parameters = [value for value in (weight, bias) if value is not None]
    return b.apply("layer_norm", x, *parameters, eps=eps)


@rule(aten.rms_norm.default)
def rms_norm(
    b: PrimitiveBuilder, node: Node, x: Recorded, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    assert tuple(shape) == x.shape[-1:], "a norm over several axes"
    assert eps is not None, "a norm without epsilon"
    return b.apply("rms_norm", x, *([] if weight is None else [weight]), eps=eps)


@rule(aten.linear.default)
def linear(b: PrimitiveBuilder, node: Node, x: Recorded, weight: Recorded, bias: Any = None) -> Any:
    return b.apply("linear", x, weight, *([] if bias is None else [bias]), parts=1)


@rule(aten.embedding.default)
def embedding(b: PrimitiveBuilder, node: Node, table: Recorded, rows: Recorded, *_: Any) -> Any:
    return b.apply("gather", table, rows)


@rule(aten.conv2d.default)
def conv2d(b: PrimitiveBuilder, node: Node, x: Recorded, weight: Recorded, bias: Any = None, stride: Any = 1, padding: Any = 0,
           dilation: Any = 1, groups: int = 1) -> Any:  # fmt: skip
    """Over patches, where strides are the kernel's size; else with a stride of 1."""
    biases = [] if bias is None else [bias]
    stride, padding, dilation = (_pair(n) for n in (stride, padding, dilation))
    kernel = weight.shape[2:]
    assert dilation == (1, 1), "a convolution with dilation"
    if groups == x.shape[1] and (stride, padding[0]) == ((1, 1), padding[1]):
        return b.apply("depthwise", x, weight, *biases, padding=padding[0])
    assert groups == 1, f"a convolution of {groups} groups"
    if stride == kernel and padding == (0, 0) and kernel[0] == kernel[1]:
        patch, out = int(kernel[0]), int(weight.shape[0])
        height, width = (int(n) // patch for n in x.shape[2:])
        tokens = b.apply("linear", b.apply("patchify", x, patch=patch), weight, *biases, parts=1)
        return b.reshape(b.permute(tokens, (0, 2, 1)), (x.shape[0], out, height, width))
    assert (stride, padding[0]) == ((1, 1), padding[1]), f"a convolution with stride {stride} and padding {padding}"
    return b.apply("conv2d", x, weight, *biases, padding=padding[0])


def _pair(n: Any) -> tuple[int, ...]:
    return (n, n) if isinstance(n, int) else tuple(n) * (2 // len(n))


@rule(aten.scaled_dot_product_attention.default)
def attention(b: PrimitiveBuilder, node: Node, q: Recorded, k: Recorded, v: Recorded, mask: Any = None, dropout: float = 0.0,
              causal: bool = False, *, scale: float | None = None, **others: Any) -> Any:  # fmt: skip
    """q (R, heads, T, size), k and v (R, heads, S, size)."""
    rows, heads, tokens, size = q.shape
    scaled = scale is None or abs(scale - int(size) ** -0.5) < 1e-6
    usual = scaled and k.shape[1] == heads and not (dropout or causal or others)
    assert usual, "an attention of an unusual kind"
    if mask is not None and _reads_truths(node):
        mask = b.affine(mask, scale=UNSEEN, shift=-UNSEEN)
    wide = [b.reshape(b.permute(x, (0, 2, 1, 3)), (rows, x.shape[2], int(heads) * int(size))) for x in (q, k, v)]
    mixed = b.apply("sdpa", *wide, *([] if mask is None else [mask]), heads=heads)
    return b.permute(b.reshape(mixed, (rows, tokens, heads, size)), (0, 2, 1, 3))


def _reads_truths(node: Node) -> bool:
    """Whether the mask of an attention says what is seen, and not what is added."""
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return isinstance(mask, Node) and mask.meta["val"].dtype == torch.bool
