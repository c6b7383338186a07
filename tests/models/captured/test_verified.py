"""What `verify` says of captured models with other weights than those that it compares with: the sublayer, and its weights."""

from __future__ import annotations

import shutil

import pytest
from safetensors.numpy import load_file, save_file

import l2c_export

pytestmark = pytest.mark.usefixtures("one_thread")
FILE = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(("family", "tensor", "sublayer"), [
    ("flux", "transformer_blocks.1.attn.to_v.weight", "transformer_blocks.1.attn"),  # which makes two values
    ("pixart", "transformer_blocks.1.ff.net.2.weight", "transformer_blocks.1.ff"),
])  # fmt: skip
def test_the_first_wrong_value_is_named(family, tensor, sublayer, request, tmp_path):
    compiled = request.getfixturevalue(family)
    shutil.copytree(compiled.folder / "transformer", tmp_path / "transformer")
    tensors = load_file(tmp_path / FILE)
    tensors[tensor] += 0.3
    save_file(tensors, tmp_path / FILE)
    assert l2c_export.verify(compiled.out, backend="onnxruntime").passed
    verdict = l2c_export.verify(compiled.out, weights=tmp_path / FILE, backend="onnxruntime")
    assert (verdict.passed, verdict.place.call, verdict.place.sublayer) == (False, 0, sublayer)
    assert verdict.place.cause.startswith("what it reads is right: look at the engine or its weights (")
