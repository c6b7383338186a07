"""Opset 18 to 17, in the form that the oldest supported parser reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from l2c_export.compiler.onnx.opset import downgrade
from l2c_export.errors import ModelError

HEAD = '<ir_version: 10, opset_import: ["" : 18]> g '


def graph(text):
    return onnx.parser.parse_model(HEAD + text)


LIMITS = ["", "<start = 1>", "<start = 1, end = 3>", "<start = -2>", "<start = 0, end = -1>", "<end = 2>"]


@pytest.mark.parametrize("limits", LIMITS)
def test_the_shape_of_some_axes_is_cut_from_the_whole(limits):
    model = graph(f"(float[2, 3, 4] a) => (int64[N] b) {{ b = Shape {limits} (a) }}")
    values = {"a": np.zeros((2, 3, 4), np.float32)}
    (want,) = ReferenceEvaluator(model).run(None, values)
    older_model = downgrade(model, "cut")
    assert older_model.opset_import[0].version == 17
    assert not [a for node in older_model.graph.node for a in node.attribute]
    (got,) = ReferenceEvaluator(older_model).run(None, values)
    assert got.tolist() == want.tolist()


def test_the_axes_of_a_mean_become_an_attribute():
    model = graph(
        "(float[2, 3, 4] a) => (float[2, 1, 4] b) { axes = Constant <value = int64[1] {1}> () b = ReduceMean (a, axes) }"
    )
    values = {"a": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    older_model = downgrade(model, "mean")
    assert [len(node.input) for node in older_model.graph.node if node.op_type == "ReduceMean"] == [1]
    assert np.array_equal(ReferenceEvaluator(older_model).run(None, values)[0], values["a"].mean(1, keepdims=True))


@pytest.mark.parametrize(("text", "says"), [
    ("(float[2] a) => (float[2] b) { b = Mish (a) }", "it uses Mish"),
    ("(float[2] a) => (float[1] b) { b = ReduceMean (a) }", "ReduceMean has no constant axes"),
    ("(float[1, 1, 4] a, float[3] s) => (float[1, 1, 2] b) { b = Resize <antialias = 1, mode = \"linear\"> (a, , s) }",
     "Resize has antialias"),
])  # fmt: skip
def test_what_17_cannot_say_is_refused(text, says):
    with pytest.raises(ModelError, match=f"segment 'odd' cannot be written in opset 17: {says}"):
        downgrade(graph(text), "odd")
