"""Products in e4m3 in PyTorch: what is multiplied is looked at over some trajectories, from which its scales follow, and how
weights are rounded.

Rounding a weight shifts the mean of its product, the same in every call of a loop; that goes into the product's bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..artefact.compiled import Compiled
from ..artefact.fingerprint import flops
from ..artefact.guidance import guided_request
from ..artefact.manifest import Manifest
from ..artefact.products import input_scales, own_biases
from ..errors import WeightsError
from ..ir.inputs import usual
from ..models.primitives import quantise
from ..samplers.noise import standard_normal
from ..support.files import Report
from ..support.words import counted
from ..weights import e4m3
from ..weights.layout import WEIGHTS, Layout, Tensors, loaded
from ..weights.layout import stored as filed
from .eager import Converted, Denoiser
from .family import family_of
from .rounding import Moments, rounded
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
    tensor = weight.as_subclass(ProductWeight)
    tensor.own = multiply
    return tensor


@dataclass
class Seen:
    """Of a product: the largest number that is multiplied, and squares of what its rounding changes and of all there is;
    and its moments, where they are asked for.
    """

    largest: float = 0.0
    lost: float = 0.0
    there: float = 0.0
    moments: Moments | None = field(default_factory=Moments)

    def add(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product in the type of x, noted."""
        largest = float(x.abs().max())
        self.largest = self.largest if largest <= self.largest else largest  # which may be NaN
        scale = torch.from_numpy(e4m3.scale_of(e4m3.HEADROOM * largest))
        product = F.linear(x, weight)
        self.lost += float(F.linear(quantise(x, scale).to(x.dtype) * scale[0] - x, weight).square().sum())
        self.there += float(product.square().sum())
        if self.moments:
            self.moments.add(x)
        return product if bias is None else product + bias

    @property
    def error(self) -> float:
        """Relative."""
        return math.sqrt(self.lost / self.there) if self.there else 0.0


@dataclass(frozen=True)
class ObservedWeights(Converted):
    """Weights whose products are seen, of those that the names in `seen` are."""

    seen: Mapping[str, Seen]

    def __getitem__(self, name: str) -> Tensor:
        weight = super().__getitem__(name)
        return with_products(weight, self.seen[name].add) if name in self.seen else weight


@dataclass(frozen=True)
class InE4m3(Converted):
    """Weights that are multiplied as an artefact in fp8 does it: `tensors` are its weights and scales, which says `scales`."""

    scales: Mapping[str, str]

    def __getitem__(self, name: str) -> Tensor:
        weight = super().__getitem__(name)
        if name not in self.scales:
            return weight
        scale = self.tensors[self.scales[name]]
        return with_products(
            weight, lambda x, w, bias: F.linear(quantise(x, scale).to(x.dtype) * scale[0].to(x.dtype), w, bias)
        )


@torch.no_grad()
def calibrate(folder: Path, manifest: Manifest, tensors: Tensors, report: Report) -> dict[str, float]:
    """Write the scales of what is multiplied in e4m3 into the weights that lie in `folder`, and these weights rounded so that
    their products change least, and biases with what the products' means lose by that; `tensors` are the model's before they
    were rounded.  Returned is by how much every such bias differs from the model's, at most.

    That follows from some trajectories of the first program, as many calls of them as a minute allows, in float32.  Random
    weights, which mean nothing, stay rounded to the nearest.
    Raises WeightsError where what is multiplied is NaN or infinite.
    """
    scales = input_scales(manifest)
    compiled = manifest.program()
    images, most = max(1, min(IMAGES, MOST // max(1, flops(compiled, len(compiled.calls))))), len(compiled.calls)
    bound = manifest.denoiser.weights
    random = bound is not None and bound.random is not None
    if random:
        images = most = 1  # numbers that mean nothing
    count = max(n for n in range(1, most + 1) if n == 1 or images * flops(compiled, n) <= MOST)
    seen = {name: Seen(moments=None) if random else Seen() for name in scales}
    kept = stored(folder, manifest)
    weights = ObservedWeights(kept, torch.float32, seen)
    model = Denoiser(family_of(manifest), weights, spans=manifest.denoiser.levels)
    for _ in model.steps(compiled.calls[:count], *usual_request(compiled, images)):
        pass
    for name, product in seen.items():
        if not math.isfinite(product.largest):
            raise WeightsError(f"weights: {name} is multiplied with NaN or infinite values: verify it with precision='fp32'")
    largest: dict[str, float] = {}  # by the scale: what several products share
    for name, scale in scales.items():
        largest[scale] = max(largest.get(scale, 0.0), seen[name].largest)
    layout = Layout(manifest.denoiser.tensors)
    with (folder / WEIGHTS).open("r+b") as file:
        for scale, number in largest.items():
            file.seek(layout.place(scale).offset)
            file.write(e4m3.scale_of(e4m3.HEADROOM * number).tobytes())
        moments = {name: product.moments for name, product in seen.items() if product.moments and product.moments.rows}
        changes = {} if random else _write_rounded(file, layout, tensors, kept, moments, own_biases(manifest))
    report(said(seen, f"{counted(count, 'call')} of {counted(images, 'image')}"))
    return changes


def usual_request(compiled: Compiled, images: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Noise (B, C, ..), what is asked for (R, ..) by name, and the guidance's strength, for a loop in float32."""
    guided = guided_request(compiled, usual(compiled.inputs, images), np.full(images, compiled.guidance.scale))
    noise = torch.from_numpy(standard_normal(compiled.latent, range(images)) * np.float32(compiled.noise_scale))
    request = {name: torch.from_numpy(values) for name, values in guided.inputs.items()}
    return noise, request, torch.from_numpy(guided.strength)


def _write_rounded(
    file: BinaryIO,
    layout: Layout,
    tensors: Tensors,
    scales: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    biases: Mapping[str, str],
) -> dict[str, float]:
    """Write weights as `moments` of what they are multiplied with have them rounded, and `biases` of their products."""
    lost, own = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name, value in tensors:
        if name in biases:
            own[name] = np.array(value, np.float32)
        if name in moments:
            wide = torch.from_numpy(np.array(value, np.float32))
            scale = scales[e4m3.weight_scale(name)]
            codes = rounded(wide, moments[name], scale)
            file.seek(layout.place(name).offset)
            file.write(codes.view(torch.uint8).numpy().tobytes())
            lost[name] = moments[name].mean_product(wide - codes.float() * scale[0]).numpy()
    changes = {}
    for name, value in own.items():
        if biases[name] not in lost:
            continue
        corrected = filed(name, value + lost[biases[name]], layout.tensors[name])
        for part, data in corrected.items():
            file.seek(layout.place(part).offset)
            file.write(data.tobytes())
        changes[name] = float(np.abs(loaded(name, corrected, layout.tensors[name]).astype(np.float32) - value).max())
    return changes


def said(seen: Mapping[str, Seen], over: str) -> str:
    """What was found, in words."""
    if not seen:
        return "no product in e4m3: no sublayer has one that is large enough"
    worst = max(seen, key=lambda name: seen[name].error)
    lost = sum((product.lost for product in seen.values()), 0.0)
    there = sum((product.there for product in seen.values()), 0.0)
    error, module = math.sqrt(lost / there) if there else 0.0, worst.removesuffix(e4m3.WEIGHT)
    return (
        f"{counted(len(seen), 'product')} in e4m3, calibrated over {over}: rounding what is multiplied changes {error:.1e} of "
        f"them, at most {seen[worst].error:.1e} ({module})"
    )
