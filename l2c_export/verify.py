"""Is it right?  An artefact against the cached PyTorch model, call by call, and the first place where it is not.

Every call is fed the reference's latents, so that errors do not add up, and the free trajectory is followed as well.
The reference is the same model in PyTorch, in float64, with the reference implementation's caching (models/eager.py);
its own float32 run beside it shows what float32 can do.  A call that leaves the tolerance is run again engine by engine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import binding, models, pipeline, runtime
from .binding import Bound
from .manifest import Manifest
from .models.evidence import architecture
from .program import split_at

if TYPE_CHECKING:
    from .reference import Reference

# Largest error of a call that is fed the reference's latents, as a share of their largest value.  The first DDIM step
# amplifies an error of the noise up to 150 times, so: about 3 times the worst of the 22 golden cases (fp32, fp16), and
# about the worst of them (bf16, where PyTorch itself with model.to(bfloat16) reaches 1e-1).
TOLERANCE = {"fp32": 3e-5, "fp16": 2e-2, "bf16": 5e-2}
AMPLIFIED = 150  # so much larger may an error be in the latents than in the value that it comes from
ROUNDING = {"fp32": 2e-6, "fp16": 1.5e-2, "bf16": 0.1}  # 32 units: what the depth of a model alone may add up to


@dataclass(frozen=True)
class Error:
    """How far latents are from the reference's."""

    largest: float  # max |x - reference|
    relative: float  # the same over max |reference|
    cosine: float
    psnr: float  # dB, over the reference's range

    @staticmethod
    def between(x: np.ndarray, reference: np.ndarray) -> Error:
        a, b = np.ravel(x).astype(np.float64), np.ravel(reference).astype(np.float64)
        if not np.isfinite(a).all():
            return Error(math.inf, math.inf, 0.0, -math.inf)
        largest, rms = float(np.abs(a - b).max()), float(np.sqrt(np.mean((a - b) ** 2)))
        cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))
        psnr = 20 * math.log10(float(np.ptp(b)) / rms) if rms else math.inf
        return Error(largest, largest / max(float(np.abs(b).max()), 1e-300), cosine, psnr)


@dataclass(frozen=True)
class CallCheck:
    """One network evaluation: fed the reference's latents, and in the free trajectory."""

    index: int
    timestep: float
    fed: Error
    free: Error
    pytorch_float32: float | None  # what PyTorch in float32 reaches, fed, relative
    passed: bool


@dataclass(frozen=True)
class Place:
    """The first value that is wrong, and what made it so."""

    call: int
    timestep: float
    sublayer: str  # or what else the engine computes
    engine: str
    value: str
    relative: float
    finite: bool
    cause: str


@dataclass(frozen=True)
class Verdict:
    passed: bool
    atol: float
    rtol: float
    calls: tuple[CallCheck, ...]
    place: Place | None
    setting: dict[str, object]


@dataclass(frozen=True)
class Tolerance:
    """|error| <= atol + rtol * max |reference|."""

    atol: float
    rtol: float

    def inner(self, precision: str) -> Tolerance:
        """For values inside a call: less than for the latents, but never less than rounding."""
        least = ROUNDING[precision]
        return Tolerance(*(min(t, max(t / AMPLIFIED, least)) for t in (self.atol, self.rtol)))

    def share(self, error: Error, reference: np.ndarray) -> float:
        """The error over what is allowed; more than 1 is too much."""
        return error.largest / max(self.atol + self.rtol * float(np.abs(reference).max()), 1e-300)


def verify(pipe: pipeline.Pipeline, reference: Reference, atol: float | None = None, rtol: float | None = None) -> Verdict:
    """Compare a pipeline with a reference that was made for the same request."""
    default = TOLERANCE[pipe.manifest.precision]
    tolerance = Tolerance(default if atol is None else atol, default if rtol is None else rtol)
    asked = pipe.generation(reference.labels, reference.guidance_scale)
    want, limits = reference.latents(), reference.float32_errors()
    fed = trajectory(asked, reference.noise, want)
    free = trajectory(asked, reference.noise, None)
    calls = []
    for n, call in enumerate(pipe.manifest.calls):
        error = Error.between(fed[n], want[n])
        calls.append(CallCheck(n, call.timestep, error, Error.between(free[n], want[n]), limits[n],
                               tolerance.share(error, want[n]) <= 1))  # fmt: skip
    wrong = next((check.index for check in calls if not check.passed), None)
    place = None if wrong is None else locate(asked, reference, want, wrong, tolerance)
    setting = {"backend": pipe.backend, "link": pipe.link, "precision": pipe.manifest.precision,
               "assumed": list(pipe.manifest.model.assumed or ()), **reference.setting}  # fmt: skip
    return Verdict(wrong is None, tolerance.atol, tolerance.rtol, tuple(calls), place, setting)


def trajectory(asked: pipeline.Generation, noise: np.ndarray, fed: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """The latents after every call; the next call reads `fed` instead, if given."""
    seen = []
    for done in asked.loop.denoise(noise, asked.labels, asked.guidance):
        seen.append(done.x.copy())
        if fed is not None:
            done.x[...] = fed[done.index]
    return seen


def locate(
    asked: pipeline.Generation, reference: Reference, want: Sequence[np.ndarray], wrong: int, tolerance: Tolerance
) -> Place | None:
    """Run call `wrong` engine by engine, and name the first value that is not the reference's."""
    loop = shared(asked.loop)
    search = Search(loop, Expected(loop.manifest, reference, wrong), tolerance)
    for done in loop.denoise(reference.noise, asked.labels, asked.guidance, search.execute):
        if done.index == wrong:
            break
        done.x[...] = want[done.index]
    return search.place


class Search:
    """Looks at every value of one call as its engine makes it; `place` is the first that is wrong.

    A small error stands until a large one is met, which the rest of the call may have made of it.
    """

    def __init__(self, loop: runtime.Loop, expected: Expected, tolerance: Tolerance) -> None:
        self.loop, self.expected, self.tolerance = loop, expected, tolerance
        self.inner = tolerance.inner(loop.manifest.precision)
        self.graph = loop.manifest.graphs[loop.manifest.calls[expected.call].graph]
        self.place: Place | None = None
        self._ended = False

    def execute(self, index: int, bound: Bound) -> None:
        """Run an engine of the loop, and look at it if it is one of the call's own."""
        if index != self.expected.call or self._ended or self._made.isdisjoint(bound.outputs):
            bound.run()
            return
        manifest, call = self.loop.manifest, self.loop.manifest.calls[index]
        late = [name for name in bound.inputs if name in call.reads or is_hoisted(manifest, name)]
        before = {name: self._value(name).copy() for name in late}
        bound.run()
        for name in bound.outputs:
            value = self._value(name)
            known = self.expected.value(name)
            scale = value if known is None else known
            error = Error.between(value, scale)
            large = self.tolerance.share(error, scale) > 1
            if large or (self.place is None and self.inner.share(error, scale) > 1):
                finite = math.isfinite(error.largest)
                cause = blame(before, manifest, self.expected, self.inner, bound, finite)
                self.place = Place(index, call.timestep, bound.name, bound.engine, name, error.relative, finite, cause)
            if large:
                self._ended = True
                return

    @functools.cached_property
    def _made(self) -> frozenset[str]:
        """What the call itself computes; the rest runs before the loop."""
        return frozenset(name for node in self.graph.nodes for name in node.outputs)

    def _value(self, name: str) -> np.ndarray:
        return decoded(self.loop.memory.get(self.loop.array(self.expected.call, name)), self.loop.manifest, name)


def shared(loop: runtime.Loop) -> runtime.Loop:
    """The loop with an engine per segment: a whole graph shows none of its inner values."""
    if loop.program.link == "shared":
        return loop
    program = binding.load_program(loop.program.folder, loop.manifest, loop.program.backend, "shared")
    return runtime.Loop(program, loop.images, loop.rows > loop.images)


def blame(
    given: dict[str, np.ndarray], manifest: Manifest, expected: Expected, tolerance: Tolerance, bound: Bound, finite: bool
) -> str:
    """Why a value is wrong: something that came from outside the call, or the engine that made it."""
    for name, value in given.items():
        known = expected.value(name)
        if known is None or tolerance.share(Error.between(value, known), known) <= 1:
            continue
        base, offset = split_at(name)
        if offset < 0:
            return f"it reads {base} from the cache, which call {expected.call + offset} filled: that value is wrong or stale"
        return f"it reads {name}, which was computed before the loop: that value is wrong"
    if not finite and bound.name in manifest.model.sublayers and manifest.precision != "fp32":
        return f"it overflows in {manifest.precision}: compile with --fp32 {bound.name}"
    weights = [name for name in bound.inputs if manifest.is_weight(name)]
    return f"what it reads is right: look at the engine or its weights ({', '.join(weights[:4]) or 'none'})"


def is_hoisted(manifest: Manifest, name: str) -> bool:
    graphs = [manifest.graphs[g] for g in (manifest.constants, manifest.prologue) if g]
    return any(split_at(name)[0] in graph.outputs for graph in graphs)


def decoded(array: np.ndarray, manifest: Manifest, name: str) -> np.ndarray:
    """The numbers of a value; bfloat16 is kept as its 16 bits."""
    if manifest.values[split_at(name)[0]].dtype == "bfloat16":
        return np.left_shift(array.astype(np.uint32), 16).view(np.float32)
    return array


class Expected:
    """What values of one call should be, by their names in the compiled graphs."""

    def __init__(self, manifest: Manifest, reference: Reference, call: int) -> None:
        names = [n for node in manifest.graphs[manifest.calls[call].graph].nodes for n in (*node.inputs, *node.outputs)]
        offsets = {split_at(name)[1] for name in names if not manifest.is_weight(name)}
        near = {call + offset for offset in offsets} & set(range(len(manifest.calls)))
        self.call, self._columns = call, list(manifest.model.sublayers)
        self._traces = reference.traces(frozenset(near | {call}))

    def value(self, name: str) -> np.ndarray | None:
        """The reference's value; None if it has none of that name (or belongs to a call past the end)."""
        base, offset = split_at(name)
        made, reads = (self.call + offset, self.call) if offset < 0 else (self.call, self.call + offset)
        if made not in self._traces or reads not in self._traces:
            return None
        if base.startswith("run."):
            first, _, last = base.removeprefix("run.").partition("..")
            span = self._columns[self._columns.index(first) : self._columns.index(last) + 1]
            summed: np.ndarray = np.sum([self._gated(sublayer, made, reads) for sublayer in span], axis=0)
            return summed
        if base.endswith(".gated") and base.removesuffix(".gated") in self._columns:
            return self._gated(base.removesuffix(".gated"), made, reads)
        trace: dict[str, np.ndarray] = self._traces[made if base in self._columns else reads]
        return trace.get(base)

    def _gated(self, sublayer: str, made: int, reads: int) -> np.ndarray:
        """gate * value: the value of the call that made it, the gate of the one that reads it."""
        gate = self._traces[reads].get(f"{sublayer}.gate", np.ones(()))
        product: np.ndarray = gate * self._traces[made][sublayer]
        return product


def table(verdict: Verdict) -> list[tuple[object, ...]]:
    """Call by call: fed the reference's latents, then the free trajectory."""
    head = ("call", "timestep", "largest error", "relative", "PyTorch fp32", "cosine", "PSNR dB", "free, relative", "within")
    rows = [
        (c.index, f"{c.timestep:.2f}", f"{c.fed.largest:.1e}", f"{c.fed.relative:.1e}", f"{c.pytorch_float32:.1e}",
         f"{c.fed.cosine:.9f}", f"{c.fed.psnr:.1f}", f"{c.free.relative:.1e}", "yes" if c.passed else "NO")
        for c in verdict.calls
    ]  # fmt: skip
    return [head, *rows]


def basis(manifest: Manifest) -> list[str]:
    """Lines: what was assumed of the architecture, if anything was; the reference has the same, so no comparison shows it."""
    if not manifest.model.assumed:
        return []
    lines = architecture(models.build(manifest.model.family, manifest.model.arch), manifest.model.assumed)
    return [*lines, "the reference assumes the same: if that is wrong, so are both"]


def summary(verdict: Verdict) -> str:
    """One line: the verdict, and where the first wrong value is."""
    worst = max(check.fed.relative for check in verdict.calls)
    allowed = f"atol {verdict.atol:g} + rtol {verdict.rtol:g}"
    if verdict.passed:
        end = f"left to itself it ends {verdict.calls[-1].free.relative:.1e} off"
        return f"right: worst relative error of a call {worst:.1e}, within {allowed}; {end}"
    first = next(check for check in verdict.calls if not check.passed)
    where = f"call {first.index} (timestep {first.timestep:g}) is the first that leaves {allowed}"
    place = verdict.place
    if place is None:
        return f"{where}; every engine of it is right by itself"
    how = f"is off by {place.relative:.1e}" if place.finite else "is NaN or infinite"
    return f"{where}: in {place.sublayer} (engine {place.engine}), {place.value} {how}; {place.cause}"
