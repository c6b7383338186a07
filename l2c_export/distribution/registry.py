"""What a registry can do, whichever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..artefact.manifest import Manifest
from ..artefact.records import FileInfo

DIGEST = "sha256:"


class Registry(Protocol):
    """One artefact in a registry.  Every method raises RunError in one line where the network or the registry fails."""

    def has(self, name: str, path: Path, info: FileInfo) -> bool:
        """Whether it keeps this file already."""

    def send(self, name: str, path: Path, info: FileInfo) -> None:
        """Give it a file."""

    def publish(self, data: bytes, manifest: Manifest) -> str:
        """Say, once all files are there, what the artefact is.  Returned is the address that means this one for ever."""

    def manifest(self) -> bytes:
        """The artefact's manifest.json.  Raises ArtefactError if what is there is none."""

    def fetch(self, name: str, path: Path, info: FileInfo) -> None:
        """Write a file; whether it is the right one is looked at by whoever asked."""
