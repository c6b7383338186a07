"""Optional packages: imported when they are needed, and without reports to their makers."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from ..errors import BackendError, MissingExtra


def needs(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra installs it.

    Raises MissingExtra, or BackendError for one that is there without a library of the system that it needs.
    """
    try:
        with unreported():
            return importlib.import_module(package)
    except (ImportError, OSError) as error:
        root = package.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] == root:
            raise MissingExtra(package, extra) from None
        raise BackendError(f"{root} is installed, but does not load: {' '.join(str(error).split())}: mend it first") from None


def needs_compiler() -> None:
    """What compiling takes.  Raises MissingExtra."""
    for package in ("torch", "onnx"):
        needs(package, "export")


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """ONNX Runtime and OpenVINO decide on import whether they report their use, unless the user's environment has: not to.

    Otherwise they look hosts up and write to the user's home.  ONNX Runtime asks an environment variable; OpenVINO imports
    another package, and does without if it is missing.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # type: ignore[assignment]  # to import it is an ImportError now
    try:
        yield
    finally:
        if absent:
            sys.modules.pop(name, None)
