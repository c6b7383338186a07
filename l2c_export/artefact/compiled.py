"""One program of an artefact with all that it stands on: what runs, inspects or measures it looks here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..ir.dtypes import BYTES
from ..ir.graph import Node, Value
from ..ir.inputs import RequestInput
from ..support.words import counted
from .call_record import CallRecord, computed_share
from .records import DenoiserRecord, GraphRecord, Guidance, Origin, PieceRecord, ProgramRecord, SegmentRecord, SizeRecord


@dataclass(frozen=True)
class Compiled:
    """A program, its size and its denoiser."""

    name: str
    program: ProgramRecord
    size: SizeRecord
    denoiser: DenoiserRecord
    inputs: tuple[RequestInput, ...]
    guidance: Guidance
    precision: str
    batch: int  # images; the model sees twice as many with guidance

    @property
    def calls(self) -> tuple[CallRecord, ...]:
        return self.program.calls

    @property
    def graphs(self) -> Mapping[str, GraphRecord]:
        """Those of its size; other programs may use some of them."""
        return self.size.graphs

    @property
    def segments(self) -> Mapping[str, SegmentRecord]:
        return self.denoiser.segments

    @property
    def latent(self) -> tuple[int, ...]:
        return self.size.latent

    @property
    def sampler(self) -> str:
        return self.program.sampler

    @property
    def steps(self) -> int:
        """As it was asked for: sampling steps, or network evaluations."""
        return self.program.steps

    @property
    def cache_bytes(self) -> tuple[int, ...]:
        """Of every cache slot, per row."""
        return self.program.cache_bytes

    @property
    def history(self) -> int:
        """How many earlier data predictions a call reads."""
        return self.program.history or 0

    @property
    def noise_scale(self) -> float:
        """Of the first latents, in standard deviations."""
        return self.program.noise_scale or 1.0

    @property
    def constants(self) -> str | None:
        """The graph that runs once per loaded artefact."""
        return self.size.constants

    @property
    def request(self) -> str | None:
        """The graph that runs once per request, and makes what is the same in all calls."""
        return self.size.request or None

    @property
    def prologue(self) -> str | None:
        """The graph that runs for every request, with rows for many calls at once."""
        return self.size.prologue

    @property
    def before_loop(self) -> list[str]:
        """The graphs that run before the loop."""
        return [name for name in (self.constants, self.request, self.prologue) if name is not None]

    @property
    def step_graphs(self) -> list[str]:
        """The graphs of its calls, by name, in the order of their first use."""
        return list(dict.fromkeys(call.graph for call in self.calls))

    @property
    def steps_of_solver(self) -> int:
        """Solver steps: what a callback is called for."""
        return sum(call.ends_step for call in self.calls)

    @property
    def computed_share(self) -> float:
        """Of all sublayers of all calls, 0..1."""
        return computed_share(self.calls, len(self.denoiser.sublayers))

    @property
    def summary(self) -> str:
        """Its share, calls and steps in words."""
        return (
            f"{self.computed_share:.0%} of the sublayers in {counted(len(self.calls), 'call')}, "
            f"{self.sampler} with {counted(self.steps_of_solver, 'step')}"
        )

    def step_timestep(self, index: int) -> float:
        """The timestep at which the solver step began that ends with call `index`."""
        while index and not self.calls[index - 1].ends_step:
            index -= 1
        return self.calls[index].timestep

    @property
    def guides_each_image(self) -> bool:
        """Whether the images of a batch may have different guidance scales: artefacts of format 1 have one for all."""
        return all(self.value(name).shape[0] == "B" for name, origin in self.size.origins.items() if origin.kind == "guidance")

    @property
    def requested(self) -> dict[str, str]:
        """The declared input that a graph's input is given, by the graph's name for it."""
        return {name: origin.of for name, origin in self.size.origins.items() if origin.kind == "request"}

    def rows(self, images: int, guided: bool = True) -> int:
        """Rows of the model's batch for so many images; a request may do without the guidance that the artefact has."""
        return images * (self.guidance.halves if guided else 1)

    def node(self, piece: PieceRecord, segment: str) -> Node | None:
        """The call of a segment that a piece repeats; None if there is no such call."""
        graph = self.graphs.get(piece.graph)
        nodes = graph.nodes if graph else ()
        return next((node for node in nodes if (node.name, node.op) == (piece.node, segment)), None)

    def origin(self, name: str) -> Origin | None:
        """Where a value comes from that its graph does not make; None for one that it makes for itself."""
        return self.size.origins.get(name)

    def offsets(self, graph: str) -> set[int]:
        """The other calls that a graph knows of: their offsets."""
        names = (name for node in self.graphs[graph].nodes for name in (*node.inputs, *node.outputs))
        origins = (self.origin(name) for name in names)
        return {origin.offset for origin in origins if origin and origin.kind in ("cache", "later", "prologue", "time")}

    def distance(self, call: CallRecord, name: str) -> int:
        """Calls from this one to that whose value a name of its graph is; negative for an earlier one."""
        origin = self.origin(name)
        if origin is None:
            return 0
        return origin.offset if origin.kind == "state" else call.distance(origin.offset)

    @property
    def reach(self) -> int:
        """How many calls later the last call is whose hoisted rows a call reads."""
        offsets = {name: self.offsets(name) for name in self.step_graphs}
        windows = [name for name, origin in self.size.origins.items() if origin.kind == "window"]
        counts = (n for name in windows for n in self.value(name).shape[:1] if isinstance(n, int))
        return max((*counts, *(call.distance(offset) for call in self.calls for offset in offsets[call.graph])), default=0)

    def is_weight(self, name: str) -> bool:
        """Whether an input of a graph is a tensor of the checkpoint, or some rows of one."""
        origin = self.origin(name)
        return origin is not None and origin.kind == "weight"

    def value(self, name: str) -> Value:
        """The type of a value that is no weight."""
        value = self.size.type_of(name)
        assert value, name
        return value

    def weight_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight tensor, or of some of its rows."""
        origin = self.size.origins[name]
        first, *rest = self.denoiser.tensors[origin.of].shape
        return (len(range(first)[origin.first : origin.last]), *rest)

    def tensor_bytes(self, weight: str) -> int:
        """Bytes of a weight tensor, or of some of its rows."""
        return math.prod(self.weight_shape(weight)) * BYTES[self.denoiser.tensors[self.size.origins[weight].of].dtype]

    def value_bytes(self, name: str, rows: int) -> int:
        """Bytes of any input or output of a node, for `rows` rows of the model's batch."""
        if self.is_weight(name):
            return self.tensor_bytes(name)
        value = self.value(name)
        return value.row_bytes * (rows if isinstance(value.shape[0], str) else 1)
