"""The artefact's index: what was compiled, from what, and how the runtime is to run it.

Format versions, newest first:
    2  2026-11  components, programs over them, and where every value comes from
    1  2026-11  first

The policy.  A release writes the newest version and reads all of them: `upgrade.py` makes the newest of an older one, to the
same images.  A field with a default that means what was before may be added without a new version: older artefacts have
the default, older releases name the field that they do not know.  All else is a new version.
tests/golden holds an artefact of every version, with what it made; `python tests/golden/make.py` writes one, which
is done when the version changes and at no other time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from ..errors import UsageError
from ..ir.graph import Node
from ..ir.inputs import RequestInput
from .compiled import Compiled
from .record import Record
from .records import (
    Build,
    DecoderRecord,
    DenoiserRecord,
    FileInfo,
    FingerprintRecord,
    GraphRecord,
    Guidance,
    PieceRecord,
    ProgramRecord,
)
from .text import TextRecord

VERSION = 2
LINKS = ("shared", "static")


def program_name(steps: int, size: str | None) -> str:
    """What a program is called; `size` is that of its latents, where it is not the first program's."""
    return str(steps) if size is None else f"{steps}@{size}"


class Manifest(Record, frozen=True, kw_only=True):
    """Everything about an artefact but the bytes of its files.

    The components are the denoiser and, where there are some, a decoder and text encoders; a program is a loop over the
    denoiser's graphs; a build holds engines of a library for denoiser and decoder.
    """

    format: Literal["l2c-export"] = "l2c-export"
    version: Literal[2] = 2
    tool: str  # what wrote it
    inputs: tuple[RequestInput, ...]  # what a request says besides the noise
    guidance: Guidance
    precision: str
    batch: int  # images; the model sees twice as many with guidance
    backend: str  # that was asked for
    link: Literal["shared", "static"]
    passes: tuple[str, ...]
    denoiser: DenoiserRecord
    text: TextRecord | msgspec.UnsetType = msgspec.UNSET  # what makes a request of a prompt
    decoder: DecoderRecord | msgspec.UnsetType = msgspec.UNSET
    # By the number of steps, those of further sizes with the size behind; the first is the one that runs where none is named.
    programs: dict[str, ProgramRecord]
    fingerprint: FingerprintRecord | msgspec.UnsetType = msgspec.UNSET  # what can be checked without PyTorch
    builds: dict[str, Build] = msgspec.field(default_factory=dict)
    files: dict[str, FileInfo]
    checksum: str = ""  # sha256 of this record as JSON with an empty checksum

    def program(self, steps: int | None = None, axes: tuple[int, ...] | None = None) -> Compiled:
        """The program with so many steps for latents of these axes, each by default the first's.

        Raises UsageError where there is none.
        """
        first = next(iter(self.programs.values()))
        size = first.size if axes is None else "x".join(map(str, axes))
        name = program_name(first.steps if steps is None else steps, None if size == first.size else size)
        if name not in self.programs:
            able = " or ".join(str(program.steps) for program in self.programs.values() if program.size == first.size)
            raise UsageError(f"steps={steps}: this artefact was compiled for {able} steps: use those, or compile it again")
        return self._compiled(name)

    def _compiled(self, name: str) -> Compiled:
        program = self.programs[name]
        size = self.denoiser.sizes[program.size]
        return Compiled(name, program, size, self.denoiser, self.inputs, self.guidance, self.precision, self.batch)

    def all_programs(self) -> list[Compiled]:
        return [self._compiled(name) for name in self.programs]

    def piece(self, record: PieceRecord, segment: str) -> tuple[Compiled, Node] | None:
        """The call of a segment that a piece repeats, with a program of its size; None if there is no such call."""
        calls = ((compiled, compiled.node(record, segment)) for compiled in self.all_programs())
        return next(((compiled, node) for compiled, node in calls if node), None)

    def all_graphs(self) -> dict[str, GraphRecord]:
        """Those of all sizes, by name."""
        return {name: graph for size in self.denoiser.sizes.values() for name, graph in size.graphs.items()}

    def without_builds(self, names: Collection[str]) -> Manifest:
        """The same artefact less some builds and their files."""
        dropped = {file for name in names if name in self.builds for file in self.builds[name].engines.values()}
        builds = {name: build for name, build in self.builds.items() if name not in names}
        files = {name: file for name, file in self.files.items() if name not in dropped}
        return msgspec.structs.replace(self, builds=builds, files=files)

    @property
    def bytes(self) -> int:
        """The size of all its files but the manifest's own."""
        return sum(file.bytes for file in self.files.values())
