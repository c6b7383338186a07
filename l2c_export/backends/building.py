"""What a builder of engines is: it turns ONNX files into plans, ahead of time, and perhaps for GPUs that are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

Shape = tuple[int, ...]


class Range(NamedTuple):
    """Sizes of a batch axis that an engine must run: fewest, most frequent, most."""

    least: int
    usual: int
    most: int


class Port(NamedTuple):
    """An input of an engine; a batch axis is named in its shape ("B" images, "R" rows)."""

    name: str
    shape: tuple[int | str, ...]

    def at(self, sizes: Mapping[str, int]) -> Shape:
        return tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)


class BuildSettings(NamedTuple):
    """What a user may choose about building; None leaves it to the library."""

    precision: str = "fp32"
    targets: tuple[str, ...] = ()  # GPU architectures, sm86 ..; without any, this machine's
    level: int | None = None  # of builder optimisation
    version_compatible: bool = False
    hardware_compatible: bool = False


class EngineBuilder(Protocol):
    """One library and one set of settings, for any number of engines."""

    gpus: tuple[str, ...]  # the architectures that it builds for
    card: str  # the GPU's name if it is the one in this machine: what was measured is not true of all of its architecture
    known: bytes  # the timing cache of builds before this one
    seconds: dict[str, float]  # what the plan of every model took

    @property
    def version(self) -> str:
        """The library's."""

    @property
    def identity(self) -> tuple[object, ...]:
        """All that its plans depend on but the model and the GPU."""

    def build(self, model: Path, ports: Sequence[Port], ranges: Mapping[str, Range], once: bool = False) -> bytes:
        """The plan of an ONNX model; one that runs `once`, before the loop, is not tuned.

        Raises BackendError naming the model and the node that is not supported.
        """

    def timing_cache(self) -> bytes:
        """What was measured so far; it makes the next build faster.  Nothing new is empty."""
