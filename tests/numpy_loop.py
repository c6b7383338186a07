"""The loop of `numpy_dit` by rules: it keeps what was computed and adds it up."""

from __future__ import annotations

import numpy as np
from numpy_dit import LABELS, NAMES, NULL, Blocks, guided, predicted, step

from l2c_export.schedules.schedule import Schedule

STEPS = 11
Rules = dict[int, tuple[tuple[str, ...], dict[str, object]]]  # of calls that are not full: what is computed, and the rules


def timesteps(steps: int) -> list[float]:
    return [call.timestep for call in Schedule.every(1, family="dit", steps=steps, columns=4).calls]


def by_hand(rule: object, n: int, computed: list[int]) -> dict[int, float]:
    """The coefficients of a value over the calls that computed it, from the published formulas."""
    if not isinstance(rule, str):
        return {n - age: c for age, c in rule}
    *_, last = computed
    order = min({"reuse": 0, "taylor:0": 0, "taylor:1": 1, "taylor:2": 2}[rule], len(computed) - 1)
    k = n - last
    if order == 0:
        return {last: 1.0}
    d0 = last - computed[-2]
    if order == 1:
        return {last: 1 + k / d0, computed[-2]: -k / d0}
    d1 = computed[-2] - computed[-3]
    return {
        last: 1 + k / d0 + k**2 / (2 * d0**2),
        computed[-2]: -k / d0 - k**2 / 2 * (1 / d0**2 + 1 / (d0 * d1)),
        computed[-3]: k**2 / (2 * d0 * d1),
    }


def denoised(
    w: dict[str, np.ndarray], x: np.ndarray, rules: Rules, stack: Blocks | None, steps: int = STEPS, labels: list[int] = LABELS
) -> np.ndarray:
    """The final latents (2, 4, 4, 4) of two labels, guided."""
    history: dict[str, dict[int, np.ndarray]] = {}  # value -> call -> what it computed
    times = timesteps(steps)
    for n, t in enumerate(times):
        on, ruled = rules.get(n, (NAMES, {}))

        def value(name, compute, n=n, on=on, ruled=ruled):
            level = name not in NAMES
            rule = ruled.get(name, None if level or name in on else ruled.get("*", "reuse"))
            if rule is None:
                history.setdefault(name, {})[n] = compute()
                return history[name][n]
            return sum(c * history[name][m] for m, c in by_hand(rule, n, list(history[name])).items())

        after = times[n + 1] if n + 1 < steps else None
        rows = np.concatenate([x, x])
        x = step(x, guided(predicted(w, rows, t, np.array([*labels, NULL, NULL]), value, stack)), t, after)
    return x
