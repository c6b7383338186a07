"""Backends: one file per library, all behind one small contract.

A backend turns a model file into an `Engine`; binding an engine to arrays gives a function of no arguments that
runs it.  Binding happens once per batch size, running once per call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from ..errors import BackendError, MissingExtra

Arrays = Mapping[str, np.ndarray]
Run = Callable[[], None]

BACKENDS = ("onnxruntime",)


class Engine(Protocol):
    """A compiled segment or graph."""

    def bind(self, inputs: Arrays, outputs: Arrays) -> Run:
        """A function that reads `inputs` and fills `outputs` in place, whenever it is called.

        The arrays must stay where they are.  The engine runs on any batch; their shapes say which.
        """


class Backend(Protocol):
    """A library that runs engines on one device, with a fixed number of threads."""

    name: str

    def describe(self) -> str:
        """One line for people: devices and threads."""

    def load(self, path: Path, weights: Arrays) -> Engine:
        """Compile a model file; `weights` are the arrays behind the external data that it names, if any."""


def open_backend(name: str, device: str | None = None, threads: int | None = None) -> Backend:
    """The backend of that name.  Raises BackendError if it is unknown, MissingExtra if it is not installed."""
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: known are {', '.join(BACKENDS)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}_backend")
    backend: Backend = module.open_backend(device or "cpu", threads)
    return backend


def needs(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == package.partition(".")[0]:
            raise MissingExtra(package, extra) from None
        raise
