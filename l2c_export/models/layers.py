"""What the families share, written in primitives, and the sizes of their layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import primitives
from .primitives import HALVES, cast, linear, sdpa


def to(x: Any, dtype: torch.dtype) -> Any:
    """In another type, if it is one."""
    return x if x.dtype == dtype else cast(x, dtype=str(dtype).removeprefix("torch."))


def wide(x: Any) -> Any:
    """float32 for what half precision is too coarse for: the islands of a half precision graph."""
    return to(x, torch.float32) if x.dtype in HALVES else x


def stream(x: Any) -> Any:
    """What is added to the residual stream: float32 in a bf16 model, where rounding the stream itself to 8 bits is most
    of the error (measured: 3 times that of float32, over the golden cases)."""
    return wide(x) if x.dtype == torch.bfloat16 else x


def attention(x: Tensor, heads: int, qkv: Sequence[Tensor | None], proj: Sequence[Tensor]) -> Any:
    """Multi-head self-attention, x (R, T, D) -> (R, T, D); qkv's rows are laid out (3, heads, head size)."""
    return linear(sdpa(*linear(x, *qkv, parts=3), heads=heads), *proj)


def patches(x: Tensor, patch: int, weight: Tensor, bias: Tensor) -> Any:
    """A convolution with stride = kernel = patch: x (N, C, H, W) -> (N, T, D), row major over patches."""
    return linear(primitives.patchify(x, patch=patch), weight, bias)


def mlp_width(width: int, ratio: float) -> int:
    """The hidden size of an MLP, as training scripts count it: rounded down."""
    return int(width * ratio)


def mlp_ratio(width: int, hidden: int) -> float:
    """The ratio of which `mlp_width` makes `hidden`; the quotient alone may lose one to rounding."""
    ratio = hidden / width
    return ratio if mlp_width(width, ratio) == hidden else math.nextafter(ratio, math.inf)
