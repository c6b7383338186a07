"""Kernels from primitives: one for values of one shape, entry by entry, or for a norm, row by row.

An entry is pulled: its expression reads entries of the inputs, and so on down to what lies in memory.  A thread makes `pack`
neighbours of the last axis, which it reads and writes at once where they are neighbours there, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ir.dtypes import BYTES
from ...ir.graph import Primitive, Value
from .index import Index, unflat
from .pointwise import POINTWISE, Pulled, number
from .prelude import C
from .views import ArrayView

THREADS = 128
WARP = 32
MOST_WARPS = 8  # of a row
LANE = re.compile(r"\b(c|j|t\d+)\b")  # what differs between the neighbours of a pack
SIMPLE = re.compile(r"\w+")


@dataclass(frozen=True)
class Kernel:
    """A kernel named `kernel`: its source behind the prelude, how it is launched, and the buffers of its parameters."""

    source: str
    blocks: int
    threads: int
    buffers: tuple[str, ...]
    writes: frozenset[str]
    vectors: Mapping[str, int]  # the buffers that must be aligned to so many bytes
    addresses: tuple[str, ...] = ()  # of these buffers, "" for none, are in an array that is the first parameter


class Unfused(Exception):
    """What has to be a kernel of its own."""


class KernelValues:
    """What a kernel may read: where values are, and how those are made that are nowhere."""

    def __init__(
        self,
        types: Mapping[str, Value],
        maker: Mapping[str, Primitive],
        placed: Mapping[str, ArrayView],
        tables: Mapping[str, ArrayView],  # of constants, by the value whose primitive has one
    ) -> None:
        self.types, self.maker, self.placed, self.tables = types, maker, placed, tables


class KernelBody:
    """The lines of one thread: those for all of a pack, and those for each of it."""

    def __init__(self, values: KernelValues, pack: int) -> None:
        self.values, self.pack = values, pack
        self.parameters: dict[str, str] = {}  # buffer -> its parameter
        self.types: dict[str, str] = {}  # and its type
        self.written: list[str] = []
        self.vectors: dict[str, int] = {}
        self.making: set[str] = set()  # values that other threads may be writing
        self.start()

    def start(self) -> None:
        """Begin a new loop over packs."""
        self.outer: list[str] = []
        self.inner: list[str] = []
        self.after: list[str] = []
        self._named: dict[str, str] = {}
        self.known: dict[str, tuple[Index, str]] = {}  # values in registers: where, and their expression

    def let(self, expression: str) -> str:
        """A name for an expression."""
        if SIMPLE.fullmatch(expression):
            return expression
        if expression not in self._named:
            lane = LANE.search(expression) is not None
            name = f"{'t' if lane else 'u'}{len(self._named)}"
            (self.inner if lane else self.outer).append(f"const auto {name} = {expression};")
            self._named[expression] = name
        return self._named[expression]

    def parameter(self, view: ArrayView) -> str:
        name = self.parameters.setdefault(view.buffer, f"p{len(self.parameters)}")
        assert self.types.setdefault(view.buffer, view.dtype) == view.dtype, view
        return name

    def read(self, name: str, index: Index) -> str:
        """An entry of a value."""
        index = tuple(map(self.let, index))
        if name in self.known:
            where, expression = self.known[name]
            if where == index:
                return expression
            if name in self.making:
                raise Unfused(name)
        if name in self.values.placed:
            return self._load(self.values.placed[name], index)
        primitive = self.values.maker[name]
        types = self.values.types
        entry = Pulled(
            index, types[name], tuple(types[i] for i in primitive.inputs), dict(primitive.attributes),
            lambda n, where: self.read(primitive.inputs[n], where), lambda where: self._load(self.values.tables[name], where),
        )  # fmt: skip
        return self.let(POINTWISE[primitive.op](entry))

    def _load(self, view: ArrayView, index: Index) -> str:
        pointer = self.parameter(view)
        index = tuple(map(self.let, index))
        if self._packed(view, index):
            return self.let(f"number({self.let(self._pack(view, pointer, index))}.at[j])")
        return self.let(f"number({pointer}[{view.place(index)}])")

    def _packed(self, view: ArrayView, index: Index) -> bool:
        """Whether a pack's entries lie side by side, at an address that a vector may have."""
        if not index or index[-1] != "c" or view.strides[-1] != 1 or self.pack == 1 or any(map(LANE.search, index[:-1])):
            return False
        return all(n % self.pack == 0 for n in (view.offset, *view.strides[:-1]))

    def _pack(self, view: ArrayView, pointer: str, index: Index) -> str:
        kind = f"Pack<{C[view.dtype]}, {self.pack}>"
        self.vectors[view.buffer] = min(16, self.pack * BYTES[view.dtype])
        return f"*({kind}*)({pointer} + {view.place((*index[:-1], 'c0'))})"

    def store(self, view: ArrayView, index: Index, expression: str) -> None:
        pointer = self.parameter(view)
        self.written.append(view.buffer)
        if self._packed(view, index):
            kept = f"o{pointer}"
            self.outer.append(f"Pack<{C[view.dtype]}, {self.pack}> {kept};")
            self.inner.append(f"put({kept}.at[j], {expression});")
            self.after.append(f"{self._pack(view, pointer, index)} = {kept};")
        else:
            self.inner.append(f"put({pointer}[{view.place(index)}], {expression});")

    def make(self, views: Mapping[str, ArrayView], where: Index) -> None:
        """Values that a thread makes and writes, each of which the next may read there, and nowhere else."""
        for name, view in views.items():
            expression = self.read(name, where)
            self.store(view, where, expression)
            self.known[name] = (where, expression)
            self.making.add(name)

    def loop(self) -> str:
        """The lines of a pack."""
        inner = [f"#pragma unroll\nfor (int j = 0; j < {self.pack}; j++) {{ const int c = c0 + j;", *self.inner, "}"]
        return "\n".join([*self.outer, *inner, *self.after])

    def kernel(self, lines: Sequence[str], blocks: int, threads: int) -> Kernel:
        signature = ", ".join(f"{C[self.types[buffer]]}* {name}" for buffer, name in self.parameters.items())
        head = f'extern "C" __global__ void __launch_bounds__({threads}) kernel({signature}) {{'
        source = "\n".join([head, *lines, "}\n"])
        return Kernel(source, blocks, threads, tuple(self.parameters), frozenset(self.written), dict(self.vectors))


def pack_of(*views: ArrayView) -> int:
    """So many neighbours a thread makes: 16 bytes of the widest type."""
    widest = max(2, *(BYTES[view.dtype] for view in views))
    last = math.gcd(*(view.shape[-1] if view.shape else 1 for view in views))
    return next(n for n in (8, 4, 2, 1) if last % n == 0 and n * widest <= 16)


def rows_of(shape: Sequence[int], row: str) -> tuple[Index, list[str]]:
    """The index of a row over all axes but the last, and the lines that name it."""
    index = unflat(row, shape[:-1])
    names = tuple(i if i.isdecimal() else f"i{axis}" for axis, i in enumerate(index))
    return names, [f"const int {n} = {i};" for n, i in zip(names, index, strict=True) if n != i]


def entrywise(values: KernelValues, views: Mapping[str, ArrayView]) -> Kernel:
    """A kernel that makes values of one shape."""
    body = KernelBody(values, pack_of(*views.values()))
    shape = next(iter(views.values())).shape
    packs, count = shape[-1] // body.pack, math.prod(shape) // body.pack
    rows, lines = rows_of(shape, f"(item / {packs})")
    body.make(views, (*rows, "c"))
    head = [f"const int item = blockIdx.x * {THREADS} + threadIdx.x;", f"if (item >= {count}) return;"]
    place = f"const int c0 = (item % {packs}) * {body.pack};"
    return body.kernel([*head, place, *lines, body.loop()], -(-count // THREADS), THREADS)


def rowwise(values: KernelValues, norm: Primitive, views: Mapping[str, ArrayView]) -> Kernel:
    """A kernel that makes what follows from a norm, the last of these values, and before that the others, of the same shape.

    A row is in the registers of one to eight warps.
    """
    source, layer = norm.inputs[0], norm.op == "layer_norm"
    *others, name = views
    body, shape = KernelBody(values, pack_of(*views.values())), views[name].shape
    pack, width, rows = body.pack, shape[-1], math.prod(shape[:-1])
    warps = min(MOST_WARPS, -(-(width // pack) // WARP))
    threads, per_block = warps * WARP, max(1, 4 // warps)
    loops = -(-(width // pack) // threads)
    row, lines = rows_of(shape, "row")
    where, x = (*row, "c"), f"x[n * {pack} + j]"
    head = [f"const int row = blockIdx.x * {per_block} + threadIdx.x / {threads}, lane = threadIdx.x % {threads};",
            f"if (row >= {rows}) return;", *lines, f"float x[{loops * pack}]; float sum = 0.0f;"]  # fmt: skip
    begin = f'_Pragma("unroll") for (int n = 0; n < {loops}; n++) {{ const int c0 = (n * {threads} + lane) * {pack};'
    begin += f" if (c0 < {width}) {{"
    body.make({other: views[other] for other in others}, where)
    body.inner.append(f"{x} = {body.read(source, where)}; sum += {x if layer else f'{x} * {x}'};")
    first = body.loop()
    body.start()
    total, eps = f"row_sum<{threads}>(sum) / {width}", number(dict(norm.attributes)["eps"])
    middle = [f"const float mean = {total}; sum = 0.0f;", begin]
    middle += [f"for (int j = 0; j < {pack}; j++) sum += ({x} - mean) * ({x} - mean);", "}}"]
    normed = f"({x} - mean) * scale" if layer else f"{x} * scale"
    for operator, vector in zip("*+", norm.inputs[1:], strict=False):
        normed = f"({normed}) {operator} {body.read(vector, ('c',))}"
    body.known |= {source: (where, x), norm.outputs[0]: (where, f"({normed})")}
    body.make({name: views[name]}, where)
    scale = f"const float scale = rsqrtf({total} + {eps});"
    parts = [*head, begin, first, "}}", *(middle if layer else []), scale, begin, body.loop(), "}}"]
    return body.kernel(parts, -(-rows // per_block), threads * per_block)
