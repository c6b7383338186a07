"""Every primitive as ONNX writes it computes what it computes in PyTorch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from l2c_export.backends.choose import open_backend
from l2c_export.compiler.onnx.export import export
from l2c_export.compiler.onnx.operators import RULES
from l2c_export.ir.graph import Body, Primitive, Value
from l2c_export.ir.primitives import apply
from l2c_export.ir.signatures import TABLE
from l2c_export.models.primitives import PRIMITIVES, execute

SIZES = {"R": 3, "B": 2}
IN_E4M3 = {"quantise", "linear_fp8"}  # which ONNX Runtime has no products for: tried in test_fp8.py
ROWS, PLANE = Value(("R",), dtype="int32"), Value(("B", 4, 8, 8))
IMAGES = Value(("B",), dtype="int32")
GUIDED = (Value(("R", 8, 8, 8)), PLANE)  # a prediction of more channels, and the latents


def of(*shape, dtype="float32"):
    return Value(shape, dtype)


X, HALF, SHIFT = of("R", 5, 12), of("R", 5, 12, dtype="float16"), of("R", 1, 12)
WIDE, NARROW = of(12), of(12, dtype="float16")
CASES = [
    ("add", {}, X, HALF), ("add", {}, X, WIDE), ("mul", {}, X, SHIFT), ("cast", {"dtype": "float16"}, X),
    ("cast", {"dtype": "float32"}, ROWS), ("affine", {"scale": 2.0, "shift": 1.0}, X),
    ("affine", {"scale": 0.5, "shift": 0.0}, HALF), ("affine", {"scale": 1.0, "shift": 0.0}, X),
    ("affine", {"scale": 1.0, "shift": -3.0}, X), ("gelu", {}, X), ("gelu", {}, HALF), ("gelu_tanh", {}, X),
    ("gelu_tanh", {}, HALF), ("silu", {}, HALF), ("relu", {}, HALF), ("modulate", {}, X, SHIFT, SHIFT),
    ("modulate", {}, HALF, of("R", 1, 12, dtype="float16"), SHIFT), ("layer_norm", {"eps": 1e-6}, X),
    ("layer_norm", {"eps": 1e-6}, HALF), ("layer_norm", {"eps": 1e-6}, HALF, NARROW, NARROW),
    ("layer_norm", {"eps": 1e-2}, X, WIDE), ("rms_norm", {"eps": 1e-2}, X), ("rms_norm", {"eps": 1e-6}, HALF, NARROW),
    ("linear", {"parts": 1}, X, of(7, 12), of(7)),
    ("linear", {"parts": 3}, X, of(21, 12, dtype="float16"), of(21, dtype="float16")),
    ("linear", {"parts": 1}, of("R", 12), of(8, 12)), ("linear", {"parts": 1}, X, of(8, 3, 2, 2)),
    ("linear", {"parts": 2}, of("R", 5, 4, 12), of(8, 12)), ("linear", {"parts": 2}, of("R", 12), of(8, 12)),
    ("sdpa", {"heads": 3}, X, X, X), ("sdpa", {"heads": 3}, HALF, HALF, HALF),
    ("sdpa", {"heads": 3}, HALF, HALF, HALF, of("R", 1, 1, 5)),
    ("sdpa", {"heads": 2}, X, of("R", 7, 12), of("R", 7, 12), of(1, 2, 5, 7)),
    ("linear_attention", {"heads": 3}, X, of("R", 5, 12), of("R", 5, 12)),
    ("linear_attention", {"heads": 3}, HALF, HALF, HALF), ("depthwise", {"padding": 1}, PLANE, of(4, 1, 3, 3), of(4)),
    ("conv2d", {"padding": 0}, PLANE, of(6, 4, 3, 1)), ("sinusoid", {"half": 4, "shift": 1}, of("R")),
    ("rope", {"heads": 3, "theta": 100.0}, HALF), ("patchify", {"patch": 2}, of("R", 4, 8, 6)),
    ("unpatchify", {"patch": 2, "channels": 4, "height": 8, "width": 6}, of("R", 12, 16)),
    ("gather", {}, of("B", 4, 8), ROWS), ("gather", {}, of(9, 12), of("R", 5, dtype="int32")),
    ("concat", {"axis": 1}, X, SHIFT), ("unsqueeze", {"axis": 1}, of("R", 12)), ("reshape", {"shape": (-1, 60)}, X),
    ("reshape", {"shape": (24,)}, of(4, 6)), ("permute", {"axes": (0, 2, 1)}, X),
    ("part", {"axis": 1, "first": 1, "last": 3}, X), ("tail", {"start": 2}, X),
    ("update", {}, *GUIDED, PLANE, IMAGES, IMAGES, of("B", 4, 1, 1), of(3)),
    ("data", {}, *GUIDED, IMAGES, IMAGES, of("B", 4, 1, 1), of(6)),
    ("update", {}, *[of("R", 4, 8, 8), PLANE], PLANE, IMAGES, IMAGES, of("B", 4, 1, 1), of(3)),
    ("multistep", {}, PLANE, PLANE, PLANE, of(5)),
    ("bank", {"gated": (1, 0, 1)}, of(4, 2), X, X, HALF, *[of(2, "R", 1, 12)] * 2, of(4), of("R", 12, 4, 5)),
    ("bank", {"gated": (0,) * 40}, of(4, 2), *[X] * 40),
    ("banked", {"dtype": "float16"}, of("R", 12, 4, 5), of(1, dtype="int32")),
]  # fmt: skip


def body_of(op, attributes, values):
    inputs = {f"a{n}": value for n, value in enumerate(values)}
    outputs = tuple(f"r{n}" for n in range(attributes.get("parts", 1)))
    primitive = Primitive(op, tuple(attributes.items()), tuple(inputs), outputs)
    types = dict(zip(outputs, apply(primitive, inputs), strict=True))
    return Body(op, tuple(inputs), outputs, (primitive,), {**inputs, **types})


def numbers(value, generator):
    shape = [SIZES.get(n, n) for n in value.shape]
    if value.dtype == "int32":
        return generator.integers(0, 2, shape).astype(np.int32)
    return generator.standard_normal(shape).astype(value.dtype)


@pytest.mark.parametrize(("op", "attributes", "values"), [(op, attributes, values) for op, attributes, *values in CASES])
def test_onnx_and_pytorch_agree(op, attributes, values):
    ort = pytest.importorskip("onnxruntime")
    body, generator = body_of(op, attributes, values), np.random.default_rng(0)
    arrays = [numbers(value, generator) for value in values]
    want = execute(body.primitives, dict(zip(body.inputs, map(torch.from_numpy, arrays), strict=True)))
    threads = open_backend("onnxruntime").backend._options()  # the process has one pool of them
    session = ort.InferenceSession(export(body).SerializeToString(), threads)
    outputs = session.run(None, {f"i{n}": array for n, array in enumerate(arrays)})
    close = 5e-3 if any("16" in value.dtype for value in body.values.values()) else 1e-5
    for name, got in zip(body.outputs, outputs, strict=True):
        wanted, value = want[name].numpy(), body.values[name]
        assert (got.dtype, got.shape) == (np.dtype(value.dtype), wanted.shape)
        assert np.abs(got.astype(float) - wanted.astype(float)).max() < close * max(1, np.abs(wanted).max())


def test_every_primitive_has_a_rule_and_is_tried():
    assert TABLE.keys() == RULES.keys() == PRIMITIVES.keys() == {op for op, *_ in CASES} | IN_E4M3


def test_the_numbers_of_an_operation_are_there_once_and_in_its_type():
    model = export(body_of("gelu_tanh", {}, [Value(("R", 4), "bfloat16")]))
    assert {constant.data_type for constant in model.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    assert len(model.graph.initializer) == 3
    body = body_of("sdpa", {"heads": 3}, [X, X, X])
    shapes = [i for i in export(body).graph.initializer if i.data_type == onnx.TensorProto.INT64]
    assert len(shapes) == 2, "one shape for queries, keys and values, and that of the result"
