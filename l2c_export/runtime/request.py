"""How a request is to be met, checked against the artefact: noise, latents, guidance and the kind of output.

Everything that is refused is a UsageError of one line.  Numbers of numpy and PyTorch become Python's, which do not wrap around.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence, Set
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..artefact import shipped
from ..artefact.compiled import Compiled
from ..artefact.manifest import Manifest
from ..errors import UsageError
from ..models import families
from ..samplers.noise import standard_normal
from ..support.tensors import on_host, scalar
from ..support.words import counted

Axes = tuple[int, ...] | None  # of latents: rows and columns
Scales = float | Sequence[float] | np.ndarray | None  # a guidance scale, or one per image
OUTPUT_TYPES = ("latent", "device", "np", "pil")
LARGEST = float(np.finfo(np.float32).max)
LARGEST_SCALE = 1000.0  # guided predictions beyond keep less than four decimal digits of float32's seven


def folder(path: Any) -> Path:
    """The folder of an artefact, as a path or as text, or the name of one that comes with the package."""
    if not isinstance(path, (str, os.PathLike)) or "\0" in str(path):
        raise UsageError(f"{path!r}: no folder can have this name: give the one that l2c-export wrote")
    return Path(shipped.place(path))


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


def scales(compiled: Compiled, value: Any, images: int) -> np.ndarray:
    """The guidance scale of every image, (B,) float64, from one number or one per image; None is the artefact's."""
    guidance, value = compiled.guidance, scalar(value)
    if value is None:
        return np.full(images, guidance.scale)
    several = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes))
    amounts = [number(entry) for entry in value] if several else [number(value)] * images
    if len(amounts) != images:
        raise UsageError(f"guidance_scale={repr(value)[:40]}: give one number, or one per image ({images})")
    if other := next((amount for amount in amounts if not guidance.any_scale and amount != 1), None):
        raise UsageError(f"guidance_scale={other:g}: this artefact was compiled with guidance='none': use guidance_scale=1")
    if len(set(amounts)) > 1 and not compiled.guides_each_image:
        raise UsageError(
            f"guidance_scale={repr(value)[:40]}: this artefact, of an older format, has one for all images of a batch: "
            "compile it again, or give one number"
        )
    return np.array(amounts)


def noise(compiled: Compiled, count: int, seed: Any) -> np.ndarray:
    """Standard normal latents (count, C, H, W) float32, image i's from seed + i, or from seed[i]."""
    return standard_normal(compiled.latent, seeds(count, seed))


def axes(manifest: Manifest, height: Any, width: Any, latents: Any = None) -> Axes:
    """The axes of the latents that are asked for: in pixels, or by latents of this shape; None: those of the first program.

    Raises UsageError for a size that the artefact does not have.
    """
    able = {size.latent[1:]: size for size in manifest.denoiser.sizes.values()}
    if height is None and width is None:
        sides = tuple(getattr(latents, "shape", ()))[2:]
        return sides if sides in able else None
    first, pixels = manifest.program().latent, pixels_of(manifest)
    if len(first) != 3:
        raise UsageError(f"height={height}, width={width}: this model makes no pictures: use neither")
    asked = tuple(
        pixels * own if value is None else scalar(value) for value, own in zip((height, width), first[1:], strict=True)
    )
    for size in able:
        if tuple(pixels * side for side in size) == asked:
            return size
    sizes = " or ".join(" x ".join(str(pixels * side) for side in size) for size in able)
    raise UsageError(
        f"height={asked[0]}, width={asked[1]}: this artefact was compiled for pictures of {sizes}: use those, or compile it "
        f"with size=.."
    )


def pixels_of(manifest: Manifest) -> int:
    """Of a latent, along each side."""
    family = families.FAMILIES.get(manifest.denoiser.family)
    return 1 if manifest.program().latent[0] in (1, 3) or family is None else family.pixels


def seeds(count: int, seed: Any) -> list[int]:
    """The seed of every image."""
    first = scalar(seed)
    entries = [int(first) + i for i in range(count)] if whole(first) else [scalar(entry) for entry in listed(first, "seed")]
    if len(entries) != count or not all(whole(entry) and entry >= 0 for entry in entries):
        raise UsageError(f"seed={seed!r}: give one whole number >= 0, or one per image ({count})")
    return [int(entry) for entry in entries]


def latents(compiled: Compiled, values: Any, count: int) -> np.ndarray:
    """Latents of a user as float32 (count, C, H, W): an array, or a tensor of PyTorch."""
    shape, model = (count, *compiled.latent), f"this model and {counted(count, 'image')}"
    numbers = array(values, "latents", f"{model} need numbers of shape {shape}")
    if numbers.shape != shape:
        others = " or ".join(str((count, *s.latent)) for s in compiled.denoiser.sizes.values() if s is not compiled.size)
        raise UsageError(f"latents of shape {numbers.shape}: {model} need {shape}{f' (or {others})' if others else ''}")
    return floats(numbers, "latents")


def array(values: Any, what: str, need: str) -> np.ndarray:
    """An array, or a tensor of PyTorch, as an array."""
    try:
        return np.asarray(on_host(values))
    except (ValueError, TypeError, RuntimeError):  # the latter two are those of tensors in a list
        raise UsageError(f"{what}: not an array: {need}") from None


def floats(values: np.ndarray, what: str) -> np.ndarray:
    """Floats of another size as float32."""
    if values.dtype.newbyteorder("=") not in (np.float32, np.float64, np.float16):
        raise UsageError(f"{what} of dtype {values.dtype}: use float32")
    if values.dtype.itemsize == 8 and np.any(np.isfinite(values) & (np.abs(values) > LARGEST)):
        raise UsageError(f"{what}: they hold numbers that are too large for float32")
    return values.astype(np.float32, copy=False)


def returned(compiled: Compiled, result: Any, count: int) -> np.ndarray | None:
    """The latents that a callback returns, if it returns any: nothing, or a mapping that may hold "latents"."""
    if result is None:
        return None
    if not isinstance(result, Mapping):
        raise UsageError(f'the callback returned a {type(result).__name__}: return None, or {{"latents": ..}}')
    return latents(compiled, result["latents"], count) if "latents" in result else None


def output_type(manifest: Manifest, choice: Any) -> str:
    """What comes out: as it is given, by default images where the artefact makes them, and latents elsewhere."""
    if choice is None:
        return ("pil" if find_spec("PIL") else "np") if makes_pixels(manifest) else "latent"
    if not isinstance(choice, str) or choice not in OUTPUT_TYPES:
        raise UsageError(f"output_type={choice!r}: use one of {', '.join(OUTPUT_TYPES)}")
    if choice in ("np", "pil") and not makes_pixels(manifest):
        raise UsageError(
            f"output_type={choice!r}: this model makes latents, not pixels, and the artefact has no decoder: "
            'compile it with with_vae=True, or use output_type="latent"'
        )
    return choice


def makes_pixels(manifest: Manifest) -> bool:
    channels, *axes = manifest.program().latent
    return bool(manifest.decoder) or (channels in (1, 3) and len(axes) == 2)


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
