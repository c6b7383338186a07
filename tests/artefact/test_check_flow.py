"""A value that is not there when it is read is found in the manifest: nothing else would tell it from a right one."""

from __future__ import annotations

import pytest
from manifests import changed
from msgspec.structs import replace
from recorded import GOLDEN

from l2c_export.artefact import store
from l2c_export.artefact.check import problem
from l2c_export.artefact.records import Origin
from l2c_export.ir.graph import Node

SOUND = store.read(GOLDEN / "v2" / "engines")
FULL, LIGHT = "step-000", "step-001"  # the graphs of the calls that fill the cache, and of those that read it
SIZE, CALLS = SOUND.program().size, SOUND.program().calls
RUN = next(iter(CALLS[0].writes)).partition("@")[0]  # the sum of all sublayers, which is cached


def said(**fields):
    return problem(changed(SOUND, **fields)) or "nothing"


def with_graph(name, **fields):
    """What is said of the manifest with a graph changed."""
    return said(graphs={**SIZE.graphs, name: replace(SIZE.graphs[name], **fields)})


def with_calls(*calls):
    return said(calls=calls)


def test_what_was_compiled_is_sound():
    assert said() == "nothing"


def test_a_node_that_runs_before_what_it_reads_was_made():
    first, second, *others = SIZE.graphs[FULL].nodes
    assert set(first.outputs) & set(second.inputs)
    assert "which is not there" in with_graph(FULL, nodes=(second, first, *others))


def test_an_inner_value_has_a_slot():
    for name in (FULL, SIZE.prologue):
        slots = dict(SIZE.graphs[name].slots)
        value, _ = slots.popitem()
        assert f"{value!r} is an inner value, and has no slot" in with_graph(name, slots=slots)


def test_two_values_that_live_at_once_in_one_slot():
    graph = SIZE.graphs[FULL]
    slots, sizes = dict.fromkeys(graph.slots, 0), (max(graph.slot_bytes),)
    assert "in one slot" in with_graph(FULL, slots=slots, slot_bytes=sizes)


def test_a_value_that_another_one_has_replaced_in_its_slot():
    """It is the read, later, that is wrong: no node writes over what itself reads."""
    graph, (early, late) = SIZE.graphs[FULL], ("blocks.0.attn.residual", "blocks.0.mlp.residual")
    assert list(graph.slots.values()).count(graph.slots[early]) > 1
    nodes = (
        replace_node(node, inputs=tuple(early if value == late else value for value in node.inputs))
        if node.name == "blocks.1.attn" else node
        for node in graph.nodes
    )  # fmt: skip
    assert f"blocks.1.attn reads {early!r}, which is not there" in with_graph(FULL, nodes=tuple(nodes))


def replace_node(node, **fields):
    return Node(**{"op": node.op, "name": node.name, "inputs": node.inputs, "outputs": node.outputs, **fields})


@pytest.mark.parametrize("taken", ["rows", "t", "pos_embed", "guidance"])
def test_a_graph_makes_nothing_that_others_read_from_the_loop(taken):
    nodes = list(SIZE.graphs[LIGHT].nodes)
    nodes[0] = replace_node(nodes[0], outputs=(taken,))
    nodes[1] = replace_node(nodes[1], inputs=tuple(taken if name == "embed" else name for name in nodes[1].inputs))
    assert f"{taken!r} is not its own to make" in with_graph(LIGHT, nodes=tuple(nodes))


def test_a_slot_is_for_what_lives_inside_a_graph():
    assert "'x' is no inner value, and has a slot" in with_graph(LIGHT, slots={**SIZE.graphs[LIGHT].slots, "x": 0})


def test_an_output_that_nothing_makes_or_that_is_made_twice():
    graph = SIZE.graphs[LIGHT]
    assert "nothing makes 'x'" in with_graph(LIGHT, outputs=(*graph.outputs, "x"))
    assert "is made twice" in with_graph(LIGHT, nodes=(*graph.nodes, graph.nodes[-1]))


def test_a_cache_is_read_after_it_was_filled():
    assert "call 0: its graph knows of other calls than it says" in with_calls(CALLS[1], CALLS[0], *CALLS[2:])
    assert "call 3: it reads" in with_calls(*CALLS[:3], replace(CALLS[3], earlier=(2,)))


def test_a_cache_holds_what_the_call_wrote_that_is_meant():
    assert "its graph knows of other calls" in said(origins={**SIZE.origins, f"{RUN}@-1": Origin("cache", RUN, -2)})
    for field, calls in (
        ("earlier", ()),
        ("earlier", (0,)),
        ("earlier", (9,)),
        ("later", (1,)),
        ("derived", {"output": ((9, 1.0),)}),
    ):
        assert (
            "its graph knows of other calls" in with_calls(*CALLS[:3], replace(CALLS[3], **{field: calls})) or field == "later"
        )


def test_two_calls_that_read_one_filling_find_it_as_long_as_nobody_writes_there():
    """The sum that is made for the next call is not that of the call after it."""
    assert "from a slot that holds something else" in with_calls(CALLS[0], CALLS[1], CALLS[1], CALLS[3])


def test_every_cached_value_has_a_slot_and_no_other_value_has():
    assert "has no place" in with_calls(replace(CALLS[0], writes={}), *CALLS[1:])
    more = replace(CALLS[1], writes={f"{RUN}@+1": 0})
    assert "other slots than its graph reads and makes" in with_calls(CALLS[0], more, *CALLS[2:])


def test_earlier_predictions_are_those_that_the_graphs_make():
    assert "another number of earlier predictions than 1" in said(history=1)


@pytest.mark.parametrize(("age", "says"), [(1, "nothing"), (2, "'blocks.0.attn' follows from a call"), (3, "nothing")])
def test_what_a_call_follows_from_was_computed(age, says):
    """Calls 0 and 2 compute all sublayers, 1 and 3 none."""
    forecast = replace(CALLS[3], reused=CALLS[3].reused[1:], derived={"blocks.0.attn": ((age, 1.0),)})
    assert says in with_calls(*CALLS[:3], forecast)


def test_what_is_reused_was_computed_before():
    reader = replace(CALLS[0], computed=CALLS[0].computed[1:], reused=(0,))
    assert "call 0: 'blocks.0.attn' follows from a call that does not compute it" in with_calls(reader, *CALLS[1:])
