"""Weights in e4m3 whose products change least: what rounding a column loses, the columns behind it make good.

By rounding a weight to the nearest, every call of a loop errs in the same direction, which adds up; what is multiplied errs in
another direction in every call.  The columns follow from the second moments of what is multiplied, as GPTQ has them
(arXiv 2210.17323, algorithm 1); the most used is rounded first, and has the most behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.primitives import quantise

TOGETHER = 512  # columns that make good for each other, so that a model's second moments are smaller than the model
AT_ONCE = 32  # columns whose losses reach those far behind in one product
DAMPING = 0.01  # of the mean second moment: what is seldom multiplied is not all that makes good


class Moments:
    """Of what is multiplied: x'x, for every `TOGETHER` of its columns, and the sum of its rows."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []  # float32
        self.total: Tensor | float = 0.0  # (columns,) float64
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """x (.., columns)."""
        rows = x.reshape(-1, x.shape[-1]).float()
        self.total, self.rows = self.total + rows.sum(0, dtype=torch.float64), self.rows + len(rows)
        parts = [part.T @ part for part in torch.split(rows, TOGETHER, 1)]
        self.sums = [sum_ + part for sum_, part in zip(self.sums, parts, strict=True)] if self.sums else parts

    def mean_product(self, weight: Tensor) -> Tensor:
        """(rows, columns) float32 -> (rows,) float32: the mean of what is multiplied with a weight."""
        product: Tensor = (weight.double() @ (self.total / self.rows)).float()
        return product


def rounded(weight: Tensor, moments: Moments, scale: Tensor) -> Tensor:
    """(rows, columns) float32 -> e4m3 in multiples of scale[0]; scale (2,), with 1 over it behind."""
    parts = zip(torch.split(weight, TOGETHER, 1), moments.sums, strict=True)
    return torch.cat([_rounded(part, moment, scale) for part, moment in parts], 1).to(torch.float8_e4m3fn)


def _rounded(weight: Tensor, moment: Tensor, scale: Tensor) -> Tensor:
    """The same for columns that make good for each other; float32, in multiples of the scale."""
    order = moment.diagonal().argsort(descending=True, stable=True)
    shares = _shares(moment[order][:, order])
    left = weight.T[order]  # a column of the weight in a row, which lies together
    codes, lost = torch.empty_like(left), torch.empty_like(left)
    for first in range(0, len(left), AT_ONCE):
        last = min(first + AT_ONCE, len(left))
        for n in range(first, last):
            codes[n] = quantise(left[n], scale)
            lost[n] = left[n] - codes[n] * scale[0]
            left[n + 1 : last] -= torch.outer(shares[n, n + 1 : last], lost[n])
        left[last:] -= shares[first:last, last:].T @ lost[first:last]
    result = torch.empty_like(weight)
    result[:, order] = codes.T
    return result


def _shares(moment: Tensor) -> Tensor:
    """(columns, columns) float32: by how much of what a row's column loses the columns behind it are to be less."""
    mean = float(moment.diagonal().mean())
    damped = moment.double() + (DAMPING * mean or 1.0) * torch.eye(len(moment), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    shares: Tensor = (factor / factor.diagonal()[:, None]).float()
    return shares
