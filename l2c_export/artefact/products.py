"""Which products of an artefact are in e4m3, as its segments say."""

from __future__ import annotations

from .manifest import Manifest


def input_scales(manifest: Manifest) -> dict[str, str]:
    """For every weight of e4m3 the scale of what it is multiplied with."""
    scales: dict[str, str] = {}
    for size in manifest.denoiser.sizes.values():
        for node in (node for graph in size.graphs.values() for node in graph.nodes):
            segment = manifest.denoiser.segments[node.op]
            names = dict(zip(segment.inputs, node.inputs, strict=True))
            for p in (p for p in segment.primitives or () if p.op == "linear_fp8"):
                weight, scale = (size.origins[names[name]].of for name in p.inputs[1:3])
                scales[weight] = scale
    return scales
