"""Operations become ONNX: each kind once, its weights inputs, node by node from its primitives."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from ...ir.graph import Body
from . import loop_operators  # noqa: F401  (more of the rules)
from .models import model, typed
from .operators import RULES, Rule
from .writer import Operand, Writer


def export_bodies(kinds: Mapping[str, Body]) -> dict[str, onnx.ModelProto]:
    """An ONNX model for every operation kind that a call uses, keyed by kind."""
    return {op: export(body) for op, body in kinds.items()}


def export(body: Body, rules: Mapping[str, Rule] = RULES) -> onnx.ModelProto:
    """One operation as a checked model: inputs i0, i1, .., outputs o0, o1, .., batch axes symbolic."""
    writer = Writer()
    inputs = {name: f"i{n}" for n, name in enumerate(body.inputs)}
    known = {name: Operand(new, body.values[name].dtype, body.values[name].shape) for name, new in inputs.items()}
    for primitive in body.primitives:
        writer.primitive = primitive.op
        result = rules[primitive.op](writer, *(known[i] for i in primitive.inputs), **dict(primitive.attributes))
        several = (result,) if isinstance(result, Operand) else result
        for name, operand in zip(primitive.outputs, several, strict=True):
            known[name] = operand._replace(shape=body.values[name].shape)
    outputs = {known[name].name: f"o{n}" for n, name in enumerate(body.outputs)}
    for node in writer.nodes:
        node.input[:] = [outputs.get(i, i) for i in node.input]
        node.output[:] = [outputs.get(o, o) for o in node.output]
    ports = [typed(new, body.values[old]) for old, new in inputs.items()]
    results = [typed(f"o{n}", body.values[name]) for n, name in enumerate(body.outputs)]
    constants = list(writer.constants.values())
    written = model(helper.make_graph(writer.nodes, body.kind, ports, results, initializer=constants))
    onnx.checker.check_model(written, full_check=True)
    return written
