"""The tables of diffusers' schedulers against diffusers' own, step by step."""

from __future__ import annotations

import inspect
import json
import math
import re

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given, settings
from hypothesis.strategies import booleans, composite, integers, sampled_from

from l2c_export.errors import L2CError, ScheduleError, UsageError
from l2c_export.samplers.scheduler_config import DDIM, DPM, EULER, KINDS, Scheduler
from l2c_export.samplers.table import table
from l2c_export.schedules.schedule import Schedule

SHAPE = (2, 4, 3, 3)
OWN = {DDIM: {"clip_sample": False}, DPM: {}, EULER: {}}


def theirs(kind: str, **options) -> diffusers.SchedulerMixin:
    return getattr(diffusers, kind)(**{**OWN[kind], **options})


def ours(scheduler: diffusers.SchedulerMixin) -> Scheduler:
    """Read from the file that it saves."""
    return Scheduler.from_config(dict(scheduler.config), "scheduler", type(scheduler).__name__)


def outputs(steps: int) -> np.ndarray:
    return np.random.default_rng(steps).standard_normal((steps, *SHAPE)).astype(np.float32)


def their_steps(scheduler, steps: int, noise: np.ndarray) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """For every step: the timestep, what the model is given, and what follows (in the scheduler's own scale)."""
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise) * float(scheduler.init_noise_sigma)
    states = []
    for t, out in zip(scheduler.timesteps, outputs(steps), strict=True):
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.from_numpy(out), t, x).prev_sample
        states.append((float(t), seen.numpy(), x.numpy()))
    return states


def our_steps(scheduler: Scheduler, steps: int, noise: np.ndarray) -> list[tuple[float, np.ndarray, np.ndarray]]:
    sampler = table(scheduler.kind, steps, scheduler)
    x, history, states = noise * np.float32(sampler.noise_scale), [np.zeros_like(noise)] * sampler.history, []
    for update, out in zip(sampler.updates, outputs(steps), strict=True):
        assert update.ends_step
        c, seen = [np.float32(v) for v in update.coefficients], x
        if sampler.history:
            data = c[0] * x + c[1] * out
            x = c[2] * x + sum(w * d for w, d in zip(c[3:], [data, *history], strict=True))
            history = [data, *history][: sampler.history]
        else:
            assert c[0] == 0, "no step of these begins before the call"
            x = c[1] * x + c[2] * out
        states.append((update.timestep, seen, x))
    return states


def compare(scheduler, steps: int) -> None:
    compare_with(ours(scheduler), scheduler, steps)


def compare_with(read: Scheduler, scheduler, steps: int) -> None:
    """float32 on both sides: theirs rounds every operation (Euler's at the scale of its sigmas), ours the coefficients."""
    noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    got, want = our_steps(read, steps, noise), their_steps(scheduler, steps, noise)
    largest = float(scheduler.init_noise_sigma) * np.abs(noise).max()
    atol = 2e-5 * max(np.abs(seen).max() for _, seen, _ in want) + 2e-7 * largest
    for (t, seen, _), (their_t, their_seen, _) in zip(got, want, strict=True):
        assert t == pytest.approx(their_t, abs=1e-4)
        np.testing.assert_allclose(seen, their_seen, rtol=0, atol=atol)
    np.testing.assert_allclose(got[-1][2], want[-1][2], rtol=0, atol=atol)


@composite
def schedulers(draw):
    kind = draw(sampled_from(KINDS))
    options = {
        "beta_schedule": draw(sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])),
        "timestep_spacing": draw(sampled_from(["leading", "linspace", "trailing"])),
        "prediction_type": draw(sampled_from(["epsilon", "v_prediction", *([] if kind == EULER else ["sample"])])),
        "num_train_timesteps": draw(sampled_from([1000, 200])),
    }
    if options["beta_schedule"] == "squaredcos_cap_v2" and kind == DPM:
        options["lambda_min_clipped"] = -math.inf
    if options["timestep_spacing"] == "leading":
        options["steps_offset"] = draw(integers(0, 1))
    if kind == DDIM:
        options["set_alpha_to_one"] = draw(booleans())
    else:
        options["final_sigmas_type"] = draw(sampled_from(["zero", "sigma_min"]))
    if kind == DPM:
        options |= {"solver_order": draw(integers(1, 3)), "solver_type": draw(sampled_from(["midpoint", "heun"])),
                    "lower_order_final": draw(booleans()), "euler_at_final": draw(booleans())}  # fmt: skip
    return theirs(kind, **options)


@settings(max_examples=150, deadline=None)
@given(schedulers(), integers(3, 25))
def test_every_step_is_that_of_diffusers(scheduler, steps):
    compare(scheduler, steps)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [2, 14, 15, 50])
def test_multistep_lowers_its_order_where_diffusers_does(order, steps):
    compare(theirs(DPM, solver_order=order), steps)


def test_the_released_configuration():
    """facebook/DiT-XL-2-256's scheduler is this DDIM: 20 steps start at 950, not at the reference's 999."""
    updates = table(DDIM, 20, ours(theirs(DDIM))).updates
    assert [u.timestep for u in updates] == [float(t) for t in range(950, -1, -50)]
    compare(theirs(DDIM), 20)


def test_options_of_other_schedulers_do_not_matter():
    config = dict(theirs(DDIM, timestep_spacing="trailing", beta_end=0.03).config)
    read = Scheduler.from_config(config, "scheduler", DPM)
    assert (read.kind, read.timestep_spacing, read.beta_end, read.solver_order) == (DPM, "trailing", 0.03, 2)


# Every scheduler whose configuration describes the same noise, with options that another one has not, or has by another name.
ORIGINS = [
    ("DDIMScheduler", {"clip_sample": False, "thresholding": True}), ("DDIMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}), ("PNDMScheduler", {"skip_prk_steps": True}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "learned_range"}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}), ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}), ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}), ("EulerDiscreteScheduler", {"sigma_min": 0.1, "sigma_max": 9.0}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, "thresholding": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True, "lambda_min_clipped": -5.1, "variance_type": "learned"}),
    ("DPMSolverSinglestepScheduler", {"solver_type": "bh2"}), ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_type": "heun", "solver_order": 3}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "use_karras_sigmas": True}), ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"solver_order": 3, "solver_type": "midpoint"}),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [{}, {"final_sigmas_type": "sigma_min"}], ids=["zero", "sigma_min"])
@pytest.mark.parametrize(("origin", "options"), ORIGINS, ids=str)
def test_another_schedulers_configuration_is_read_as_diffusers_reads_it(kind, end, origin, options):
    """What a pipeline folder holds, and `pipe.scheduler = KIND.from_config(pipe.scheduler.config)`."""
    written = {**json.loads(getattr(diffusers, origin)().to_json_string()), **options, **end}
    for missing in ((), ("solver_type", "algorithm_type"), ("timestep_spacing", "steps_offset", "beta_end", "solver_order")):
        config = {k: v for k, v in written.items() if k not in missing}
        loaded = getattr(diffusers, origin).from_config(config)
        try:
            want = getattr(diffusers, kind).from_config(loaded.config)
        except ValueError:
            want = None
        if want is None or not followed(want):
            with pytest.raises(ScheduleError, match=r"^here: \w+ = .* is not supported: it must be ") as error:
                Scheduler.from_config(config, "here", kind)
            assert want is None or re.match(r"here: (\w+)", str(error.value))[1] in unfollowed(want)
        else:
            read = Scheduler.from_config(config, "here", kind)
            assert read == ours(want)
            assert (read.solver_type, read.solver_order) == (
                want.config.get("solver_type", "midpoint") if kind == DPM else "midpoint",
                want.config.get("solver_order", 2) if kind == DPM else 2,
            )
            compare_with(read, want, 6)


def unfollowed(scheduler: diffusers.SchedulerMixin) -> set[str]:
    """The options of a scheduler, as its constructor knows them, that make it one that no table describes."""
    plain = {
        "algorithm_type": "dpmsolver++", "interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None,
        "sigma_max": None, "lambda_min_clipped": -math.inf, "use_karras_sigmas": False, "use_exponential_sigmas": False,
        "use_beta_sigmas": False, "use_lu_lambdas": False, "use_flow_sigmas": False, "use_dynamic_shifting": False,
        "thresholding": False, "clip_sample": False, "rescale_betas_zero_snr": False,
    }  # fmt: skip
    own = inspect.signature(type(scheduler).__init__).parameters
    options = {name for name, value in plain.items() if name in own and scheduler.config[name] != value}
    learned = "variance_type" in own and scheduler.config.variance_type in ("learned", "learned_range")
    return options | ({"variance_type"} if learned else set())


def followed(scheduler: diffusers.SchedulerMixin) -> bool:
    return not unfollowed(scheduler)


@pytest.mark.parametrize("origin", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_models_of_other_noise_are_refused_under_every_scheduler(origin):
    config = json.loads(getattr(diffusers, origin)().to_json_string())
    for kind in (None, *KINDS):
        with pytest.raises(ScheduleError, match=f"here: {origin} is not supported: its models"):
            Scheduler.from_config(config, "here", kind)


def test_a_configuration_without_a_class_says_so():
    with pytest.raises(ScheduleError, match="here: has no _class_name: use one of DDIMScheduler"):
        Scheduler.from_config({}, "here")


def test_options_that_a_class_has_not_are_no_difference():
    """A schedule that was compiled by a release that kept them."""
    mine, kept = (Scheduler(kind=DPM, timestep_spacing="leading", set_alpha_to_one=one) for one in (True, False))
    assert mine.differences(kept) == []
    assert mine.differences(Scheduler(kind=DPM, timestep_spacing="leading", solver_order=3)) == ["solver_order"]


def test_a_schedule_keeps_its_scheduler():
    schedule = Schedule.from_rule(
        "every:2", family="dit", sampler=DPM, steps=4, columns=6, scheduler=ours(theirs(DPM, solver_order=3))
    )
    again = Schedule.from_json(schedule.to_json())
    assert again == schedule
    assert again.table().history == 2
    assert schedule.uncached().table() == schedule.table()
    assert b"solver_order" in schedule.to_json()
    plain = Schedule.every(2, family="dit", steps=4, columns=6)
    assert b"scheduler" not in plain.to_json(), "readers of before know no such key"


@pytest.mark.parametrize(("key", "value", "says"), [
    ("sampler", "ddim", "the sampler is ddim, but the scheduler a DPMSolverMultistepScheduler"),
    ("scheduler", None, "is not a schedule|unknown sampler"), ("scheduler", {"kind": DPM}, "timestep_spacing"),
])  # fmt: skip
def test_a_schedule_that_contradicts_its_scheduler(key, value, says):
    raw = json.loads(
        Schedule.from_rule("every:2", family="dit", sampler=DPM, steps=4, columns=6, scheduler=ours(theirs(DPM))).to_json()
    )
    with pytest.raises(ScheduleError, match=says):
        Schedule.from_json(json.dumps({**raw, key: value}).encode())


REFUSED = [
    (DDIM, "clip_sample", True), (DDIM, "thresholding", True), (DDIM, "rescale_betas_zero_snr", True),
    (DPM, "algorithm_type", "sde-dpmsolver++"), (DPM, "use_karras_sigmas", True), (DPM, "use_lu_lambdas", True),
    (DPM, "variance_type", "learned_range"), (DPM, "lambda_min_clipped", -5.1), (EULER, "use_karras_sigmas", True),
    (EULER, "interpolation_type", "log_linear"), (EULER, "timestep_type", "continuous"), (EULER, "prediction_type", "sample"),
    (EULER, "use_beta_sigmas", True), (EULER, "sigma_max", 80.0), (EULER, "sigma_min", 0.1),
    (EULER, "use_exponential_sigmas", True), (DPM, "use_exponential_sigmas", True), (EULER, "rescale_betas_zero_snr", True),
    (DPM, "use_flow_sigmas", True), (DPM, "use_dynamic_shifting", True), (DPM, "use_beta_sigmas", True),
    (DPM, "thresholding", True), (DPM, "prediction_type", "flow_prediction"), (DDIM, "prediction_type", "flow_prediction"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "option", "value"), REFUSED)
def test_an_option_that_no_table_can_follow_is_named(kind, option, value):
    with pytest.raises(ScheduleError, match=f"here: {option} = .* is not supported: it must be") as error:
        Scheduler.from_config({**OWN[kind], option: value}, "here", kind)
    assert "\n" not in str(error.value)


def test_other_schedulers_are_refused():
    with pytest.raises(ScheduleError, match="here: PNDMScheduler is not supported: use one of DDIMScheduler"):
        Scheduler.from_config({"_class_name": "PNDMScheduler"}, "here")
    with pytest.raises(ScheduleError, match="solver_order"):
        Scheduler.from_config({"solver_order": 4}, "here", DPM)


@pytest.mark.parametrize(("kind", "steps"), [(DDIM, 0), (DDIM, 1001), (DPM, 1), (EULER, 0)])
def test_numbers_of_steps_that_make_no_sense(kind, steps):
    with pytest.raises(UsageError, match=f"steps={steps}: {kind} takes"):
        table(kind, steps, ours(theirs(kind)))


def test_there_are_no_more_steps_than_the_training_had():
    with pytest.raises(UsageError, match=f"steps=201: {EULER} takes 1 to 200 steps"):
        table(EULER, 201, ours(theirs(EULER, num_train_timesteps=200)))


@pytest.mark.parametrize(("kind", "spacing", "steps"), [
    (DDIM, "trailing", 61), (EULER, "trailing", 103), (DPM, "trailing", 61), (DPM, "leading", 1000), (DPM, "linspace", 1000),
])  # fmt: skip
def test_steps_that_a_spacing_does_not_make_are_refused(kind, spacing, steps):
    """diffusers goes on to timestep -1, or divides by zero."""
    scheduler = ours(theirs(kind, timestep_spacing=spacing))
    with pytest.raises(UsageError, match=f"steps={steps}: {spacing} spacing makes no {steps} timesteps"):
        table(kind, steps, scheduler)
    assert len(table(kind, steps - 1, scheduler).updates) == steps - 1


def test_what_a_configuration_leaves_out_is_what_diffusers_does():
    """Its DDIM clips; asked for by its name alone it is DiT's, which does not."""
    with pytest.raises(ScheduleError, match="here: clip_sample = True, the default, is not supported: it must be False"):
        Scheduler.from_config({"_class_name": DDIM}, "here")
    with pytest.raises(ScheduleError, match="clip_sample = True, the default"):
        Scheduler.from_config({"_class_name": DPM}, "here", DDIM)
    assert Scheduler.from_config({"_class_name": DPM}, "here").kind == DPM


@pytest.mark.parametrize("betas", [{"trained_betas": (0.1,) * 5}, {"beta_end": 1.5}, {"trained_betas": ()}])
def test_betas_that_are_none_are_refused(betas):
    with pytest.raises(ScheduleError, match=r"the scheduler has \d+ betas from .* it needs 1000 .*, all from 0 to 1"):
        table(DDIM, 5, Scheduler.from_config({"clip_sample": False, **betas}, "here", DDIM))


# its last timestep has no signal
TERMINAL = {
    "timestep_spacing": "trailing",
    "trained_betas": rescale_zero_terminal_snr(torch.linspace(1e-4, 0.02, 1000)).tolist(),
}


@pytest.mark.parametrize(("kind", "config"), [
    (EULER, {**TERMINAL, "prediction_type": "v_prediction"}), (DPM, TERMINAL), (DDIM, TERMINAL),
    (DDIM, {"beta_start": 0.0, "prediction_type": "sample"}),  # the first timestep has no noise
])  # fmt: skip
def test_a_table_whose_steps_divide_by_zero_is_refused(kind, config):
    scheduler = Scheduler.from_config({"clip_sample": False, **config}, "here", kind)
    with pytest.raises(ScheduleError, match="has a step that is not a finite number: check its betas") as error:
        table(kind, 5, scheduler)
    assert "\n" not in str(error.value)


def test_ddim_follows_a_velocity_from_a_terminal_signal_of_zero():
    other = theirs(DDIM, prediction_type="v_prediction", **TERMINAL)
    noise = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    for mine, want in zip(our_steps(ours(other), 5, noise), their_steps(other, 5, noise), strict=True):
        assert mine[0] == want[0]
        assert np.allclose(mine[2], want[2], atol=1e-5)


@pytest.mark.parametrize(("option", "value"), [
    ("beta_end", float("nan")), ("beta_end", -1.0), ("num_train_timesteps", 10**19), ("num_train_timesteps", 0),
])  # fmt: skip
def test_numbers_that_no_scheduler_has(option, value):
    with pytest.raises(ScheduleError, match=f"here is not a scheduler that is supported: .*{option}"):
        Scheduler.from_config({"clip_sample": False, option: value}, "here", DDIM)


def test_an_offset_past_the_end_is_refused():
    with pytest.raises(L2CError, match="steps_offset = 60: with 20 steps the first timestep is 1010"):
        table(DDIM, 20, ours(theirs(DDIM, steps_offset=60)))
