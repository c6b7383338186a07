"""The pieces of a cut model in an order in which they can run: their names, what they read, and what they compute."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from torch.fx import Node

from ...errors import ModelError
from ...ir.dtypes import DERIVED
from ...ir.graph import Primitive, Value
from ..tape import Recorded
from .build import PrimitiveBuilder
from .constants import arguments_of, constant
from .cut import PRODUCTS, Cut, Region, block_of, in_order, path_of
from .dataflow import Addition, Flow, has_numbers, is_tensor
from .joined import joined, name_of
from .lower import lower, unknown
from .moves import rows_of

aten = torch.ops.aten


@dataclass(frozen=True)
class PieceBody:
    """What a kind of piece computes: primitives from its inputs i0, i1, .. to its outputs.

    `summed` are the outputs that residual additions read: streams, what is added to them, and gates.  A `last` piece makes
    the prediction.
    """

    outputs: tuple[str, ...]
    primitives: tuple[Primitive, ...]
    summed: frozenset[str] = frozenset()
    last: bool = False


@dataclass(frozen=True)
class PieceCall:
    """A call of a body: values and tensors of the model in, values out."""

    op: str
    name: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    cached: bool


@dataclass(frozen=True)
class Sum:
    """stream + gate * value, called after the value."""

    at: str
    stream: str
    gate: str | None
    output: str


@dataclass
class Pieces:
    """A captured model: its steps, the bodies of its kinds of pieces, and the tensors that it reads."""

    steps: list[PieceCall | Sum] = field(default_factory=list)
    bodies: dict[str, PieceBody] = field(default_factory=dict)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    derived: dict[str, np.ndarray] = field(default_factory=dict)
    joined: dict[str, tuple[str, ...]] = field(default_factory=dict)  # tensors of the module by what they are one of
    finer: int = 0  # sublayers that are none of the adapter's: those of a pattern
    unread: frozenset[str] = frozenset()  # what a checkpoint holds for nothing
    result: str = ""

    @property
    def stored(self) -> dict[str, tuple[int, ...]]:
        """The tensors before some were joined: those of a checkpoint, and what follows from the configuration."""
        parts = {name: (rows // len(names), *columns) for names, (rows, *columns) in self._joined_shapes() for name in names}
        return {name: shape for name, shape in self.tensors.items() if name not in self.joined} | parts

    def _joined_shapes(self) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        return [(names, self.tensors[name]) for name, names in self.joined.items()]

    @property
    def sublayers(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps if isinstance(step, PieceCall) and step.cached)


def pieces(flow: Flow, cut: Cut) -> Pieces:
    """Raises ModelError for what cannot be written in primitives, or has no order."""
    return _Writer(flow, cut).written()


class _Writer:
    """Takes what can run next until nothing is left."""

    def __init__(self, flow: Flow, cut: Cut) -> None:
        self.flow, self.cut, self.pieces = flow, cut, Pieces()
        self.names: dict[Node, str] = dict(flow.exported.inputs)
        self.types: dict[Node, Value] = {node: _declared(node) for node in self.names}
        self.folded: dict[Node, str] = {}  # constants -> the tensor that holds them
        self.shapes: dict[str, tuple[int, ...]] = {}  # of all tensors
        self.summed = {node for a in cut.additions for node in (a.stream, a.branch, a.gate)}

    def written(self) -> Pieces:
        regions = sorted(self.cut.regions, key=lambda r: min(map(self.flow.order.__getitem__, r.outputs)))
        additions = list(self.cut.additions)
        while regions or additions:
            addition = next((a for a in additions if self._known(a.stream, a.branch, a.gate)), None)
            if addition:
                additions.remove(addition)
                self._sum(addition)
                continue
            following = next((r for r in regions if self._known(*self._reads(r))), None)
            if following is None:
                raise ModelError(f"{len(regions)} pieces depend on each other in a circle: it cannot be captured")
            regions.remove(following)
            self._piece(following)
        self.pieces.result = self.names[self.flow.exported.result]
        return self.pieces

    def _known(self, *nodes: Node | None) -> bool:
        return all(node is None or node in self.names for node in nodes)

    def _reads(self, region: Region) -> tuple[Node, ...]:
        """The values that a region reads, in order of first use."""
        read = [i for node in in_order(self.flow, region.nodes) for i in self._through(node, region)]
        return tuple(dict.fromkeys(read))

    def _through(self, node: Node, region: Region) -> list[Node]:
        outside = [i for i in node.all_input_nodes if i not in region.nodes and is_tensor(i)]
        return [i for i in outside if self.flow.late(i) or self.flow.early(i)]

    def _sum(self, addition: Addition) -> None:
        at = self.names[addition.branch]
        gate = None if addition.gate is None else self.names[addition.gate]
        output = f"{at}.residual"
        self.pieces.steps.append(Sum(at, self.names[addition.stream], gate, output))
        self.names[addition.sum], self.types[addition.sum] = output, self.types[addition.stream]

    def _piece(self, region: Region) -> None:
        name, label = self._called(region)
        read = self._reads(region)
        writing = _Body(self, label, read, region)
        inputs = tuple(self.names[node] for node in read)
        outputs = {inner: f"{name}.{n}" if n else name for n, inner in enumerate(writing.outputs)}
        known = {**{f"i{n}": value for n, value in enumerate(inputs)}, **outputs}  # what is handed on keeps its name
        self.names.update({node: known[result.name] for node, result in writing.results.items()})
        self.types.update({node: Value(v.value.shape, v.value.dtype) for node, v in writing.results.items()})
        added = any(node in self.cut.branches for node in region.outputs)
        cached = added or any(node in self.cut.finer for node in region.outputs)
        self.pieces.finer += cached and not added
        if outputs:
            summed = frozenset(writing.results[node].name for node in region.outputs if node in self.summed)
            last = self.flow.exported.result in region.outputs
            op = self._op(label, PieceBody(writing.outputs, writing.primitives, summed, last))
            weights = tuple(map(self._stored, writing.weights))
            self.pieces.steps.append(PieceCall(op, name, inputs, weights, tuple(outputs.values()), cached))

    def _called(self, region: Region) -> tuple[str, str]:
        """The name of a region and its kind: after the module whose output it is."""
        path = path_of(region.outputs[0])
        block = block_of(path)
        own = path.removeprefix(block).lstrip(".").partition(".")[0]
        label = region.label or own or self._busiest(region, block)
        taken = {name for step in self.pieces.steps if isinstance(step, PieceCall) for name in step.outputs}
        name = f"{block}.{label}".lstrip(".")
        while name in taken or name in self.flow.exported.inputs.values():
            name += "_"
        return name, re.sub(r"\W", "_", label)

    def _busiest(self, region: Region, block: str) -> str:
        """The part of the block that has most of the products."""
        products = [path_of(node) for node in region.nodes if node.target in PRODUCTS]
        parts = Counter(path.removeprefix(block).lstrip(".").partition(".")[0] for path in products)
        most = parts.most_common(1)[0][0] if parts else ""
        return most or ("final" if self.flow.exported.result in region.nodes else "join")

    def _op(self, label: str, body: PieceBody) -> str:
        """The kind of a body: its label, and a number where the label stands for several things."""
        names = (f"{label}_{n}" if n else label for n in range(len(self.pieces.bodies) + 1))
        op = next(name for name in names if self.pieces.bodies.get(name, body) == body)
        self.pieces.bodies[op] = body
        return op

    def _stored(self, tensors: tuple[str, ...]) -> str:
        """The name of a weight that is made of one tensor, or of several."""
        name = name_of(tensors)
        rows, *columns = self.shapes[tensors[0]]
        self.pieces.tensors[name] = (len(tensors) * rows, *columns)
        if len(tensors) > 1:
            self.pieces.joined[name] = tensors
        return name

    def tensor(self, node: Node) -> str:
        """The name of a tensor of the model: of a checkpoint, or one that follows from the configuration."""
        if node in self.flow.exported.stored:
            name = self.flow.exported.stored[node]
            self.shapes[name] = tuple(map(int, node.meta["val"].shape))
            return name
        if node not in self.folded:
            value = np.atleast_1d(constant(self.flow, node).detach().numpy().astype(np.float32))
            digest = hashlib.sha256(repr(value.shape).encode() + value.tobytes()).hexdigest()[:12]
            self.folded[node] = f"{DERIVED}{digest}"
            self.pieces.derived[self.folded[node]] = value
            self.shapes[self.folded[node]] = value.shape
        return self.folded[node]


class _Body:
    """One region written in primitives."""

    def __init__(self, writer: _Writer, label: str, read: Sequence[Node], region: Region) -> None:
        self._writer, self._flow = writer, writer.flow
        self._build = PrimitiveBuilder(label)
        self._values: dict[Node, Any] = {}
        self._read = len(read)
        for node in read:
            self._values[node] = self._build.input(f"i{len(self._values)}", writer.types[node])
        self._weights: dict[str, Recorded] = {}  # by the names of tensors
        for node in in_order(self._flow, region.nodes):
            self._value(node)
        self.results: dict[Node, Recorded] = {node: self._values[node] for node in region.outputs}
        written = {name for primitive in self._build.tape.primitives for name in primitive.outputs}
        self.outputs = tuple(dict.fromkeys(v.name for v in self.results.values() if v.name in written))
        used = _used(self._build.tape.primitives, self.outputs)
        weights = {recorded.name: (name,) for name, recorded in self._weights.items()}
        own = {name: shape for name, shape in writer.shapes.items() if name not in writer.pieces.derived}
        primitives, left = joined(used, weights, own)
        inputs = {old: f"i{self._read + n}" for n, old in enumerate(left)}
        self.primitives = tuple(
            msgspec.structs.replace(p, inputs=tuple(inputs.get(name, name) for name in p.inputs)) for p in primitives
        )
        self.weights = tuple(left.values())

    def _value(self, node: Node) -> Any:
        if node not in self._values:
            is_stored = node in self._flow.exported.stored
            self._values[node] = self._weight(node) if is_stored or self._is_constant(node) else self._lowered(node)
        return self._values[node]

    def _is_constant(self, node: Node) -> bool:
        return has_numbers(node) and not self._flow.needs[node] and not _counts_rows(node)

    def _weight(self, node: Node) -> Recorded:
        name = self._writer.tensor(node)
        if name not in self._weights:
            number = self._read + len(self._weights)
            self._weights[name] = self._build.input(f"i{number}", Value(self._writer.shapes[name]))
        return self._weights[name]

    def _lowered(self, node: Node) -> Any:
        def read(argument: Any) -> Any:
            if not isinstance(argument, Node):
                return argument
            return self._value(argument) if has_numbers(argument) else None  # a size, which the types say

        if node.target is aten.index.Tensor:
            axis, rows = self._indices(node)
            return rows_of(self._build, node, self._value(node.all_input_nodes[0]), axis, rows)
        reads = [i for i in node.all_input_nodes if has_numbers(i)]
        if all(self._value(i) is None for i in reads) and reads:
            return None  # inside a norm, which is one primitive
        return lower(self._build, node, *arguments_of(node, read))

    def _indices(self, node: Node) -> tuple[int, list[int]]:
        """The axis that a node indexes, and with which numbers: those of a configuration."""
        axes: Any = node.args[1]
        known = [(n, index) for n, index in enumerate(axes) if index is not None]
        if len(known) != 1 or self._flow.needs[known[0][1]]:
            raise unknown(node, "an index that is not known before")
        return known[0][0], constant(self._flow, known[0][1]).flatten().tolist()


def _used(primitives: Sequence[Primitive], outputs: Sequence[str]) -> tuple[Primitive, ...]:
    """Those that something depends on."""
    needed, kept = set(outputs), []
    for primitive in reversed(primitives):
        if needed.intersection(primitive.outputs):
            kept.append(primitive)
            needed.update(primitive.inputs)
    return tuple(reversed(kept))


def _declared(node: Node) -> Value:
    """The type of an input of the model."""
    shape = tuple("R" if n == 0 else int(size) for n, size in enumerate(node.meta["val"].shape))
    return Value(shape, str(node.meta["val"].dtype).removeprefix("torch."))


def _counts_rows(node: Node) -> bool:
    """Whether a constant's shape depends on how many rows there are."""
    return any(isinstance(n, torch.SymInt) for n in getattr(node.meta["val"], "shape", ()))
