"""Pure functions that the families share: activations first, then weights.

Products run on tokens flattened to two dimensions: they become one ONNX Gemm with its bias, which
ONNX Runtime and TensorRT both run faster than MatMul + Add.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def exporting() -> bool:
    """Whether the exporter is tracing; eager PyTorch gets its own fused operations, to be a fair baseline."""
    is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the former is new in 2.7
    return bool(is_exporting())


def wide(x: Tensor) -> Tensor:
    """float32 for what half precision is too coarse for: the islands of a half precision graph."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """LayerNorm over the last axis; its statistics are float32 (PyTorch's own kernel does that inside)."""
    same = weight is None or weight.dtype == x.dtype
    if same and (not exporting() or x.dtype == torch.float32):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    scale, shift = (None if p is None else wide(p) for p in (weight, bias))
    return F.layer_norm(wide(x), x.shape[-1:], scale, shift, eps).to(x.dtype)


def stream(x: Tensor) -> Tensor:
    """What is added to the residual stream: float32 in a bf16 model, where rounding the stream itself to 8 bits is most
    of the error (measured: 3 times that of float32, over the golden cases)."""
    return wide(x) if x.dtype == torch.bfloat16 else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in) -> (..., out), in the weight's type."""
    flat = F.linear(x.reshape(-1, x.shape[-1]).to(weight.dtype), weight, bias)
    return flat.reshape(*x.shape[:-1], weight.shape[0])


def attention(x: Tensor, heads: int, qkv: tuple[Tensor, Tensor | None], proj: tuple[Tensor, Tensor]) -> Tensor:
    """Multi-head self-attention, x (R, T, D) -> (R, T, D); qkv's rows are laid out (3, heads, head size)."""
    n, tokens, width = x.shape
    size = width // heads
    q, k, v = (
        part.reshape(n, tokens, heads, size).permute(0, 2, 1, 3)
        for part in F.linear(x.reshape(-1, width).to(qkv[0].dtype), *qkv).chunk(3, dim=1)
    )
    if exporting():  # as separate operations: opset 17 has no attention
        scores = (q * size**-0.5) @ k.transpose(2, 3)
        mixed = torch.softmax(wide(scores), dim=-1).to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return linear(mixed.transpose(1, 2).reshape(n, tokens, width), *proj)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU; exported as 0.5 (1 + tanh u) = sigmoid(2u), which is three operations fewer."""
    if not exporting():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(x * (2 * math.sqrt(2 / math.pi)) * (x * x * 0.044715 + 1.0))


def timestep_frequencies(half: int, shift: int = 0) -> Tensor:
    """exp(-ln(10000) k / (half - shift)) for k < half, as PyTorch's float32 evaluates it."""
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / (half - shift))


def sinusoid(t: Tensor, frequencies: Tensor) -> Tensor:
    """t (R,) float32 -> (R, 2 len(frequencies)) float32: all cosines, then all sines."""
    angle = t[:, None] * frequencies[None]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


def mlp_width(width: int, ratio: float) -> int:
    """The hidden size of an MLP, as training scripts count it: rounded down."""
    return int(width * ratio)


def mlp_ratio(width: int, hidden: int) -> float:
    """The ratio of which `mlp_width` makes `hidden`; the quotient alone may lose one to rounding."""
    ratio = hidden / width
    return ratio if mlp_width(width, ratio) == hidden else math.nextafter(ratio, math.inf)


def patchify(x: Tensor, patch: int, weight: Tensor, bias: Tensor) -> Tensor:
    """A convolution with stride = kernel = patch: x (R, C, H, W) -> (R, T, D), row major over patches."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return linear(x.reshape(n, (h // patch) * (w // patch), c * patch * patch), weight.reshape(weight.shape[0], -1), bias)


def unpatchify(x: Tensor, patch: int, channels: int, height: int, width: int) -> Tensor:
    """x (R, T, patch patch C) with C fastest -> (R, C, H, W)."""
    x = x.reshape(-1, height // patch, width // patch, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)
