"""Is it right?  An artefact against the cached PyTorch model, call by call, and the first place where it is not.

Every call is fed the reference's latents, so that errors do not add up, and the free trajectory is followed as well.
The reference is the same model in PyTorch, in float64, with the reference implementation's caching (pytorch/eager.py);
its own float32 run beside it shows what float32 can do.  A call of an artefact in fp32 may be as near to that instead: a model
whose float32 is far from its float64 (by the angles of timesteps of up to 1000, say) is so here, too, and what is wrong
besides still shows.  A call that leaves the tolerance is run again engine by engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artefact.compiled import Compiled
from ..artefact.manifest import Manifest
from ..ir.inputs import CLASS_LABELS, usual
from ..runtime import pipeline, request
from ..runtime.inputs import Labels
from ..runtime.loops import Generation
from ..runtime.request import Scales
from ..support.extras import needs
from ..weights.stored import said
from .error import TOLERANCE, Error, Tolerance, check_tolerances
from .locate import Suspect, locate

if TYPE_CHECKING:
    from ..pytorch.reference import Reference


@dataclass(frozen=True)
class CallCheck:
    """One network evaluation: fed the reference's latents, and in the free trajectory."""

    index: int
    timestep: float
    fed: Error
    free: Error
    pytorch_float32: float | None  # what PyTorch in float32 reaches, fed, relative
    from_float32: float  # how far this is from what that makes, fed, relative
    as_exact: bool  # within the tolerance of float64,
    passed: bool  # or of PyTorch in float32


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: whether every call is within the tolerance, and the first wrong value if one is not.

    It is that of one program: of the first that is wrong, where there are several, with `others` beside it.
    """

    program: str
    passed: bool
    atol: float
    rtol: float
    calls: tuple[CallCheck, ...]
    place: Suspect | None
    setting: dict[str, object]
    others: tuple[Verdict, ...] = ()  # of the other programs


def verify(
    path: str | os.PathLike[str] | pipeline.Pipeline,
    *,
    class_labels: Labels | None = None,
    guidance_scale: Scales = None,
    inputs: Mapping[str, Any] | None = None,
    seed: int = 0,
    weights: str | os.PathLike[str] | None = None,
    golden: str | os.PathLike[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    steps: int | None = None,
) -> Verdict:
    """Compare an artefact, or a pipeline that is loaded, with the cached PyTorch model in float64: all programs, call by call.

    `class_labels`, `inputs` (what else the model takes, by name), `guidance_scale` and `seed` are those of a pipeline's call,
    by default a usual request of as many images as the batch; `golden` is the folder of a recorded run (config.json,
    golden.npz) instead of them.  `weights` is a checkpoint to compare with, by default the artefact's own.  `steps` chooses
    those of its programs that have so many, of all sizes; by default all, and of `golden` the first.
    A call passes if |error| <= `atol` + `rtol` * max |latents|, by default 3e-5 (fp32), 2e-2 (fp16), 5e-2 (bf16) or 0.5 (fp8);
    in fp32 so near to PyTorch in float32 will do, too.
    `backend`, `device` and `threads` are those of `load`.
    Raises UsageError for a request that it cannot meet, and what `load` raises; what is wrong is said by the verdict.
    """
    needs("torch", "export")
    check_tolerances(atol=atol, rtol=rtol)
    pipe = path if isinstance(path, pipeline.Pipeline) else pipeline.load(path, backend, device, threads)
    values = {CLASS_LABELS: class_labels, **(inputs or {})}
    one = pipe.manifest.program(steps)  # or there is none
    several = [p for p in pipe.manifest.all_programs() if steps in (None, p.steps)]
    verdicts = [
        compare(pipe, _reference(pipe, values, guidance_scale, seed, path_of(weights), path_of(golden), program), atol, rtol)
        for program in ([one] if golden else several)
    ]
    first = next((verdict for verdict in verdicts if not verdict.passed), verdicts[0])
    return replace(first, others=tuple(verdict for verdict in verdicts if verdict is not first))


def path_of(value: str | os.PathLike[str] | None) -> Path | None:
    return None if value is None else Path(value)


def _reference(pipe: pipeline.Pipeline, values: Mapping[str, Any], guidance_scale: Scales, seed: int,
               weights: Path | None, golden: Path | None, program: Compiled) -> Reference:  # fmt: skip
    """The PyTorch side of a request to a program."""
    from ..pytorch.reference import Reference, of_case

    manifest = pipe.manifest
    if golden:
        return of_case(golden, pipe.path, manifest, weights, program.steps)
    asked = any(value is not None for value in values.values())
    inputs = pipe.inputs(**values) if asked else usual(manifest.inputs, manifest.batch)
    images = len(next(iter(inputs.values()))) if inputs else manifest.batch
    scales = request.scales(program, guidance_scale, images)
    noise = request.noise(program, images, seed)
    return Reference(pipe.path, manifest, noise, inputs, scales, weights, program=program)


def compare(pipe: pipeline.Pipeline, reference: Reference, atol: float | None = None, rtol: float | None = None) -> Verdict:
    """Compare a pipeline with a reference that was made for the same request."""
    default = TOLERANCE[pipe.manifest.precision]
    tolerance = Tolerance(default if atol is None else atol, default if rtol is None else rtol)
    program, images = reference.program, len(reference.noise)
    asked = pipe.generation(reference.inputs, reference.guidance_scale, images, program.steps, program.latent[1:])
    want, single = reference.latents(), reference.in_float32()
    may_be_single = pipe.manifest.precision == "fp32" and not reference.is_recorded
    fed = trajectory(asked, reference.noise, want)
    free = trajectory(asked, reference.noise, None)
    calls = []
    for n, call in enumerate(asked.loop.compiled.calls):
        error, from_single = Error.between(fed[n], want[n]), Error.between(fed[n], single[n])
        as_exact = tolerance.share(error, want[n]) <= 1
        calls.append(CallCheck(
            n, call.timestep, error, Error.between(free[n], want[n]), Error.between(single[n], want[n]).relative,
            from_single.relative, as_exact, as_exact or (may_be_single and tolerance.share(from_single, single[n]) <= 1),
        ))  # fmt: skip
    wrong = next((check.index for check in calls if not check.passed), None)
    place = None if wrong is None else locate(asked, reference, want, wrong, tolerance)
    setting = {"backend": pipe.backend, "link": pipe.link, "precision": pipe.manifest.precision,
               "assumed": list(pipe.manifest.denoiser.assumed or ()), "stored": pipe.manifest.denoiser.stored,
               **reference.setting}  # fmt: skip
    return Verdict(program.name, wrong is None, tolerance.atol, tolerance.rtol, tuple(calls), place, setting)


def trajectory(asked: Generation, noise: np.ndarray, fed: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """The latents after every call; the next call reads `fed` instead, if given."""
    seen = []
    for done in asked.loop.denoise(noise, asked.inputs, asked.guidance):
        seen.append(done.x.copy())
        if fed is not None:
            done.x[...] = fed[done.index]
    return seen


def table(verdict: Verdict) -> list[tuple[object, ...]]:
    """Call by call: fed the reference's latents, then the free trajectory."""
    head = ("call", "timestep", "largest error", "relative", "PyTorch fp32", "cosine", "PSNR dB", "free, relative", "within")
    within = {(True, True): "yes", (False, True): "of float32"}
    rows = [
        (c.index, f"{c.timestep:.2f}", f"{c.fed.largest:.1e}", f"{c.fed.relative:.1e}", f"{c.pytorch_float32:.1e}",
         f"{c.fed.cosine:.9f}", f"{c.fed.psnr:.1f}", f"{c.free.relative:.1e}", within.get((c.as_exact, c.passed), "NO"))
        for c in verdict.calls
    ]  # fmt: skip
    return [head, *rows]


def basis(manifest: Manifest) -> list[str]:
    """Lines: what of the artefact no comparison shows, as the reference has the same: what storing its matrices narrower has
    cost, and what was assumed of the architecture."""
    cost = said(manifest.denoiser.tensors, manifest.denoiser.narrowing or None)
    lines = [f"{cost}; the reference has the same weights, so this does not show below"] if cost else []
    if not manifest.denoiser.assumed:
        return lines
    from ..models.evidence import architecture
    from ..pytorch.family import family_of

    lines += architecture(family_of(manifest), manifest.denoiser.assumed)
    return [*lines, "the reference assumes the same: if that is wrong, so are both"]


def summary(verdict: Verdict) -> str:
    """One line: the verdict, and where the first wrong value is."""
    if not verdict.others:
        return _summary(verdict)
    wrong = sum(not entry.passed for entry in (verdict, *verdict.others))
    if not verdict.passed:
        return f"program {verdict.program} is wrong, {wrong} of {len(verdict.others) + 1}: {_summary(verdict)}"
    worst = max((verdict, *verdict.others), key=lambda entry: max(check.fed.relative for check in entry.calls))
    return f"all {len(verdict.others) + 1} programs are right; the worst is {worst.program}: {_summary(worst)}"


def _summary(verdict: Verdict) -> str:
    """Of one program."""
    worst = max(check.fed.relative for check in verdict.calls)
    allowed = f"atol {verdict.atol:g} + rtol {verdict.rtol:g}"
    if verdict.passed:
        end = f"left to itself it ends {verdict.calls[-1].free.relative:.1e} off"
        if not all(check.as_exact for check in verdict.calls):
            near = f"{max(check.from_float32 for check in verdict.calls):.1e} from that, within {allowed}"
            return f"right: a call is up to {worst:.1e} off, as is PyTorch in float32: {near}; {end}"
        return f"right: worst relative error of a call {worst:.1e}, within {allowed}; {end}"
    first = next(check for check in verdict.calls if not check.passed)
    where = f"call {first.index} (timestep {first.timestep:g}) is the first that leaves {allowed}"
    place = verdict.place
    if place is None:
        return f"{where}; every engine of it is right by itself"
    how = f"is off by {place.relative:.1e}" if place.finite else "is NaN or infinite"
    return f"{where}: in {place.sublayer} (engine {place.engine}), {place.value} {how}; {place.cause}"
