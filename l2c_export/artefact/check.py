"""Whether a manifest agrees with itself: everything that the runtime looks up is there, and fits where it is put.

The checksum tells damage; this tells a manifest that somebody, or a wrong release, has written on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec

from ..ir.dtypes import BYTES, E4M3
from ..ir.graph import Value
from ..ir.inputs import guided
from ..schedules.values import OUTPUT
from ..weights import stored
from ..weights.layout import COMPUTED, WEIGHTS, Layout
from . import check_flow, check_names, check_origins, check_precision, check_primitives, check_text
from .call_record import CallRecord
from .check_origins import MOST_HISTORY
from .compiled import Compiled
from .manifest import Manifest, program_name
from .records import FINGERPRINT, FingerprintRecord, GraphRecord, Origin, SizeRecord

LATENTS = "x.next"  # what every call makes
LARGEST_FLOAT = 3.4e38
LARGEST = 2**31  # no axis of a model's tensor is longer
SUMS = 4  # axes of a bank
PICTURE = 3  # axes of what a decoder takes


def problem(manifest: Manifest) -> str | None:
    """The first contradiction in words, None if there is none."""
    return next(_problems(manifest), None)


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _whole(manifest)
    for name, tensor in manifest.denoiser.tensors.items():
        if tensor.dtype not in COMPUTED or not all(map(_is_size, tensor.shape)):
            yield f"the weight {name!r} has no usable type: {tensor.dtype} of shape {tensor.shape}"
    yield from _narrow(manifest)
    yield from _files(manifest)
    yield from check_precision.problems(manifest)
    yield from check_text.problems(manifest)
    for name, size in manifest.denoiser.sizes.items():
        yield from (f"size {name}: {wrong}" for wrong in _size(manifest, size))
    for name, program in manifest.programs.items():
        own = None if program.size == next(iter(manifest.programs.values())).size else program.size
        if name != program_name(program.steps, own) or program.size not in manifest.denoiser.sizes:
            yield f"the program {name!r} has {program.steps} steps, and the size {program.size!r}"
    for compiled in manifest.all_programs():
        yield from (f"program {compiled.name}: {wrong}" for wrong in _program(compiled))
    if manifest.fingerprint:
        yield from (f"its fingerprint {wrong}" for wrong in _fingerprint(manifest, manifest.fingerprint))


def _narrow(manifest: Manifest) -> Iterator[str]:
    """What is stored narrower than it is computed."""
    model = manifest.denoiser
    yield from stored.problems(model.tensors)
    if model.stored and manifest.link == "static":
        yield f"whole graphs, whose weights are stored as {model.stored}"
    if model.narrowing and (wrong := model.narrowing.problem(model.tensors)):
        yield wrong


def _whole(manifest: Manifest) -> Iterator[str]:
    counts = {"batch": manifest.batch, "programs": len(manifest.programs)}
    yield from (f"{name} is {count}" for name, count in counts.items() if not _is_size(count))
    yield from filter(None, (declared.problem() for declared in manifest.inputs))
    if len({declared.name for declared in manifest.inputs}) < len(manifest.inputs):
        yield "two inputs have one name"
    if not guided(manifest.inputs) and manifest.guidance.halves == 2:
        yield "guidance, but no input has an unconditional value"
    if not math.isfinite(manifest.guidance.scale):
        yield f"guidance scale {manifest.guidance.scale}"
    decoder = manifest.decoder
    if decoder and not all(map(_is_size, (decoder.scale, decoder.channels, decoder.tile))):
        yield f"a decoder of {decoder.channels} channels, scale {decoder.scale} and tiles of {decoder.tile}"


def _files(manifest: Manifest) -> Iterator[str]:
    model = manifest.denoiser
    names = {s.file for s in model.segments.values()} | {g.file for g in manifest.all_graphs().values()}
    names |= {program.schedule for program in manifest.programs.values()}
    names |= {WEIGHTS} if model.weights else set()
    names |= {manifest.decoder.file} if manifest.decoder else set()
    names |= check_text.files(manifest.text) if manifest.text else set()
    names |= {FINGERPRINT} if manifest.fingerprint else set()
    names |= {file for build in manifest.builds.values() for file in build.engines.values()}
    yield from (f"it does not list {name}, which it uses" for name in sorted(names - set(manifest.files)))
    if model.weights and WEIGHTS in manifest.files:
        size = Layout(model.tensors).bytes
        if manifest.files[WEIGHTS].bytes != size:
            yield f"its tensors make {size} bytes, {WEIGHTS} has {manifest.files[WEIGHTS].bytes}"
    yield from check_names.problems(manifest)


def _size(manifest: Manifest, size: SizeRecord) -> Iterator[str]:
    """The graphs of one size, and the names in them."""
    if not size.latent or not all(map(_is_size, size.latent)):
        yield f"latents of shape {size.latent}"
    if manifest.decoder and len(size.latent) != PICTURE:
        yield f"a decoder for latents of shape {size.latent}"
    if (x := size.values.get("x")) and (x.shape, x.dtype) != (("B", *size.latent), "float32"):
        yield f"latents of shape {size.latent}, which its graphs take as {x.dtype} of shape {x.shape}"
    yield from (f"the value {name!r} has no usable type" for name, value in size.values.items() if not _usable(value))
    yield from check_origins.problems(manifest, size)
    for part in (size.constants, size.request or None, size.prologue):
        if part is not None and part not in size.graphs:
            yield f"there is no graph {part!r}"
    most = _largest(size)
    for name, graph in size.graphs.items():
        yield from (f"graph {name}: {wrong}" for wrong in _graph(manifest, size, graph, most))
        yield from (f"graph {name}: {wrong}" for wrong in check_flow.in_graph(size, name))
    yield from check_primitives.problems(manifest.denoiser, size)


def _graph(manifest: Manifest, size: SizeRecord, graph: GraphRecord, most: int) -> Iterator[str]:
    for node in graph.nodes:
        segment = manifest.denoiser.segments.get(node.op)
        if segment is None:
            yield f"there is no segment {node.op!r}"
        elif (len(node.inputs), len(node.outputs)) != (len(segment.inputs), len(segment.outputs)):
            yield f"{node.name} does not fit its segment"
    names = {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}
    unknown = {*names, *graph.outputs} - size.origins.keys() - size.values.keys()
    yield from (f"nothing is known of {name!r}" for name in sorted(unknown))
    yield from _placed(size, graph.slots, graph.slot_bytes, most)


def _program(compiled: Compiled) -> Iterator[str]:
    program = compiled.program
    counts = {"steps": program.steps, "calls": len(program.calls)}
    yield from (f"{name} is {count}" for name, count in counts.items() if not _is_size(count))
    if not 0 <= (program.history or 0) <= MOST_HISTORY or not 0 < (program.noise_scale or 1) < LARGEST_FLOAT:
        yield f"{program.history} earlier predictions, noise of scale {program.noise_scale}"
    if compiled.calls and not compiled.calls[-1].ends_step:
        yield "its last call ends no step"
    if program.asked and (program.asked.max_graphs < 1 or not _covers(compiled)):
        yield "it was asked for other calls than it has"
    hoisted: dict[str, set[str]] = {"prologue": set(), "once": set()}  # before the loop, by the origin of those who read it
    for part, knows, kind in (
        (compiled.constants, "time", "prologue"),
        (compiled.request, "request", "once"),
        (compiled.prologue, "request", "prologue"),
    ):
        if part is not None:
            early = compiled.graphs[part]
            own = {*hoisted[kind], *(name for node in early.nodes for name in node.outputs)}
            names = [name for name in _values(compiled, early) if name not in own]
            yield from (f"{part}: nothing makes {name!r}" for name in names if not _is_early(compiled, name, knows))
            others = (n for n in early.inputs if not _is_hoisted(compiled, n, hoisted[kind]))
            yield from (f"{part}: {n!r} is of another call" for n in others)
            hoisted[kind] |= set(early.outputs)
    most = _largest(compiled.size)
    for index, call in enumerate(compiled.calls):
        yield from (f"call {index}: {wrong}" for wrong in _call(compiled, call, hoisted, most))
    yield from check_flow.in_calls(compiled)
    yield from check_flow.histories(compiled)


def _covers(compiled: Compiled) -> bool:
    """Whether every call computes what was asked of it."""
    computed = compiled.program.asked.computed if compiled.program.asked else ()
    return len(computed) == len(compiled.calls) and all(
        set(columns) <= set(call.computed) for columns, call in zip(computed, compiled.calls, strict=True)
    )


def _call(compiled: Compiled, call: CallRecord, hoisted: Mapping[str, set[str]], most: int) -> Iterator[str]:
    graph = compiled.graphs.get(call.graph)
    if graph is None or call.graph in compiled.before_loop or LATENTS not in graph.outputs:
        yield f"no graph {call.graph!r} makes latents for it"
    else:
        placed = {LATENTS, *graph.slots, *call.reads, *call.writes, *(["x.data"] if compiled.history else [])}
        names = [name for name in _values(compiled, graph) if name not in placed]
        yield from (f"{name!r} has no place" for name in names if not _is_given(compiled, call, name, hoisted))
    if (taken := compiled.size.values.get("coefficients")) and taken.shape != (len(call.coefficients),):
        yield f"it has {len(call.coefficients)} coefficients, and its graphs take {taken.shape}"
    if not all(abs(number) < LARGEST_FLOAT for number in (call.timestep, *call.coefficients)):
        yield "its numbers are not finite"
    yield from _values_of(compiled, call)
    yield from _placed(compiled.size, call.reads, compiled.program.cache_bytes, most)
    yield from _placed(compiled.size, call.writes, compiled.program.cache_bytes, most)


def _values_of(compiled: Compiled, call: CallRecord) -> Iterator[str]:
    """Of what a call says of sublayers and levels."""
    names, derived = compiled.denoiser.sublayers, call.derived or {}
    columns = [*call.computed, *call.reused, *(j for j, name in enumerate(names) if name in derived)]
    jumps = any(name not in names for name in derived)
    whole = list(range(len(names)))
    if len(set(columns)) < len(columns) or not set(columns) <= set(whole) or (not jumps and sorted(columns) != whole):
        yield "it does not say of every sublayer once whether it is computed"
    if not all(name in names or name == OUTPUT or name in (compiled.denoiser.levels or {}) for name in derived):
        yield "it derives what is neither a sublayer nor a level"
    numbers = [*(call.forecast or {}).values(), *(c for terms in derived.values() for _, c in terms)]
    if not all(abs(number) < LARGEST_FLOAT for number in numbers):
        yield "the coefficients of its forecasts are not finite"


def _fingerprint(manifest: Manifest, record: FingerprintRecord) -> Iterator[str]:
    compiled, indices = manifest.program(), (record.filling or 0, record.light or 0)
    if not 0 <= record.calls <= len(compiled.calls) or not all(0 <= n < max(record.calls, 1) for n in indices):
        yield f"is of {record.calls} calls, among them {indices}"
    if not record.calls and not record.pieces:
        yield "is of nothing"
    if record.precision != manifest.precision or not 0 <= record.seed < LARGEST or manifest.denoiser.weights is None:
        yield "is that of another artefact"
    for segment, piece in record.pieces.items():
        if manifest.piece(piece, segment) is None:
            yield f"has a piece {segment!r} that nothing calls"


def _is_early(compiled: Compiled, name: str, kind: str) -> bool:
    """Whether a graph that runs before the loop has a value for what it does not make: `kind` is known by then."""
    origin = compiled.origin(name)
    return origin is not None and (origin.kind, origin.offset) == (kind, 0)


def _is_hoisted(compiled: Compiled, name: str, hoisted: set[str]) -> bool:
    """Whether what a graph before the loop reads of an earlier one is its own call's, under its own name."""
    origin = compiled.origin(name)
    return name not in hoisted or origin == Origin("prologue", name)


def _is_given(compiled: Compiled, call: CallRecord, name: str, hoisted: Mapping[str, set[str]]) -> bool:
    """Whether the loop has a value for what neither the call nor one before it makes."""
    origin = compiled.origin(name)
    if origin is None or origin.kind in ("cache", "later"):
        return False
    if origin.kind in ("prologue", "once"):
        return origin.of in hoisted[origin.kind]
    if origin.kind == "window":
        return origin.of in hoisted["prologue"]
    if origin.kind == "bank":
        return _is_banked(compiled, call, name)
    if origin.kind == "forecast":
        return origin.of in (call.forecast or {})
    return origin.kind != "state" or origin.of != "x.data" or bool(compiled.history)


def _is_banked(compiled: Compiled, call: CallRecord, name: str) -> bool:
    """Whether a call says of a bank what its graph asks for, of sums that there are."""
    bank, _, part = name.rpartition(".")
    use, sums, taken = (call.banks or {}).get(bank), compiled.size.values.get(bank), compiled.size.values[name]
    if use is None or sums is None or len(sums.shape) != SUMS:
        return False
    count = sums.shape[2]
    if not isinstance(count, int):
        return False
    if part == "slot":
        return use.slot is not msgspec.UNSET and 0 <= use.slot < count and taken == Value((1,), "int32")
    if part == "keep":
        return all(0 <= slot < count for slot in use.kept) and taken == Value((count,))
    most = taken.shape[-1]
    fits = part == "weights" and isinstance(most, int) and most < len(compiled.calls) and taken == Value((count, most))
    return fits and all(
        0 <= slot < count and isinstance(most, int) and 1 <= calls <= most and abs(c) < LARGEST_FLOAT
        for slot, calls, c in use.adds
    )


def _values(compiled: Compiled, graph: GraphRecord) -> list[str]:
    """Everything that a graph reads or makes, but the weights."""
    names = (name for node in graph.nodes for name in (*node.inputs, *node.outputs))
    return [name for name in dict.fromkeys((*names, *graph.outputs)) if not compiled.is_weight(name)]


def _largest(size: SizeRecord) -> int:
    """The bytes of the largest value."""
    return max((value.row_bytes for value in size.values.values()), default=0)


def _placed(size: SizeRecord, slots: Mapping[str, int], sizes: tuple[int, ...], most: int) -> Iterator[str]:
    """Values that have no row axis, or do not fit into their slot; slots have at most so many bytes."""
    for name, slot in slots.items():
        value = size.type_of(name)
        if value is None or not isinstance(value.shape[0], str) or not 0 <= slot < len(sizes) or value.row_bytes > sizes[slot]:
            yield f"{name!r} does not fit into its slot"
    yield from (f"a slot of {bytes_} bytes, more than any value has" for bytes_ in sizes if not 0 <= bytes_ <= most)


def _usable(value: Value) -> bool:
    if not value.shape or value.kind or value.dtype not in BYTES or value.dtype == E4M3:
        return False
    first, *rest = value.shape
    if _is_size(first) and rest and rest[0] == "R":  # rows of several calls
        return all(map(_is_size, rest[1:]))
    return (first in ("B", "R") or _is_size(first)) and all(map(_is_size, rest))


def _is_size(count: object) -> bool:
    return isinstance(count, int) and 0 < count < LARGEST
