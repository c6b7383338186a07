"""Where build outputs are kept between runs: exported segments, compiled models, timing caches."""

from __future__ import annotations

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
