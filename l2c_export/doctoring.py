"""Which backends work on this machine."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from .backends import BACKENDS, open_backend
from .errors import L2CError


@dataclass(frozen=True)
class Finding:
    name: str
    works: bool
    version: str
    note: str


def examine() -> list[Finding]:
    """Try to open every backend."""
    findings = []
    for name in BACKENDS:
        try:
            backend = open_backend(name).backend
        except L2CError as error:
            findings.append(Finding(name, False, "-", str(error)))
        else:
            findings.append(Finding(name, True, _version(name), backend.describe()))
    return findings


def _version(name: str) -> str:
    for package in (name, f"{name}-gpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"
