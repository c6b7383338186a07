"""Steps masks of other tools are schedules."""

from __future__ import annotations

import json

import pytest

from l2c_export.artefact import store
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.errors import ScheduleError, UsageError
from l2c_export.inspection import view

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("mask", ["mask:1,0,0,1,0,1", "mask:100101", "list.json", "cache-dit.json"])
def test_a_steps_mask_is_a_schedule(world, tmp_path, mask):
    (tmp_path / "list.json").write_text("[1, 0, 0, 1, 0, 1]")
    (tmp_path / "cache-dit.json").write_text('{"steps_computation_mask": [1, 0, 0, 1, 0, 1], "Fn_compute_blocks": 1}')
    text = str(tmp_path / mask) if mask.endswith(".json") else mask
    manifest = store.read(world.compiled(text))
    assert [bool(call.computed) for call in manifest.program().calls] == [True, False, False, True, False, True]


@pytest.mark.parametrize("mask", ["mask:1,0", "mask:0,1,1,1,1,1", "mask:1,2,1,1,1,1", "mask:", "mask:1,x,1,1,1,1"])
def test_a_wrong_mask(world, tmp_path, mask):
    with pytest.raises(UsageError, match=r"mask:1,\.\. with a 0 or 1 for each of the 6 calls, 1 first"):
        compile_artefact(Options(schedule=mask, steps=6, model=str(world.folder), out=tmp_path / "e"))


@pytest.mark.parametrize(("mask", "says"), [
    ([1, 0, 0, 10, 1], "a steps mask with 10: use 1 for a full call"), ([1, 0.5, 1], r"a steps mask with 0\.5"),
    (["1", "0"], "a steps mask with '1'"),
    ([], "an empty steps mask: give a 0 or 1 for each call"), ({"steps_computation_mask": [None]}, "a steps mask with None"),
])  # fmt: skip
def test_a_mask_of_other_numbers_is_refused(world, tmp_path, mask, says):
    (tmp_path / "m.json").write_text(json.dumps(mask))
    with pytest.raises(ScheduleError, match=says):
        compile_artefact(Options(schedule=str(tmp_path / "m.json"), steps=6, model=str(world.folder), out=tmp_path / "e"))


def test_a_steps_mask_is_not_yet_a_schedule_to_look_at(tmp_path):
    (tmp_path / "m.json").write_text("[1, 0]")
    with pytest.raises(UsageError, match=r"m.json: is a steps mask, .*l2c_export\.compile\(schedule="):
        view.inspect(tmp_path / "m.json")
