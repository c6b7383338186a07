"""Which file of a folder holds its weights, as diffusers names them.

A folder may hold the same weights several times: as safetensors and as pickles, and in variants (`.fp16`, `.bf16`, ..).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..errors import WeightsError
from ..support.files import small
from .checkpoint import ShardIndex

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
        known = self.variant in PRECISE
        precision = PRECISE.index(self.variant) if known else 0
        return (not known, precision, SUFFIXES.index(self.suffix), not self.is_index, STEMS.index(self.stem))


def parsed(name: str) -> WeightFile | None:
    """What a file's name says; None for one that no weights have."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    variant = found["variant"] or found["old"] or found["new"] or ""
    return WeightFile(name, found["stem"], variant, found["suffix"], bool(found["index"]))


def choose(names: Iterable[str]) -> WeightFile | None:
    """The weights among a folder's files; None if there are none.  Raises WeightsError where one is as good as another."""
    found = sorted((file for name in names if (file := parsed(name))), key=lambda file: (file.rank, file.name))
    if len(found) > 1 and found[0].rank == found[1].rank:
        raise WeightsError(f"{found[0].name} and {found[1].name} are different weights: give one of them as weights=..")
    return found[0] if found else None


def find(folder: Path) -> WeightFile:
    """The weights in a folder.  Raises WeightsError that says what is missing."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be read: {error.strerror}: download or save it again") from None
    try:
        chosen = choose(names)
    except WeightsError as error:
        raise WeightsError(f"{folder}: {error}") from None
    if chosen is not None:
        return chosen
    if shard := next((name for name in names if SHARD.fullmatch(name)), None):
        raise WeightsError(f"{folder} holds {shard}, but no index of its parts (.index.json): download or save it again")
    wanted = ", ".join(f"{STEMS[0]}.{suffix}" for suffix in SUFFIXES)
    raise WeightsError(f"{folder} holds no weights: one of {wanted}, or of their variants and indices, must be there")


def path(place: Path) -> Path:
    """The file of weights that a path means: itself, or that of a folder."""
    return place / find(place).name if place.is_dir() else place


def named(index: Path) -> list[str]:
    """The files that an index names, all of its own folder.  Raises WeightsError for one that is damaged."""
    try:
        places = msgspec.json.decode(small(index), type=ShardIndex).weight_map.values()
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WeightsError(f"{index}: weight_map is damaged: {error}: download or save it again") from None
    return sorted({Path(place).name for place in places})


def files(folder: Path, chosen: WeightFile) -> list[Path]:
    """The weights and, of an index, what it names.  Raises WeightsError for what is not there."""
    shards = [folder / name for name in named(folder / chosen.name)] if chosen.is_index else []
    if lost := next((shard for shard in shards if not shard.is_file()), None):
        raise WeightsError(f"{lost}: no such file, but {chosen.name} names it: download or save it again")
    return [folder / chosen.name, *shards]
