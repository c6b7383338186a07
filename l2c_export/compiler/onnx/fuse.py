"""Attention and GELU as single operators, for ONNX Runtime on a GPU.

The operators are ONNX Runtime's own (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md), so what is
fused is a second form of a segment, beside the one that every library reads.  What is not of the form that `models.layers`
exports is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "com.microsoft"
GELU = ["Add", "Mul", "Mul", "Mul", "Mul"]  # what leads from x to the sigmoid in `layers.gelu_tanh`


def fuse(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with fused operators; None if it has nothing to fuse."""
    graph = Nodes(model)
    for node in list(model.graph.node):
        if node.op_type == "Softmax":
            graph.fuse_attention(node)
        elif node.op_type == "Sigmoid":
            graph.fuse_gelu(node)
    if not graph.made:
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    del result.graph.node[:]
    result.graph.node.extend(graph.live())
    return result


class Nodes:
    """A graph's nodes, found by what they make and by what they read."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._outputs = [output.name for output in model.graph.output]
        self._nodes = list(model.graph.node)
        self._maker = {name: node for node in self._nodes for name in node.output}
        self.made: dict[str, list[onnx.NodeProto]] = {}  # instead of the node that makes this value

    def fuse_attention(self, softmax: onnx.NodeProto) -> None:
        """softmax(scale q k') v, with q, k, v (tokens, D) split into heads, as one MultiHeadAttention over (R, T, D)."""
        scores = self._above(softmax.input[0], "MatMul")
        mixed = self._below(softmax.output[0], "MatMul")
        joined = mixed and self._below(mixed.output[0], "Transpose")
        if not (scores and mixed and joined):
            return
        scaled = self._above(scores.input[0], "Mul")
        operands = (scores.input[0] if scaled is None else scaled.input[0], scores.input[1], mixed.input[1])
        parts = [part for name in operands if (part := self._above(name, "Transpose", "Reshape"))]
        if scaled is None or len(parts) < 3:
            return
        _, tokens, heads, size = self._constant(parts[0].input[1]).tolist()
        name = joined.output[0]
        shape = numpy_helper.from_array(np.array([-1, tokens, heads * size], np.int64))
        nodes = [helper.make_node("Constant", [], [f"{name}.shape"], value=shape)]
        for i, part in enumerate(parts):
            nodes.append(helper.make_node("Reshape", [part.input[0], f"{name}.shape"], [f"{name}.{i}"]))
        scale = float(self._constant(scaled.input[1]))
        inputs = [f"{name}.{i}" for i in range(3)]
        nodes.append(helper.make_node("MultiHeadAttention", inputs, [name], domain=DOMAIN, num_heads=heads, scale=scale))
        self.made[name] = nodes

    def fuse_gelu(self, sigmoid: onnx.NodeProto) -> None:
        """x sigmoid(x c (x x a + 1)), the tanh approximation, as one FastGelu."""
        product = self._below(sigmoid.output[0], "Mul")
        if product is None:
            return
        x = next(name for name in product.input if name != sigmoid.output[0])
        if sorted(self._between(x, sigmoid.input[0])) == GELU:
            name = product.output[0]
            self.made[name] = [helper.make_node("FastGelu", [x], [name], domain=DOMAIN)]

    def live(self) -> list[onnx.NodeProto]:
        """The nodes with the fused ones in their places, without those that nobody reads any more."""
        nodes = [new for node in self._nodes for new in self.made.get(node.output[0], [node])]
        needed, alive = set(self._outputs), []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                alive.append(node)
                needed.update(node.input)
        return alive[::-1]

    def _above(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node at the end of a chain of first inputs of these kinds, casts between them aside."""
        node = None
        for kind in kinds:
            while name in self._maker and self._maker[name].op_type == "Cast":
                name = self._maker[name].input[0]
            node = self._maker.get(name)
            if node is None or node.op_type != kind:
                return None
            name = node.input[0]
        return node

    def _below(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The one reader of a value, if it is of that kind, casts between them aside."""
        readers = [node for node in self._nodes if name in node.input]
        if len(readers) == 1 and readers[0].op_type == "Cast":
            return self._below(readers[0].output[0], kind)
        return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None

    def _between(self, first: str, last: str) -> Iterator[str]:
        """The kinds of all nodes on the way from one value to another, each once."""
        seen, names = set(), [last]
        while names:
            name = names.pop()
            node = self._maker.get(name)
            if name == first or name in seen or node is None or node.op_type == "Constant":
                continue
            seen.add(name)
            names.extend(node.input)
            yield node.op_type

    def _constant(self, name: str) -> np.ndarray:
        values: np.ndarray = numpy_helper.to_array(self._maker[name].attribute[0].t)
        return values
