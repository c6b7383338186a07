"""Schedules and routers: rules, JSON, the reference's row mapping, hostile files."""

from __future__ import annotations

import contextlib
import hashlib
import pickle

import msgspec
import numpy as np
import pytest
import torch
from helpers import all_cases, case
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.errors import L2CError, ScheduleError, UsageError
from l2c_export.samplers.reference import ddim, dpm_solver_pp, updates
from l2c_export.samplers.scheduler_config import DDIM, Scheduler
from l2c_export.schedules import routers
from l2c_export.schedules.forms import ScheduleSource
from l2c_export.schedules.rules import is_rule
from l2c_export.schedules.schedule import Schedule


def test_sampler_tables_reproduce_the_recorded_updates():
    for chosen in all_cases():
        g, n = chosen.golden, chosen.config["batch"]
        table = updates("dpm-solver++" if chosen.uvit else "ddim", len(g["t"]))
        x = base = g["x_T"][:n]
        for k, update in enumerate(table):
            assert update.timestep == pytest.approx(g["t"][k], abs=1e-3)
            noise = g["cached_guided" if "cached_guided" in g else "cached_raw"][k][:n, : x.shape[1]]
            b, c, e = (np.float32(v) for v in update.coefficients)
            after = b * base + c * x + e * noise
            step = k // 2 if chosen.uvit else k
            want = g["cached_x"][step] if update.ends_step else g["cached_xin"][k + 1]
            assert np.abs(after - want[:n]).max() < 5e-6 * max(1, np.abs(want).max()), (chosen.path.name, k)
            x = want[:n]
            base = x if update.ends_step else base


@pytest.mark.parametrize("name", ["uvit_tiny_random0", "uvit_tiny_oddnfe", "uvit_tiny_variant"])
def test_the_noise_schedule_of_a_unet_is_the_references_in_float32(name):
    """Logarithms in float64 would move a midpoint by 2e-4 and the coefficients by 1e-5."""
    g = {n.removeprefix("sched_"): v.astype(np.float64) for n, v in case(name).golden.items() if n[0] in "st"}
    table = updates("dpm-solver++", len(g["t"]))
    assert np.abs([u.timestep for u in table] - g["t"]).max() < 1e-4
    half, whole = -np.expm1(-g["h"] / 2) * g["alpha_s1"], -np.expm1(-g["h"]) * g["alpha_t"]
    first = 0 * half, g["sigma_s1"] / g["sigma_s"] + half / g["alpha_s"], -half * g["sigma_s"] / g["alpha_s"]
    second = g["sigma_t"] / g["sigma_s"], whole / g["alpha_s1"], -whole * g["sigma_s1"] / g["alpha_s1"]
    want = np.stack([first, second]).transpose(2, 0, 1).reshape(-1, 3)
    assert np.allclose([u.coefficients for u in table], want, rtol=1e-6, atol=0)


def test_ddim_timesteps_are_those_of_the_released_router():
    want = [0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841, 894, 946, 999]
    assert [u.timestep for u in reversed(ddim(20))] == want


def test_an_odd_number_of_evaluations_loses_one():
    assert len(dpm_solver_pp(9)) == 8


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 1), ("ddim", 1001), ("dpm-solver++", 1), ("euler", 5)])
def test_impossible_samplers_are_refused(sampler, steps):
    with pytest.raises(UsageError):
        updates(sampler, steps)


columns = st.integers(1, 8)


@st.composite
def any_schedule(draw):
    width, count = draw(columns), draw(st.integers(2, 8))
    runs = [range(width), *(draw(st.sets(st.integers(0, width - 1))) for _ in range(count - 1))]
    return Schedule.make(
        "dit", "ddim", count, width, runs, draw(st.none() | st.floats(0, 1)), ScheduleSource(file="r.pt", sha256="0" * 64)
    )


@given(any_schedule())
def test_json_returns_the_same_schedule(schedule):
    assert Schedule.from_json(schedule.to_json()) == schedule


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_other_bytes_are_no_schedule(data):
    with pytest.raises(ScheduleError):
        Schedule.from_json(data)


@pytest.mark.parametrize("change", [
    ('"computed":"all"', '"computed":["blocks.0.mlp"]'), ('"version":2', '"version":1'), ('"steps":3', '"steps":4'),
    ('"timestep":999.0', '"timestep":998.0'), ('"timestep":999.0', '"timestep":1000.0'), ('"family"', '"famly"'),
])  # fmt: skip
def test_a_schedule_that_contradicts_itself_is_refused(change):
    text = Schedule.make("dit", "ddim", 3, 2, [range(2), (), range(2)]).to_json().decode().replace(" ", "").replace("\n", "")
    assert change[0] in text
    with pytest.raises(ScheduleError):
        Schedule.from_json(text.replace(*change, 1).encode())


def test_a_wrong_number_of_calls_is_said():
    text = Schedule.make("dit", "ddim", 3, 2, [range(2), (), range(2)]).to_json().decode()
    with pytest.raises(ScheduleError, match="3 calls, but ddim with 4 steps makes 4"):
        Schedule.from_json(text.replace('"steps": 3', '"steps": 4').encode())


def test_columns_may_be_given_in_any_order():
    call = Schedule.make("dit", "ddim", 2, 3, [range(3), [2, 0, 2]]).calls[1]
    assert (call.computed, call.reused) == ((0, 2), (1,))


def test_nothing_is_cached_before_the_first_call():
    with pytest.raises(ScheduleError, match=r"call 0 must compute .*: it does not compute 'blocks\.0\.attn'"):
        Schedule.make("dit", "ddim", 2, 2, [(), range(2)])


def test_rules():
    every = Schedule.every(3, family="dit", steps=7, columns=2)
    assert [len(c.computed) for c in every.calls] == [2, 0, 0, 2, 0, 0, 2]
    full = Schedule.from_rule("full:0,4", family="uvit", steps=6, columns=2)
    assert [len(c.computed) for c in full.calls] == [2, 0, 0, 0, 2, 0]
    assert (every.sampler, full.sampler) == ("ddim", "dpm-solver++"), "the family's"
    assert Schedule.every(1, family="dit", steps=7, columns=2).calls == every.uncached().calls
    for wrong in ("every:0", "every:x", "full:1,2", "full:0,7", "every:", "full:"):
        with pytest.raises(UsageError):
            Schedule.from_rule(wrong, family="dit", steps=7, columns=2)


# routers


def save_router(path, logits, layout="dit"):
    rows = {f"{i}.prob": torch.tensor(row, dtype=torch.float32) for i, row in enumerate(logits)}
    torch.save({"routers": rows, "args": None} if layout == "dit" else rows, path)
    return path


def test_scores_are_compared_strictly_and_in_float32(tmp_path):
    router = routers.read(save_router(tmp_path / "r.pt", [[0.0, 1e-6], [0.0, 0.0]]))
    assert router.schedule(0.5, None).calls[1].computed == (1,)  # sigmoid(0) == 0.5 is not above 0.5
    tenth = float(torch.logit(torch.tensor(0.1)))
    score = torch.sigmoid(torch.tensor(tenth))
    router = routers.read(save_router(tmp_path / "r.pt", [[tenth, 5.0], [0.0, 0.0]]))
    assert (0 in router.schedule(0.1, None).calls[1].computed) == bool(score > torch.tensor(0.1))


def test_only_the_rows_of_cached_calls_are_read(tmp_path):
    even = routers.read(save_router(tmp_path / "r.pt", [[9, -9]] * 6)).schedule(0.5, None)
    assert [c.computed for c in even.calls] == [(0, 1), (0,)] * 3
    odd = routers.read(save_router(tmp_path / "r.pt", [[9, -9]] * 7)).schedule(0.5, None)
    assert [c.computed for c in odd.calls] == [(0, 1), (0, 1), (0,), (0, 1), (0,), (0, 1), (0,)]
    uvit = routers.read(save_router(tmp_path / "u.pt", [[9, -9, 9, 9]] * 7, "uvit")).schedule(0.5, None)
    assert [c.computed for c in uvit.calls] == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 2, 3), (0, 1, 2, 3), (0, 2, 3), (0, 1, 2, 3)]


def test_a_unet_of_odd_depth_has_two_spare_columns(tmp_path):
    router = routers.read(save_router(tmp_path / "u.pt", [[9, -9, -9, 9]] * 4, "uvit"))
    assert router.schedule(0.5, 4, columns=2).calls[2].computed == (0,)
    with pytest.raises(ScheduleError, match="4 wide"):
        router.schedule(0.5, 4, columns=6)


def test_a_dit_has_no_spare_columns(tmp_path):
    router = routers.read(save_router(tmp_path / "r.pt", [[9, -9, 9, -9]] * 4))
    assert router.schedule(0.5, 4, columns=4).columns == 4
    with pytest.raises(ScheduleError, match="4 wide, but the model has 2 sublayers"):
        router.schedule(0.5, 4, columns=2)


def test_a_file_may_be_called_like_a_rule(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_rule("every:2")
    (tmp_path / "every:2").write_text("")
    assert not is_rule("every:2")
    assert not is_rule("everything:2")


def test_a_schedule_says_which_router_it_came_from(tmp_path):
    path = save_router(tmp_path / "r.pt", [[0, 0]] * 4)
    schedule = routers.read(path).schedule(0.25, None)
    assert schedule.source == ScheduleSource(file="r.pt", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert schedule.threshold == 0.25


def test_rows_and_steps_must_agree(tmp_path):
    router = routers.read(save_router(tmp_path / "r.pt", [[0, 0]] * 4))
    for steps in (2, 3, 5):
        with pytest.raises(ScheduleError, match=f"4 rows, but steps={steps}"):
            router.schedule(0.5, steps)


class Bomb:
    def __reduce__(self):
        return (open, ("EXECUTED", "w"))


def test_too_few_rows_are_not_called_an_option(tmp_path):
    """One row may be right for a scheduler of diffusers, so it is a router."""
    torch.save({"routers": {"0.prob": torch.zeros(8)}}, tmp_path / "one.pt")
    router = routers.read(tmp_path / "one.pt")
    with pytest.raises(ScheduleError, match=r"one\.pt: the router has 1 row, one per step: DDIM takes 2 to 1000 steps: give a"):
        router.schedule(0.1, None)
    assert len(router.schedule(0.1, None, scheduler=Scheduler(kind=DDIM, timestep_spacing="trailing")).calls) == 1
    text = {"format": "l2c-schedule", "version": 1, "family": "dit", "sampler": "ddim", "steps": 1, "columns": 2,
            "calls": [{"timestep": 999.0, "computed": [0, 1], "reused": []}]}  # fmt: skip
    with pytest.raises(ScheduleError, match=r"^schedule: 1 step: DDIM takes 2 to 1000 steps$"):
        Schedule.from_json(msgspec.json.encode(text))


def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"routers": {"0.prob": torch.zeros(2)}, "args": Bomb()}, "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ScheduleError, match=name):
            routers.read(tmp_path / name)
    assert not (tmp_path / "EXECUTED").exists()


def test_files_that_are_no_router(tmp_path):
    good = (case("dit_tiny_random2").path / "router.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "weights.pt")
    torch.save({"routers": {"0.prob": torch.tensor([float("nan"), 0.0])}}, tmp_path / "nan.pt")
    torch.save({"routers": {"0.prob": torch.zeros(2), "1.prob": torch.zeros(4)}}, tmp_path / "ragged.pt")
    torch.save({"routers": {"0.prob": torch.zeros(3), "1.prob": torch.zeros(3)}}, tmp_path / "odd.pt")
    torch.save({"routers": {"0.prob": torch.zeros(2, 2)}}, tmp_path / "matrix.pt")
    torch.save({"routers": {"0.prob": torch.zeros(2, dtype=torch.int64)}}, tmp_path / "whole.pt")
    torch.save({"0.prob": torch.zeros(4)}, tmp_path / "one_evaluation.pt")  # of a U-ViT, whose solver makes two per step
    torch.save([1, 2], tmp_path / "list.pt")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ScheduleError, match=path.name):
            routers.read(path)


@given(st.integers(0, 3000), st.integers(0, 255))
def test_a_damaged_router_is_refused_or_harmless(position, byte):
    data = bytearray((case("dit_batch3_no_cfg").path / "router.pt").read_bytes())
    data[position % len(data)] = byte
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.pt"
        path.write_bytes(bytes(data))
        with contextlib.suppress(L2CError):
            assert routers.read(path).logits.isfinite().all()
