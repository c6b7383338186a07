"""Files that are what they were: sizes, hashes, and no data outside the artefact."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from ..errors import ArtefactError
from ..weights import layout
from . import damage
from .records import FILE, FileInfo

# external data in an ONNX file: an entry with the key `location`, then its value with tag and length (protobuf)
LOCATION, WEIGHTS = b"location", b"\x12" + bytes([len(layout.WEIGHTS)]) + layout.WEIGHTS.encode()


def check_file(folder: Path, name: str, info: FileInfo, hashed: bool) -> None:
    """Compare a file with what the manifest says.  A link is as good as what it leads to, if that is hashed."""
    path = folder / name
    if not NAME.fullmatch(name):
        raise ArtefactError(f"{folder / FILE} names {name!r}, which is outside the artefact: do not use this artefact")
    if not inside(folder, name):
        raise ArtefactError(f"{path} is in a folder that is a link: put the folder itself there (cp -rL)")
    damage.check_regular(path)
    if not hashed and leaves(folder, path):
        raise ArtefactError(f"{path} is a link out of the artefact, to what would not be checked: load it without verify=False")
    try:
        same = path.stat().st_size == info.bytes and not (hashed and sha256(path) != info.sha256)
    except OSError as error:
        raise ArtefactError(f"{path} {damage.unreadable(error)}") from None
    if not same:
        raise mismatch(path, info)


def leaves(folder: Path, path: Path) -> bool:
    """Whether a file is, through links, not in its folder."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def mismatch(path: Path, info: FileInfo) -> ArtefactError:
    return ArtefactError(f"{path} {damage.changed(path, info)}")


def verified(path: Path, info: FileInfo) -> bytes:
    """The bytes of a file, which are those that were hashed: what a library is given cannot be changed after the check."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} {damage.unreadable(error)}") from None
    if len(data) != info.bytes or hashlib.sha256(data).hexdigest() != info.sha256:
        raise mismatch(path, info)
    return data


def check_closed(data: bytes, path: Path) -> bytes:
    """The bytes of an ONNX model, which may keep data in the artefact's weights and in no other file.

    Not every ONNX reader refuses other files, and they know no way to ask: every place that says where data lies is looked at.
    """
    if data.count(LOCATION) != data.count(LOCATION + WEIGHTS):
        raise ArtefactError(f"{path} keeps data outside {layout.WEIGHTS}: do not use this artefact")
    return data


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # type: ignore[no-untyped-def]  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def info(path: Path) -> FileInfo:
    return FileInfo(bytes=path.stat().st_size, sha256=sha256(path))


# What files of an artefact are called; nothing that means another folder, a drive or a device on any system.
NAME = re.compile(r"(?!\.)[\w.+-]+(/(?!\.)[\w.+-]+)*", re.ASCII)


def inside(folder: Path, name: str) -> bool:
    """Whether a name from a manifest is a plain one, and in no folder that is a link.

    The file itself may be one: a new file takes the link's place, and what it leads to stays as it is.
    """
    parents = list(PurePosixPath(name).parents)[:-1]
    return bool(NAME.fullmatch(name)) and not any((folder / part).is_symlink() for part in parents)
