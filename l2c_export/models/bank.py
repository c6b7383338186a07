"""The bank of sums: what forecasts add to the stream, prepared for many later calls at once.

A call that is computed in full adds its share to the sums of all calls that will read from it: one matrix product per row and
channel, for which tokens are the last axis.  A call that reads takes its sum out of the bank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import layers
from .primitives import primitive

MOST = 32  # inputs of one concatenation


@primitive
def bank(weights: Tensor, *inputs: Tensor, gated: tuple[int, ...]) -> Tensor:
    """weights (S, W): the coefficient of every sum for each of W calls; values (R, T, D), one for each of `gated`; gates
    (W, R, 1, D) of those calls, one for each that has one; then, where there are sums already, keep (S,), 1 or 0, and
    those sums (R, D, S, T) -> the sums: keep x sums + weights x gates x values.
    """
    count, gates = len(gated), list(inputs[len(gated) : len(gated) + sum(gated)])
    values = stacked([layers.wide(value).transpose(1, 2) for value in inputs[:count]], 2)  # (R, D, J, T)
    (sums, calls), width = weights.shape, values.shape[1]
    one = values[None, :, :, 0, 0] * 0 + torch.ones(calls, 1, 1, device=weights.device)  # of what has no gate
    strengths = [layers.wide(gates.pop(0)).squeeze(2) if has else one for has in gated]
    factors = stacked(strengths, 3)  # (W, R, D, J)
    factors = (weights @ factors.reshape(calls, -1)).reshape(sums, -1, width, count).permute(1, 2, 0, 3)
    terms = factors @ values
    if len(inputs) == count + sum(gated):
        return terms
    keep, before = inputs[-2:]
    return terms + keep[:, None] * before


def stacked(values: list[Tensor], axis: int) -> Tensor:
    """Side by side along a new axis; of many, ONNX Runtime would have to allocate memory in the middle of a captured graph."""
    parts = [torch.stack(values[first : first + MOST], axis) for first in range(0, len(values), MOST)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


@primitive
def banked(sums: Tensor, slot: Tensor, *, dtype: str) -> Tensor:
    """sums (R, D, S, T), slot (1,) int32: which of them -> (R, T, D)."""
    return sums.index_select(2, slot).squeeze(2).transpose(1, 2).to(getattr(torch, dtype))
