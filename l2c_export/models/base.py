"""What a model family is, and how its one description of a denoising call is recorded or executed.

A family writes its call once, as Python, against a `Runner`.  `Recorder` (here) turns it into a
`program.Graph`; `eager.Eager` executes it with PyTorch.  There is no second implementation.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ModelError
from ..program import FP32, INNER, LABEL, LOOP, TIME, WEIGHT, Graph, Node, Value, at
from ..weights import Types
from . import layers
from .updates import UPDATES

# Batch sizes for recording: primes that no model has as a width, so that they mark the batch axes.
# Two rows per image, as with guidance, so that FLOPs per row also hold for what runs once per image.
IMAGES, ROWS = 3967, 7919


class Segment(NamedTuple):
    """A kind of operation: a pure function of activations, then weights.

    `weights` are the names of the weights under the module that the operation is called at.
    """

    function: Callable[..., Any]
    weights: tuple[str, ...] = ()


class Runner(Protocol):
    """What a family's `call` is written against.  Values are opaque to it."""

    def __call__(self, op: str, *inputs: Any, at: str = "") -> Any:
        """Run a segment kind with the weights of module `at`."""

    def sublayer(self, op: str, *inputs: Any, at: str) -> Any:
        """The same for a cacheable attention or MLP."""

    def chunks(self, op: str, value: Any, at: str, names: Sequence[str]) -> tuple[Any, ...]:
        """A linear layer whose rows are several independent projections, one per name."""

    def residual(self, stream: Any, value: Any, at: str, gate: Any = None) -> Any:
        """stream + gate * value."""


class Family(Protocol):
    """A model family: its architecture, tensors, segment kinds and one denoising call.

    Its class also has `arch_type`, `named` and `from_tensors`, and may have `shown`, the fields of the architecture that
    tensors show, and `unshown`, which says of the others what follows from published models and what must be asked.
    """

    name: ClassVar[str]
    default_sampler: ClassVar[str]
    default_guidance: ClassVar[tuple[str, float]]
    arch: Any
    latent: tuple[int, int, int]  # channels, height, width
    labels: int  # valid class labels are 0 .. labels-1
    null_label: int | None  # the label of the unconditional half, None without one
    sublayers: tuple[str, ...]  # router column -> value name
    segments: Mapping[str, Segment]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint."""

    def call(self, run: Runner, x: Any, rows: Any, t: Any, y: Any) -> Any:
        """Predict the noise.

        x (B, C, H, W) float32 latents; rows (R,) int32: which latent each row of the model's batch
        uses; t (R,) float32 timesteps; y (R,) int32 labels.  Returns (R, C or 2C, H, W).
        """


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
        segment = segment_of(self.family, op)
        weights = [self._weight(f"{at}.{w}" if at else w) for w in segment.weights]
        return self._node(op, name, segment.function, [*inputs, *weights])

    def chunks(self, op: str, value: Traced, at: str, names: Sequence[str]) -> tuple[Traced, ...]:
        rows = self.family.tensors()[f"{at}.weight"][0] // len(names)
        made = []
        for i, name in enumerate(names):
            cut = f"[{i * rows}:{(i + 1) * rows}]"
            weights = [self._weight(f"{at}.{w}", cut) for w in self.family.segments[op].weights]
            made.append(self._node(op, name, self.family.segments[op].function, [value, *weights]))
        return tuple(made)

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
            made = function(*(i.meta for i in inputs))
        if counter:
            self.flops[plain] = counter.get_total_flops() // ROWS
        return self._made(name, made, INNER)

    def _made(self, name: str, meta: Tensor, kind: str) -> Traced:
        symbols: dict[int, int | str] = {IMAGES: "B", ROWS: "R"}
        shape = tuple(symbols.get(n, n) for n in meta.shape)
        self.values[name] = Value(shape, str(meta.dtype).removeprefix("torch."), kind)
        return Traced(name, meta)


class Recorded(NamedTuple):
    call: Graph
    flops: Mapping[str, int]  # of every kind of operation, per row of the model's batch


def segment_of(family: Family, op: str) -> Segment:
    """The kind of operation; with the suffix `FP32` it computes in float32 whatever it is given."""
    if op in UPDATES:
        return Segment(UPDATES[op])
    segment = family.segments[op.removesuffix(FP32)]
    return segment._replace(function=in_float32(segment.function)) if op.endswith(FP32) else segment


def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def widened(h: Tensor, *others: Tensor) -> Tensor:
        return function(layers.wide(h), *map(layers.wide, others)).to(h.dtype)

    return widened


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
    x = run.input("x", LOOP, images)
    rows = run.input("rows", LOOP, (ROWS,), torch.int32)
    t, y = run.input("t", TIME, (ROWS,)), run.input("y", LABEL, (ROWS,), torch.int32)
    noise = family.call(run, x, rows, t, y)
    chosen = [run.input(n, LOOP, (IMAGES,), torch.int32) for n in ("conditional", "unconditional")]
    guidance = run.input("guidance", LOOP, (1, channels, 1, 1))
    coefficients = run.input("coefficients", LOOP, (4 + history if history else 3,))
    if history:
        predicted = run._node("data", "x.data", UPDATES["data"], [noise, x, *chosen, guidance, coefficients])
        older = [run.input(at("x.data", -k), LOOP, images) for k in range(1, history + 1)]
        run._node("multistep", "x.next", UPDATES["multistep"], [x, predicted, *older, coefficients])
    else:
        base = run.input("base", LOOP, images)
        run._node("update", "x.next", UPDATES["update"], [noise, x, base, *chosen, guidance, coefficients])
    outputs = ("x.next", "x.data") if history else ("x.next",)
    return Recorded(Graph(tuple(run.nodes), run.values, outputs, family.sublayers), run.flops)


# Keys of the reference's own configurations that change no number: what saves memory in training.
WITHOUT_EFFECT = {"use_checkpoint"}


def fields_of(arch_type: type, given: Mapping[str, Any]) -> Any:
    """Build an architecture record from a configuration.  Raises ModelError for a key that is not known."""
    known = [f.name for f in msgspec.structs.fields(arch_type)]
    check_keys(given, known, WITHOUT_EFFECT)
    return msgspec.convert({k: v for k, v in given.items() if k in known}, arch_type)


def check_keys(given: Mapping[str, Any], known: Sequence[str], tolerated: Collection[str] = ()) -> None:
    """Raise ModelError naming the first key that is not known, and the nearest that is."""
    for key in given:
        if key not in known and key not in tolerated:
            close = difflib.get_close_matches(key, known, 1)
            raise ModelError(f"unknown key {key!r}: {f'use {close[0]}' if close else 'known are ' + ', '.join(known)}")


# What no model comes near, and what would take forever to find out.
LARGEST, DEEPEST, MOST_PARAMETERS, MOST_PIXELS = 2**20, 2**10, 2**40, 2**20


def check_sizes(arch: Any, may_be_zero: Collection[str] = ()) -> None:
    """Raise ModelError for a size that is no size."""
    for name, value in msgspec.structs.asdict(arch).items():
        if isinstance(value, (bool, str)):
            continue
        if value <= 0 and name not in may_be_zero:
            raise ModelError(f"the model's {name} is {shown(value)}: must be more than 0")
        most = DEEPEST if name == "depth" else LARGEST
        if not 0 <= value <= most:
            raise ModelError(f"the model's {name} is {shown(value)}: must be from 0 to {most}")


def check_total(family: Family) -> None:
    """Raise ModelError for a model whose sizes are possible one by one, but not together."""
    shapes = family.tensors()
    parameters = sum(math.prod(shape) for shape in shapes.values())
    _, height, width = family.latent
    if parameters > MOST_PARAMETERS or height * width > MOST_PIXELS:
        raise ModelError(f"{family.name}: {parameters:,} parameters and latents of {height}x{width}: check --model")


def width_of(arch: Any) -> int:
    """The width of the tokens, by whatever name; 0 without one."""
    return int(getattr(arch, "hidden_size", getattr(arch, "embed_dim", 0)))


def summary(family: Family) -> str:
    """One line: depth x width, heads, classes and picture size."""
    arch, width = family.arch, width_of(family.arch)
    size = [f"{arch.depth} x {width}"] if width and hasattr(arch, "depth") else [f"{len(family.sublayers)} sublayers"]
    heads = [f"{arch.num_heads} heads"] if hasattr(arch, "num_heads") else []
    classes = f"{family.labels} classes {'without' if family.null_label is None else '+'} null"
    channels, height, wide = family.latent
    if channels in (1, 3):
        picture = f"pictures of {height} x {wide} pixels"
    else:
        of = f"pictures of {8 * height} x {8 * wide}, " if channels == 4 else ""
        picture = f"{of}latents {channels} x {height} x {wide}"
    return ", ".join([family.name, *size, *heads, classes, picture])


def shown(number: float) -> str:
    """A number that may have thousands of digits."""
    return f"{number}" if abs(number) < 10**18 else "a number of more than 18 digits"
