"""What a request asks for, checked against the artefact: labels, noise, latents, guidance and the kind of output.

Everything that is refused is a UsageError of one line.  Numbers of numpy are taken as Python's: they would wrap around.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from .errors import UsageError
from .manifest import Guidance, Manifest, Model
from .samplers import standard_normal

OUTPUT_TYPES = ("latent", "device", "np", "pil")
LARGEST = float(np.finfo(np.float32).max)


def labels(manifest: Manifest, given: Sequence[int | str] | int | str) -> list[int]:
    """Class labels as a list.  Raises UsageError for a label or a batch that this artefact does not have."""
    found = [_label(manifest.model, label) for label in ([given] if isinstance(given, str) else listed(given))]
    if not 1 <= len(found) <= manifest.batch:
        remedy = f"ask for fewer, or compile it with l2c-export --batch {len(found)}" if found else "give at least one"
        able = "1 image" if manifest.batch == 1 else f"1 to {manifest.batch} images"
        raise UsageError(f"{len(found)} class labels: this artefact makes {able} at once: {remedy}")
    for label in found:
        if not whole(label) or not 0 <= label < manifest.model.labels:
            raise UsageError(f"class label {label!r}: must be a whole number from 0 to {manifest.model.labels - 1}")
    return [int(label) for label in found]


def _label(model: Model, given: Any) -> Any:
    """The number of a class name."""
    if not isinstance(given, str) or not model.names:
        return given
    if given not in model.names:
        close = " or ".join(difflib.get_close_matches(given, model.names, 3))
        raise UsageError(f"class label {given!r}: no such name: {f'did you mean {close}?' if close else 'use a number'}")
    return model.names[given]


def scale(guidance: Guidance, given: Any) -> float:
    """A guidance scale; None is the artefact's."""
    if given is None:
        return guidance.scale
    try:
        found = float(given) if isinstance(given, Real) else math.nan
    except OverflowError:
        found = math.inf
    if not abs(found) <= LARGEST:
        raise UsageError(f"guidance_scale {repr(given)[:40]}: must be a finite number")
    if guidance.mode == "none" and found != 1:
        raise UsageError(f"guidance_scale {found:g}: this artefact was compiled with --guidance none: use 1")
    return found


def noise(manifest: Manifest, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Standard normal latents (count, C, H, W) float32, image i's from seed + i, or from seed[i]."""
    seeds = [int(seed) + i for i in range(count)] if whole(seed) else listed(seed)
    if len(seeds) != count or not all(whole(s) and s >= 0 for s in seeds):
        raise UsageError(f"seed {seed!r}: give one whole number >= 0, or one per image ({count})")
    return standard_normal(manifest.model.latent, [int(s) for s in seeds])


def latents(manifest: Manifest, given: Any, count: int) -> np.ndarray:
    """Latents of a user as float32 (count, C, H, W)."""
    shape = (count, *manifest.model.latent)
    try:
        found = np.asarray(given)
    except (ValueError, TypeError, RuntimeError):  # the latter two are a tensor's, of another device or type
        raise UsageError(f"latents: not an array: this model and {count} labels need numbers of shape {shape}") from None
    if found.shape != shape:
        raise UsageError(f"latents of shape {found.shape}: this model and {count} labels need {shape}")
    if found.dtype not in (np.float32, np.float64, np.float16):
        raise UsageError(f"latents of dtype {found.dtype}: use float32")
    if found.dtype == np.float64 and np.any(np.isfinite(found) & (np.abs(found) > LARGEST)):
        raise UsageError("latents: they hold numbers that are too large for float32")
    return found.astype(np.float32, copy=False)


def returned(manifest: Manifest, given: Any, count: int) -> np.ndarray | None:
    """The latents that a callback returns, if it returns any: nothing, or a mapping that may hold "latents"."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise UsageError(f'the callback returned a {type(given).__name__}: return None, or {{"latents": ..}}')
    return latents(manifest, given["latents"], count) if "latents" in given else None


def check_output(manifest: Manifest, output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise UsageError(f"output_type {output_type!r}: use one of {', '.join(OUTPUT_TYPES)}")
    pixels = manifest.decoder or manifest.model.latent[0] in (1, 3)
    if output_type in ("np", "pil") and not pixels:
        raise UsageError(
            f"output_type {output_type!r}: this model makes latents, not pixels, and the artefact has no decoder: "
            'compile it with --with-vae, or use output_type="latent"'
        )


def whole(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def listed(given: Any) -> list[Any]:
    """One value, or the values of a sequence."""
    try:
        return list(given)
    except TypeError:
        return [given]
