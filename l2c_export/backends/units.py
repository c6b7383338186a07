"""What has to be built for a GPU: every engine with the shapes that the program uses it with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..artefact.manifest import Manifest
from ..ir.names import rows_of, split_at
from .ports import Port, Range

DECODER = "decoder"  # of the decoder's engine in a build


class Unit(NamedTuple):
    """What becomes one engine: a segment (shared link) or a whole graph (static link)."""

    file: str
    ports: tuple[Port, ...]
    ranges: Mapping[str, Range]
    once: bool = False  # it runs before the loop


def count(manifest: Manifest) -> int:
    """How many engines a build of the artefact has."""
    return len(manifest.segments if manifest.link == "shared" else manifest.graphs) + bool(manifest.decoder)


def units(manifest: Manifest, sizes: Range) -> dict[str, Unit]:
    """What has to be built, with the shapes that each part of the program uses it with."""
    result: dict[str, Unit] = {}
    for name, graph in manifest.graphs.items():
        ranges, once = batch_axes(manifest, name, sizes), name in (manifest.constants, manifest.prologue)
        if manifest.link == "static":
            ports = [_port(manifest, i, i) for i in graph.inputs if not manifest.is_weight(i)]
            result[name] = Unit(graph.file, tuple(ports), ranges, once)
            continue
        for node in graph.nodes:
            segment = manifest.segments[node.op]
            ports = [_port(manifest, i, value) for i, value in zip(segment.inputs, node.inputs, strict=True)]
            if unit := result.get(node.op):
                result[node.op] = Unit(segment.file, tuple(ports), _union(unit.ranges, ranges), unit.once and once)
            else:
                result[node.op] = Unit(segment.file, tuple(ports), ranges, once)
    if manifest.decoder:
        channels, height, width = manifest.model.latent
        port = Port("z", (1, channels, "H", "W"))
        # from the smallest tile that may be left over at an edge
        result[DECODER] = Unit(manifest.decoder.file, (port,), {"H": Range(1, height, height), "W": Range(1, width, width)})
    return result


def batch_axes(manifest: Manifest, graph: str, sizes: Range) -> dict[str, Range]:
    """The sizes of the axes B and R in a graph.  What runs before the loop does so for many calls at once."""
    calls = len(manifest.calls)
    if graph == manifest.constants:
        return {"B": Range(1, 1, 1), "R": Range(1, calls, calls)}
    at_once = calls if graph == manifest.prologue else 1
    rows = Range(sizes.least, at_once * manifest.rows(sizes.usual), at_once * manifest.rows(sizes.most))
    return {"B": sizes, "R": rows}


def _union(a: Mapping[str, Range], b: Mapping[str, Range]) -> dict[str, Range]:
    return {axis: Range(min(a[axis].least, b[axis].least), min(a[axis].usual, b[axis].usual), max(a[axis].most, b[axis].most))
            for axis in a}  # fmt: skip


def _port(manifest: Manifest, name: str, value: str) -> Port:
    """An engine's input called `name`, which is given the value or weight `value`."""
    if not manifest.is_weight(value):
        return Port(name, manifest.values[split_at(value)[0]].shape)
    tensor, rows = rows_of(value)
    first, *rest = manifest.tensors[tensor]
    return Port(name, (len(range(*rows.indices(first))), *rest))
