"""The samplers of flows as tables, against diffusers' own, step by step."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from l2c_export.errors import ScheduleError
from l2c_export.samplers.scheduler_config import DDIM, DPM, FLOW, FLOWS, HEUN, UNIPC, Scheduler
from l2c_export.samplers.table import table

SHAPE = (2, 4, 3, 3)


def ours(scheduler: diffusers.SchedulerMixin, **told: object) -> Scheduler:
    read = Scheduler.from_config(dict(scheduler.config), "here", type(scheduler).__name__, flow=True)
    return type(read)(**{**{name: getattr(read, name) for name in read.__struct_fields__}, **told})


def compare(read: Scheduler, scheduler: diffusers.FlowMatchEulerDiscreteScheduler) -> None:
    """`scheduler` has its timesteps."""
    sampler = table(FLOW, len(scheduler.timesteps), read)
    x = theirs = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for update, t in zip(sampler.updates, scheduler.timesteps, strict=True):
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


@pytest.mark.parametrize("from_one", [False, True])
@pytest.mark.parametrize("option", [{"shift_terminal": 0.1}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True},
                                    {"time_shift_type": "linear", "use_dynamic_shifting": True},
                                    {"shift_terminal": 0.02, "use_dynamic_shifting": True}])  # fmt: skip
def test_other_levels_of_noise_are_those_of_diffusers(option, from_one):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0, **option)
    levels = {"sigmas": np.linspace(1.0, 1 / 7, 7)} if from_one else {"num_inference_steps": 7}
    scheduler.set_timesteps(**levels, mu=0.5)
    compare(ours(scheduler, image_seq_len=256, from_one=from_one), scheduler)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_every_call_of_heuns_method_is_that_of_diffusers(shift, steps):
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sampler = table(HEUN, steps, ours(scheduler))
    x = base = theirs = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for n, (update, t) in enumerate(zip(sampler.updates, scheduler.timesteps, strict=True)):
        out = np.random.default_rng(n).standard_normal(SHAPE).astype(np.float32)
        theirs = scheduler.step(torch.from_numpy(out), t, torch.from_numpy(theirs)).prev_sample.numpy()
        of_base, of_x, of_noise = map(np.float32, update.coefficients)
        x = of_base * base + of_x * x + of_noise * out
        base = x if update.ends_step else base
        assert update.timestep == float(t)
        np.testing.assert_allclose(x, theirs, rtol=0, atol=2e-5)  # theirs divides by the last levels


@pytest.mark.parametrize("steps", [2, 5, 20, 40])
@pytest.mark.parametrize("option", [{}, {"flow_shift": 3.0}, {"solver_order": 3}, {"solver_order": 1}, {"solver_type": "heun"},
                                    {"euler_at_final": True, "lower_order_final": False}])  # fmt: skip
def test_every_step_of_dpm_solver_on_flows_is_that_of_diffusers(option, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", **option)
    scheduler.set_timesteps(steps)
    sampler = table(DPM, steps, ours(scheduler))
    x = theirs = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    history = [np.zeros_like(x)] * sampler.history
    for n, (update, t) in enumerate(zip(sampler.updates, scheduler.timesteps, strict=True)):
        out = np.random.default_rng(n).standard_normal(SHAPE).astype(np.float32)
        theirs = scheduler.step(torch.from_numpy(out), t, torch.from_numpy(theirs)).prev_sample.numpy()
        c = [np.float32(v) for v in update.coefficients]
        if sampler.history:
            history = [c[0] * x + c[1] * out, *history][: sampler.history + 1]
            x = c[2] * x + sum(weight * data for weight, data in zip(c[3:], history, strict=True))
            history = history[: sampler.history]
        else:
            x = c[1] * x + c[2] * out
        assert update.timestep == float(t)
        np.testing.assert_allclose(x, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("option", "problem"), [
    ({"prediction_type": "flow_prediction"}, "use_flow_sigmas = False, the default, is not supported: it must be True"),
    ({"use_flow_sigmas": True}, "prediction_type = 'epsilon', the default, is not supported: it must be 'flow_prediction'"),
])  # fmt: skip
def test_dpm_solver_of_noise_is_none_of_flows(option, problem):
    with pytest.raises(ScheduleError, match=problem):
        Scheduler.from_config(option, "here", DPM, flow=True)


def test_a_corrector_is_refused_by_name():
    """Its step changes the latents that the call saw, too."""
    with pytest.raises(ScheduleError, match=f"{UNIPC} is not supported: use one of {', '.join(FLOWS)} as sampler"):
        Scheduler.from_config({"use_flow_sigmas": True}, "here", UNIPC, flow=True)


@pytest.mark.parametrize("option", [{"stochastic_sampling": True}, {"invert_sigmas": True}])
def test_what_the_table_cannot_follow_is_refused_by_name(option):
    (name,) = option
    with pytest.raises(ScheduleError, match=f"{name} = .* is not supported"):
        ours(diffusers.FlowMatchEulerDiscreteScheduler(**option))


def test_a_model_of_flows_and_one_of_noise_have_their_own_samplers():
    with pytest.raises(ScheduleError, match="its models predict a flow"):
        Scheduler.from_config({}, "here", FLOW)
    with pytest.raises(ScheduleError, match=f"{DDIM} is not supported: use one of {FLOW}"):
        Scheduler.from_config({}, "here", DDIM, flow=True)
