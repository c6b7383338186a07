"""How much the products of every sublayer in e4m3 change what calls make, each sublayer by itself.

In one call the changes of several sublayers add up in squares, as if they were independent; what they do to later calls is
not followed.  For the demo that orders sublayers much as whole loops do (a correlation of 0.65), at a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..artefact.compiled import Compiled
from ..artefact.fingerprint import flops
from ..artefact.manifest import Manifest
from ..artefact.products import input_scales
from ..models.updates import Sampler
from .calibrate import IMAGES, MOST, InE4m3, ProductWeight, usual_request, with_products
from .eager import Converted, Denoiser, Eager, Result, follow
from .family import family_of
from .stored import stored


@dataclass
class Switch:
    """Whether products are in e4m3 now; a captured model asks for its weights before it calls what multiplies them."""

    on: bool = False


@dataclass(frozen=True)
class Switched(InE4m3):
    """Weights whose products are in e4m3 while a switch is on."""

    switch: Switch

    def __getitem__(self, name: str) -> Tensor:
        weight = super().__getitem__(name)
        if not isinstance(weight, ProductWeight):
            return weight
        narrow = weight.own
        return with_products(weight, lambda x, w, bias: (narrow if self.switch.on else F.linear)(x, w, bias))


@dataclass
class InPart(Eager):
    """An Eager whose sublayer `tried` alone has products in e4m3."""

    tried: str = field(kw_only=True)
    switch: Switch = field(kw_only=True)

    def sublayer(self, op: str, *inputs: Any, at: str, name: str = "") -> Any:
        self.switch.on = (name or f"{at}.{op}") == self.tried
        return super().sublayer(op, *inputs, at=at, name=name)  # what is no sublayer has no products in e4m3


class Trying(Denoiser):
    """A loop in float32 that tries, in the calls `chosen`, the products of one sublayer after the other in e4m3."""

    changes: dict[str, float]  # of the latents behind these calls: the sum of squares, by the sublayer

    def begin(self, chosen: Sequence[int], compiled: Compiled, strength: Tensor, narrow: Switched) -> None:
        self._chosen, self._compiled, self._strength, self._narrow = frozenset(chosen), compiled, strength, narrow
        self.changes = dict.fromkeys(self.family.sublayers, 0.0)

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Result]]:
        noise, fresh = super()._evaluate(n, reused, *inputs)
        if n in self._chosen:
            *asked, cache = inputs
            narrow, values = self._narrow, follow(cache)
            for name in (name for name in self.family.sublayers if name not in reused):
                run = InPart(self.family, narrow, reused, values, {}, spans=self.spans, tried=name, switch=narrow.switch)
                self.changes[name] += float(self._behind(n, run.predict(*asked) - noise, *asked).square().sum())
        return noise, fresh

    def _behind(self, n: int, change: Tensor, x: Tensor, row: Tensor, *_: Any) -> Tensor:
        """What a change of the prediction changes in the next latents, which follow linearly from it."""
        call, images = self._compiled.calls[n], len(x)
        conditional = row[:images]
        sampler = Sampler(torch.zeros_like(x), conditional, conditional + (len(row) - images), self._strength)
        return sampler.take(change, torch.tensor(call.coefficients, dtype=x.dtype), call.ends_step)


@torch.no_grad()
def effects(folder: Path, manifest: Manifest, steps: int | None = None) -> dict[str, float]:
    """For every sublayer with products in e4m3, worst first, its share of what they all change in the latents behind a call.

    A usual request of four images is followed through the program with so many `steps`, in float32; as many of its calls are
    tried, evenly spread, as a minute or two allow, at least one of one image.  Shares are of squares and sum to 1.
    """
    compiled = manifest.program(steps)
    tensors, scales = stored(folder, manifest), input_scales(manifest)
    family = family_of(manifest, compiled.program.size)
    count = len(compiled.calls)
    one = max(1, flops(compiled, count) * len(family.sublayers) // count)  # a call of one image, with every sublayer tried
    images = max(1, min(IMAGES, MOST // one))
    tries = max(1, min(count, MOST // (one * images)))
    chosen = [(2 * n + 1) * count // (2 * tries) for n in range(tries)]
    noise, request, strength = usual_request(compiled, images)
    loop = Trying(family, Converted(tensors, torch.float32), spans=manifest.denoiser.levels)
    loop.begin(chosen, compiled, strength, Switched(tensors, torch.float32, scales, Switch()))
    for n, _ in enumerate(loop.steps(compiled.calls, noise, request, strength)):
        if n == chosen[-1]:
            break
    worst = sorted(loop.changes.items(), key=lambda change: -change[1])
    total = sum(loop.changes.values())
    return {name: change / total for name, change in worst if change}
