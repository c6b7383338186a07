"""Segments and graphs as standard ONNX models: plain operators of opset 17, and no functions, which not every reader knows.

A segment is one model that any backend compiles, its weights inputs.  A step graph is a whole call, its weights those of
`weights.safetensors`, so it opens in Netron and runs by itself wherever ONNX does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto, helper

from ...ir.dtypes import E4M3
from ...ir.graph import PLAIN_OPS, WEIGHT, Graph, Node, Value
from ...ir.names import rows_of
from ...weights.layout import WEIGHTS, Layout
from ...weights.narrow import SCALE
from .opset import OPSET

IR_VERSION = 8  # the one of opset 17
OPSET_E4M3, IR_VERSION_E4M3 = 19, 9  # the first that quantise to it
DOMAIN = "com.microsoft"  # of the operators that only ONNX Runtime has
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    E4M3: TensorProto.FLOAT8E4M3FN,
}
STORED = "stored"  # behind the name of a weight: as it lies in the file
Bodies = Mapping[str, onnx.ModelProto]


def segment_model(name: str, segment: Graph, bodies: Bodies) -> onnx.ModelProto:
    """A segment as a model of its own: symbolic batch, weights as inputs."""
    proto = composed(name, segment, bodies)
    onnx.checker.check_model(proto)
    return proto


def composed(name: str, graph: Graph, bodies: Bodies) -> onnx.ModelProto:
    """A graph as a model, all its inputs inputs."""
    inputs = [typed(i, graph.values[i]) for i in graph.inputs]
    outputs = [typed(o, graph.values[o]) for o in graph.outputs]
    return model(helper.make_graph(operators(graph, bodies), name, inputs, outputs))


def step_model(name: str, graph: Graph, bodies: Bodies, layout: Layout) -> onnx.ModelProto:
    """A whole graph as a model: symbolic batch, weights as external data, which may not be bound yet."""
    inputs = [typed(i, graph.values[i]) for i in graph.inputs if graph.kind(i) != WEIGHT]
    outputs = [typed(o, graph.values[o]) for o in graph.outputs]
    weights = [i for i in graph.inputs if graph.kind(i) == WEIGHT]
    initializers = [tensor for i in weights for tensor in _external(i, layout)]
    nodes = [*(node for i in weights for node in _widened(i, layout)), *operators(graph, bodies)]
    return model(helper.make_graph(nodes, name, inputs, outputs, initializer=initializers))


def operators(graph: Graph, bodies: Bodies) -> list[onnx.NodeProto]:
    """A graph's operations as ONNX nodes, each kind's body in place of its name.

    What is inside blocks.3.attn is called "blocks.3.attn/linear"; the constants of a kind are there once, as "attn/val_5".
    """
    nodes: list[onnx.NodeProto] = []
    kinds: set[str] = set()  # kinds whose constants are there
    for call in graph.nodes:
        if call.op in PLAIN_OPS:
            nodes += _plain(call, graph)
            continue
        body = bodies[call.op].graph
        if call.op not in kinds:
            nodes += _constants(call.op, body)
            kinds.add(call.op)
        nodes += _renamed(call, body)
    return nodes


def _plain(call: Node, graph: Graph) -> Iterator[onnx.NodeProto]:
    """Arithmetic, in the type of what it makes."""
    dtype, names = graph.values[call.outputs[0]].dtype, []
    for n, name in enumerate(call.inputs):
        names.append(name if graph.values[name].dtype == dtype else f"{call.name}/cast_{n}")
        if names[-1] != name:
            yield helper.make_node("Cast", [name], [names[-1]], name=names[-1], to=TYPES[dtype])
    yield helper.make_node(call.op, names, list(call.outputs), name=call.name)


def _constants(kind: str, body: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = []
    for constant in body.initializer:
        value = TensorProto()
        value.CopyFrom(constant)
        value.ClearField("name")
        name = f"{kind}/{constant.name}"
        nodes.append(helper.make_node("Constant", [], [name], name=name, value=value))
    return nodes


def _renamed(call: Node, body: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The operators of one call, each called after what it makes."""
    names = {"": ""}  # an input that is left out
    names |= {constant.name: f"{call.op}/{constant.name}" for constant in body.initializer}
    names |= {i.name: name for i, name in zip(body.input, call.inputs, strict=True)}
    names |= {o.name: name for o, name in zip(body.output, call.outputs, strict=True)}
    nodes = []
    for node in body.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [names.get(i, f"{call.name}/{i}") for i in node.input]
        copy.output[:] = [names.get(o, f"{call.name}/{o}") for o in node.output]
        copy.name = copy.output[0]
        nodes.append(copy)
    return nodes


def typed(name: str, value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[value.dtype], list(value.shape))


def _external(weight: str, layout: Layout) -> Iterator[TensorProto]:
    """A weight where it lies; where that is narrower than it is computed with, under a name of its own."""
    name, rows = rows_of(weight)
    parts = {name: weight}
    if layout.tensors[name].stored:
        parts = {part: f"{weight}/{part.removeprefix(name) or STORED}" for part in (name, f"{name}{SCALE}")}
    for part, called in parts.items():
        if part not in layout.entries:
            continue  # only whole numbers have scales
        place = layout.place(part, rows)
        tensor = TensorProto(name=called, data_type=TYPES[layout.entries[part].dtype], dims=place.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", WEIGHTS), ("offset", str(place.offset)), ("length", str(place.bytes))):
            tensor.external_data.add(key=key, value=entry)
        yield tensor


def _widened(weight: str, layout: Layout) -> Iterator[onnx.NodeProto]:
    """What makes a weight of what is stored narrower, as `weights/narrow.py` does."""
    record = layout.tensors[rows_of(weight)[0]]
    kept, wide = f"{weight}/{STORED}", f"{weight}/wide"
    if not record.stored:
        return
    if record.stored == "int8":
        yield helper.make_node("DequantizeLinear", [kept, f"{weight}/{SCALE}"], [wide], name=wide, axis=0)
        kept = wide
    yield helper.make_node("Cast", [kept], [weight], name=weight, to=TYPES[record.dtype])


def model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """A graph by itself, in opset 17 and the operators of ONNX Runtime that it uses; in opset 19 where it has e4m3."""
    newer = any(node.op_type == "QuantizeLinear" for node in graph.node)
    if newer:
        for node in graph.node:
            axes_as_input(node, graph)
    domains = {node.domain for node in graph.node} - {""}
    opsets = [helper.make_opsetid("", OPSET_E4M3 if newer else OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    version = IR_VERSION_E4M3 if newer else IR_VERSION
    return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="l2c-export")


def axes_as_input(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
    """A mean's axes are an input from opset 18 on, and the number of equal parts is said."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "ReduceMean" and "axes" in attributes:
        axes, name = attributes["axes"].ints, f"{node.output[0]}/axes"
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(axes)], axes))
        node.input.append(name)
        node.attribute.remove(attributes["axes"])
    if node.op_type == "Split" and len(node.input) == 1 and "num_outputs" not in attributes:
        node.attribute.append(helper.make_attribute("num_outputs", len(node.output)))
