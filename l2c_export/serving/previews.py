"""What is shown of an image before it is finished, to those who asked for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.images import to_images
from ..support import ending
from ..support.log import LOG

if TYPE_CHECKING:
    from ..runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Preview:
    """The latents (C, H, W) after `step` of `steps`, and their pixels (H, W, C) in 0..1, None where none are made."""

    step: int
    steps: int
    latents: np.ndarray
    pixels: np.ndarray | None


OnPreview = Callable[[Preview], None]


def shown_steps(previews: int, steps: int) -> frozenset[int]:
    """The steps, from 1 on, that are shown: evenly spaced, without the last, whose latents are the image."""
    return frozenset(round(steps * n / (previews + 1)) for n in range(1, previews + 1)) - {0, steps}


@dataclass(frozen=True)
class Hearer:
    """Who is shown some steps of an image of a batch."""

    row: int
    steps: frozenset[int]
    heard: OnPreview
    gone: Callable[[], bool]  # whether nobody waits for the image any more


class Previews:
    """The callback of a generation some of whose images are shown: only their rows are decoded."""

    def __init__(self, hearers: Sequence[Hearer], steps: int, pixels: bool) -> None:
        self._hearers, self._steps, self._pixels = hearers, steps, pixels

    def __call__(self, pipe: Pipeline, step: int, timestep: float, values: dict[str, Any]) -> None:
        shown = [hearer for hearer in self._hearers if step + 1 in hearer.steps and not hearer.gone()]
        if not shown:
            return
        latents = values["latents"][[hearer.row for hearer in shown]]
        try:
            with ending.computing():
                images = to_images(pipe.decode(latents), "np") if self._pixels else [None] * len(shown)
            for hearer, x, pixels in zip(shown, latents, images, strict=True):
                hearer.heard(Preview(step + 1, self._steps, x, pixels))
        except Exception:  # the images themselves can still be made
            LOG.exception("a preview failed")
