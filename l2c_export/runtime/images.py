"""What was generated: as pictures, and in files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UsageError
from ..support.extras import needs
from ..support.files import check_place, write


def to_images(x: np.ndarray, output_type: str) -> Any:
    """Pixels (B, C, H, W) in -1..1 -> (B, H, W, C) floats in 0..1 ("np"), or a list of PIL images ("pil")."""
    pixels = np.clip(x.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    if output_type == "np":
        return pixels
    image = needs("PIL.Image", "images")
    return [image.fromarray((p * 255).round().astype(np.uint8).squeeze()) for p in pixels]


def check_target(path: Path) -> None:
    """Refuse what `save` could not write, before minutes are spent on what goes there."""
    if path.suffix.lower() not in (".npy", ".png"):
        raise UsageError(f"--out {path}: use a .npy or a .png")
    check_place(path, "--out")
    if is_picture(path):
        needs("PIL.Image", "images")


def is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def save(path: Path, values: np.ndarray) -> None:
    """Latents (B, C, H, W) as .npy; pixels (B, H, W, C) in 0..1 as one picture, the images side by side."""
    check_target(path)
    data = io.BytesIO()
    _save_picture(data, values) if is_picture(path) else np.save(data, values)
    write(path, data.getvalue(), "--out")


def _save_picture(file: BinaryIO, pixels: np.ndarray) -> None:
    image = needs("PIL.Image", "images")
    strip = np.concatenate(list((pixels * 255).round().astype(np.uint8)), axis=1)
    image.fromarray(strip.squeeze()).save(file, format="png")
