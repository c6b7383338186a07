"""How an artefact's folder changes: from one whole artefact to another, whenever the power goes.

What is new is written to a folder of its own inside the artefact's (`.l2c-partial-*`), manifest and all.  When it is
complete and on the disk it is renamed to `.l2c-ready`: that is the moment at which the artefact changes.  Moving its files to
their places, the manifest last, can then be interrupted and finished by whoever comes next, readers included.

So at every moment a folder holds the old artefact, or the new one perhaps not moved yet, and never something between.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import ArtefactError
from ..support.files import Report, locked, named, small, sync, sync_tree
from . import shipped
from .damage import check_regular
from .integrity import inside
from .records import FILE

TOLERATED = {"README.md", ".gitignore", ".gitattributes"}  # what may lie in an output folder that is not an artefact
# What file managers, git and a hub's client leave in any folder; it stays there.
LITTER = re.compile(r"(.*/)?(\.DS_Store|\._[^/]*|Thumbs\.db|desktop\.ini)|(__MACOSX|\.cache|\.git)(/.*)?")
PARTIAL, READY = ".l2c-partial-", shipped.UNFINISHED


class AnyVersion(msgspec.Struct):
    """What manifests of all versions have in common: enough to replace an artefact that cannot be read."""

    format: Literal["l2c-export"]
    files: dict[str, Any]


def ours(folder: Path) -> set[str]:
    """The files of the artefact in `folder`, of any format version, if it holds one."""
    try:
        check_regular(folder / FILE)
        names = msgspec.json.decode(small(folder / FILE), type=AnyVersion).files
    except (ArtefactError, OSError, msgspec.MsgspecError, RecursionError, ValueError):
        return set()
    return {name for name in names if inside(folder, name) and name not in TOLERATED}


def check_target(folder: Path, report: Report = id, option: str = "out") -> None:
    """Refuse an output folder that holds anything but artefacts of ours, when nobody is writing to it any more.

    `option` is the parameter that asked for it, if one did.
    """
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"{named(folder, option)}: is a file, not a folder")
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK):
        raise ArtefactError(f"{named(folder, option)}: {place} cannot be written to: choose another folder")
    if folder.exists():
        with writing(folder, named(folder, option)), locked(folder, report):
            _finish(folder)
            _refuse_foreign(folder, option)


def _refuse_foreign(folder: Path, option: str) -> None:
    own = {FILE, *TOLERATED, *ours(folder)}
    others = [path.parent for path in folder.glob(f"*/{FILE}") if not path.parent.is_symlink() and ours(path.parent)]
    for path in sorted(folder.rglob("*")):
        if any(path.is_relative_to(other) for other in others):  # engines/demo in engines/
            continue
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink() and any(o.startswith(name + "/") for o in own):
            continue
        if name not in own and not name.startswith(PARTIAL) and not LITTER.fullmatch(name):
            raise ArtefactError(f"{named(folder, option)}: holds {name}, which is not ours: choose an empty folder")


@contextlib.contextmanager
def staged(folder: Path, report: Report = id, option: str = "out") -> Iterator[Path]:
    """A folder to write a whole artefact to; it replaces the one in `folder` when the block ends without an error.

    After an error nothing has changed.  Another writer waits for this one.
    """
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"{named(folder, option)}: is a file, not a folder")
    existed = folder.exists()
    try:
        with writing(folder, named(folder, option)), _stage(folder, report, True, option) as stage:
            yield stage
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # it holds something, or is gone
                folder.rmdir()


@contextlib.contextmanager
def changed(folder: Path, report: Report = id) -> Iterator[Path]:
    """The same for some files of an artefact and its new manifest; files that the manifest does not list any more go.

    Raises ArtefactError for one that comes with the package.
    """
    shipped.refuse_changes(folder)
    with writing(folder, str(folder), "check the disk"), _stage(folder, report, False, "") as stage:
        yield stage


@contextlib.contextmanager
def writing(folder: Path, what: str, remedy: str = "choose another folder") -> Iterator[None]:
    """A disk that is full or read-only is an error of one line, and so is a file elsewhere that cannot be read."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and not Path(error.filename).absolute().is_relative_to(folder.absolute()):
            raise ArtefactError(f"{error.filename}: {error.strerror or error}: check the file and its disk") from None
        raise ArtefactError(f"{what}: cannot be written: {error.strerror or error}: {remedy}") from None


@contextlib.contextmanager
def _stage(folder: Path, report: Report, whole: bool, option: str) -> Iterator[Path]:
    with locked(folder, report) as alone:
        _finish(folder)
        for remainder in folder.glob(f"{PARTIAL}*") if alone else ():  # by somebody who was killed
            shutil.rmtree(remainder, ignore_errors=True)
        if whole:
            _refuse_foreign(folder, option)
        stage = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
        try:
            yield stage
            _names(stage, folder)
            sync_tree(stage)
            os.rename(stage, folder / READY)
            sync(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        _finish(folder)


def recover(folder: Path) -> None:
    """Finish what a killed writer has left, if there is anything; wait for one that is at it."""
    if not os.path.lexists(folder / READY):
        return
    try:
        with locked(folder):
            _finish(folder)
    except OSError as error:
        raise ArtefactError(
            f"{folder}: its replacement was interrupted and cannot be finished: {error.strerror or error}: "
            f"run l2c_export.inspect({str(folder)!r}) where it can be written"
        ) from None


def _finish(folder: Path) -> None:
    """Move what is ready to its place.  Every step may have been done before."""
    ready = folder / READY
    if ready.is_symlink():
        raise ArtefactError(f"{ready}: is a link, which no compiler makes: do not use this artefact")
    if (ready / FILE).is_file():
        names = _names(ready, folder)
        for name in sorted(ours(folder) - ours(ready)):
            _remove(folder, name)
        for name in sorted(names, key=lambda n: n == FILE):  # the manifest last
            if name == FILE:
                _sync_folders(folder)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(ready / name, folder / name)
        sync(folder)
    if ready.exists():
        shutil.rmtree(ready)


def _names(ready: Path, folder: Path) -> list[str]:
    """The files that are to be moved; every one must come to lie in the folder itself."""
    names = sorted(p.relative_to(ready).as_posix() for p in ready.rglob("*") if p.is_file())
    if outside := [name for name in names if not inside(folder, name)]:
        raise ArtefactError(f"{folder / outside[0]}: would be written outside the artefact, by a link or its name: remove that")
    return names


def _remove(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty yet, or the artefact's own folder
        (folder / name).parent.rmdir()


def _sync_folders(folder: Path) -> None:
    for path in {folder, *((folder / name).parent for name in ours(folder / READY))}:
        if path.is_dir():
            sync(path)
