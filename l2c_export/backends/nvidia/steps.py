"""What a segment becomes: products for cuBLASLt, attention for cuDNN, and kernels, over buffers by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .kernels import Kernel
from .views import ArrayView


@dataclass(frozen=True)
class Product:
    """x (M, K) weight (N, K)' [+ bias (N,)] [+ residual (M, N)], or GELU of it, in out (M, N).

    What x and weight of e4m3 are multiples of is in `scales`, (2,) float32 each with 1 over it behind, and so is what an `out`
    of e4m3 is multiples of.  Where the library has no such product, `otherwise` are steps that make the same.
    """

    x: ArrayView
    weight: ArrayView
    bias: ArrayView | None
    residual: ArrayView | None
    gelu: bool
    out: ArrayView
    scales: tuple[ArrayView, ArrayView] | None = None
    out_scale: ArrayView | None = None
    otherwise: tuple[Kernel | Product, ...] = ()

    @property
    def buffers(self) -> tuple[str, ...]:
        views = (self.x, self.weight, *(self.scales or ()), self.bias, self.residual, self.out_scale, self.out)
        return (*(view.buffer for view in views if view), *(buffer for step in self.otherwise for buffer in step.buffers))

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({self.out.buffer})


@dataclass(frozen=True)
class Attention:
    """Attention of q (R, T, D) over k and v (R, S, D), with a kernel of our own where cuDNN has none."""

    q: ArrayView
    k: ArrayView
    v: ArrayView
    mask: ArrayView | None
    out: ArrayView
    heads: int
    own: Kernel | None

    @property
    def buffers(self) -> tuple[str, ...]:
        return tuple(view.buffer for view in (self.q, self.k, self.v, self.mask, self.out) if view)

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({self.out.buffer})


Step = Kernel | Product | Attention


@dataclass(frozen=True)
class StepPlan:
    """The steps of a segment for inputs of certain shapes, where its temporary values are in `scratch` bytes, and tables."""

    steps: tuple[Step, ...]
    places: Mapping[str, int]
    scratch: int
    tables: Mapping[str, np.ndarray]

    @property
    def kernels(self) -> list[Kernel]:
        own = [step.own for step in self.steps if isinstance(step, Attention) and step.own]
        others = [other for step in self.steps if isinstance(step, Product) for other in step.otherwise]
        return [*(step for step in (*self.steps, *others) if isinstance(step, Kernel)), *own]
