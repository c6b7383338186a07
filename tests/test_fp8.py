"""Artefacts in fp8, from end to end, on an oracle: primitives in PyTorch, one by one."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from helpers import case
from in_pytorch import IN_PYTORCH

import l2c_export
from l2c_export.artefact import check, store
from l2c_export.artefact.products import input_scales
from l2c_export.backends import descriptors
from l2c_export.compiler import link
from l2c_export.compiler.compile import compile_artefact
from l2c_export.errors import BackendError, MissingExtra, UsageError
from l2c_export.ir.dtypes import E4M3
from l2c_export.verification.error import TOLERANCE
from l2c_export.weights import e4m3
from l2c_export.weights.layout import WEIGHTS, mapped

CASE = "dit_tiny_odd_resetN"


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, own_cache):
    folder = tmp_path_factory.mktemp("fp8") / "engines"
    compile_artefact(case(CASE).options(folder, precision="fp8", backend="cuda"))
    return folder


@pytest.fixture
def oracle(monkeypatch):
    monkeypatch.setattr(descriptors, "BACKENDS", (*descriptors.BACKENDS, IN_PYTORCH))
    return IN_PYTORCH.name


def numbers(folder):
    tensors = store.read(folder).denoiser.tensors
    view = mapped(folder / WEIGHTS, tensors)
    return {name: np.array(view(name)) for name in tensors}


@pytest.mark.parametrize("link", ["shared", "static"])
def test_every_call_is_within_its_tolerance_and_not_within_that_of_bf16(link, narrow, oracle):
    pipe = l2c_export.load(narrow, backend=oracle, link=link)
    verdict = l2c_export.verify(pipe, golden=case(CASE).path)
    worst = max(call.fed.relative for call in verdict.calls)
    assert verdict.passed
    assert (verdict.atol, verdict.rtol) == (TOLERANCE["fp8"],) * 2
    assert TOLERANCE["bf16"] < worst < TOLERANCE["fp8"] / 2
    assert l2c_export.check(pipe).passed


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "tensorrt"])
def test_other_backends_refuse_it_by_name(name, narrow):
    with pytest.raises(BackendError, match=f"^{name}: it has no fp8: use backend='cuda' or compile with precision='bf16'"):
        l2c_export.load(narrow, backend=name)


def test_what_nothing_here_runs_is_refused_by_every_name(narrow):
    with pytest.raises(BackendError, match=r"no backend can run this: .*onnxruntime: it has no fp8"):
        l2c_export.load(narrow, backend="auto", device="cpu")


@pytest.mark.parametrize(("backend", "targets", "says"), [
    ("cuda", ("sm80", "sm90"), "targets='sm80': fp8 needs sm89 or newer"),
    ("tensorrt-rtx", ("sm86", "sm89"), "targets='sm86': fp8 needs sm89 or newer"),
])  # fmt: skip
def test_gpus_without_it_are_refused_by_name(backend, targets, says, narrow):
    if backend != "cuda":
        pytest.importorskip("tensorrt_rtx")
    with pytest.raises(UsageError, match=says):
        l2c_export.build(narrow, backend, targets=targets)


def test_large_products_are_e4m3_and_all_else_is_not(narrow):
    arrays = numbers(narrow)
    narrowed = {name for name, value in arrays.items() if str(value.dtype) == E4M3}
    kinds = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = {name.split(".")[1] for name in arrays if name.startswith("blocks.")}
    assert narrowed == {f"blocks.{n}.{kind}.weight" for n in blocks for kind in kinds}
    assert input_scales(store.read(narrow)) == {name: e4m3.input_scale(name) for name in narrowed}
    for name in narrowed:
        assert 224 <= np.abs(arrays[name].astype(np.float32)).max() <= e4m3.MOST
        for scale in (arrays[e4m3.weight_scale(name)], arrays[e4m3.input_scale(name)]):
            assert scale[0] * scale[1] == 1
            assert np.log2(scale[0]) % 1 == 0


def test_a_manifest_that_says_something_else_is_refused(narrow):
    manifest = store.read(narrow)
    name = next(name for name, tensor in manifest.denoiser.tensors.items() if tensor.dtype == E4M3)
    own = manifest.denoiser.tensors

    def problem(tensors, **changes):
        denoiser = msgspec.structs.replace(manifest.denoiser, tensors=tensors)
        return check.problem(msgspec.structs.replace(manifest, denoiser=denoiser, **changes))

    def changed(tensor, **changes):
        return {**own, tensor: msgspec.structs.replace(own[tensor], **changes)}

    scale = e4m3.weight_scale(name)
    sizes = {"size": manifest.files[WEIGHTS]}
    assert problem(own) is None
    for tensors in (
        changed(scale, scale=msgspec.UNSET), changed(scale, scale="input"), changed(scale, dtype="bfloat16"),
        changed(scale, shape=(1,)), changed(name, stored="int8"), changed(name, shape=(*own[name].shape, 1)),
        changed(name, dtype="bfloat16"), {n: t for n, t in own.items() if n != scale},
        {**own, "pos_embed.scale": own[scale]}, changed("pos_embed", dtype=E4M3),
    ):  # fmt: skip
        assert problem(tensors), sizes
    assert "is float8_e4m3fn, which it cannot be" in problem(own, precision="bf16")


def test_linking_other_weights_calibrates_again(narrow, tmp_path):
    options = case(CASE).options(tmp_path / "fresh", precision="fp8", backend="cuda", weights="random:5")
    compile_artefact(options)
    compile_artefact(case(CASE).options(tmp_path / "linked", precision="fp8", backend="cuda"))
    l2c_export.link(tmp_path / "linked", weights="random:5")
    assert (tmp_path / "fresh" / WEIGHTS).read_bytes() == (tmp_path / "linked" / WEIGHTS).read_bytes()
    before, after = numbers(narrow), numbers(tmp_path / "linked")
    assert any(before[name][0] != after[name][0] for name in before if name.endswith(".input.scale"))


def test_linking_without_pytorch_is_refused_before_anything_is_written(narrow, monkeypatch):
    def missing(library, extra):
        raise MissingExtra(f"needs {library}", extra)

    monkeypatch.setattr(link, "needs", missing)
    before = (narrow / WEIGHTS).stat().st_mtime_ns
    with pytest.raises(MissingExtra, match="needs torch"):
        l2c_export.link(narrow, weights="random:5")
    assert (narrow / WEIGHTS).stat().st_mtime_ns == before


def test_a_sublayer_may_stay_in_bf16(oracle, tmp_path):
    manifest = compile_artefact(case(CASE).options(tmp_path / "e", precision="fp8", backend="cuda", bf16=("blocks.0.mlp",)))
    kinds = {name: tensor.dtype for name, tensor in manifest.denoiser.tensors.items() if name.startswith("blocks.")}
    assert kinds["blocks.0.mlp.fc1.weight"] == "bfloat16"
    assert "blocks.0.mlp.fc1.weight.scale" not in kinds
    assert kinds["blocks.0.attn.qkv.weight"] == kinds["blocks.1.mlp.fc1.weight"] == E4M3
    assert l2c_export.verify(l2c_export.load(tmp_path / "e", backend=oracle), golden=case(CASE).path).passed


@pytest.mark.parametrize(("asked", "says"), [
    ({"precision": "bf16", "bf16": ("blocks.0.mlp",)}, "bf16='blocks.0.mlp': none of the model is e4m3"),
    ({"precision": "fp8", "bf16": ("blocks.99.mlp",)}, "bf16='blocks.99.mlp': no sublayer of the model"),
    ({"precision": "fp8", "backend": "openvino"}, "precision='fp8': backend='openvino' has none"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_it_is_compiled(asked, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        compile_artefact(case(CASE).options(tmp_path / "e", **asked))
