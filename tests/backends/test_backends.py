"""The contract of backends, the same for every one that is installed."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from recorded import TOLERANCE, asked

import l2c_export
from l2c_export.artefact import store
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request, SegmentFile
from l2c_export.backends.descriptor import CPU
from l2c_export.backends.descriptors import loaded, named
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.errors import BackendError, RunError, UsageError
from l2c_export.runtime.loaded import concrete, load_engines, mapped_weights
from l2c_export.runtime.loops import Loops


def missing(name):
    return pytest.mark.skipif(not named(name).installed, reason=f"{name} is not installed")


# those that need a GPU, or whose engines are built on one: tests/test_gpu.py
ON_HOST = [name for name in loaded() if any(site.device == CPU for site in named(name).sites)]
installed = pytest.mark.parametrize("name", [pytest.param(n, marks=missing(n)) for n in ON_HOST])


def segments(tiny):
    """Every segment of the tiny artefact with the types of what its first caller gives and takes."""
    folder, _ = tiny
    manifest = store.read(folder)
    view = mapped_weights(folder, manifest)
    by_op = {}
    for graph in manifest.all_graphs().values():
        for node in graph.nodes:
            segment = manifest.denoiser.segments[node.op]
            file = SegmentFile(folder / segment.file, segment.inputs, segment.outputs)
            by_op.setdefault(node.op, (manifest, view, node, file))
    return by_op


def arguments(manifest, view, node, file, images, seed=0):
    """(inputs, outputs) of a segment for some images with guidance: its weights as mapped, the rest random."""
    rng, rows = np.random.default_rng(seed), 2 * images
    indices = {"rows": np.arange(rows) % images, "conditional": np.arange(images), "unconditional": images + np.arange(images)}

    def array(name):
        base = name.partition("@")[0]
        if manifest.program().is_weight(name):
            return view(name)
        value = manifest.program().value(name)
        shape = concrete(value, images, rows)
        if base in indices:
            return indices[base].astype(np.int32)
        if value.dtype == "int32":
            return rng.integers(0, manifest.inputs[0].choices, shape, np.int32)
        return rng.standard_normal(shape, np.float32)

    inputs = {i: array(value) for i, value in zip(file.inputs, node.inputs, strict=True)}
    shapes = [concrete(manifest.program().value(value), images, rows) for value in node.outputs]
    return inputs, {o: np.full(s, np.nan, np.float32) for o, s in zip(file.outputs, shapes, strict=True)}


def result(backend, file, inputs, outputs):
    backend.load(file).bind(inputs, outputs)()
    return outputs


@installed
@pytest.mark.parametrize("images", [1, 2, 5])
def test_every_segment_fills_the_bound_arrays_and_equals_onnx_runtime(name, images, tiny):
    pytest.importorskip("onnxruntime")
    reference, backend = open_backend("onnxruntime").backend, open_backend(name).backend
    for manifest, view, node, file in segments(tiny).values():
        inputs, outputs = arguments(manifest, view, node, file, images)
        before = {i: a.copy() for i, a in inputs.items()}
        got = result(backend, file, inputs, outputs)
        want = result(reference, file, *arguments(manifest, view, node, file, images))
        for o in outputs:
            assert np.abs(got[o] - want[o]).max() <= 1e-5 * max(1, np.abs(want[o]).max()), (node.op, o)
        assert all(np.array_equal(inputs[i], before[i]) for i in inputs), f"{node.op} changed an input"


@installed
def test_one_engine_runs_any_batch_in_any_order(name, tiny):
    backend = open_backend(name).backend
    parts = next(p for op, p in segments(tiny).items() if op.startswith("attn"))
    engine = backend.load(parts[-1])
    bound = {n: arguments(*parts, images=n, seed=n) for n in (2, 1, 5)}
    runs = {n: engine.bind(*pair) for n, pair in bound.items()}
    first = {}
    for n in (2, 1, 5, 1, 2):  # the bindings live side by side
        runs[n]()
        output = next(iter(bound[n][1].values()))
        assert np.isfinite(output).all()
        assert np.array_equal(output, first.setdefault(n, output.copy()))
        output[...] = np.nan


@installed
def test_a_run_reads_its_inputs_anew(name, tiny):
    parts = next(p for op, p in segments(tiny).items() if op.startswith("mlp"))
    inputs, outputs = arguments(*parts, images=1)
    run = open_backend(name).backend.load(parts[-1]).bind(inputs, outputs)
    run()
    before = {o: a.copy() for o, a in outputs.items()}
    inputs["i0"] += 1
    run()
    assert not all(np.allclose(outputs[o], before[o]) for o in outputs)


@installed
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of this process from /proc")
def test_the_shared_link_does_not_copy_the_weights(name, tmp_path):
    options = {"schedule": "every:2", "steps": 2, "model": "DiT-S/2", "weights": "random", "out": tmp_path / "e"}
    compile_artefact(Options(**options))
    manifest = store.read(tmp_path / "e")
    size = manifest.files["weights.safetensors"].bytes

    before = private_bytes()
    loaded = load_engines(tmp_path / "e", manifest, open_backend(name).backend)
    loop = Loops(loaded).loop(manifest.program(), images=1, guided=False)
    shape = (1, *manifest.program().latent)
    list(loop.denoise(np.zeros(shape, np.float32), asked([0]), np.zeros((1, 4, 1, 1), np.float32)))
    assert private_bytes() - before < size / 2, f"{size} bytes of weights"


def private_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@installed
def test_a_batch_of_one_is_the_first_of_a_larger_batch(name, tiny):
    folder, _ = tiny
    pipe = l2c_export.load(folder, backend=name)
    count = pipe.manifest.batch
    many = pipe(class_labels=list(range(count)), seed=3).latents
    alone = pipe(class_labels=[0], seed=3).latents
    assert np.abs(alone - many[:1]).max() <= TOLERANCE * max(1, np.abs(many).max())


@installed
@pytest.mark.parametrize("link", ["shared", "static"])
def test_a_closed_pipeline_has_freed_its_engines_and_its_backend(name, link, tiny):
    """By reference alone: nothing is closed by hand, so nothing is closed twice or too early."""
    pipe = l2c_export.load(tiny[0], backend=name, link=link)
    pipe([1, 2], seed=3)
    kept = pipe.steps([1], None, pipe.noise(1, 0))
    next(kept)
    held = [weakref.ref(owner) for owner in (pipe._loaded.backend, *pipe._loaded.engines.values())]
    kept.close()
    pipe.close()
    pipe.close()
    del kept
    gc.collect()
    assert not [ref for ref in held if ref()]


@installed
def test_an_unknown_device_is_one_line_that_names_the_known_ones(name):
    with pytest.raises(BackendError, match=r"tpu.*cpu") as caught:
        open_backend(name, Request(device="tpu"))
    assert "\n" not in str(caught.value)


@installed
@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(name, threads):
    with pytest.raises(UsageError, match="at least 1"):
        open_backend(name, Request(threads=threads))


@installed
def test_a_damaged_model_is_one_line_that_names_the_file(name, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"garbage")
    with pytest.raises(BackendError, match=r"cannot (load|read) .*bad\.onnx: \S+") as caught:
        open_backend(name).backend.load(SegmentFile(tmp_path / "bad.onnx", (), ()))
    assert "\n" not in str(caught.value)


@installed
def test_a_run_that_fails_is_one_line(name, tiny):
    parts = next(p for op, p in segments(tiny).items() if op.startswith("mlp"))
    inputs, outputs = arguments(*parts, images=2)
    run = open_backend(name).backend.load(parts[-1]).bind({**inputs, "i0": inputs["i0"][:3]}, outputs)
    with pytest.raises(RunError) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_a_library_that_writes_to_its_weights_does_not_write_to_the_file(tiny, tmp_path):
    folder = shutil.copytree(tiny[0], tmp_path / "e")
    manifest = store.read(folder)
    mapped_weights(folder, manifest)(next(iter(manifest.denoiser.tensors)))[...] = 0
    assert store.read(folder) == manifest, "and its hash is the same"


@missing("onnxruntime")
def test_onnxruntime_has_fp16_but_refuses_bf16_and_says_what_has_it():
    assert open_backend("onnxruntime", Request(precision="fp16")).backend.name == "onnxruntime"
    with pytest.raises(BackendError, match=r"bf16.*openvino"):
        open_backend("onnxruntime", Request(precision="bf16"))


def test_the_compiler_refuses_a_precision_that_its_backend_has_not():
    with pytest.raises(UsageError, match=r"precision='bf16': .*use backend=.*openvino"):
        Options(schedule="every:2", backend="onnxruntime", precision="bf16")
    Options(schedule="every:2", backend="auto", precision="bf16")
    Options(schedule="every:2", backend="onnxruntime", precision="fp16")


@installed
def test_nothing_is_reported_to_anybody(tiny, tmp_path, name):
    """Some libraries write files of their telemetry to the user's home, and look its hosts up, unless they are told not to."""
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "L2C_CACHE", "XDG_CACHE_HOME")}
    words = [sys.executable, "-m", "l2c_export", "run", str(tiny[0]), "--backend", name, "--class-label", "1"]
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(words, check=True, capture_output=True, env=environment, cwd=tmp_path)
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {("latents.npy",), (".cache", "l2c-export")}
    assert ("latents.npy",) in written


@installed
def test_backends_run_without_the_compiler(name, tiny):
    """Loading and running imports neither PyTorch nor onnx."""
    script = (
        f"import sys, l2c_export; l2c_export.load({str(tiny[0])!r}, backend={name!r})([1]);"
        "print([m for m in ('torch', 'onnx', 'onnxscript') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "[]", done.stderr


@missing("onnxruntime")
def test_a_backend_may_rehearse_a_generation_before_it_is_asked_for(tiny):
    """As a CUDA graph is captured: everything runs once before, and must leave no trace in the result."""
    folder, _ = tiny
    pipe = l2c_export.load(folder, backend="onnxruntime")
    backend = pipe._loaded.backend
    plain = backend.sequence
    rehearsed = []

    def sequence(runs):
        plain(runs)()
        rehearsed.append(len(runs))
        return plain(runs)

    backend.sequence = sequence
    stepwise = list(pipe.steps([1, 2], 3.0, pipe.noise(2, 0)))[-1].x.copy()
    loop = pipe.generation(asked([1, 2]), 3.0, 2).loop
    runs = sum(len(loop.engines(index)) for index in range(len(loop.compiled.calls)))
    for _ in range(2):
        assert np.array_equal(pipe([1, 2], 3.0, seed=0).latents, stepwise)
    assert sum(rehearsed) == runs, "once"
