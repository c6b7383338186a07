"""Artefacts as files."""

from __future__ import annotations

import shutil
from pathlib import Path

from recorded import GOLDEN as VERSIONS

from l2c_export.artefact import staging

GOLDEN = VERSIONS / "v2" / "engines"


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def replace(folder: Path, artefact: Path) -> None:
    """What a compiler does at its end: `made` takes the place of the artefact in `folder`."""
    with staging.staged(folder) as stage:
        shutil.copytree(artefact, stage, dirs_exist_ok=True)
