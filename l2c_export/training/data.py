"""Data to train on: an .npz of latents or images, and their labels."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from ..models.base import Family

REMEDY = "give an .npz with `latents` or `images`, and `labels`"


class Samples(NamedTuple):
    """Values (N, C, H, W) float32 as the model was trained on, and labels (N,) int64."""

    values: np.ndarray
    labels: np.ndarray


def read(path: Path, family: Family) -> Samples:
    """`latents` are taken as they are; `images` are floats (N, C, H, W) in -1..1, or uint8 (N, H, W, C) or (N, H, W).

    Raises UsageError for anything else, and for what does not fit the model.
    """
    arrays = load(path)
    name = next((n for n in ("latents", "images") if n in arrays), None)
    if name is None or "labels" not in arrays:
        missing = "neither `latents` nor `images`" if name is None else "no `labels`"
        raise UsageError(f"--data {path}: holds {missing} (but {', '.join(arrays) or 'nothing'}): {REMEDY}")
    values = as_floats(path, name, arrays[name])
    check_values(path, name, values, family)
    return Samples(values, checked_labels(path, arrays["labels"], len(values), family))


def load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"--data {path}: no such file: {REMEDY}, or self for the model's own trajectories")
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0].partition(" If you trust")[0] if str(error) else type(error).__name__
        raise UsageError(f"--data {path}: cannot be read: {reason}: {REMEDY}") from None


def as_floats(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    if name == "images" and values.dtype == np.uint8 and values.ndim in (3, 4):
        channels_last = values if values.ndim == 4 else values[..., None]
        floats = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2), np.float32)
        return np.asarray(floats / 127.5 - 1, np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        kinds = "floats in -1..1 or uint8" if name == "images" else "floats"
        raise UsageError(f"--data {path}: `{name}` are {values.dtype} of shape {values.shape}: use {kinds}")
    return np.ascontiguousarray(values, np.float32)


def check_values(path: Path, name: str, values: np.ndarray, family: Family) -> None:
    if values.shape[1:] != family.latent or not len(values):
        raise UsageError(f"--data {path}: `{name}` are {values.shape} as (N, C, H, W): the model needs (N, *{family.latent})")
    if not np.isfinite(values).all():
        raise UsageError(f"--data {path}: `{name}` hold NaN or infinite values: leave those out")
    if name == "images" and np.abs(values).max() > 1 + 1e-3:
        raise UsageError(f"--data {path}: `images` reach {np.abs(values).max():.3g}: scale them to -1..1, or save uint8")


def checked_labels(path: Path, labels: np.ndarray, count: int, family: Family) -> np.ndarray:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"--data {path}: `labels` are {labels.dtype} of shape {labels.shape}: use {count} whole numbers")
    if labels.min() < 0 or labels.max() >= family.labels:
        raise UsageError(
            f"--data {path}: `labels` from {labels.min()} to {labels.max()}: the model has 0 to {family.labels - 1}"
        )
    return labels.astype(np.int64)
