"""What is shown of a schedule with rules."""

from __future__ import annotations

import msgspec
from version2 import EXAMPLE, SUBLAYERS, schedule_of

from l2c_export.inspection import view
from l2c_export.schedules.schedule import Schedule

A0 = SUBLAYERS[0]


def test_the_example():
    inspection = view.inspect(Schedule.from_json(EXAMPLE.encode()))
    assert inspection.sublayers == ["blocks.0.attn", "blocks.0.mlp"]
    assert inspection.levels == ["output"]
    assert [(call.computed, call.reused, call.rules) for call in inspection.calls] == [
        ([0, 1], [], {}), ([0, 1], [], {}), ([1], [], {"blocks.0.attn": ((1, 1.5), (2, -0.5))}),
        ([], [], {"output": "taylor:1"})
    ]  # fmt: skip
    head, *rows = inspection.table()
    assert head == ("call", "timestep", "computed", "reused", "forecast")
    assert [row[4] for row in rows] == ["", "", "1 by explicit terms", "output by taylor:1"]


def test_rules_are_shown_for_the_values_that_follow_them():
    inspection = view.inspect(schedule_of("all", ([A0], {"*.mlp": "taylor:2", "blocks.2.*": "taylor:1"})))
    assert inspection.calls[1].reused == [2]
    assert inspection.table()[2][4] == "2 by taylor:2, 2 by taylor:1"
    assert msgspec.json.decode(msgspec.json.encode(inspection))["calls"][1]["rules"][SUBLAYERS[1]] == "taylor:2"


def test_without_forecasts_there_is_no_word_of_them():
    inspection = view.inspect(Schedule.every(2, family="dit", steps=4, columns=2))
    assert inspection.table()[0] == ("call", "timestep", "computed", "reused")
    assert inspection.levels == []
