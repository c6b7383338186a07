"""The measures of scripts/quality.py on distributions whose answers are known, and its contenders."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import forecasts
from metrics import frechet, precision_recall
from quality import add, contenders, contenders_to_time, plus_minus, shuffled, summary, uncached_of

from l2c_export import demo
from l2c_export.schedules.schedule import Schedule


def gaussian(mean: list[float], root: np.ndarray, count: int = 400, seed: int = 0) -> torch.Tensor:
    """Points whose mean is `mean` and whose covariance is root root^T, both exactly."""
    points = np.random.default_rng(seed).standard_normal((count, len(mean)))
    points -= points.mean(0)
    points = np.linalg.solve(np.linalg.cholesky(np.cov(points.T)), points.T).T
    return torch.from_numpy(points @ root.T + mean)


def test_frechet_distance_of_gaussians_on_the_same_axes():
    """(|m|^2 + sum (s - t)^2 for standard deviations s and t)."""
    a, b = gaussian([0, 0, 0], np.diag([1, 2, 3])), gaussian([1, 0, -2], np.diag([2, 2, 0.5]), seed=1)
    assert frechet(a, b) == pytest.approx(5 + 1 + 0 + 6.25)
    assert frechet(b, a) == pytest.approx(frechet(a, b))


def test_frechet_distance_of_a_gaussian_and_its_rotation():
    """tr (A B)^1/2 in two dimensions is sqrt(tr AB + 2 sqrt det AB), which knows nothing of square roots of matrices."""
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    root = np.diag([1.0, 3.0])
    a, b = root @ root.T, turn @ root @ root.T @ turn.T
    both = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    want = np.trace(a) + np.trace(b) - 2 * both
    assert want > 0.5
    assert frechet(gaussian([0, 0], root), gaussian([0, 0], turn @ root, seed=2)) == pytest.approx(want)


def test_frechet_distance_to_itself_is_zero_even_without_variance():
    flat = gaussian([1, 2, 3], np.diag([1.0, 0.0, 0.0]))
    assert frechet(flat, flat) == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_of_the_same_points_are_one():
    points = gaussian([0, 0], np.eye(2)).float()
    assert precision_recall(points, points) == (1.0, 1.0)


def test_precision_and_recall_of_points_far_apart_are_zero():
    points = gaussian([0, 0], np.eye(2)).float()
    assert precision_recall(points, points + 100) == (0.0, 0.0)


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision():
    one, other = gaussian([0, 0], np.eye(2)).float(), gaussian([50, 0], np.eye(2), seed=3).float()
    both = torch.cat([one, other])
    assert precision_recall(both, one) == (1.0, 0.5)
    assert precision_recall(one, both) == (0.5, 1.0)


def test_the_balls_reach_the_third_neighbour():
    real = torch.tensor([[0.0], [1.0], [2.0], [4.0]])  # radii 4, 3, 2, 4
    samples = torch.tensor([[-3.9], [8.1], [-4.1], [7.9]])
    assert precision_recall(real, samples)[0] == 0.5


LEARNED = Schedule.make("dit", "ddim", 20, 6, [range(6) if n % 2 == 0 else (n % 5,) for n in range(20)])


def test_a_random_router_has_the_budget_of_the_learned_one():
    schedule = shuffled(LEARNED, seed=3)
    assert [len(call.reused) for call in schedule.calls[::2]] == [0] * 10
    assert sum(len(call.reused) for call in schedule.calls) == sum(len(call.reused) for call in LEARNED.calls) == 50
    assert schedule.calls != shuffled(LEARNED, seed=4).calls
    assert len({len(call.reused) for call in schedule.calls[1::2]}) > 1


def test_every_learned_schedule_meets_random_ones_and_fewer_steps_of_its_cost():
    by_name = {contender.name: contender for contender in contenders({"mine": LEARNED, "equal": shuffled(LEARNED, 5)}, 6)}
    assert list(by_name) == ["uncached", "mine", "random, as mine", "equal", "every:2", "12 steps", "10 steps"]
    assert by_name["mine"].computed == by_name["random, as mine"].computed == pytest.approx(70 / 120)
    assert by_name["12 steps"].computed == pytest.approx(12 / 20)
    assert by_name["random, as mine"].schedule(0) != by_name["random, as mine"].schedule(1)
    assert by_name["mine"].schedule(0) == by_name["mine"].schedule(1) == LEARNED


def test_an_interval_is_that_of_students_t():
    interval = summary([1.0, 2.0, 3.0, 4.0, 5.0])
    assert plus_minus(interval, 2) == "3.00 ± 1.97"  # 2.78 sqrt(2.5 / 5)


def test_a_forecast_is_compared_with_the_uncached_loop_of_its_sampler_and_steps():
    schedules = forecasts.schedules(columns=24)
    for name, schedule in schedules.items():
        base = schedules[uncached_of(name, schedules)]
        assert (base.sampler, base.steps) == (schedule.sampler, schedule.steps), name
        assert base.computed_share == 1
        assert list(schedules).index(uncached_of(name, schedules)) <= list(schedules).index(name), "it is drawn before"
        assert (forecasts.kind(name) == "uncached, fewer steps") == (schedule.computed_share == 1)
    assert len(schedules["ddim 50 taylor:2 output"].calls) == 50
    assert forecasts.kind("dpm 25 learned output 10") == forecasts.kind("dpm 50 searched 10") == "forecast learned or searched"
    assert forecasts.kind("ddim 20 learned reuse 16") == "learned reuse"
    assert forecasts.kind("ddim 50 taylor:2 stack") == "of the stack"
    assert schedules["ddim 20 learned reuse 16"] == Schedule.read(demo.SCHEDULES["demo"])


def test_every_contender_is_shown_in_a_panel_of_its_sampler_and_steps():
    for name in forecasts.schedules(columns=24):
        sampler, steps = name.split(" ")[:2]
        panels = {(one, n, look) for one in forecasts.SAMPLERS for n in (20, 25, 50) for look in forecasts.LOOKS
                  if forecasts.belongs(name, look, one, n)}  # fmt: skip
        if name.endswith("uncached"):
            best = {("ddim", n, "the same, DPM-Solver++ (2M)") for n in (20, 25, 50)} if sampler == "dpm" else set()
            assert panels == {(sampler, n, "uncached, fewer steps") for n in (20, 25, 50)} | best
        else:
            assert panels == {(sampler, int(steps), forecasts.kind(name))}


def test_those_that_sample_side_by_side_keep_what_others_wrote(tmp_path):
    path = tmp_path / "results.json"
    one, other = ({"setting": {"seeds": 5}, "contenders": {"shared": {"frechet": n}, name: {"frechet": n}}}
                  for n, name in enumerate(("one", "other")))  # fmt: skip
    add(path, one, "one")
    add(path, other, "other")
    assert json.loads(path.read_text()) == {
        "setting": {"seeds": 5},
        "contenders": {"one": {"frechet": 0}, "other": {"frechet": 1}},
    }
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_timed_is_not_timed_again_but_for_the_scale():
    entries = {"dpm 50 uncached": {}, "dpm 50 reuse sublayer": {}, "ddim 50 uncached": {}, "ddim 50 reuse sublayer": {}}

    def names(had: list[str], *only: str) -> list[str]:
        args = argparse.Namespace(set="forecasts", only=only)
        return [contender.name for contender in contenders_to_time(args, entries, had)]

    assert names([]) == list(entries)
    assert names(["dpm 50 uncached", "ddim 50 uncached"]) == [
        "dpm 50 uncached",
        "dpm 50 reuse sublayer",
        "ddim 50 reuse sublayer",
    ]
    assert names(["dpm 50 uncached"], "ddim") == ["dpm 50 uncached", "ddim 50 uncached", "ddim 50 reuse sublayer"]
