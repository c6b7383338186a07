"""Fused operators compute what the plain ones compute, in every operation that holds one of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import case

from l2c_export.artefact import store
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import FUSED
from l2c_export.compiler.compile import compile_artefact, lower
from l2c_export.compiler.onnx.export import export
from l2c_export.compiler.onnx.fuse import fused, fused_bodies
from l2c_export.compiler.source import resolve

FAMILIES = pytest.mark.parametrize("name", ["dit_tiny_lowvar", "uvit_tiny_variant"])


def kinds(model):
    return [node.op_type for node in model.graph.node]


def bodies(name, **options):
    chosen = case(name).options(None, **options)
    return lower(chosen, resolve(chosen)).whole.bodies


@FAMILIES
def test_every_attention_and_tanh_gelu_is_fused_and_computes_the_same(name):
    ort = pytest.importorskip("onnxruntime")
    threads = open_backend("onnxruntime").backend._options()  # the process has one pool of them
    rng, fusions = np.random.default_rng(0), set()
    for body in [body for kind, body in bodies(name).items() if kind in ("attn", "mlp")]:
        if name.startswith("uvit") and body.kind == "mlp":  # its GELU is the exact one
            continue
        plain, second = export(body), fused(body)
        assert not {"Softmax", "Sigmoid"} & set(kinds(second))
        plain_ops, second_ops = ([kind for kind in kinds(model) if kind != "Constant"] for model in (plain, second))
        assert len(second_ops) < len(plain_ops)
        fusions |= set(kinds(second)) & {"MultiHeadAttention", "FastGelu"}
        inputs = {}
        for port in plain.graph.input:
            sizes = [d.dim_value or 2 for d in port.type.tensor_type.shape.dim]
            inputs[port.name] = rng.standard_normal(sizes, np.float32)
        want, got = (ort.InferenceSession(m.SerializeToString(), threads).run(None, inputs) for m in (plain, second))
        for a, b in zip(want, got, strict=True):
            assert np.abs(a - b).max() < 1e-5 * max(1.0, np.abs(a).max()), body.kind
    assert fusions == ({"MultiHeadAttention", "FastGelu"} if name.startswith("dit") else {"MultiHeadAttention"})


@FAMILIES
def test_only_what_computes_in_half_precision_has_a_second_form(name):
    wanted = {"attn", "mlp"} if name.startswith("dit") else {"attn"}
    block = "blocks.1" if name.startswith("dit") else "mid_block"
    half = bodies(name, precision="fp16", fp32=(f"{block}.attn",))
    assert {"attn", "attn_fp32"} <= set(half)
    assert set(fused_bodies(half, "float16")) == wanted
    assert not fused_bodies(bodies(name, precision="bf16"), "bfloat16")
    assert not fused_bodies(bodies(name), "float32")


@pytest.mark.parametrize(("name", "fp32"), [("dit_tiny_lowvar", "blocks.1.attn"), ("uvit_tiny_variant", "")])
def test_half_precision_segments_have_a_fused_form_beside_them(name, fp32, tmp_path):
    compile_artefact(case(name).options(tmp_path / "e", precision="fp16", fp32=(fp32,) if fp32 else ()))
    manifest = store.read(tmp_path / "e")  # which knows their hashes
    segments = manifest.denoiser.segments
    second = {n.removesuffix(FUSED).removeprefix("segments/") for n in manifest.files if n.endswith(FUSED)}
    fusible = {n: {p.op for p in s.primitives} & {"sdpa", "gelu_tanh"} for n, s in segments.items()}
    assert second == {n for n, s in segments.items() if fusible[n] and s.precision == "float16"}
    assert {s.precision for n, s in segments.items() if s.kind == "attn"} == ({"float16", "float32"} if fp32 else {"float16"})
    for segment_name in second:
        model = onnx.load(tmp_path / "e" / "segments" / f"{segment_name}{FUSED}")
        assert [i.name for i in model.graph.input] == list(segments[segment_name].inputs)
        assert [o.name for o in model.graph.output] == list(segments[segment_name].outputs)
