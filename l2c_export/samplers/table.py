"""What a sampler does in every call: of one of ours by name, or of a scheduler of diffusers."""

from __future__ import annotations

import math

import numpy as np

from ..errors import L2CError, ScheduleError, UsageError
from .diffusers import ddim, dpm_solver, euler
from .flow import flow_euler, flow_heun
from .reference import updates
from .scheduler_config import DDIM, DPM, EULER, FLOW, HEUN, Scheduler
from .update import Table


def table(sampler: str, steps: int, scheduler: Scheduler | None = None) -> Table:
    """The table of a sampler of ours by name, or of a scheduler of diffusers."""
    if scheduler is None:
        return Table(updates(sampler, steps))
    least = 2 if scheduler.kind == DPM else 1
    if not least <= steps <= scheduler.num_train_timesteps:
        raise UsageError(f"steps={steps}: {scheduler.kind} takes {least} to {scheduler.num_train_timesteps} steps")
    try:
        with np.errstate(all="ignore"):
            kinds = {DDIM: ddim, DPM: dpm_solver, EULER: euler, FLOW: flow_euler, HEUN: flow_heun}
            rows = kinds[scheduler.kind](scheduler, steps)
    except L2CError:  # which may be a ValueError, too
        raise
    except (ArithmeticError, ValueError):  # a timestep with no noise, or with nothing else
        rows = Table(())
    if not rows.updates or not all(math.isfinite(n) for u in rows.updates for n in (u.timestep, *u.coefficients)):
        raise ScheduleError(
            f"{scheduler.kind} with {steps} steps has a step that is not a finite number: check its betas, prediction_type and "
            "timestep_spacing"
        )
    return rows
