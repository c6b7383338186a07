"""How we start Ray: what it reads from the environment, some of it once, when it is imported; and one of this machine alone."""

from __future__ import annotations

import os
import secrets
from typing import Any

STORE = 256 * 2**20  # bytes of its object store: an image is small, and the name of a shard smaller
# arguments of `ray.init`
ALONE: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE, "_node_ip_address": "127.0.0.1"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_worker_niceness": "0",
         "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # fmt: skip


def prepare(alone: bool = True) -> None:
    """Nothing is reported, no bar is drawn, nobody is nice, unless the user says otherwise there.

    Ray's own ports are open on every interface, whatever its address is.  One that is `alone`, and no part of somebody's
    cluster, gets a token, with which they take its own calls only.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if alone and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
