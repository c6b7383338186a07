"""Which backends work on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import L2CError
from ..support.machine import version
from .choose import open_backend
from .contract import Request

PLACES = (("tensorrt", None), ("tensorrt-rtx", None), ("onnxruntime", "cuda"), ("openvino", None), ("onnxruntime", None))


@dataclass(frozen=True)
class Finding:
    name: str  # of the backend, and the device if it is not the usual one
    works: bool
    version: str | None  # None if it is not known
    note: str


def doctor() -> tuple[Finding, ...]:
    """What works on this machine, by trying: every backend is opened."""
    findings = []
    for backend, device in PLACES:
        name = f"{backend} {device}" if device else backend
        try:
            found = open_backend(backend, Request(device=device)).backend
        except L2CError as error:
            builds = "; l2c_export.build works here all the same" if backend == "tensorrt-rtx" and version(backend) else ""
            findings.append(Finding(name, False, version_of(backend), f"{error}{builds}"))
        else:
            findings.append(Finding(name, True, version_of(backend), found.describe()))
    return tuple(findings)


def version_of(backend: str) -> str | None:
    """What is installed, whether it works or not."""
    return version(backend) or version(f"{backend}-gpu")
