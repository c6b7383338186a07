"""Fused operators compute what the plain ones compute, and are found wherever they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import case

from l2c_export.artefact import store
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import FUSED
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.onnx.fuse import fuse

FAMILIES = pytest.mark.parametrize("name", ["dit_tiny_lowvar", "uvit_tiny_variant"])


def kinds(model):
    return [node.op_type for node in model.graph.node]


@FAMILIES
def test_every_attention_and_tanh_gelu_is_fused_and_computes_the_same(name, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    threads = open_backend("onnxruntime").backend._options()  # the process has one pool of them
    compile_artefact(case(name).options(tmp_path / "e"))
    rng, found = np.random.default_rng(0), set()
    for path in sorted((tmp_path / "e" / "segments").glob("*.onnx")):
        plain = onnx.load(path)
        second = fuse(plain)
        assert (second is not None) == path.name.startswith(("attn", "mlp") if name.startswith("dit") else "attn"), path.name
        if second is None:
            continue
        assert not {"Softmax", "Sigmoid"} & set(kinds(second))
        assert len(kinds(second)) < len(kinds(plain))
        found |= set(kinds(second)) & {"MultiHeadAttention", "FastGelu"}
        inputs = {}
        for given in plain.graph.input:
            sizes = [d.dim_value or 2 for d in given.type.tensor_type.shape.dim]
            inputs[given.name] = rng.standard_normal(sizes, np.float32)
        want, got = (ort.InferenceSession(m.SerializeToString(), threads).run(None, inputs) for m in (plain, second))
        for a, b in zip(want, got, strict=True):
            assert np.abs(a - b).max() < 1e-5 * max(1.0, np.abs(a).max()), path.name
    assert found == ({"MultiHeadAttention", "FastGelu"} if name.startswith("dit") else {"MultiHeadAttention"})


@FAMILIES
@pytest.mark.parametrize(("precision", "fp32"), [("fp32", ()), ("bf16", ()), ("fp16", ()), ("fp16", "attn")])
def test_half_precision_segments_have_a_fused_form_beside_them(name, precision, fp32, tmp_path):
    block = "blocks.1" if name.startswith("dit") else "mid_block"
    kept = (f"{block}.{fp32}",) if fp32 else ()
    compile_artefact(case(name).options(tmp_path / "e", precision=precision, fp32=kept))
    manifest = store.read(tmp_path / "e")  # which knows their hashes
    second = {n.removesuffix(FUSED).removeprefix("segments/") for n in manifest.files if n.endswith(FUSED)}
    wanted = {
        n
        for n in manifest.denoiser.segments
        if n.startswith("attn" if "uvit" in name else ("attn", "mlp")) and "_fp32" not in n
    }
    assert second == (wanted if precision == "fp16" else set())
    for each in second:
        model = onnx.load(tmp_path / "e" / "segments" / f"{each}{FUSED}")
        assert [i.name for i in model.graph.input] == list(manifest.denoiser.segments[each].inputs)
        assert [o.name for o in model.graph.output] == list(manifest.denoiser.segments[each].outputs)


def test_what_only_looks_alike_is_left_alone():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N] x, float[N] y) => (float[N] z, float[N] w) {
        s = Sigmoid(x)  z = Mul(x, s)  p = Softmax(y)  w = Mul(p, p) }"""
    assert fuse(onnx.parser.parse_model(text)) is None
