"""GPU engines built for real, on a machine without a GPU: TensorRT-RTX compiles ahead of time."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, create_autospec

import msgspec
import onnx
import pytest
from fake_cuda import Error, FakeCudart
from helpers import case

import l2c_export
from l2c_export.artefact import manifest, store
from l2c_export.backends import builds as backends_builds
from l2c_export.backends import units as backends_units
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request, SegmentFile
from l2c_export.backends.cuda import device
from l2c_export.backends.ports import Port, Range
from l2c_export.backends.tensorrt import builder as tensorrt_build
from l2c_export.backends.tensorrt.backend import MODULES
from l2c_export.backends.tensorrt.builder import Builder, BuildSettings
from l2c_export.backends.tensorrt.monitor import Interrupt, monitor
from l2c_export.backends.tensorrt.pointwise import give_to_myelin
from l2c_export.backends.tensorrt.types import MOVES, fix_interface, stated
from l2c_export.benchmarks.twins import compile_twin
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.link import bind
from l2c_export.errors import ArtefactError, BackendError, MissingExtra, RunError, UsageError

trt = pytest.importorskip("tensorrt_rtx")
TYPES = {"float32": trt.float32, "float16": trt.float16, "bfloat16": trt.bfloat16, "int32": trt.int32}


def compiled(name, folder, **options):
    compile_artefact(case(name).options(folder, **options))
    return folder


def parsed(file):
    """What this library's parser makes of a file; 8.6 makes the like."""
    builder = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))
    network = builder._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, builder._log).parse_from_file(str(file))
    return network


@pytest.fixture(scope="module")
def half(tmp_path_factory, own_cache):
    return compiled("dit_tiny_odd_resetN", tmp_path_factory.mktemp("half") / "e", precision="fp16")


@pytest.mark.parametrize(("name", "precision"), [
    ("dit_tiny_lowvar", "fp32"), ("dit_tiny_lowvar", "fp16"), ("dit_tiny_lowvar", "bf16"),
    ("uvit_tiny_variant", "fp32"), ("uvit_tiny_variant", "fp16"),
])  # fmt: skip
def test_every_segment_builds_for_three_gpus_at_once(name, precision, tmp_path):
    folder = compiled(name, tmp_path / "e", precision=precision)
    built = backends_builds.build(folder, "tensorrt-rtx", BuildSettings())
    (made,) = built.builds.values()
    assert made.targets == ("sm86", "sm89", "sm120")
    assert set(made.engines) == set(built.segments)
    assert store.read(folder) == built  # complete, and every plan as hashed
    assert all((folder / file).stat().st_size > 1000 for file in made.engines.values())
    attention = [(folder / file).read_bytes() for name, file in made.engines.items() if name.startswith("attn")]
    fused = precision != "fp32"  # the library has such kernels for half precision only
    assert attention
    assert all((b"_gemm_mha" in plan) == fused for plan in attention)


def test_a_network_has_the_names_types_and_shapes_of_the_plan(half):
    """What the parser makes of a segment is what the loop will bind."""
    made = store.read(half)
    for graph in made.graphs.values():
        for node in graph.nodes:
            segment = made.segments[node.op]
            network = parsed(half / segment.file)
            inputs = [network.get_input(i) for i in range(network.num_inputs)]
            outputs = [network.get_output(i) for i in range(network.num_outputs)]
            assert [i.name for i in inputs] == list(segment.inputs)
            assert [o.name for o in outputs] == list(segment.outputs)
            for tensor, name in zip((*inputs, *outputs), (*node.inputs, *node.outputs), strict=True):
                if not made.is_weight(name):
                    value = made.values[manifest.split_at(name)[0]]
                    assert tensor.dtype == TYPES[value.dtype], (node.name, name)
                    assert list(tensor.shape) == [-1 if isinstance(n, str) else n for n in value.shape], (node.name, name)


@pytest.fixture(scope="module")
def networks(half):
    return {name.partition(".")[0]: parsed(half / segment.file) for name, segment in store.read(half).segments.items()}


def test_where_types_are_hints_every_layer_is_told_its_own(networks):
    kinds = trt.LayerType
    told = {name: {(layer.type, kind) for layer, kind in stated(trt, network)} for name, network in networks.items()}
    assert (kinds.MATRIX_MULTIPLY, trt.float16) in told["attn-mul-add"]
    # they have float32 sums by themselves; told so, 8.6 does not fuse attention
    assert not {kinds.NORMALIZATION, kinds.SOFTMAX} & {layer for layer, _ in told["attn-mul-add"]}
    # sine and cosine of up to 1000, before products in half precision
    assert {(kinds.UNARY, trt.float32), (kinds.MATRIX_MULTIPLY, trt.float16)} <= told["time"]
    assert {(kind, trt.float32) for kind in (kinds.NORMALIZATION, kinds.MATRIX_MULTIPLY, kinds.ELEMENTWISE)} <= told["final"]
    assert {kind for _, kind in told["update"]} == {trt.float32}
    assert {kind for _, kind in told["modulation"] | told["mul-add"]} == {trt.float16}
    moves = {getattr(kinds, name) for name in MOVES}
    for layers in told.values():
        assert not moves & {layer for layer, _ in layers}  # they compute nothing
        assert (kinds.MATRIX_MULTIPLY, trt.float32) not in layers or (kinds.MATRIX_MULTIPLY, trt.float16) not in layers


def test_attention_in_float32_stays_so_in_a_step_of_half_precision(tmp_path):
    """Its scores may be those that overflow in half precision."""
    options = {"precision": "fp16", "fp32": ("blocks.0.attn",), "link": "static"}
    folder = compiled("dit_tiny_odd_resetN", tmp_path / "e", **options)
    network = parsed(folder / "step-000.onnx")
    softmaxes = [i for i in range(network.num_layers) if network.get_layer(i).type == trt.LayerType.SOFTMAX]
    told = [kind for layer, kind in stated(trt, network) if layer.type == trt.LayerType.SOFTMAX]
    assert len(softmaxes) > 1
    assert told == [trt.float32]


def test_networks_of_one_type_are_given_their_tensors_as_they_are(networks):
    fixed = {name for name, network in networks.items() if fix_interface(trt, network)}
    assert set(networks) - fixed == {"time", "embed", "final"}  # between float32 and half precision
    linear = 1 << int(trt.TensorFormat.LINEAR)
    for name in fixed:
        network = networks[name]
        assert {network.get_input(i).allowed_formats for i in range(network.num_inputs)} == {linear}
        assert {network.get_output(i).allowed_formats for i in range(network.num_outputs)} == {linear}


def test_only_chains_of_sums_and_products_go_to_myelin_by_a_gather_that_changes_nothing(half):
    given = {}
    for name, segment in store.read(half).segments.items():
        network = parsed(half / segment.file)
        before = network.num_layers
        give_to_myelin(trt, network)
        if network.num_layers > before:
            given[name.partition(".")[0]] = network
    assert set(given) == {"mul-add"}
    network = given["mul-add"]
    constant, gather = (network.get_layer(network.num_layers - i) for i in (2, 1))
    gather.__class__ = trt.IGatherLayer
    constant.__class__ = trt.IConstantLayer
    gate = gather.get_input(0)
    assert list(constant.weights) == [0]
    assert gate.shape[gather.axis] == 1  # so that the first is all there is
    assert network.get_layer(0).get_input(0).name == gather.get_output(0).name


class Like8:
    """This library under the names that 8.6 has for it."""

    NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def __getattr__(self, name):
        return getattr(trt, name)


def builder_of_8(monkeypatch, config, build):
    """`build` makes its plans, as `config` says."""
    builder = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))
    wrapped = Mock(wraps=builder._builder, build_serialized_network=build)
    vars(builder).update(_builder=wrapped, _cache=None, _trt=Like8(), strong=False)
    monkeypatch.setattr(builder, "_config", lambda: config)
    monkeypatch.setattr(tensorrt_build, "state_types", lambda *_: None)
    return builder


@pytest.mark.parametrize(("able", "tried"), [
    ({"direct", "free"}, ["direct"]), ({"free"}, ["direct", "free"]), (set(), ["direct", "free"]),
])  # fmt: skip
def test_where_no_kernel_reads_a_tensor_as_it_is_the_interface_is_left_free(half, monkeypatch, able, tried):
    """As it is with the prologue of a static link in half precision."""
    flags, seen = set(), []
    config = Mock(set_flag=flags.add, clear_flag=flags.remove, get_flag=flags.__contains__)

    def build(network, config):
        seen.append("direct" if trt.BuilderFlag.DIRECT_IO in flags else "free")
        return b"plan" if seen[-1] in able else None

    builder = builder_of_8(monkeypatch, config, build)
    made = store.read(half)
    unit = next(
        unit
        for name, unit in backends_units.units(made, backends_builds.images(None, made)).items()
        if name.startswith("mul-add")
    )
    if able:
        assert builder.build(half / unit.file, unit.ports, unit.ranges) == b"plan"
    else:
        with pytest.raises(BackendError, match="cannot build mul-add"):
            builder.build(half / unit.file, unit.ports, unit.ranges)
    assert seen == tried


def test_only_products_of_matrices_in_the_loop_are_tuned(half, monkeypatch):
    made, config, tuned = store.read(half), Mock(), set()
    builder = builder_of_8(monkeypatch, config, lambda *_: b"plan")
    for name, unit in backends_units.units(made, backends_builds.images(None, made)).items():
        builder.build(half / unit.file, unit.ports, unit.ranges, unit.once)
        if config.builder_optimization_level == tensorrt_build.LEVEL:
            tuned.add(name.partition(".")[0])
    assert tuned == {"embed", "attn-mul-add", "mlp-mul-add", "final"}


def test_engines_compute_in_plain_float32_and_on_the_one_stream():
    config = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))._config()
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.max_aux_streams == 0, "they share one scratch memory"


def test_a_library_that_has_nothing_to_build_is_not_started(half, monkeypatch, tmp_path):
    """Starting 8.6 takes ten seconds, and it crashes at the end of a process that has built nothing."""
    shutil.copytree(half, tmp_path / "e")
    backends_builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    monkeypatch.setattr(trt, "Builder", None)
    said = []
    built = backends_builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86",)), report=said.append)
    assert store.read(tmp_path / "e") == built
    assert said[-1].endswith("all of them were built before")


def test_engines_take_every_batch_from_one_image_to_the_compiled_one(half):
    made = store.read(half)
    sizes = backends_builds.images(None, made)
    units = backends_units.units(made, sizes)
    calls, largest = len(made.calls), 2 * made.batch
    step = next(node.op for node in made.graphs[made.calls[0].graph].nodes if node.op.startswith("attn"))
    hoisted = next(node.op for node in made.graphs[made.prologue].nodes if node.op.startswith("modulation"))
    assert units[step].ranges["R"] == (1, largest, largest)
    assert units[hoisted].ranges["R"] == (1, calls * largest, calls * largest)
    constant = next(node.op for node in made.graphs[made.constants].nodes if node.op.startswith("time"))
    assert units[constant].ranges["R"] == (1, calls, calls)


def test_what_runs_before_the_loop_is_not_worth_tuning(half):
    made = store.read(half)
    once = {
        name.partition(".")[0]
        for name, unit in backends_units.units(made, backends_builds.images(None, made)).items()
        if unit.once
    }
    assert once == {"time", "condition", "modulation"}


def test_static_link_builds_whole_graphs_with_their_weights(tmp_path):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link="static", precision="fp16")
    graph = onnx.load(folder / "step-000.onnx", load_external_data=False)
    assert not graph.functions  # which TensorRT 8.6 cannot read
    assert all(node.domain == "" for node in graph.graph.node)
    built = backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    (made,) = built.builds.values()
    assert set(made.engines) == set(built.graphs)
    step = built.calls[0].graph
    weights = sum(built.tensor_bytes(i) for i in built.graphs[step].inputs if built.is_weight(i))
    assert built.files[made.engines[step]].bytes > 0.9 * weights


def test_a_graph_that_is_too_much_for_the_library_comes_with_a_way_out(tmp_path, monkeypatch, empty_cache):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link="static")

    def cannot(*_):
        raise BackendError("cannot build step-000.onnx: no implementation")

    monkeypatch.setattr(Builder, "build", cannot)
    with pytest.raises(BackendError, match="no implementation: compile it with --link shared, whose engines are smaller"):
        backends_builds.build(folder, "tensorrt-rtx", BuildSettings())


def test_other_weights_take_static_engines_with_them(tmp_path):
    """They hold the old ones; shared engines are given theirs when they run."""
    for link in ("shared", "static"):
        folder, said = compiled("uvit_tiny_oddnfe", tmp_path / link, link=link), []
        built = backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
        (made,) = built.builds.values()
        linked = bind(folder, "random:7", said.append)
        assert store.read(folder) == linked
        plans = [(folder / file).exists() for file in made.engines.values()]
        if link == "shared":
            assert linked.builds == built.builds
            assert all(plans)
        else:
            assert linked.builds == {}
            assert not any(plans)
            assert (
                said[-1]
                == f"its engines for tensorrt-rtx held the old weights: run l2c build {folder} --backend tensorrt-rtx again"
            )


@pytest.fixture
def built(monkeypatch, tmp_path):
    """The models that are built anew, by a builder that does no work and has kept nothing from before the test."""
    models = []
    monkeypatch.setattr(Builder, "identity", [str(tmp_path)])
    monkeypatch.setattr(Builder, "build", lambda self, model, *_: models.append(model.name) or b"plan")
    return models


@pytest.mark.parametrize(("link", "times"), [("shared", 1), ("static", 2)])
def test_new_weights_need_new_engines_where_they_are_part_of_them(tmp_path, built, link, times):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link=link)
    for weights in ("random:7", "random:8"):
        bind(folder, weights)
        backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    assert set(map(built.count, built)) == {times}


def test_engines_that_were_kept_are_not_used_for_another_range_of_images(half, tmp_path, built):
    shutil.copytree(half, tmp_path / "e")
    for batch in ("1:1:2", "1:1:1", "1:1:2"):
        backends_builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86",)), batch)
    assert {built.count(name) for name in built if name.startswith("attn")} == {2}
    assert {built.count(name) for name in built if name.startswith("time")} == {1}, "what has no images is the same"


def test_static_engines_need_weights(tmp_path):
    folder = compiled("uvit_tiny_oddnfe", tmp_path / "e", link="static", weights=None)
    with pytest.raises(ArtefactError, match="has no weights yet: bind them with l2c link"):
        backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))


def test_a_twin_has_the_engines_that_the_artefact_has(half, tmp_path):
    shutil.copytree(half, tmp_path / "e")
    backends_builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86", "sm120"), level=1), "1:1:1")
    manifest = store.read(tmp_path / "e")
    compile_twin(tmp_path / "e", manifest, tmp_path / "twin", cache=False)
    mine, other = (next(iter(store.read(tmp_path / name).builds.values())) for name in ("e", "twin"))
    assert (other.backend, other.targets, other.images, other.level) == (mine.backend, mine.targets, mine.images, mine.level)
    assert set(other.engines) == set(store.read(tmp_path / "twin").segments)


def test_builds_are_added_and_replaced_and_go_with_the_artefact(half, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    said = []
    one = backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)), report=said.append)
    two = backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm89",)), report=said.append)
    again = backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",), level=1), report=said.append)
    assert len(one.builds) == 1
    assert not any("replace" in line for line in said)
    assert list(two.builds) != list(one.builds)
    assert set(again.builds) == set(two.builds)
    assert next(b.level for b in again.builds.values() if b.targets == ("sm86",)) == 1
    assert store.read(folder) == again
    most = again.batch
    backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)), batch="1:1:1", report=said.append)
    assert f"replace those for 1 to {most} images, fastest at {most}: they are for 1 to 1 images" in said[-1]
    compile_artefact(case("dit_tiny_lowvar").options(folder))  # another artefact in its place
    assert not list(folder.glob("tensorrt*"))


def test_a_build_is_removed_with_its_files_and_nothing_else(half, tmp_path):
    folder, said = tmp_path / "e", []
    shutil.copytree(half, folder)
    one = backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    both = backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm89",)))
    (kept,), gone = one.builds, both.builds.keys() - one.builds.keys()
    with pytest.raises(UsageError, match=f"nope: .*e has no such build: it holds {kept}, {next(iter(gone))}$"):
        backends_builds.remove(folder, [kept, "nope"])
    assert store.read(folder) == both
    (folder / next(iter(both.builds[next(iter(gone))].engines.values()))).write_bytes(b"damaged")  # one reason to remove it
    assert backends_builds.remove(folder, list(gone), said.append) == one
    assert store.read(folder) == one
    assert {path.name for path in folder.glob("tensorrt*")} == {kept}
    assert re.fullmatch(rf".*e: \d\.\d MB removed; it holds {kept}", said[-1])
    backends_builds.remove(folder, [kept], said.append)
    assert store.read(folder) == store.read(half)
    assert not list(folder.glob("tensorrt*"))
    assert said[-1].endswith("no build is left: l2c build adds one")


def test_a_damaged_plan_is_not_loaded(half, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    (made,) = backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",))).builds.values()
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
        ("tensorrt-rtx", {"targets": ("sm90",)}, None, r"--target sm90: tensorrt-rtx .* builds for sm80, .*sm120"),
        ("tensorrt-rtx", {"targets": ("sm75",)}, None, r"--target sm75: tensorrt-rtx .* builds for sm80, "),
        ("tensorrt-rtx", {}, "8", "--batch 8: give MIN:OPT:MAX images, for example 1:1:"),
        ("tensorrt-rtx", {}, "2:1:2", "--batch 2:1:2: give MIN:OPT:MAX"),
        ("tensorrt-rtx", {}, "1:1:99", "--batch 1:1:99: the artefact was compiled for at most"),
        ("tensorrt-rtx", {"version_compatible": True}, None, "--version-compatible: the engines of tensorrt-rtx"),
        ("tensorrt-rtx", {"hardware_compatible": True}, None, "--hardware-compatible: tensorrt-rtx builds for"),
    ],
)
def test_wrong_wishes_are_refused(half, backend, settings, batch, message):
    with pytest.raises(UsageError, match=message):
        backends_builds.build(half, backend, BuildSettings(**settings), batch)


def test_a_timing_cache_that_cannot_be_used_is_refused_before_the_work(half, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"--timing-cache t: tensorrt-rtx measures nothing when it builds: leave it out"):
        backends_builds.build(half, "tensorrt-rtx", BuildSettings(), timing_cache=Path("t"))
    monkeypatch.setattr(backends_builds, "Cuda", None)
    with pytest.raises(UsageError, match=r"--timing-cache .*/no/t: there is no folder .*/no: make it first"):
        backends_builds.build(half, "tensorrt", BuildSettings(), timing_cache=tmp_path / "no" / "t")


def test_what_was_measured_on_another_gpu_of_the_architecture_is_not_used(half, tmp_path, monkeypatch, empty_cache):
    """A stand-in for TensorRT's builder, which only runs on its GPU."""
    built = []

    class Fake(Builder):
        version = identity = "10.3.0"

        def __init__(self, *_):
            self.known, self.seconds = b"", {}

        def build(self, model, *_):
            self.seconds[model.name] = 1.0
            built.append(self.known)
            return b"plan"

        def timing_cache(self):
            return card.encode()

    monkeypatch.setattr(backends_builds, "Builder", Fake)
    monkeypatch.setattr(backends_builds, "Cuda", lambda *_: SimpleNamespace(architecture="sm89", name=card))
    count = len(store.read(half).segments)
    for card, times in (("NVIDIA L4", 1), ("NVIDIA GeForce RTX 4090", 2), ("NVIDIA L4", 2)):
        folder = tmp_path / f"{card} {times}"
        shutil.copytree(half, folder)
        backends_builds.build(folder, "tensorrt", BuildSettings())
        assert built == [b""] * times * count
    shutil.rmtree(empty_cache / "plans")
    backends_builds.build(folder, "tensorrt", BuildSettings())
    assert built[2 * count :] == [b"NVIDIA L4"] * count


def test_of_several_builds_that_fit_the_newest_is_used(cudart, half, tmp_path):
    cudart.capability = 8, 6
    shutil.copytree(half, tmp_path / "e")
    for targets in (("sm86",), ("sm120", "sm86", "sm86"), ("sm86",)):
        made = backends_builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=targets), batch="1:1:1")
        request = Request(folder=tmp_path / "e", builds=tuple(made.builds.values()), files=made.files)
        assert open_backend("tensorrt-rtx", request).backend._build.targets == tuple(sorted(set(targets), key=len))
    assert len(made.builds) == 2


def test_engines_are_not_linked_in_another_way_than_they_were_built(cudart, half, tmp_path, built):
    cudart.capability = 8, 6
    shutil.copytree(half, tmp_path / "e")
    backends_builds.build(tmp_path / "e", "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    with pytest.raises(UsageError, match="--link static: the engines of tensorrt-rtx were built for --link shared"):
        l2c_export.load(tmp_path / "e", "tensorrt-rtx", link="static")


def test_an_operator_that_the_library_does_not_know_is_named(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[R] a) => (float[R] b) { b = Unheard(a) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "odd.onnx")
    builder = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))
    with pytest.raises(BackendError, match=r"cannot read odd.onnx: .*Unheard") as caught:
        builder.build(tmp_path / "odd.onnx", [Port("a", ("R",))], {"R": Range(1, 2, 2)})
    assert "\n" not in str(caught.value)


def test_after_an_error_the_artefact_is_as_it_was(half, monkeypatch, empty_cache):
    before = store.read(half)
    calls = []

    def full(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return b"plan"

    monkeypatch.setattr(Builder, "build", full)
    with pytest.raises(l2c_export.L2CError, match="No space left on device"):
        backends_builds.build(half, "tensorrt-rtx", BuildSettings())
    assert store.read(half) == before
    assert not list(half.glob(".l2c-partial*"))


@pytest.mark.parametrize(
    ("changes", "architecture", "version", "runs"),
    [
        ({}, "sm90", "10.3.0", True),
        ({}, "sm89", "10.3.0", False),
        ({}, "sm90", "10.4.0", False),
        ({"version_compatible": True}, "sm90", "10.4.0", True),
        ({"version_compatible": True}, "sm90", "11.0.0", False),
        ({"version_compatible": True}, "sm90", "10.2.9", False),
        ({"version_compatible": True}, "sm90", "10.10.0", True),
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
        "from l2c_export.cli.main import main; main()\n"
    )
    words = ["build", folder, "--backend", "tensorrt-rtx", "--target", "sm120", "--json"]
    done = subprocess.run([sys.executable, "-c", block, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = json.loads(done.stdout)["builds"].values()
    assert made["engines"] == len(store.read(folder).segments)


def test_a_build_tells_how_far_it_is(half, tmp_path, empty_cache):
    folder, seen, done = tmp_path / "e", [], []
    shutil.copytree(half, folder)
    backends_builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)), progress=lambda: done.append(len(seen)),
                   watch=lambda phase, share: seen.append((phase, share)))  # fmt: skip
    assert len(done) == backends_units.count(store.read(folder))
    for first, last in zip([0, *done], done, strict=False):
        shares = [share for _, share in seen[first:last]]
        assert shares[0] == 0
        assert shares == sorted(shares)
        assert shares[-1] > 0.5
    assert len({phase for phase, _ in seen}) > 3


BUILD = """
import signal, sys
from pathlib import Path
from l2c_export import building
from l2c_export.backends.tensorrt_build import Settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent has set
building.build(Path(sys.argv[1]), "tensorrt-rtx", Settings(), watch=lambda *_: print(flush=True))
"""


@pytest.mark.parametrize("milliseconds", [0, 20, 70, 150])
def test_ctrl_c_at_any_time_ends_a_build_and_leaves_the_artefact_as_it_was(half, tmp_path, empty_cache, milliseconds):
    """It comes while the library runs, which swallows exceptions of the callbacks that Python would raise it in."""
    folder = tmp_path / "e"
    shutil.copytree(half, folder)
    before = store.read(folder)
    words = [sys.executable, "-c", BUILD, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.readline()  # the first engine has begun
        time.sleep(1e-3 * milliseconds)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=600)
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    assert store.read(folder) == before
    assert not list(folder.glob(".l2c-partial*"))


def test_ctrl_c_does_not_wait_for_the_end_of_an_engine():
    interrupt = Interrupt()
    told = monitor(trt, lambda *_: None, interrupt)
    assert told.step_complete("timing", 0)
    interrupt.pressed = True
    assert not told.step_complete("timing", 1)


def test_the_progress_bar_shows_phases(monkeypatch):
    import io

    from l2c_export.cli.progress import bars

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with bars() as shown:
        step = shown.progress("building engines", 4)
        step()
        shown.watch("Timing tactics", 0.5)
        shown._display.refresh()
        assert "building engines: Timing tactics" in sys.stderr.getvalue()
        assert "38%" in sys.stderr.getvalue()  # one and a half of four


CONTEXT_8 = ["device_memory", "set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"]


# A GPU and its driver are stood in for; the library is the real one as far as it goes without them.


@pytest.fixture
def cudart(monkeypatch):
    pytest.importorskip("cuda.bindings.runtime")
    fake = FakeCudart()
    monkeypatch.setattr(device, "needs", lambda package, extra: fake)
    return fake


def a_build(backend="tensorrt-rtx", version=trt.__version__, targets=("sm90",)):
    return manifest.Build(backend=backend, version=version, targets=targets, images=(1, 1, 1), level=None,
                          version_compatible=False, hardware_compatible=False, engines={"s": "s.plan"})  # fmt: skip


def backend_for(folder, build=None, **given):
    return open_backend("tensorrt-rtx", Request(folder=folder, builds=(build or a_build(),), **given)).backend


@pytest.mark.parametrize(
    ("builds", "found"),
    [
        ((a_build(targets=("sm86", "sm120")),), rf"{trt.__version__} for sm86, sm120"),
        ((a_build(version="1.2.0"),), r"1\.2\.0 for sm90"),
        ((a_build(version="1.2.0"), a_build(targets=("sm75",))), rf"1\.2\.0 for sm90; {trt.__version__} for sm75"),
        ((a_build(backend="tensorrt"),), "no such engines"),
    ],
)
def test_engines_for_others_are_refused_with_both_sides_and_the_remedy(cudart, builds, found, tmp_path):
    remedy = f"run l2c build {tmp_path} --backend tensorrt-rtx --target sm90"
    with pytest.raises(
        BackendError, match=f"the artefact has {found}, needed are {trt.__version__} for sm90: {remedy}"
    ) as caught:
        open_backend("tensorrt-rtx", Request(folder=tmp_path, builds=builds))
    assert "\n" not in str(caught.value)


def test_a_plan_that_the_library_does_not_take_is_one_line(cudart, tmp_path):
    (tmp_path / "s.plan").write_bytes(b"an older format")
    backend = backend_for(tmp_path)
    with pytest.raises(
        ArtefactError, match=r"s\.plan cannot be read by tensorrt-rtx .*: run l2c build .* --target sm90"
    ) as caught:
        backend.load(SegmentFile(tmp_path / "s.onnx", (), ()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("backend", "module"), MODULES.items())
def test_a_missing_library_is_named_with_its_extra(backend, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"{module} is not installed: pip install 'l2c-export\[{backend}\]'"):
        open_backend(backend)


def test_a_library_that_does_not_load_is_one_line_and_no_end_for_auto(tiny, tmp_path, monkeypatch):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open\\nshared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino" or name.endswith("openvino_backend")]:
        monkeypatch.delitem(sys.modules, name)
    says = "openvino is installed, but does not load: libtbb.so.12: cannot open shared object file: mend it first"
    with pytest.raises(BackendError, match=says):
        open_backend("openvino")
    assert says in open_backend("auto", Request(device="cpu", precision="fp16")).why


def test_without_a_driver_there_is_one_line(monkeypatch, half):
    failing = FakeCudart(driver=0, failing={"cudaGetDeviceCount": Error.cudaErrorInsufficientDriver})
    monkeypatch.setattr(device, "needs", lambda package, extra: failing)
    for wish in (lambda: open_backend("tensorrt-rtx"), lambda: backends_builds.build(half, "tensorrt", BuildSettings())):
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
    with pytest.raises(BackendError, match=r"s\.onnx was not built for a of shape \[3\]: .*l2c build --batch"):
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
