"""What a manifest says that a segment computes is what its file computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from helpers import case

from l2c_export.artefact import store
from l2c_export.backends.choose import open_backend
from l2c_export.compiler.compile import compile_artefact, lower
from l2c_export.compiler.passes.flatten import flatten
from l2c_export.compiler.source import resolve
from l2c_export.models.primitives import execute

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs_of(model, rng):
    """Numbers for every input; indices and times are what they are in a loop."""
    values = {}
    for port in model.graph.input:
        shape = [d.dim_value or 2 for d in port.type.tensor_type.shape.dim]
        whole = port.type.tensor_type.elem_type == onnx.TensorProto.INT32
        values[port.name] = rng.integers(0, 2, shape).astype(np.int32) if whole else rng.standard_normal(shape, np.float32)
    return values


@pytest.mark.parametrize("name", ["dit_tiny_lowvar", "uvit_tiny_variant"])
def test_a_segments_primitives_compute_what_its_file_does(name, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    threads = open_backend("onnxruntime").backend._options()  # the process has one pool of them
    compile_artefact(case(name).options(tmp_path / "e"))
    segments, rng = store.read(tmp_path / "e").denoiser.segments, np.random.default_rng(0)
    for segment in segments.values():
        file = tmp_path / "e" / segment.file
        inputs = inputs_of(onnx.load(file), rng)
        want = ort.InferenceSession(file.read_bytes(), threads).run(list(segment.outputs), inputs)
        outputs = execute(segment.primitives, {n: torch.from_numpy(v) for n, v in inputs.items()})
        for output, value in zip(segment.outputs, want, strict=True):
            assert np.abs(outputs[output].numpy() - value).max() < 2e-5 * max(1, np.abs(value).max()), segment.file
    assert {segment.kind for segment in segments.values()} >= {"attn", "mlp", "embed", "final", "update", "sum", "time"}


def test_a_segment_says_its_kind_and_what_it_is_computed_in():
    options = case("dit_tiny_odd_resetN").options(None, precision="fp16", fp32=("blocks.1.attn",))
    result = lower(options, resolve(options))
    records = result.manifest.denoiser.segments
    said = {(record.kind, record.precision) for record in records.values()}
    halves = {("attn", "float16"), ("mlp", "float16"), ("embed", "float16"), ("modulation", "float16"), ("sum", "float16")}
    wide = {("attn", "float32"), ("final", "float32"), ("update", "float32"), ("time", "float32"), ("condition", "float32")}
    assert said == halves | wide
    for name, segment in result.linked.segments.items():
        flat = flatten(segment)
        assert flat.primitives == records[name].primitives
        assert [p.op for p in flat.primitives if p.op in ("add", "mul")] == [
            node.op.lower() for node in segment.nodes if node.op in ("Add", "Mul")
        ] + (["add"] if flat.kind in ("embed", "condition") else []), "residual arithmetic included"
