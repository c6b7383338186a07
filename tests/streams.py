"""A made-up family of two streams: what DiT and U-ViT do not have.

A block's `joint` sublayer makes a value for each stream, which are cached and reused together; its `text` sublayer reads and
changes the second stream only, which nothing reads after the last block.  Where the next `joint` is reused, a `text` is dead
in its own call, and may be read by a later one; where all that it reads is cached, it could be computed earlier, but stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from l2c_export.ir.inputs import class_labels
from l2c_export.models import layers
from l2c_export.models.descriptor import FamilyDescriptor
from l2c_export.models.family import Operation
from l2c_export.models.primitives import (
    add,
    concat,
    gather,
    layer_norm,
    linear,
    mul,
    silu,
    sinusoid,
    tail,
    unpatchify,
    unsqueeze,
)


class StreamsArch(msgspec.Struct, frozen=True):
    width: int = 8
    depth: int = 2
    num_classes: int = 3


STREAMS = FamilyDescriptor(
    name="streams", title="Streams", home=__name__, model="Streams", mark="blocks.0.qkv.weight", sampler="ddim",
    guidance=("all", 1.5), parts=("joint", "text"),
)  # fmt: skip


class Streams:
    """Two streams of tokens: pictures h (R, 4, D), and one token g (R, 1, D) of a label."""

    name: ClassVar[str] = "streams"
    arch_type: ClassVar[type] = StreamsArch

    def __init__(self, arch: StreamsArch) -> None:
        self.arch, self.latent = arch, (4, 4, 4)
        self.inputs = (class_labels(arch.num_classes, arch.num_classes),)
        self.sublayers = tuple(f"blocks.{i}.{kind}" for i in range(arch.depth) for kind in ("joint", "text"))
        self.segments = {
            "time": Operation(self.time, ("weight", "bias")),
            "modulation": Operation(modulation, ("weight", "bias")),
            "words": Operation(words, ("weight",)),
            "embed": Operation(embed, ("weight", "bias")),
            "joint": Operation(joint, ("qkv.weight", "proj.weight", "proj.bias")),
            "text": Operation(text, ("fc.weight", "fc.bias")),
            "final": Operation(final, ("weight", "bias")),
        }

    @staticmethod
    def named(name: str) -> None:
        return None

    @staticmethod
    def from_tensors(shapes: Mapping[str, tuple[int, ...]], arch: StreamsArch) -> StreamsArch:
        return arch

    def tensors(self) -> dict[str, tuple[int, ...]]:
        d = self.arch.width
        shapes = {"t.weight": (d, d), "t.bias": (d,), "y.weight": (self.arch.num_classes + 1, d)}
        shapes |= {"x.weight": (d, 4, 2, 2), "x.bias": (d,), "out.weight": (16, d), "out.bias": (16,)}
        for i in range(self.arch.depth):
            at = f"blocks.{i}."
            shapes |= {f"{at}ada.weight": (2 * d, d), f"{at}ada.bias": (2 * d,), f"{at}fc.weight": (d, d), f"{at}fc.bias": (d,)}
            shapes |= {f"{at}qkv.weight": (3 * d, d), f"{at}proj.weight": (d, d), f"{at}proj.bias": (d,)}
        return shapes

    def call(self, run: Any, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
        c, g = run("time", t, at="t"), run("words", request["class_labels"], at="y")
        h = run("embed", x, rows, at="x")
        for i in range(self.arch.depth):
            at = f"blocks.{i}"
            gate_h, gate_g = run.chunks("modulation", c, f"{at}.ada", (f"{at}.joint.gate", f"{at}.text.gate"))
            a, b = run.sublayer("joint", h, g, at=at)
            h = run.residual(h, a, f"{at}.joint", gate_h)
            g = run.residual(g, b, f"{at}.joint.1")
            g = run.residual(g, run.sublayer("text", g, at=at), f"{at}.text", gate_g)
        return run("final", h, at="out")

    def time(self, t: Any, weight: Any, bias: Any) -> Any:
        return silu(linear(sinusoid(t, half=self.arch.width // 2), weight, bias))


def modulation(c: Any, weight: Any, bias: Any) -> Any:
    return unsqueeze(linear(c, weight, bias), axis=1)


def words(y: Any, table: Any) -> Any:
    return unsqueeze(gather(table, y), axis=1)


def embed(x: Any, rows: Any, weight: Any, bias: Any) -> Any:
    return gather(layers.patches(x, 2, weight, bias), rows)


def joint(h: Any, g: Any, qkv: Any, proj: Any, bias: Any) -> tuple[Any, Any]:
    """The picture's tokens for both streams: what they add to themselves, and their last for the other."""
    both = layers.attention(layer_norm(concat(g, h, axis=1), eps=1e-5), 2, (qkv, None), (proj, bias))
    return tail(both, start=1), mul(tail(both, start=4), g)


def text(g: Any, weight: Any, bias: Any) -> Any:
    return silu(linear(add(g, g), weight, bias))


def final(h: Any, weight: Any, bias: Any) -> Any:
    return unpatchify(linear(layer_norm(h, eps=1e-5), weight, bias), patch=2, channels=4, height=4, width=4)
