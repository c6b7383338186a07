"""Half precision: how weights are rounded, what stays float32, and how close the latents stay to the recordings."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from helpers import case
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import l2c_export
from l2c_export.artefact import store
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request
from l2c_export.compiler.compile import compile_artefact
from l2c_export.errors import BackendError, WeightsError
from l2c_export.verification.error import TOLERANCE
from l2c_export.weights.layout import rounded

CASE = "dit_tiny_odd_resetN"
BACKEND = {"fp16": "onnxruntime", "bf16": "openvino"}
NAMES = {"fp16": "float16", "bf16": "bfloat16"}
HALF = list(NAMES)

# rounding


def as_floats(data, dtype):
    """The numbers in what `rounded` returns."""
    assert data.dtype == dtype
    return (
        np.left_shift(data.view(np.uint16).astype(np.uint32), 16).view(np.float32)
        if dtype == "bfloat16"
        else data.astype(np.float32)
    )


def by_torch(values, dtype):
    return torch.from_numpy(np.asarray(values, np.float32)).to(getattr(torch, dtype)).float().numpy()


SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    2.0**-126,
    2.0**-133,
    2.0**-149,
    -(2.0**-149),
    3.0e38,
    65504.0,
    6.1e-5,
    6e-8,
    1 / 3,
    1.00390625,
]


LARGEST = float(np.float32(3.38e38))  # that bf16 holds


@given(st.lists(st.floats(-LARGEST, LARGEST, width=32), max_size=40))
@example(SPECIAL)
def test_bf16_is_rounded_as_pytorch_does(values):
    result = as_floats(rounded("w", np.array(values, np.float32), "bfloat16"), "bfloat16")
    want = by_torch(values, "bfloat16")
    assert np.array_equal(result.view(np.uint32), want.view(np.uint32)), "to the bit, zeros and subnormals included"


@given(st.lists(st.floats(-65519, 65519, width=32), max_size=40))
@example([v for v in SPECIAL if abs(v) < 65519])
def test_fp16_is_rounded_as_pytorch_does(values):
    result = rounded("w", np.array(values, np.float32), "float16")
    assert result.dtype == np.float16
    assert np.array_equal(as_floats(result, "float16").view(np.uint32), by_torch(values, "float16").view(np.uint32))


@pytest.mark.parametrize(("value", "nearest"), [
    (1 + 2**-8, 1), (1 + 3 * 2**-8, 1 + 2**-6), (1 + 2**-8 + 2**-20, 1 + 2**-7), (1 + 2**-8 - 2**-20, 1),
    (-1 - 2**-8, -1), (-1 - 3 * 2**-8, -1 - 2**-6), (255.5, 256), (256.5, 256), (257, 256), (259, 260),
])  # fmt: skip
def test_a_tie_of_bf16_goes_to_the_even_neighbour(value, nearest):
    assert as_floats(rounded("w", np.array([value]), "bfloat16"), "bfloat16") == nearest


@pytest.mark.parametrize("dtype", ["float32", *NAMES.values()])
def test_rounding_keeps_the_shape_and_reads_any_layout(dtype):
    plain = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    for value in (plain, plain.T, plain[:, ::2], plain.astype(np.float64), plain[:0]):
        result = rounded("w", value, dtype)
        assert result.shape == value.shape
        assert np.array_equal(as_floats(result, dtype), by_torch(np.ascontiguousarray(value), dtype))


def test_what_fp16_cannot_hold_is_counted_and_named():
    with pytest.raises(WeightsError, match=r"2 values of blocks\.0\.w .*float16: use precision='bf16'"):
        rounded("blocks.0.w", np.array([1, 65520, -1e30, 65519]), "float16")
    assert rounded("w", np.array([65519.0, -65519.0]), "float16").tolist() == [65504, -65504]


@pytest.mark.parametrize("dtype", ["float32", *NAMES.values()])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_named_in_every_type(dtype, bad):
    with pytest.raises(WeightsError, match="1 value of w is NaN or infinite"):
        rounded("w", np.array([0, bad], np.float32), dtype)


def test_what_bf16_cannot_hold_is_named_too():
    with pytest.raises(WeightsError, match="1 value of w"):
        rounded("w", np.array([1, np.finfo(np.float32).max]), "bfloat16")


# artefacts


@pytest.fixture(scope="module")
def half(tmp_path_factory, own_cache):
    """Compiled artefacts by precision and link; compiled when first asked for."""
    folders = {}

    def compiled(precision, link="shared"):
        if (precision, link) not in folders:
            folder = tmp_path_factory.mktemp("half") / "engines"
            compile_artefact(case(CASE).options(folder, precision=precision, link=link))
            folders[precision, link] = folder
        return folders[precision, link]

    return compiled


def header_of(path):
    with open(path, "rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


@pytest.mark.parametrize("precision", HALF)
def test_the_weights_are_half_as_large_and_rounded_once(half, tiny, precision):
    path, full = half(precision) / "weights.safetensors", tiny[0] / "weights.safetensors"
    size = {p: max(entry["data_offsets"][1] for entry in header_of(p).values()) for p in (path, full)}
    assert 2 * size[path] == size[full]
    assert path.stat().st_size <= 0.51 * full.stat().st_size
    wide = load_file(case(CASE).path / "model.safetensors")
    with safe_open(path, "pt") as narrow:
        assert set(narrow.keys()) == set(wide)
        for name, value in wide.items():
            assert torch.equal(narrow.get_tensor(name), torch.from_numpy(value).to(getattr(torch, NAMES[precision])))


ALWAYS_WIDE = {"x", "base", "x.next", "t", "guidance", "coefficients", "final_layer.final"}  # the sampler and what leads to it
WHOLE = {"request.class_labels", "rows", "conditional", "unconditional"}


@pytest.mark.parametrize("precision", HALF)
def test_activations_are_narrow_and_the_sampler_is_float32(half, precision):
    manifest = store.read(half(precision))
    assert (manifest.precision, manifest.denoiser.weight_dtype) == (precision, NAMES[precision])
    types = {name: value.dtype for name, value in manifest.program().size.values.items()}
    assert {name for name, kind in types.items() if kind == "int32"} == WHOLE
    assert {types[name] for name in ALWAYS_WIDE} == {"float32"}
    others = {name: kind for name, kind in types.items() if name not in ALWAYS_WIDE | WHOLE}
    if precision == "fp16":
        assert set(others.values()) == {"float16"}
    else:  # the residual stream and what is added to it are float32 there: 8 bits would be most of the error
        narrow = {name for name, kind in others.items() if kind == "bfloat16"}
        assert narrow == {"t_embedder.time", "y_embedder.condition"}
        assert {kind for name, kind in others.items() if name not in narrow} == {"float32"}


def test_float32_sublayers_of_a_bf16_model_link_both_ways(tmp_path):
    """Their weights lie beside the others, which numpy holds as plain 16 bits."""
    chosen = case("dit_tiny_odd_resetN")
    compile_artefact(chosen.options(tmp_path / "e", precision="bf16", fp32=("blocks.1.mlp",), backend="openvino"))
    try:
        shared, static = (l2c_export.load(tmp_path / "e", link=link)([1], seed=3).latents for link in ("shared", "static"))
    except BackendError as error:
        pytest.skip(str(error))  # a processor without bf16
    assert np.abs(shared - static).max() <= 5e-2 * np.abs(shared).max()


@pytest.mark.parametrize("precision", HALF)
def test_the_cache_is_as_narrow_as_the_stream(half, tiny, precision):
    wide, narrow = store.read(tiny[0]).program().cache_bytes, store.read(half(precision)).program().cache_bytes
    assert [2 * size for size in narrow] == list(wide) if precision == "fp16" else narrow == wide


@pytest.mark.parametrize("precision", HALF)
def test_norms_softmax_final_layer_and_update_are_float32_islands(half, precision):
    """In the graphs themselves, so in every backend that does what they say."""
    seen = set()
    folder = half(precision)
    for path in sorted(folder / segment.file for segment in store.read(folder).denoiser.segments.values()):
        model, kind = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True), path.name.split(".")[0]
        values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
        types = {v.name: onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in values}
        for node in model.graph.node:
            first = types.get(node.input[0]) if node.input else None
            if node.op_type in ("LayerNormalization", "Softmax", "Cos", "Sin"):
                assert first == "FLOAT", (path.name, node.op_type)
                seen.add(node.op_type)
            elif node.op_type in ("Gemm", "MatMul"):
                wide = kind in ("final", "update")
                assert first == ("FLOAT" if wide else NAMES[precision].upper()), (path.name, node.op_type)
                seen.add(f"{node.op_type} of {'an island' if wide else 'the rest'}")
            elif kind == "update" and node.op_type in ("Add", "Mul", "Sub"):
                assert first == "FLOAT"
                seen.add("update")
    assert seen >= {"LayerNormalization", "Softmax", "Cos", "Sin", "Gemm of an island", "Gemm of the rest", "update",
                    "MatMul of the rest"}  # fmt: skip


def able(precision):
    try:
        open_backend(BACKEND[precision], Request(precision=precision))
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize("precision", HALF)
def test_every_call_that_is_fed_the_recorded_latents_makes_the_next_ones(half, precision, link):
    able(precision)
    golden, chosen = case(CASE).golden, case(CASE)
    pipe = l2c_export.load(half(precision, link), backend=BACKEND[precision])
    want, worst = golden["cached_x"][:, :2], 0.0
    for done in pipe.steps(golden["y"][:2], chosen.scale, golden["x_T"][:2]):
        error = np.abs(done.x - want[done.index]).max()
        worst = max(worst, error / np.abs(want[done.index]).max())
        assert error <= TOLERANCE[precision] * (1 + np.abs(want[done.index]).max()), done.index
        done.x[...] = want[done.index]
    assert worst > TOLERANCE["fp32"], "or this did not run in half precision"


@pytest.mark.parametrize("precision", HALF)
def test_a_whole_generation_stays_close_to_float32(half, tiny, precision):
    able(precision)
    wide = l2c_export.load(tiny[0], backend="onnxruntime")([1, 2], seed=3).latents
    narrow = l2c_export.load(half(precision), backend=BACKEND[precision])([1, 2], seed=3).latents
    assert narrow.dtype == np.float32
    assert np.corrcoef(narrow.ravel(), wide.ravel())[0, 1] > 0.999
    assert not np.array_equal(narrow, wide)


def test_a_backend_without_the_artefacts_precision_refuses_it(half):
    with pytest.raises(BackendError, match=r"bf16 is not supported.*backend='openvino'"):
        l2c_export.load(half("bf16"), backend="onnxruntime")


def test_weights_too_large_for_fp16_leave_no_artefact(tmp_path):
    tensors = load_file(case(CASE).path / "model.safetensors")
    tensors["blocks.1.attn.proj.bias"][3] = 7e4
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"1 value of blocks\.1\.attn\.proj\.bias .*float16"):
        compile_artefact(case(CASE).options(tmp_path / "e", precision="fp16", weights=str(tmp_path / "w.safetensors")))
    assert not (tmp_path / "e").exists()
