"""What is read but not executed yet is refused when it is compiled, and can be looked at."""

from __future__ import annotations

import dataclasses
import json

import pytest
from version2 import EXAMPLE, SUBLAYERS, schedule_of

from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import ScheduleError
from l2c_export.inspection import view
from l2c_export.schedules import executed
from l2c_export.schedules.schedule import Schedule

A0 = SUBLAYERS[0]
BY = "compute it, or reuse sublayers"


@pytest.mark.parametrize(("call", "says"), [
    (([], {"*": "taylor:1"}), f"x: call 2 has taylor:1 for 'blocks.0.attn', which is not executed yet: {BY}"),
    (([], {A0: [[1, 1.0]]}), f"x: call 2 has explicit terms for 'blocks.0.attn', which are not executed yet: {BY}"),
    (([], {"output": "taylor:2"}), f"x: call 2 has a rule for the level 'output', which is not executed yet: {BY}"),
    (([], {"stack": "reuse"}), f"x: call 2 has a rule for the level 'stack', which is not executed yet: {BY}"),
    (([], {"stack[0:1]": "reuse"}), f"x: call 2 has a rule for the level 'stack[0:1]', which is not executed yet: {BY}"),
])  # fmt: skip
def test_what_is_not_executed_yet(call, says):
    cacheable = (*SUBLAYERS, "output", "stack", *(["stack[0:1]"] if "stack[0:1]" in call[1] else []))
    schedule = schedule_of("all", "all", call, cacheable=cacheable)
    with pytest.raises(ScheduleError) as caught:
        executed.check(schedule, "x")
    assert str(caught.value) == says


def test_what_is_executed():
    executed.check(schedule_of("all", ([A0], {"*": "taylor:0"}), ([*SUBLAYERS], {"*": "taylor:3"}), ([], {})), "x")


def test_the_example_is_looked_at_but_not_compiled(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(EXAMPLE)
    assert view.inspect(path).calls[3].rules == {"output": "taylor:1"}
    Schedule.read(path).plot(tmp_path / "s.png")
    arch = {"input_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 8, "depth": 1, "num_heads": 2}
    (tmp_path / "m.json").write_text(json.dumps({"family": "dit", "arch": arch}))
    options = Options(schedule=str(path), model=str(tmp_path / "m.json"), weights="random")
    with pytest.raises(ScheduleError, match=r"s\.json: call 2 has explicit terms for 'blocks\.0\.attn', which are not exec"):
        resolve(options)
    twin = resolve(dataclasses.replace(options, cache=False)).schedule
    assert [(call.computed, call.rules) for call in twin.calls] == [((0, 1), {})] * 4


def test_a_schedule_of_names_follows_the_model(tmp_path):
    """The order of names in a file is free; what is of another model is refused."""
    names = tuple(f"blocks.{b}.{kind}" for b in range(12) for kind in ("attn", "mlp"))
    mixed = Schedule.make("dit", "ddim", 2, tuple(reversed(names)), [range(24), (0, 5)])
    (tmp_path / "s.json").write_bytes(mixed.to_json())
    found = resolve(Options(schedule=str(tmp_path / "s.json"), model="DiT-S/2", weights="random")).schedule
    assert found.sublayers == names
    assert found == Schedule.make("dit", "ddim", 2, 24, [range(24), (18, 23)])
    other = Schedule.make("dit", "ddim", 2, ("block.0.attn", *names[1:]), [range(24), ()])
    with pytest.raises(
        ScheduleError, match=r"block\.0\.attn is a sublayer of the schedule or of the model, but not of both: check"
    ):
        resolve(Options(schedule=other, model="DiT-S/2", weights="random"))
