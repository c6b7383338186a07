"""The seconds of every call of an artefact on this machine."""

from __future__ import annotations

from pathlib import Path

from ..ir.inputs import usual
from ..runtime import pipeline
from ..support.clock import seconds_between


def measured_calls(folder: Path, steps: int | None = None) -> list[float]:
    """Of one image, after a warm-up; nothing is decoded."""
    pipe = pipeline.load(folder)
    inputs, noise = usual(pipe.manifest.inputs, 1), pipe.noise(1, 0)
    pipe(**inputs, latents=noise, output_type="latent", steps=steps)
    return seconds_between(pipe.steps(**inputs, noise=noise, steps=steps))
