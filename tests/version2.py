"""Schedules of version 2 for the tests here."""

from __future__ import annotations

import json
from typing import Any

from l2c_export.schedules.schedule import Schedule

EXAMPLE = """{"format": "l2c-schedule", "version": 2, "family": "dit", "sampler": "ddim", "steps": 4,
 "cacheable": ["blocks.0.attn", "blocks.0.mlp", "stack", "output"],
 "calls": [{"timestep": 999.0, "computed": "all", "rules": {}},
           {"timestep": 666.0, "computed": "all", "rules": {}},
           {"timestep": 333.0, "computed": ["blocks.0.mlp"], "rules": {"*": "reuse", "blocks.0.attn": [[1, 1.5], [2, -0.5]]}},
           {"timestep": 0.0, "computed": [], "rules": {"output": "taylor:1"}}]}"""
SUBLAYERS = tuple(f"blocks.{b}.{kind}" for b in range(3) for kind in ("attn", "mlp"))


def schedule_of(
    *calls: tuple[Any, dict[str, Any]] | str, cacheable: tuple[str, ...] = (*SUBLAYERS, "stack", "output")
) -> Schedule:
    """Of a model of three blocks: (computed, rules) of every call of DDIM, or "all"."""
    timesteps = {2: (999, 0), 3: (999, 500, 0), 4: (999, 666, 333, 0), 5: (999, 749, 500, 250, 0)}[len(calls)]
    entries = [
        {"timestep": t, **({"computed": "all"} if call == "all" else {"computed": call[0], "rules": call[1]})}
        for t, call in zip(timesteps, calls, strict=True)
    ]
    head = {"format": "l2c-schedule", "version": 2, "family": "dit", "sampler": "ddim", "steps": len(calls)}
    return Schedule.from_json(json.dumps({**head, "cacheable": cacheable, "calls": entries}).encode())
