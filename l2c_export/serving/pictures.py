"""A batch whose loop has ended, and the pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from ..runtime.images import to_images
from ..runtime.request import makes_pixels
from ..support import ending

if TYPE_CHECKING:
    from ..runtime.pipeline import Pipeline
    from .ticket import Ticket


class EndedLoop(NamedTuple):
    """Of these tickets; further rows are for nobody."""

    tickets: Sequence[Ticket]
    latents: np.ndarray  # (B, C, H, W) float32
    images: np.ndarray | None  # (B, H, W, C) float32 in 0..1; None where there are none, or none yet
    began: float  # when, by `time.monotonic`
    to_draw: bool  # whether the pictures are still to be made


def made_beside(pipe: Pipeline) -> bool:
    """Whether the pictures of one batch can be made beside the loop of the next: a GPU has that, the processor the decoder."""
    on_host = pipe.decoder is None or pipe.decoder.on_host
    return pipe.device != "cpu" and on_host and makes_pixels(pipe.manifest)


def picture(pipe: Pipeline, ended: EndedLoop, row: int) -> np.ndarray | None:
    """Pixels (H, W, C) in 0..1 of a row, to the bit as the pipeline makes them; None for latents alone."""
    if ended.images is not None:
        return cast(np.ndarray, ended.images[row].copy())
    if not ended.to_draw:
        return None
    with ending.computing():
        pixels: np.ndarray = to_images(pipe.decode(ended.latents[row : row + 1]), "np")[0]
    return pixels
