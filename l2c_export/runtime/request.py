"""What a request asks for, checked against the artefact: labels, noise, latents, guidance and the kind of output.

Everything that is refused is a UsageError of one line.  Numbers of numpy and PyTorch become Python's, which do not wrap around.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence, Set
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..artefact.manifest import Guidance, Manifest, Model
from ..errors import UsageError
from ..samplers.noise import standard_normal
from ..support.tensors import on_host, scalar
from ..support.words import counted

OUTPUT_TYPES = ("latent", "device", "np", "pil")
LARGEST = float(np.finfo(np.float32).max)
LARGEST_SCALE = 1000.0  # guided predictions beyond keep less than four decimal digits of float32's seven


# numbers, names, or an array or a tensor of one dimension
Labels = Sequence[int | str] | int | str | Any


def folder(given: Any) -> Path:
    """The folder of an artefact, as a path or as text."""
    if not isinstance(given, (str, os.PathLike)) or "\0" in str(given):
        raise UsageError(f"{given!r}: no folder can have this name: give the one that l2c-export wrote")
    return Path(given)


def labels(manifest: Manifest, given: Labels) -> list[int]:
    """Class labels as a list.  Raises UsageError for a label or a batch that this artefact does not have."""
    given = scalar(given)
    found = [given] if isinstance(given, str) else listed(given, "class labels")
    if not 1 <= len(found) <= manifest.batch:
        remedy = f"ask for fewer, or compile it with l2c-export --batch {len(found)}" if found else "give at least one"
        able = "1 image" if manifest.batch == 1 else f"1 to {manifest.batch} images"
        raise UsageError(f"{len(found)} class labels: this artefact makes {able} at once: {remedy}")
    return [_label(manifest.model, scalar(label)) for label in found]


def _label(model: Model, given: Any) -> int:
    """The number of a class.  Text is the name of one, or else a number in digits, as at the command line."""
    if isinstance(given, str) and given in (model.names or {}):
        return named(model, given)
    if isinstance(given, str) and re.fullmatch(r"-?\d{1,18}", given, re.ASCII):
        given = int(given)
    if isinstance(given, str) and model.names:
        return named(model, given)
    if not whole(given) or not 0 <= given < model.labels:
        each = ", every label on its own" if isinstance(given, str) and "," in given else ""
        raise UsageError(f"class label {given!r}: must be a whole number from 0 to {model.labels - 1}{each}")
    return int(given)


def named(model: Model, name: Any) -> int:
    """The number of a class name."""
    names = model.names or {}
    if not isinstance(name, str) or name not in names:
        close = " or ".join(difflib.get_close_matches(str(name), names, 3))
        raise UsageError(f"class label {name!r}: no such name: {f'did you mean {close}?' if close else 'use a number'}")
    return names[name]


def number(given: Any) -> float:
    """A guidance scale as it is given, which must be a finite number of moderate size."""
    value = scalar(given)
    try:
        found = float(value) if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) else math.nan
    except OverflowError:
        found = math.inf
    if not abs(found) <= LARGEST_SCALE:
        raise UsageError(
            f"guidance_scale {repr(given)[:40]}: must be a finite number from {-LARGEST_SCALE:g} to {LARGEST_SCALE:g}"
        )
    return found


def scale(guidance: Guidance, given: Any) -> float:
    """A guidance scale; None is the artefact's."""
    if given is None:
        return guidance.scale
    found = number(given)
    if guidance.mode == "none" and found != 1:
        raise UsageError(f"guidance_scale {found:g}: this artefact was compiled with --guidance none: use 1")
    return found


def noise(manifest: Manifest, count: int, seed: Any) -> np.ndarray:
    """Standard normal latents (count, C, H, W) float32, image i's from seed + i, or from seed[i]."""
    return standard_normal(manifest.model.latent, seeds(count, seed))


def seeds(count: int, given: Any) -> list[int]:
    """The seed of every image."""
    one = scalar(given)
    found = [int(one) + i for i in range(count)] if whole(one) else [scalar(each) for each in listed(one, "seed")]
    if len(found) != count or not all(whole(each) and each >= 0 for each in found):
        raise UsageError(f"seed {given!r}: give one whole number >= 0, or one per image ({count})")
    return [int(each) for each in found]


def latents(manifest: Manifest, given: Any, count: int) -> np.ndarray:
    """Latents of a user as float32 (count, C, H, W): an array, or a tensor of PyTorch."""
    shape = (count, *manifest.model.latent)
    try:
        found = np.asarray(on_host(given))
    except (ValueError, TypeError, RuntimeError):  # the latter two are those of tensors in a list
        raise UsageError(
            f"latents: not an array: this model and {counted(count, 'label')} need numbers of shape {shape}"
        ) from None
    if found.shape != shape:
        raise UsageError(f"latents of shape {found.shape}: this model and {counted(count, 'label')} need {shape}")
    if found.dtype.newbyteorder("=") not in (np.float32, np.float64, np.float16):
        raise UsageError(f"latents of dtype {found.dtype}: use float32")
    if found.dtype.itemsize == 8 and np.any(np.isfinite(found) & (np.abs(found) > LARGEST)):
        raise UsageError("latents: they hold numbers that are too large for float32")
    return found.astype(np.float32, copy=False)


def returned(manifest: Manifest, given: Any, count: int) -> np.ndarray | None:
    """The latents that a callback returns, if it returns any: nothing, or a mapping that may hold "latents"."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise UsageError(f'the callback returned a {type(given).__name__}: return None, or {{"latents": ..}}')
    return latents(manifest, given["latents"], count) if "latents" in given else None


def output_type(manifest: Manifest, given: Any) -> str:
    """What comes out: as it is given, by default images where the artefact makes them, and latents elsewhere."""
    if given is None:
        return ("pil" if find_spec("PIL") else "np") if makes_pixels(manifest) else "latent"
    if not isinstance(given, str) or given not in OUTPUT_TYPES:
        raise UsageError(f"output_type={given!r}: use one of {', '.join(OUTPUT_TYPES)}")
    if given in ("np", "pil") and not makes_pixels(manifest):
        raise UsageError(
            f"output_type={given!r}: this model makes latents, not pixels, and the artefact has no decoder: "
            'compile it with with_vae=True, or use output_type="latent"'
        )
    return given


def makes_pixels(manifest: Manifest) -> bool:
    return bool(manifest.decoder) or manifest.model.latent[0] in (1, 3)


def whole(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def listed(given: Any, what: str) -> list[Any]:
    """One value, or the values of something that has an order."""
    given = scalar(given)
    if isinstance(given, (Set, Mapping, bytes, bytearray)):
        raise UsageError(f"{what}: a {type(given).__name__} is no list of them: give a list")
    if isinstance(given, np.ndarray) and given.ndim > 1:
        raise UsageError(f"{what} of shape {given.shape}: give one dimension")
    try:
        return list(given)
    except TypeError:
        return [given]
