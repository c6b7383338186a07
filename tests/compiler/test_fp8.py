"""The pass that puts the products of sublayers into e4m3: which, what it leaves alone, and what ONNX makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from segments import FAMILIES, in_e4m3, of_body, off_by

from l2c_export.compiler.onnx.export import export
from l2c_export.compiler.passes.fp8 import records_of, with_fp8
from l2c_export.compiler.passes.levels import with_levels
from l2c_export.compiler.record import record
from l2c_export.ir.dtypes import E4M3, Types
from l2c_export.ir.graph import WEIGHT, Value, check
from l2c_export.models import dit
from l2c_export.models.primitives import execute
from l2c_export.weights.recipe import records
from l2c_export.weights.stored import stored_as

IN_BF16 = Types("bfloat16")


def dit_call(width=32, heads=2, types=IN_BF16):
    return record(dit.DiT(dit.DiTArch(8, 2, 4, width, 2, heads)), types)


def weights(call):
    return {name for name, value in call.values.items() if value.kind == WEIGHT and value.dtype == E4M3}


def test_every_product_of_a_sublayer_and_no_other():
    call = check(with_fp8(dit_call(), ()), "fp8")
    kinds = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert weights(call) == {f"blocks.{n}.{kind}.weight" for n in range(2) for kind in kinds}
    linear = {p.inputs[1] for body in call.bodies.values() for p in body.primitives if p.op == "linear"}
    assert linear, "embeddings, conditioning and the last layer are products, too"
    assert {op for op in call.bodies if op.endswith("_fp8")} == {"attn_fp8", "mlp_fp8"}


def test_what_is_kept_or_too_narrow_is_left_alone():
    kept = with_fp8(dit_call(), ("blocks.0.attn", "blocks.0.mlp", "blocks.1.mlp"))
    assert weights(kept) == {"blocks.1.attn.qkv.weight", "blocks.1.attn.proj.weight"}
    assert {"attn", "attn_fp8", "mlp"} <= set(kept.bodies)
    narrow = dit_call(width=24)
    assert weights(with_fp8(narrow, ())) == set(), "24 is no multiple of 16"
    assert with_fp8(narrow, ()).nodes == narrow.nodes
    island = with_fp8(dit_call(types=Types("bfloat16", ("blocks.0.attn",))), ())
    assert "blocks.0.attn.qkv.weight" not in weights(island)


def test_a_weight_that_others_read_is_left_alone():
    call = dit_call()
    node = next(node for node in call.nodes if node.name == "blocks.0.mlp")
    place = [node.name for node in call.nodes].index("blocks.1.mlp")
    first = next(name for name in node.inputs if name.endswith("fc1.weight"))
    other = call.nodes[place]
    tied = tuple(first if name.endswith("fc1.weight") else name for name in other.inputs)
    nodes = (*call.nodes[:place], type(other)(other.op, other.name, tied, other.outputs), *call.nodes[place + 1 :])
    graph = with_fp8(type(call)(nodes, call.values, call.outputs, call.sublayers, bodies=call.bodies), ())
    assert first not in weights(graph)
    assert "blocks.0.mlp.fc2.weight" in weights(graph)


def test_what_is_multiplied_several_times_is_rounded_once():
    """Queries, keys and values of a U-ViT are one product; of two products of one value there is one scale."""
    for body in in_e4m3("uvit").values():
        rounded = [p.inputs[0] for p in body.primitives if p.op == "quantise"]
        assert len(rounded) == len(set(rounded))
        assert sum(p.op == "linear_fp8" for p in body.primitives) >= len(rounded)


def test_sublayers_stay_in_the_type_that_their_product_makes_for_arithmetic_alone():
    call = with_fp8(dit_call(), ())
    assert {call.values[name].dtype for (name,) in call.sublayers} == {"bfloat16"}
    assert {call.values[f"{name}.residual"].dtype for (name,) in call.sublayers} == {"float32"}
    assert not [p for op, body in call.bodies.items() if op.endswith("_fp8") for p in body.primitives if p.op == "cast"]
    check(with_levels(call, ("stack",)), "levels")


def test_sublayers_that_others_read_make_float32_in_an_operation_of_their_own():
    call = dit_call()
    place = [node.name for node in call.nodes].index("final_layer.final")
    reader = call.nodes[place]
    tied = type(reader)(reader.op, reader.name, ("blocks.1.mlp", *reader.inputs[1:]), reader.outputs)
    nodes = (*call.nodes[:place], tied, *call.nodes[place + 1 :])
    graph = with_fp8(type(call)(nodes, call.values, call.outputs, call.sublayers, bodies=call.bodies), ())
    assert (graph.values["blocks.0.mlp"].dtype, graph.values["blocks.1.mlp"].dtype) == ("bfloat16", "float32")
    assert {node.op for node in graph.nodes if node.name.endswith(".mlp")} == {"mlp_fp8", "mlp_fp8_1"}


def test_what_a_narrow_gate_is_multiplied_with_stays_float32():
    """The product of two values of bfloat16 would be one, and the stream is float32."""
    call = dit_call()
    gate = "blocks.0.mlp.gate"
    values = {**call.values, gate: Value(call.values[gate].shape, "bfloat16")}
    graph = with_fp8(type(call)(call.nodes, values, call.outputs, call.sublayers, bodies=call.bodies), ())
    assert (graph.values["blocks.0.mlp"].dtype, graph.values["blocks.0.attn"].dtype) == ("float32", "bfloat16")


def test_stored_are_the_weights_in_e4m3_and_scales_that_no_checkpoint_has():
    call = with_fp8(dit_call(), ("blocks.1.mlp",))
    family = dit.DiT(dit.DiTArch(8, 2, 4, 32, 2, 2))
    before = records(family.tensors(), IN_BF16, {})
    after = records_of(stored_as(before, "int8"), call)
    assert after["pos_embed"] == before["pos_embed"]
    assert after["blocks.1.mlp.fc1.weight"].stored == "int8", "what is not e4m3 may be stored narrower"
    assert not [name for name, tensor in after.items() if tensor.dtype == E4M3 and tensor.stored]
    assert {name for name, tensor in after.items() if tensor.dtype == E4M3} == weights(call)
    scales = {name: tensor for name, tensor in after.items() if tensor.scale}
    assert after.keys() - before.keys() == scales.keys()
    assert sorted(tensor.scale for tensor in scales.values()) == ["input"] * 6 + ["weight"] * 6
    assert {(tensor.shape, tensor.dtype) for tensor in scales.values()} == {((2,), "float32")}
    inputs = {name for name in call.inputs if call.kind(name) == WEIGHT}
    assert scales.keys() <= inputs


def as_array(tensor):
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn):
        return tensor.view(getattr(torch, f"int{8 * tensor.itemsize}")).numpy().view(str(tensor.dtype).removeprefix("torch."))
    return tensor.numpy()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "uvit-mlp"])
def test_onnx_says_the_same_in_opset_19(family):
    for body in in_e4m3(family).values():
        model, segment = export(body), of_body(body)
        assert [opset.version for opset in model.opset_import] == [19]
        inputs = segment.some()
        wanted = execute(body.primitives, inputs)
        feed = {f"i{n}": as_array(inputs[name]) for n, name in enumerate(body.inputs)}
        for name, output in zip(body.outputs, ReferenceEvaluator(model).run(None, feed), strict=True):
            assert off_by(torch.from_numpy(output.astype(np.float32)), wanted[name]) < 6e-2
