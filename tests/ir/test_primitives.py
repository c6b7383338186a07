"""The table of primitives against PyTorch: names, types, FLOPs; and what does not fit is refused in words."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segments import BF16, F16, F32, FAMILIES, LOOSE, SIZES, bodies, empty
from torch.utils.flop_counter import FlopCounterMode

from l2c_export.ir.graph import Primitive
from l2c_export.ir.primitives import apply, flops, infer, precision
from l2c_export.ir.signature import Misfit
from l2c_export.ir.signatures import TABLE
from l2c_export.models import bank, primitives, updates
from l2c_export.models.primitives import PRIMITIVES, execute

pytestmark = pytest.mark.usefixtures("one_thread")
every_family = pytest.mark.parametrize("name", FAMILIES)


def type_of(tensor):
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def concrete(value):
    return type_of(empty(value))


def test_every_primitive_has_a_signature_and_a_function():
    assert {*updates.UPDATES, bank.bank.__name__, bank.banked.__name__} <= TABLE.keys()
    assert TABLE.keys() == PRIMITIVES.keys()
    assert len(TABLE) < 35


@every_family
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_have_the_types_that_pytorch_gives_them(name, dtype):
    for kind, body in bodies(name, dtype).items():
        inputs = {i: empty(body.values[i]) for i in body.inputs}
        outputs = execute(body.primitives, inputs)
        assert {n: type_of(v) for n, v in outputs.items()} == {n: concrete(v) for n, v in body.values.items()}, kind
        assert infer(body.primitives, {i: body.values[i] for i in body.inputs}) == body.values


@every_family
def test_flops_are_those_that_pytorch_counts(name):
    """Two rows an image, as where they are counted."""
    for kind, body in bodies(name, "float32").items():
        with FlopCounterMode(display=False) as counter:
            execute(body.primitives, {i: empty(body.values[i]).to("meta") for i in body.inputs})
        assert flops(body.primitives, body.values) * SIZES["R"] == counter.get_total_flops(), kind


@pytest.mark.parametrize(("op", "inputs", "attributes"), LOOSE, ids=str)
def test_a_primitive_makes_what_its_signature_says(op, inputs, attributes):
    result = PRIMITIVES[op](*map(empty, inputs), **attributes)
    said = TABLE[op].outputs(inputs, attributes)
    assert [type_of(v) for v in (result if isinstance(result, tuple) else (result,))] == [concrete(v) for v in said]


@pytest.mark.parametrize(("op", "inputs", "attributes", "says"), [
    ("linear", [F32("R", 8), F32(6, 7)], {"parts": 1}, "not as wide"), ("linear", [F32("R", 8)], {"parts": 1}, "2 to 3 inputs"),
    ("linear", [F32("R", 8), F32(6, 8)], {}, "the attributes"), ("linear", [F32("R", 8), F32("B", 8)], {"parts": 1}, "batch"),
    ("linear", [F32("R", 8), F32(6, 8)], {"parts": True}, "parts is True, not a size"),
    ("sdpa", [F32("R", 4, 8)] * 2 + [F16("R", 4, 8)], {"heads": 2}, "several types"),
    ("add", [F32("R", 4), F32("B", 4)], {}, "do not go together"), ("add", [F16("R"), BF16("R")], {}, "do not go together"),
    ("cast", [F32("R")], {"dtype": "int32"}, "not a type of numbers"), ("gather", [F32(4, 8), F32("R")], {}, "rows are int32"),
    ("layer_norm", [F32("R", 8)], {"eps": 1}, "between 0 and 1"), ("patchify", [F32("B", 4, 6, 5)], {"patch": 2}, "multiples"),
    ("conv2d", [F32("B", 4, 2, 2), F32(4, 4, 3, 3)], {"padding": 0}, "larger than the picture"),
    ("depthwise", [F32("B", 4, 2, 2), F32(3, 1, 3, 3)], {"padding": 1}, "for other channels"),
    ("linear_attention", [F32("R", 4, 8), F32("R", 5, 8), F32("R", 5, 8)], {"heads": 2}, "do not go together"),
    ("rope", [F32("R", 5, 6)], {"heads": 2, "theta": 1e4}, "even size"), ("tail", [F32("R", 4, 8)], {"start": 4}, "are left"),
    ("unpatchify", [F32("R", 4, 8)], {"patch": 2, "channels": 2, "height": 4, "width": 6}, "its tokens are not"),
    ("affine", [F32("R")], {"scale": 1, "shift": 0.0}, "not a finite number"),
    ("reshape", [F32("R", 4)], {"shape": (-1, 5)}, "does not fill"), ("reshape", [F32("R", 4)], {"shape": (2, 2)}, "batch"),
    ("reshape", [F32("R", 4)], {"shape": (2, -1)}, "not a shape"), ("permute", [F32("R", 4)], {"axes": (1, 0)}, "is the first"),
    ("permute", [F32("R", 4)], {"axes": (0, 0)}, "not an order of axes"),
    ("part", [F32("R", 4)], {"axis": 1, "first": 2, "last": 5}, "4 has no part from 2 to 5"),
    ("part", [F32("R", 4)], {"axis": 0, "first": 0, "last": 1}, "has no part"),
    ("sdpa", [F32("R", 4, 8)] * 3 + [F32("R", 1, 1, 5)], {"heads": 2}, "the mask is not one of the scores"),
])  # fmt: skip
def test_what_does_not_fit_is_said(op, inputs, attributes, says):
    with pytest.raises(Misfit, match=says):
        TABLE[op].outputs(inputs, attributes)


def test_a_graph_of_primitives_is_made_in_order_and_once():
    types = {"x": F32("R", 4)}
    silu = Primitive("silu", (), ("x",), ("y",))
    assert infer([silu], types)["y"] == F32("R", 4)
    with pytest.raises(Misfit, match="'y' is made twice"):
        infer([silu, silu], types)
    with pytest.raises(Misfit, match="reads 'z', which nothing makes"):
        infer([msgspec.structs.replace(silu, inputs=("z",))], types)
    with pytest.raises(Misfit, match="no primitive 'rm'"):
        apply(msgspec.structs.replace(silu, op="rm"), types)


@every_family
def test_islands_follow_from_primitives(name):
    """As DESIGN says: the sampler's update and what leads to it, times, and what is kept so."""
    by_kind = bodies(name, "bfloat16")
    islands = {kind for kind, body in by_kind.items() if precision(body.primitives, body.values, "bfloat16") == "float32"}
    always = {"update", "data", "multistep", "final", "time"}
    assert islands == {*always, "attn_fp32", *(["condition"] if name == "dit" else ["label"])}


def test_sums_alone_are_no_island():
    gate, total = Primitive("mul", (), ("g", "v"), ("p",)), Primitive("add", (), ("h", "p"), ("s",))
    values = infer([gate, total], {"g": F32("R", 1, 8), "v": F32("R", 4, 8), "h": F32("R", 4, 8)})
    assert precision([gate, total], values, "bfloat16") == "bfloat16"


# what no family of ours uses, against its formula


def test_rms_norm_is_its_formula():
    x, w = np.random.default_rng(0).standard_normal((2, 3, 8)), np.random.default_rng(1).standard_normal(8)
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w
    result = primitives.rms_norm(torch.from_numpy(x).float(), torch.from_numpy(w).float(), eps=1e-5)
    assert np.abs(result.numpy() - want).max() < 1e-6


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5))
def test_rotary_positions_turn_pairs_by_the_distance_of_tokens(heads, half, tokens):
    x = np.random.default_rng(0).standard_normal((2, tokens, heads * 2 * half))
    result = primitives.rope(torch.from_numpy(x), heads=heads, theta=100.0).numpy().reshape(2, tokens, heads, 2, half)
    pairs = x.reshape(2, tokens, heads, 2, half)
    turned = pairs[..., 0, :] + 1j * pairs[..., 1, :]
    angles = np.arange(tokens)[:, None] * 100.0 ** (-np.arange(half) / half)
    turned = turned * np.exp(1j * angles)[None, :, None, :]
    assert np.allclose(result[..., 0, :] + 1j * result[..., 1, :], turned, atol=1e-5)


def test_gelu_is_the_exact_one():
    x = np.linspace(-3, 3, 13)
    want = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    assert np.allclose(primitives.gelu(torch.from_numpy(x)).numpy(), want)


def test_flops_of_other_products_are_those_that_pytorch_counts():
    q, x, kernel = F32("R", 4, 8), F32("R", 4, 6, 5), F32(4, 1, 3, 3)
    for op, inputs, attributes in [
        ("linear_attention", [q, q, q], (("heads", 2),)),
        ("depthwise", [x, kernel], (("padding", 1),)),
    ]:
        names = [f"i{n}" for n in range(len(inputs))]
        body = [Primitive(op, attributes, tuple(names), ("made",))]
        values = infer(body, dict(zip(names, inputs, strict=True)))
        with FlopCounterMode(display=False) as counter:
            execute(body, {n: empty(v) for n, v in zip(names, inputs, strict=True)})
        assert flops(body, values) * SIZES["R"] == counter.get_total_flops(), op
