"""A loaded artefact, and its engines bound to arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ..artefact import integrity
from ..artefact.compiled import Compiled
from ..artefact.manifest import Manifest
from ..artefact.records import SegmentRecord
from ..backends.contract import FUSED, Array, Backend, Engine, Run, SegmentFile, WeightView
from ..ir.graph import Value
from ..support.ending import stop
from ..weights.layout import WEIGHTS, mapped


class LoadedArtefact(NamedTuple):
    """An artefact's engines and weights, ready to be bound: what all programs and batch sizes have in common."""

    folder: Path
    manifest: Manifest
    backend: Backend
    link: str  # as it was loaded, which need not be what it was compiled for
    weights: WeightView
    engines: Mapping[str, Engine]  # segments (shared link) or whole graphs (static link), by name


class Bound(NamedTuple):
    """An engine bound to arrays: a node of a graph, or with the static link the whole graph."""

    name: str  # the sublayer, or what else the engine computes; the graph's with the static link
    engine: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Run


def load_engines(
    folder: Path, manifest: Manifest, backend: Backend, link: str | None = None, view: WeightView | None = None
) -> LoadedArtefact:
    """Load every engine that a link needs, by default the one that the artefact was compiled for.

    The weights are memory-mapped, or those of `view`.
    """
    link, view = link or manifest.link, view or mapped_weights(folder, manifest)
    files = {name: segment_file(folder, manifest, segment) for name, segment in manifest.denoiser.segments.items()}
    if link == "shared":
        device_view = backend.memory.weights(view, weight_names(manifest))
        engines = {}
        for name, file in files.items():
            stop()
            engines[name] = backend.load(file)
        return LoadedArtefact(folder, manifest, backend, link, device_view, engines)
    engines, names = {}, weight_names(manifest)
    for name, graph in manifest.all_graphs().items():
        stop()
        constants = {i: view(i) for i in graph.inputs if i in names}
        integrity.check_closed((folder / graph.file).read_bytes(), folder / graph.file)
        engines[name] = backend.link(folder / graph.file, graph.nodes, files, graph.outputs, constants)
    return LoadedArtefact(folder, manifest, backend, link, view, engines)


def weight_names(manifest: Manifest) -> set[str]:
    """Every weight that a graph reads, whole or some rows of it."""
    origins = (size.origins for size in manifest.denoiser.sizes.values())
    return {name for table in origins for name, origin in table.items() if origin.kind == "weight"}


def segment_file(folder: Path, manifest: Manifest, segment: SegmentRecord) -> SegmentFile:
    """A segment on disk, with what its file and its fused form must look like."""
    fused = str(PurePosixPath(segment.file).with_suffix(FUSED))
    info_of, island = manifest.files.get, segment.precision == "float32"
    names = segment.inputs, segment.outputs
    primitives = segment.primitives or ()
    return SegmentFile(folder / segment.file, *names, info_of(segment.file), info_of(fused), island, primitives=primitives)


def mapped_weights(folder: Path, manifest: Manifest) -> WeightView:
    """An artefact's weights by the names that its graphs have for them, as views of the file."""
    tensor, sizes = mapped(folder / WEIGHTS, manifest.denoiser.tensors), manifest.denoiser.sizes.values()
    origins = {name: origin for size in sizes for name, origin in size.origins.items() if origin.kind == "weight"}
    return lambda name: tensor(origins[name].of)[origins[name].first : origins[name].last]


def filled(backend: Backend, values: np.ndarray) -> Array:
    """A new array of the backend's with these values."""
    array = backend.memory.empty(values.shape, str(values.dtype))
    backend.memory.put(array, values)
    return array


def bind_graph(loaded: LoadedArtefact, compiled: Compiled, name: str, array: Callable[[str], Array]) -> list[Bound]:
    """Bind a graph's engines to arrays found by name: one per segment call, or one for the whole graph."""
    graph = compiled.graphs[name]
    if loaded.link == "static":
        names = tuple(i for i in graph.inputs if not compiled.is_weight(i))
        run = loaded.engines[name].bind({i: array(i) for i in names}, {o: array(o) for o in graph.outputs})
        return [Bound(name, name, names, graph.outputs, run)]
    bound = []
    for node in graph.nodes:
        segment = compiled.segments[node.op]
        inputs = {i: array(value) for i, value in zip(segment.inputs, node.inputs, strict=True)}
        outputs = {o: array(value) for o, value in zip(segment.outputs, node.outputs, strict=True)}
        run = loaded.engines[node.op].bind(inputs, outputs)
        bound.append(Bound(node.name, node.op, node.inputs, node.outputs, run))
    return bound


def concrete(value: Value, images: int, rows: int) -> tuple[int, ...]:
    """A value's shape with the batch axes filled in."""
    sizes = {"B": images, "R": rows}
    return tuple(sizes[n] if isinstance(n, str) else n for n in value.shape)


def typed(memory: Array, value: Value, images: int, rows: int) -> Array:
    """The beginning of a block of bytes as an array for a value."""
    shape = concrete(value, images, rows)
    size = value.row_bytes * shape[0]
    return memory[:size].view(value.dtype).reshape(shape)
