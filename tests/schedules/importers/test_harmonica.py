"""HarmoniCa: every row of a router in the form of Learning-to-Cache."""

from __future__ import annotations

import pytest
import torch
from foreign import DIT, computed
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.errors import ScheduleError, UsageError
from l2c_export.schedules.forms import ScheduleSource
from l2c_export.schedules.importers import recognise
from l2c_export.schedules.importers.imported import Known, Selection

SCORES = st.lists(st.lists(st.floats(-6, 6, width=32), min_size=6, max_size=6), min_size=2, max_size=6)


def read(path, known=DIT, **chosen):
    reading = recognise.read(path, Selection(router_kind="harmonica", **chosen))
    return reading, reading.schedule_for(known, ScheduleSource())


def saved(path, rows):
    torch.save({"routers": {f"{n}.prob": torch.tensor(row) for n, row in enumerate(rows)}, "args": None}, path)
    return path


@given(SCORES)
def test_every_row_is_used(tmp_path_factory, rows):
    _, schedule = read(saved(tmp_path_factory.mktemp("router") / "r.pt", rows))
    steps, cache, runs = len(rows), set(), []
    for step in range(steps):  # the loop counts its routers down
        runs.append(set())
        for j, name in enumerate(schedule.sublayers):
            if name not in cache or torch.sigmoid(torch.tensor(rows[steps - 1 - step][j])) > torch.tensor(0.1):
                cache.add(name)
                runs[step].add(name)
    assert computed(schedule) == runs


def test_the_threshold_may_be_another(tmp_path):
    path = saved(tmp_path / "r.pt", [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 3)
    _, schedule = read(path, threshold=0.9)
    assert [len(call.computed) for call in schedule.calls] == [6, 3, 3]
    assert read(path)[0].assumed == ("the threshold is 0.1",)
    with pytest.raises(UsageError, match=r"threshold=1\.5: must be between 0 and 1"):
        read(path, threshold=1.5)


def test_without_its_kind_it_is_a_router_of_ours(tmp_path):
    assert recognise.read(saved(tmp_path / "r.pt", [[0.0] * 6] * 3), Selection()) is None


@pytest.mark.parametrize(("known", "says"), [
    (Known("dit", DIT.sublayers[:4], "ddim"), "it is for a dit of 6 sublayers, but the model is a dit of 4"),
    (Known("uvit", DIT.sublayers, "dpm-solver++"), "it is for a dit of 6 sublayers, but the model is a uvit of 6"),
    (Known("dit", DIT.sublayers, "dpm-solver++"), r"dpm-solver\+\+ evaluates twice: use sampler='ddim'"),
])  # fmt: skip
def test_it_is_for_its_model(tmp_path, known, says):
    with pytest.raises(ScheduleError, match=says):
        read(saved(tmp_path / "r.pt", [[0.0] * 6] * 4), known)


def test_a_text_is_no_router(tmp_path):
    (tmp_path / "m.json").write_text("[1, 0]")
    with pytest.raises(UsageError, match=r"router_kind='harmonica': .*m\.json is a text, and no router"):
        recognise.read(tmp_path / "m.json", Selection(router_kind="harmonica"))
