"""What Ray reads from the environment, some of it once, when it is imported."""

from __future__ import annotations

import os
import secrets


def prepare() -> None:
    """Nothing is reported, nobody is nice, and no call is taken without a token, unless the user says otherwise there.

    Ray's own ports are open on every interface, whatever its address is; with the token they take calls of this fleet alone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
