"""Opset 18, which PyTorch writes at least, -> opset 17 in the form that the oldest supported parser reads."""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import numpy_helper

from ...errors import ModelError

# The oldest opset of a supported parser: TensorRT 8.6 reads 17.
OPSET = 17
# What the exporter writes (18 is its minimum), and which of its operators mean the same in opset 17.
EXPORTED = 18
SAME_IN_17 = frozenset([
    "Add", "Cast", "Clip", "Concat", "Constant", "Conv", "Cos", "DepthToSpace", "Div", "Erf", "Expand", "Gather", "Gemm",
    "LayerNormalization", "MatMul", "Mul", "Neg", "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize",
    "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
])  # fmt: skip
# Attributes that 17 does not have, and the values that it implies; None where it has another way to say the same.
NEW_IN_18: dict[str, dict[str, object]] = {
    "ReduceMean": {"noop_with_empty_axes": 0},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "Split": {"num_outputs": None},
}


def downgrade(model: onnx.ModelProto, op: str) -> onnx.ModelProto:
    """Opset 18 -> 17, where every operator used means the same in both.  Raises ModelError for what 17 cannot say."""
    newer = {n.op_type for n in model.graph.node} - SAME_IN_17
    if newer or model.functions:
        raise cannot(op, f"it uses {', '.join(sorted(newer)) or 'functions'}")
    slice_shapes(model.graph)
    reduce_by_attribute(model.graph, op)
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        implied = NEW_IN_18.get(node.op_type, {})
        for attribute in [a for a in node.attribute if a.name in implied]:
            if implied[attribute.name] not in (None, onnx.helper.get_attribute_value(attribute)):
                raise cannot(op, f"{node.op_type} has {attribute.name}")
            node.attribute.remove(attribute)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    model.ir_version = 8
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.graph.ClearField("metadata_props")
    onnx.checker.check_model(model, full_check=True)
    return model


def cannot(op: str, why: str) -> ModelError:
    return ModelError(f"segment {op!r} cannot be written in opset {OPSET}: {why}")


def slice_shapes(graph: onnx.GraphProto) -> None:
    """Shape of some axes -> Slice of the whole shape: the parser of TensorRT 8.6 overlooks the attributes start and end."""
    nodes = []
    for node in graph.node:
        limits = {a.name: a.i for a in node.attribute} if node.op_type == "Shape" else {}
        nodes.append(node)
        if not limits:
            continue
        (out,) = node.output
        node.ClearField("attribute")
        if "end" in limits or limits["start"]:
            names = [f"{out}.start", f"{out}.end"]
            values = (limits.get("start", 0), limits.get("end", sys.maxsize))
            graph.initializer.extend(numpy_helper.from_array(np.array([v]), n) for v, n in zip(values, names, strict=True))
            node.output[0] = f"{out}.whole"
            nodes.append(onnx.helper.make_node("Slice", [node.output[0], *names], [out], name=f"{node.name}.slice"))
    del graph.node[:]
    graph.node.extend(nodes)


def reduce_by_attribute(graph: onnx.GraphProto, op: str) -> None:
    """Axes of a mean: an input in opset 18, an attribute in 17."""
    constants = {i.name: i for i in graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    for node in graph.node:
        if node.op_type == "ReduceMean":
            if len(node.input) < 2 or node.input[1] not in constants:
                raise cannot(op, "ReduceMean has no constant axes")
            axes = numpy_helper.to_array(constants[node.input.pop(1)])
            node.attribute.append(onnx.helper.make_attribute("axes", axes.tolist()))
