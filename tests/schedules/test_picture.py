"""What the cells of the picture are, and that it is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from version2 import SUBLAYERS, schedule_of

from l2c_export.inspection import view
from l2c_export.inspection.plot import heatmap_size, schedule_heatmap
from l2c_export.schedules.picture import COMPUTED, FORECAST, REUSED, SKIPPED, DrawnCall, picture_of
from l2c_export.schedules.schedule import Schedule
from l2c_export.support.figure import DARK, LIGHT, RIVAL

A0, M0, A1, M1, A2, M2 = SUBLAYERS


def picture(schedule):
    calls = [DrawnCall(c.timestep, c.computed, c.reused, schedule.derived(n)) for n, c in enumerate(schedule.calls)]
    return picture_of(schedule.values, calls)


RULED = schedule_of(
    "all", ([A0], {"*": "reuse", A1: "taylor:1", M1: [[1, 1.0]]}),
    ([A0], {"stack[1:3]": "taylor:1"}), ([], {"output": "reuse"}), "all",
    cacheable=(*SUBLAYERS, "stack", "output", "stack[1:3]"),
)  # fmt: skip


def test_every_cell():
    drawing = picture(RULED)
    assert drawing.names == (*SUBLAYERS, "output", "stack[1:3]"), "of the levels those that are derived"
    c, r, f, s = COMPUTED, REUSED, FORECAST, SKIPPED
    assert drawing.cells.T.tolist() == [
        [c, c, c, c, c, c, c, c],
        [c, r, f, f, r, r, c, c],
        [c, r, s, s, s, s, c, f],
        [s, s, s, s, s, s, r, s],
        [c, c, c, c, c, c, c, c],
    ]


def test_a_schedule_of_reuse_looks_as_ever():
    drawing = picture(Schedule.every(2, family="dit", steps=4, columns=6))
    assert not drawing.has_legend
    assert drawing.names == SUBLAYERS
    assert drawing.cells.T.tolist() == [[COMPUTED] * 6, [REUSED] * 6] * 2
    assert picture(RULED).has_legend
    assert picture(RULED).size > drawing.size


def colours(path):
    pixels = np.array(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(pixels, axis=0).tolist()}


@pytest.mark.parametrize("draw", [lambda schedule, path: schedule.plot(path),
                                  lambda schedule, path: schedule_heatmap(view.inspect(schedule), path)])  # fmt: skip
def test_forecasts_have_a_colour(tmp_path, draw):
    draw(RULED, tmp_path / "ruled.png")
    assert colours(tmp_path / "ruled.png") >= {DARK, LIGHT, RIVAL}
    draw(Schedule.every(2, family="dit", steps=4, columns=6), tmp_path / "plain.png")
    assert RIVAL not in colours(tmp_path / "plain.png")
    draw(RULED, tmp_path / "ruled.svg")
    assert "forecast" in (tmp_path / "ruled.svg").read_text()


def test_what_inspect_shows_is_what_is_drawn():
    assert heatmap_size(view.inspect(RULED)) == picture(RULED).size
