"""What is compared with what: the contenders of a benchmark, what they are asked, and what makes them comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from ..artefact.manifest import Manifest
from ..backends.descriptors import loaded
from ..errors import UsageError
from ..support import machine


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """A way to make the images of an artefact."""

    name: str
    folder: str  # the artefact: its weights and its schedule, and its engines where they are used
    runtime: Literal["engines", "pytorch", "torch-compile"] = "engines"
    cached: bool = True  # PyTorch: whether it follows the schedule; for engines the artefact says so
    backend: str | None = None  # engines: instead of the artefact's own


class BenchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What every contender is asked to make: `images` at a time; None leaves the choice to the artefact."""

    images: int = 1
    seed: int = 0
    guidance_scale: float | None = None
    threads: int = msgspec.field(default_factory=machine.cores)
    device: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("images", self.images, 1), ("threads", self.threads, 1), ("seed", self.seed, 0)):
            if value < least:
                raise UsageError(f"{name}={value}: must be at least {least}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a contender did, as its own process saw it.  Only what differs in nothing but `COMPARED` may be compared."""

    runtime: str
    passes: tuple[str, ...]
    link: str
    schedule: str  # a hash of what every call computes
    computed: float  # the share of all sublayers
    weights: str  # a hash of the weights' file
    random_weights: bool
    model: str
    precision: str
    images: int
    calls: int
    steps: int
    sampler: str
    guidance: str
    guidance_scale: float
    request: str  # a hash of what the images are of
    seed: int
    threads: int
    device: str


COMPARED = frozenset({"runtime", "passes", "link", "schedule", "computed"})


OURS = "ours"
PYTORCH: Mapping[str, tuple[Literal["pytorch", "torch-compile"], bool]] = {
    "pytorch": ("pytorch", False),
    "pytorch-cached": ("pytorch", True),
    "torch-compile": ("torch-compile", False),
    "torch-compile-cached": ("torch-compile", True),
}
# Our engines with something left out, as options of the compiler; the first is always offered, the others with --passes.
TWINS: Mapping[str, Mapping[str, bool]] = {
    "uncached": {"cache": False},
    "uncached-no-hoist": {"cache": False, "hoist": False},
    "no-fold": {"fold": False},
}


def backends() -> list[str]:
    """Those that run any artefact."""
    return sorted(loaded())


def known() -> tuple[str, ...]:
    """What is measured where nobody says with what."""
    return (*PYTORCH, *backends(), "uncached")


def chosen(names: str | Sequence[str] | None) -> list[str]:
    """The contenders of a list, or of text like "pytorch,uncached"; all that are known without one.  Raises UsageError."""
    if names is None:
        return list(known())
    listed = names.split(",") if isinstance(names, str) else names
    contenders = [name.strip() for name in listed if name.strip()]
    offered = dict.fromkeys((*known(), *TWINS))
    for name in contenders:
        if name not in offered:
            raise UsageError(f"against={name!r}: known are {', '.join(offered)}")
    return list(dict.fromkeys(contenders))


def twins_of(manifest: Manifest) -> list[str]:
    """The twins that isolate a pass, for the passes that the artefact was compiled with."""
    passes = {"hoist": "uncached-no-hoist", "fold": "no-fold"}
    return [passes[name] for name in manifest.passes if name in passes]
