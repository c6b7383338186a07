"""Does it compute here what it computed when its weights were bound?  It needs neither PyTorch nor onnx.

The artefact's fingerprint (artefact/fingerprint.py) is repeated through a backend: the recorded calls, fed the recorded
latents, and pieces of the segments that these do not run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from ..artefact import fingerprint, integrity, staging, store
from ..artefact.compiled import Compiled
from ..artefact.fingerprint import Fingerprint
from ..artefact.manifest import Manifest
from ..artefact.records import FILE, FINGERPRINT, FingerprintRecord
from ..errors import RunError, UsageError, printable
from ..ir.graph import Node
from ..ir.inputs import usual
from ..runtime import pipeline
from ..runtime.loaded import LoadedArtefact, concrete, filled, load_engines
from ..runtime.loops import Generation
from ..samplers.noise import standard_normal
from ..support.files import Report
from ..support.log import logged
from ..support.machine import version
from ..support.words import counted
from ..weights.layout import WEIGHTS
from .error import TOLERANCE, Error, Tolerance, check_tolerances


@dataclass(frozen=True)
class Comparison:
    """One of the values that are recorded, beside what was computed here."""

    what: str
    error: Error
    share: float  # of what is allowed

    @property
    def passed(self) -> bool:
        """Whether the error is within what is allowed."""
        return self.share <= 1


@dataclass(frozen=True)
class CheckResult:
    """What `check` found: whether every recorded value was met here."""

    passed: bool
    atol: float
    rtol: float
    values: tuple[Comparison, ...]
    recorded_by: str  # who computed what is compared with
    backend: str

    @property
    def worst(self) -> Comparison:
        """The value that takes the largest share of what is allowed."""
        return max(self.values, key=lambda value: value.share)

    @property
    def summary(self) -> str:
        """One line: right, or which value is wrong."""
        allowed, by = f"atol {self.atol:g} + rtol {self.rtol:g}", f"recorded by {self.recorded_by}"
        if self.passed:
            error = f"worst relative error {self.worst.error.relative:.1e} ({self.worst.what})"
            return printable(f"right: {error}, within {allowed}; {by}")
        first, *others = (value for value in self.values if not value.passed)
        off = f"off by {first.error.relative:.1e}" if math.isfinite(first.error.largest) else "NaN or infinite"
        more = f", as {'is' if len(others) == 1 else 'are'} {counted(len(others), 'other')}" if others else ""
        return printable(f"wrong: {first.what} is {off}, not within {allowed}{more}; {by}")


def check(
    path: str | os.PathLike[str] | pipeline.Pipeline,
    *,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    atol: float | None = None,
    rtol: float | None = None,
    record: bool = False,
    report: Report = logged,
) -> CheckResult:
    """Repeat what was recorded when an artefact's weights were bound, and compare: on the machine that it is to run on.

    `path` is that of an artefact, or a loaded pipeline; `backend`, `device`, `threads` and `verify` are those of `load`.
    A value passes if |error| <= `atol` + `rtol` * max |value|, by default 3e-5 (fp32), 2e-2 (fp16), 5e-2 (bf16) or 0.5 (fp8).
    `record` makes a new fingerprint first, with this backend: what changes from now on shows, not whether it is right now.
    Raises UsageError for an artefact that has no fingerprint, and what `load` raises; what is wrong is said by the result.
    """
    check_tolerances(atol=atol, rtol=rtol)
    pipe = path if isinstance(path, pipeline.Pipeline) else pipeline.load(path, backend, device, threads, verify)
    manifest = renewed(pipe, report) if record else pipe.manifest
    key, default = recorded(pipe, manifest), TOLERANCE[manifest.precision]
    tolerance = Tolerance(default if atol is None else atol, default if rtol is None else rtol)
    expected = fingerprint.read(pipe.path, manifest, key)
    values = tuple(_compared(key, expected, repeated(pipe, key, expected), tolerance, manifest))
    return CheckResult(all(value.passed for value in values), tolerance.atol, tolerance.rtol, values, key.recorded_by,
                       pipe.backend)  # fmt: skip


def recorded(pipe: pipeline.Pipeline, manifest: Manifest) -> FingerprintRecord:
    """The record of the fingerprint.  Raises UsageError if there is none, or one of other weights."""
    record, weights = manifest.fingerprint or None, manifest.files[WEIGHTS].sha256
    if record and record.weights == weights:
        return record
    lacks = "its fingerprint is of other weights" if record else "it has no fingerprint"
    again = f"l2c_export.check({str(pipe.path)!r}, record=True)"
    raise UsageError(f"{pipe.path}: {lacks}: compile it again, or record what this machine computes with {again}")


def repeated(pipe: pipeline.Pipeline, record: FingerprintRecord, reference: Fingerprint, feed: bool = True) -> Fingerprint:
    """The same fingerprint as this pipeline makes it; its calls are fed the latents of `given`, or their own."""
    asked = pipe.generation(reference.inputs, reference.guidance_scale, 1)
    latents, loaded = _latents(asked, record.calls, reference, feed), asked.loop.loaded
    pieces = {} if pipe.link == "static" and latents else record.pieces  # whole graphs know no segments
    if pieces and pipe.link == "static":
        loaded = load_engines(loaded.folder, loaded.manifest, loaded.backend, "shared")
    sketches = {}
    for segment, piece in pieces.items():
        called = loaded.manifest.piece(piece, segment)
        assert called
        outputs = _piece(loaded, *called, record.seed)
        sketches[segment] = tuple(fingerprint.sketch(value, record.seed) for value in outputs)
    return reference._replace(latents=tuple(latents), pieces=sketches)


def _latents(asked: Generation, count: int, reference: Fingerprint, feed: bool) -> list[np.ndarray]:
    """After each of the first `count` calls."""
    seen: list[np.ndarray] = []
    steps = asked.loop.denoise(reference.noise, asked.inputs, asked.guidance)
    for _, step in zip(range(count), steps, strict=False):
        seen.append(step.x.copy())
        if feed:
            step.x[...] = reference.latents[step.index]
    return seen


def _piece(loaded: LoadedArtefact, compiled: Compiled, node: Node, seed: int) -> list[np.ndarray]:
    """What a segment makes, for one row."""
    record, memory = compiled.segments[node.op], loaded.backend.memory
    arrays = {name: filled(loaded.backend, value) for name, value in fingerprint.inputs(compiled, node, seed).items()}
    names = zip(record.inputs, node.inputs, strict=True)
    inputs = {i: arrays[name] if name in arrays else loaded.weights(name) for i, name in names}
    kinds = {o: compiled.value(name) for o, name in zip(record.outputs, node.outputs, strict=True)}
    outputs = {o: memory.empty(concrete(kind, 1, 1), kind.dtype) for o, kind in kinds.items()}
    loaded.engines[node.op].bind(inputs, outputs)()
    memory.finish()
    return [memory.get(array) for array in outputs.values()]


def _compared(record: FingerprintRecord, expected: Fingerprint, actual: Fingerprint, tolerance: Tolerance,
              manifest: Manifest) -> Iterator[Comparison]:  # fmt: skip
    for n, (got, want) in enumerate(zip(actual.latents, expected.latents, strict=True)):
        part = {record.filling: "filling, ", record.light: "light, "}.get(n, "")
        yield _comparison(f"call {n} ({part}timestep {manifest.program().calls[n].timestep:g})", got, want, tolerance)
    for segment, sketches in actual.pieces.items():
        yield from _sketches(segment, sketches, expected.pieces[segment], tolerance)


def _sketches(
    segment: str, actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: Tolerance
) -> Iterator[Comparison]:
    for n, (got, want) in enumerate(zip(actual, expected, strict=True)):
        if got.shape != want.shape:
            raise RunError(f"segment {segment}: an output of another size than recorded: compile the artefact again")
        yield _comparison(f"output {n} of segment {segment}", got, want, tolerance)


def _comparison(what: str, got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> Comparison:
    error = Error.between(got, want)
    return Comparison(what, error, tolerance.share(error, want))


def renewed(pipe: pipeline.Pipeline, report: Report) -> Manifest:
    """Record what this pipeline computes, and write it into its artefact."""
    manifest = pipe.manifest
    planned = fingerprint.planned(manifest)
    library = pipe.backend.partition(" ")[0]
    name = f"{library} {version(library) or version(f'{library}-gpu')}"
    noise = standard_normal(manifest.program().latent, [planned.seed])
    request = Fingerprint(noise, usual(manifest.inputs, 1), manifest.guidance.scale, (), {})
    repetition = repeated(pipe, planned, request, feed=False)
    if not fingerprint.finite(repetition):
        raise RunError(f"{pipe.path}: {name} makes NaN or infinite values of it: that is no fingerprint")
    with staging.changed(pipe.path, report) as stage:
        store.check_unchanged(pipe.path, manifest)
        fingerprint.write(stage / FINGERPRINT, repetition)
        key = msgspec.structs.replace(planned, pieces={s: planned.pieces[s] for s in repetition.pieces}, recorded_by=name,
                                      weights=manifest.files[WEIGHTS].sha256)  # fmt: skip
        files = {**manifest.files, FINGERPRINT: integrity.info(stage / FINGERPRINT)}
        result = store.write_json(stage / FILE, msgspec.structs.replace(manifest, fingerprint=key, files=files))
    report(f"recorded by {name}: what changes from now on shows, not whether it is right now")
    return result
