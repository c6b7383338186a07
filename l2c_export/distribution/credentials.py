"""Who we are to a registry of containers: what `docker login` or `podman login` has kept."""

from __future__ import annotations

import base64
import binascii
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..errors import RunError
from ..support.files import small

DOCKER_HUB = "https://index.docker.io/v1/"  # what docker calls its own registry there


def credentials(host: str) -> tuple[str, str] | None:
    """Name and password for a host, if there are any.  Raises RunError where what keeps them fails."""
    keys = (host, f"https://{host}", *((DOCKER_HUB,) if host == "registry-1.docker.io" else ()))
    for config in _configs():
        for key in keys:
            helper = config.get("credHelpers", {}).get(key)
            kept = config.get("auths", {}).get(key)
            if helper or (config.get("credsStore") and kept is not None):
                return _of_helper(helper or config["credsStore"], key)
            if kept and kept.get("auth"):
                return _decoded(host, kept["auth"])
    return None


def _configs() -> Iterator[dict[str, Any]]:
    """podman's file where it is named, then docker's."""
    named = os.environ.get("REGISTRY_AUTH_FILE")
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    for path in [*([Path(named)] if named else []), folder / "config.json"]:
        try:
            yield msgspec.json.decode(small(path), type=dict[str, Any])
        except OSError:
            continue
        except msgspec.MsgspecError as error:
            raise RunError(f"{path}: is no JSON of docker: {error}: log in again") from None


def _decoded(host: str, kept: str) -> tuple[str, str]:
    try:
        name, _, password = base64.b64decode(kept, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise RunError(f"{host}: what docker has kept for it cannot be read: docker login {host}") from None
    return name, password


def _of_helper(helper: str, key: str) -> tuple[str, str]:
    """What a program that keeps credentials says, by its protocol: a host in, JSON out."""
    try:
        done = subprocess.run([f"docker-credential-{helper}", "get"], input=key, capture_output=True, text=True, timeout=60)
        told = msgspec.json.decode(done.stdout, type=dict[str, str]) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError):
        told = {}
    if not told:
        raise RunError(f"{key}: docker-credential-{helper} has nothing for it: docker login {key}")
    return told["Username"], told["Secret"]
