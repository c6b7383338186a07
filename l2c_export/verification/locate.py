"""The first value that is wrong, and why: a call that leaves the tolerance is run again engine by engine."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..artefact.call_record import CallRecord
from ..artefact.compiled import Compiled
from ..ir.dtypes import E4M3
from ..ir.names import split_at
from ..runtime.loaded import Bound, load_engines
from ..runtime.loop import Loop
from ..runtime.loops import Generation, Loops
from .error import Error, Tolerance

if TYPE_CHECKING:
    from ..pytorch.reference import Reference


OLDER = re.compile(r"\.older\d+")  # a later term of a forecast is the same of an earlier call


@dataclass(frozen=True)
class Suspect:
    """The first value that is wrong, and what made it so."""

    call: int
    timestep: float
    sublayer: str  # or what else the engine computes
    engine: str
    value: str
    relative: float
    finite: bool
    cause: str


def locate(
    generation: Generation, reference: Reference, expected: Sequence[np.ndarray], call: int, tolerance: Tolerance
) -> Suspect | None:
    """Run call `call` engine by engine, and name the first value that is not the reference's."""
    loop = per_segment(generation.loop)
    search = Search(loop, References(loop.compiled, reference, call), tolerance)
    for step in loop.denoise(reference.noise, generation.inputs, generation.guidance, search.execute):
        if step.index == call:
            break
        step.x[...] = expected[step.index]
    return search.place


class Search:
    """Looks at every value of one call as its engine makes it; `place` is the first that is wrong.

    A small error stands until a large one is met, which the rest of the call may have made of it.
    """

    def __init__(self, loop: Loop, expected: References, tolerance: Tolerance) -> None:
        self.loop, self.expected, self.tolerance = loop, expected, tolerance
        self.inner = tolerance.inner(loop.compiled.precision)
        self.graph = loop.compiled.graphs[loop.compiled.calls[expected.call].graph]
        self.place: Suspect | None = None
        self._ended = False

    def execute(self, index: int, bound: Bound) -> None:
        """Run an engine of the loop, and look at it if it is one of the call's own."""
        if index != self.expected.call or self._ended or self._outputs.isdisjoint(bound.outputs):
            bound.run()
            return
        compiled, call = self.loop.compiled, self.loop.compiled.calls[index]
        names = [name for name in bound.inputs if name in call.reads or is_hoisted(compiled, name)]
        early = {name: self._value(name).copy() for name in names}
        bound.run()
        for name in bound.outputs:
            value = self._value(name)
            reference = self.expected.nearest(name, value)
            scale = value if reference is None else reference
            error = Error.between(value, scale)
            large = self.tolerance.share(error, scale) > 1
            if large or (self.place is None and self.inner.share(error, scale) > 1):
                finite = math.isfinite(error.largest)
                cause = blame(early, compiled, self.expected, self.inner, bound, finite)
                self.place = Suspect(index, call.timestep, bound.name, bound.engine, name, error.relative, finite, cause)
            if large:
                self._ended = True
                return

    @functools.cached_property
    def _outputs(self) -> frozenset[str]:
        """What the call itself computes; the rest runs before the loop."""
        return frozenset(name for node in self.graph.nodes for name in node.outputs)

    def _value(self, name: str) -> np.ndarray:
        return self.loop.memory.get(self.loop.array(self.expected.call, name))


def per_segment(loop: Loop) -> Loop:
    """The loop with an engine per segment: a whole graph shows none of its inner values."""
    whole = loop.loaded
    if whole.link == "shared":
        return loop
    loaded = load_engines(whole.folder, whole.manifest, whole.backend, "shared")
    return Loops(loaded).loop(loop.compiled, loop.images, loop.rows > loop.images)


def blame(
    early: dict[str, np.ndarray], compiled: Compiled, expected: References, tolerance: Tolerance, bound: Bound, finite: bool
) -> str:
    """Why a value is wrong: something that came from outside the call, or the engine that made it."""
    for name, value in early.items():
        reference = expected.nearest(name, value)
        if reference is None or tolerance.share(Error.between(value, reference), reference) <= 1:
            continue
        base, offset = split_at(name)
        if offset < 0:
            call = compiled.calls[expected.call]
            filling = f"call {expected.call + compiled.distance(call, name)}"
            return f"it reads {base}{_as_term(call, base)} from the cache, which {filling} filled: that value is wrong or stale"
        return f"it reads {name}, which was computed before the loop: that value is wrong"
    if not finite and bound.name in compiled.denoiser.sublayers and compiled.precision != "fp32":
        return f"it overflows in {compiled.precision}: compile with fp32={bound.name!r}"
    if any(compiled.denoiser.tensors[origin.of].dtype == E4M3 for origin in map(compiled.origin, bound.inputs) if origin and
           origin.kind == "weight"):  # fmt: skip
        return f"its products lose too much in e4m3: compile with bf16={bound.name!r}"
    weights = [name for name in bound.inputs if compiled.is_weight(name)]
    return f"what it reads is right: look at the engine or its weights ({', '.join(weights[:4]) or 'none'})"


def _as_term(call: CallRecord, value: str) -> str:
    """What a value is forecast by, if it is."""
    terms = (call.derived or {}).get(value)
    if terms is None:
        return ""
    said = " + ".join(f"{coefficient:.4g} x {age} ago" for age, coefficient in terms)
    return f" (a term of {said} calls)"


def is_hoisted(compiled: Compiled, name: str) -> bool:
    origin = compiled.origin(name)
    return origin is not None and origin.kind in ("prologue", "once")


class References:
    """What values of one call should be: in float64, and where that is compiled in float32 too."""

    def __init__(self, compiled: Compiled, reference: Reference, call: int) -> None:
        self.call = call
        types = (False, True) if compiled.precision == "fp32" else (False,)
        self._of_types = [Expected(compiled, reference, call, single) for single in types]

    def nearest(self, name: str, value: np.ndarray) -> np.ndarray | None:
        """That of the references that is closer to `value`; None if they have none of that name."""
        references = (expected.value(name) for expected in self._of_types)
        known = [reference for reference in references if reference is not None]
        return min(known, key=lambda reference: Error.between(value, reference).largest, default=None)


class Expected:
    """What values of one call should be, by their names in the compiled graphs."""

    def __init__(self, compiled: Compiled, reference: Reference, call: int, single: bool) -> None:
        record = compiled.calls[call]
        names = (n for node in compiled.graphs[record.graph].nodes for n in (*node.inputs, *node.outputs))
        self._distance = {name: compiled.distance(record, name) for name in names}
        self.call, self._columns = call, list(compiled.denoiser.sublayers)
        near = {call + distance for distance in self._distance.values()} & set(range(len(compiled.calls)))
        self._traces = reference.traces(frozenset(near | {call}), single)

    def value(self, name: str) -> np.ndarray | None:
        """The reference's value; None if it has none of that name (or belongs to a call past the end)."""
        base, offset = split_at(OLDER.sub("", name))
        other = self.call + self._distance.get(name, 0)
        filling, reading = (other, self.call) if offset < 0 else (self.call, other)
        if filling not in self._traces or reading not in self._traces:
            return None
        if base.startswith("run."):
            first, _, last = base.removeprefix("run.").partition("..")
            if not {first, last} <= set(self._columns):
                return None  # one of several streams, which its name does not tell
            span = self._columns[self._columns.index(first) : self._columns.index(last) + 1]
            terms = [self._gated(sublayer, filling, reading) for sublayer in span]
            known = [term for term in terms if term is not None]
            return np.sum(known, axis=0) if len(known) == len(terms) else None
        if base.endswith(".gated") and base.removesuffix(".gated") in self._columns:
            return self._gated(base.removesuffix(".gated"), filling, reading)
        trace: dict[str, np.ndarray] = self._traces[filling if base in self._columns or offset < 0 else reading]
        return trace.get(base)

    def _gated(self, sublayer: str, filling: int, reading: int) -> np.ndarray | None:
        """gate * value: the value of the call that made it, the gate of the one that reads it, where that has a name."""
        product, traced = f"{sublayer}.gated", self._traces[reading]
        if f"{sublayer}.gate" not in traced and product in traced:
            return traced[product] if filling == reading else None
        gate = traced.get(f"{sublayer}.gate", np.ones(()))
        gated: np.ndarray = gate * self._traces[filling][sublayer]
        return gated
