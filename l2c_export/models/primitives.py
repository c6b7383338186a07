"""The primitives in PyTorch: pure functions of activations, then weights.

`ir/signatures.py` says what each takes and makes, `compiler/onnx/operators.py` has the same in ONNX.  Called with values of a
`Tape` they are recorded, with tensors they compute.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

if TYPE_CHECKING:
    from ..ir.graph import Primitive

PRIMITIVES: dict[str, Callable[..., Any]] = {}
HALVES = (torch.float16, torch.bfloat16)
MOST_E4M3 = 448.0  # the largest number of that type
Ready = Callable[[str, Sequence[Any]], Sequence[Any]]  # of a primitive's name and inputs


def primitive(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add a function to the primitives.  Its attributes are keywords; weights that are left out are None."""
    op = function.__name__
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}

    @functools.wraps(function)
    def called(*inputs: Any, **attributes: Any) -> Any:
        if not isinstance(inputs[0], Tensor):  # a value of a tape
            return inputs[0].tape.take(op, [i for i in inputs if i is not None], {**defaults, **attributes})
        return function(*inputs, **attributes)

    PRIMITIVES[op] = called
    return called


def as_they_are(op: str, inputs: Sequence[Any]) -> Sequence[Any]:
    return inputs


def execute(primitives: Iterable[Primitive], values: Mapping[str, Any], ready: Ready = as_they_are) -> dict[str, Any]:
    """All values of a graph, given its inputs: tensors, or what a tape records; `ready` makes of a primitive's inputs what it
    takes."""
    known = dict(values)
    for primitive in primitives:
        inputs = ready(primitive.op, [known[i] for i in primitive.inputs])
        outputs = PRIMITIVES[primitive.op](*inputs, **dict(primitive.attributes))
        known.update(zip(primitive.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
    return known


def _wide(x: Tensor) -> Tensor:
    """float32 for what half precision is too coarse for."""
    return x.float() if x.dtype in HALVES else x


@primitive
def add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


@primitive
def mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


@primitive
def cast(x: Tensor, *, dtype: str) -> Tensor:
    return x.to(getattr(torch, dtype))


@primitive
def affine(x: Tensor, *, scale: float, shift: float) -> Tensor:
    scaled = x if scale == 1 else x * scale
    return scaled if shift == 0 else scaled + shift


@primitive
def gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


@primitive
def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU."""
    return F.gelu(x, approximate="tanh")


@primitive
def silu(x: Tensor) -> Tensor:
    return F.silu(x)


@primitive
def relu(x: Tensor) -> Tensor:
    return F.relu(x)


@primitive
def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


@primitive
def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """Its statistics are float32 (PyTorch's own kernel does that inside)."""
    if weight is None or weight.dtype == x.dtype:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    scale, shift = (None if p is None else _wide(p) for p in (weight, bias))
    return F.layer_norm(_wide(x), x.shape[-1:], scale, shift, eps).to(x.dtype)


@primitive
def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float) -> Tensor:
    """Root mean square normalisation (arXiv 1910.07467), in float32."""
    wide = _wide(x)
    normed = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    return (normed if weight is None else normed * _wide(weight)).to(x.dtype)


@primitive
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, parts: int = 1) -> Any:
    weight = weight.reshape(weight.shape[0], -1) if weight.ndim > 2 else weight
    if x.ndim == 2:
        flat = F.linear(x.to(weight.dtype), weight, bias)
    else:
        flat = F.linear(x.reshape(-1, x.shape[-1]).to(weight.dtype), weight, bias)
    shape = (*x.shape[:-1], weight.shape[0] // parts)
    pieces = tuple(
        part if x.ndim == 2 else part.reshape(shape) for part in (flat.chunk(parts, dim=1) if parts > 1 else (flat,))
    )
    return pieces if parts > 1 else pieces[0]


@primitive
def quantise(x: Tensor, scale: Tensor) -> Tensor:
    return (_wide(x) * scale[1]).clamp(-MOST_E4M3, MOST_E4M3).to(torch.float8_e4m3fn)


@primitive
def linear_fp8(
    x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None = None, *, parts: int = 1
) -> Any:
    """In float32; what it makes has the type of the bias."""
    product = linear(x.float(), weight.float(), parts=parts)
    shifts = bias.chunk(parts) if bias is not None else (torch.zeros((), dtype=torch.bfloat16, device=x.device),) * parts
    several = product if isinstance(product, tuple) else (product,)
    scale = x_scale[0] * weight_scale[0]
    scaled = tuple((part * scale + shift).to(shift.dtype) for part, shift in zip(several, shifts, strict=True))
    return scaled if parts > 1 else scaled[0]


@primitive
def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, heads: int) -> Tensor:
    size = q.shape[2] // heads
    shape = q.shape
    q, k, v = (part.reshape(part.shape[0], part.shape[1], heads, size).permute(0, 2, 1, 3) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(q.dtype))
    return mixed.transpose(1, 2).reshape(shape)


@primitive
def linear_attention(q: Tensor, k: Tensor, v: Tensor, *, heads: int) -> Tensor:
    """As Sana computes it, in float32: a row of ones below the values makes the sums of the scores."""
    size = q.shape[2] // heads
    shape = (q.shape[0], q.shape[1], heads, size)
    q, k, values = (_wide(part).reshape(shape).permute(0, 2, 3, 1) for part in (q, k, v))
    mixed = (torch.cat([values, values[:, :, :1] * 0 + 1], 2) @ F.relu(k).transpose(2, 3)) @ F.relu(q)
    ratio = mixed[:, :, :-1] / (mixed[:, :, -1:] + 1e-15)
    return ratio.permute(0, 3, 1, 2).reshape(v.shape).to(v.dtype)


@primitive
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int) -> Tensor:
    return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])


@primitive
def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int) -> Tensor:
    return F.conv2d(x, weight, bias, padding=padding)


@functools.cache
def frequencies(half: int, shift: int = 0) -> Tensor:
    """exp(-ln(10000) k / (half - shift)) for k < half, as PyTorch's float32 evaluates it."""
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - shift))


@functools.cache
def rotations(tokens: int, half: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle of every token and pair, (tokens, half) each."""
    turns = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * turns[None]
    return torch.cos(angles).float(), torch.sin(angles).float()


@primitive
def sinusoid(t: Tensor, *, half: int, shift: int = 0) -> Tensor:
    angle = t[:, None] * frequencies(half, shift).to(t.device)[None]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


@primitive
def rope(x: Tensor, *, heads: int, theta: float) -> Tensor:
    tokens, size = x.shape[1], x.shape[2] // heads
    split = x.reshape(x.shape[0], tokens, heads, size)
    cosine, sine = (values.to(x.device)[:, None] for values in rotations(tokens, size // 2, theta))
    first, second = _wide(split).chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.reshape(x.shape).to(x.dtype)


@primitive
def patchify(x: Tensor, *, patch: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, (h // patch) * (w // patch), c * patch * patch)


@primitive
def unpatchify(x: Tensor, *, patch: int, channels: int, height: int, width: int) -> Tensor:
    x = x.reshape(-1, height // patch, width // patch, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)


@primitive
def gather(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows) if rows.ndim == 1 else F.embedding(rows, x)


@primitive
def concat(*values: Tensor, axis: int) -> Tensor:
    return torch.cat(values, dim=axis)


@primitive
def unsqueeze(x: Tensor, *, axis: int) -> Tensor:
    return x.unsqueeze(axis)


@primitive
def reshape(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(shape)


@primitive
def permute(x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    return x.permute(axes)


@primitive
def part(x: Tensor, *, axis: int, first: int, last: int) -> Tensor:
    return x.narrow(axis, first, last - first)


@primitive
def tail(x: Tensor, *, start: int) -> Tensor:
    return x[:, start:]
