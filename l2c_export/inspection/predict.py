"""Know the effect and the cost first: what a compiled schedule computes, moves and (about) takes.

Everything follows from the program alone, before anything is exported or built.  FLOPs count products (two per multiply
and add); bytes count every input and output of every segment once, weights included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..artefact.compiled import Compiled
from ..errors import UsageError
from ..ir.graph import Node
from ..support.words import counted


class Device(NamedTuple):
    """Throughputs that whole segments reach, not peaks: FLOP/s, bytes/s, and seconds per segment call."""

    flops: float
    bandwidth: float
    call: float
    source: str


# Measured where it says so; the others have the H100's share of their own published peak.
DEVICES = {
    "cpu": Device(0.33e12, 20e9, 40e-6, "measured: 2 cores of an AMD EPYC with AVX-512, fp32, ONNX Runtime"),
    "h100": Device(0.40e15, 2.2e12, 20e-6, "measured at 1 and 8 images: H100 80GB, fp16, TensorRT 8.6, one CUDA graph"),
    "rtx4090": Device(0.083e15, 0.66e12, 20e-6, "estimated from its published peak"),
    "orin": Device(0.021e15, 0.13e12, 40e-6, "estimated from its published peak (AGX Orin, dense fp16)"),
}


@dataclass(frozen=True)
class Cost:
    """Of one call, of what runs before the loop, or of a whole loop."""

    flops: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.seconds + other.seconds)


@dataclass(frozen=True)
class Prediction:
    """What one generation of `images` images costs, and what has to fit in memory."""

    images: int
    device: str
    calls: tuple[Cost, ...]
    prologue: Cost  # what runs before the loop, for a request
    weight_bytes: int  # of the whole model
    loop_weight_bytes: int  # of the largest call
    cache_bytes: int  # all cache slots
    peak_bytes: int  # weights, what is made before the loop, caches and scratch
    graphs: int
    segments: int

    @property
    def total(self) -> Cost:
        return sum(self.calls, self.prologue)


def comparison(cached: Prediction, uncached: Prediction) -> list[tuple[str, str, str, str]]:
    """A table of both: name, with the schedule, without, and their ratio."""

    def row(name: str, a: float, b: float, text: str = "{:,.0f}") -> tuple[str, str, str, str]:
        return name, text.format(a), text.format(b), f"{a / b:.2f}" if b else "-"

    a, b = cached, uncached
    return [
        (f"{counted(a.images, 'image')} on {a.device}", "this schedule", "uncached", "ratio"),
        row("network evaluations", len(a.calls), len(b.calls)),
        row("distinct graphs", a.graphs, b.graphs),
        row("segments (engines, shared link)", a.segments, b.segments),
        row("TFLOP", a.total.flops / 1e12, b.total.flops / 1e12, "{:,.3f}"),
        row("GB moved", a.total.bytes / 1e9, b.total.bytes / 1e9, "{:,.2f}"),
        row("weights, MB", a.weight_bytes / 1e6, b.weight_bytes / 1e6, "{:,.1f}"),
        row("weights read in the largest call, MB", a.loop_weight_bytes / 1e6, b.loop_weight_bytes / 1e6, "{:,.1f}"),
        row("caches, MB", a.cache_bytes / 1e6, b.cache_bytes / 1e6, "{:,.2f}"),
        row("peak memory, MB (without the library's own)", a.peak_bytes / 1e6, b.peak_bytes / 1e6, "{:,.1f}"),
        row("seconds, estimated", a.total.seconds, b.total.seconds, "{:,.3f}"),
    ]


Times = Mapping[str, float]  # seconds of one call of each segment


def predict(compiled: Compiled, device: str = "cpu", images: int = 1, times: Times | None = None) -> Prediction:
    """Predict for a device of `DEVICES`, or from `times` that were measured on this machine."""
    if device not in DEVICES and times is None:
        raise UsageError(f"device={device!r}: known are {', '.join(DEVICES)}")
    rows = compiled.rows(images)
    count = len(compiled.calls)

    def graph_cost(name: str | None, rows: int) -> Cost:
        nodes = compiled.graphs[name].nodes if name else ()
        return sum((node_cost(compiled, node, rows, DEVICES.get(device), times) for node in nodes), Cost())

    steps = {name: graph_cost(name, rows) for name in {call.graph for call in compiled.calls}}
    scratch = max(sum(compiled.graphs[name].slot_bytes) for name in steps)
    weight_bytes = compiled.denoiser.weight_bytes
    cache_bytes = rows * sum(compiled.cache_bytes)
    kept = {name: 1 if name == compiled.request else count for name in compiled.before_loop}  # rows of so many calls
    hoisted_bytes = rows * sum(compiled.value(n).row_bytes * kept[g] for g in kept for n in compiled.graphs[g].outputs)
    return Prediction(
        images=images,
        device="this machine" if times is not None else device,
        calls=tuple(steps[call.graph] for call in compiled.calls),
        prologue=graph_cost(compiled.request, rows) + graph_cost(compiled.prologue, rows * count),
        weight_bytes=weight_bytes,
        loop_weight_bytes=max(graph_weight_bytes(compiled, name) for name in steps),
        cache_bytes=cache_bytes,
        peak_bytes=weight_bytes + cache_bytes + rows * scratch + hoisted_bytes,
        graphs=len(steps),
        segments=len(compiled.segments),
    )


def node_cost(compiled: Compiled, node: Node, rows: int, device: Device | None, times: Times | None) -> Cost:
    """One segment call: measured if `times` knows it, else limited by its arithmetic or by its traffic."""
    flops = compiled.segments[node.op].flops * rows
    traffic = sum(compiled.value_bytes(name, rows) for name in (*node.inputs, *node.outputs))
    if times is not None and node.op in times:
        return Cost(flops, traffic, times[node.op])
    if device is None:
        return Cost(flops, traffic, 0.0)
    return Cost(flops, traffic, max(flops / device.flops, traffic / device.bandwidth) + device.call)


def graph_weight_bytes(compiled: Compiled, name: str) -> int:
    """Bytes of the weights that a graph reads."""
    return sum(compiled.tensor_bytes(i) for i in compiled.graphs[name].inputs if compiled.is_weight(i))
