"""Which backend is opened where nobody names one, and what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import l2c_export
from l2c_export.artefact.records import Build
from l2c_export.backends import choose, doctor
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request
from l2c_export.backends.descriptor import Descriptor
from l2c_export.errors import BackendError, MissingExtra


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_auto_takes_a_backend_that_has_the_precision_or_says_why_none_has(precision):
    openvino = pytest.importorskip("openvino")

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.upper() in able:
        assert open_backend("auto", Request(precision=precision)).backend.name == "openvino"
    elif precision == "fp16":
        opened = open_backend("auto", Request(precision=precision))
        assert opened.backend.name == "onnxruntime"
        assert "openvino: this CPU has no fp16" in opened.why
    else:
        with pytest.raises(BackendError, match=rf"openvino: .*no {precision}.*onnxruntime: "):
            open_backend("auto", Request(precision=precision))


def test_auto_takes_the_first_that_works_and_says_why_not_the_others(monkeypatch, tiny):
    pytest.importorskip("onnxruntime")
    real = Descriptor.open

    def without_openvino(self, request):
        if self.name == "openvino":
            raise MissingExtra(self.library, self.extra)
        return real(self, request)

    monkeypatch.setattr(Descriptor, "open", without_openvino)
    opened = open_backend("auto", Request(precision="fp16"))
    assert opened.backend.name == "onnxruntime"
    assert "openvino is not installed: pip install 'l2c-export[openvino]'" in opened.why
    with pytest.raises(MissingExtra, match="openvino"):
        l2c_export.load(tiny[0], backend="openvino")
    assert [f.works for f in doctor.doctor() if f.name in ("openvino", "onnxruntime")] == [False, True]


def test_auto_tries_no_gpu_where_a_cpu_was_asked_for(tiny):
    build = Build(backend="tensorrt", version="10.3.0", targets=("sm90",), images=(1, 1, 1), level=None,
                  version_compatible=False, hardware_compatible=False, engines={})  # fmt: skip
    assert "tensorrt" in open_backend("auto", Request(folder=tiny[0], builds=(build,))).why
    assert "tensorrt" not in open_backend("auto", Request(device="cpu", folder=tiny[0], builds=(build,))).why


def test_auto_prefers_onnx_runtime_in_float32_on_a_cpu(tiny):
    pytest.importorskip("onnxruntime")
    assert open_backend("auto").backend.name == "onnxruntime"
    assert "the first that works" in l2c_export.load(tiny[0], backend="auto").backend


def test_what_is_onnx_alone_goes_to_a_backend_that_reads_it():
    pytest.importorskip("onnxruntime")
    assert choose.reading_onnx(SimpleNamespace(name="cuda")).name in ("onnxruntime", "openvino")
    other = SimpleNamespace(name="onnxruntime")
    assert choose.reading_onnx(other) is other


def test_what_is_onnx_alone_has_the_threads_of_its_pipeline(monkeypatch):
    asked = []
    monkeypatch.setattr(choose, "_fastest", lambda request: asked.append(request) or SimpleNamespace(backend="another"))
    assert choose.reading_onnx(SimpleNamespace(name="cuda"), 1) == "another"
    assert asked == [Request(threads=1, onnx_alone=True)]


def test_auto_leaves_what_is_onnx_alone_to_others(monkeypatch):
    monkeypatch.setattr(choose, "version", lambda package: "1.0")
    tried = [name for name, _ in choose._candidates(Request(onnx_alone=True))]
    assert "cuda" not in tried
    assert tried.index("onnxruntime") == 0
    assert [name for name, _ in choose._candidates(Request())][:2] == ["cuda", "onnxruntime"]
