"""Where build outputs are kept between runs: exported segments, compiled models, timing caches."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import platformdirs


def cache_folder(kind: str) -> Path:
    """The folder of one kind of build output, in $L2C_CACHE or the user's cache folder."""
    return Path(os.environ.get("L2C_CACHE") or platformdirs.user_cache_dir("l2c-export")) / kind


def writable_folder(kind: str) -> Path | None:
    """The same folder, made if need be; None where it cannot be written, as on a device with a read-only system."""
    folder = cache_folder(kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def kept(path: Path) -> bytes:
    """What `keep` has written there; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def keep(path: Path, data: bytes) -> None:
    """Write a build output in one step; one that cannot be written only costs time."""
    if not data:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(data)
        os.replace(partial, path)
