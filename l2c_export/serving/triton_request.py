"""A request of Triton's as jobs: one of every image, and of the rows of its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..artefact.manifest import Manifest
from ..errors import UsageError
from ..ir.inputs import NEGATIVE_PROMPT, PROMPT
from .job import Job
from .triton_arrays import taken
from .triton_tensors import HEIGHT, PREVIEWS, SCALE, SEED, STEPS, WIDTH, said

SHARED = (STEPS, HEIGHT, WIDTH, PREVIEWS)  # what the images of a request have in common
USUAL_PREVIEWS = 3


def jobs_of(request: Any, manifest: Manifest) -> list[Job]:
    """What it says of every image.  Raises UsageError for what is no text, and for images that cannot be answered together."""
    arrays = {tensor.name(): taken(tensor) for tensor in request.inputs()}
    for name in SHARED:
        if name in arrays and len(np.unique(arrays[name])) > 1:
            raise UsageError(f"{name}: the images of a request have one {name}: send the others on their own")
    return [_job(manifest, arrays, row) for row in range(len(next(iter(arrays.values()))))]


def _job(manifest: Manifest, arrays: dict[str, np.ndarray], row: int) -> Job:
    """Noise that is not said is that of a pipeline: image i of a request has seed i."""
    numbers = {name: arrays[name][row, 0].item() for name in (SCALE, *SHARED) if name in arrays}
    seed = arrays[SEED][row, 0].item() if SEED in arrays else row
    inputs = {
        tensor.name: _value(manifest, tensor.name, arrays[tensor.name][row])
        for tensor in said(manifest)
        if tensor.name in arrays
    }
    return Job(inputs, seed, **{PREVIEWS: USUAL_PREVIEWS, **numbers})


def _value(manifest: Manifest, name: str, values: np.ndarray) -> Any:
    """One image's, as the pipeline is told it."""
    if name in (PROMPT, NEGATIVE_PROMPT):
        try:
            return values[0].decode()
        except UnicodeDecodeError:
            raise UsageError(f"{name}: is no text in UTF-8: send it as such") from None
    scalar = any(field.name == name and not field.shape for field in manifest.inputs)
    return values[0].item() if scalar else values
