"""Networks as TensorRT's parser makes them, and what its builder is told: TensorRT-RTX compiles without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import onnx
import pytest
from helpers import compiled

from l2c_export.artefact import store
from l2c_export.backends import builds, units
from l2c_export.backends.building import BuildSettings, Port, Range
from l2c_export.backends.tensorrt.builder import LEVEL, Builder, largest
from l2c_export.backends.tensorrt.monitor import Interrupt, monitor
from l2c_export.backends.tensorrt.pointwise import give_to_myelin
from l2c_export.backends.tensorrt.types import MOVES, fix_interface, stated
from l2c_export.errors import BackendError

trt = pytest.importorskip("tensorrt_rtx")


TYPES = {"float32": trt.float32, "float16": trt.float16, "bfloat16": trt.bfloat16, "int32": trt.int32}


def parsed(file):
    """What this library's parser makes of a file; 8.6 makes the like."""
    builder = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))
    network = builder._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, builder._log).parse_from_file(str(file))
    return network


def test_a_network_has_the_names_types_and_shapes_of_the_plan(half):
    """What the parser makes of a segment is what the loop will bind."""
    program = store.read(half).program()
    for graph in program.graphs.values():
        for node in graph.nodes:
            segment = program.segments[node.op]
            network = parsed(half / segment.file)
            inputs = [network.get_input(i) for i in range(network.num_inputs)]
            outputs = [network.get_output(i) for i in range(network.num_outputs)]
            assert [i.name for i in inputs] == list(segment.inputs)
            assert [o.name for o in outputs] == list(segment.outputs)
            for tensor, name in zip((*inputs, *outputs), (*node.inputs, *node.outputs), strict=True):
                if not program.is_weight(name):
                    value = program.value(name)
                    assert tensor.dtype == TYPES[value.dtype], (node.name, name)
                    assert list(tensor.shape) == [-1 if isinstance(n, str) else n for n in value.shape], (node.name, name)


@pytest.fixture(scope="module")
def networks(half):
    return {name.partition(".")[0]: parsed(half / segment.file) for name, segment in store.read(half).denoiser.segments.items()}


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
    networks = {}
    for name, segment in store.read(half).denoiser.segments.items():
        network = parsed(half / segment.file)
        before = network.num_layers
        give_to_myelin(trt, network)
        if network.num_layers > before:
            networks[name.partition(".")[0]] = network
    assert set(networks) == {"mul-add"}
    network = networks["mul-add"]
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
    monkeypatch.setattr("l2c_export.backends.tensorrt.builder.state_types", lambda *_: None)
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
    manifest = store.read(half)
    unit = next(
        unit for name, unit in units.units(manifest, builds.images(None, manifest)).items() if name.startswith("mul-add")
    )
    if able:
        assert builder.build(half / unit.file, unit.ports, unit.ranges) == b"plan"
    else:
        with pytest.raises(BackendError, match="cannot build mul-add"):
            builder.build(half / unit.file, unit.ports, unit.ranges)
    assert seen == tried


def test_only_products_of_matrices_in_the_loop_are_tuned(half, monkeypatch):
    manifest, config, tuned = store.read(half), Mock(), set()
    builder = builder_of_8(monkeypatch, config, lambda *_: b"plan")
    for name, unit in units.units(manifest, builds.images(None, manifest)).items():
        builder.build(half / unit.file, unit.ports, unit.ranges, unit.once)
        if config.builder_optimization_level == LEVEL:
            tuned.add(name.partition(".")[0])
    assert tuned == {"embed", "attn-mul-add", "mlp-mul-add", "final"}


def test_engines_compute_in_plain_float32_and_on_the_one_stream():
    config = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))._config()
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.max_aux_streams == 0, "they share one scratch memory"


def test_large_pictures_have_the_scratch_that_their_values_need(tmp_path):
    """An MLP over 4,096 tokens, of as many rows as it is built for."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float16[R,4096,1152] a, float16[1152,4608] v, float16[4608,1152] w) => (float16[R,4096,1152] d)
        { b = MatMul(a, v) c = Tanh(b) d = MatMul(c, w) }"""
    file, ports = tmp_path / "mlp.onnx", [Port("a", ("R", 4096, 1152)), Port("v", (1152, 4608)), Port("w", (4608, 1152))]
    onnx.save(onnx.parser.parse_model(text), file)
    assert largest(parsed(file), 4) == 4 * 4 * 4096 * 4608
    for rows in (2, 16):
        builder = Builder("tensorrt-rtx", BuildSettings(targets=("sm86", "sm120")))
        assert builder.build(file, ports, {"R": Range(2, rows, rows)})


def test_an_operator_that_the_library_does_not_know_is_named(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[R] a) => (float[R] b) { b = Unheard(a) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "odd.onnx")
    builder = Builder("tensorrt-rtx", BuildSettings(targets=("sm86",)))
    with pytest.raises(BackendError, match=r"cannot read odd.onnx: .*Unheard") as caught:
        builder.build(tmp_path / "odd.onnx", [Port("a", ("R",))], {"R": Range(1, 2, 2)})
    assert "\n" not in str(caught.value)


def test_ctrl_c_does_not_wait_for_the_end_of_an_engine():
    interrupt = Interrupt()
    told = monitor(trt, lambda *_: None, interrupt)
    assert told.step_complete("timing", 0)
    interrupt.pressed = True
    assert not told.step_complete("timing", 1)
