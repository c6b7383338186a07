"""How alike pictures are: PSNR and SSIM of every pair, and the least alike side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..runtime.images import picture
from ..runtime.request import folder
from ..support.extras import needs
from ..support.files import write
from ..support.progress import Progress, unseen
from ..support.words import counted
from .pictures import PictureFile, pictures

WINDOW = 7  # side of the window of SSIM, pixels, as Wang et al. 2004 in scikit-image's default
SHOWN, LEAST_SIDE, GAP, LOUDER = 8, 128, 4, 4  # rows of the picture; pixels; how much a difference is amplified


@dataclass(frozen=True)
class Likeness:
    """Two pictures of one name: PSNR in dB, infinite where they are the same, and SSIM, 1 where they are."""

    name: str
    psnr: float
    ssim: float

    @property
    def same(self) -> bool:
        """Whether they are the same, pixel by pixel."""
        return math.isinf(self.psnr)


@dataclass(frozen=True)
class Likenesses:
    """What `compare` found: every pair, in the order of their names."""

    pairs: tuple[Likeness, ...]

    @property
    def worst(self) -> tuple[Likeness, ...]:
        """The pairs, the least alike first."""
        return tuple(sorted(self.pairs, key=lambda pair: (pair.psnr, pair.ssim)))

    @property
    def psnr(self) -> float:
        """The mean over the pairs that differ, dB; infinite where none does."""
        differing = [pair.psnr for pair in self.pairs if not pair.same]
        return float(np.mean(differing)) if differing else math.inf

    @property
    def ssim(self) -> float:
        """The mean over all pairs."""
        return float(np.mean([pair.ssim for pair in self.pairs]))

    @property
    def same(self) -> int:
        """How many pairs are the same, pixel by pixel."""
        return sum(pair.same for pair in self.pairs)

    @property
    def summary(self) -> str:
        """One line."""
        count = counted(len(self.pairs), "pair")
        if self.same == len(self.pairs):
            return f"{count}: all the same, pixel by pixel"
        same = f"; {self.same:,} are the same" if self.same else ""
        return f"{count}: PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f} in the mean{same}"


def compare(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None,
    progress: Progress = unseen,
) -> Likenesses:  # fmt: skip
    """PSNR and SSIM of pictures `a` and `b`: two files, or two folders with files of the same names.

    A folder holds .png and the like, or shards of `sample`; a .npz stands for all its images.  PSNR is of bytes
    (data range 255); SSIM has a uniform window of 7 pixels, or the largest odd one that fits, and is the mean of the channels.
    `out` is a .png of the least alike pairs, at most eight, with four times their difference.
    Raises UsageError where a picture has no partner of its name and size.
    """
    needs("skimage.metrics", "compare")
    target = None if out is None else Path(out)
    if target and target.suffix.lower() != ".png":
        raise UsageError(f"out={str(out)!r}: use a .png")
    ours, theirs = (pictures(folder(path)) for path in (a, b))
    names = _partners(ours, theirs, str(a), str(b))
    step = progress("comparing", len(names))
    likenesses = []
    for name in names:
        likenesses.append(_likeness(name or Path(a).name, *_pair(ours[name], theirs[name])))
        step()
    result = Likenesses(tuple(likenesses))
    if target:
        keys = dict(zip((pair.name for pair in likenesses), names, strict=True))
        shown = [keys[pair.name] for pair in result.worst[:SHOWN]]
        write(target, picture(_sheet([_pair(ours[name], theirs[name]) for name in shown])[None]), "out")
    return result


def _partners(ours: dict[str, PictureFile], theirs: dict[str, PictureFile], a: str, b: str) -> list[str]:
    """The names of the pairs.  Raises UsageError for a picture that is alone."""
    if len(ours) == len(theirs) == 1:  # two files, whatever they are called
        theirs[next(iter(ours))] = theirs.pop(next(iter(theirs)))
    for one, other, present, absent in ((ours, theirs, a, b), (theirs, ours, b, a)):
        alone = [name for name in one if name not in other]
        if alone:
            more = f" and {len(alone) - 1:,} more" if len(alone) > 1 else ""
            raise UsageError(f"{alone[0] or present}{more}: in {present}, but not in {absent}: give pictures of the same names")
    return list(ours)


def _pair(ours: PictureFile, theirs: PictureFile) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures of one shape (H, W, C).  Raises UsageError where they are none."""
    one, other = ours.read(), theirs.read()
    channels = max(one.shape[2], other.shape[2])
    one, other = (np.repeat(pixels, channels // pixels.shape[2], axis=2) for pixels in (one, other))
    if one.shape != other.shape:
        sizes = " and ".join(f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (one, other))
        raise UsageError(f"{ours.path} and {theirs.path}: pictures of {sizes} pixels: give some of the same size")
    if min(one.shape[:2]) < 3:
        raise UsageError(f"{ours.path}: a picture of {one.shape[1]} x {one.shape[0]} pixels: SSIM takes 3 at least")
    return one, other


def _likeness(name: str, one: np.ndarray, other: np.ndarray) -> Likeness:
    metrics = needs("skimage.metrics", "compare")
    if np.array_equal(one, other):
        return Likeness(name, math.inf, 1.0)
    psnr = metrics.peak_signal_noise_ratio(one, other, data_range=255)
    side = min(WINDOW, *one.shape[:2])
    ssim = metrics.structural_similarity(one, other, data_range=255, channel_axis=2, win_size=side - 1 + side % 2)
    return Likeness(name, float(psnr), float(ssim))


def _sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pairs below each other: one, the other, and what is between them, (H, W, 3) bytes on white."""
    rows = [np.concatenate(list(_with_gaps(_row(one, other), 1)), axis=1) for one, other in pairs]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(list(_with_gaps(rows, 0)), axis=0)


def _row(one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    between = np.clip(np.abs(one.astype(int) - other) * LOUDER, 0, 255).astype(np.uint8)
    times = -(-LEAST_SIDE // max(one.shape[:2]))
    return [
        np.repeat(pixels, 3 // pixels.shape[2], axis=2).repeat(times, 0).repeat(times, 1) for pixels in (one, other, between)
    ]


def _with_gaps(parts: Sequence[np.ndarray], axis: int) -> Iterator[np.ndarray]:
    for n, part in enumerate(parts):
        if n:
            shape = list(part.shape)
            shape[axis] = GAP
            yield np.full(shape, 255, np.uint8)
        yield part
