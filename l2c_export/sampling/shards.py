"""A shard on disk: a .npz, or a folder of pictures; whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..runtime.images import picture
from ..support.files import sync, sync_tree
from .plan import SamplePlan, Shard

PARTIAL = ".partial"


class ShardImages(NamedTuple):
    """The images of a shard: pixels (N, H, W, C) uint8, or latents (N, C, H, W) float32 of a model without pixels."""

    images: np.ndarray | None
    latents: np.ndarray | None


def missing(out: Path, plan: SamplePlan) -> list[Shard]:
    """The shards that are not there."""
    return [shard for shard in plan.shards if not (out / shard.name).exists()]


def sweep(out: Path) -> None:
    """Remove what was left by who was killed."""
    for path in out.glob(f".*{PARTIAL}"):
        _remove(path)


def write(out: Path, plan: SamplePlan, shard: Shard, contents: ShardImages) -> None:
    """A shard, on the disk when this returns.  Raises OSError, and nothing is left of it then."""
    with _arriving(out / shard.name) as partial:
        if plan.format == "png":
            _write_pictures(partial, shard, contents)
        else:
            _write_arrays(partial, plan, shard, contents)


def _write_arrays(path: Path, plan: SamplePlan, shard: Shard, contents: ShardImages) -> None:
    numbers = range(shard.first, shard.first + shard.images)
    kind, values = ("latents", contents.latents) if contents.images is None else ("images", contents.images)
    arrays = {kind: values, "seeds": np.array([plan.seed + n for n in numbers])}
    if plan.asked is not None:
        arrays[plan.asked] = np.array([plan.value(n) for n in numbers])
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # of numpy 2.2: keywords are its own


def _write_pictures(folder: Path, shard: Shard, contents: ShardImages) -> None:
    assert contents.images is not None
    folder.mkdir()
    for number, pixels in enumerate(contents.images, shard.first):
        (folder / f"{number:06}.png").write_bytes(picture(pixels[None]))


@contextlib.contextmanager
def _arriving(path: Path) -> Iterator[Path]:
    """What takes the name `path` when the block ends without an error; of two writers of the same, one is enough."""
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}{PARTIAL}")  # other machines may write here, too
    try:
        yield partial
        if partial.is_dir():
            sync_tree(partial)
        else:
            sync(partial)
        try:
            os.rename(partial, path)
        except OSError:
            if not path.is_dir():
                raise
        sync(path.parent)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
