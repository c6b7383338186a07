"""Segments and graphs as standard ONNX models.

A segment is one model that any backend compiles.  A step graph calls the segments as ONNX local functions and refers to
the weights in `weights.safetensors`, so it opens in Netron and runs by itself in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import TensorProto, helper
from onnx.inliner import inline_local_functions

from . import weights
from .opset import OPSET
from .program import PLAIN_OPS, WEIGHT, Graph, Value

DOMAIN = "l2c"
IR_VERSION = 8  # the one of opset 17; functions need at least 8
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
}
Bodies = Mapping[str, onnx.ModelProto]


def segment_model(name: str, segment: Graph, bodies: Bodies) -> onnx.ModelProto:
    """A segment as a model of its own: plain operators, symbolic batch, weights as inputs."""
    inputs = [_typed(i, segment.values[i]) for i in segment.inputs]
    outputs = [_typed(o, segment.values[o]) for o in segment.outputs]
    graph = helper.make_graph(_inline(segment, bodies), name, inputs, outputs)
    model = _model(graph)
    onnx.checker.check_model(model)
    return model


def step_model(
    name: str, graph: Graph, segments: Mapping[str, Graph], bodies: Bodies, layout: weights.Layout, flat: bool = False
) -> onnx.ModelProto:
    """A grouped graph as a model: one node per segment call, weights as external data.

    `flat` puts the segments in place of their calls: TensorRT 8.6 reads no local functions.
    """
    used = dict.fromkeys(node.op for node in graph.nodes)
    functions = [
        helper.make_function(
            DOMAIN,
            function_name(op),
            list(segments[op].inputs),
            list(segments[op].outputs),
            _inline(segments[op], bodies),
            [helper.make_opsetid("", OPSET)],
        )
        for op in used
    ]
    nodes = [
        helper.make_node(function_name(n.op), list(n.inputs), list(n.outputs), name=n.name, domain=DOMAIN) for n in graph.nodes
    ]
    inputs = [_typed(i, graph.values[i]) for i in graph.inputs if graph.kind(i) != WEIGHT]
    outputs = [_typed(o, graph.values[o]) for o in graph.outputs]
    stored = [_external(i, layout) for i in graph.inputs if graph.kind(i) == WEIGHT]
    made = helper.make_graph(nodes, name, inputs, outputs, initializer=stored)
    model = _model(made, functions)  # the checker wants to see the external data, which may not be bound yet
    return inline_local_functions(model) if flat else model


def function_name(segment: str) -> str:
    """TensorRT's importer looks functions up by name alone: ours must never be that of an ONNX operator."""
    return "l2c_" + segment.replace(".", "_").replace("-", "_")


def _inline(segment: Graph, bodies: Bodies) -> list[onnx.NodeProto]:
    """The segment's operations with each kind's body in place, inner names made unique."""
    nodes: list[onnx.NodeProto] = []
    for call in segment.nodes:
        if call.op in PLAIN_OPS:
            nodes.append(helper.make_node(call.op, list(call.inputs), list(call.outputs), name=call.name))
            continue
        body = bodies[call.op].graph
        names = {i.name: given for i, given in zip(body.input, call.inputs, strict=True)}
        names |= {o.name: made for o, made in zip(body.output, call.outputs, strict=True)}

        def name(inner: str, names: dict[str, str] = names, prefix: str = call.name) -> str:
            return names.get(inner, f"{prefix}.{inner}") if inner else ""

        for constant in body.initializer:
            made = TensorProto()
            made.CopyFrom(constant)
            made.ClearField("name")
            nodes.append(helper.make_node("Constant", [], [name(constant.name)], name=name(constant.name), value=made))
        for node in body.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = name(node.name)
            copy.input[:] = [name(i) for i in node.input]
            copy.output[:] = [name(o) for o in node.output]
            nodes.append(copy)
    return nodes


def _typed(name: str, value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[value.dtype], list(value.shape))


def _external(weight: str, layout: weights.Layout) -> TensorProto:
    place = layout.place(weight)
    tensor = TensorProto(name=weight, data_type=TYPES[layout.types.of(weight)], dims=place.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", weights.FILE), ("offset", str(place.offset)), ("length", str(place.bytes))):
        tensor.external_data.add(key=key, value=entry)
    return tensor


def _model(graph: onnx.GraphProto, functions: Iterable[onnx.FunctionProto] = ()) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        graph, functions=list(functions), opset_imports=opsets, ir_version=IR_VERSION, producer_name="l2c-export"
    )
