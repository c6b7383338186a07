"""A generation with a stop after every call: for callbacks, and for whoever wants to know which call made NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..errors import RunError
from ..support import ending
from . import request as asked
from .loop import Loop, Step

Callback = Callable[[int, float, dict[str, Any]], Mapping[str, Any] | None]


def stepwise(loop: Loop, calls: Iterable[Step], callback: Callback | None, check_finite: bool) -> None:
    """Run all calls of a loop; what the callback returns after a solver step is what the next one starts from."""
    step = -1
    for done in calls:
        if check_finite and not np.isfinite(done.x).all():
            raise RunError(f"call {done.index} (timestep {done.call.timestep:g}) made NaN or infinite latents")
        if not done.call.ends_step:
            continue
        step += 1
        if callback:
            with ending.resting():
                returned = callback(step, loop.compiled.step_timestep(done.index), {"latents": done.x.copy()})
            changed = asked.returned(loop.compiled, returned, loop.images)
            if changed is not None:
                done.x[...] = changed
                if check_finite and not np.isfinite(done.x).all():
                    raise RunError(f"the callback after step {step} returned NaN or infinite latents")
