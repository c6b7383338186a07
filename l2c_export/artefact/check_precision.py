"""Whether the records of precision say one thing: that of the products, the type of weights, and that of every tensor."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.dtypes import DTYPES, E4M3, Types
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
    types = Types(model.weight_dtype, model.fp32)
    for name, tensor in model.tensors.items():
        if tensor.scale or tensor.dtype == E4M3:
            continue  # `check_products`
        if tensor.dtype != types.of(name):
            yield f"the weight {name[:100]!r} is {tensor.dtype[:20]!r}, its sublayer {types.of(name)}"
