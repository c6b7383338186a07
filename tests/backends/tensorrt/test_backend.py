"""Engines of TensorRT are loaded and bound.

A GPU and its driver are stood in for; the library is the real one as far as it goes without them.
"""

from __future__ import annotations

import gc
import re
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import Mock, create_autospec

import msgspec
import pytest
from fake_cuda import Error, FakeCudart

import l2c_export
from l2c_export.artefact import manifest
from l2c_export.backends import builds
from l2c_export.backends.building import BuildSettings
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request, SegmentFile
from l2c_export.backends.cuda import device
from l2c_export.backends.descriptors import BACKENDS
from l2c_export.errors import ArtefactError, BackendError, MissingExtra, RunError, UsageError

trt = pytest.importorskip("tensorrt_rtx")


def test_of_several_builds_that_fit_the_newest_is_used(cudart, half, tmp_path):
    cudart.capability = 8, 6
    shutil.copytree(half, tmp_path / "e")
    for targets in (("sm86",), ("sm120", "sm86", "sm86"), ("sm86",)):
        manifest = builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=targets), batch="1:1:1")
        request = Request(folder=tmp_path / "e", builds=tuple(manifest.builds.values()), files=manifest.files)
        assert open_backend("tensorrt-rtx", request).backend._build.targets == tuple(sorted(set(targets), key=len))
    assert len(manifest.builds) == 2


def test_engines_are_not_linked_in_another_way_than_they_were_built(cudart, half, tmp_path, built):
    cudart.capability = 8, 6
    shutil.copytree(half, tmp_path / "e")
    builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    with pytest.raises(UsageError, match="link='static': the engines of tensorrt-rtx were built for link='shared'"):
        l2c_export.load(tmp_path / "e", "tensorrt-rtx", link="static")


CONTEXT_8 = ["device_memory", "set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"]


def a_build(backend="tensorrt-rtx", version=trt.__version__, targets=("sm90",)):
    return manifest.Build(backend=backend, version=version, targets=targets, images=(1, 1, 1), level=None,
                          version_compatible=False, hardware_compatible=False, engines={"s": "s.plan"})  # fmt: skip


def backend_for(folder, build=None, **options):
    return open_backend("tensorrt-rtx", Request(folder=folder, builds=(build or a_build(),), **options)).backend


@pytest.mark.parametrize(
    ("builds", "words"),
    [
        ((a_build(targets=("sm86", "sm120")),), rf"{trt.__version__} for sm86, sm120"),
        ((a_build(version="1.2.0"),), r"1\.2\.0 for sm90"),
        ((a_build(version="1.2.0"), a_build(targets=("sm75",))), rf"1\.2\.0 for sm90; {trt.__version__} for sm75"),
        ((a_build(backend="tensorrt"),), "no such engines"),
    ],
)
def test_engines_for_others_are_refused_with_both_sides_and_the_remedy(cudart, builds, words, tmp_path):
    remedy = f"run l2c_export.build({str(tmp_path)!r}, backend='tensorrt-rtx', targets='sm90')"
    with pytest.raises(
        BackendError, match=f"the artefact has {words}, needed are {trt.__version__} for sm90: {re.escape(remedy)}"
    ) as caught:
        open_backend("tensorrt-rtx", Request(folder=tmp_path, builds=builds))
    assert "\n" not in str(caught.value)


def test_a_plan_that_the_library_does_not_take_is_one_line(cudart, tmp_path):
    (tmp_path / "s.plan").write_bytes(b"an older format")
    backend = backend_for(tmp_path)
    with pytest.raises(
        ArtefactError, match=r"s\.plan cannot be read by tensorrt-rtx .*: run l2c_export.build.* targets='sm90'"
    ) as caught:
        backend.load(SegmentFile(tmp_path / "s.onnx", (), ()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "module"), [(descriptor.name, descriptor.library) for descriptor in BACKENDS if descriptor.builder]
)
def test_a_missing_library_is_named_with_its_extra(backend, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"{module} is not installed: pip install 'l2c-export\[{backend}\]'"):
        open_backend(backend)


def test_without_a_driver_there_is_one_line(monkeypatch, half):
    failing = FakeCudart(driver=0, failing={"cudaGetDeviceCount": Error.cudaErrorInsufficientDriver})
    monkeypatch.setattr(device, "needs", lambda package, extra: failing)
    for wish in (lambda: open_backend("tensorrt-rtx"), lambda: builds.build(half, "tensorrt", BuildSettings())):
        with pytest.raises(BackendError, match="no GPU and driver on this machine"):
            wish()


def test_the_engine_uses_what_the_real_bindings_have(cudart, tmp_path, monkeypatch):
    """Without a GPU no engine can be opened: one with exactly the real methods stands in for it."""
    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "cache"))
    backend = backend_for(tmp_path)
    engine, config, context, cache = (
        create_autospec(kind, instance=True)
        for kind in (trt.ICudaEngine, trt.IRuntimeConfig, trt.IExecutionContext, trt.IRuntimeCache)
    )
    engine.device_memory_size_v2, engine.create_runtime_config.return_value = 1000, config
    engine.create_execution_context.return_value, config.create_runtime_cache.return_value = context, cache
    cache.serialize.return_value = b"kernels"
    backend._runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine)
    (tmp_path / "s.plan").write_bytes(b"plan")
    loaded = backend.load(SegmentFile(tmp_path / "s.onnx", (), ()))
    run = loaded.bind({"a": backend.memory.empty((2,), "float32")}, {"b": backend.memory.empty((2,), "float32")})
    run()
    assert config.dynamic_shapes_kernel_specialization_strategy == trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert config.cuda_graph_strategy == trt.CudaGraphStrategy.DISABLED
    config.set_execution_context_allocation_strategy.assert_called_once_with(
        trt.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    engine.create_execution_context.assert_called_once_with(config)
    context.set_device_memory.assert_called_once_with(backend.scratch().pointer, 1000)
    context.set_input_shape.assert_called_once_with("a", (2,))
    assert [call.args[0] for call in context.set_tensor_address.call_args_list] == ["a", "b"]
    context.execute_async_v3.assert_called_once_with(backend.memory.stream)
    # kernels that were compiled for this GPU are kept, and given to the next pipeline
    config.set_runtime_cache.assert_called_once_with(cache)
    cache.deserialize.assert_not_called()
    del loaded, run
    gc.collect()
    (kept,) = (tmp_path / "cache" / "kernels" / f"sm90-{trt.__version__}").iterdir()
    assert kept.read_bytes() == b"kernels"
    backend.load(SegmentFile(tmp_path / "s.onnx", (), ()))
    cache.deserialize.assert_called_once_with(b"kernels")
    (tmp_path / "s.plan").write_bytes(b"another plan")
    backend.load(SegmentFile(tmp_path / "s.onnx", (), ()))
    cache.deserialize.assert_called_once()


@pytest.fixture
def eight(cudart, tmp_path):
    """8.6 has neither allocation strategies nor runtime configurations: (backend, any engine of it, its context)."""
    backend, context = backend_for(tmp_path), Mock(spec=CONTEXT_8)
    backend.name, backend._trt = "tensorrt", SimpleNamespace(__version__="8.6.0")
    engine = Mock(spec=["device_memory_size", "create_execution_context_without_device_memory"], device_memory_size=2000)
    engine.create_execution_context_without_device_memory.return_value = context
    backend._runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine)
    (tmp_path / "s.plan").write_bytes(b"plan")
    return backend, engine, context


def test_tensorrt_8_is_spoken_to_in_its_own_words(cudart, eight, tmp_path):
    backend, _, context = eight
    backend.load(SegmentFile(tmp_path / "s.onnx", (), ())).bind({"a": backend.memory.empty((2,), "float32")}, {})()
    assert context.device_memory == backend.scratch().pointer
    assert backend.scratch().size == 2000
    context.execute_async_v3.assert_called_once_with(backend.memory.stream)
    context.set_input_shape.return_value = False
    with pytest.raises(BackendError, match=r"s\.onnx was not built for a of shape \[3\]: .*another batch=.."):
        backend.load(SegmentFile(tmp_path / "s.onnx", (), ())).bind({"a": backend.memory.empty((3,), "float32")}, {})
    cudart.free = 1000
    backend._largest = 3000
    with pytest.raises(RunError, match="the engines' activations need"):
        backend.scratch()


def test_engines_share_a_scratch_memory_that_is_enough_for_the_largest(eight, tmp_path):
    backend, engine, _ = eight
    for engine.device_memory_size in (1000, 3000, 2000):
        backend.load(SegmentFile(tmp_path / "s.onnx", (), ()))
    assert backend.scratch().size == 3000


def test_an_engine_that_does_not_run_is_named(eight, tmp_path):
    backend, _, context = eight
    context.execute_async_v3.return_value = False
    run = backend.load(SegmentFile(tmp_path / "s.onnx", (), ())).bind({"a": backend.memory.empty((2,), "float32")}, {})
    with pytest.raises(BackendError, match=r"tensorrt: s\.onnx did not run"):
        run()


def test_a_plan_that_was_swapped_since_it_was_verified_is_not_given_to_the_library(cudart, tmp_path):
    (tmp_path / "s.plan").write_bytes(b"swapped")
    backend = backend_for(tmp_path, files={"s.plan": manifest.FileInfo(bytes=7, sha256="0" * 64)})
    backend._runtime = None
    with pytest.raises(ArtefactError, match=r"s\.plan does not match its hash"):
        backend.load(SegmentFile(tmp_path / "s.onnx", (), ()))


@pytest.mark.parametrize("compatible", [False, True])
def test_only_plans_for_several_versions_may_bring_code_for_the_host(cudart, tmp_path, compatible):
    build = msgspec.structs.replace(a_build(), version_compatible=compatible)
    assert backend_for(tmp_path, build)._runtime.engine_host_code_allowed is compatible
