"""Classifier-free guidance of a request, as the loop takes it: what is asked for and what is not, and a strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from ..ir.inputs import Inputs, RequestInput
from .compiled import Compiled
from .records import Guidance


class GuidedRequest(NamedTuple):
    """What a request says besides the noise."""

    inputs: Inputs  # (R, ..) by name, the unconditional half last
    strength: np.ndarray  # (B, C, 1, ..): an image's scale - 1, or 0 for an unguided channel


def guided_request(compiled: Compiled, inputs: Inputs, scales: np.ndarray, dtype: str = "float32") -> GuidedRequest:
    """Inputs (B, ..), and a guidance scale for every image (B,).

    There is one half only where no image is guided (all scales are 1).  An input without an unconditional value is what was
    asked for in both.  Raises UsageError where the request has to give that value, and does not.
    """
    told = {one.name: scales.astype(one.dtype) for one in compiled.inputs if one.known == "guidance"}
    values = {**inputs, **told}
    if compiled.guidance.doubled(scales):
        both: Inputs = halves(compiled.inputs, values)
    else:
        both = {one.name: values[one.name] for one in compiled.inputs}
    return GuidedRequest(both, strength(compiled.guidance, compiled.latent, scales, dtype))


def halves(declared: Sequence[RequestInput], inputs: Inputs) -> Inputs:
    """Inputs (B, ..) -> (2 B, ..), the unconditional half last."""
    return {one.name: np.concatenate([inputs[one.name], without(one, inputs)]) for one in declared}


def without(one: RequestInput, inputs: Inputs) -> np.ndarray:
    """An input of the unconditional half."""
    asked: np.ndarray = inputs[one.name]
    if not one.guides:
        return asked
    if one.negated is None:
        return one.without(len(asked))
    if one.negated.name not in inputs:
        shape = ", ".join(map(str, ("B", *one.shape)))
        raise UsageError(f"{one.negated.name}=..: is missing: give an array of shape ({shape}), or guidance_scale=1")
    negative: np.ndarray = inputs[one.negated.name]
    return negative


def strength(
    guidance: Guidance, latent: Sequence[int], scales: np.ndarray | Sequence[float], dtype: str = "float32"
) -> np.ndarray:
    """(B, C, 1, ..) of the latents' rank: what the difference of both halves counts.  It is exactly 0 at a scale of 1."""
    above = (np.asarray(scales, np.float64) - 1).astype(dtype)
    per_channel = above[:, None] * np.array(guidance.channels(latent[0]), dtype)
    return np.reshape(per_channel, (len(above), latent[0], *(1 for _ in latent[1:])))
