"""FlowMatchEulerDiscreteScheduler as a table, against diffusers' own, step by step."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from l2c_export.errors import ScheduleError
from l2c_export.samplers.scheduler_config import DDIM, FLOW, Scheduler
from l2c_export.samplers.table import table

SHAPE = (2, 4, 3, 3)


def ours(scheduler: diffusers.FlowMatchEulerDiscreteScheduler, **told: object) -> Scheduler:
    read = Scheduler.from_config(dict(scheduler.config), "here", FLOW, flow=True)
    return type(read)(**{**{name: getattr(read, name) for name in read.__struct_fields__}, **told})


def compare(read: Scheduler, scheduler: diffusers.FlowMatchEulerDiscreteScheduler) -> None:
    """`scheduler` has its timesteps."""
    made = table(FLOW, len(scheduler.timesteps), read)
    x = theirs = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for update, t in zip(made.updates, scheduler.timesteps, strict=True):
        out = np.random.default_rng(int(t)).standard_normal(SHAPE).astype(np.float32)
        theirs = scheduler.step(torch.from_numpy(out), t, torch.from_numpy(theirs)).prev_sample.numpy()
        _, of_x, of_noise = map(np.float32, update.coefficients)
        x = of_x * x + of_noise * out
        assert update.timestep == float(t)
        np.testing.assert_allclose(x, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_step_of_a_static_shift_is_that_of_diffusers(shift, steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    compare(ours(scheduler), scheduler)


@pytest.mark.parametrize("tokens", [24, 256, 4096])
def test_a_dynamic_shift_is_that_of_the_pictures_size(tokens):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.3)
    scheduler.set_timesteps(9, mu=tokens * 0.8 / 3840 + 0.5 - 256 * 0.8 / 3840)
    compare(ours(scheduler, image_seq_len=tokens), scheduler)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_pipeline_may_begin_at_the_level_1(dynamic):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6), mu=0.5)
    compare(ours(scheduler, image_seq_len=256, from_one=True), scheduler)


@pytest.mark.parametrize("option", [{"stochastic_sampling": True}, {"invert_sigmas": True}, {"shift_terminal": 0.1},
                                    {"use_karras_sigmas": True}, {"time_shift_type": "linear"}])  # fmt: skip
def test_what_the_table_cannot_follow_is_refused_by_name(option):
    (name,) = option
    with pytest.raises(ScheduleError, match=f"{name} = .* is not supported"):
        ours(diffusers.FlowMatchEulerDiscreteScheduler(**option))


def test_a_model_of_flows_and_one_of_noise_have_their_own_samplers():
    with pytest.raises(ScheduleError, match="its models predict a flow"):
        Scheduler.from_config({}, "here", FLOW)
    with pytest.raises(ScheduleError, match=f"{DDIM} is not supported: use one of {FLOW} as sampler"):
        Scheduler.from_config({}, "here", DDIM, flow=True)
