"""Where build outputs are kept between runs: exported segments, compiled models, timing caches."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder(kind: str) -> Path:
    """The folder of one kind of build output, in $L2C_CACHE or the user's cache folder."""
    return Path(os.environ.get("L2C_CACHE") or platformdirs.user_cache_dir("l2c-export")) / kind
