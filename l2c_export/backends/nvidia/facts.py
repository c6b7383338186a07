"""What is known of a segment's values before there are steps: who reads them, which lie in memory, what a norm takes along."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ...ir.graph import Primitive, needed_for
from . import bank, by_hand
from .normal import Normal
from .pointwise import ELEMENTWISE, MOVES, POINTWISE
from .views import shape_of

NORMS = frozenset({"layer_norm", "rms_norm"})
PRODUCTS = frozenset({"linear", "linear_fp8"})
LIBRARIES = frozenset({*PRODUCTS, "sdpa"})
ALIASES = frozenset({"reshape", "unsqueeze"})  # the same numbers in the same order
BY_HAND = {
    "conv2d": by_hand.convolution,
    "depthwise": by_hand.convolution,
    "linear_attention": by_hand.linear_attention,
    "bank": bank.bank,
}
COVERED = frozenset({*POINTWISE, *NORMS, *LIBRARIES, *BY_HAND})


MOST_READS = 12  # of a kernel, for one value


class Fused(NamedTuple):
    """A norm and the value that its kernel makes."""

    norm: Primitive
    name: str


class Facts:
    """Of the primitives that a segment's outputs follow from."""

    def __init__(self, segment: Normal, outputs: Sequence[str]) -> None:
        self.types, self.outputs = segment.types, tuple(outputs)
        self.primitives = needed_for(outputs, segment.primitives)
        self.maker = {name: p for p in self.primitives for name in p.outputs}
        self.readers: dict[str, list[Primitive]] = {}
        for p in self.primitives:
            for name in dict.fromkeys(p.inputs):
                self.readers.setdefault(name, []).append(p)
        self.packed = {p.outputs for p in self.primitives if self._is_packed(p)}
        self.needed = self._needed()
        self._shorten()
        self.fused = self._fused()
        self.needed |= self.fused.keys()

    def _needed(self) -> set[str]:
        """Values that arithmetic, moves and norms make and that lie in memory."""
        needed = {name for name in self.outputs if name in self.maker}
        for p in reversed(self.primitives):
            if p.op in LIBRARIES or p.op in BY_HAND:
                needed.update(name for name in p.inputs if name in self.maker)
            elif p.op not in MOVES and len(self._through(p.outputs[0], needed)) > 1:
                needed.update(p.outputs)
            if p.op in ALIASES and p.outputs[0] in needed and p.inputs[0] in self.maker:
                needed.add(p.inputs[0])
        return needed

    def _shorten(self) -> None:
        """Keep what would be pulled from too much at once: long sums in parts, whose terms need not live until the end."""
        reads: dict[str, int] = {}
        for p in self.primitives:
            reads[p.outputs[0]] = sum(reads.get(i, 1) for i in p.inputs) if p.op in POINTWISE else 1
            if reads[p.outputs[0]] > MOST_READS:
                self.needed.add(p.outputs[0])
            if p.outputs[0] in self.needed:
                reads[p.outputs[0]] = 1

    def _through(self, name: str, needed: Collection[str]) -> list[Primitive]:
        """Who reads a value, moved or not; what is moved to memory reads it once."""
        readers: dict[int, Primitive] = {}
        for reader in self.readers.get(name, []):
            moved = reader.op in MOVES and reader.outputs[0] not in needed
            readers.update({id(p): p for p in (self._through(reader.outputs[0], needed) if moved else [reader])})
        return list(readers.values())

    def _is_packed(self, p: Primitive) -> bool:
        """Whether the parts of a product may lie side by side: their readers take any strides."""
        if p.op not in PRODUCTS or len(p.outputs) == 1 or any(name in self.outputs for name in p.outputs):
            return False
        readers = [reader for name in p.outputs for reader in self.readers.get(name, [])]
        return all(r.op == "sdpa" or (r.op in POINTWISE and r.op not in ALIASES) or r.op in NORMS for r in readers)

    def _fused(self) -> dict[str, Fused]:
        """For what the kernel of a norm makes: that norm.  Arithmetic behind it joins it as long as nobody else reads it."""
        norms: dict[str, Fused] = {}
        for p in (p for p in self.primitives if p.op in NORMS):
            (name,) = p.outputs
            while name not in self.needed and len(self.readers[name]) == 1:
                (reader,) = self.readers[name]
                (after,) = reader.outputs
                same = self.types[after].shape == self.types[name].shape
                if reader.op not in ELEMENTWISE or not same or reader.inputs.count(name) > 1 or after in norms:
                    break
                name = after
            if name in norms:
                (name,) = p.outputs
            norms[name] = Fused(p, name)
        return norms

    def output(self, name: str) -> str | None:
        """The output that a value is, perhaps in another shape."""
        if name in self.outputs:
            return name
        aliases = (self.output(p.outputs[0]) for p in self.readers.get(name, []) if p.op in ALIASES)
        return next((output for output in aliases if output), None)

    def shape(self, name: str) -> tuple[int, ...]:
        return shape_of(self.types[name])
