"""A segment becomes steps: which values lie in memory, and which kernel or library makes each of them.

Arithmetic and moves are pulled into the kernel of what needs them.  In memory are the segment's outputs, what a library or a
kernel by hand reads or makes, and what arithmetic makes for several readers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ...ir.dtypes import BYTES
from ...ir.graph import Primitive, Value
from ...ir.signature import Misfit
from ..contract import ALIGNED
from . import fixed
from .constants import table
from .kernels import Unfused, Values, entrywise, rowwise
from .normal import normal
from .pointwise import ELEMENTWISE, MOVES, POINTWISE
from .steps import Attention, Plan, Product, Step
from .views import View, first_fit, shape_of, whole

NORMS = frozenset({"layer_norm", "rms_norm"})
LIBRARIES = frozenset({"linear", "sdpa"})
ALIASES = frozenset({"reshape", "unsqueeze"})  # the same numbers in the same order
COVERED = frozenset({*POINTWISE, *NORMS, *LIBRARIES, *fixed.FIXED})


class Fused(NamedTuple):
    """A norm and the value that its kernel makes."""

    norm: Primitive
    name: str


class Planner:
    """One segment and one set of shapes."""

    def __init__(self, primitives: Sequence[Primitive], inputs: Mapping[str, Value], outputs: Sequence[str]) -> None:
        made = normal(primitives, inputs)
        self.primitives, self.types, self.outputs = _alive(made.primitives, outputs), made.types, tuple(outputs)
        self.made = {name: p for p in self.primitives for name in p.outputs}
        self.order = {name: n for n, p in enumerate(self.primitives) for name in p.outputs}
        self.readers: dict[str, list[Primitive]] = {}
        for p in self.primitives:
            for name in dict.fromkeys(p.inputs):
                self.readers.setdefault(name, []).append(p)
        self.values = Values(self.types, self.made, {name: whole(name, value) for name, value in inputs.items()})
        self.placed: dict[str, View] = self.values.placed  # type: ignore[assignment]
        self.tables: dict[str, np.ndarray] = {}
        self._add_tables()
        self.steps: list[Step] = []
        self.bytes: dict[str, int] = {}  # of temporary values
        self.packed = {p.outputs for p in self.primitives if self._is_packed(p)}
        self.needed = self._needed()
        self.fused = self._fuse_norms()

    def _add_tables(self) -> None:
        for p in self.primitives:
            numbers = table(p.op, dict(p.attributes), [self.types[i] for i in p.inputs])
            if numbers is not None:
                name = f"{p.outputs[0]}.table"
                self.tables[name] = numbers
                self.values.tables[p.outputs[0]] = whole(name, Value(numbers.shape))

    # what lies in memory

    def _needed(self) -> set[str]:
        """Values that arithmetic, moves and norms make and that lie in memory."""
        needed = {name for name in self.outputs if name in self.made}
        for p in reversed(self.primitives):
            if p.op in LIBRARIES or p.op in fixed.FIXED:
                needed.update(name for name in p.inputs if name in self.made)
            elif p.op not in MOVES and len(self._through(p.outputs[0])) > 1:
                needed.update(p.outputs)
            if p.op in ALIASES and p.outputs[0] in needed and p.inputs[0] in self.made:
                needed.add(p.inputs[0])
        return needed

    def _through(self, name: str) -> list[Primitive]:
        """Who reads a value, moved or not; a primitive that reads it in two ways does so once."""
        found: dict[int, Primitive] = {}
        for reader in self.readers.get(name, []):
            further = (
                self._through(reader.outputs[0]) if reader.op in MOVES and reader.outputs[0] not in self.outputs else [reader]
            )
            found.update({id(p): p for p in further})
        return list(found.values())

    def _is_packed(self, p: Primitive) -> bool:
        """Whether the parts of a product may lie side by side: their readers take any strides."""
        parts = dict(p.attributes).get("parts", 1)
        if p.op != "linear" or parts == 1:
            return False
        readers = [reader for name in p.outputs for reader in self.readers.get(name, [])]
        fits = all(r.op == "sdpa" or (r.op in POINTWISE and r.op not in ALIASES) or r.op in NORMS for r in readers)
        return fits and not any(name in self.outputs for name in p.outputs)

    def _target(self, name: str) -> View:
        """Where a value goes: to the output that it is, perhaps in another shape, or to memory of its own."""
        value = self.types[name]
        buffer = self._buffer(name)
        return whole(buffer, value) if buffer else self._temporary(name, value)

    def _temporary(self, name: str, value: Value) -> View:
        buffer = f"{name}.temporary"
        self.bytes[buffer] = math.prod(shape_of(value)) * BYTES[value.dtype]
        return whole(buffer, value)

    def _buffer(self, name: str) -> str | None:
        if name in self.outputs:
            return name
        aliases = (self._buffer(p.outputs[0]) for p in self.readers.get(name, []) if p.op in ALIASES)
        return next((buffer for buffer in aliases if buffer), None)

    # norms

    def _fuse_norms(self) -> dict[str, Fused]:
        """For what the kernel of a norm makes: that norm.  Arithmetic behind it joins it as long as nobody else reads it."""
        found: dict[str, Fused] = {}
        for p in self.primitives:
            if p.op in NORMS:
                (name,) = p.outputs
                while name not in self.needed and len(self.readers[name]) == 1:
                    (reader,) = self.readers[name]
                    (after,) = reader.outputs
                    same = self.types[after].shape == self.types[name].shape
                    if reader.op not in ELEMENTWISE or not same or reader.inputs.count(name) > 1 or after in found:
                        break
                    name = after
                if name in found:
                    name = p.outputs[0]
                found[name] = Fused(p, name)
                self.needed.add(name)
        return found

    # steps

    def plan(self) -> Plan:
        for n, p in enumerate(self.primitives):
            if p.op == "linear":
                self._linear(p)
            elif p.op == "sdpa":
                self._sdpa(p)
            elif p.op in fixed.FIXED:
                self._fixed(p)
            elif p.outputs[0] in self.needed and p.outputs[0] not in self.placed:
                self._pulled(n, p)
        lives: dict[str, tuple[int, int, int]] = {}
        for n, step in enumerate(self.steps):
            for buffer in (*step.buffers, *getattr(step, "addresses", ())):
                if buffer in self.bytes:
                    lives[buffer] = (self.bytes[buffer], lives.get(buffer, (0, n, n))[1], n)
        return Plan(tuple(self.steps), *first_fit(lives, ALIGNED), self.tables)

    def _pulled(self, n: int, p: Primitive) -> None:
        """What arithmetic, moves and norms make."""
        (name,) = p.outputs
        if name in self.fused:
            self._add(name, self._target(name), self.fused[name])
        elif p.op not in ALIASES or not self._aliased(name, p.inputs[0]):
            to = self._target(name)
            if not self._along_with_norm(n, name, to):
                self._add(name, to)

    def _add(self, name: str, to: View, fused: Fused | None = None) -> None:
        self.steps.append(rowwise(self.values, fused.norm, name, to) if fused else entrywise(self.values, name, to))
        self.placed[name] = to

    def _aliased(self, name: str, source: str) -> bool:
        """Whether a value lies where it is made of another, in the same order, and has to lie nowhere else."""
        view = self.placed.get(source)
        if not view or not view.dense or self._buffer(name) not in (None, view.buffer):
            return False
        self.placed[name] = view.reshaped(shape_of(self.types[name]))
        return True

    def _along_with_norm(self, n: int, name: str, to: View) -> bool:
        """Whether the kernel of a norm that reads a value next makes it, too."""
        for fused in self.fused.values():
            last = self.order[fused.name]
            between = self.primitives[n + 1 : last]
            if fused.norm.inputs[0] != name or any(self._is_step(p) for p in between):
                continue
            after = self._target(fused.name)
            try:
                self.steps.append(rowwise(self.values, fused.norm, fused.name, after, also=to))
            except Unfused:
                return False
            self.placed |= {name: to, fused.name: after}
            return True
        return False

    def _is_step(self, p: Primitive) -> bool:
        return p.op in LIBRARIES or p.op in fixed.FIXED or p.outputs[0] in self.needed

    def _linear(self, p: Primitive) -> None:
        x, weight, *bias = (self.placed[name] for name in p.inputs)
        columns = x.shape[-1]
        x, weight = x.reshaped((math.prod(x.shape[:-1]), columns)), weight.reshaped((weight.shape[0], columns))
        parts = len(p.outputs)
        if p.outputs in self.packed:
            rows = shape_of(self.types[p.outputs[0]])[:-1]
            to = self._temporary(p.outputs[0], Value((*rows, weight.shape[0]), weight.dtype))
            self.placed.update(zip(p.outputs, to.parts(parts), strict=True))
            self._product(x, weight, bias, to)
            return
        if parts == 1 and self._epilogue(p, x, weight, bias):
            return
        height = weight.shape[0] // parts
        for n, name in enumerate(p.outputs):
            self.placed[name] = self._target(name)
            own = replace(weight, shape=(height, columns), offset=weight.offset + n * height * columns)
            shift = [replace(b, shape=(height,), offset=b.offset + n * height) for b in bias]
            self._product(x, own, shift, self.placed[name])

    def _epilogue(self, p: Primitive, x: View, weight: View, bias: list[View]) -> bool:
        """Whether what is done with a product next is done by the product."""
        (name,) = p.outputs
        readers = self.readers.get(name, [])
        if len(readers) != 1 or name in self.outputs:
            return False
        (reader,) = readers
        (after,) = reader.outputs
        if after in self.fused or (self.types[after].shape, self.types[after].dtype) != (self.types[name].shape, weight.dtype):
            return False
        if reader.op == "gelu_tanh":
            self.placed[after] = self._target(after)
            self._product(x, weight, bias, self.placed[after], gelu=True)
            return True
        if reader.op != "add" or reader.inputs[0] == reader.inputs[1]:
            return False
        (other,) = (i for i in reader.inputs if i != name)
        view = self.placed.get(other)
        if view is None or not view.dense or (view.shape, view.dtype) != (shape_of(self.types[name]), weight.dtype):
            return False
        self.placed[after] = self._target(after)
        self._product(x, weight, bias, self.placed[after], residual=view)
        return True

    def _product(
        self, x: View, weight: View, bias: list[View], to: View, residual: View | None = None, gelu: bool = False
    ) -> None:
        shape = (x.shape[0], weight.shape[0])
        more = residual.reshaped(shape) if residual else None
        self.steps.append(Product(x, weight, bias[0] if bias else None, more, gelu, to.reshaped(shape)))

    def _sdpa(self, p: Primitive) -> None:
        q, k, v, *mask = views = [self.placed[name] for name in p.inputs]
        to = self.placed[p.outputs[0]] = self._target(p.outputs[0])
        heads = q.shape[2] // fixed.head_size(p, q)
        self.steps.append(Attention(q, k, v, mask[0] if mask else None, to, heads, fixed.attention(p, views, to)))

    def _fixed(self, p: Primitive) -> None:
        to = self._target(p.outputs[0])
        kernel = fixed.FIXED[p.op](p, [self.placed[name] for name in p.inputs], to)
        if kernel is None:
            raise Misfit(f"{p.op}: heads of {fixed.head_size(p, to)} are too large")
        self.placed[p.outputs[0]] = to
        self.steps.append(kernel)


def _alive(primitives: Sequence[Primitive], outputs: Sequence[str]) -> tuple[Primitive, ...]:
    """Those that outputs follow from."""
    needed, found = set(outputs), []
    for p in reversed(primitives):
        if needed.intersection(p.outputs):
            needed.update(p.inputs)
            found.append(p)
    return tuple(reversed(found))


def uncovered(primitives: Sequence[Primitive]) -> list[str]:
    """The primitives that there is nothing for."""
    return sorted({p.op for p in primitives} - COVERED)


def plan(primitives: Sequence[Primitive], inputs: Mapping[str, Value], outputs: Sequence[str]) -> Plan:
    """The steps of a segment for inputs of concrete shapes.  Raises Misfit."""
    return Planner(primitives, inputs, outputs).plan()
