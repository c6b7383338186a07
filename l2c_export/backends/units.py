"""What has to be built for a GPU: every engine with the shapes that the program uses it with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..artefact.compiled import Compiled
from ..artefact.manifest import Manifest
from .building import Port, Range

DECODER = "decoder"  # of the decoder's engine in a build


class Unit(NamedTuple):
    """What becomes one engine: a segment (shared link) or a whole graph (static link)."""

    file: str
    ports: tuple[Port, ...]
    ranges: Mapping[str, Range]
    once: bool = False  # it runs before the loop


def count(manifest: Manifest) -> int:
    """How many engines a build of the artefact has."""
    return len(manifest.denoiser.segments if manifest.link == "shared" else manifest.all_graphs()) + bool(manifest.decoder)


def units(manifest: Manifest, sizes: Range) -> dict[str, Unit]:
    """What has to be built, with the shapes that each part of the program uses it with."""
    result: dict[str, Unit] = {}
    for compiled in manifest.all_programs():
        for name in (*compiled.before_loop, *compiled.step_graphs):
            for part, unit in _of_graph(compiled, name, sizes, manifest.link == "static").items():
                result[part] = _joined(result.get(part, unit), unit)
    if manifest.decoder:
        channels, _, _ = manifest.program().latent
        height, width = (max(size.latent[axis] for size in manifest.denoiser.sizes.values()) for axis in (1, 2))
        port = Port("z", (1, channels, "H", "W"))
        # from the smallest tile that may be left over at an edge
        result[DECODER] = Unit(manifest.decoder.file, (port,), {"H": Range(1, height, height), "W": Range(1, width, width)})
    return result


def _of_graph(compiled: Compiled, name: str, sizes: Range, is_static: bool) -> dict[str, Unit]:
    """What a graph needs of every engine that it calls, or as a whole."""
    graph, ranges, once = compiled.graphs[name], batch_axes(compiled, name, sizes), name in compiled.before_loop
    if is_static:
        ports = [_port(compiled, i, i) for i in graph.inputs if not compiled.is_weight(i)]
        return {name: Unit(graph.file, tuple(ports), ranges, once)}
    units: dict[str, Unit] = {}
    for node in graph.nodes:
        segment = compiled.segments[node.op]
        ports = [_port(compiled, i, value) for i, value in zip(segment.inputs, node.inputs, strict=True)]
        units[node.op] = Unit(segment.file, tuple(ports), ranges, once)
    return units


def _joined(a: Unit, b: Unit) -> Unit:
    """An engine that serves two graphs."""
    ranges = {
        axis: Range(min(one.least, other.least), min(one.usual, other.usual), max(one.most, other.most))
        for axis, one, other in ((axis, a.ranges[axis], b.ranges[axis]) for axis in a.ranges)
    }
    return b._replace(ranges=ranges, once=a.once and b.once)


def batch_axes(compiled: Compiled, graph: str, sizes: Range) -> dict[str, Range]:
    """The sizes of the axes B and R in a graph.  What runs before the loop does so for many calls at once."""
    calls = len(compiled.calls)
    if graph == compiled.constants:
        return {"B": Range(1, 1, 1), "R": Range(1, calls, calls)}
    at_once = calls if graph == compiled.prologue else 1
    rows = Range(sizes.least, at_once * compiled.rows(sizes.usual), at_once * compiled.rows(sizes.most))
    return {"B": sizes, "R": rows}


def _port(compiled: Compiled, name: str, value: str) -> Port:
    """An engine's input called `name`, which is given the value or weight `value`."""
    return Port(name, compiled.weight_shape(value) if compiled.is_weight(value) else compiled.value(value).shape)
