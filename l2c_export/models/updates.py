"""Guidance and the sampler's update: the last operations of every call, in float32, in the recorder and in eager PyTorch.

A sampler without a history is one operation, `update`.  A multistep one is two: `data` predicts the data, which later calls
read again, and `multistep` makes the next latents from this and earlier predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import layers
from .primitives import primitive


@primitive
def update(noise: Tensor, x: Tensor, base: Tensor, conditional: Tensor, unconditional: Tensor,
           guidance: Tensor, coefficients: Tensor) -> Tensor:  # fmt: skip
    """coefficients (3,): the next latents are an affine function of the step's first latents `base`, the latents `x` of
    this call and the guided prediction (see samplers/table.py).

    Guidance (arXiv 2207.12598): guidance (B, C, 1, ..) is an image's scale - 1, or 0 for channels that stay unguided, so the
    usual u + s (c - u) is c + (s - 1) (c - u): at a scale of 1 exactly c, whatever else is in the batch.
    """
    c, u = halves(noise, x, conditional, unconditional)
    of_base, of_x, of_noise = coefficients.unbind(0)
    return of_base * base + of_x * x + of_noise * (c + guidance * (c - u))


@primitive
def data(
    noise: Tensor, x: Tensor, conditional: Tensor, unconditional: Tensor, guidance: Tensor, coefficients: Tensor
) -> Tensor:
    """coefficients (4 + history,): the first two are those of the latents and of the guided prediction."""
    c, u = halves(noise, x, conditional, unconditional)
    of_x, of_noise = coefficients[:2].unbind(0)
    return of_x * x + of_noise * (c + guidance * (c - u))


@primitive
def multistep(x: Tensor, *predicted_and_coefficients: Tensor) -> Tensor:
    """Latents, data predictions (newest first), and coefficients, of which the first two are those of `data`."""
    *predicted, coefficients = predicted_and_coefficients
    of_x, *weights = coefficients[2:].unbind(0)
    total = of_x * x
    for weight, value in zip(weights, predicted, strict=True):
        total = total + weight * value
    return total


def halves(noise: Tensor, x: Tensor, conditional: Tensor, unconditional: Tensor) -> tuple[Tensor, Tensor]:
    """The conditional and the unconditional prediction (B, C, ..), cut to the latents' channels."""
    noise = layers.wide(noise[:, : x.shape[1]])
    return noise.index_select(0, conditional), noise.index_select(0, unconditional)


UPDATES: Mapping[str, Callable[..., Any]] = {"update": update, "data": data, "multistep": multistep}


class Sampler:
    """The same as a loop in PyTorch: the state of a solver between calls."""

    def __init__(self, x: Tensor, conditional: Tensor, unconditional: Tensor, guidance: Tensor) -> None:
        self.x, self._base = x, x
        self._guiding = (conditional, unconditional, guidance)
        self._history: list[Tensor] = []

    def take(self, noise: Tensor, coefficients: Tensor, ends_step: bool) -> Tensor:
        """The next latents, given the model's output."""
        history = coefficients.shape[0] - 4
        if history < 0:
            self.x = update(noise, self.x, self._base, *self._guiding, coefficients)
        else:
            predicted = data(noise, self.x, *self._guiding, coefficients)
            older = self._history + [torch.zeros_like(predicted)] * (history - len(self._history))
            self.x = multistep(self.x, predicted, *older, coefficients)
            self._history = [predicted, *self._history][:history]
        self._base = self.x if ends_step else self._base
        return self.x
