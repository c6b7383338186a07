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

from ..artefact.manifest import Manifest
from ..artefact.records import DenoiserRecord, Guidance
from ..errors import UsageError
from ..samplers.noise import standard_normal
from ..support.tensors import on_host, scalar
from ..support.words import counted

OUTPUT_TYPES = ("latent", "device", "np", "pil")
LARGEST = float(np.finfo(np.float32).max)
LARGEST_SCALE = 1000.0  # guided predictions beyond keep less than four decimal digits of float32's seven


# numbers, names, or an array or a tensor of one dimension
Labels = Sequence[int | str] | int | str | Any


def folder(path: Any) -> Path:
    """The folder of an artefact, as a path or as text."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in str(path):
        raise UsageError(f"{path!r}: no folder can have this name: give the one that l2c-export wrote")
    return Path(path)


def labels(manifest: Manifest, values: Labels) -> list[int]:
    """Class labels as a list.  Raises UsageError for a label or a batch that this artefact does not have."""
    values = scalar(values)
    entries = [values] if isinstance(values, str) else listed(values, "class labels")
    if not 1 <= len(entries) <= manifest.batch:
        remedy = f"ask for fewer, or compile it with batch={len(entries)}" if entries else "give at least one"
        able = "1 image" if manifest.batch == 1 else f"1 to {manifest.batch} images"
        raise UsageError(f"{len(entries)} class labels: this artefact makes {able} at once: {remedy}")
    return [_label(manifest.denoiser, scalar(label)) for label in entries]


def _label(model: DenoiserRecord, label: Any) -> int:
    """The number of a class.  Text is the name of one, or else a number in digits, as at the command line."""
    if isinstance(label, str) and label in (model.names or {}):
        return named(model, label)
    if isinstance(label, str) and re.fullmatch(r"-?\d{1,18}", label, re.ASCII):
        label = int(label)
    if isinstance(label, str) and model.names:
        return named(model, label)
    if not whole(label) or not 0 <= label < model.labels:
        hint = ", every label on its own" if isinstance(label, str) and "," in label else ""
        raise UsageError(f"class label {label!r}: must be a whole number from 0 to {model.labels - 1}{hint}")
    return int(label)


def named(model: DenoiserRecord, name: Any) -> int:
    """The number of a class name."""
    names = model.names or {}
    if not isinstance(name, str) or name not in names:
        close = " or ".join(difflib.get_close_matches(str(name), names, 3))
        raise UsageError(f"class label {name!r}: no such name: {f'did you mean {close}?' if close else 'use a number'}")
    return names[name]


def number(scale: Any) -> float:
    """A guidance scale as it is given, which must be a finite number of moderate size."""
    value = scalar(scale)
    try:
        amount = float(value) if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) else math.nan
    except OverflowError:
        amount = math.inf
    if not abs(amount) <= LARGEST_SCALE:
        raise UsageError(
            f"guidance_scale={repr(scale)[:40]}: must be a finite number from {-LARGEST_SCALE:g} to {LARGEST_SCALE:g}"
        )
    return amount


def scale(guidance: Guidance, value: Any) -> float:
    """A guidance scale; None is the artefact's."""
    if value is None:
        return guidance.scale
    amount = number(value)
    if guidance.mode == "none" and amount != 1:
        raise UsageError(f"guidance_scale={amount:g}: this artefact was compiled with guidance='none': use guidance_scale=1")
    return amount


def noise(manifest: Manifest, count: int, seed: Any) -> np.ndarray:
    """Standard normal latents (count, C, H, W) float32, image i's from seed + i, or from seed[i]."""
    return standard_normal(manifest.program().latent, seeds(count, seed))


def seeds(count: int, seed: Any) -> list[int]:
    """The seed of every image."""
    first = scalar(seed)
    entries = [int(first) + i for i in range(count)] if whole(first) else [scalar(entry) for entry in listed(first, "seed")]
    if len(entries) != count or not all(whole(entry) and entry >= 0 for entry in entries):
        raise UsageError(f"seed={seed!r}: give one whole number >= 0, or one per image ({count})")
    return [int(entry) for entry in entries]


def latents(manifest: Manifest, values: Any, count: int) -> np.ndarray:
    """Latents of a user as float32 (count, C, H, W): an array, or a tensor of PyTorch."""
    shape = (count, *manifest.program().latent)
    try:
        array = np.asarray(on_host(values))
    except (ValueError, TypeError, RuntimeError):  # the latter two are those of tensors in a list
        raise UsageError(
            f"latents: not an array: this model and {counted(count, 'label')} need numbers of shape {shape}"
        ) from None
    if array.shape != shape:
        raise UsageError(f"latents of shape {array.shape}: this model and {counted(count, 'label')} need {shape}")
    if array.dtype.newbyteorder("=") not in (np.float32, np.float64, np.float16):
        raise UsageError(f"latents of dtype {array.dtype}: use float32")
    if array.dtype.itemsize == 8 and np.any(np.isfinite(array) & (np.abs(array) > LARGEST)):
        raise UsageError("latents: they hold numbers that are too large for float32")
    return array.astype(np.float32, copy=False)


def returned(manifest: Manifest, result: Any, count: int) -> np.ndarray | None:
    """The latents that a callback returns, if it returns any: nothing, or a mapping that may hold "latents"."""
    if result is None:
        return None
    if not isinstance(result, Mapping):
        raise UsageError(f'the callback returned a {type(result).__name__}: return None, or {{"latents": ..}}')
    return latents(manifest, result["latents"], count) if "latents" in result else None


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
    return bool(manifest.decoder) or manifest.program().latent[0] in (1, 3)


def whole(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def listed(values: Any, what: str) -> list[Any]:
    """One value, or the values of something that has an order."""
    values = scalar(values)
    if isinstance(values, (Set, Mapping, bytes, bytearray)):
        raise UsageError(f"{what}: a {type(values).__name__} is no list of them: give a list")
    if isinstance(values, np.ndarray) and values.ndim > 1:
        raise UsageError(f"{what} of shape {values.shape}: give one dimension")
    try:
        return list(values)
    except TypeError:
        return [values]
