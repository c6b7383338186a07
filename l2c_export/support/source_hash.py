"""The package's own source in the key of a cache: what was made by code that has changed since is made again."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@functools.cache
def source_hash(*parts: str, root: Path = PACKAGE) -> str:
    """The SHA-256 of every Python file of some folders, or of single files, by path below `root` and content.

    The folders are listed when it is first asked, so a new file counts by being there; asked again it costs nothing.
    """
    digest = hashlib.sha256()
    for part in sorted(parts):
        if not (files := python_files(root / part)):
            raise FileNotFoundError(f"{root / part}: no source of the package")
        for file in files:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def python_files(path: Path) -> list[Path]:
    """Those of a folder and of all below it, in order of their names; a file is itself."""
    return [path] if path.is_file() else sorted(path.rglob("*.py"))
