"""Segments in primitives, for tests: those of the families, and single primitives that no family of ours has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from l2c_export.compiler.passes.fp8 import with_fp8
from l2c_export.compiler.record import record
from l2c_export.ir.dtypes import E4M3, Types
from l2c_export.ir.graph import Body, Primitive, Value
from l2c_export.ir.signatures import TABLE
from l2c_export.models import bank, dit, updates, uvit  # noqa: F401  (more primitives)

SIZES = {"R": 6, "B": 3}
SCALE, IN_E4M3 = Value((2,)), ("quantise", "linear_fp8")
FAMILIES = {"dit": dit.DiT(dit.DiTArch(8, 2, 4, 32, 2, 2)), "uvit": uvit.UViT(uvit.UViTArch(8, 2, 4, 32, 2, 2, conv=True)),
            "uvit-mlp": uvit.UViT(uvit.UViTArch(8, 2, 4, 32, 2, 2, qkv_bias=True, mlp_time_embed=True))}  # fmt: skip


def empty(value):
    """A tensor of a type, on no device."""
    shape = [SIZES[n] if isinstance(n, str) else n for n in value.shape]
    return torch.zeros(shape, dtype=getattr(torch, value.dtype))


def bodies(name, dtype):
    family = FAMILIES[name]
    kept = (family.sublayers[0],) if dtype != "float32" else ()
    return {**record(family, Types(dtype, kept)).bodies, **record(family, Types(dtype), history=2).bodies}


def in_e4m3(name):
    """The sublayers of a family, with products in e4m3."""
    call = with_fp8(record(FAMILIES[name], Types("bfloat16")), ())
    return {op: body for op, body in call.bodies.items() if op.endswith("_fp8")}


F32, F16, BF16, E8 = (lambda *shape, dtype=dtype: Value(shape, dtype) for dtype in ("float32", "float16", "bfloat16", E4M3))
LOOSE = [  # those that no family of ours has
    ("rms_norm", [F16("R", 4, 8), F32(8)], {"eps": 1e-6}), ("rms_norm", [BF16("R", 4, 8)], {"eps": 1e-6}),
    ("rope", [F16("R", 5, 8)], {"heads": 2, "theta": 10000.0}), ("concat", [F32("R", 2, 8), F32("R", 3, 8)], {"axis": 1}),
    ("linear", [F32("R", 4, 8), F16(6, 8), F16(6)], {"parts": 2}), ("linear", [F32("R", 8), F16(6, 8)], {"parts": 3}),
    ("sdpa", [F32("R", 4, 8), F32("R", 7, 8), F32("R", 7, 8)], {"heads": 2}), ("cast", [F32("R", 4)], {"dtype": "bfloat16"}),
    ("add", [F32("R", 1, 8), BF16("R", 4, 8)], {}), ("mul", [F16(1, 8), F16("R", 4, 8)], {}),
    ("conv2d", [F32("B", 4, 6, 5), F32(3, 4, 3, 2), F32(3)], {"padding": 2}), ("tail", [F32("R", 4, 8)], {"start": 0}),
    ("unsqueeze", [F32("R", 4)], {"axis": 2}), ("modulate", [F16("R", 4, 8), F32("R", 1, 8), F32("R", 1, 8)], {}),
    ("affine", [F16("R", 4)], {"scale": 0.5, "shift": -1.0}), ("affine", [F32("R", 4)], {"scale": 1.0, "shift": 0.0}),
    ("reshape", [F32("R", 2, 3)], {"shape": (-1, 2, 3)}), ("reshape", [F32("R", 4, 6)], {"shape": (-1, 3, 8)}),
    ("reshape", [F32(4, 6)], {"shape": (1, 24)}),
    ("permute", [F16("R", 2, 3, 4)], {"axes": (0, 3, 1, 2)}), ("part", [F32("R", 5, 2)], {"axis": 1, "first": 1, "last": 3}),
    ("sdpa", [F16("R", 4, 8), F16("R", 7, 8), F16("R", 7, 8), F32("R", 1, 1, 7)], {"heads": 2}),
    ("sdpa", [F32("R", 4, 8), F32("R", 7, 8), F32("R", 7, 8), F32(1, 2, 4, 7)], {"heads": 2}),
    ("cast", [Value(("R", 4), "int32")], {"dtype": "float32"}), ("linear_attention", [F16("R", 4, 8)] * 3, {"heads": 2}),
    ("depthwise", [F32("B", 4, 6, 5), F32(4, 1, 3, 3), F32(4)], {"padding": 1}),
    ("linear_fp8", [E8("R", 4, 32), E8(48, 32), F32(2), F32(2)], {"parts": 3}),
    ("linear_fp8", [E8("R", 32), E8(16, 32), F32(2), F32(2), BF16(16)], {"parts": 1}),
]  # fmt: skip

I32 = Value((1,), "int32")
LARGER = [  # as large as models are, where tiles and warps are full, or just not
    ("layer_norm", [F16("R", 65, 1152)], {"eps": 1e-6}),
    ("layer_norm", [F32("R", 5, 4104), F32(4104), F32(4104)], {"eps": 1e-6}),
    ("rms_norm", [BF16("R", 7, 96), BF16(96)], {"eps": 1e-6}), ("rms_norm", [F32("R", 3, 2304)], {"eps": 1e-6}),
    ("linear", [F16("R", 64, 1152), F16(4608, 1152), F16(4608)], {"parts": 1}),
    ("linear", [F32("R", 64, 96), F32(288, 96), F32(288)], {"parts": 3}),
    ("sdpa", [F16("R", 256, 1152)] * 3, {"heads": 16}), ("sdpa", [BF16("R", 77, 128)] * 3, {"heads": 2}),
    ("sdpa", [F16("R", 64, 64), F16("R", 77, 64), F16("R", 77, 64), F16("R", 1, 1, 77)], {"heads": 1}),
    ("sdpa", [F16("R", 33, 24)] * 3, {"heads": 2}), ("sdpa", [F32("R", 257, 144)] * 3, {"heads": 2}),
    ("sdpa", [F32("R", 40, 128), F32("R", 70, 128), F32("R", 70, 128), F32("R", 1, 1, 70)], {"heads": 1}),
    ("sdpa", [F32("R", 9, 400)] * 3, {"heads": 2}), ("linear_attention", [F32("R", 70, 64)] * 3, {"heads": 2}),
    ("bank", [F32(5, 3), F32("R", 70, 40), F32("R", 70, 40), F32(3, "R", 1, 40)], {"gated": (1, 0)}),
    ("bank", [F32(14, 3), *[F16("R", 9, 36)] * 2, *[F16(3, "R", 1, 36)] * 2, F32(14), F32("R", 36, 14, 9)], {"gated": (1, 1)}),
    ("banked", [F32("R", 36, 3, 9), I32], {"dtype": "float16"}),
    ("gelu_tanh", [F16("R", 64, 128)], {}), ("silu", [F32("R", 7, 6)], {}), ("gelu", [F32("R", 8)], {}),
    ("relu", [F32("R", 7, 6)], {}),
]  # fmt: skip


class Segment(NamedTuple):
    """Primitives as a backend is given them, with the types of their inputs."""

    primitives: Sequence[Primitive]
    inputs: Mapping[str, Value]
    outputs: tuple[str, ...]

    @property
    def concrete(self) -> dict[str, Value]:
        """With numbers for the batch axes."""
        return {name: with_sizes(value) for name, value in self.inputs.items()}

    def some(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Inputs: random numbers, or rows that all tables have."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: some(value, generator) for name, value in self.concrete.items()}
        scales = {name for p in self.primitives if p.op in IN_E4M3 for name in p.inputs if self.inputs.get(name) == SCALE}
        return tensors | {name: torch.tensor([2.0**-n, 2.0**n]) for n, name in enumerate(sorted(scales), start=4)}


def with_sizes(value: Value) -> Value:
    return Value(tuple(SIZES[n] if isinstance(n, str) else n for n in value.shape), value.dtype)


def some(value: Value, generator: torch.Generator) -> torch.Tensor:
    if value.dtype == "int32":
        return torch.randint(0, 3, value.shape, generator=generator, dtype=torch.int32)
    if value.dtype == E4M3:
        return torch.randn(value.shape, generator=generator).mul(8).to(torch.float8_e4m3fn)
    return torch.randn(value.shape, generator=generator).to(getattr(torch, value.dtype))


def of_body(body: Body) -> Segment:
    return Segment(body.primitives, {name: body.values[name] for name in body.inputs}, body.outputs)


def alone(op: str, inputs: Sequence[Value], attributes: Mapping[str, Any]) -> Segment:
    """One primitive."""
    names = tuple(f"i{n}" for n in range(len(inputs)))
    outputs = tuple(f"o{n}" for n in range(len(TABLE[op].outputs(inputs, attributes))))
    primitive = Primitive(op, tuple(attributes.items()), names, outputs)
    return Segment((primitive,), dict(zip(names, inputs, strict=True)), outputs)


def off_by(output: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in the largest number, or 1."""
    return float((output.double() - wanted.double()).abs().max() / max(1.0, float(wanted.abs().max())))
