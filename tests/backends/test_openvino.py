"""What is special about OpenVINO."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from folders import GOLDEN
from helpers import OWN_CASES, Case, case
from recorded import TOLERANCE, latents

import l2c_export
from l2c_export.artefact import integrity, store
from l2c_export.artefact.records import FILE
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request, SegmentFile
from l2c_export.compiler.compile import compile_artefact
from l2c_export.errors import BackendError, L2CError

pytest.importorskip("openvino")


def test_islands_of_float32_are_computed_in_it_whatever_the_precision():
    backend = open_backend("openvino").backend
    backend._precision = "bf16"
    files = [SegmentFile(Path("s.onnx"), (), (), island=island) for island in (True, False)]
    assert [backend._settings(file)["INFERENCE_PRECISION_HINT"] for file in files] == ["f32", "bf16"]


def test_a_compiled_model_that_was_damaged_is_compiled_again(empty_cache):
    """OpenVINO itself would run it."""
    with l2c_export.load(GOLDEN, "openvino") as pipe:
        wanted = latents(pipe)
    entries = list((empty_cache / "engines").iterdir())
    for path in entries:
        data = bytearray(path.read_bytes())
        data[-len(data) // 3] ^= 1
        path.write_bytes(data)
    with l2c_export.load(GOLDEN, "openvino") as pipe:
        assert np.array_equal(latents(pipe), wanted)
    assert len(entries) == len(store.read(GOLDEN).denoiser.segments)


def test_a_library_that_does_not_load_is_one_line_and_no_end_for_auto(tiny, tmp_path, monkeypatch):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open\\nshared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "openvino" or name.startswith("l2c_export.backends.openvino")
    ]:
        monkeypatch.delitem(sys.modules, name)
    says = "openvino is installed, but does not load: libtbb.so.12: cannot open shared object file: mend it first"
    with pytest.raises(BackendError, match=says):
        open_backend("openvino")
    assert says in open_backend("auto", Request(device="cpu", precision="fp16")).why


@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize("name", sorted(p.name for p in OWN_CASES.iterdir()))
def test_openvino_equals_the_cached_reference(name, link, tmp_path):
    chosen: Case = case(name)
    compile_artefact(chosen.options(tmp_path / "e", link=link, backend="onnxruntime"))
    golden, n, seen = chosen.golden, chosen.config["batch"], []
    pipe = l2c_export.load(tmp_path / "e", backend="openvino")  # compiled for another backend: the files are the same
    pipe(
        class_labels=golden["y"].tolist()[:n],
        latents=golden["x_T"][:n],
        guidance_scale=chosen.scale,
        callback_on_step_end=lambda p, s, t, v: seen.append(v["latents"]),
    )
    want = golden["cached_x"][:, :n]
    assert np.abs(np.stack(seen) - want).max() < TOLERANCE * max(1, np.abs(want).max())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_openvino_refuses_what_the_processor_has_no_instructions_for(precision):
    import openvino

    if precision.upper() in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert open_backend("openvino", Request(precision=precision)).backend.name == "openvino"
    else:
        with pytest.raises(BackendError, match=f"no {precision}.*fp32"):
            open_backend("openvino", Request(precision=precision))


def test_openvino_keeps_compiled_segments_but_never_weights(tmp_path, monkeypatch):
    sizes = {}
    for link in ("shared", "static"):
        compile_artefact(case("dit_tiny_odd_resetN").options(tmp_path / link, link=link))
    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "cache"))
    for link in ("shared", "static"):
        before = set((tmp_path / "cache").glob("engines/*"))
        l2c_export.load(tmp_path / link, backend="openvino")
        sizes[link] = len(set((tmp_path / "cache").glob("engines/*")) - before)
    assert sizes["shared"] > 0
    assert sizes["static"] == 0


def test_openvino_works_where_the_cache_cannot_be_written(tmp_path, monkeypatch, tiny):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "file"))
    l2c_export.load(tiny[0], backend="openvino")(class_labels=[1])


def exchanged(folder, kinds, link):
    """What is said of an artefact with the file of one segment in place of another's, signed by who knows how."""
    shutil.copytree(GOLDEN, folder)
    raw = json.loads((folder / FILE).read_bytes())
    (one, name), (_, other) = (
        next((n, s["file"]) for n, s in raw["denoiser"]["segments"].items() if s["kind"] == kind) for kind in kinds
    )
    shutil.copyfile(GOLDEN / other, folder / name)
    raw["files"][name] = msgspec.to_builtins(integrity.info(folder / name))
    raw["checksum"] = store.checksum(raw)
    (folder / FILE).write_text(json.dumps(raw))
    with pytest.raises(L2CError) as refused, l2c_export.load(folder, "openvino", link=link) as pipe:
        latents(pipe)
    assert "\n" not in str(refused.value)
    return str(refused.value).replace(str(folder / name), "FILE").replace(one, "ONE")


@pytest.mark.parametrize("link", ["shared", "static"])
def test_a_segment_with_other_inputs_than_the_manifest_says_is_refused(link, tmp_path):
    says = (
        "FILE has the inputs i0, i1, i2, i3, i4, and not i0, i1, i2, i3, i4, i5, i6 as manifest.json says; run l2c-export again"
    )
    assert exchanged(tmp_path / "e", ("update", "final"), link) == says


def test_what_openvino_says_is_the_reason_and_not_the_place(tmp_path):
    shared, static = (exchanged(tmp_path / link, ("attn", "mlp"), link) for link in ("shared", "static"))
    assert " cannot run FILE: Can't set the input tensor with index: 3, because " in shared
    assert "step-000.onnx: Incompatible MatMul matrix dimension. " in static
