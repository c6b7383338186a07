"""What has become of a file of an artefact on its way: links that lead nowhere, other names, other bytes; each in one line."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtefactError
from ..support import file_kind

if TYPE_CHECKING:
    from .records import FileInfo

AGAIN = "copy the artefact again, or run l2c-export again"
MOST_TEXT = 2**20  # bytes of a file whose line ends are looked at


def check_regular(path: Path) -> None:
    """Raise ArtefactError for what is no regular file, nor a link to one, without opening it: a pipe would never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ArtefactError(f"{path} {absent(path, error)}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise ArtefactError(f"{path} is {'a link to ' if path.is_symlink() else ''}{kind}, not a file: {AGAIN}")


def absent(path: Path, error: OSError) -> str:
    """Why there is no file of this name."""
    if error.errno == errno.ELOOP:
        return f"is a link that leads back to itself: {AGAIN}"
    if error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return unreadable(error)
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}, which is not there: copy what the links lead to (cp -rL)"
    if other := _other_case(path):
        return f"is missing, but there is {other}: its name has changed on the way; rename it, or {AGAIN}"
    return f"is missing: the artefact is incomplete; {AGAIN}"


def unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}: check its permissions and the disk"


def _other_case(path: Path) -> Path | None:
    """A file or folder that differs from the first missing part of a path by upper and lower case alone."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        return next((entry for entry in missing.parent.iterdir() if entry.name.lower() == missing.name.lower()), None)
    except OSError:
        return None


def changed(path: Path, info: FileInfo) -> str:
    """What is wrong with a file that is not the one `info` describes."""
    try:
        with open(path, "rb") as file:
            head = file.read(MOST_TEXT)
        size = os.stat(path).st_size
    except OSError as error:
        return unreadable(error)
    if other_kind := stand_in(head):
        return f"is {other_kind}"
    if size <= MOST_TEXT and hashlib.sha256(head.replace(b"\r", b"")).hexdigest() == info.sha256:
        return f"has other line ends: switch off what changes them (git config core.autocrlf false); {AGAIN}"
    if size != info.bytes:
        return f"has {size} bytes, expected {info.bytes}: {AGAIN}"
    return f"does not match its hash: the artefact is damaged; {AGAIN}"


def stand_in(head: bytes) -> str | None:
    """What a file is that stands in place of another one, by its first bytes, and what to do."""
    kind = file_kind.of_bytes(head)
    return f"{kind.words}: {kind.remedy}" if kind in (file_kind.POINTER, file_kind.PAGE) else None
