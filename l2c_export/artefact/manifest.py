"""The artefact's index: what was compiled, from what, and how the runtime is to run it.

Format versions, newest first:
    1  2026-11  first

The policy.  A release reads exactly the version that it writes: artefacts are quick to compile again, and a wrong guess
about an old one could give a wrong image.  A field with a default that means what was before may be added without a new
version: older artefacts have the default, older releases name the field that they do not know.  All else is a new version.
What not every artefact needs is left out where it is not used (UNSET).
tests/golden holds an artefact of the version that is read, with what it made; `python tests/golden/make.py` writes one, which
is done when the version changes and at no other time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

from ..ir.dtypes import BYTES, Types
from ..ir.graph import Node, Value
from ..ir.names import rows_of, split_at
from ..support.words import counted

VERSION = 1
FILE = "manifest.json"
LINKS = ("shared", "static")


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Frozen, and strict about unknown fields."""


class FileInfo(Record, frozen=True, kw_only=True):
    """What a file must look like."""

    bytes: int
    sha256: str


class Model(Record, frozen=True, kw_only=True):
    """What the runtime has to know of the model."""

    family: str
    name: str | None
    arch: dict[str, int | float | bool | str]
    latent: tuple[int, int, int]  # channels, height, width
    labels: int
    null_label: int | None
    sublayers: tuple[str, ...]  # column -> name
    names: dict[str, int] | msgspec.UnsetType = msgspec.UNSET  # of the class labels
    assumed: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET  # of the architecture, where nothing said it

    def usual_labels(self, count: int) -> list[int]:
        """Labels for images of which it does not matter what they show."""
        return [(207 + n) % self.labels for n in range(count)]


class Guidance(Record, frozen=True, kw_only=True):
    """How the two halves of a guided batch are joined."""

    mode: Literal["first3", "all", "none"]
    scale: float  # used where none is given

    @property
    def halves(self) -> int:
        """Rows of the model's batch for an image: with its label, and without it where the artefact guides."""
        return 1 if self.mode == "none" else 2

    def channels(self, count: int) -> list[float]:
        """1 for every latent channel that is guided."""
        guided = {"first3": 3, "all": count, "none": 0}[self.mode]
        return [1.0 if c < guided else 0.0 for c in range(count)]


class WeightsRecord(Record, frozen=True, kw_only=True):
    """Where the bound weights come from; `random` is the seed of weights that mean nothing."""

    source: str
    random: int | None = None


class SegmentRecord(Record, frozen=True, kw_only=True):
    """A compiled unit: its file, and the names of its inputs and outputs in the order of its callers'."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: int  # per row of the model's batch


class GraphRecord(Record, frozen=True, kw_only=True):
    """A program: calls of segments.  `slots` places what lives inside it; sizes are bytes per row."""

    file: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slots: dict[str, int]
    slot_bytes: tuple[int, ...]


class CallRecord(Record, frozen=True, kw_only=True):
    """One network evaluation; `reads` and `writes` say which cache slots its cached values use."""

    timestep: float
    computed: tuple[int, ...]
    reused: tuple[int, ...]
    graph: str
    coefficients: tuple[float, ...]
    ends_step: bool
    reads: dict[str, int]
    writes: dict[str, int]


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


class DecoderRecord(Record, frozen=True, kw_only=True):
    """What turns latents into pixels."""

    file: str
    scale: int  # pixels per latent, along each side
    channels: int  # of a picture
    scaling_factor: float  # what the latents are divided by, inside the graph
    shift_factor: float | msgspec.UnsetType = msgspec.UNSET  # what is added after that, inside the graph
    latents_mean: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET  # or this, of every channel, after the deviation
    latents_std: tuple[float, ...] | msgspec.UnsetType = msgspec.UNSET
    tile: int  # side of the pictures that it was trained for, pixels
    made_from: str | msgspec.UnsetType = msgspec.UNSET  # sha256 of the autoencoder


class CompilationRecord(Record, frozen=True, kw_only=True):
    """What a compiler was asked that the rest does not show: with it, the same can be compiled again."""

    max_graphs: int
    computed: tuple[tuple[int, ...], ...]  # by call, before calls were merged


class Manifest(Record, frozen=True, kw_only=True):
    """Everything about an artefact but the bytes of its files."""

    format: Literal["l2c-export"] = "l2c-export"
    version: Literal[1] = 1
    tool: str
    model: Model
    sampler: str
    steps: int
    guidance: Guidance
    precision: str
    weight_dtype: str
    fp32: tuple[str, ...]  # sublayers that are kept in float32
    batch: int  # images; the model sees twice as many with guidance
    backend: str
    link: Literal["shared", "static"]
    passes: tuple[str, ...]
    weights: WeightsRecord | None
    tensors: dict[str, tuple[int, ...]]
    values: dict[str, Value]
    segments: dict[str, SegmentRecord]
    constants: str | None  # graphs that run before the loop, by name
    prologue: str | None
    graphs: dict[str, GraphRecord]
    calls: tuple[CallRecord, ...]
    cache_bytes: tuple[int, ...]  # cache slots, bytes per row
    history: int | msgspec.UnsetType = msgspec.UNSET  # how many earlier data predictions a call reads
    decoder: DecoderRecord | msgspec.UnsetType = msgspec.UNSET
    noise_scale: float | msgspec.UnsetType = msgspec.UNSET  # of the first latents, in standard deviations
    asked: CompilationRecord | msgspec.UnsetType = msgspec.UNSET  # where calls were merged
    builds: dict[str, Build] = {}
    files: dict[str, FileInfo]
    checksum: str = ""  # sha256 of this record as JSON with an empty checksum

    @property
    def weight_types(self) -> Types:
        return Types(self.weight_dtype, self.fp32)

    def rows(self, images: int, guided: bool = True) -> int:
        """Rows of the model's batch for so many images; a request may do without the guidance that the artefact has."""
        return images * (self.guidance.halves if guided else 1)

    def is_weight(self, name: str) -> bool:
        """Whether an input of a graph is a tensor of the checkpoint, or some rows of one."""
        return split_at(name)[0] not in self.values

    def tensor_bytes(self, weight: str) -> int:
        """Bytes of a weight tensor, or of some of its rows."""
        tensor, rows = rows_of(weight)
        first, *rest = self.tensors[tensor]
        return len(range(*rows.indices(first))) * math.prod(rest) * BYTES[self.weight_types.of(tensor)]

    def value_bytes(self, name: str, rows: int) -> int:
        """Bytes of any input or output of a node, for `rows` rows of the model's batch."""
        if self.is_weight(name):
            return self.tensor_bytes(name)
        value = self.values[split_at(name)[0]]
        return value.row_bytes * (rows if isinstance(value.shape[0], str) else 1)

    def without_builds(self, names: Collection[str]) -> Manifest:
        """The same artefact less some builds and their files."""
        dropped = {file for name in names if name in self.builds for file in self.builds[name].engines.values()}
        builds = {name: build for name, build in self.builds.items() if name not in names}
        files = {name: file for name, file in self.files.items() if name not in dropped}
        return msgspec.structs.replace(self, builds=builds, files=files)

    @property
    def bytes(self) -> int:
        """The size of all its files but the manifest's own."""
        return sum(file.bytes for file in self.files.values())

    @property
    def computed_share(self) -> float:
        """Of all sublayers of all calls, 0..1."""
        return computed_share(self.calls, len(self.model.sublayers))

    @property
    def step_graphs(self) -> list[str]:
        """The graphs of the loop, by name; the others run before it."""
        return [name for name in self.graphs if name not in (self.constants, self.prologue)]

    @property
    def steps_of_solver(self) -> int:
        """Solver steps: what a callback is called for."""
        return sum(call.ends_step for call in self.calls)


def computed_share(calls: Sequence[CallRecord], columns: int) -> float:
    """The share of the sublayers, `columns` in each call, that these calls compute."""
    return sum(len(call.computed) for call in calls) / (columns * len(calls))


def image_range(images: Sequence[int]) -> str:
    """A build's `images` in words."""
    least, usual, most = images
    return counted(most, "image") if least == most else f"{least} to {counted(most, 'image')}, fastest at {usual}"
