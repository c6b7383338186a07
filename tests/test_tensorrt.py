"""GPU engines built for real, on a machine without a GPU: TensorRT-RTX compiles ahead of time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from helpers import case

import l2c_export
from l2c_export import artefact, building, manifest
from l2c_export.backends.tensorrt_build import Builder, Port, Range, Settings
from l2c_export.compile import compile_artefact
from l2c_export.errors import BackendError, UsageError

trt = pytest.importorskip("tensorrt_rtx")
TYPES = {"float32": trt.float32, "float16": trt.float16, "bfloat16": trt.bfloat16, "int32": trt.int32}


def compiled(name, folder, **options):
    compile_artefact(case(name).options(folder, **options))
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory, own_cache):
    return compiled("dit_tiny_odd_resetN", tmp_path_factory.mktemp("half") / "e", precision="fp16")


@pytest.mark.parametrize(("name", "precision"), [
    ("dit_tiny_lowvar", "fp32"), ("dit_tiny_lowvar", "fp16"), ("dit_tiny_lowvar", "bf16"),
    ("uvit_tiny_variant", "fp32"), ("uvit_tiny_variant", "fp16"),
])  # fmt: skip
def test_every_segment_builds_for_three_gpus_at_once(name, precision, tmp_path):
    folder = compiled(name, tmp_path / "e", precision=precision)
    built = building.build(folder, "tensorrt-rtx", Settings())
    (made,) = built.builds.values()
    assert made.targets == ("sm86", "sm89", "sm120")
    assert set(made.engines) == set(built.segments)
    assert artefact.read(folder) == built  # complete, and every plan as hashed
    assert all((folder / file).stat().st_size > 1000 for file in made.engines.values())


def test_a_network_has_the_names_types_and_shapes_of_the_plan(half):
    """What the parser makes of a segment is what the loop will bind."""
    made = artefact.read(half)
    builder, log = Builder("tensorrt-rtx", Settings(targets=("sm86",))), trt.Logger(trt.Logger.ERROR)
    for graph in made.graphs.values():
        for node in graph.nodes:
            segment = made.segments[node.op]
            network = builder._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            assert trt.OnnxParser(network, log).parse_from_file(str(half / segment.file))
            inputs = [network.get_input(i) for i in range(network.num_inputs)]
            outputs = [network.get_output(i) for i in range(network.num_outputs)]
            assert [i.name for i in inputs] == list(segment.inputs)
            assert [o.name for o in outputs] == list(segment.outputs)
            for tensor, name in zip((*inputs, *outputs), (*node.inputs, *node.outputs), strict=True):
                if not made.is_weight(name):
                    value = made.values[manifest.split_at(name)[0]]
                    assert tensor.dtype == TYPES[value.dtype], (node.name, name)
                    assert list(tensor.shape) == [-1 if isinstance(n, str) else n for n in value.shape], (node.name, name)


def test_engines_take_every_batch_from_one_image_to_the_compiled_one(half):
    made = artefact.read(half)
    sizes = building.images(None, made)
    units = building.units(made, sizes)
    calls, largest = len(made.calls), 2 * made.batch
    step = next(node.op for node in made.graphs[made.calls[0].graph].nodes if node.op.startswith("attn"))
    hoisted = next(node.op for node in made.graphs[made.prologue].nodes if node.op.startswith("modulation"))
    assert units[step].ranges["R"] == (1, largest, largest)
    assert units[hoisted].ranges["R"] == (1, calls * largest, calls * largest)


def test_static_link_builds_whole_graphs_with_their_weights(tmp_path):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link="static", precision="fp16")
    built = building.build(folder, "tensorrt-rtx", Settings(targets=("sm86",)))
    (made,) = built.builds.values()
    assert set(made.engines) == set(built.graphs)
    step = built.calls[0].graph
    weights = sum(built.tensor_bytes(i) for i in built.graphs[step].inputs if built.is_weight(i))
    assert built.files[made.engines[step]].bytes > 0.9 * weights


def test_builds_are_added_and_replaced_and_go_with_the_artefact(half, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    one = building.build(folder, "tensorrt-rtx", Settings(targets=("sm86",)))
    two = building.build(folder, "tensorrt-rtx", Settings(targets=("sm89",)))
    again = building.build(folder, "tensorrt-rtx", Settings(targets=("sm86",), level=1))
    assert len(one.builds) == 1
    assert list(two.builds) != list(one.builds)
    assert set(again.builds) == set(two.builds)
    assert next(b.level for b in again.builds.values() if b.targets == ("sm86",)) == 1
    assert artefact.read(folder) == again
    compile_artefact(case("dit_tiny_lowvar").options(folder))  # another artefact in its place
    assert not list(folder.glob("tensorrt*"))


def test_a_damaged_plan_is_not_loaded(half, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    (made,) = building.build(folder, "tensorrt-rtx", Settings(targets=("sm86",))).builds.values()
    plan = folder / next(iter(made.engines.values()))
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(l2c_export.L2CError, match="does not match its hash"):
        l2c_export.load(folder)


@pytest.mark.parametrize(
    ("backend", "settings", "batch", "message"),
    [
        ("onnxruntime", {}, None, "--backend onnxruntime: nothing to build; use one of tensorrt, tensorrt-rtx"),
        ("tensorrt-rtx", {"targets": ("sm90",)}, None, r"--target sm90: tensorrt-rtx .* builds for sm75, .*sm120"),
        ("tensorrt-rtx", {}, "8", "--batch 8: give MIN:OPT:MAX images, for example 1:1:"),
        ("tensorrt-rtx", {}, "2:1:2", "--batch 2:1:2: give MIN:OPT:MAX"),
        ("tensorrt-rtx", {}, "1:1:99", "--batch 1:1:99: the artefact was compiled for at most"),
    ],
)
def test_wrong_wishes_are_refused(half, backend, settings, batch, message):
    with pytest.raises(UsageError, match=message):
        building.build(half, backend, Settings(**settings), batch)


def test_an_operator_that_the_library_does_not_know_is_named(tmp_path):
    import onnx

    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[R] a) => (float[R] b) { b = Unheard(a) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "odd.onnx")
    builder = Builder("tensorrt-rtx", Settings(targets=("sm86",)))
    with pytest.raises(BackendError, match=r"cannot read odd.onnx: .*Unheard"):
        builder.build(tmp_path / "odd.onnx", [Port("a", ("R",))], {"R": Range(1, 2, 2)})


def test_after_an_error_the_artefact_is_as_it_was(half, monkeypatch):
    before = artefact.read(half)
    calls = []

    def full(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return b"plan"

    monkeypatch.setattr(Builder, "build", full)
    with pytest.raises(l2c_export.L2CError, match="No space left on device"):
        building.build(half, "tensorrt-rtx", Settings())
    assert artefact.read(half) == before
    assert not list(half.glob(".l2c-partial*"))


@pytest.mark.parametrize(
    ("changes", "architecture", "version", "runs"),
    [
        ({}, "sm90", "10.3.0", True),
        ({}, "sm89", "10.3.0", False),
        ({}, "sm90", "10.4.0", False),
        ({"version_compatible": True}, "sm90", "10.4.0", True),
        ({"version_compatible": True}, "sm90", "11.0.0", False),
        ({"hardware_compatible": True}, "sm89", "10.3.0", True),
        ({"hardware_compatible": True}, "sm75", "10.3.0", False),
    ],
)
def test_where_a_build_runs(changes, architecture, version, runs):
    plain = manifest.Build(backend="tensorrt", version="10.3.0", targets=("sm90",), images=(1, 1, 1), level=None,
                           version_compatible=False, hardware_compatible=False, engines={})  # fmt: skip
    assert msgspec.structs.replace(plain, **changes).runs_on(architecture, version) is runs


def test_the_command_needs_neither_torch_nor_onnx(half, tmp_path):
    """On the edge box itself there is only the runtime."""
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    block = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'onnx', 'onnxscript'}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from l2c_export.cli import main; main()\n"
    )
    words = ["build", folder, "--backend", "tensorrt-rtx", "--target", "sm120", "--json"]
    done = subprocess.run([sys.executable, "-c", block, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = json.loads(done.stdout)["builds"].values()
    assert made["engines"] == len(artefact.read(folder).segments)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dit_tiny_lowvar", "uvit_tiny_variant"])
def test_a_gpu_gives_the_recorded_latents(name, tmp_path):
    pytest.importorskip("tensorrt")
    chosen = case(name)
    compile_artefact(chosen.options(tmp_path / "e", backend="tensorrt"))
    building.build(tmp_path / "e", "tensorrt", Settings())
    golden, count = chosen.golden, chosen.config["batch"]
    x = l2c_export.load(tmp_path / "e")(golden["y"][:count].tolist(), chosen.scale, latents=golden["x_T"][:count]).latents
    want = golden["cached_x"][-1, :count]
    assert np.abs(x - want).max() < 1e-3 * max(1.0, np.abs(want).max())
