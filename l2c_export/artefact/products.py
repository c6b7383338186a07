"""Which products of an artefact are in e4m3, and which biases are theirs, as its segments say."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.graph import Primitive
from .manifest import Manifest
from .records import Origin

PRODUCT, BIAS = "linear_fp8", 4  # and which of its inputs the bias is


def input_scales(manifest: Manifest) -> dict[str, str]:
    """For every weight of e4m3 the scale of what it is multiplied with."""
    scales: dict[str, str] = {}
    for p, origins in _primitives(manifest):
        if p.op == PRODUCT:
            weight, scale = (origins[name].of for name in p.inputs[1:3])
            scales[weight] = scale
    return scales


def own_biases(manifest: Manifest) -> dict[str, str]:
    """For every bias that is added to one product in e4m3, and that nothing else reads, the weight of the product."""
    readers: dict[str, set[str | None]] = {}  # of every tensor: the weights of the products that it is added to, None else
    for p, origins in _primitives(manifest):
        for n, origin in ((n, origins[name]) for n, name in enumerate(p.inputs) if name in origins):
            whole = p.op == PRODUCT and n == BIAS and origin.first is None
            readers.setdefault(origin.of, set()).add(origins[p.inputs[1]].of if whole else None)
    alone = {bias: next(iter(weights)) for bias, weights in readers.items() if len(weights) == 1}
    return {bias: weight for bias, weight in alone.items() if weight}


def _primitives(manifest: Manifest) -> Iterator[tuple[Primitive, dict[str, Origin]]]:
    """Every primitive of every node, and where its segment's inputs come from that no graph makes."""
    for size in manifest.denoiser.sizes.values():
        for node in (node for graph in size.graphs.values() for node in graph.nodes):
            segment = manifest.denoiser.segments[node.op]
            called = dict(zip(segment.inputs, node.inputs, strict=True))
            origins = {name: size.origins[own] for name, own in called.items() if own in size.origins}
            yield from ((p, origins) for p in segment.primitives or ())
