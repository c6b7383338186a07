"""Who may ask: the names by which this server is called, the pages that may call it, and the keys that open it.

A page of another site reaches a server on the loopback in two ways: it posts across sites, which its Origin shows; or its name
is made to mean 127.0.0.1 (DNS rebinding), which the Host shows.  An address as Host is no name that could be rebound.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from .answers import Refusal

OPEN = ("/", "/page.js", "/page.css", "/favicon.svg", "/health/live", "/health/ready")  # without a key


class Access:
    """`hosts` are names besides localhost; without `keys` everybody who reaches the server may ask."""

    def __init__(self, hosts: Iterable[str], keys: Iterable[str]) -> None:
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def has_keys(self) -> bool:
        return bool(self._keys)

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raises Refusal for a request that is not for this server, is another site's, or has no key."""
        host = headers.get("host", "")
        if not self._ours(host):
            raise Refusal(403, "invalid_request_error", "the Host of this request is no name of this server: see --allow-host",
                          "wrong_host")  # fmt: skip
        origin = headers.get("origin")
        if origin is not None and not self._same(origin, host):
            raise Refusal(403, "invalid_request_error", "a page of another site may not ask this server", "wrong_origin")
        if self._keys and path not in OPEN and not self._opens(headers.get("authorization", "")):
            raise Refusal(401, "invalid_request_error", "show a key of this server: Authorization: Bearer KEY",
                          "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})  # fmt: skip

    def _ours(self, host: str) -> bool:
        name = _name(host)
        if name is None:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _same(self, origin: str, host: str) -> bool:
        """Whether a page's origin is this server, or one of its names where something in between has changed the Host."""
        try:
            parts = urlsplit(origin)
            name = parts.hostname
        except ValueError:
            return False
        own = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
        return own or (parts.scheme == "https" and name in self._hosts - {"localhost"})

    def _opens(self, authorization: str) -> bool:
        """Whether it shows one of the keys, in a time that says nothing of them."""
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        matches = False
        for known in self._keys:
            matches |= hmac.compare_digest(digest, known)
        return matches and scheme.lower() == "bearer"


def _name(host: str) -> str | None:
    """The name or address of a Host, without its port."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None
