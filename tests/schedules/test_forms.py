"""The JSON forms: version 2, version 1, and what is neither."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import GOLDEN
from version2 import EXAMPLE, SUBLAYERS, schedule_of

from l2c_export.compiler.plan import make_plan
from l2c_export.errors import ScheduleError
from l2c_export.schedules.schedule import Schedule

HEAD = {"format": "l2c-schedule", "family": "dit", "sampler": "ddim"}


def numbered(computed, count, **rest):
    """Version 1."""
    every = [{"timestep": update.timestep, "computed": sorted(on), "reused": sorted({*range(count)} - {*on})}
             for update, on in zip(Schedule.every(1, family="dit", steps=len(computed), columns=1).table().updates, computed,
                                   strict=True)]  # fmt: skip
    return json.dumps({**HEAD, "version": 1, "steps": len(computed), "columns": count, "calls": every, **rest}).encode()


@st.composite
def any_computed(draw):
    columns = draw(st.integers(1, 8))
    rest = draw(st.lists(st.sets(st.integers(0, columns - 1)), min_size=1, max_size=7))
    return columns, [{*range(columns)}, *rest]


def test_the_example_is_read_and_written():
    schedule = Schedule.from_json(EXAMPLE.encode())
    written = json.loads(schedule.to_json())
    assert {key: written[key] for key in json.loads(EXAMPLE)} == json.loads(EXAMPLE)
    assert Schedule.from_json(schedule.to_json()) == schedule


@given(any_computed())
def test_version_1_is_read_as_reuse_of_everything(chosen):
    columns, computed = chosen
    schedule = Schedule.from_json(numbered(computed, columns, threshold=0.5, source={"rule": "x"}))
    assert [set(call.computed) for call in schedule.calls] == computed
    assert all({*call.computed, *call.reused} == {*range(columns)} for call in schedule.calls)
    assert all(call.rules == ({"*": "reuse"} if call.reused else {}) for call in schedule.calls)
    again = Schedule.from_json(schedule.to_json())
    assert again == schedule
    assert b'"version": 2' in schedule.to_json()
    assert make_plan(again) == make_plan(schedule) == make_plan(Schedule.make("dit", "ddim", len(computed), columns, computed))


def test_the_schedule_of_an_artefact_of_version_1():
    path = GOLDEN / "v1" / "engines" / "schedule.json"
    raw, schedule = json.loads(path.read_text()), Schedule.read(path)
    assert raw["version"] == 1
    assert [[*call.computed] for call in schedule.calls] == [call["computed"] for call in raw["calls"]]
    assert [[*call.reused] for call in schedule.calls] == [call["reused"] for call in raw["calls"]]
    assert schedule.sublayers == ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")


def test_a_line_for_every_call():
    lines = schedule_of("all", ([SUBLAYERS[1]], {"*": "taylor:1"}), "all").to_json().decode().splitlines()
    assert lines[1:] == [
        ' "calls": [{"timestep": 999.0, "computed": "all", "rules": {}},',
        '           {"timestep": 500.0, "computed": ["blocks.0.mlp"], "rules": {"*": "taylor:1"}},',
        '           {"timestep": 0.0, "computed": "all", "rules": {}}], "threshold": null, '
        '"source": {"file": null, "sha256": null, "rule": null}}',
    ]


def test_a_call_that_lists_everything_may_have_patterns():
    schedule = schedule_of("all", ([*SUBLAYERS], {"*": "taylor:1"}))
    assert b'"rules": {"*": "taylor:1"}' in schedule.to_json()
    assert Schedule.from_json(schedule.to_json()) == schedule


def test_rules_may_be_left_out():
    text = EXAMPLE.replace(', "rules": {}', "")
    assert "rules" in text
    assert Schedule.from_json(text.encode()) == Schedule.from_json(EXAMPLE.encode())


def example(**changes):
    return json.dumps({**json.loads(EXAMPLE), **changes}).encode()


def with_call(number, **changes):
    calls = json.loads(EXAMPLE)["calls"]
    calls[number] |= changes
    return example(calls=calls)


@pytest.mark.parametrize(("data", "says"), [
    (example(version=3), "x: version 3, where 1 and 2 are known: a newer release of l2c-export reads it"),
    (with_call(1, rules={"*": "reuse"}), 'x: call 1 computes "all", so it has no rules: list what it computes'),
    (with_call(2, computed=["blocks.0.norm"]), "x: call 2 computes 'blocks.0.norm', which is no cacheable sublayer"),
    (with_call(2, computed=["stack"]), "x: call 2 computes 'stack', which is no cacheable sublayer"),
    (with_call(2, computed=["blocks.0.mlp"] * 2), "x: call 2 lists a computed sublayer twice: name each once"),
    (example(cacheable=["blocks.0.attn"] * 2), "x: cacheable lists 'blocks.0.attn' twice: name each value once"),
    (example(cacheable=[*json.loads(EXAMPLE)["cacheable"], "stack[0:1]"]),
     "x: cacheable lists 'stack[0:1]', for which no call has a rule: leave it out"),
    (example(cacheable=["blocks.0.attn", "blocks.0.mlp", "stack"]), "x: call 3 has a rule for 'output': list it as cacheable"),
    (example(steps=5), "x: 4 calls, but ddim with 5 steps makes 5"),
    (with_call(3, timestep=1.0), "x: call 3 has timestep 1.0, ddim has 0.0"),
    (numbered([{0, 1}, {0}], 2, columns=3), "x: call 0 must list each of the columns 0..2 once, as computed or reused"),
    (numbered([{0, 1}, {0}], 2, columns=0), "x: 0 columns: a model has 1 to 16384 sublayers"),
    (numbered([{0}, {0}], 2),
     "x: call 0 must compute every sublayer, for nothing is cached before it: it does not compute 'blocks.0.mlp'"),
])  # fmt: skip
def test_a_file_that_contradicts_itself(data, says):
    with pytest.raises(ScheduleError) as caught:
        Schedule.from_json(data, "x")
    assert str(caught.value) == says


@pytest.mark.parametrize("data", [
    example(version="2"), example(version=2.5), example(version=None), example(version=True),
    example(columns=2), example(format="letter"),
    with_call(2, computed="everything"), with_call(2, computed=[0]), with_call(2, reused=[]), with_call(2, rules=[]),
    with_call(2, rules={"*": 1}), with_call(2, rules={"blocks.0.attn": [[1]]}),
    with_call(2, rules={"blocks.0.attn": [[1.5, 1.0]]}),
    with_call(2, rules={"blocks.0.attn": [["1", 1.0]]}), with_call(2, rules=None),
    example(cacheable="all"), example(cacheable=None),
    numbered([{0, 1}, {0}], 2, cacheable=["a"]), b'{"version": 2}', b"[]",
])  # fmt: skip
def test_json_of_another_form(data):
    with pytest.raises(ScheduleError, match=r"^x is not a schedule: [^\n]*$"):
        Schedule.from_json(data, "x")
