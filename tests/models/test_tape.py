"""An operation is recorded in primitives, and refused where it uses anything else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from l2c_export.ir.graph import Primitive, Value
from l2c_export.models.primitives import add, layer_norm, linear, silu
from l2c_export.models.tape import body

X, W, B = Value(("R", 4, 8)), Value((16, 8)), Value((16,))


def test_what_an_operation_computes_is_recorded_in_order():
    recording = body("mlp", lambda x, w, b: linear(silu(layer_norm(x, eps=1e-6)), w, b, parts=2), [X, W, B])
    assert recording.kind == "mlp"
    assert recording.inputs == ("i0", "i1", "i2")
    assert recording.primitives == (
        Primitive("layer_norm", (("eps", 1e-6),), ("i0",), ("v3",)),
        Primitive("silu", (), ("v3",), ("v4",)),
        Primitive("linear", (("parts", 2),), ("v4", "i1", "i2"), ("v5", "v6")),
    )
    assert recording.outputs == ("v5", "v6")
    assert recording.values["v6"] == Value(("R", 4, 8))


def test_weights_that_are_left_out_are_no_inputs():
    recording = body("mlp", lambda x, w: linear(x, w, None), [X, W])
    assert recording.primitives[0].inputs == ("i0", "i1")


@pytest.mark.parametrize(("function", "names"), [
    (lambda x, _: x + x, "add"), (lambda x, _: 2 * x, "mul"), (lambda x, _: x[:, None], "getitem"),
    (lambda x, _: x.reshape(-1), "reshape"), (lambda x, w: F.linear(x, w), "linear"), (lambda x, _: torch.cat([x, x]), "cat"),
    (lambda x, _: torch.relu(x), "relu"), (lambda x, w: x @ w, "matmul"), (lambda x, _: -x, "neg"),
])  # fmt: skip
def test_what_is_no_primitive_is_refused_by_name(function, names):
    with pytest.raises(AssertionError, match=f"mlp: r?{names} is no primitive"):
        body("mlp", function, [X, W])


def test_what_does_not_fit_a_primitive_is_refused():
    with pytest.raises(AssertionError, match=r"mlp: linear of .*: the weight is not as wide as what it multiplies"):
        body("mlp", lambda x, w: linear(x, w), [X, Value((16, 7))])
    with pytest.raises(AssertionError, match=r"mlp: add is given 1\.0, which is nothing recorded"):
        body("mlp", lambda x: add(x, 1.0), [X])
    with pytest.raises(AssertionError, match="mlp returns None"):
        body("mlp", lambda x: None, [X])
    with pytest.raises(AssertionError, match="returns a value twice, or an input"):
        body("mlp", lambda x: x, [X])
