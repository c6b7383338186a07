"""The first stage: a family's call recorded as a graph, and what each of its operations computes in primitives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ir.dtypes import Types
from ..ir.graph import (
    COEFFICIENTS,
    GUIDANCE,
    INDEX,
    REQUEST,
    REQUESTED,
    STATE,
    TIME,
    WEIGHT,
    Body,
    Graph,
    Node,
    Primitive,
    Value,
)
from ..ir.names import at
from ..ir.primitives import infer
from ..models import layers
from ..models.family import Family, Operation
from ..models.tape import body
from ..models.updates import UPDATES

Shape = tuple[int | str, ...]
PLAIN = {"Mul": "mul", "Add": "add"}  # residual arithmetic, and the primitives that it is


@dataclass(frozen=True)
class Traced:
    """A value while recording."""

    name: str
    value: Value


@dataclass
class Recorder:
    """A Runner that records nodes."""

    family: Family
    types: Types  # of weights; activations follow
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    bodies: dict[str, Body] = field(default_factory=dict)
    sublayers: dict[str, tuple[str, ...]] = field(default_factory=dict)  # what each makes

    def input(self, name: str, kind: str, shape: tuple[int | str, ...], dtype: str = "float32") -> Traced:
        return self._traced(name, Value(shape, dtype, kind))

    def __call__(self, op: str, *inputs: Traced, at: str = "", name: str = "") -> Any:
        return self._segment(op, name or (f"{at}.{op}" if at else op), inputs, at)

    def sublayer(self, op: str, *inputs: Traced, at: str, name: str = "") -> Any:
        name = name or f"{at}.{op}"
        results = self._segment(op, name, inputs, at, name in self.types.fp32)
        self.sublayers[name] = self.nodes[-1].outputs
        return results

    def _segment(self, op: str, name: str, inputs: Sequence[Traced], at: str, island: bool = False) -> Any:
        segment = operation_of(self.family, op)
        weights = [self._weight(f"{at}.{w}" if at else w) for w in segment.weights]
        return self.node(op, name, segment.function, [*inputs, *weights], island)

    def chunks(self, op: str, value: Traced, at: str, names: Sequence[str]) -> tuple[Traced, ...]:
        rows = self.family.tensors()[f"{at}.weight"][0] // len(names)
        values = []
        for i, name in enumerate(names):
            cut = f"[{i * rows}:{(i + 1) * rows}]"
            weights = [self._weight(f"{at}.{w}", cut) for w in self.family.segments[op].weights]
            values.append(self.node(op, name, self.family.segments[op].function, [value, *weights]))
        return tuple(values)

    def residual(self, stream: Traced, value: Traced, at: str, gate: Traced | None = None) -> Traced:
        if gate is not None:
            value = self._plain("Mul", f"{at}.gated", gate, value)
        return self._plain("Add", f"{at}.residual", stream, value)

    def weight(self, tensor: str) -> Traced:
        return self._weight(tensor)

    def _weight(self, tensor: str, cut: str = "") -> Traced:
        shape = self.family.tensors()[tensor]
        if cut:
            first, last = map(int, cut[1:-1].split(":"))
            shape = (last - first, *shape[1:])
        return self.input(tensor + cut, WEIGHT, shape, self.types.of(tensor))

    def _plain(self, op: str, name: str, a: Traced, b: Traced) -> Traced:
        self.nodes.append(Node(op, name, (a.name, b.name), (name,)))
        return self._traced(name, arithmetic(op, a.value, b.value))

    def node(self, kind: str, name: str, function: Callable[..., Any], inputs: Sequence[Traced], island: bool = False) -> Any:
        """Call an operation; its first result is called after the node, others `name.1`, `name.2`, ..

        An island computes in float32 whatever it is given.
        """
        definition = body(kind, in_float32(function) if island else function, [i.value for i in inputs])
        outputs = tuple(f"{name}.{n}" if n else name for n in range(len(definition.outputs)))
        self.nodes.append(Node(self._op(definition, island), name, tuple(i.name for i in inputs), outputs))
        results = [self._traced(new, definition.values[old]) for new, old in zip(outputs, definition.outputs, strict=True)]
        return tuple(results) if len(results) > 1 else results[0]

    def _op(self, definition: Body, island: bool) -> str:
        """The name of a body: its kind, and a number where the kind computes several things."""
        name = f"{definition.kind}_fp32" if island else definition.kind
        names = (f"{name}_{n}" if n else name for n in range(len(self.bodies) + 1))
        op = next(n for n in names if self.bodies.get(n, definition) == definition)
        self.bodies[op] = definition
        return op

    def _traced(self, name: str, value: Value) -> Traced:
        self.values[name] = value
        return Traced(name, value)

    def graph(self, outputs: tuple[str, ...]) -> Graph:
        sublayers = tuple(self.sublayers.get(name, (name,)) for name in self.family.sublayers)
        return Graph(tuple(self.nodes), self.values, outputs, sublayers, bodies=self.bodies)


def arithmetic(op: str, a: Value, b: Value) -> Value:
    """The type of residual arithmetic."""
    return infer([Primitive(PLAIN[op], (), ("a", "b"), ("made",))], {"a": a, "b": b})["made"]


def record(family: Family, types: Types = Types(), history: int = 0) -> Graph:  # noqa: B008  (frozen)
    """The family's uncached call with weights of the given types, guidance and the sampler's update included, as a graph.

    Its loop inputs: `x` the latents, `base` the latents at the start of the solver step, `rows`,
    `conditional`, `unconditional` (which rows guide which image), `guidance` and `coefficients`.
    Its output `x.next` are the latents for the next call.  For a sampler that reads a `history` of data predictions, `x.data`
    is that of this call, and `x.data@-1`, .. (also of the loop) are those of the calls before.
    """
    run = Recorder(family, types)
    images: Shape = ("B", *family.latent)
    x = run.input("x", STATE, images)
    rows = run.input("rows", INDEX, ("R",), "int32")
    t = run.input("t", TIME, ("R",))
    shapes: dict[str, Shape] = {i.name: ("R", *i.shape) for i in family.inputs}
    request = {i.name: run.input(REQUESTED + i.name, REQUEST, shapes[i.name], i.dtype) for i in family.inputs}
    noise = family.call(run, x, rows, t, request)
    halves = [run.input(n, INDEX, ("B",), "int32") for n in ("conditional", "unconditional")]
    strength: Shape = ("B", family.latent[0], *(1 for _ in family.latent[1:]))
    guidance = run.input("guidance", GUIDANCE, strength)
    coefficients = run.input("coefficients", COEFFICIENTS, (4 + history if history else 3,))
    if history:
        predicted = run.node("data", "x.data", UPDATES["data"], [noise, x, *halves, guidance, coefficients])
        earlier = [run.input(at("x.data", -k), STATE, images) for k in range(1, history + 1)]
        run.node("multistep", "x.next", UPDATES["multistep"], [x, predicted, *earlier, coefficients])
    else:
        base = run.input("base", STATE, images)
        run.node("update", "x.next", UPDATES["update"], [noise, x, base, *halves, guidance, coefficients])
    return run.graph(("x.next", "x.data") if history else ("x.next",))


def operation_of(family: Family, op: str) -> Operation:
    """The kind of operation, those of every sampler's update included."""
    return Operation(UPDATES[op]) if op in UPDATES else family.segments[op]


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same in float32 whatever it is given; what it makes has the type of its first input."""

    def widened(h: Any, *others: Any) -> Any:
        output = function(layers.wide(h), *map(layers.wide, others))
        return tuple(layers.to(m, h.dtype) for m in output) if isinstance(output, tuple) else layers.to(output, h.dtype)

    return widened
