"""What a call says of every value: keys, patterns, levels; each refusal with its line."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from version2 import SUBLAYERS, schedule_of

from l2c_export.errors import ScheduleError
from l2c_export.schedules.calls import applied, remaining
from l2c_export.schedules.values import values_of

ALL = (*SUBLAYERS, "stack", "output", "stack[1:3]", "stack[0:1]")
A0, M0, A1, M1, A2, M2 = SUBLAYERS


def rules_of(rules, computed=(), cacheable=ALL):
    return applied(values_of(cacheable), computed, rules, 1)


def test_the_most_specific_key_wins():
    rules = {"*": "reuse", "blocks.*": "taylor:1", "blocks.*.mlp": "taylor:2", M1: "taylor:3"}
    assert rules_of(rules) == {A0: "taylor:1", M0: "taylor:2", A1: "taylor:1", M1: "taylor:3", A2: "taylor:1", M2: "taylor:2"}


def test_a_name_wins_over_a_longer_pattern():
    assert rules_of({"blocks.[0123456789].attn": "taylor:1", A0: "reuse"})[A0] == "reuse"


@given(st.permutations(["*", "blocks.*", "blocks.0*", "blocks.0.a*", A0]))
def test_the_order_of_keys_says_nothing(keys):
    rules = {key: f"taylor:{len(key) % 10}" for key in keys}
    assert rules_of(rules)[A0] == f"taylor:{len(A0) % 10}"
    assert rules_of(rules)[M0] == f"taylor:{len('blocks.0*')}"


def test_two_patterns_of_one_length_that_match():
    with pytest.raises(ScheduleError) as caught:
        schedule_of("all", ([M0], {"blocks.0.*": "reuse", "*.attn****": "taylor:1"}))
    assert str(caught.value) == (
        "schedule: call 1 has two rules for 'blocks.0.attn', 'blocks.0.*' and '*.attn****', which are equally long: "
        "name it, or make one of them longer"
    )


def test_two_patterns_of_one_length_may_match_what_a_name_or_a_longer_one_rules():
    rules = {"blocks.0.*": "reuse", "*.attn****": "taylor:1", A0: "taylor:2"}
    assert rules_of(rules)[A0] == "taylor:2"
    assert rules_of({"blocks.0.*": "reuse", "*.attn****": "taylor:1", "blocks.*.attn": "taylor:3"})[A0] == "taylor:3"


def test_patterns_pass_over_what_is_computed_and_what_no_rule_is_for_is_reused():
    assert rules_of({"blocks.0.*": "taylor:1"}, [0, 2, 3, 4]) == {M0: "taylor:1", M2: "reuse"}
    assert schedule_of("all", ([*SUBLAYERS], {"*": "taylor:1"})).calls[1].reused == ()
    assert schedule_of("all", ([A0], {})).calls[1].reused == (1, 2, 3, 4, 5)


def test_patterns_are_for_sublayers_alone():
    assert {*rules_of({"*": "taylor:1"})} == {*SUBLAYERS}
    assert schedule_of("all", ([A0], {"*": "taylor:1"}), cacheable=("output", *SUBLAYERS)).derived(1).keys() == {*SUBLAYERS[1:]}


@pytest.mark.parametrize(("level", "left"), [
    ("output", []), ("stack", []), ("stack[1:3]", [A0, M0]), ("stack[0:1]", [A1, M1, A2, M2]),
])  # fmt: skip
def test_a_derived_level_jumps_over_its_sublayers(level, left):
    assert rules_of({"*": "taylor:2", level: "reuse"}) == {level: "reuse"} | dict.fromkeys(left, "taylor:2")


def test_reused_columns_are_those_by_reuse_alone():
    call = schedule_of("all", ([A0], {M0: "taylor:0", A1: "taylor:1", M1: [[1, 1.0]], "*": "reuse"})).calls[1]
    assert (call.computed, call.reused) == ((0,), (1, 4, 5))
    assert schedule_of("all", ([], {"output": "reuse"})).calls[1].reused == ()


@pytest.mark.parametrize(("call", "says"), [
    (([A0], {A0: "reuse"}), "call 1 computes 'blocks.0.attn', and has a rule for it: drop one of the two"),
    (([], {"blocks.9.attn": "reuse"}), "call 1 has a rule for 'blocks.9.attn', which is no cacheable value and matches none"),
    (([], {"blok*": "reuse"}), "call 1 has a rule for 'blok*', which is no cacheable value and matches none"),
    (([], {"": "reuse"}), "call 1 has a rule for '', which is no cacheable value and matches none"),
    (([], {"stack[0:2]": "reuse"}), "call 1 has a rule for 'stack[0:2]': list it as cacheable"),
    (([A0], {"output": "reuse"}), "call 1 has a rule for 'output', so it cannot compute 'blocks.0.attn': drop one of the two"),
    (([M2], {"stack": "reuse"}), "call 1 has a rule for 'stack', so it cannot compute 'blocks.2.mlp': drop one of the two"),
    (([A0, M1], {"stack[1:3]": "reuse"}),
     "call 1 has a rule for 'stack[1:3]', so it cannot compute 'blocks.1.mlp': drop one of the two"),
    (([], {"stack": "reuse", "output": "reuse"}), "call 1 has rules for 'stack' and 'output', which overlap: use one"),
    (([], {"stack": "reuse", "stack[1:3]": "reuse"}), "call 1 has rules for 'stack' and 'stack[1:3]', which overlap: use one"),
    (([], {"*": "renew"}),
     "call 1, rule of '*': 'renew' is no rule: use reuse, taylor:M with M from 0 to 9, or [[age, coefficient], ..]"),
    (([], {A0: []}),
     "call 1, rule of 'blocks.0.attn': terms of the ages []: give one or more ages, each once, 1 for the call before"),
])  # fmt: skip
def test_a_call_that_contradicts_itself(call, says):
    cacheable = (*SUBLAYERS, "stack", "output", *(["stack[1:3]"] if "stack[1:3]" in call[1] else []))
    with pytest.raises(ScheduleError) as caught:
        schedule_of("all", call, cacheable=cacheable)
    assert str(caught.value) == f"schedule: {says}"


def test_ranges_that_lie_apart_may_both_be_derived():
    call = ([], {"stack[1:3]": "reuse", "stack[0:1]": "taylor:1"})
    assert schedule_of("all", call, cacheable=ALL).derived(1).keys() == {"stack[1:3]", "stack[0:1]"}


def test_a_range_leaves_other_blocks_alone():
    assert schedule_of("all", ([A0], {"stack[1:3]": "reuse"}), cacheable=(*SUBLAYERS, "stack[1:3]")).calls[1].reused == (1,)


@pytest.mark.parametrize(
    "change", [{"computed": (1, 0)}, {"computed": (0, 0)}, {"computed": (6,)}, {"computed": (-1,)}, {"reused": ()}]
)
def test_a_call_made_by_hand_is_held_to_the_same(change):
    schedule = schedule_of("all", ([A0], {}))
    wrong = msgspec.structs.replace(schedule.calls[1], **change)
    with pytest.raises(ScheduleError, match="call 1 must"):
        msgspec.structs.replace(schedule, calls=(schedule.calls[0], wrong))


def test_a_rule_goes_with_what_it_was_for():
    rules = {"*": "taylor:1", A0: "taylor:2", A1: "reuse", "stack[1:3]": "reuse", "stack[0:1]": "reuse"}
    values = values_of(ALL)
    assert remaining(values, [0], rules) == {"*": "taylor:1", A1: "reuse", "stack[1:3]": "reuse"}
    assert remaining(values, range(6), rules) is None
    assert remaining(values, [0], {A0: "reuse"}) is None
