"""What was generated: as pictures, and in files."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..support.extras import needs
from ..support.files import check_place, make_folder, write

SUFFIXES = (".npy", ".png")


@dataclass(frozen=True)
class Output:
    """`latents` (B, C, H, W) float32; `images`, if asked for: (B, H, W, C) floats in 0..1, or PIL images; `seconds` it took.

    The latents of "device" are where the backend computes: a `cuda.DeviceArray` on a GPU, which `torch.from_dlpack` and others
    read without a copy; elsewhere a numpy array as always.
    """

    latents: Any
    images: Any = None
    seconds: float = 0.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was made: latents (B, C, H, W) as .npy, images as one .png, side by side, or a file of each in a folder.

        A folder is a path without .npy or .png; it gets 000.png, 001.png, .., or .npy where there are no images.
        Raises UsageError for what cannot be written there, RunError where writing fails.
        """
        path = Path(path)
        check_target(path)
        if is_picture(path):
            write(path, picture(self._pixels(path)), "out")
        elif path.suffix.lower() in SUFFIXES:
            write(path, array(self._on_host(path)), "out")
        else:
            self._save_each(path)

    def _save_each(self, folder: Path) -> None:
        make_folder(folder, "out")
        if self.images is None:
            for n, latents in enumerate(self._on_host(folder)):
                write(folder / f"{n:03}.npy", array(latents), "out")
        else:
            for n, pixels in enumerate(self._pixels(folder)):
                write(folder / f"{n:03}.png", picture(pixels[None]), "out")

    def _pixels(self, path: Path) -> np.ndarray:
        """The images as (B, H, W, C) bytes."""
        if self.images is None:
            raise UsageError(f'{path}: these are latents, not images: save them as a .npy, or ask for output_type="pil"')
        if isinstance(self.images, np.ndarray):
            return as_bytes(self.images)
        return np.stack([np.atleast_3d(np.asarray(image)) for image in self.images])

    def _on_host(self, path: Path) -> np.ndarray:
        if not isinstance(self.latents, np.ndarray):
            raise UsageError(f'{path}: these latents are on the device: ask for output_type="latent" to save them')
        return self.latents


def to_images(x: np.ndarray, output_type: str) -> Any:
    """Pixels (B, C, H, W) in -1..1 -> (B, H, W, C) floats in 0..1 ("np"), or a list of PIL images ("pil")."""
    pixels = np.clip(x.transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    if output_type == "np":
        return pixels
    image = needs("PIL.Image", "images")
    return [image.fromarray(values.squeeze()) for values in as_bytes(pixels)]


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels in 0..1 -> the nearest of 0..255."""
    whole: np.ndarray = (pixels * 255).round().astype(np.uint8)
    return whole


def check_target(path: Path, pictures: bool = False) -> None:
    """Refuse what `Output.save` could not write, before minutes are spent on what goes there; `pictures` into a folder, too."""
    if path.suffix.lower() not in SUFFIXES and not is_folder(path):
        raise UsageError(f"out={str(path)!r}: use a .npy, a .png or a folder")
    if path.suffix.lower() in SUFFIXES:
        check_place(path, "out")
    if pictures or is_picture(path):
        needs("PIL.Image", "images")


def is_folder(path: Path) -> bool:
    """Whether a file per image goes there: to a folder, or to a name that no file has and that does not look like one's."""
    return path.suffix.lower() not in SUFFIXES and (path.is_dir() or not (path.suffix or path.exists()))


def is_picture(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def array(values: np.ndarray) -> bytes:
    """A .npy file."""
    data = io.BytesIO()
    np.save(data, values)
    return data.getvalue()


def picture(pixels: np.ndarray) -> bytes:
    """A .png file of bytes (B, H, W, C), the images side by side."""
    image, data = needs("PIL.Image", "images"), io.BytesIO()
    # run lengths are most of what deflate finds in photographs: a quarter of the time, up to a fifth more bytes
    image.fromarray(np.concatenate(list(pixels), axis=1).squeeze()).save(data, format="png", compress_type=zlib.Z_RLE)
    return data.getvalue()
