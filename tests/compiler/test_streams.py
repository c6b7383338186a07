"""Sublayers of several values and two streams: what is cached together, what is dead now and read later, what stays."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import evaluate, lines, parse
from streams import STREAMS, Streams, StreamsArch

import l2c_export
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.passes.calls import specialise_calls
from l2c_export.compiler.passes.fold import fill, fold
from l2c_export.compiler.passes.hoist import hoist
from l2c_export.compiler.passes.segment import group
from l2c_export.compiler.passes.specialise import specialise
from l2c_export.compiler.plan import make_plan
from l2c_export.compiler.record import record
from l2c_export.compiler.request import Options
from l2c_export.ir.graph import CACHE, check
from l2c_export.models import families
from l2c_export.schedules.schedule import Schedule, ScheduleSource

CALL = record(Streams(StreamsArch()))
COLUMNS = Streams(StreamsArch()).sublayers  # joint and text of two blocks


@pytest.fixture
def streams(monkeypatch, tmp_path):
    """A description of the model."""
    monkeypatch.setitem(families.FAMILIES, "streams", STREAMS)
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"family": "streams", "arch": {"width": 8}}))
    return str(path)


def scheduled(computed):
    return Schedule.make("streams", "ddim", len(computed), COLUMNS, computed, source=ScheduleSource(rule="test"))


def reads(graph):
    return [name for name in graph.inputs if graph.kind(name) == CACHE]


def test_a_sublayer_may_make_several_values():
    check(CALL, "record")
    assert CALL.sublayers[0] == ("blocks.0.joint", "blocks.0.joint.1")
    node = next(n for n in CALL.nodes if n.name == "blocks.0.joint")
    assert node.outputs == CALL.sublayers[0]
    assert [CALL.values[o].shape for o in node.outputs] == [("R", 4, 8), ("R", 1, 8)]


def test_all_that_a_sublayer_makes_is_reused_together():
    call = specialise(hoist(CALL).call, make_plan(scheduled([range(4), {1, 2, 3}])).keys[1].own)
    assert reads(call) == ["blocks.0.joint@-1", "blocks.0.joint.1@-1"]
    assert "blocks.0.joint" not in {node.name for node in call.nodes}


@pytest.mark.parametrize("folding", [False, True])
def test_a_sublayer_that_only_a_later_call_reads_is_computed_for_it(folding):
    """Call 1 computes the first text, but its only reader, the second joint, is reused there; call 2 computes that one."""
    plan = make_plan(scheduled([range(4), {0, 1}, {0, 2}, {0}]))
    graphs = specialise_calls(hoist(CALL).call, [plan], folding)
    calls = [graphs[key] for key in plan.keys]
    names = [{node.name for node in graph.nodes} for graph in calls]
    wanted = "blocks.0.text.gated@+1" if folding else "blocks.0.text"
    assert "blocks.0.text" in names[1], "although nothing in this call reads it"
    assert wanted in calls[1].outputs
    assert ("blocks.0.text.gated@-1" if folding else "blocks.0.text@-1") in reads(calls[2])
    assert "blocks.1.text" not in names[1] | names[2]
    assert not {"blocks.0.text", "blocks.1.joint"} & names[3]


def test_sums_move_into_the_filling_call_and_sublayers_never_do():
    graph = parse(
        """main (float[R] x, float[R] y, float[R] a@-1) => (float[R] out) {
            g = Add(y, a@-1)
            b = text(g)
            gb = Add(g, b)
            out = final(x, gb)
        }""",
        sublayers=("a", "b"),
    )
    folded = fold(graph, ())
    assert lines(folded.call) == ["b = text(g@-1)", "gb = Add(g@-1, b)", "out = final(x, gb)"]
    ((age, fragment),) = folded.fragments
    assert (age, [node.op for node in fragment.nodes]) == (1, ["Add"])


def test_sums_of_two_streams_have_two_names():
    """Both span the same sublayers."""
    graph = parse(
        """main (float[R] x, float[R] z, float[R] a@-1, float[R] a2@-1, float[R] b@-1, float[R] b2@-1) => (float[R] out) {
            ha = Add(x, a@-1)
            ga = Add(z, a2@-1)
            hb = Add(ha, b@-1)
            gb = Add(ga, b2@-1)
            out = final(hb, gb)
        }""",
        sublayers=(("a", "a2"), ("b", "b2")),
    )
    folded = fold(graph, ())
    first, second = (fragment.name for _, fragment in folded.fragments)
    assert first != second
    assert all(name.startswith("run.a..b.") for name in (first, second))
    full = parse(
        """main (float[R] x, float[R] z) => (float[R] out) {
            a, a2 = joint(x, z)
            b, b2 = other(x, z)
            out = final(b, b2)
        }""",
        sublayers=(("a", "a2"), ("b", "b2")),
    )
    filled = check(fill(full, folded.fragments), "fill")
    assert set(filled.outputs) == {"out", f"{first}@+1", f"{second}@+1"}


def test_arithmetic_is_of_the_segment_whose_value_it_consumes_wherever_it_stands():
    graph = parse(
        """main (float[R] x, float[R] y, float[R] row) => (float[R] out) {
            a = attn(x)
            b = mlp(y)
            pa = Mul(row, a)
            pb = Mul(row, b)
            ha = Add(x, pa)
            hb = Add(y, pb)
            out = final(ha, hb)
        }"""
    )
    grouped, _ = group(graph)
    assert [node.op.partition(".")[0] for node in grouped.nodes] == ["attn-mul-add", "mlp-mul-add", "final"]
    check(grouped, "group")


def test_arithmetic_that_needs_what_its_segment_makes_is_a_segment_of_its_own():
    graph = parse(
        """main (float[R] x) => (float[R] out) {
            a = attn(x)
            h = skip(a)
            ha = Add(h, a)
            b = mlp(ha)
            out = Add(x, b)
        }"""
    )
    grouped, _ = group(graph)
    assert [node.op.partition(".")[0] for node in grouped.nodes] == ["attn", "skip", "add", "mlp-add"]


def test_segments_run_in_an_order_in_which_all_is_there():
    """The addition waits for the other sublayer, and its segment with it."""
    graph = parse(
        """main (float[R] x, float[R] y) => (float[R] out) {
            a = attn(x)
            b = mlp(y)
            ha = Add(b, a)
            out = final(ha)
        }"""
    )
    grouped, segments = group(graph)
    check(grouped, "group")
    assert [node.op.partition(".")[0] for node in grouped.nodes] == ["mlp", "attn-add", "final"]
    ops = {"attn": np.tanh, "mlp": np.cos, "final": np.sin}
    inputs = {"x": np.array(0.3), "y": np.array(0.7)}
    want, got = evaluate(graph, inputs, ops), dict(inputs)
    for node in grouped.nodes:
        segment = segments[node.op]
        outputs = evaluate(segment, dict(zip(segment.inputs, (got[i] for i in node.inputs), strict=True)), ops)
        got.update(zip(node.outputs, (outputs[o] for o in segment.outputs), strict=True))
    assert got["out"] == want["out"]


COMPUTED = [range(4), {0, 1}, {0, 2}, {0}, {1, 3}, range(4), {2}, {0, 1, 3}]


@pytest.mark.parametrize("passes", [{}, {"fold": False}, {"hoist": False, "fold": False}, {"max_graphs": 3}], ids=str)
def test_the_loop_computes_what_pytorch_computes(streams, tmp_path, passes):
    chosen = Options(scheduled(COMPUTED), tmp_path / "e", streams, "random:1", batch=2, **passes)
    compile_artefact(chosen)
    for link in ("shared", "static"):
        verdict = l2c_export.verify(l2c_export.load(tmp_path / "e", "onnxruntime", link=link))
        assert verdict.passed, verdict
