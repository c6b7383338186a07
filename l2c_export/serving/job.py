"""A request for one image, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """One image: `inputs` are what `Pipeline.__call__` is told of it by name, without the axis of the batch.

    That is `class_labels=3` or a name, `prompt` and `negative_prompt`, or arrays of the declared shapes.  `steps`, and `height`
    and `width` in pixels, choose one of the artefact's programs; None is what it does where it is told nothing.
    `previews` is how many of the steps are shown on the way to whoever asked for it.
    """

    inputs: Mapping[str, Any]
    seed: int = 0
    guidance_scale: float | None = None
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    previews: int = 0


@dataclass(frozen=True)
class Drawing:
    """`latents` (C, H, W) float32; `pixels` (H, W, C) float32 in 0..1, None for latents that are no pixels."""

    latents: np.ndarray
    pixels: np.ndarray | None
    queued_seconds: float  # until its batch began
    run_seconds: float  # from then until it was made
    batch: int  # images that were made together
