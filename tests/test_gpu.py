"""What only a GPU can show: captured loops, memory and streams.  `python -m pytest -m gpu` runs these where there is one.

Each backend that is installed takes part.  The artefacts are compiled here if torch and onnx are; on a machine without them
`L2C_GPU_CASES` names a folder that `python tests/test_gpu.py FOLDER` has filled elsewhere.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from recorded import asked, case

import l2c_export
from l2c_export.backends.cuda.device import Cuda, DeviceArray
from l2c_export.backends.descriptor import GPU
from l2c_export.backends.descriptors import BACKENDS, built
from l2c_export.errors import BackendError

CASES = ("dit_tiny_lowvar", "dit_batch3_no_cfg", "uvit_tiny_variant")
PRECISIONS = ("fp32", "fp16", "bf16")
WHOLE = [(name, precision) for name in (CASES[0], CASES[2]) for precision in ("fp32", "fp16")]  # linked statically, too
FORECASTS = {
    "forecast": {"rule": "taylor:2"},
    "stack": {"rule": "taylor:2", "level": "stack"},
    "output": {"rule": "taylor:1", "level": "output"},
}
PIPELINE = "pipeline"  # of diffusers, with a scheduler that looks back three steps and with a decoder
# of max(1, max|x|), every step fed the recorded latents
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2}
REPEATS = 1e-4  # two runs of one captured loop: some kernels add in any order
ON_GPU = [descriptor for descriptor in BACKENDS if any(site.device == GPU for site in descriptor.sites)]

pytestmark = pytest.mark.gpu


def export(folder: Path) -> None:
    from l2c_export.compiler.compile import compile_artefact

    for name in CASES:
        for precision in PRECISIONS:
            compile_artefact(case(name).options(folder / f"{name}-{precision}", precision=precision, batch=3))
    for name, precision in WHOLE:
        out = folder / f"{name}-static-{precision}"
        compile_artefact(case(name).options(out, precision=precision, batch=3, link="static"))
    for name, rule in FORECASTS.items():
        export_forecast(folder, name, rule)
    if importlib.util.find_spec("diffusers"):
        export_pipeline(folder / f"{PIPELINE}-fp32")


def export_forecast(folder: Path, name: str, rule: dict[str, str]) -> None:
    """A case's model by a rule, in two precisions, and what ONNX Runtime makes of the wide one on a CPU."""
    from l2c_export.compiler.compile import compile_artefact

    for precision in ("fp32", "fp16"):
        options = case(CASES[0]).options(folder / f"{name}-{precision}", precision=precision, batch=3)
        compile_artefact(dataclasses.replace(options, schedule="every:4", threshold=None, steps=13, **rule))
    with l2c_export.load(folder / f"{name}-fp32", backend="onnxruntime", device="cpu") as pipe:
        noise = pipe.noise(3, 0)
        np.savez(folder / f"{name}-fp32.npz", noise=noise, latents=pipe([1, 2, 3], 3.0, latents=noise).latents)


def export_pipeline(folder: Path) -> None:
    """The artefact, and beside it what ONNX Runtime makes of it on a CPU."""
    from small_pipelines import small_pipeline

    from l2c_export.compiler.compile import compile_artefact
    from l2c_export.compiler.request import Options

    with tempfile.TemporaryDirectory() as source:
        small_pipeline(Path(source), "dpm3")
        compile_artefact(Options(schedule="every:2", steps=6, model=source, with_vae=True, batch=2, out=folder))
    pipe = l2c_export.load(folder, backend="onnxruntime", device="cpu")
    noise = pipe.noise(2, 0)
    output = pipe([1, 2], 4.0, latents=noise, output_type="np")
    np.savez(folder.with_suffix(".npz"), noise=noise, latents=output.latents, images=output.images)


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory, own_cache):
    """A copy of every artefact, with engines for this GPU added on demand."""
    folder = tmp_path_factory.mktemp("gpu") / "cases"
    if cases := os.environ.get("L2C_GPU_CASES"):
        shutil.copytree(cases, folder)
    else:
        pytest.importorskip("torch")
        export(folder)
    return folder


@pytest.fixture(scope="module", params=ON_GPU, ids=attrgetter("name"))
def backend(request):
    name = request.param.name
    if not request.param.installed:
        pytest.skip(f"{name} is not installed")
    if name == "tensorrt-rtx" and Cuda("cuda", name).architecture == "sm90":
        pytest.skip("TensorRT-RTX does not support Hopper")
    return name


@pytest.fixture
def load(artefacts, backend):
    """A pipeline on the GPU, for a case and a precision."""

    def loaded(name=CASES[0], precision="fp32", link=None):
        from l2c_export.artefact import store
        from l2c_export.backends import builds
        from l2c_export.backends.building import BuildSettings

        folder = artefacts / f"{name}-{precision}"
        backends = {build.backend for build in store.read(folder).builds.values()}
        if backend in built() and backend not in backends:
            builds.build(folder, backend, BuildSettings())
        return l2c_export.load(folder, backend=backend, device="cuda", link=link)

    return loaded


def recorded(name):
    """(labels, guidance scale, noise, the latents of every step)."""
    chosen = case(name)
    golden, count = chosen.golden, chosen.config["batch"]
    return golden["y"][:count].tolist(), chosen.scale, golden["x_T"][:count], golden["cached_x"][:, :count]


def close(got, want, tolerance):
    return np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_the_recorded_one(load, name, precision):
    labels, scale, noise, want = recorded(name)
    seen = []

    def fed(pipe, step, timestep, values):
        seen.append(values["latents"])
        return {"latents": want[step]}

    try:
        pipe = load(name, precision)
    except BackendError as error:
        if precision != "bf16" or "has no bf16" not in str(error):
            raise
        pytest.skip(str(error))
    pipe(labels, scale, latents=noise, callback_on_step_end=fed)
    assert all(close(got, step, TOLERANCE[precision]) for got, step in zip(seen, want, strict=True))


def test_pixels_are_those_that_a_cpu_makes(load, artefacts):
    if not (artefacts / f"{PIPELINE}-fp32.npz").exists():
        pytest.skip("it was exported without diffusers")
    want = np.load(artefacts / f"{PIPELINE}-fp32.npz")
    output = load(PIPELINE)([1, 2], 4.0, latents=want["noise"], output_type="np")
    assert close(output.latents, want["latents"], TOLERANCE["fp32"])
    assert close(output.images, want["images"], TOLERANCE["fp32"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", FORECASTS)
def test_a_forecast_is_what_a_cpu_makes_of_it(load, artefacts, name, precision):
    want = np.load(artefacts / f"{name}-fp32.npz")
    latents = load(name, precision)([1, 2, 3], 3.0, latents=want["noise"]).latents
    assert close(latents, want["latents"], {"fp32": 2e-3, "fp16": 1e-1}[precision])


@pytest.mark.parametrize("name", CASES)
def test_the_captured_loop_makes_what_the_loop_makes(load, name):
    labels, scale, noise, _ = recorded(name)
    pipe = load(name)
    stepwise = list(pipe.steps(labels, scale, noise))[-1].x.copy()
    for _ in range(3):
        assert close(pipe(labels, scale, latents=noise).latents, stepwise, REPEATS)


def test_the_latents_of_a_callback_replace_those_of_the_device(load):
    labels, scale, noise, want = recorded(CASES[0])
    pipe, other = load(), np.full_like(noise, 0.25)

    def replace(pipe, step, timestep, values):
        return {"latents": other} if step in (0, len(want) - 1) else None

    changed = pipe(labels, scale, latents=noise, callback_on_step_end=replace)
    assert np.array_equal(changed.latents, other)
    seen = {}
    for name, returned in (("replaced", replace), ("plain", lambda *_: None)):
        steps = seen[name] = []
        pipe(labels, scale, latents=noise, callback_on_step_end=lambda *v: steps.append(v[3]["latents"]) or returned(*v))  # noqa: B023
    assert close(seen["replaced"][0], seen["plain"][0], REPEATS)
    assert not close(seen["replaced"][1], seen["plain"][1], 1e-2)  # the step after began at the replaced latents


def test_new_guidance_labels_and_noise_need_no_new_capture(load, monkeypatch):
    pipe, captures, capture = load(), [], Cuda.capture
    monkeypatch.setattr(Cuda, "capture", lambda self, work, **how: captures.append(work) or capture(self, work, **how))
    first = pipe([1], 3.0, seed=0).latents
    count = len(captures)
    assert count > 0
    for labels, scale, seed in (([1], 5.0, 0), ([2], 3.0, 0), ([1], 3.0, 9)):
        latents = pipe(labels, scale, seed=seed).latents
        assert not close(latents, first, 1e-3)
        stepwise = list(pipe.steps(labels, scale, pipe.noise(1, seed)))[-1].x
        assert close(latents, stepwise, REPEATS)
    assert close(pipe([1], 3.0, seed=0).latents, first, REPEATS)
    assert len(captures) == count


def test_batches_of_any_size_follow_each_other(load):
    pipe = load()
    three = pipe([1, 2, 3], 3.0, seed=4).latents
    for _ in range(2):
        assert close(pipe([1], 3.0, seed=4).latents, three[:1], 1e-3)
        assert close(pipe([1, 2, 3], 3.0, seed=4).latents, three, REPEATS)
    assert not close(pipe([1], 1.0, seed=4).latents, three[:1], 1e-3)  # without guidance: half of the rows


def test_latents_stay_on_the_device(load):
    pipe = load()
    want = pipe([1, 2], 3.0, seed=1).latents
    there = pipe([1, 2], 3.0, seed=1, output_type="device").latents
    pipe([3, 4], 3.0, seed=2)
    assert isinstance(there, DeviceArray)
    assert close(pipe._loaded.backend.memory.get(there), want, REPEATS)
    torch = pytest.importorskip("torch")
    for seen in (torch.from_dlpack(there), torch.as_tensor(there, device="cuda")):
        assert seen.data_ptr() == there.pointer
        assert close(seen.cpu().numpy(), want, REPEATS)


def test_the_clock_of_the_device_sees_every_call(load):
    pipe = load()
    generation = pipe.generation(asked([1]), 3.0, 1)
    request = pipe.noise(1, 0), generation.inputs, generation.guidance
    generation.loop.timed(*request)
    seconds = generation.loop.timed(*request)
    assert len(seconds) == len(pipe.manifest.program().calls)
    assert all(1e-6 < s < 1 for s in seconds)


def used():
    """Bytes of the GPU's memory, whoever holds them: nothing else may run there."""
    from cuda.bindings import runtime

    gc.collect()
    runtime.cudaDeviceSynchronize()
    _, free, total = runtime.cudaMemGetInfo()
    return total - free


def test_memory_is_given_back(load):
    def once():
        pipe = load()
        for count in (1, 3, 2):
            pipe([1] * count)

    once()  # what libraries keep for themselves
    before = used()
    for _ in range(3):
        once()
    assert used() - before <= 4 * 2**20


def test_a_thousand_images_take_no_more_memory_than_the_first_ones(load):
    def started():
        pipe = load()
        for count in (1, 2):
            pipe([1] * count)
        return pipe

    started().close()  # what libraries keep for themselves
    before = used()
    pipe = started()
    first = used()
    for seed in range(1000):
        pipe([1] * (1 + seed % 2), seed=seed)
    assert used() <= first + 2**20
    pipe.close()
    assert used() <= before + 2**21


def test_too_little_memory_is_one_line_before_anything_is_taken(load, monkeypatch):
    pipe = load()
    call = Cuda._call
    monkeypatch.setattr(Cuda, "_call", lambda self, f, *a: (1000, 10**6) if f == "cudaMemGetInfo" else call(self, f, *a))
    with pytest.raises(l2c_export.L2CError, match=r"need .* MB of GPU memory, but only 0 MB are free") as caught:
        pipe([1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "precision"), WHOLE)
def test_whole_graphs_make_the_recorded_latents(load, name, precision):
    labels, scale, noise, want = recorded(name)
    pipe = load(f"{name}-static", precision)
    assert pipe.manifest.link == "static"
    assert close(pipe(labels, scale, latents=noise).latents, want[-1], TOLERANCE[precision])


@pytest.mark.parametrize(("name", "precision"), WHOLE)
def test_onnx_runtime_links_a_shared_artefact_statically_too(load, backend, name, precision):
    if backend != "onnxruntime":
        pytest.skip("its engines are built for one link")
    labels, scale, noise, want = recorded(name)
    free = load(name, precision, link="static")(labels, scale, latents=noise).latents
    assert close(free, want[-1], TOLERANCE[precision])


def test_a_batch_that_engines_were_not_built_for_is_one_line(artefacts, backend, tmp_path):
    if backend not in built():
        pytest.skip("it takes any batch")
    from l2c_export.backends import builds
    from l2c_export.backends.building import BuildSettings

    shutil.copytree(artefacts / f"{CASES[0]}-fp32", tmp_path / "e")
    builds.build(tmp_path / "e", backend, BuildSettings(), batch="1:1:2")
    pipe = l2c_export.load(tmp_path / "e", backend=backend)
    pipe([1, 2])
    with pytest.raises(BackendError, match=r"was not built for .* of shape .*: .*another batch=..") as caught:
        pipe([1, 2, 3])
    assert "\n" not in str(caught.value)


def test_bench_measures_on_the_gpu(artefacts, load, backend, tmp_path):
    pytest.importorskip("torch")
    load()  # builds
    words = [sys.executable, "-m", "l2c_export", "bench", str(artefacts / f"{CASES[0]}-fp32"), "--against", "pytorch-cached"]
    words += ["--rounds", "2", "--device", "cuda", "--save", str(tmp_path / "r.json")]
    import msgspec

    from l2c_export.artefact import store
    from l2c_export.artefact.records import FILE
    from l2c_export.benchmarks import measured

    folder = artefacts / f"{CASES[0]}-fp32"
    store.write_json(folder / FILE, msgspec.structs.replace(store.read(folder), backend=backend))
    subprocess.run(words, check=True, capture_output=True)
    result = msgspec.json.decode((tmp_path / "r.json").read_bytes(), type=measured.Result)
    ours = result.contenders[0]
    assert ours.settings.device == "cuda"
    assert result.left_out == ()
    assert len(ours.loops) == 2
    assert all(0 < loop < 10 for visit in ours.loops for loop in visit)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
