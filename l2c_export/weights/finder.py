"""Which file of a folder holds its weights, as diffusers names them.

A folder may hold the same weights several times: as safetensors and as pickles, and in variants (`.fp16`, `.bf16`, ..).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import WeightsError
from .checkpoint import weight_map

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = ("safetensors", "bin")  # what is preferred first
PRECISE = ("", "fp32", "bf16", "fp16")  # variants; others are of another training (ema, non_ema) and come last
# STEM.safetensors, STEM.fp16.safetensors, and the indices of what is in several files: the name of the variant moved once
NAME = re.compile(
    rf"(?P<stem>{'|'.join(STEMS)})"
    r"(?:\.(?P<variant>\w+))?\.(?P<suffix>safetensors|bin)"
    r"(?P<index>(?:\.(?P<old>\w+))?\.index(?:\.(?P<new>\w+))?\.json)?"
)
SHARD = re.compile(rf"(?:{'|'.join(STEMS)})(?:\.\w+)?-\d{{5}}-of-\d{{5}}(?:\.\w+)?\.(?:safetensors|bin)")


class WeightFile(NamedTuple):
    """A file of weights, or the index of several."""

    name: str
    stem: str
    variant: str
    suffix: str
    is_index: bool

    @property
    def rank(self) -> tuple[bool, int, int, bool, int]:
        """The least is taken: the most precise, safetensors, and an index before a single file, as in diffusers."""
        is_precise = self.variant in PRECISE
        precision = PRECISE.index(self.variant) if is_precise else 0
        return (not is_precise, precision, SUFFIXES.index(self.suffix), not self.is_index, STEMS.index(self.stem))


def parsed(name: str) -> WeightFile | None:
    """What a file's name says; None for one that no weights have."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    variant = match["variant"] or match["old"] or match["new"] or ""
    return WeightFile(name, match["stem"], variant, match["suffix"], bool(match["index"]))


def choose(names: Iterable[str]) -> WeightFile | None:
    """The weights among a folder's files; None if there are none.  Raises WeightsError where one is as good as another."""
    ranked = sorted((file for name in names if (file := parsed(name))), key=lambda file: (file.rank, file.name))
    if len(ranked) > 1 and ranked[0].rank == ranked[1].rank:
        raise WeightsError(f"{ranked[0].name} and {ranked[1].name} are different weights: give one of them as weights=..")
    return ranked[0] if ranked else None


def find(folder: Path) -> WeightFile:
    """The weights in a folder.  Raises WeightsError that says what is missing."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be read: {error.strerror}: download or save it again") from None
    try:
        file = choose(names)
    except WeightsError as error:
        raise WeightsError(f"{folder}: {error}") from None
    if file is not None:
        return file
    if shard := next((name for name in names if SHARD.fullmatch(name)), None):
        raise WeightsError(f"{folder} holds {shard}, but no index of its parts (.index.json): download or save it again")
    expected = ", ".join(f"{STEMS[0]}.{suffix}" for suffix in SUFFIXES)
    raise WeightsError(f"{folder} holds no weights: one of {expected}, or of their variants and indices, must be there")


def path(place: Path) -> Path:
    """The file of weights that a path means: itself, or that of a folder."""
    return place / find(place).name if place.is_dir() else place


def named(index: Path) -> list[str]:
    """The files that an index names, all of its own folder.  Raises WeightsError for one that is damaged."""
    return sorted({Path(place).name for place in weight_map(index).values()})


def files(folder: Path, file: WeightFile) -> list[Path]:
    """The weights and, of an index, what it names.  Raises WeightsError for what is not there."""
    shards = [folder / name for name in named(folder / file.name)] if file.is_index else []
    if absent := next((shard for shard in shards if not shard.is_file()), None):
        raise WeightsError(f"{absent}: no such file, but {file.name} names it: download or save it again")
    return [folder / file.name, *shards]
