"""What is made once and kept between runs: engines, compiled models, timing caches.

An entry is called after the hash of everything that it depends on, begins with the hash of its own bytes, and is written
whole or not at all: a build that was killed finds what it had finished, and an entry that was damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import platformdirs

from .files import replacing

LIMIT = 10 * 2**30  # bytes of all entries; those that were used longest ago go first
# built, compiled when they were loaded; the last two are the libraries' own files
KINDS = ("plans", "engines", "timing", "kernels")
DIGEST = 32


class Entry(NamedTuple):
    kind: str
    path: Path
    bytes: int
    used: float  # seconds since 1970


def cache_folder(kind: str) -> Path:
    """The folder of one kind of build output, in $L2C_CACHE or the user's cache folder."""
    return Path(os.environ.get("L2C_CACHE") or platformdirs.user_cache_dir("l2c-export")) / kind


def cached(kind: str, key: Sequence[object], make: Callable[[], bytes]) -> bytes:
    """What `make` returns, which depends on nothing but `key` (anything that has a JSON form)."""
    path = cache_folder(kind) / hashlib.sha256(msgspec.json.encode(key)).hexdigest()
    data = _read(path)
    if data is None:
        data = make()
        keep(path, hashlib.sha256(data).digest() + data)
        prune(LIMIT)
    return data


def _read(path: Path) -> bytes | None:
    """An entry, marked as used; None if there is none, or if it is not what was written."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    data = stored[DIGEST:]
    if hashlib.sha256(data).digest() != stored[:DIGEST]:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return data


def entries() -> Iterator[Entry]:
    for kind in KINDS:
        for path in _below(cache_folder(kind)):
            with contextlib.suppress(OSError):  # another process has removed it
                if path.is_file() and not path.is_symlink():
                    status = path.stat()
                    yield Entry(kind, path, status.st_size, status.st_mtime)


def _below(folder: Path) -> list[Path]:
    """Everything in a folder; nothing of one that may not be read."""
    with contextlib.suppress(OSError):
        return list(folder.rglob("*"))
    return []


def prune(limit: int) -> list[Entry]:
    """Remove the entries that were used longest ago until the rest has at most `limit` bytes; returned is what went."""
    oldest = sorted(entries(), key=lambda entry: entry.used)
    excess, removed = sum(entry.bytes for entry in oldest) - limit, []
    for entry in oldest:
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            entry.path.unlink()
            excess -= entry.bytes
            removed.append(entry)
    return removed


def kept(path: Path) -> bytes:
    """What `keep` has written there; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def keep(path: Path, data: bytes) -> None:
    """Write a library's own file in one step; one that cannot be written only costs time."""
    if not data:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
