"""The graphs are plain ONNX for other tools: every reader that is installed takes them, and makes our latents of them."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import onnx
import onnx.version_converter
import pytest
import standalone
from helpers import case
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_shapes_path

import l2c_export
from l2c_export.artefact import store
from l2c_export.backends.choose import open_backend
from l2c_export.compiler.compile import compile_artefact

COMPILED = [("dit_tiny_odd_resetN", "fp32"), ("dit_tiny_odd_resetN", "fp16"), ("dit_tiny_odd_resetN", "bf16"),
            ("uvit_tiny_variant", "fp32"), ("uvit_tiny_variant", "fp16")]  # fmt: skip


@pytest.fixture(scope="module", params=COMPILED, ids=" ".join)
def engines(request, tmp_path_factory, own_cache):
    """The folder of a compiled case."""
    name, precision = request.param
    folder = tmp_path_factory.mktemp("readers") / "engines"
    compile_artefact(case(name).options(folder, precision=precision, backend="auto"))
    return folder


def graphs(folder):
    return [folder / graph.file for graph in store.read(folder).program().graphs.values()]


def segments(folder):
    return [folder / segment.file for segment in store.read(folder).denoiser.segments.values()]


def test_there_is_nothing_but_operators_of_opset_17(engines):
    for path in (*graphs(engines), *segments(engines)):
        model = onnx.load(path, load_external_data=False)
        assert not model.functions
        assert {node.domain for node in model.graph.node} == {""}, path.name
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
        assert model.ir_version == 8  # the one of opset 17


def test_the_checker_and_strict_shape_inference_take_them(engines, tmp_path):
    for path in (*graphs(engines), *segments(engines)):
        onnx.checker.check_model(path, full_check=True)
        infer_shapes_path(path, tmp_path / "inferred.onnx", check_type=True, strict_mode=True, data_prop=True)
        known = {info.name for info in onnx.load(tmp_path / "inferred.onnx", load_external_data=False).graph.value_info}
        outputs = {name for node in onnx.load(path, load_external_data=False).graph.node for name in node.output}
        assert outputs - known <= {o.name for o in onnx.load(path, load_external_data=False).graph.output}, path.name


def test_openvino_reads_every_file(engines):
    core = pytest.importorskip("openvino").Core()
    for path in (*graphs(engines), *segments(engines)):
        model, graph = core.read_model(path), onnx.load(path, load_external_data=False).graph
        assert [i.any_name for i in model.inputs] == [i.name for i in graph.input]
        assert [o.any_name for o in model.outputs] == [o.name for o in graph.output]


def test_the_parser_of_tensorrt_reads_every_file(engines):
    trt = pytest.importorskip("tensorrt_rtx")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    for path in (*graphs(engines), *segments(engines)):
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        assert parser.parse_from_file(str(path)), (path.name, parser.get_error(0).desc())
        assert network.num_outputs == len(onnx.load(path, load_external_data=False).graph.output)


def test_polygraphy_reads_every_file(engines):
    pytest.importorskip("polygraphy")
    from polygraphy.backend.onnx import InferShapes, OnnxFromPath

    for path in graphs(engines):
        assert InferShapes(OnnxFromPath(str(path)))().graph.output


def test_a_node_is_called_after_the_sublayer_that_it_is_in(engines):
    manifest = store.read(engines)
    sublayers, seen = set(manifest.denoiser.sublayers), set()
    for name in {call.graph for call in manifest.program().calls}:
        calls = {node.name for node in manifest.program().graphs[name].nodes}
        for node in onnx.load(engines / manifest.program().graphs[name].file, load_external_data=False).graph.node:
            assert node.name == node.output[0]
            place = node.name.partition("/")[0]
            seen |= {place} & sublayers
            if node.op_type in ("Gemm", "MatMul", "Softmax", "LayerNormalization"):
                assert place in calls, node.name
    computed = {manifest.denoiser.sublayers[column] for call in manifest.program().calls for column in call.computed}
    assert seen == computed
    values = {o for path in graphs(engines) for n in onnx.load(path, load_external_data=False).graph.node for o in n.output}
    assert computed <= values, "what a sublayer makes has its name"


def test_a_constant_is_there_once_for_all_sublayers_of_a_kind(engines):
    for path in graphs(engines):
        nodes = onnx.load(path, load_external_data=False).graph.node
        constants = [node.output[0] for node in nodes if node.op_type == "Constant"]
        kinds = {name.partition("/")[0] for name in constants}
        assert len(set(constants)) == len(constants)
        assert not any(re.search(r"\d", kind) for kind in kinds), "of a kind, not of a block"


# what runs them


def by_onnx(path):
    """The reference evaluator of onnx."""
    evaluator = ReferenceEvaluator(str(path))
    names = evaluator.output_names
    return lambda values: dict(zip(names, evaluator.run(names, {i: values[i] for i in evaluator.input_names}), strict=True))


def by_openvino(path):
    import openvino

    compiled_model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(values):  # a port may have several names, of reshapes that were taken out
        results = compiled_model(
            [values[next(name for name in port.names if name in values)] for port in compiled_model.inputs]
        )
        return {name: array for port, array in results.items() for name in port.names}

    return run


def by_onnxruntime(path):
    return standalone.session(path, open_backend("onnxruntime").backend._options())  # the process has one pool of threads


def by_onnxruntime_of_another_opset(path):
    """What onnx's own converter makes of them, in one file."""
    return by_onnxruntime(onnx.version_converter.convert_version(onnx.load(path), 21).SerializeToString())


def missing(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.mark.parametrize("read", [
    pytest.param(by_onnxruntime, marks=missing("onnxruntime")), pytest.param(by_openvino, marks=missing("openvino")),
    by_onnx, pytest.param(by_onnxruntime_of_another_opset, marks=missing("onnxruntime")),
])  # fmt: skip
def test_the_graphs_alone_make_the_latents_of_the_pipeline(tiny, read):
    folder, chosen = tiny
    n = chosen.config["batch"]
    x, labels = chosen.golden["x_T"][:n], chosen.golden["y"][:n].tolist()
    with l2c_export.load(folder, "onnxruntime") as pipe:
        ours = pipe(labels, chosen.scale, latents=x).latents
    theirs = standalone.denoise(folder, x, labels, chosen.scale, read)
    assert np.abs(theirs - ours).max() < 1e-5 * np.abs(ours).max()


def test_what_is_quantised_by_onnxruntime_runs(tiny, tmp_path):
    """Its weights are found as weights: the file is about a quarter, and what it makes is near what it made."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    folder, chosen = tiny
    n = chosen.config["batch"]
    x, labels = chosen.golden["x_T"][:n], chosen.golden["y"][:n].tolist()
    smaller = []

    def quantised(path):
        quantization.quantize_dynamic(path, tmp_path / path.name, weight_type=quantization.QuantType.QInt8)
        kinds = {node.op_type for node in onnx.load(tmp_path / path.name).graph.node}
        smaller.append(any("Integer" in kind for kind in kinds))
        return by_onnxruntime(tmp_path / path.name)

    theirs = standalone.denoise(folder, x, labels, chosen.scale, quantised)
    ours = standalone.denoise(folder, x, labels, chosen.scale, by_onnxruntime)
    assert any(smaller)
    assert 0 < np.abs(theirs - ours).max() < 0.2 * np.abs(ours).max()
