"""Artefacts that are part of the package, and are called by their names: `l2c run emoji`, `l2c_export.load("emoji")`.

One is a folder of the package with its artefact in `engines/`, beside whatever says where it comes from.  Nothing is written
there: the package may be installed where nobody can write, and is everybody's.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from ..support.log import LOG
from .records import FILE

HOME, ENGINES = Path(__file__).absolute().parents[1], "engines"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
UNFINISHED = ".l2c-ready"  # what a killed writer leaves of an artefact that is complete


def named(name: str) -> Path | None:
    """The folder of the artefact that comes under this name; None if none does."""
    folder = HOME / name / ENGINES
    return folder if NAME.fullmatch(name) and (folder / FILE).is_file() else None


def names() -> list[str]:
    """Those that artefacts come under."""
    return sorted(folder.name for folder in HOME.iterdir() if named(folder.name))


def place(name_or_path: Any) -> Any:
    """The folder that is meant by what a user gives: a path as it is, or the name of an artefact that comes with the package.

    An artefact of that name in the current folder is the user's own, and is meant; which of the two it is is said.
    """
    ours = named(name_or_path) if isinstance(name_or_path, str) else None
    if ours is None:
        return name_or_path
    if any(os.path.lexists(Path(name_or_path) / name) for name in (FILE, UNFINISHED)):
        LOG.warning("%s: the artefact in this folder, not the one that comes with l2c-export (%s)", name_or_path, ours)
        return name_or_path
    return ours


def refuse_changes(folder: Path) -> None:
    """Raise ArtefactError for an artefact of the package."""
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(HOME)):
        raise ArtefactError(f"{folder} comes with l2c-export and stays as it is: copy it (cp -r) and change the copy")
