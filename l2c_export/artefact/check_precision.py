"""Whether the records of precision say one thing: that of the products, the type of weights, and that of every tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..ir.dtypes import E4M3, Types
from ..ir.precisions import DTYPES, FP8
from ..weights.e4m3 import input_scale, weight_scale
from ..weights.recipe import TensorRecord
from .manifest import Manifest


def problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the precision of a manifest."""
    model = manifest.denoiser
    if DTYPES.get(manifest.precision) != model.weight_dtype:
        yield f"its precision is {manifest.precision[:20]!r}, and its weights are {model.weight_dtype[:20]!r}"
    if unknown := [name for name in model.fp32 if name not in model.sublayers]:
        yield f"{unknown[0][:100]!r} is kept in float32, and is no sublayer"
    if model.fp32 and model.weight_dtype == "float32":
        yield f"{model.fp32[0][:100]!r} is kept in float32, as all the rest"
    yield from _products(manifest)
    types = Types(model.weight_dtype, model.fp32)
    for name, tensor in model.tensors.items():
        if tensor.scale or tensor.dtype == E4M3:
            continue
        if tensor.dtype != types.of(name):
            yield f"the weight {name[:100]!r} is {tensor.dtype[:20]!r}, its sublayer {types.of(name)}"


def _products(manifest: Manifest) -> Iterator[str]:
    """What is wrong with weights in e4m3, and with scales."""
    model = manifest.denoiser
    narrow = {name for name, tensor in model.tensors.items() if tensor.dtype == E4M3}
    kept = tuple(f"{sublayer}." for sublayer in model.fp32)
    scales = {weight_scale(name): "weight" for name in narrow} | {input_scale(name): "input" for name in narrow}
    for name in narrow:
        tensor, scale = model.tensors[name], model.tensors.get(weight_scale(name))
        if manifest.precision != FP8 or len(tensor.shape) != 2 or tensor.stored or name.startswith(kept) or scale is None:
            yield f"the weight {name[:100]!r} is {E4M3}, which it cannot be"
    for name, tensor in ((name, tensor) for name, tensor in model.tensors.items() if tensor.scale):
        if scales.get(name) != tensor.scale or tensor != TensorRecord((2,), "float32", scale=tensor.scale):
            yield f"the scale {name[:100]!r} is none of an {E4M3} weight"
    for name, change in (model.corrected or {}).items():
        bias = model.tensors.get(name)
        if not narrow or bias is None or len(bias.shape) != 1 or bias.scale or not 0 <= change < math.inf:
            yield f"the bias {name[:100]!r} is corrected by {change}, which it cannot be"
