"""Latents to pixels on any backend: the decoder that `--with-vae` has exported, whole or in tiles that overlap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..artefact.records import DecoderRecord, FileInfo
from ..backends.choose import reading_onnx
from ..backends.contract import Array, Backend, Run, SegmentFile
from ..errors import UsageError

OVERLAP = 0.25  # of a tile with the next one, as in diffusers' AutoencoderKL


def check_tile(tile: int | None, record: DecoderRecord | None) -> None:
    """Refuse a tile that no decoder can be asked for; None decodes pictures whole."""
    if tile is None:
        return
    if record is None:
        raise UsageError(f"tile={tile}: this artefact has no decoder: compile it with with_vae=True, or leave the tile out")
    if tile < 2 * record.scale or tile % record.scale:
        raise UsageError(f"tile={tile}: must be a multiple of {record.scale} pixels, and at least {2 * record.scale}")


class Decoder:
    """Latents (B, C, h, w) -> pixels (B, 3, scale h, scale w), image by image: a batch is no faster and needs more memory.

    `tile` is the side in pixels of the parts that larger pictures are decoded in; None decodes them whole.
    """

    def __init__(
        self, folder: Path, record: DecoderRecord, backend: Backend, tile: int | None, info: FileInfo | None = None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        """Where `backend` runs no ONNX, another one does with so many threads, by default all cores."""
        self._record, self._backend = record, reading_onnx(backend, threads)
        self.on_host = self._backend.memory.on_host  # whether the processor decodes
        self._tile = tile // record.scale if tile else None
        file = SegmentFile(folder / record.file, ("z",), ("image",), info, weights_inside=True)
        self._engine = self._backend.load(file)
        self._bound: dict[tuple[int, ...], tuple[Array, Array, Run]] = {}

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        return np.concatenate([self._image(z[None]) for z in latents])

    def _image(self, z: np.ndarray) -> np.ndarray:
        if self._tile is None or max(z.shape[2:]) <= self._tile:
            return self._decode(z)
        return decode_tiles(self._decode, z, self._tile, self._record.scale)

    def _decode(self, z: np.ndarray) -> np.ndarray:
        if z.shape not in self._bound:
            self._bound[z.shape] = self._bind(z.shape)
        latents, image, run = self._bound[z.shape]
        self._backend.memory.put(latents, z)
        run()
        pixels: np.ndarray = self._backend.memory.get(image).copy()
        return pixels

    def _bind(self, shape: tuple[int, ...]) -> tuple[Array, Array, Run]:
        memory, scale = self._backend.memory, self._record.scale
        latents = memory.empty(shape, "float32")
        image = memory.empty((1, self._record.channels, shape[2] * scale, shape[3] * scale), "float32")
        return latents, image, self._engine.bind({"z": latents}, {"image": image})


def decode_tiles(decode: Callable[[np.ndarray], np.ndarray], z: np.ndarray, tile: int, scale: int) -> np.ndarray:
    """Decode z (1, C, h, w) in squares of `tile` latents, and fade from one to the next (AutoencoderKL.tiled_decode)."""
    stride = int(tile * (1 - OVERLAP))
    side, fade = stride * scale, (tile - stride) * scale  # pixels of a tile before the next one begins, and those that fade
    row_above: list[np.ndarray] = []
    bands = []
    for i in range(0, z.shape[2], stride):
        row: list[np.ndarray] = []
        for n, j in enumerate(range(0, z.shape[3], stride)):
            part = decode(z[:, :, i : i + tile, j : j + tile])
            if row_above:
                part = blend_edges(row_above[n], part, fade, axis=2)
            row.append(blend_edges(row[-1], part, fade, axis=3) if row else part)
        bands.append(np.concatenate([part[:, :, :side, :side] for part in row], axis=3))
        row_above = row
    return np.concatenate(bands, axis=2)


def blend_edges(before: np.ndarray, part: np.ndarray, length: int, axis: int) -> np.ndarray:
    """`part`, whose first rows or columns go over from the last ones of `before`."""
    length = min(length, before.shape[axis], part.shape[axis])
    weight = (np.arange(length, dtype=np.float32) / length).reshape([-1 if a == axis else 1 for a in range(part.ndim)])
    ending, beginning = (slice(before.shape[axis] - length, None), slice(length))
    last, first = (np.moveaxis(v, axis, 0)[s] for v, s in ((before, ending), (part, beginning)))
    blend: np.ndarray = part.copy()
    np.moveaxis(blend, axis, 0)[beginning] = last * (1 - np.moveaxis(weight, axis, 0)) + first * np.moveaxis(weight, axis, 0)
    return blend
