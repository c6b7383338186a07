"""What an artefact computed when its weights were bound, so that a machine without PyTorch can check what it computes there.

Recorded is the beginning of one seeded request to the first program: the latents before and after every call from the first
to the light one.  The *filling* call is the first that writes what later calls read; the *light* call is the one that computes
least of those that read it.  Calls are fed the recorded latents when they are repeated, so that errors do not add up.  Where
this would take more than `MOST` FLOP (recorded and repeated: 2 TFLOP), less is recorded: the first call, or none.  Of every
segment that the recorded calls do not run, those of other sizes among them, there is one piece: what it makes of seeded inputs,
for one row, summed up in a sketch.

All is float32: that is what latents are, and half of its bits would be coarser than the tolerance of fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import ArtefactError
from ..ir.graph import Node
from ..ir.inputs import Inputs, RequestInput, arrays
from ..weights.layout import rounded
from .compiled import Compiled
from .integrity import verified
from .manifest import Manifest
from .records import FINGERPRINT, FingerprintRecord, PieceRecord

MOST = 10**12  # FLOP
SEED = 20
SKETCH = 1024  # numbers of a sketch

Sketches = Mapping[str, Sequence[np.ndarray]]  # by segment, a sketch of every output


class Fingerprint(NamedTuple):
    """A request and what its calls and pieces made, as it lies in the file."""

    noise: np.ndarray  # (1, C, ..) float32, in standard deviations
    inputs: Inputs  # (1, ..) by name
    guidance_scale: float
    latents: tuple[np.ndarray, ...]  # (1, C, ..) float32, after every recorded call
    pieces: Sketches


def planned(manifest: Manifest) -> FingerprintRecord:
    """What is to be recorded of an artefact's first program; who recorded it, with which weights, is still open."""
    compiled = manifest.program()
    filling, light = _filled_and_read(compiled) or (None, None)
    count = 1 if light is None else light + 1
    count = count if flops(compiled, count) <= MOST else 0
    return FingerprintRecord(
        seed=SEED,
        calls=count,
        filling=msgspec.UNSET if light is None or filling is None else filling,
        light=msgspec.UNSET if light is None else light,
        pieces=_pieces(manifest, count),
        precision=manifest.precision,
    )


def _filled_and_read(compiled: Compiled) -> tuple[int, int] | None:
    """A call and the lightest that reads from it: of the first that fills, or, where others that fill read from that one (they
    add to its bank of sums), of the first whose values a lighter call reads."""
    cost = [_graph_flops(compiled, call.graph) for call in compiled.calls]
    fillings = [n for n, call in enumerate(compiled.calls) if call.writes]
    affordable = {n: [m for m in _readers(compiled, n) if flops(compiled, m + 1) <= MOST] for n in fillings}
    lighter = (n for n in fillings if any(cost[m] < cost[n] for m in affordable[n]))
    filling = next(lighter, next((n for n in fillings[:1] if affordable[n]), None))
    return None if filling is None else (filling, min(affordable[filling], key=lambda n: cost[n]))


def _readers(compiled: Compiled, filling: int) -> list[int]:
    """The calls that read what call `filling` wrote, before others write there."""
    held = set(compiled.calls[filling].writes.values())
    readers = []
    for n, call in enumerate(compiled.calls[filling + 1 :], filling + 1):
        if held & set(call.reads.values()):
            readers.append(n)
        held -= set(call.writes.values())
    return readers


def flops(compiled: Compiled, count: int) -> int:
    """Of the first calls for one image, and of what runs before the loop."""
    if not count:
        return 0
    runs = {name: 1 if name == compiled.request else len(compiled.calls) for name in compiled.before_loop}
    early = sum(_graph_flops(compiled, name) * times for name, times in runs.items())
    calls = sum(_graph_flops(compiled, call.graph) for call in compiled.calls[:count])
    return compiled.rows(1, compiled.guidance.scale != 1) * (early + calls)


def _graph_flops(compiled: Compiled, name: str) -> int:
    return sum(compiled.segments[node.op].flops for node in compiled.graphs[name].nodes)


def _pieces(manifest: Manifest, count: int) -> dict[str, PieceRecord]:
    """For every segment that the first `count` calls do not run, where it is called first, in whatever size."""
    compiled = manifest.program()
    run = {call.graph for call in compiled.calls[:count]} | set(compiled.before_loop if count else ())
    seen = {node.op for name in run for node in compiled.graphs[name].nodes}
    pieces: dict[str, PieceRecord] = {}
    for name, graph in manifest.all_graphs().items():
        for node in graph.nodes:
            if node.op not in seen:
                seen.add(node.op)
                pieces[node.op] = PieceRecord(graph=name, node=node.name)
    return pieces


def inputs(compiled: Compiled, node: Node, seed: int) -> dict[str, np.ndarray]:
    """What a piece is given besides weights, for one row: standard normal numbers, and 0 for an index."""
    generator = np.random.Generator(np.random.Philox(seed))
    values = {}
    for name in node.inputs:
        if name in values or compiled.is_weight(name):
            continue
        value = compiled.value(name)
        shape = tuple(1 if isinstance(n, str) else n for n in value.shape)
        numbers = generator.standard_normal(shape, np.float32)
        values[name] = np.zeros(shape, np.int32) if value.dtype == "int32" else rounded(name, numbers, value.dtype)
    return values


def sketch(value: np.ndarray, seed: int) -> np.ndarray:
    """At most `SKETCH` float32 numbers, of the size of the value's own, in which every one of those counts.

    Sums with random signs (Charikar et al., "Finding frequent items in data streams"): equal values have equal sketches, and
    an error in the value is one of about the same share in the sketch.
    """
    flat = np.ravel(value).astype(np.float64)
    signs = np.random.Generator(np.random.Philox(seed)).integers(0, 2, flat.size) * 2.0 - 1.0
    buckets = min(SKETCH, flat.size)
    padded = np.zeros(-(-flat.size // buckets) * buckets)
    padded[: flat.size] = flat * signs
    sums = padded.reshape(-1, buckets).sum(0) / np.sqrt(padded.size / buckets)
    return np.asarray(sums, np.float32)


def finite(fingerprint: Fingerprint) -> bool:
    """Whether all that was made is."""
    parts = (fingerprint.latents, *fingerprint.pieces.values())
    return all(np.isfinite(value).all() for values in parts for value in values)


def write(path: Path, fingerprint: Fingerprint) -> None:
    """Write the file of a fingerprint."""
    tensors = {
        "noise": fingerprint.noise,
        **{f"input/{name}": value for name, value in fingerprint.inputs.items()},
        "guidance_scale": np.array([fingerprint.guidance_scale], np.float32),
    }
    tensors |= {f"call/{n}": x for n, x in enumerate(fingerprint.latents)}
    tensors |= {f"{segment}/{n}": x for segment, sketches in fingerprint.pieces.items() for n, x in enumerate(sketches)}
    path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def read(folder: Path, manifest: Manifest, record: FingerprintRecord) -> Fingerprint:
    """The fingerprint of an artefact.  Raises ArtefactError for a file that does not hold what `record` says."""
    path = folder / FINGERPRINT
    try:
        tensors = load(verified(path, manifest.files[FINGERPRINT]))
        latent = (1, *manifest.program().latent)
        noise, *latents = (_typed(tensors, name, latent) for name in ("noise", *(f"call/{n}" for n in range(record.calls))))
        inputs = {field.name: _asked(tensors, field) for field in arrays(manifest.inputs)}
        scale = _typed(tensors, "guidance_scale", (1,))
        pieces = {segment: tuple(_sketches(tensors, manifest, segment)) for segment in record.pieces}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtefactError(f"{path}: is not the fingerprint that the manifest describes: {error}") from None
    return Fingerprint(noise, inputs, float(scale[0]), tuple(latents), pieces)


def _asked(tensors: Mapping[str, np.ndarray], field: RequestInput) -> np.ndarray:
    """An input of the request, for one image; where it is a choice, one of those that there are."""
    value = _typed(tensors, f"input/{field.name}", (1, *field.shape), field.dtype)
    if field.choices and not (value.min() >= 0 and value.max() < field.choices):
        raise ValueError(f"input/{field.name} is none of {field.choices} choices")
    return value


def _sketches(tensors: Mapping[str, np.ndarray], manifest: Manifest, segment: str) -> Iterator[np.ndarray]:
    for n, _ in enumerate(manifest.denoiser.segments[segment].outputs):
        name = f"{segment}/{n}"
        yield _typed(tensors, name, (min(tensors[name].size, SKETCH),))


def _typed(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    value = tensors[name]
    if (value.shape, value.dtype) != (shape, np.dtype(dtype)) or not np.isfinite(value).all():
        raise ValueError(f"{name} is not finite {dtype} of shape {shape}")
    return value


def without(manifest: Manifest) -> Manifest:
    """The artefact less its fingerprint: for other weights."""
    files = {name: file for name, file in manifest.files.items() if name != FINGERPRINT}
    return msgspec.structs.replace(manifest, fingerprint=msgspec.UNSET, files=files)
