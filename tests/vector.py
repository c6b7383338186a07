"""A family of the tests' own: it is told a vector instead of a label, and makes curves instead of pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from torch import Tensor

from l2c_export.ir.inputs import RequestInput
from l2c_export.models import layers
from l2c_export.models.descriptor import FamilyDescriptor
from l2c_export.models.family import Operation, Runner
from l2c_export.models.primitives import add, gather, gelu, linear, sinusoid, unsqueeze


class VectorArch(msgspec.Struct, frozen=True):
    width: int = 8
    depth: int = 2
    length: int = 6
    entries: int = 5


VECTOR = FamilyDescriptor(
    name="vector", title="Vector", home=__name__, model="Vector", mark="told.weight", sampler="ddim", guidance=("all", 2.0)
)  # fmt: skip


class Vector:
    """Blocks of one MLP each over three curves, which see the sum of timestep and vector."""

    name: ClassVar[str] = "vector"
    arch_type: ClassVar[type] = VectorArch

    def __init__(self, arch: VectorArch) -> None:
        self.arch, self.latent = arch, (3, arch.length)
        without = tuple(n / 4 for n in range(arch.entries))
        self.inputs = (RequestInput(name="condition", shape=(arch.entries,), unconditional=without),)
        self.sublayers = tuple(f"blocks.{n}.mlp" for n in range(arch.depth))
        self.segments = {
            "time": Operation(self.time, ("weight",)),
            "told": Operation(told, ("weight",)),
            "embed": Operation(embed, ("weight",)),
            "mlp": Operation(mlp, ("up", "down")),
            "final": Operation(final, ("weight",)),
        }

    @staticmethod
    def named(name: str) -> VectorArch | None:
        return None

    @staticmethod
    def from_tensors(shapes: Mapping[str, tuple[int, ...]], arch: VectorArch) -> VectorArch:
        return arch

    def tensors(self) -> dict[str, tuple[int, ...]]:
        width = self.arch.width
        blocks = {f"blocks.{n}.{part}": (width, width) for n in range(self.arch.depth) for part in ("up", "down")}
        ends = {
            "time.weight": (width, width),
            "told.weight": (width, self.arch.entries),
            "embed.weight": (width, self.arch.length),
        }
        return {**ends, **blocks, "final.weight": (self.arch.length, width)}

    def call(self, run: Runner, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
        c = run("told", run("time", t, at="time"), request["condition"], at="told")
        h = run("embed", x, rows, at="embed")
        for n in range(self.arch.depth):
            h = run.residual(h, run.sublayer("mlp", h, c, at=f"blocks.{n}"), f"blocks.{n}.mlp")
        return run("final", h, at="final")

    def time(self, t: Tensor, weight: Tensor) -> Any:
        """t (R,) -> (R, D)."""
        return linear(layers.to(sinusoid(t, half=self.arch.width // 2), weight.dtype), weight)


class AtOnce(Vector):
    """The same computed by one operation, which reads the timestep itself beside the vector."""

    def __init__(self, arch: VectorArch) -> None:
        super().__init__(arch)
        self.segments = {**self.segments, "together": Operation(self.at_once, ("time.weight", "told.weight"))}

    def call(self, run: Runner, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
        c = run("together", t, request["condition"], at="")
        h = run("embed", x, rows, at="embed")
        for n in range(self.arch.depth):
            h = run.residual(h, run.sublayer("mlp", h, c, at=f"blocks.{n}"), f"blocks.{n}.mlp")
        return run("final", h, at="final")

    def at_once(self, t: Tensor, vector: Tensor, time_weight: Tensor, told_weight: Tensor) -> Any:
        return told(self.time(t, time_weight), vector, told_weight)


def told(time: Tensor, vector: Tensor, weight: Tensor) -> Any:
    """time (R, D), vector (R, E) -> (R, 1, D)."""
    return unsqueeze(add(time, linear(layers.to(vector, weight.dtype), weight)), axis=1)


def embed(x: Tensor, rows: Tensor, weight: Tensor) -> Any:
    """x (B, 3, L) -> (R, 3, D)."""
    return linear(layers.to(gather(x, rows), weight.dtype), weight)


def mlp(h: Tensor, c: Tensor, up: Tensor, down: Tensor) -> Any:
    return linear(gelu(linear(add(h, c), up)), down)


def final(h: Tensor, weight: Tensor) -> Any:
    """h (R, 3, D) -> (R, 3, L) float32."""
    return linear(layers.wide(h), layers.wide(weight))


def described(folder: Path) -> str:
    """The file that names it to `model=..`."""
    (folder / "vector.json").write_text(json.dumps({"family": Vector.name, "arch": {}}))
    return str(folder / "vector.json")
