"""Products in e4m3 in PyTorch: what is multiplied is looked at over some trajectories, from which its scales follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..artefact.fingerprint import flops
from ..artefact.guidance import guided_request
from ..artefact.manifest import Manifest
from ..artefact.products import input_scales
from ..errors import WeightsError
from ..ir.inputs import usual
from ..models.primitives import linear_fp8, quantise
from ..samplers.noise import standard_normal
from ..support.files import Report
from ..support.words import counted
from ..weights import e4m3
from ..weights.layout import WEIGHTS, Layout
from .eager import Converted, Denoiser
from .family import family_of
from .stored import stored

IMAGES = 4  # trajectories, each of another class and other noise
MOST = 2 * 10**13  # FLOP that they may take
Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # x, weight and bias


class ProductWeight(Tensor):
    """A weight that says itself how it is multiplied with."""

    own: Multiply

    @classmethod
    def __torch_function__(cls, function: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.linear and isinstance(args[1], cls):
                x, weight, bias = (*args, None)[:3]
                return weight.own(x, weight.as_subclass(Tensor), bias)
            return function(*args, **(kwargs or {}))


def with_products(weight: Tensor, multiply: Multiply) -> Tensor:
    """The same numbers, with another product."""
    made = weight.as_subclass(ProductWeight)
    made.own = multiply
    return made


@dataclass(frozen=True)
class Observed(Converted):
    """Weights that note the largest number that each was multiplied with, by the name of its scale."""

    scales: Mapping[str, str]
    largest: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        weight = super().__getitem__(name)
        return with_products(weight, self._noting(self.scales[name])) if name in self.scales else weight

    def _noting(self, scale: str) -> Multiply:
        def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            self.largest[scale] = max(self.largest.get(scale, 0.0), float(x.abs().max()))
            return F.linear(x, weight, bias)

        return multiply


@dataclass(frozen=True)
class InE4m3(Converted):
    """Weights whose products are those of an artefact in fp8; `tensors` holds its weights and scales."""

    scales: Mapping[str, str]

    def __getitem__(self, name: str) -> Tensor:
        weight = super().__getitem__(name)
        if name not in self.scales:
            return weight
        x_scale, weight_scale = self.tensors[self.scales[name]], self.tensors[e4m3.weight_scale(name)]

        def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            made: Tensor = linear_fp8(quantise(x, x_scale), quantise(weight, weight_scale), x_scale, weight_scale, bias)
            return made.to(self.dtype)

        return with_products(weight, multiply)


@torch.no_grad()
def calibrate(folder: Path, manifest: Manifest, report: Report) -> None:
    """Write the scales of what is multiplied in e4m3 into the weights that lie in `folder`.

    They are those of some trajectories of the first program, as many calls of them as a minute allows, in float32.
    Raises WeightsError where what is multiplied is NaN or infinite.
    """
    scales = input_scales(manifest)
    compiled = manifest.program()
    images, most = max(1, min(IMAGES, MOST // max(1, flops(compiled, len(compiled.calls))))), len(compiled.calls)
    if manifest.denoiser.weights and manifest.denoiser.weights.random is not None:
        images = most = 1  # numbers that mean nothing
    count = max(n for n in range(1, most + 1) if n == 1 or images * flops(compiled, n) <= MOST)
    weights = Observed(stored(folder, manifest), torch.float32, scales)
    given = usual(manifest.inputs, images)
    guided = guided_request(compiled, given, np.full(images, manifest.guidance.scale))
    request = {name: torch.from_numpy(values) for name, values in guided.inputs.items()}
    x = torch.from_numpy(standard_normal(compiled.latent, range(images)) * np.float32(compiled.noise_scale))
    model = Denoiser(family_of(manifest), weights, spans=manifest.denoiser.levels)
    for _ in model.steps(compiled.calls[:count], x, request, torch.from_numpy(guided.strength)):
        pass
    if wrong := [name for name, largest in weights.largest.items() if not np.isfinite(largest)]:
        raise WeightsError(f"weights: what {wrong[0]} is for is NaN or infinite: compile with precision='fp32', and verify")
    layout = Layout(manifest.denoiser.tensors)
    with (folder / WEIGHTS).open("r+b") as file:
        for name, largest in weights.largest.items():
            file.seek(layout.place(name).offset)
            file.write(e4m3.scale_of(e4m3.HEADROOM * largest).tobytes())
    report(f"{counted(len(scales), 'product')} in e4m3, calibrated over {counted(count, 'call')} of {counted(images, 'image')}")
