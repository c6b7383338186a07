"""What is recorded of an artefact, how little of it there is, and what its file may not be."""

from __future__ import annotations

import shutil

import msgspec
import numpy as np
import pytest
from helpers import compiled
from safetensors.numpy import load_file, save_file

import l2c_export
from l2c_export.artefact import fingerprint, integrity, store
from l2c_export.artefact.records import FILE, FINGERPRINT
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.link import bind
from l2c_export.errors import ArtefactError
from l2c_export.ir.graph import Node
from l2c_export.weights.layout import WEIGHTS


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny[0], tmp_path / "engines")


@pytest.fixture(scope="module")
def manifest(tiny):
    return store.read(tiny[0])


def wired(manifest, *wires, flops=()):
    """The artefact with calls that fill and read these cache slots: (writes, reads) of each; in `flops` those of a row."""
    compiled, graphs, segments, calls = manifest.program(), {}, {}, []
    for n, (writes, reads) in enumerate(wires):
        name = f"step-{n:03d}"
        segments[name] = msgspec.structs.replace(next(iter(compiled.segments.values())), flops=flops[n] if flops else 1)
        graphs[name] = msgspec.structs.replace(compiled.graphs["step-000"], nodes=(Node(name, "a", (), ()),))
        calls.append(msgspec.structs.replace(compiled.calls[0], graph=name, writes={f"w{s}": s for s in writes},
                                             reads={f"r{s}": s for s in reads}))  # fmt: skip
    size = msgspec.structs.replace(compiled.size, graphs=graphs, constants=None, prologue=None)
    model = msgspec.structs.replace(manifest.denoiser, segments=segments, sizes={compiled.program.size: size})
    program = msgspec.structs.replace(compiled.program, calls=tuple(calls))
    return msgspec.structs.replace(manifest, denoiser=model, programs={compiled.name: program})


@pytest.mark.parametrize(("wires", "flops", "filling", "light", "calls"), [
    ([([0], []), ([], [0]), ([], [])], (9, 3, 1), 0, 1, 2),
    ([([], []), ([0], []), ([], [0]), ([], [0])], (9, 9, 3, 2), 1, 3, 4),  # the cheaper reader
    ([([0], []), ([], [0]), ([], [0])], (9, 3, 3), 0, 1, 2),  # the earlier of two alike
    ([([0], []), ([], [0]), ([0], []), ([], [0])], (9, 3, 9, 1), 0, 1, 2),  # the last one reads what another has filled
    ([([0, 1], []), ([0], [0]), ([], [1])], (9, 8, 1), 0, 2, 3),
], ids=str)  # fmt: skip
def test_the_light_call_computes_least_of_those_that_read_the_first_filling_one(manifest, wires, flops, filling, light, calls):
    planned = fingerprint.planned(wired(manifest, *wires, flops=flops))
    assert (planned.filling, planned.light, planned.calls) == (filling, light, calls)


def test_what_caches_nothing_has_its_first_call(manifest):
    planned = fingerprint.planned(wired(manifest, ([], []), ([], [])))
    assert (planned.filling, planned.light, planned.calls) == (msgspec.UNSET, msgspec.UNSET, 1)


@pytest.mark.parametrize(("full", "calls"), [(2e11, 2), (4e11, 1), (6e11, 0)])
def test_large_models_have_fewer_calls_and_pieces_for_the_rest(manifest, full, calls):
    """A guided image has two rows: 2 TFLOP, recorded and repeated, are half a TFLOP a row."""
    planned = fingerprint.planned(wired(manifest, ([0], []), ([], [0]), ([], []), flops=(int(full), int(full), 1)))
    assert planned.calls == calls
    assert list(planned.pieces) == [f"step-{n:03d}" for n in range(calls, 3)]


def test_the_flops_are_those_of_the_manifest(manifest):
    """Of a call's nodes, for both rows of a guided image, and of what runs before the loop for all calls."""
    compiled = manifest.program()

    def row(name):
        return sum(compiled.segments[node.op].flops for node in compiled.graphs[name].nodes)

    per_row = sum(row(call.graph) for call in compiled.calls[:3])
    assert fingerprint.flops(compiled, 3) == 2 * (per_row + 7 * (row("constants") + row("prologue")))
    assert fingerprint.flops(compiled, 0) == 0


def test_a_compilation_records_one(manifest):
    record, compiled = manifest.fingerprint, manifest.program()
    assert record.weights == manifest.files[WEIGHTS].sha256
    assert record.recorded_by.startswith("PyTorch 2")
    assert compiled.calls[record.filling].writes
    assert compiled.calls[record.light].reads
    graphs = ["constants", "prologue", *(call.graph for call in compiled.calls[: record.calls])]
    run = {node.op for name in graphs for node in compiled.graphs[name].nodes}
    assert set(record.pieces) == set(compiled.segments) - run


def test_it_is_small(manifest):
    record, compiled = manifest.fingerprint, manifest.program()
    latents = 4 * np.prod(compiled.latent) * (record.calls + 1)
    sketches = 4 * fingerprint.SKETCH * sum(len(compiled.segments[s].outputs) for s in record.pieces)
    assert manifest.files[FINGERPRINT].bytes <= latents + sketches + 2000


def test_the_same_compilation_has_the_same_one(tiny, tmp_path):
    again = compiled(tiny[1].path.name, tmp_path / "e")
    assert (again / FINGERPRINT).read_bytes() == (tiny[0] / FINGERPRINT).read_bytes()


def test_without_weights_there_is_none_and_other_weights_drop_it(copy, tiny, tmp_path):
    bare = compile_artefact(tiny[1].options(tmp_path / "bare", weights=None))
    assert not bare.fingerprint
    said = []
    linked = bind(copy, "random:5", said.append)
    assert not linked.fingerprint
    assert FINGERPRINT not in linked.files
    assert not (copy / FINGERPRINT).exists()
    assert [line for line in said if "fingerprint" in line] == [
        f"its fingerprint was that of the old weights: run l2c_export.check({str(copy)!r}, record=True) for a new one"
    ]


def test_latents_that_are_not_finite_are_no_fingerprint(tiny, tmp_path):
    tensors = load_file(tiny[1].path / "model.safetensors")
    tensors["final_layer.linear.bias"][...] = 3e38
    save_file(tensors, tmp_path / "w.safetensors")
    said = []
    manifest = compile_artefact(tiny[1].options(tmp_path / "e", weights=str(tmp_path / "w.safetensors")), said.append)
    assert not manifest.fingerprint
    assert any(line.startswith("no fingerprint: ") for line in said)


# the file


@pytest.mark.parametrize("change", [
    lambda t: t.pop("call/1"),
    lambda t: t.update(noise=t["noise"][:, :1]),
    lambda t: t.update(noise=t["noise"].astype(np.float64)),
    lambda t: t["call/0"].fill(np.nan),
    lambda t: t.update({"input/class_labels": np.zeros(2, np.int32)}),
    lambda t: t.update({"input/class_labels": np.array([10], np.int32)}),
    lambda t: t.update({"input/class_labels": np.array([-1], np.int32)}),
])  # fmt: skip
def test_another_file_in_its_place_is_refused_in_one_line(copy, change):
    tensors = load_file(copy / FINGERPRINT)
    change(tensors)
    replace_file(copy, save_file, tensors)
    with pytest.raises(ArtefactError, match="is not the fingerprint that the manifest describes: "):
        l2c_export.check(copy, backend="onnxruntime")


def test_what_is_no_safetensors_is_refused(copy):
    replace_file(copy, lambda data, path: path.write_bytes(data), b"\xff" * 100)
    with pytest.raises(ArtefactError, match="is not the fingerprint"):
        l2c_export.check(copy, backend="onnxruntime")


def replace_file(folder, write, content):
    """Write another fingerprint, as somebody would who knows the hashes."""
    manifest = store.read(folder)
    write(content, folder / FINGERPRINT)
    files = {**manifest.files, FINGERPRINT: integrity.info(folder / FINGERPRINT)}
    store.write_json(folder / FILE, msgspec.structs.replace(manifest, files=files))


@pytest.mark.parametrize("change", [
    {"calls": 8}, {"calls": -1}, {"light": 5}, {"filling": -1}, {"precision": "fp16"}, {"seed": -1},
    {"pieces": {"attn": {"graph": "step-000", "node": "x"}}}, {"calls": 0, "light": 0, "filling": 0, "pieces": {}},
], ids=str)  # fmt: skip
def test_a_record_that_contradicts_the_artefact_is_refused(copy, change):
    manifest = store.read(copy)
    raw = {**msgspec.to_builtins(manifest.fingerprint), **change}
    record = msgspec.convert(raw, type(manifest.fingerprint))
    store.write_json(copy / FILE, msgspec.structs.replace(manifest, fingerprint=record))
    with pytest.raises(ArtefactError, match="contradicts itself: its fingerprint"):
        store.read(copy)


# sketches


def test_a_sketch_of_little_is_all_of_it():
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    assert np.array_equal(np.abs(fingerprint.sketch(x, 1)), np.abs(x).ravel())


@pytest.mark.parametrize("size", [fingerprint.SKETCH, 5000, 300_000])
def test_a_sketch_is_as_large_as_the_numbers_and_so_are_its_errors(size):
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, size))
    before, after = (fingerprint.sketch(value, 7).astype(np.float64) for value in (x, x + 1e-3 * noise))
    assert len(before) == fingerprint.SKETCH
    assert np.sqrt(np.mean(before**2)) == pytest.approx(1, rel=0.1)
    assert np.sqrt(np.mean((after - before) ** 2)) == pytest.approx(1e-3, rel=0.1)


def test_every_number_counts_in_a_sketch():
    x = np.zeros(5000)
    for n in (0, 1023, 1024, 4999):
        one = x.copy()
        one[n] = 1
        assert np.abs(fingerprint.sketch(one, 7)).max() > 0.3
