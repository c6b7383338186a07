"""An artefact checks itself: right ones pass on every backend with both links, and what is wrong is noticed and named."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from helpers import case, compiled, faithful, needs_precision
from recorded import ROOT, asked

import l2c_export
from l2c_export.artefact import fingerprint, integrity, store
from l2c_export.artefact.records import FILE, FINGERPRINT
from l2c_export.compiler.link import bind
from l2c_export.errors import RunError, UsageError
from l2c_export.weights.layout import WEIGHTS, Layout

BACKENDS = tuple(name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name))


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny[0], tmp_path / "engines")


@pytest.fixture
def pieces_only(monkeypatch):
    """Every model is a large one."""
    monkeypatch.setattr(fingerprint, "MOST", 0)


def rehashed(folder, *names):
    """Let the manifest say that changed files are as they should be."""
    manifest = store.read(folder, verify=False)
    files = {**manifest.files, **{name: integrity.info(folder / name) for name in names}}
    record = msgspec.structs.replace(manifest.fingerprint, weights=files[WEIGHTS].sha256)
    store.write_json(folder / FILE, msgspec.structs.replace(manifest, files=files, fingerprint=record))


def damage_weights(folder, tensor="blocks.1.mlp.fc1.weight"):
    """Flip the highest bit of the exponent's lower half in a few numbers of a tensor: they are 16 times as large, or small."""
    manifest = store.read(folder)
    memory = np.fromfile(folder / WEIGHTS, np.uint8)
    layout = Layout(manifest.denoiser.tensors)
    layout.view(memory, tensor).reshape(-1)[5:9].view(np.uint32)[...] ^= 1 << 25
    (folder / WEIGHTS).write_bytes(memory.tobytes())
    rehashed(folder, WEIGHTS)


@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize("name", ["dit_tiny_odd_resetN", "dit_batch3_no_cfg", "uvit_tiny_oddnfe"])
def test_what_is_right_passes(link, name, tmp_path):
    folder = compiled(name, tmp_path / "e", link=link)
    for backend in BACKENDS:
        result = l2c_export.check(folder, backend=backend)
        assert result.passed, result.summary
        assert result.worst.share < 0.3
        assert result.summary.startswith("right: worst relative error ")
        assert "recorded by PyTorch 2" in result.summary


@pytest.mark.parametrize(("precision", "backend"), [("fp16", "onnxruntime"), ("bf16", "openvino")])
@pytest.mark.parametrize("link", ["shared", "static"])
def test_half_precision_has_its_own_tolerance(precision, backend, link, tmp_path):
    needs_precision(backend, precision)
    folder = compiled("dit_tiny_odd_resetN", tmp_path / "e", precision=precision, link=link)
    result = l2c_export.check(folder, backend=backend)
    assert result.passed, result.summary
    assert result.atol == {"fp16": 2e-2, "bf16": 5e-2}[precision]


@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize("name", ["dit_tiny_odd_resetN", "uvit_tiny_variant"])
def test_large_models_are_checked_in_pieces(name, link, tmp_path, pieces_only):
    folder = compiled(name, tmp_path / "e", link=link)
    manifest = store.read(folder)
    assert (manifest.fingerprint.calls, set(manifest.fingerprint.pieces)) == (0, set(manifest.denoiser.segments))
    for backend in BACKENDS:
        result = l2c_export.check(folder, backend=backend)
        assert result.passed, result.summary
        assert len(result.values) == sum(len(segment.outputs) for segment in manifest.denoiser.segments.values())


def test_every_operator_in_its_stated_type(tmp_path, pieces_only):
    """ONNX Runtime computes float16 in float32 on a CPU; onnx's own evaluator does not."""
    folder = compiled("dit_tiny_odd_resetN", tmp_path / "e", precision="fp16")
    assert l2c_export.check(faithful(folder)).passed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("link", ["shared", "static"])
def test_damaged_weights_with_a_repaired_hash_are_noticed(copy, backend, link):
    damage_weights(copy)
    result = l2c_export.check(l2c_export.load(copy, backend, link=link))
    assert not result.passed
    assert result.summary.startswith("wrong: call 0 (timestep 999) is off by ")


def test_damaged_weights_are_noticed_in_pieces(tmp_path, pieces_only):
    folder = compiled("dit_tiny_odd_resetN", tmp_path / "e")
    manifest = store.read(folder)
    (segment,) = [s for s in manifest.denoiser.segments if s.startswith("mlp-mul-add.")][:1]
    graph, name = msgspec.structs.astuple(manifest.fingerprint.pieces[segment])
    node = next(node for node in manifest.program().graphs[graph].nodes if node.name == name)
    damage_weights(folder, next(i for i in node.inputs if i.endswith("fc1.weight")))
    result = l2c_export.check(folder, backend="onnxruntime")
    assert not result.passed
    assert result.summary.startswith("wrong: output 0 of segment mlp-mul-add.")


def test_wrong_segments_are_noticed_whichever_they_are(tiny, tmp_path):
    """One at a time does something else; calls or pieces run them all."""
    import onnx

    manifest = store.read(tiny[0])
    for segment, record in manifest.denoiser.segments.items():
        folder = shutil.copytree(tiny[0], tmp_path / segment)
        model = onnx.load(folder / record.file)
        spoil(model, record.outputs[0])
        onnx.save(model, folder / record.file)
        rehashed(folder, record.file)
        result = l2c_export.check(folder, backend="onnxruntime")
        assert not result.passed, segment
        assert segment not in manifest.fingerprint.pieces or segment in result.summary


def spoil(model, output):
    """An output of the model is 1 % larger."""
    import onnx

    (node,) = [node for node in model.graph.node if output in node.output]
    kind = next(o.type.tensor_type.elem_type for o in model.graph.output if o.name == output)
    node.output[list(node.output).index(output)] = "before"
    factor = onnx.helper.make_tensor("factor", kind, [], [1.01])
    model.graph.initializer.append(factor)
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], [output]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_backend_is_noticed(tiny, backend, monkeypatch):
    """It forgets what a call writes for the next one: the first call is right, the light one is not."""
    pipe = l2c_export.load(tiny[0], backend, link="shared")
    manifest, record = pipe.manifest, pipe.manifest.fingerprint
    loop = pipe.generation(asked([7]), manifest.guidance.scale, 1).loop
    last = loop.bound(record.filling)[-1]

    def forgetful():
        last.run()
        for slot in manifest.program().calls[record.filling].writes.values():
            loop.caches[slot][...] = 0

    loop.bound(record.filling)[-1] = last._replace(run=forgetful)
    result = l2c_export.check(pipe)
    assert [value.passed for value in result.values][: record.calls] == [n != record.light for n in range(record.calls)]
    assert result.summary.startswith(f"wrong: call {record.light} (light, timestep ")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite_is_said(tiny, number):
    pipe = l2c_export.load(tiny[0], "onnxruntime", link="shared")
    loop = pipe.generation(asked([7]), pipe.manifest.guidance.scale, 1).loop
    last = loop.bound(0)[-1]

    def overflowing():
        last.run()
        loop.array(0, "x.next")[...] = number

    loop.bound(0)[-1] = last._replace(run=overflowing)
    assert l2c_export.check(pipe).summary.startswith("wrong: call 0 (timestep 999) is NaN or infinite, not within ")


def test_less_may_be_allowed(tiny):
    result = l2c_export.check(tiny[0], backend="onnxruntime", atol=0, rtol=1e-9)
    assert not result.passed
    assert "not within atol 0 + rtol 1e-09, as are" in result.summary
    with pytest.raises(UsageError, match="rtol=-1: must be a number of at least 0"):
        l2c_export.check(tiny[0], rtol=-1)


# without a fingerprint, and with a new one


def test_other_weights_need_a_new_one(copy):
    bind(copy, "random:5")
    with pytest.raises(
        UsageError, match=r"it has no fingerprint: compile it again, or record .* l2c_export.check\(.*, record=True"
    ):
        l2c_export.check(copy)
    said = []
    result = l2c_export.check(copy, backend="onnxruntime", record=True, report=said.append)
    assert result.passed
    assert result.recorded_by.startswith("onnxruntime 1.")
    assert said == [f"recorded by {result.recorded_by}: what changes from now on shows, not whether it is right now"]
    assert store.read(copy).fingerprint.recorded_by == result.recorded_by
    assert all(l2c_export.check(copy, backend=backend).passed for backend in BACKENDS)
    damage_weights(copy)
    assert not l2c_export.check(copy, backend="onnxruntime").passed


@pytest.mark.parametrize("link", ["shared", "static"])
def test_what_is_recorded_again_is_what_pytorch_has_recorded(tmp_path, link):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link=link)
    before = fingerprint.read(folder, store.read(folder), store.read(folder).fingerprint)
    l2c_export.check(folder, record=True)
    after = fingerprint.read(folder, store.read(folder), store.read(folder).fingerprint)
    for a, b in zip(before.latents, after.latents, strict=True):
        assert np.abs(a - b).max() < 1e-4 * np.abs(a).max()  # these were not fed the recorded ones
    assert set(after.pieces) == (set(before.pieces) if link == "shared" else set())


def test_a_fingerprint_of_other_weights_is_none(copy):
    manifest = store.read(copy)
    record = msgspec.structs.replace(manifest.fingerprint, weights="0" * 64)
    store.write_json(copy / FILE, msgspec.structs.replace(manifest, fingerprint=record))
    with pytest.raises(UsageError, match="its fingerprint is of other weights: compile it again, or record "):
        l2c_export.check(copy)


def test_what_is_not_finite_is_no_fingerprint(copy):
    pipe = l2c_export.load(copy, "onnxruntime", link="shared")
    loop = pipe.generation(asked([7]), pipe.manifest.guidance.scale, 1).loop
    last = loop.bound(0)[-1]

    def overflowing():
        last.run()
        loop.array(0, "x.next")[...] = np.inf

    loop.bound(0)[-1] = last._replace(run=overflowing)
    with pytest.raises(RunError, match=r"onnxruntime 1\S* makes NaN or infinite values of it: that is no fingerprint"):
        l2c_export.check(pipe, record=True)
    assert store.read(copy) == pipe.manifest


def test_a_name_from_a_file_does_not_speak_to_the_terminal(copy):
    manifest = store.read(copy)
    record = msgspec.structs.replace(manifest.fingerprint, recorded_by="\x1b[2J\n")
    store.write_json(copy / FILE, msgspec.structs.replace(manifest, fingerprint=record))
    assert l2c_export.check(copy, backend="onnxruntime").summary.endswith(r"recorded by \x1b[2J\n")


def test_a_record_is_not_made_for_an_artefact_that_was_replaced(copy):
    pipe = l2c_export.load(copy, "onnxruntime")
    bind(copy, "random:5")
    with pytest.raises(l2c_export.ArtefactError, match="was replaced since it was loaded"):
        l2c_export.check(pipe, record=True)
    assert not (copy / FINGERPRINT).exists()


WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "diffusers", "transformers", "rich", "click", "matplotlib"):
    sys.modules[name] = None
import l2c_export
print(l2c_export.check(sys.argv[1], backend=sys.argv[2], record=len(sys.argv) > 3).passed)
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("record", [(), ("record",)])
def test_it_needs_neither_torch_nor_onnx(copy, backend, record):
    command = [sys.executable, "-c", WITHOUT, str(copy), backend, *record]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines() == ["True"], done.stderr


@pytest.mark.parametrize("scheduler", ["dpm3", "euler"])
def test_samplers_with_a_history_and_with_scaled_noise(worlds, scheduler):
    result = l2c_export.check(worlds[scheduler].compiled("every:2"), backend="onnxruntime")
    assert result.passed, result.summary
    assert len(result.values) > 1


def test_what_caches_nothing_has_one_call(tmp_path):
    result = l2c_export.check(compiled("dit_tiny_odd_resetN", tmp_path / "e", cache=False), backend="onnxruntime")
    assert result.passed
    assert [value.what for value in result.values] == ["call 0 (timestep 999)"]


def test_merged_calls_and_kept_sublayers(tmp_path):
    chosen = case("uvit_tiny_variant")
    assert l2c_export.check(compiled(chosen.path.name, tmp_path / "e", max_graphs=2), backend="onnxruntime").passed
    kept = compiled("dit_tiny_odd_resetN", tmp_path / "f", precision="fp16", fp32=("blocks.1.mlp",))
    assert l2c_export.check(kept, backend="onnxruntime").passed
