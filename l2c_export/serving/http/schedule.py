"""A model's schedule for the page that draws it."""

from __future__ import annotations

from typing import Any

from ...artefact.manifest import Manifest
from ...inspection.view import of_artefact
from ...schedules.picture import COMPUTED, FORECAST, REUSED, SKIPPED
from .answers import Refusal
from .says import steps_of

LETTERS = {COMPUTED: "c", REUSED: "r", FORECAST: "f", SKIPPED: "-"}


def schedule_of(manifest: Manifest, steps: int | None) -> dict[str, Any]:
    """Its values, with a letter for every call: computed, reused, forecast, or jumped over."""
    able = steps_of(manifest)
    if steps is not None and steps not in able:
        raise Refusal(404, "invalid_request_error", f"num_inference_steps={steps}: use {' or '.join(map(str, able))}",
                      "invalid_value", "num_inference_steps")  # fmt: skip
    picture = of_artefact(manifest, steps).picture
    compiled = manifest.program(steps)
    return {
        "steps": compiled.steps_of_solver,
        "sampler": compiled.sampler,
        "computed_share": round(compiled.computed_share, 6),
        "timesteps": [round(float(t), 3) for t in picture.timesteps],
        "ends_step": [call.ends_step for call in compiled.calls],
        "sublayers": picture.sublayers,
        "names": list(picture.names),
        "cells": ["".join(LETTERS[int(cell)] for cell in row) for row in picture.cells],
    }
