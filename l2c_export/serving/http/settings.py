"""What a server is told once, when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError

MOST_KEYS, LONGEST_KEY, SHORTEST_KEY = 1000, 512, 16


@dataclass(frozen=True)
class ServerSettings:
    """`hosts` are names, besides addresses and localhost, by which clients call this server."""

    host: str = "127.0.0.1"
    port: int = 8000
    hosts: tuple[str, ...] = ()
    max_queue: int = 64  # images, per model
    max_wait: float = 0.005  # seconds
    max_batch: int | None = None
    drain_seconds: float = 30.0
    keys: tuple[str, ...] = ()  # any of which a client has to show; none: everybody may ask
    trust_engines: bool = False  # at a reload

    @property
    def connections(self) -> int:
        """How many clients may be connected: those that wait for an image, and as many again that do not."""
        return 2 * self.max_queue + 64


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines and those that begin with # are none.  Raises UsageError."""
    try:
        lines = [line.strip() for line in path.read_text("ascii").splitlines()]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text of ASCII"
        raise UsageError(f"api_key_file={str(path)!r}: cannot be read ({why}): give a file with a key a line") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not 0 < len(keys) <= MOST_KEYS:
        raise UsageError(f"api_key_file={str(path)!r}: has {len(keys)} keys: give 1 to {MOST_KEYS}, one a line")
    if not all(SHORTEST_KEY <= len(key) <= LONGEST_KEY and key.isprintable() and " " not in key for key in keys):
        raise UsageError(
            f"api_key_file={str(path)!r}: a key has {SHORTEST_KEY} to {LONGEST_KEY} characters without spaces, and one of "
            f"these has not: make one with `openssl rand -hex 32`"
        )
    return keys
