"""A piece in half precision: products in the type of the weights, float32 where that is too coarse.

A module of diffusers is captured in float32; the type of its weights decides what its pieces compute in.  Norms and softmax
have their statistics in float32 (`primitives.py`), tables of positions and angles stay float32, and so do the last piece,
whose rounding the sampler amplifies, and the residual streams: the large models were trained in bfloat16, and leave the range
of float16 there, where diffusers clips them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..layers import to, wide
from ..primitives import HALVES, execute
from .pieces import PieceBody


def computed(body: PieceBody, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What a body makes of activations, then weights, of any types."""
    if body.last:
        inputs = [wide(value) for value in inputs]
    half = next((value.dtype for value in inputs if value.dtype in HALVES), None)

    def ready(op: str, inputs: Sequence[Any]) -> Sequence[Any]:
        return RULES[op](inputs, half) if op in RULES else inputs

    known = execute(body.primitives, {f"i{n}": value for n, value in enumerate(inputs)}, ready)
    return tuple(widened(known[name], name in body.summed) for name in body.outputs)


def widened(output: Any, summed: bool) -> Any:
    """An output: what sums read, and what is the same for all tokens, as a shift, is float32."""
    return wide(output) if summed or len(output.shape) < 3 or output.shape[1] == 1 else output


def as_their_kernel(inputs: Sequence[Any], half: torch.dtype | None) -> Sequence[Any]:
    """Pictures in the type of the kernel; in float32 where that is bfloat16, of which ONNX has no convolution."""
    picture, kernel, *others = map(wide, inputs) if half == torch.bfloat16 else inputs
    return [to(picture, kernel.dtype), kernel, *others]


def as_products(inputs: Sequence[Any], half: torch.dtype | None) -> Sequence[Any]:
    """Queries, keys and values in half precision where there is any; a mask as it is."""
    return [value if half is None or n == 3 else to(value, half) for n, value in enumerate(inputs)]


def as_the_widest(inputs: Sequence[Any], half: torch.dtype | None) -> Sequence[Any]:
    """All of one type."""
    mixed = len({value.dtype for value in inputs}) > 1
    return [wide(value) for value in inputs] if mixed else inputs


RULES: Mapping[str, Callable[[Sequence[Any], torch.dtype | None], Sequence[Any]]] = {
    "conv2d": as_their_kernel,
    "depthwise": as_their_kernel,
    "sdpa": as_products,
    "linear_attention": as_the_widest,
    "concat": as_the_widest,
}
