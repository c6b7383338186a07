"""Classifier-free guidance of a request, as the loop takes it: labels for both halves of the batch, and a strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .manifest import Manifest


class GuidedLabels(NamedTuple):
    """What a request says besides the noise."""

    labels: np.ndarray  # (R,) int32, the unconditional half last
    strength: np.ndarray  # (C,): scale - 1, or 0 for an unguided channel


def guided_labels(manifest: Manifest, labels: Sequence[int], scale: float, dtype: str = "float32") -> GuidedLabels:
    """Class labels, one per image, and a guidance scale; without guidance (a scale of 1) there is one half only."""
    null = [manifest.denoiser.null_label] * len(labels) if scale != 1 else []
    channels = np.array(manifest.guidance.channels(manifest.program().latent[0]), dtype)
    return GuidedLabels(np.array([*labels, *null], np.int32), (scale - 1) * channels)
