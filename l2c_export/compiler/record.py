"""The first stage: a family's call recorded as a graph, shapes and FLOPs from running it without data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..ir.dtypes import Types
from ..ir.graph import COEFFICIENTS, FP32, GUIDANCE, INDEX, INNER, REQUEST, STATE, TIME, WEIGHT, Graph, Node, Value
from ..ir.names import at
from ..models.family import Family, operation_of
from ..models.updates import UPDATES

# Batch sizes for recording: primes that no model has as a width, so that they mark the batch axes.
# Two rows per image, as with guidance, so that FLOPs per row also hold for what runs once per image.
IMAGES, ROWS = 3967, 7919


@dataclass(frozen=True)
class Traced:
    """A value while recording: its name, and a tensor without data that knows its shape."""

    name: str
    meta: Tensor


@dataclass
class Recorder:
    """A Runner that records nodes.  Shapes come from running the functions without data."""

    family: Family
    types: Types  # of weights; activations follow
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)  # per row of the model's batch, of every operation

    def input(self, name: str, kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Traced:
        return self._made(name, torch.empty(shape, dtype=dtype, device="meta"), kind)

    def __call__(self, op: str, *inputs: Traced, at: str = "") -> Traced:
        return self._segment(op, f"{at}.{op}" if at else op, inputs, at)

    def sublayer(self, op: str, *inputs: Traced, at: str) -> Traced:
        name = f"{at}.{op}"
        return self._segment(op + FP32 if name in self.types.fp32 else op, name, inputs, at)

    def _segment(self, op: str, name: str, inputs: Sequence[Traced], at: str) -> Traced:
        segment = operation_of(self.family, op)
        weights = [self._weight(f"{at}.{w}" if at else w) for w in segment.weights]
        return self._node(op, name, segment.function, [*inputs, *weights])

    def chunks(self, op: str, value: Traced, at: str, names: Sequence[str]) -> tuple[Traced, ...]:
        rows = self.family.tensors()[f"{at}.weight"][0] // len(names)
        values = []
        for i, name in enumerate(names):
            cut = f"[{i * rows}:{(i + 1) * rows}]"
            weights = [self._weight(f"{at}.{w}", cut) for w in self.family.segments[op].weights]
            values.append(self._node(op, name, self.family.segments[op].function, [value, *weights]))
        return tuple(values)

    def residual(self, stream: Traced, value: Traced, at: str, gate: Traced | None = None) -> Traced:
        if gate is not None:
            value = self._node("Mul", f"{at}.gated", torch.mul, [gate, value])
        return self._node("Add", f"{at}.residual", torch.add, [stream, value])

    def _weight(self, tensor: str, cut: str = "") -> Traced:
        shape = self.family.tensors()[tensor]
        if cut:
            first, last = map(int, cut[1:-1].split(":"))
            shape = (last - first, *shape[1:])
        return self.input(tensor + cut, WEIGHT, shape, getattr(torch, self.types.of(tensor)))

    def _node(self, op: str, name: str, function: Callable[..., Tensor], inputs: list[Traced]) -> Traced:
        self.nodes.append(Node(op, name, tuple(i.name for i in inputs), (name,)))
        plain = op.removesuffix(FP32)
        with FlopCounterMode(display=False) if plain not in self.flops else contextlib.nullcontext() as counter:
            result = function(*(i.meta for i in inputs))
        if counter:
            self.flops[plain] = counter.get_total_flops() // ROWS
        return self._made(name, result, INNER)

    def _made(self, name: str, meta: Tensor, kind: str) -> Traced:
        symbols: dict[int, int | str] = {IMAGES: "B", ROWS: "R"}
        shape = tuple(symbols.get(n, n) for n in meta.shape)
        self.values[name] = Value(shape, str(meta.dtype).removeprefix("torch."), kind)
        return Traced(name, meta)


class Recorded(NamedTuple):
    call: Graph
    flops: Mapping[str, int]  # of every kind of operation, per row of the model's batch


def record(family: Family, types: Types = Types(), history: int = 0) -> Recorded:  # noqa: B008  (frozen)
    """The family's uncached call with weights of the given types, guidance and the sampler's update included, as a graph.

    Its loop inputs: `x` the latents, `base` the latents at the start of the solver step, `rows`,
    `conditional`, `unconditional` (which rows guide which image), `guidance` and `coefficients`.
    Its output `x.next` are the latents for the next call.  For a sampler that reads a `history` of data predictions, `x.data`
    is that of this call, and `x.data@-1`, .. (also of the loop) are those of the calls before.
    """
    run = Recorder(family, types)
    channels, height, width = family.latent
    images = (IMAGES, channels, height, width)
    x = run.input("x", STATE, images)
    rows = run.input("rows", INDEX, (ROWS,), torch.int32)
    t, y = run.input("t", TIME, (ROWS,)), run.input("y", REQUEST, (ROWS,), torch.int32)
    noise = family.call(run, x, rows, t, y)
    halves = [run.input(n, INDEX, (IMAGES,), torch.int32) for n in ("conditional", "unconditional")]
    guidance = run.input("guidance", GUIDANCE, (1, channels, 1, 1))
    coefficients = run.input("coefficients", COEFFICIENTS, (4 + history if history else 3,))
    if history:
        predicted = run._node("data", "x.data", UPDATES["data"], [noise, x, *halves, guidance, coefficients])
        earlier = [run.input(at("x.data", -k), STATE, images) for k in range(1, history + 1)]
        run._node("multistep", "x.next", UPDATES["multistep"], [x, predicted, *earlier, coefficients])
    else:
        base = run.input("base", STATE, images)
        run._node("update", "x.next", UPDATES["update"], [noise, x, base, *halves, guidance, coefficients])
    outputs = ("x.next", "x.data") if history else ("x.next",)
    return Recorded(Graph(tuple(run.nodes), run.values, outputs, family.sublayers), run.flops)
