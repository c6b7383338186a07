"""A segment becomes steps: which kernel or library makes each of the values that lie in memory.

Arithmetic and moves are pulled into the kernel of what needs them.  In memory are the segment's outputs, what a library or a
kernel by hand reads or makes, and what arithmetic makes for several readers (`facts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...ir.dtypes import BYTES
from ...ir.graph import Primitive, Value
from ...ir.signature import Misfit
from ..contract import ALIGNED
from . import by_hand
from .constants import table
from .facts import ALIASES, BY_HAND, COVERED, NORMS, PRODUCTS, Facts
from .kernels import KernelValues, Unfused, entrywise, rowwise
from .normal import normal
from .pointwise import POINTWISE
from .steps import Attention, Product, Step, StepPlan
from .views import ArrayView, first_fit, shape_of, whole

MOST_TOGETHER = 4  # values that one kernel makes
AHEAD = 8  # primitives that are looked at for more of them

Scales = tuple[ArrayView, ArrayView]  # of what is multiplied, and of the weight


class Planner:
    """One segment and one set of shapes."""

    def __init__(self, facts: Facts, inputs: Mapping[str, Value]) -> None:
        self.facts, self.types = facts, facts.types
        self.placed = {name: whole(name, value) for name, value in inputs.items()}
        self.tables: dict[str, np.ndarray] = {}
        self.values = KernelValues(self.types, facts.maker, self.placed, self._tables())
        self.bytes: dict[str, int] = {}  # of temporary values
        self.steps: list[Step] = []

    def _tables(self) -> dict[str, ArrayView]:
        views = {}
        for p in self.facts.primitives:
            numbers = table(p.op, dict(p.attributes), [self.types[i] for i in p.inputs])
            if numbers is not None:
                name = f"{p.outputs[0]}.table"
                self.tables[name] = numbers
                views[p.outputs[0]] = whole(name, Value(numbers.shape))
        return views

    def plan(self) -> StepPlan:
        for n, p in enumerate(self.facts.primitives):
            if p.op in PRODUCTS:
                self._linear(p)
            elif p.op == "sdpa":
                self._sdpa(p)
            elif p.op in BY_HAND:
                self._by_hand(p)
            elif p.outputs[0] in self.facts.needed and p.outputs[0] not in self.placed:
                self._pulled(n, p)
        lives: dict[str, tuple[int, int, int]] = {}
        for n, step in enumerate(self.steps):
            for buffer in (*step.buffers, *getattr(step, "addresses", ())):
                if buffer in self.bytes:
                    lives[buffer] = (self.bytes[buffer], lives.get(buffer, (0, n, n))[1], n)
        return StepPlan(tuple(self.steps), *first_fit(lives, ALIGNED), self.tables)

    def _target(self, name: str) -> ArrayView:
        """Where a value goes: to the output that it is, perhaps in another shape, or to memory of its own."""
        output = self.facts.output(name)
        return whole(output, self.types[name]) if output else self._temporary(name, self.types[name])

    def _temporary(self, name: str, value: Value) -> ArrayView:
        buffer = f"{name}.temporary"
        self.bytes[buffer] = math.prod(shape_of(value)) * BYTES[value.dtype]
        return whole(buffer, value)

    # what arithmetic, moves and norms make

    def _pulled(self, n: int, p: Primitive) -> None:
        """A value, and with it others of its shape that could be made now and read the same."""
        (name,) = p.outputs
        if p.op in ALIASES and name not in self.facts.fused and self._aliased(name, p.inputs[0]):
            return
        together = [name]
        for other in self.facts.primitives[n + 1 : n + 1 + AHEAD] if len(self.facts.shape(name)) > 1 else ():
            (value, *more) = other.outputs
            if len(together) < MOST_TOGETHER and not more and self._joins(value, together):
                together.append(value)
        try:
            self._add(together)
        except Unfused:
            self._add([name])

    def _joins(self, name: str, together: list[str]) -> bool:
        """Whether a value can be made by a kernel that makes others: at most one norm, of a value that is known by then."""
        if name not in self.facts.needed or name in self.placed or self.facts.shape(name) != self.facts.shape(together[0]):
            return False
        is_alias = self.facts.maker[name].op in ALIASES and name not in self.facts.fused
        if is_alias or (name in self.facts.fused and any(other in self.facts.fused for other in together)):
            return False
        leaves = set(self._leaves(name, together))
        if any(leaf in self.facts.fused and leaf in together for leaf in leaves):
            return False  # what a norm makes comes last
        shared = {leaf for other in together for leaf in self._leaves(other, [])} | set(together)
        return None not in leaves and any(leaf in shared and self._is_large(leaf, name) for leaf in leaves if leaf)

    def _is_large(self, leaf: str, name: str) -> bool:
        return math.prod(self.facts.shape(leaf)) >= math.prod(self.facts.shape(name))

    def _leaves(self, name: str, known: list[str], top: bool = True) -> Iterator[str | None]:
        """What lies in memory, or is known, of what a value is pulled from; None for what is made by none of the steps yet."""
        if name in self.placed or name in known:
            yield name
        elif not top and name in self.facts.needed:
            yield None
        elif self.facts.maker[name].op in POINTWISE or self.facts.maker[name].op in NORMS:
            for i in self.facts.maker[name].inputs:
                yield from self._leaves(i, known, top=False)
        else:
            yield None

    def _add(self, names: list[str]) -> None:
        """A kernel that makes these values; what a norm makes comes last."""
        norms = [self.facts.fused[name] for name in names if name in self.facts.fused]
        views = {name: self._target(name) for name in sorted(names, key=lambda name: name in self.facts.fused)}
        self.steps.append(rowwise(self.values, norms[0].norm, views) if norms else entrywise(self.values, views))
        self.placed.update(views)

    def _aliased(self, name: str, source: str) -> bool:
        """Whether a value lies where it is made of another, in the same order, and has to lie nowhere else."""
        view = self.placed.get(source)
        if not view or not view.dense or self.facts.output(name) not in (None, view.buffer):
            return False
        self.placed[name] = view.reshaped(self.facts.shape(name))
        return True

    # what libraries make

    def _linear(self, p: Primitive) -> None:
        x, weight, *more = (self.placed[name] for name in p.inputs)
        scales, bias = ((more[0], more[1]), more[2:]) if p.op == "linear_fp8" else (None, more)
        columns = x.shape[-1]
        x, weight = x.reshaped((math.prod(x.shape[:-1]), columns)), weight.reshaped((weight.shape[0], columns))
        parts = len(p.outputs)
        if p.outputs in self.facts.packed:
            rows = shape_of(self.types[p.outputs[0]])[:-1]
            to = self._temporary(p.outputs[0], Value((*rows, weight.shape[0]), self.types[p.outputs[0]].dtype))
            self.placed.update(zip(p.outputs, to.parts(parts), strict=True))
            self._product(x, weight, bias, to, scales=scales)
            return
        if parts == 1 and (self._quantised(p, x, weight, bias, scales) if scales else self._epilogue(p, x, weight, bias)):
            return
        height = weight.shape[0] // parts
        for n, name in enumerate(p.outputs):
            self.placed[name] = self._target(name)
            own = replace(weight, shape=(height, columns), offset=weight.offset + n * height * columns)
            shift = [replace(b, shape=(height,), offset=b.offset + n * height) for b in bias]
            self._product(x, own, shift, self.placed[name], scales=scales)

    def _epilogue(self, p: Primitive, x: ArrayView, weight: ArrayView, bias: list[ArrayView]) -> bool:
        """Whether what is done with a product next is done by the product."""
        (name,) = p.outputs
        readers = self.facts.readers.get(name, [])
        if len(readers) != 1 or name in self.facts.outputs:
            return False
        (reader,) = readers
        (after,) = reader.outputs
        if after in self.facts.fused or (self.types[after].shape, self.types[after].dtype) != (
            self.types[name].shape,
            weight.dtype,
        ):
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

    def _quantised(self, p: Primitive, x: ArrayView, weight: ArrayView, bias: list[ArrayView], scales: Scales) -> bool:
        """Whether GELU and e4m3 for the next product are made by this one; by a kernel, where the library has none."""
        (name,) = p.outputs
        chain = [name]
        for op in ("gelu_tanh", "quantise"):
            readers = self.facts.readers.get(chain[-1], [])
            if len(readers) != 1 or readers[0].op != op or chain[-1] in self.facts.outputs:
                return False
            chain.append(readers[0].outputs[0])
        end, scale = chain[-1], self.placed.get(self.facts.maker[chain[-1]].inputs[1])
        if end in self.facts.outputs or scale is None:
            return False
        shape = (x.shape[0], weight.shape[0])
        self.placed[name] = self._temporary(name, self.types[name])
        plain = Product(x, weight, bias[0] if bias else None, None, False, self.placed[name].reshaped(shape), scales)
        view = self._temporary(end, self.types[end])
        otherwise = (plain, entrywise(self.values, {end: view}))
        self.placed[end] = view
        self.steps.append(replace(plain, gelu=True, out=view.reshaped(shape), out_scale=scale, otherwise=otherwise))
        return True

    def _product(
        self,
        x: ArrayView,
        weight: ArrayView,
        bias: list[ArrayView],
        to: ArrayView,
        residual: ArrayView | None = None,
        gelu: bool = False,
        scales: Scales | None = None,
    ) -> None:
        shape = (x.shape[0], weight.shape[0])
        more = residual.reshaped(shape) if residual else None
        self.steps.append(Product(x, weight, bias[0] if bias else None, more, gelu, to.reshaped(shape), scales))

    def _sdpa(self, p: Primitive) -> None:
        q, k, v, *mask = views = [self.placed[name] for name in p.inputs]
        to = self.placed[p.outputs[0]] = self._target(p.outputs[0])
        heads = q.shape[2] // by_hand.head_size(p, q)
        self.steps.append(Attention(q, k, v, mask[0] if mask else None, to, heads, by_hand.attention(p, views, to)))

    def _by_hand(self, p: Primitive) -> None:
        to = self._target(p.outputs[0])
        kernel = BY_HAND[p.op](p, [self.placed[name] for name in p.inputs], to)
        if kernel is None:
            raise Misfit(f"{p.op}: heads of {by_hand.head_size(p, to)} are too large")
        self.placed[p.outputs[0]] = to
        self.steps.append(kernel)


def uncovered(primitives: Sequence[Primitive]) -> list[str]:
    """The primitives that there is nothing for."""
    return sorted({p.op for p in primitives} - COVERED)


def plan(primitives: Sequence[Primitive], inputs: Mapping[str, Value], outputs: Sequence[str]) -> StepPlan:
    """The steps of a segment for inputs of concrete shapes.  Raises Misfit."""
    return Planner(Facts(normal(primitives, inputs), outputs), inputs).plan()
