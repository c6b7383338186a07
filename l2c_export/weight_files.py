"""Which file of a folder holds its weights, as diffusers names them.

A folder may hold the same weights several times: as safetensors and as pickles, and in variants (`.fp16`, `.bf16`, ..).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from .errors import WeightsError
from .files import small
from .weights import Index

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
        raise WeightsError(f"{found[0].name} and {found[1].name} are different weights: give one of them as --weights")
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


def files(folder: Path, chosen: WeightFile) -> list[Path]:
    """The weights and, of an index, what it names.  Raises WeightsError for an index that is damaged."""
    if not chosen.is_index:
        return [folder / chosen.name]
    try:
        named = msgspec.json.decode(small(folder / chosen.name), type=Index).weight_map.values()
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WeightsError(f"{folder / chosen.name}: weight_map is damaged: {error}: download or save it again") from None
    shards = [folder / name for name in sorted({Path(name).name for name in named})]
    if lost := next((shard for shard in shards if not shard.is_file()), None):
        raise WeightsError(f"{lost}: no such file, but {chosen.name} names it: download or save it again")
    return [folder / chosen.name, *shards]


def patterns(part: str) -> tuple[tuple[str, ...], ...]:
    """What to download of a part of a repository for its weights, in the order of `WeightFile.rank`, until there are some."""
    at = f"{part}/" if part else ""
    plain = [(f"{at}*.index.json", *(f"{at}{stem}{shard}.{s}" for stem in STEMS for shard in ("", "-?????-of-?????")))
             for s in SUFFIXES]  # fmt: skip
    variants = [
        (f"{at}*.index*.json", *(f"{at}{stem}.{v}{shard}" for stem in STEMS for shard in (f".{s}", f"-?????-of-?????.{s}")),
         *(f"{at}{stem}-?????-of-?????.{v}.{s}" for stem in STEMS))
        for v in (*PRECISE[1:], "*") for s in SUFFIXES
    ]  # fmt: skip
    return (*plain, *variants)
