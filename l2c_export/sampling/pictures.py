"""Pictures to be compared: files, folders of them, and the shards of `l2c sample`, by the names that they have in both."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from ..support.extras import needs

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
IMAGES = "images"  # what a shard calls its pictures


class PictureFile(NamedTuple):
    """Where a picture is: a file of its own, or the n-th of a shard."""

    path: Path
    number: int | None = None

    def read(self) -> np.ndarray:
        """(H, W, C) bytes.  Raises UsageError for what is no picture."""
        if self.number is not None:
            pixels: np.ndarray = shard(self.path)[self.number]
            return pixels
        image = needs("PIL.Image", "images")
        try:
            with image.open(self.path) as opened:
                kind = "L" if opened.mode in ("1", "L", "I;16", "I", "F") else "RGB"
                return np.atleast_3d(np.asarray(opened.convert(kind)))
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
            raise UsageError(f"{self.path}: is no picture that can be read: {str(error).splitlines()[0]}") from None


def pictures(path: Path) -> dict[str, PictureFile]:
    """All in a folder and below, by their names in it, in order; or the one that a file holds, or those of a shard.

    Raises UsageError where there is none.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_one(file) and not file.name.startswith("."))
        places = {name: place for file in files for name, place in _of(file, file.relative_to(path).as_posix())}
    elif path.suffix.lower() in (*PICTURES, ".npz"):
        places = dict(_of(path, ""))
    else:
        raise UsageError(f"{path}: is no folder and no picture: give a .png, a shard (.npz), or a folder of them")
    if not places:
        raise UsageError(f"{path}: holds no pictures: give a folder of .png, or of the shards that l2c_export.sample writes")
    return places


def _is_one(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (*PICTURES, ".npz")


def _of(path: Path, name: str) -> Iterator[tuple[str, PictureFile]]:
    if path.suffix.lower() != ".npz":
        yield name, PictureFile(path)
        return
    for index in range(len(shard(path))):
        yield f"{name}[{index}]", PictureFile(path, index)


def shard(path: Path) -> np.ndarray:
    """The pictures of a shard, (N, H, W, C) bytes.  Raises UsageError for one of latents, and for what is no shard."""
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)  # one on each side
def _read(path: Path, changed: int) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _checked(path, arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: is no .npz that can be read: {str(error).splitlines()[0]}") from None


def _checked(path: Path, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if IMAGES not in arrays:
        held = ", ".join(arrays) or "nothing"
        raise UsageError(f"{path}: holds {held}, no images: compare pictures of a model of pixels, or with a decoder")
    images = arrays[IMAGES]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UsageError(f"{path}: images of {images.dtype} {images.shape}: must be bytes (N, height, width, 1 or 3)")
    return images
