"""Which images there are to be, and which shard each is in: of an image's number alone, so that nothing else changes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from ..errors import ArtefactError, UsageError
from ..support.files import replacing, small

FILE = "samples.json"
FORMATS = ("npz", "png")


class Shard(NamedTuple):
    """So many images from the number `first` on, in one file or one folder of pictures."""

    name: str
    first: int
    images: int


class SamplePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked for: image n has the noise of seed + n, and the n-th of what is asked, which begins again at its end.

    It lies beside the shards, and a folder is gone on with only by the same one.
    """

    made_by: Literal["l2c sample"] = "l2c sample"
    version: Literal[1] = 1
    artefact: str  # checksum of its manifest
    backend: str
    threads: int  # their number may decide the last bits of an image
    link: str | None
    count: int
    format: str
    shard_size: int
    seed: int
    asked: Literal["class_labels", "prompt"] | None  # the input that says what an image shows
    of_each: tuple[int | str, ...]  # its values, in turn
    negative_prompt: str | None
    guidance_scale: float | None
    steps: int | None
    size: tuple[int, int] | None  # height and width, pixels

    @property
    def shards(self) -> list[Shard]:
        """All of them, in order."""
        return [
            Shard(f"{n:05}" + (".npz" if self.format == "npz" else ""), first, min(self.shard_size, self.count - first))
            for n, first in enumerate(range(0, self.count, self.shard_size))
        ]

    def value(self, number: int) -> int | str:
        """What an image shows."""
        return self.of_each[number % len(self.of_each)]

    def request(self, numbers: list[int]) -> Mapping[str, Any]:
        """What a pipeline is told to make these images."""
        said: dict[str, Any] = {} if self.asked is None else {self.asked: [self.value(n) for n in numbers]}
        if self.negative_prompt is not None:
            said["negative_prompt"] = self.negative_prompt
        height, width = self.size or (None, None)
        return {**said, "seed": [self.seed + n for n in numbers], "guidance_scale": self.guidance_scale,
                "steps": self.steps, "height": height, "width": width}  # fmt: skip


def settle(out: Path, plan: SamplePlan) -> None:
    """Begin a folder with this plan, or go on with it.  Raises UsageError for a folder of another plan, or of others."""
    try:
        data = small(out / FILE)
    except FileNotFoundError:
        _refuse_foreign(out)
        with replacing(out / FILE) as file:
            file.write(msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")
        return
    try:
        present = msgspec.json.decode(data, type=SamplePlan)
    except msgspec.MsgspecError as error:
        raise ArtefactError(f"{out / FILE}: is damaged, or of another release: {error}: choose another folder") from None
    for name in plan.__struct_fields__:
        own, new = getattr(present, name), getattr(plan, name)
        if own != new:
            raise UsageError(f"out={str(out)!r}: {_difference(name, own, new)}: choose another folder")


def _difference(name: str, own: object, new: object) -> str:
    """How the plan of a folder is another one."""
    if name == "artefact":
        return "holds images of another artefact"
    if name in ("of_each", "asked"):
        return "holds images of other class labels or prompts"
    return f"was begun with {name}={_said(own)}, not {_said(new)}"


def _said(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"'{hashlib.sha256(text.encode()).hexdigest()[:12]}'"


def _refuse_foreign(out: Path) -> None:
    for path in sorted(out.iterdir()):
        if not path.name.startswith("."):
            raise UsageError(f"out={str(out)!r}: holds {path.name}, which is not ours: choose an empty folder")
