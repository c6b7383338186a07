"""The parts of a manifest: what each says, field by field.  `manifest.py` puts them together.

What not every artefact needs is left out where it is not used (UNSET).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from ..ir.graph import Node, Primitive, Value, unmade
from ..support.words import counted
from ..weights.recipe import Narrowing, TensorRecord, stored_type
from .call_record import CallRecord
from .record import Record

FILE = "manifest.json"
FINGERPRINT = "fingerprint.safetensors"


class FileInfo(Record, frozen=True, kw_only=True):
    """What a file must look like."""

    bytes: int
    sha256: str


ALONE = ("embedded", "ignored")  # guidance without a second half: a model is told the scale, or knows of none


class Guidance(Record, frozen=True, kw_only=True):
    """How the two halves of a guided batch are joined."""

    mode: Literal["first3", "all", "none", "embedded", "ignored"]
    scale: float  # used where none is given

    @property
    def halves(self) -> int:
        """Rows of the model's batch for an image: with what is asked for, and without it where the artefact guides."""
        return 1 if self.mode in ("none", *ALONE) else 2

    @property
    def any_scale(self) -> bool:
        """Whether a request's scale may be other than 1."""
        return self.mode != "none"

    def doubled(self, scales: Iterable[float]) -> bool:
        """Whether images of these scales have a row with what is asked for and one without."""
        return self.halves == 2 and any(scale != 1 for scale in scales)

    def channels(self, count: int) -> list[float]:
        """1 for every latent channel that is guided."""
        guided = {"first3": 3, "all": count}.get(self.mode, 0)
        return [1.0 if c < guided else 0.0 for c in range(count)]


class WeightsRecord(Record, frozen=True, kw_only=True):
    """Where the bound weights come from, and the LoRAs merged into them ("FILE:SCALE"), the first merged first.

    `random` is the seed of weights that mean nothing.
    """

    source: str
    loras: tuple[str, ...] = ()
    random: int | None = None

    @property
    def described(self) -> str:
        """In a line's words: "model.safetensors + style.safetensors:0.8"."""
        return " + ".join([self.source, *self.loras])


class SegmentRecord(Record, frozen=True, kw_only=True):
    """A compiled unit: its file, and the names of its inputs and outputs in the order of its callers'.

    The primitives say all that it computes; an artefact of format 1 has none.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: str  # of the family's operation that it holds: "attn", or "sum" for residual arithmetic alone
    precision: str  # the type that it is to be computed in: the weights', or float32 for an island
    primitives: tuple[Primitive, ...] | msgspec.UnsetType = msgspec.UNSET
    flops: int  # per row of the model's batch


OriginKind = Literal[
    "weight",
    "state",
    "index",
    "guidance",
    "coefficients",
    "time",
    "request",
    "prologue",
    "once",
    "cache",
    "later",
    "forecast",
    "window",
    "bank",
]


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Where a value of a graph comes from that the graph does not make, or for whom it makes one: [kind, of, offset].

    - "weight": the tensor `of`, or its rows `first` to `last` (not included);
    - "state": what the loop keeps: the latents `x`, `base` at the start of the solver step, `x.data` of an earlier call;
    - "index", "guidance", "coefficients": which rows make which image, an image's strength per channel, the sampler's numbers;
    - "window": the value `of` that the constants or the prologue make, for the next calls, as many as its type says;
    - "bank": a number of the call, of a bank of sums;
    - "forecast": the number `of` of the call, with which it takes a cached value;
    - "time": the timestep; "request": what is declared under the name `of`; both per row of the model's batch;
    - "prologue": the value `of` that the constants or the prologue make, for the call itself or the `offset`-th of the later
      calls that read from this one;
    - "once": the value `of` that the request graph makes, the same for every call;
    - "cache": the value `of` that the -`offset`-th of the earlier calls made that this one reads from;
    - "later": made here under a name of its own, the value `of` that the `offset`-th of the later calls reads.

    Which calls those are is said by every call (`earlier`, `later`), so that calls of one structure share a graph.
    """

    kind: OriginKind
    of: str
    offset: int = 0
    first: int | None = None
    last: int | None = None


class GraphRecord(Record, frozen=True, kw_only=True):
    """Calls of segments in order.  `slots` places what lives inside it; sizes are bytes per row."""

    file: str
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    slots: dict[str, int]
    slot_bytes: tuple[int, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names that are read before they are computed, in order of first use."""
        return unmade(self.nodes, self.outputs)


class PieceRecord(Record, frozen=True, kw_only=True):
    """A call of a segment, which says whose weights the segment was given."""

    graph: str
    node: str


class FingerprintRecord(Record, frozen=True, kw_only=True):
    """What lies in the fingerprint's file (artefact/fingerprint.py): of the first program, and who computed it."""

    seed: int  # of the pieces' inputs, and of the request's noise
    calls: int  # so many of the first calls are recorded
    filling: int | msgspec.UnsetType = msgspec.UNSET  # which of them fills the cache
    light: int | msgspec.UnsetType = msgspec.UNSET  # and which reads it
    pieces: dict[str, PieceRecord]  # by segment: of those that the recorded calls do not run
    precision: str
    weights: str = ""  # sha256 of those that it was recorded with
    recorded_by: str = ""  # a library and its version


class CompilationRecord(Record, frozen=True, kw_only=True):
    """What a compiler was asked that the rest does not show: with it, the same can be compiled again."""

    max_graphs: int
    computed: tuple[tuple[int, ...], ...]  # by call, before calls were merged


class SizeRecord(Record, frozen=True, kw_only=True):
    """The graphs for latents of one size, which all programs of this size share."""

    latent: tuple[int, ...]  # channels, then the axes of a picture
    values: dict[str, Value]  # the type of everything that is not a weight, under the name it has in its own call
    origins: dict[str, Origin]  # of every name that `values` does not have
    graphs: dict[str, GraphRecord]
    constants: str | None  # the graphs that run before the loop: once per loaded artefact,
    request: str | msgspec.UnsetType = msgspec.UNSET  # once per request, for all calls the same,
    prologue: str | None  # and once per request, with rows for every call

    def type_of(self, name: str) -> Value | None:
        """The type of what a graph knows under this name; None for a weight, and for what is unknown."""
        origin = self.origins.get(name)
        return self.values.get(name if origin is None or origin.kind in ("request", "window") else origin.of)


class ProgramRecord(Record, frozen=True, kw_only=True):
    """A loop: one schedule of a sampler with a number of steps, over the graphs of a size."""

    size: str
    schedule: str  # the file of the schedule that it was compiled from
    sampler: str
    steps: int
    calls: tuple[CallRecord, ...]
    cache_bytes: tuple[int, ...]  # cache slots, bytes per row
    history: int | msgspec.UnsetType = msgspec.UNSET  # how many earlier data predictions a call reads
    noise_scale: float | msgspec.UnsetType = msgspec.UNSET  # of the first latents, in standard deviations
    asked: CompilationRecord | msgspec.UnsetType = msgspec.UNSET  # where calls were merged


class DenoiserRecord(Record, frozen=True, kw_only=True):
    """The component in the loop: the model, its weights, and its segments, one copy for all sizes and programs."""

    family: str
    name: str | None
    arch: dict[str, int | float | bool | str]
    assumed: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET  # of the architecture, where nothing said it
    sublayers: tuple[str, ...]  # column -> name
    levels: dict[str, tuple[str, str]] | msgspec.UnsetType = msgspec.UNSET  # of the stack: the stream before and behind it
    weight_dtype: str
    fp32: tuple[str, ...]  # sublayers that are kept in float32
    weights: WeightsRecord | None
    tensors: dict[str, TensorRecord]  # what is stored
    narrowing: Narrowing | msgspec.UnsetType = msgspec.UNSET  # what it has cost to store some of them narrower
    corrected: dict[str, float] | msgspec.UnsetType = msgspec.UNSET  # by how much biases differ from the model's, at most
    segments: dict[str, SegmentRecord]
    sizes: dict[str, SizeRecord]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that a checkpoint has."""
        return {name: tensor.shape for name, tensor in self.checkpointed.items()}

    @property
    def checkpointed(self) -> dict[str, TensorRecord]:
        """The tensors that a checkpoint has: all but scales."""
        return {name: tensor for name, tensor in self.tensors.items() if not tensor.scale}

    @property
    def stored(self) -> str | None:
        """The type in which matrices are stored, where that is narrower than what they are computed in."""
        return stored_type(self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Of all tensors, as they are computed with."""
        return sum(tensor.bytes for tensor in self.tensors.values())


class DecoderRecord(Record, frozen=True, kw_only=True):
    """The component behind the loop: what turns latents into pixels."""

    file: str
    scale: int  # pixels per latent, along each side
    channels: int  # of a picture
    scaling_factor: float  # what the latents are divided by, inside the graph
    shift_factor: float | msgspec.UnsetType = msgspec.UNSET  # what is added after that, inside the graph
    latents_mean: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET  # or this, of every channel, after the deviation
    latents_std: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET
    tile: int  # side of the pictures that it was trained for, pixels
    stored: Literal["float16"] | msgspec.UnsetType = msgspec.UNSET  # the type of its weights in the file, if not float32
    made_from: str | msgspec.UnsetType = msgspec.UNSET  # sha256 of the autoencoder


class Build(Record, frozen=True, kw_only=True):
    """Engines for GPUs, made from the artefact's ONNX files by `l2c build`."""

    backend: str
    version: str  # of the library
    targets: tuple[str, ...]  # GPU architectures: sm90 ..
    images: tuple[int, int, int]  # the fewest, usual and most of one call
    level: int | None  # the builder's optimisation level
    version_compatible: bool
    hardware_compatible: bool
    engines: dict[str, str]  # segment (shared link) or graph (static link) -> file

    def runs_on(self, architecture: str, version: str) -> bool:
        """Whether a GPU and a version of the library can run these engines."""
        same = self.version == version
        own, present = (tuple(map(int, re.findall(r"\d+", v)[:3])) for v in (self.version, version))
        newer = self.version_compatible and own[:1] == present[:1] and own <= present
        ampere = self.hardware_compatible and int(architecture.removeprefix("sm")) >= 80
        return (same or newer) and (architecture in self.targets or ampere)


def image_range(images: Sequence[int]) -> str:
    """A build's `images` in words."""
    least, usual, most = images
    return counted(most, "image") if least == most else f"{least} to {counted(most, 'image')}, fastest at {usual}"
