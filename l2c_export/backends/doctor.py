"""What works on this machine: the backends, the packages that other commands need, and the cache."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import L2CError
from ..support import cache
from ..support.extras import needs
from ..support.machine import version
from .choose import open_backend
from .contract import Request
from .descriptor import Descriptor, Site
from .descriptors import sites

# a package, what is imported of it, the extra that installs it, and what it is for
PACKAGES = (
    ("torch", "torch", "export", "l2c-export, l2c verify, l2c train"),
    ("onnx", "onnx", "export", "l2c-export"),
    ("Pillow", "PIL.Image", "images", "l2c run --out x.png"),
)


@dataclass(frozen=True)
class Finding:
    name: str  # of the backend, and the device if it is not the usual one; or of what else is looked at
    works: bool
    version: str | None  # None if it is not known
    note: str


def doctor() -> tuple[Finding, ...]:
    """What works on this machine, by trying: every backend is opened, every package imported, and the cache looked at."""
    return (*(_backend(*pair) for pair in sites()), _python(), *map(_package, PACKAGES), _cache())


def any_backend(findings: Sequence[Finding]) -> bool:
    """Whether one of the backends works."""
    return any(finding.works for finding in findings[: len(sites())])


def _backend(backend: Descriptor, site: Site) -> Finding:
    device = backend.asked(site)
    name, versions = f"{backend.name} {device}" if device else backend.name, (version(s.package) for s in backend.sites[::-1])
    release = next((number for number in versions if number), None)
    try:
        return Finding(name, True, release, open_backend(backend.name, Request(device=device)).backend.describe())
    except L2CError as error:
        builds = "; l2c_export.build works here all the same" if backend.targets and release else ""
        return Finding(name, False, release, f"{error}{builds}")


def _python() -> Finding:
    return Finding("Python", True, platform.python_version(), sys.executable)


def _package(package: tuple[str, str, str, str]) -> Finding:
    name, module, extra, purpose = package
    try:
        needs(module, extra)
    except L2CError as error:
        return Finding(name, False, version(name), f"{error} ({purpose})")
    return Finding(name, True, version(name), f"for {purpose}")


def _cache() -> Finding:
    """Its folder, what it holds and what is free on its disk."""
    folder = cache.cache_folder(".")
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    size = sum(entry.bytes for entry in cache.entries())
    free = f"{shutil.disk_usage(place).free / 2**30:,.1f} GB free on the disk"
    held = f"{folder}: {size / 2**20:,.1f} MB of at most {cache.LIMIT >> 20:,} MB, {free}"
    usable = place.is_dir() and os.access(place, os.W_OK)
    return Finding("cache", usable, None, held if usable else f"{held}; it cannot be written: set L2C_CACHE to another folder")
