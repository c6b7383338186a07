"""Whether a manifest agrees with itself: everything that the runtime looks up is there, and fits where it is put.

The checksum tells damage; this tells a manifest that somebody, or a wrong release, has written on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from ..ir.dtypes import BYTES
from ..ir.graph import Value
from ..ir.names import rows_of, split_at
from ..weights.layout import WEIGHTS, Layout
from .manifest import CallRecord, GraphRecord, Manifest

LATENTS = "x.next"  # what every call makes
# what the loop itself provides
GIVEN = {LATENTS, "x", "base", "rows", "conditional", "unconditional", "guidance", "coefficients", "t", "y"}
LARGEST_FLOAT = 3.4e38
MOST_HISTORY = 2  # DPM-Solver++ of order 3
LARGEST = 2**31  # no axis of a model's tensor is longer


def problem(manifest: Manifest) -> str | None:
    """The first contradiction in words, None if there is none."""
    return next(_problems(manifest), None)


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _model(manifest)
    yield from (f"the value {name!r} has no usable type" for name, v in manifest.values.items() if not _usable(v))
    yield from (f"the weight {n!r} has no usable shape" for n, s in manifest.tensors.items() if not all(map(_is_size, s)))
    yield from _files(manifest)
    for name, graph in manifest.graphs.items():
        yield from (f"graph {name}: {wrong}" for wrong in _graph(manifest, graph))
    hoisted: set[str] = set()
    for part, source in ((manifest.constants, "t"), (manifest.prologue, "y")):
        if early := manifest.graphs.get(part or ""):
            sources = {source, *hoisted, *(name for node in early.nodes for name in node.outputs)}
            yield from (f"{part}: nothing makes {name!r}" for name in _values(manifest, early) if name not in sources)
            hoisted |= set(early.outputs)
    history = ("x.data",) if manifest.history else ()  # earlier data predictions
    for index, call in enumerate(manifest.calls):
        yield from (f"call {index}: {wrong}" for wrong in _call(manifest, call, {"t", *history, *hoisted}))


def _model(manifest: Manifest) -> Iterator[str]:
    counts = {"batch": manifest.batch, "steps": manifest.steps, "calls": len(manifest.calls), "labels": manifest.model.labels}
    yield from (f"{name} is {count}" for name, count in counts.items() if not _is_size(count))
    if not all(map(_is_size, manifest.model.latent)):
        yield f"latents of shape {manifest.model.latent}"
    if not 0 <= (manifest.model.null_label or 0) <= manifest.model.labels or manifest.weight_dtype not in BYTES:
        yield f"null label {manifest.model.null_label}, weights of type {manifest.weight_dtype}"
    if manifest.model.null_label is None and manifest.guidance.halves == 2:
        yield "guidance without a null label"
    if not math.isfinite(manifest.guidance.scale):
        yield f"guidance scale {manifest.guidance.scale}"
    if not 0 <= (manifest.history or 0) <= MOST_HISTORY or not 0 < (manifest.noise_scale or 1) < LARGEST_FLOAT:
        yield f"{manifest.history} earlier predictions, noise of scale {manifest.noise_scale}"
    if manifest.asked and (manifest.asked.max_graphs < 1 or not _covers(manifest)):
        yield "it was asked for other calls than it has"
    if manifest.decoder and not (_is_size(manifest.decoder.scale) and _is_size(manifest.decoder.channels)):
        yield f"a decoder of {manifest.decoder.channels} channels and scale {manifest.decoder.scale}"
    for name in (manifest.constants, manifest.prologue):
        if name is not None and name not in manifest.graphs:
            yield f"there is no graph {name!r}"


def _covers(manifest: Manifest) -> bool:
    """Whether every call computes what was asked of it."""
    computed = manifest.asked.computed if manifest.asked else ()
    return len(computed) == len(manifest.calls) and all(
        set(columns) <= set(call.computed) for columns, call in zip(computed, manifest.calls, strict=True)
    )


def _files(manifest: Manifest) -> Iterator[str]:
    names = {s.file for s in manifest.segments.values()} | {g.file for g in manifest.graphs.values()}
    names |= {WEIGHTS} if manifest.weights else set()
    names |= {manifest.decoder.file} if manifest.decoder else set()
    names |= {file for build in manifest.builds.values() for file in build.engines.values()}
    yield from (f"it does not list {name}, which it uses" for name in sorted(names - set(manifest.files)))
    if manifest.weights and WEIGHTS in manifest.files:
        size = Layout(manifest.tensors, manifest.weight_types).bytes
        if manifest.files[WEIGHTS].bytes != size:
            yield f"its tensors make {size} bytes, {WEIGHTS} has {manifest.files[WEIGHTS].bytes}"


def _graph(manifest: Manifest, graph: GraphRecord) -> Iterator[str]:
    for node in graph.nodes:
        segment = manifest.segments.get(node.op)
        if segment is None:
            yield f"there is no segment {node.op!r}"
        elif (len(node.inputs), len(node.outputs)) != (len(segment.inputs), len(segment.outputs)):
            yield f"{node.name} does not fit its segment"
    names = {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}
    for name in (*names, *graph.inputs, *graph.outputs):
        if manifest.is_weight(name) and not _is_weight(manifest.tensors, name):
            yield f"nothing is known of {name!r}"
        if abs(split_at(name)[1]) > len(manifest.calls):
            yield f"{name!r} is of no call"
    yield from _placed(manifest, graph.slots, graph.slot_bytes)


def _call(manifest: Manifest, call: CallRecord, hoisted: Collection[str]) -> Iterator[str]:
    graph = manifest.graphs.get(call.graph)
    if graph is None or call.graph in (manifest.constants, manifest.prologue) or LATENTS not in graph.outputs:
        yield f"no graph {call.graph!r} makes latents for it"
    else:
        places = {*GIVEN, *graph.slots, *call.reads, *call.writes}
        names = [name for name in _values(manifest, graph) if name not in places]
        yield from (f"{name!r} has no place" for name in names if split_at(name)[0] not in hoisted)
    if not all(abs(number) < LARGEST_FLOAT for number in (call.timestep, *call.coefficients)):
        yield "its numbers are not finite"
    if sorted((*call.computed, *call.reused)) != list(range(len(manifest.model.sublayers))):
        yield "it does not say of every sublayer once whether it is computed"
    yield from _placed(manifest, call.reads, manifest.cache_bytes)
    yield from _placed(manifest, call.writes, manifest.cache_bytes)


def _values(manifest: Manifest, graph: GraphRecord) -> list[str]:
    """Everything that a graph reads or makes, but the weights."""
    names = (name for node in graph.nodes for name in (*node.inputs, *node.outputs))
    return [name for name in dict.fromkeys((*names, *graph.inputs, *graph.outputs)) if not manifest.is_weight(name)]


def _placed(manifest: Manifest, slots: Mapping[str, int], sizes: tuple[int, ...]) -> Iterator[str]:
    """Values that have no row axis, or do not fit into their slot."""
    for name, slot in slots.items():
        value = manifest.values.get(split_at(name)[0])
        if value is None or not isinstance(value.shape[0], str) or not 0 <= slot < len(sizes) or value.row_bytes > sizes[slot]:
            yield f"{name!r} does not fit into its slot"
    most = max((value.row_bytes for value in manifest.values.values()), default=0)
    yield from (f"a slot of {size} bytes, more than any value has" for size in sizes if not 0 <= size <= most)


def _is_weight(tensors: Mapping[str, tuple[int, ...]], name: str) -> bool:
    tensor, rows = rows_of(name)
    if tensor not in tensors or not tensors[tensor]:
        return False
    return rows.start is None or 0 <= rows.start < rows.stop <= tensors[tensor][0]


def _usable(value: Value) -> bool:
    first, rest = value.shape[:1], value.shape[1:]
    return bool(first) and value.dtype in BYTES and (first[0] in ("B", "R") or _is_size(first[0])) and all(map(_is_size, rest))


def _is_size(count: object) -> bool:
    return isinstance(count, int) and 0 < count < LARGEST
