"""The compiler's passes on small graphs written as ONNX text, and the whole loop with and without them."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import evaluate, lines, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from l2c_export.compiler.passes.calls import specialise_calls
from l2c_export.compiler.passes.fold import fill, fold, reassociate
from l2c_export.compiler.passes.hoist import hoist
from l2c_export.compiler.passes.merge_calls import share
from l2c_export.compiler.passes.place import Life, assign, caches
from l2c_export.compiler.passes.segment import group
from l2c_export.compiler.passes.specialise import specialise
from l2c_export.compiler.plan import Derivation, Key, Plan, make_plan
from l2c_export.ir.graph import CACHE, ONCE, PROLOGUE, Graph, Node, Value, check
from l2c_export.schedules.forms import ScheduleSource
from l2c_export.schedules.schedule import Schedule

# two gated sublayers between an embedding and an output, as in DiT
CALL = parse(
    """main (float[R] x, float[R] t, float[R] y, float[R] w0, float[R] w1, float[R] w2) => (float[R] out) {
        time = time(t, w0)
        c = condition(time, y)
        ga = modulation(c, w1)
        gb = modulation(c, w2)
        sa = shift(c)
        h = embed(x)
        a = attn(h, sa)
        pa = Mul(ga, a)
        ha = Add(h, pa)
        b = mlp(ha)
        pb = Mul(gb, b)
        hb = Add(ha, pb)
        out = final(hb)
    }""",
    sublayers=("a", "b"),
)


def derivation(**ages: int) -> Derivation:
    """Values that are computed (0), or reused from the so-manieth of the calls that are read from."""
    computed = tuple(name for name, age in ages.items() if not age)
    return Derivation(computed, tuple((name, ((age, ""),)) for name, age in ages.items() if age))


def test_specialise_reads_the_cache_and_drops_what_only_the_skipped_needed():
    call = specialise(CALL, derivation(a=1, b=0))
    assert "a@-1" in call.inputs
    assert call.kind("a@-1") == CACHE
    assert not {"shift", "attn"} & {n.op for n in call.nodes}
    assert "pa = Mul(ga, a@-1)" in lines(call)
    assert lines(CALL)[6] == "a = attn(h, sa)", "the graph that went in is unchanged"


def test_hoist_splits_by_what_is_known_when():
    constants, request, prologue, call = hoist(CALL)
    assert lines(constants) == ["time = time(t, w0)"]
    assert not request.nodes
    assert [n.op for n in prologue.nodes] == ["condition", "modulation", "modulation", "shift"]
    assert prologue.kind("time") == PROLOGUE
    assert prologue.outputs == ("sa", "ga", "gb")
    assert [n.op for n in call.nodes] == ["embed", "attn", "Mul", "Add", "mlp", "Mul", "Add", "final"]
    assert {n for n in call.inputs if call.kind(n) == PROLOGUE} == {"ga", "gb", "sa"}


def test_hoist_goes_by_data_flow_and_not_by_name():
    # "time" depends on x here, and an unknown operation does not
    graph = parse("main (float[R] x, float[R] y) => (float[R] out) { time = time(x)\n z = unheard_of(y)\n out = Add(time, z) }")
    constants, request, prologue, call = hoist(graph)
    assert not constants.nodes
    assert not prologue.nodes
    assert lines(request) == ["z = unheard_of(y)"]
    assert lines(call) == ["time = time(x)", "out = Add(time, z)"]
    assert call.kind("z") == ONCE


def test_what_the_request_alone_decides_is_made_once_and_again_where_it_meets_the_time():
    graph = parse(
        """main (float[R] x, float[R] t, float[R] y, float[R] w) => (float[R] out) {
            e = text(y, w)
            k = keys(e)
            c = condition(e, t)
            time = time(t)
            g = gate(e, time)
            h = attn(x, k)
            p = Mul(g, h)
            out = Add(c, p)
        }"""
    )
    constants, request, prologue, call = hoist(graph)
    assert lines(constants) == ["time = time(t)"]
    assert lines(request) == ["e = text(y, w)", "k = keys(e)"]
    assert request.outputs == ("e", "k"), "the timestep itself is there in the loop alone, which reads e, too"
    assert lines(prologue) == ["e = text(y, w)", "g = gate(e, time)"]
    assert prologue.outputs == ("g",)
    assert {n: call.kind(n) for n in ("e", "k", "g")} == {"e": ONCE, "k": ONCE, "g": PROLOGUE}


def test_fold_makes_one_tensor_of_a_run():
    call = hoist(CALL).call
    reader = fold(specialise(call, derivation(a=1, b=1)), ())
    assert lines(reader.call) == ["h = embed(x)", "hb = Add(h, run.a..b@-1)", "out = final(hb)"]
    ((offset, fragment),) = reader.fragments
    assert offset == 1
    filler = fill(specialise(call, derivation(a=0, b=0)), [(1, fragment)])
    assert lines(filler) == [
        "h = embed(x)",
        "a = attn(h, sa)",
        "pa = Mul(ga, a)",
        "ha = Add(h, pa)",
        "pa@+1 = Mul(ga@+1, a)",
        "b = mlp(ha)",
        "pb = Mul(gb, b)",
        "hb = Add(ha, pb)",
        "pb@+1 = Mul(gb@+1, b)",
        "run.a..b@+1 = Add(pa@+1, pb@+1)",
        "out = final(hb)",
    ]
    assert filler.outputs == ("out", "run.a..b@+1")


def test_a_run_ends_where_the_stream_is_read():
    graph = parse(
        """main (float[R] x, float[R] a@-1, float[R] b@-1) => (float[R] out) {
            ha = Add(x, a@-1)
            hb = Add(ha, b@-1)
            out = skip(hb, ha)
        }""",
        sublayers=("a", "b"),
    )
    assert lines(reassociate(graph, ())) == lines(graph)


def test_a_run_ends_where_another_call_filled_the_cache():
    graph = parse(
        """main (float[R] x, float[R] a@-1, float[R] b@-2, float[R] c@-2) => (float[R] out) {
            ha = Add(x, a@-1)
            hb = Add(ha, b@-2)
            hc = Add(hb, c@-2)
            out = final(hc)
        }""",
        sublayers=("a", "b", "c"),
    )
    folded = fold(graph, ())
    assert lines(folded.call) == ["ha = Add(x, a@-1)", "hc = Add(ha, run.b..c@-2)", "out = final(hc)"]


def test_equal_pieces_are_one_segment():
    grouped, segments = group(hoist(CALL).call)
    assert [n.op.partition(".")[0] for n in grouped.nodes] == ["embed", "attn-mul-add", "mlp-mul-add", "final"]
    both = Graph(CALL.nodes, CALL.values, ("out",))
    twice, same = group(Graph((*both.nodes, *_renamed(both)), {**both.values, **_values(both)}, ("out", "out2")))
    assert len(same) == len(group(both)[1])
    assert len(twice.nodes) == 2 * len(group(both)[0].nodes)
    assert len(segments) == 4


def _renamed(graph):
    outputs = {o for n in graph.nodes for o in n.outputs}
    name = lambda n: n + "2" if n in outputs else n  # noqa: E731
    return tuple(Node(n.op, name(n.name), tuple(map(name, n.inputs)), tuple(map(name, n.outputs))) for n in graph.nodes)


def _values(graph):
    return {o + "2": graph.values[o] for n in graph.nodes for o in n.outputs}


OPS = {
    "time": lambda t, w: np.sin(t) * w,
    "condition": lambda time, y: time + y,
    "modulation": lambda c, w: c * w + 0.3,
    "shift": lambda c: 0.5 * c,
    "embed": lambda x: 2 * x + 1,
    "attn": lambda h, s: np.tanh(h + s),
    "mlp": lambda h: np.cos(h),
    "final": lambda h: 0.9 * h - 0.1,
}


def named(blocks: int) -> list[str]:
    return [f"v{i}" for i in range(blocks)]


def wide_call(blocks: int) -> Graph:
    text = ["time = time(t, w)", "c = condition(time, y)", "h0 = embed(x)"]
    names, stream = [], "h0"
    for i in range(blocks):
        text += [f"g{i} = modulation(c, w)", f"s{i} = shift(c)", f"v{i} = attn({stream}, s{i})"]
        text += [f"p{i} = Mul(g{i}, v{i})", f"r{i} = Add({stream}, p{i})"]
        names.append(f"v{i}")
        stream = f"r{i}"
    body = "\n".join([*text, f"x.next = final({stream})"])
    return parse(f"main (float[R] x, float[R] t, float[R] y, float[R] w) => (float[R] x.next) {{ {body} }}", tuple(names))


def run_loop(parts, calls, plan: Plan, times) -> np.ndarray:
    """Run compiled calls with numpy, passing cached values through the slots that the memory pass assigned."""
    weights, y = {"w": np.array(1.7)}, {"y": np.array(0.4)}
    rows = []
    for t in times:
        known = {**weights, **y, "t": np.array(t)}
        if parts.constants is not None:
            known.update(evaluate(parts.constants, known, OPS))
            known.update(evaluate(parts.request, known, OPS))
            known.update(evaluate(parts.prologue, known, OPS))
        rows.append(known)
    graphs = [calls[key] for key in plan.keys]
    size = {name: 1 for g in graphs for name in (*g.values, *(n.split("@")[0] for n in g.values))}
    wiring, slots = caches(graphs, plan, size)
    memory: list[np.ndarray] = [np.array(np.nan)] * len(slots)
    x = np.array(0.25)
    for n, (graph, wires) in enumerate(zip(graphs, wiring, strict=True)):
        inputs = {"x": x}
        for name in graph.inputs:
            base, _, offset = name.partition("@")
            if name in wires.reads:
                inputs[name] = memory[wires.reads[name]]
            elif name != "x":
                inputs[name] = rows[min(n + (plan.later[n][int(offset) - 1] if offset else 0), len(rows) - 1)][base]
        values = evaluate(graph, inputs, OPS)
        for name, slot in wires.writes.items():
            memory[slot] = values[name]
        x = values["x.next"]
    return x


@st.composite
def schedules(draw):
    """Any schedule: every later call computes any subset of the sublayers."""
    blocks, calls = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    subsets = st.sets(st.integers(0, blocks - 1))
    return blocks, [set(range(blocks)), *(draw(subsets) for _ in range(calls - 1))]


@settings(max_examples=150)
@given(schedules())
def test_every_combination_of_passes_computes_the_same_loop(drawn):
    blocks, computed = drawn
    schedule = Schedule.make("dit", "ddim", len(computed), named(blocks), computed, source=ScheduleSource(rule="test"))
    plan = make_plan(schedule)
    times = [c.timestep / 1000 for c in schedule.calls]
    call = check(wide_call(blocks), "test")
    whole = type("Parts", (), {"constants": None, "prologue": None, "call": call})
    results = []
    for parts in (whole, hoist(call)):
        for folding in (False, True):
            results.append(run_loop(parts, specialise_calls(parts.call, [plan], folding), plan, times))
    np.testing.assert_allclose(results, results[0], rtol=1e-12)
    np.testing.assert_allclose(results[0], direct(computed, times), rtol=1e-12)


def direct(computed, times) -> np.ndarray:
    """The loop as the paper describes it: a dictionary as the cache."""
    x, cache = np.array(0.25), {}
    for t, run in zip(times, computed, strict=True):
        c = np.sin(t) * 1.7 + 0.4
        h = 2 * x + 1
        for i in range(len(computed[0])):
            if i in run:
                cache[i] = np.tanh(h + 0.5 * c)
            h = h + (c * 1.7 + 0.3) * cache[i]
        x = 0.9 * h - 0.1
    return x


def test_a_folded_call_reads_one_tensor_per_run():
    schedule = Schedule.make("dit", "ddim", 2, named(5), [range(5), {2}])
    call = hoist(wide_call(5)).call
    calls = specialise_calls(call, [make_plan(schedule)], True)
    reader = next(g for g in calls.values() if any(g.kind(n) == CACHE for n in g.inputs))
    assert [n for n in reader.inputs if reader.kind(n) == CACHE] == ["run.v0..v1@-1", "run.v3..v4@-1"]


def test_equal_calls_share_a_graph_however_many_there_are():
    for steps in (4, 20, 250):
        plan = make_plan(Schedule.make("dit", "ddim", steps, 3, [range(3) if n % 2 == 0 else () for n in range(steps)]))
        assert len(plan.distinct()) == 2
        assert isinstance(plan.keys[0], Key)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.integers(1, 100)), max_size=40))
def test_slots_never_hold_two_living_values(drawn):
    lives = {i: Life(start, start + length, size) for i, (start, length, size) in enumerate(drawn)}
    slots, sizes = assign(lives)
    for i, a in lives.items():
        assert sizes[slots[i]] >= a.size
        for j, b in lives.items():
            if i < j and slots[i] == slots[j]:
                assert a.end < b.start or b.end < a.start
    assert sum(sizes) <= sum(life.size for life in lives.values())


def test_types_travel_with_names():
    call = hoist(CALL).call
    assert all(isinstance(v, Value) for v in call.values.values())


def shared_loop(computed, most):
    """The loop of a schedule that was merged into at most `most` graphs: (result, its schedule, its graphs)."""
    schedule = Schedule.make(
        "dit", "ddim", len(computed), named(len(computed[0])), computed, source=ScheduleSource(rule="test")
    )
    shared = share(schedule, most, [2.0 if j % 2 else 1.0 for j in range(schedule.columns)])
    times = [c.timestep / 1000 for c in schedule.calls]
    parts = hoist(wide_call(schedule.columns))
    calls = specialise_calls(parts.call, [shared.plan], True)
    return run_loop(parts, calls, shared.plan, times), shared, len(calls), times


@settings(max_examples=100)
@given(schedules(), st.integers(1, 6))
def test_sharing_only_ever_adds_computation(drawn, most):
    _, computed = drawn
    result, shared, graphs, times = shared_loop(computed, most)
    assert graphs <= most
    runs = [set(call.computed) for call in shared.schedule.calls]
    assert all(wanted <= run for wanted, run in zip(computed, runs, strict=True))
    np.testing.assert_allclose(result, direct(runs, times), rtol=1e-12)


def test_sharing_prefers_to_write_a_sum_that_nobody_reads():
    everything = set(range(4))
    _, shared, graphs, _ = shared_loop([everything, set(), everything, everything], 2)
    assert graphs == 2
    assert [len(c.computed) for c in shared.schedule.calls] == [4, 0, 4, 4], "no sublayer had to be added"
    assert 0 < shared.added < 0.05


def test_sharing_merges_the_two_calls_that_are_closest():
    everything = set(range(4))
    _, shared, _, _ = shared_loop([everything, {0}, everything, {0, 1}, everything, {2, 3}], 3)
    assert [set(c.computed) for c in shared.schedule.calls][1::2] == [{0, 1}, {0, 1}, {2, 3}]


@settings(max_examples=60)
@given(schedules())
def test_what_sharing_adds_is_what_its_sublayers_cost(drawn):
    blocks, computed = drawn
    cost = [1.0 + j for j in range(blocks)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("l2c_export.compiler.passes.merge_calls.SUM_COST", 0.0)
        shared = share(Schedule.make("dit", "ddim", len(computed), blocks, computed), 2, cost)
    before = sum(cost[j] for run in computed for j in run)
    after = sum(cost[j] for call in shared.schedule.calls for j in call.computed)
    assert shared.added == pytest.approx((after - before) / before)


def test_sharing_keeps_what_a_schedule_says_of_itself():
    source = ScheduleSource(file="r.pt", sha256="0" * 64)
    shared = share(Schedule.make("dit", "ddim", 4, 2, [range(2), {0}, range(2), {1}], 0.3, source), 2, [1.0, 1.0]).schedule
    assert (shared.threshold, shared.source) == (0.3, source)
