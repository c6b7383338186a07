"""What the compiler hands back: a folder, and what its manifest says."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artefact import store
from ..artefact.manifest import Manifest
from .request import folder

if TYPE_CHECKING:
    from .pipeline import Pipeline


@dataclass(frozen=True, repr=False)
class Artefact:
    """A compiled model on disk.  It stands wherever a path may, so every function that takes a folder takes it, too.

    `manifest` is what was written, when it was written: files that change later are found when they are loaded.
    """

    path: Path
    manifest: Manifest = field(compare=False)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Artefact:
        """The artefact in a folder, without a look at its files but the manifest.  Raises ArtefactError."""
        return Artefact(folder(path), store.read(folder(path), verify=False))

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(file.bytes for file in self.manifest.files.values())

    @property
    def random_weights(self) -> bool:
        """Whether its weights are random, so that its images mean nothing."""
        return self.manifest.weights is not None and self.manifest.weights.random is not None

    def load(self, **options: Any) -> Pipeline:
        """The same as `l2c_export.load` with this folder."""
        from .pipeline import load

        return load(self.path, **options)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        manifest = self.manifest
        weights = "no weights yet" if manifest.weights is None else "random weights" if self.random_weights else "linked"
        name = manifest.model.name or manifest.model.family
        return (
            f"<Artefact {self.path}: {name}, {len(manifest.calls)} calls, {len(manifest.step_graphs)} graphs, "
            f"{manifest.precision}, batch {manifest.batch}, {weights}, {self.bytes / 2**20:.1f} MB>"
        )
