"""Rules as terms over the calls that computed a value, against a walk through the calls with numbers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from version2 import EXAMPLE, SUBLAYERS, schedule_of

from l2c_export.compiler.plan import make_plan
from l2c_export.errors import ScheduleError
from l2c_export.schedules.forecast import COMPUTED, taylor
from l2c_export.schedules.resolve import resolve
from l2c_export.schedules.schedule import Schedule

A0, M0, A1, M1, A2, M2 = SUBLAYERS
FIRST = "call 0 must compute every sublayer, for nothing is cached before it: it does not compute "
NONE = ", which does not compute it: use one that does"


def terms(schedule):
    return resolve(schedule.cacheable, schedule.calls)


def test_the_example():
    calls = terms(Schedule.from_json(EXAMPLE.encode()))
    everything = dict.fromkeys(("blocks.0.attn", "blocks.0.mlp", "stack", "output"), COMPUTED)
    assert calls == (
        everything,
        everything,
        everything | {"blocks.0.attn": ((1, 1.5), (2, -0.5))},
        {"output": ((1, 2.0), (2, -1.0))},
    )


def test_derived_values_enter_no_history():
    rest = [M0, A1, M1, A2, M2]
    by_call = terms(schedule_of("all", "all", (rest, {A0: "taylor:2"}), (rest, {A0: "taylor:2"}), (rest, {A0: "reuse"})))
    assert [call[A0] for call in by_call[2:]] == [taylor((1, 2)), taylor((2, 3)), ((3, 1.0),)]


def test_what_is_jumped_over_is_left_out_and_enters_no_history():
    by_call = terms(schedule_of("all", "all", ([], {"stack": "taylor:1"}), ([], {"*": "taylor:1"})))
    assert {*by_call[2]} == {"stack", "output"}
    assert by_call[2]["output"] == COMPUTED
    assert by_call[3][A0] == taylor((2, 3))


def test_a_level_counts_as_computed_where_nothing_that_spans_it_is_derived():
    rules = ([], {"stack": "reuse"}), ([], {"output": "taylor:2"}), ([A0], {"*": "taylor:1"}), ([], {"stack": "taylor:1"})
    by_call = terms(schedule_of("all", *rules))
    assert [{name: call.get(name) for name in ("stack", "output")} for call in by_call] == [
        {"stack": COMPUTED, "output": COMPUTED},
        {"stack": ((1, 1.0),), "output": COMPUTED},
        {"stack": None, "output": taylor((1, 2))},
        {"stack": COMPUTED, "output": COMPUTED},
        {"stack": taylor((1, 4)), "output": COMPUTED},
    ]


def test_a_range_is_derived_while_the_stack_around_it_is_computed():
    cacheable = (*SUBLAYERS, "stack", "stack[1:3]")
    by_call = terms(schedule_of("all", ([A0], {"stack[1:3]": "reuse"}), ([], {"stack": "taylor:1"}), cacheable=cacheable))
    assert by_call[1] == {A0: COMPUTED, M0: ((1, 1.0),), "stack[1:3]": ((1, 1.0),), "stack": COMPUTED}
    assert by_call[2] == {"stack": taylor((1, 2))}


@pytest.mark.parametrize(("calls", "says"), [
    ((([A0, M0, A1, M1, A2], {}), "all"), FIRST + "'blocks.2.mlp'"),
    ((([], {"*": "reuse"}), "all"), FIRST + "'blocks.0.attn'"),
    ((([], {"output": "reuse"}), "all"), FIRST + "'output'"),
    (("all", ([A0], {}), ([], {M0: [[1, 1.0]]})), "call 2 derives 'blocks.0.mlp' from call 1" + NONE),
    (("all", ([A0], {}), ([], {M0: [[3, 1.0]]})), "call 2 derives 'blocks.0.mlp' from call -1" + NONE),
    (("all", ([], {"output": "reuse"}), ([], {"stack": [[1, 1.0]]})), "call 2 derives 'stack' from call 1" + NONE),
    (("all", ([], {"output": "reuse"}), ([], {"output": [[2, 1.0], [1, 1.0]]})), "call 2 derives 'output' from call 1" + NONE),
])  # fmt: skip
def test_a_rule_without_a_history(calls, says):
    with pytest.raises(ScheduleError) as caught:
        schedule_of(*calls)
    assert str(caught.value) == f"schedule: {says}"


RULES = st.sampled_from(["reuse", "taylor:0", "taylor:1", "taylor:2", "taylor:3"])


@st.composite
def ruled_call(draw):
    """What a call computes, and rules for the rest; sometimes of a level."""
    level = draw(st.sampled_from([None, None, None, "stack", "output", "stack[1:3]"]))
    own = {None: SUBLAYERS, "stack[1:3]": (A0, M0)}.get(level, ())
    computed = [name for name in own if draw(st.booleans())]
    rules = draw(st.dictionaries(st.sampled_from(["*", "*.attn", "blocks.[02].*", *SUBLAYERS]), RULES))
    rules = {key: rule for key, rule in rules.items() if key not in computed}
    return computed, rules | ({level: draw(RULES)} if level else {})


@given(st.lists(ruled_call(), min_size=4, max_size=4))
def test_terms_are_what_a_loop_with_a_cache_would_give(calls):
    """Every value is the number of its call: whatever the order, a forecast from two values or more meets it."""
    has_range = any("stack[1:3]" in rules for _, rules in calls)
    names = (*SUBLAYERS, "stack", "output", *(["stack[1:3]"] if has_range else []))
    schedule = schedule_of("all", *calls, cacheable=names)
    history = {name: {0: 0.0} for name in names}
    for n, (call, values) in enumerate(zip(schedule.calls[1:], terms(schedule)[1:], strict=True), 1):
        for name, sum_ in values.items():
            if sum_ == COMPUTED:
                history[name][n] = float(n)
                assert name not in call.rules
                continue
            ages = [age for age, _ in sum_]
            assert ages == sorted(ages)
            got, newest = sum(c * history[name][n - age] for age, c in sum_), max(history[name])
            assert got == pytest.approx(n if len(ages) > 1 else newest)
        assert {name for name in SUBLAYERS if values.get(name) == COMPUTED} == {schedule.sublayers[j] for j in call.computed}
        assert {name for name in SUBLAYERS if values.get(name, COMPUTED) != COMPUTED} >= {
            schedule.sublayers[j] for j in call.reused
        }


@given(st.lists(st.sets(st.integers(0, 5)), min_size=4, max_size=4))
def test_reuse_is_what_the_compiler_plans(computed):
    schedule = Schedule.make("dit", "ddim", 5, 6, [range(6), *computed])
    plan = make_plan(schedule)
    for call, key, earlier in zip(terms(schedule), plan.keys, plan.earlier, strict=True):
        derived = {name: earlier[which - 1] for name, ((which, _),) in key.own.derived}
        assert {name: derived.get(name, 0) for name in schedule.sublayers} == {
            name: call[name][0][0] for name in schedule.sublayers
        }
    assert all(c == 1.0 for call in terms(schedule) for ((_, c),) in call.values())
    assert Schedule.from_json(json.dumps(json.loads(schedule.to_json())).encode()) == schedule
