"""What engines are made of: segments, or whole graphs whose segments are written out, with the types of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...artefact.compiled import Compiled
from ...artefact.manifest import Manifest
from ...artefact.records import SegmentRecord
from ...errors import BackendError
from ...ir.graph import Node, Primitive, Value
from ..building import Range
from ..contract import SegmentFile
from ..units import batch_axes


class EnginePiece(NamedTuple):
    """What becomes one engine, as it is called somewhere."""

    name: str
    primitives: tuple[Primitive, ...]
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[str, ...]


def inlined(node: Node, segment: SegmentFile | SegmentRecord) -> list[Primitive]:
    """The primitives of a call of a segment, over the names of its graph.  Raises BackendError for a segment without any."""
    if not segment.primitives:
        raise BackendError(f"cuda: {node.op} is not written in primitives: use backend='onnxruntime', device='cuda'")
    names = dict(zip((*segment.inputs, *segment.outputs), (*node.inputs, *node.outputs), strict=True))

    def named(inner: Sequence[str]) -> tuple[str, ...]:
        return tuple(names.get(name, f"{node.name}/{name}") for name in inner)

    return [Primitive(p.op, p.attributes, named(p.inputs), named(p.outputs)) for p in segment.primitives]


def pieces(manifest: Manifest, images: int) -> set[EnginePiece]:
    """All that engines are made of for so many images, with guidance where there is some."""
    engine_pieces: set[EnginePiece] = set()
    for compiled in manifest.all_programs():
        for graph in (*compiled.before_loop, *compiled.step_graphs):
            axes = {axis: sizes.most for axis, sizes in batch_axes(compiled, graph, Range(images, images, images)).items()}
            engine_pieces.update(_of_graph(compiled, graph, axes, manifest.link == "static"))
    return engine_pieces


def _of_graph(compiled: Compiled, name: str, axes: dict[str, int], whole: bool) -> Iterator[EnginePiece]:
    graph = compiled.graphs[name]
    if whole:
        primitives = tuple(p for node in graph.nodes for p in inlined(node, compiled.segments[node.op]))
        yield EnginePiece(name, primitives, tuple((i, _type(compiled, i, axes)) for i in graph.inputs), graph.outputs)
        return
    for node in graph.nodes:
        segment = compiled.segments[node.op]
        inlined(node, segment)  # or it has none
        pairs = zip(segment.inputs, node.inputs, strict=True)
        types = tuple((i, _type(compiled, value, axes)) for i, value in pairs)
        yield EnginePiece(node.op, segment.primitives or (), types, segment.outputs)


def _type(compiled: Compiled, name: str, axes: dict[str, int]) -> Value:
    if compiled.is_weight(name):
        return Value(compiled.weight_shape(name), compiled.denoiser.tensors[compiled.size.origins[name].of].dtype)
    value = compiled.value(name)
    return Value(tuple(axes[n] if isinstance(n, str) else n for n in value.shape), value.dtype)
