"""CUDA without a GPU: what is done with pointers, sizes and error codes, on a runtime whose device memory is the host's."""

from __future__ import annotations

import contextlib
import gc
import os
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import Error, FakeCudart
from helpers import case
from manifests import changed
from recorded import asked

import l2c_export
from l2c_export.backends.choose import Opened, open_backend
from l2c_export.backends.contract import Request
from l2c_export.backends.cuda import device as cuda
from l2c_export.backends.cuda import dlpack
from l2c_export.compiler.compile import compile_artefact
from l2c_export.errors import BackendError, L2CError, RunError
from l2c_export.ir.dtypes import BFLOAT16
from l2c_export.runtime.loaded import load_engines
from l2c_export.runtime.pipeline import Pipeline

pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture
def cudart(monkeypatch):
    fake = FakeCudart()
    monkeypatch.setattr(cuda, "needs", lambda package, extra: fake)
    monkeypatch.setattr(dlpack, "CUDA", 1)  # DLPack's number of the host
    return fake


@pytest.fixture
def memory(cudart):
    return cuda.Cuda("cuda:1", "tensorrt")


def test_arrays_are_cut_and_filled_as_numpys_are(memory):
    want = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    array = memory.empty((4, 3, 2), "float32")
    memory.put(array, want)
    assert np.array_equal(memory.get(array), want)
    assert np.array_equal(memory.get(array[1:3]), want[1:3])
    assert array[1:3].pointer == array.pointer + 24
    raw = memory.empty((96,), "uint8")
    memory.put(raw, want.view(np.uint8).reshape(-1))
    assert np.array_equal(memory.get(raw[24:72].view("float32").reshape((2, 3, 2))), want[1:3])


def test_memory_is_freed_with_its_last_array(memory, cudart):
    array = memory.empty((1000,), "float32")
    part = array[500:]
    assert len(cudart.held) == 1
    del array
    gc.collect()
    assert len(cudart.held) == 1
    del part
    gc.collect()
    assert not cudart.held


def test_weights_are_one_allocation_at_addresses_that_engines_take(memory, cudart):
    arrays = {"a": np.arange(5, dtype=np.float32), "b": np.arange(6, dtype=np.uint16).reshape(2, 3), "c": np.float32([7])}
    there = memory.weights(arrays.__getitem__, list(arrays))
    assert len(cudart.held) == 1
    for name, values in arrays.items():
        assert there(name).pointer % 256 == 0
        assert np.array_equal(memory.get(there(name)), values)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8"])
@pytest.mark.parametrize("read", ["numpy", "torch"])
def test_other_libraries_read_the_same_memory(memory, cudart, read, dtype):
    from_dlpack = pytest.importorskip(read).from_dlpack
    want = np.arange(12).reshape(3, 4).astype(dtype)
    array = memory.empty((3, 4), dtype)
    memory.put(array, want)
    seen = from_dlpack(array)
    assert str(seen.dtype).endswith(dtype)
    assert np.array_equal(np.asarray(seen), want)
    memory.put(array, want + 1)
    assert np.array_equal(np.asarray(seen), want + 1)  # not a copy
    del array
    gc.collect()
    assert len(cudart.held) == 1  # it is still read
    del seen
    gc.collect()
    assert not cudart.held


def test_a_capsule_that_nobody_reads_holds_nothing(memory, cudart):
    array = memory.empty((3,), "float32")
    array.__dlpack__()
    del array
    gc.collect()
    assert not cudart.held
    assert not dlpack._lent


def test_bfloat16_is_given_away_as_what_it_is(memory):
    torch = pytest.importorskip("torch")
    array = memory.empty((2,), "bfloat16")
    memory.put(array, np.array([0x3F80, 0xC000], np.uint16).view(BFLOAT16))
    assert torch.equal(torch.from_dlpack(array), torch.tensor([1.0, -2.0], dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (FakeCudart(driver=12020, failing={"cudaGetDeviceCount": Error.cudaErrorInsufficientDriver}),
         r"the driver is for CUDA 12\.2, needed is 13\.5: update it, or pip install 'cuda-bindings<=12\.2"),
        (FakeCudart(driver=0, failing={"cudaGetDeviceCount": Error.cudaErrorInsufficientDriver}), "no GPU .* nvidia-smi"),
        (FakeCudart(failing={"cudaGetDeviceCount": Error.cudaErrorNoDevice}), "no GPU and driver on this machine"),
        (FakeCudart(failing={"cudaSetDevice": Error.cudaErrorUnknown}), "cudaSetDevice failed with cudaErrorUnknown: .*"),
    ],
)  # fmt: skip
def test_a_machine_that_cannot_is_told_why(fake, message, monkeypatch):
    monkeypatch.setattr(cuda, "needs", lambda package, extra: fake)
    with pytest.raises(BackendError, match=message) as caught:
        cuda.Cuda("cuda", "tensorrt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "gpu"])
def test_an_unknown_gpu_is_refused_with_the_known_ones(cudart, device):
    with pytest.raises(BackendError, match=f"device '{device}': use cuda:0 or cuda:1"):
        cuda.Cuda(device, "tensorrt")


def test_too_little_memory_is_told_before_and_after(memory, cudart):
    cudart.free = 100 * 2**20
    with pytest.raises(RunError, match=r"the weights need 200 MB of GPU memory, but only 100 MB are free: .*precision='fp16'"):
        memory.weights({"w": np.zeros(50 * 2**20, np.float32)}.__getitem__, ["w"])
    assert not cudart.held
    with pytest.raises(
        RunError, match=r"out of memory: it needs 400 MB more, but 100 of 1,048,576 MB are free: .*fewer images"
    ):
        memory.allocate(400 * 2**20)


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_taken(on_gpu, tiny, cudart, monkeypatch):
    pipe, asked, free, reserve = opened(tiny[0], on_gpu), [], [], cuda.Cuda.reserve

    def watched(self, size, what):
        asked.append((size, what))
        free.append(cudart.free)
        reserve(self, size, what)

    monkeypatch.setattr(cuda.Cuda, "reserve", watched)
    gc.collect()
    pipe([1, 2])
    [(size, what)] = asked
    assert what == "the buffers of 2 images"
    monkeypatch.undo()
    pipe = opened(tiny[0], on_gpu)
    gc.collect()
    held = dict(cudart.held)
    cudart.free = size - 1
    with pytest.raises(RunError, match=f"{what} need .* MB of GPU memory, but only .* MB are free: generate fewer images"):
        pipe([1, 2])
    gc.collect()
    assert set(cudart.held) == set(held)


def test_slots_hold_what_they_are_for_at_addresses_that_engines_take(on_gpu, tiny):
    sizes = (100, 1, 300)
    loop = opened(tiny[0], on_gpu, cache_bytes=sizes).generation(asked([1, 2]), None, 2).loop
    assert all(slot.nbytes >= size * loop.rows for slot, size in zip(loop.caches, sizes, strict=True))
    assert all(slot.pointer % 256 == 0 for slot in loop.caches)


def test_why_a_capture_failed_is_not_hidden_by_how_it_ended(memory, cudart):
    destroyed = []
    cudart.cudaGraphDestroy = lambda graph: (destroyed.append(graph), (Error.cudaSuccess,))[1]

    def work():
        raise RunError("out of memory")

    for ends in ((Error.cudaErrorUnknown, None), (Error.cudaSuccess, "graph")):
        cudart.cudaStreamEndCapture = lambda stream, ends=ends: ends
        with pytest.raises(RunError, match="out of memory"):
            memory.capture(work)
    assert "graph" in destroyed


def test_a_call_into_the_host_is_not_captured(memory, cudart):
    """It would run again with whatever its memory holds by then."""
    kinds, destroyed = ["kernel", "host"], []
    cudart.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudart.cudaGraphNodeType = SimpleNamespace(cudaGraphNodeTypeHost="host")
    cudart.cudaStreamBeginCapture = lambda stream, mode: (Error.cudaSuccess,)
    cudart.cudaStreamEndCapture = lambda stream: (Error.cudaSuccess, "graph")
    cudart.cudaGraphGetNodes = lambda graph, count: (Error.cudaSuccess, kinds[:count], len(kinds))
    cudart.cudaGraphNodeGetType = lambda node: (Error.cudaSuccess, node)
    cudart.cudaGraphDestroy = lambda graph: (destroyed.append(graph), (Error.cudaSuccess,))[1]
    with pytest.raises(BackendError, match="a call into the host cannot be repeated by a graph"):
        memory.capture(lambda: None)
    kinds.remove("host")
    memory.capture(lambda: None)
    assert destroyed == ["graph"] * 2


@pytest.mark.parametrize("was_on", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_collected_during_a_capture(memory, cudart, fails, was_on):
    """Memory that Python frees there would end it."""
    held, thresholds = [], gc.get_threshold()

    def work():
        cycle = [memory.allocate(1000)]
        cycle.append(cycle)
        del cycle
        gc.set_threshold(1)
        lists = [[n] for n in range(1000)]  # enough for any collector to begin
        held.append((len(lists), len(cudart.held)))
        gc.set_threshold(*thresholds)
        if fails:
            raise RunError("it fails")

    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(RunError, match="it fails") if fails else contextlib.nullcontext():
            memory.capture(work)
        assert gc.isenabled() == was_on
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    assert held == [(1000, 1)]
    gc.collect()
    assert not cudart.held


# ONNX Runtime on a GPU, but for the GPU: its provider is the one for CPUs, which has the same memory.


@pytest.fixture
def on_gpu(cudart, monkeypatch):
    pytest.importorskip("onnxruntime")
    from l2c_export.backends.onnxruntime.gpu import OrtCudaBackend

    monkeypatch.setattr(cuda.Cuda, "capture", lambda self, work, relaxed=False: work)

    class WithoutGpu(OrtCudaBackend):
        provider = "CPUExecutionProvider"

        def _start(self):
            self.where = ("cpu", 0)

        def _providers(self, graphs):
            return [self.provider]

    return WithoutGpu(Request(device="cuda"))


def test_a_pipeline_works_on_its_own_gpu_in_every_thread(on_gpu, tiny, cudart):
    """CUDA has a current device by thread, which other pipelines set as well."""
    pipe = opened(tiny[0], on_gpu)
    cuda.Cuda("cuda:1", "onnxruntime-gpu")
    assert cudart.current == 1
    pipe([1])
    assert cudart.current == 0
    loop = pipe.steps([1], None, pipe.noise(1, 0))
    next(loop)
    cudart.current = 1
    next(loop)
    assert cudart.current == 0, "between two steps of a generation, too"


def test_on_a_gpu_float32_means_float32():
    pytest.importorskip("onnxruntime")
    from l2c_export.backends.onnxruntime.gpu import OrtCudaBackend

    backend = SimpleNamespace(provider=OrtCudaBackend.provider, memory=SimpleNamespace(index=1, stream=7))
    (_, options), cpu = OrtCudaBackend._providers(backend, graphs=True)
    assert (options["use_tf32"], options["device_id"], options["user_compute_stream"]) == ("0", "1", "7")
    assert cpu == "CPUExecutionProvider"


@pytest.mark.parametrize("refuses", [False, True])
def test_sessions_free_pinned_memory_themselves_where_they_can(on_gpu, tiny, monkeypatch, refuses):
    """Those that expect CUDA graphs do; a session with work for the processor cannot be one of them."""
    from l2c_export.backends.onnxruntime.gpu import OrtCudaBackend, ort

    asked, session = [], ort.InferenceSession

    def providers(backend, graphs):
        asked.append(OrtCudaBackend._providers(backend, graphs)[0][1]["enable_cuda_graph"])
        return [backend.provider]

    def watched(*args, **options):
        if refuses and asked[-1] == "1":
            raise RuntimeError("This session cannot use the graph capture feature")
        return session(*args, **options)

    monkeypatch.setattr(type(on_gpu), "_providers", providers)
    monkeypatch.setattr(ort, "InferenceSession", watched)
    assert np.isfinite(opened(tiny[0], on_gpu)([1]).latents).all()
    assert set(asked) == ({"1", "0"} if refuses else {"1"})
    assert on_gpu.run_options.get_run_config_entry("gpu_graph_id") == "-1", "it makes none"


def opened(folder, backend, **changes):

    manifest = l2c_export.artefact.store.read(folder)
    return Pipeline(load_engines(folder, changed(manifest, **changes), backend), Opened(backend, "as asked"))


@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize("name", ["dit_tiny_odd_resetN", "uvit_tiny_variant"])
def test_sessions_bound_to_pointers_give_the_recorded_latents(name, link, on_gpu, tmp_path):
    chosen = case(name)
    compile_artefact(chosen.options(tmp_path / "e"))
    pipe, golden, count, seen = opened(tmp_path / "e", on_gpu, link=link), chosen.golden, chosen.config["batch"], []
    request = {"class_labels": golden["y"][:count].tolist(), "guidance_scale": chosen.scale, "latents": golden["x_T"][:count]}
    pipe(**request, callback_on_step_end=lambda p, s, t, v: seen.append(v["latents"]))
    want = golden["cached_x"][:, :count]
    assert np.abs(np.stack(seen) - want).max() < 5e-5 * max(1, np.abs(want).max())
    for _ in range(2):
        assert np.array_equal(pipe(**request).latents, seen[-1])
    there = pipe(**request, output_type="device").latents
    assert isinstance(there, cuda.DeviceArray)
    assert np.array_equal(np.from_dlpack(there), seen[-1])
    pipe(**{**request, "latents": golden["x_T"][:count] + 1})
    assert np.array_equal(np.from_dlpack(there), seen[-1])  # it is the user's own


@pytest.mark.parametrize(("chosen", "used"), [(None, ":16:8"), (":4096:2", ":4096:2")])
def test_sessions_ask_for_little_scratch_and_leave_the_process_alone(on_gpu, tiny, monkeypatch, chosen, used):
    from l2c_export.backends.onnxruntime.gpu import WORKSPACE, ort

    if chosen is None:
        monkeypatch.delenv(WORKSPACE, raising=False)
    else:
        monkeypatch.setenv(WORKSPACE, chosen)
    seen, session = set(), ort.InferenceSession

    def watched(*args, **options):
        seen.add(os.environ.get(WORKSPACE))
        return session(*args, **options)

    monkeypatch.setattr(ort, "InferenceSession", watched)
    opened(tiny[0], on_gpu)
    assert seen == {used}
    assert os.environ.get(WORKSPACE) == chosen


@pytest.mark.parametrize(("growing", "runs"), [(0, 1), (1, 2), (3, 4), (100, 8)])
def test_a_loop_is_captured_when_its_sessions_take_no_more_memory(on_gpu, cudart, growing, runs):
    """Within a capture there is none to be had; what one run freed, the next divides in another way."""
    captured, done = [], []

    def run():
        done.append(len(captured))
        cudart.free -= 1000 if len(done) <= growing else 0

    on_gpu.memory.capture = lambda work: captured.append(work) or work
    on_gpu._repeats = lambda run: True
    on_gpu.sequence([run])
    assert done == [0] * runs  # all of them before the capture
    assert len(captured) == 1


def test_whole_graphs_share_one_copy_of_the_weights_and_read_it_in_place(on_gpu, tiny, cudart):
    before = {**cudart.held}
    pipe = opened(tiny[0], on_gpu, link="static")
    sizes = [array.size for pointer, array in cudart.held.items() if pointer not in before]
    size = pipe.manifest.files["weights.safetensors"].bytes
    assert sum(sizes) < 1.5 * size
    first = pipe([1]).latents
    for array in cudart.held.values():
        if array.size > 2**16:
            array[:] = 0
    assert not np.allclose(pipe([1]).latents, first)


def test_what_cannot_be_captured_is_launched_between_graphs(on_gpu, tiny, monkeypatch):
    """As a session that waits for the GPU: its runs keep their places."""
    pipe, captured = opened(tiny[0], on_gpu), []
    embed = next(engine for name, engine in pipe._loaded.engines.items() if name.startswith("embed"))

    def capture(self, work, relaxed=False):
        captured.append(work)
        if getattr(work, "engine", None) is embed:
            raise BackendError("CUDA: a call into the host cannot be repeated by a graph")
        return work

    monkeypatch.setattr(cuda.Cuda, "capture", capture)
    stepwise = list(pipe.steps([1], 3.0, pipe.noise(1, 0)))[-1].x
    for _ in range(2):
        assert np.array_equal(pipe([1], 3.0).latents, stepwise)
    assert embed.repeats is False
    whole = [work for work in captured if not hasattr(work, "engine")]
    assert (
        len(whole) == len(pipe.manifest.program().calls) + 1
    )  # the prologue's part, and one after the embedding of every call


@pytest.mark.parametrize("copies", [False, True])
def test_a_session_that_copies_from_the_host_frees_what_it_copied_in_a_relaxed_capture(cudart, monkeypatch, copies):
    """ONNX Runtime ends the process where its destructors may not free."""
    pytest.importorskip("onnxruntime")
    from l2c_export.backends.onnxruntime.gpu import OrtCudaBackend, OrtCudaEngine, OrtCudaRun

    backend, modes = SimpleNamespace(memory=cuda.Cuda("cuda", "onnxruntime-gpu")), []

    def run_with_iobinding(binding, options):
        modes.append(cudart.capturing)
        if copies:
            (error,) = cudart.cudaFreeHost(1)
            assert error == Error.cudaSuccess, "the process has ended"
            raise RuntimeError("operation not permitted when stream is capturing")

    session = SimpleNamespace(run_with_iobinding=run_with_iobinding, get_inputs=list, get_outputs=list)
    run = OrtCudaRun(OrtCudaEngine(backend, session, "embed", {}), None, None, None)
    for _ in range(2):
        assert OrtCudaBackend._repeats(backend, run) is not copies
    kinds = cudart.cudaStreamCaptureMode
    relaxed, strict = kinds.cudaStreamCaptureModeRelaxed, kinds.cudaStreamCaptureModeThreadLocal
    assert modes == ([relaxed] if copies else [relaxed, strict])
    assert cudart.capturing is None


def test_bfloat16_is_bound_as_what_it_is(on_gpu, tmp_path):
    import onnx

    text = '<ir_version: 8, opset_import: ["" : 17]> g (bfloat16[N] a) => (float[N] b) { b = Cast<to = 1>(a) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "cast.onnx")
    from l2c_export.backends.contract import SegmentFile

    memory = on_gpu.memory
    a, b = memory.empty((2,), "bfloat16"), memory.empty((2,), "float32")
    memory.put(a, np.array([0x3F80, 0xC000], np.uint16).view(BFLOAT16))
    on_gpu.load(SegmentFile(tmp_path / "cast.onnx", ("a",), ("b",))).bind({"a": a}, {"b": b})()
    assert memory.get(b).tolist() == [1.0, -2.0]


def test_a_run_that_fails_is_one_line(on_gpu, tiny):
    pipe = opened(tiny[0], on_gpu)
    engine = next(engine for name, engine in pipe._loaded.engines.items() if name.startswith("attn"))
    names = [port.name for port in engine.session.get_inputs()]
    wrong = {name: on_gpu.memory.empty((1,), "float32") for name in names}
    with pytest.raises(L2CError, match=r"onnxruntime: attn.*\.onnx did not run: ") as caught:
        engine.bind(wrong, {})()
    assert "\n" not in str(caught.value)


def test_without_the_gpu_package_onnx_runtime_says_what_to_install():
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("the package for GPUs is installed")
    for name in ("onnxruntime", "auto"):
        with pytest.raises(BackendError, match=r"is the one for CPUs: .*pip install 'l2c-export\[onnxruntime-gpu\]'") as caught:
            open_backend(name, Request(device="cuda:0"))
        assert "\n" not in str(caught.value)
