"""Backends: one file per library, all behind one small contract.

A backend turns a segment into an `Engine`, or links a whole graph into one; binding an engine to arrays gives a function
of no arguments that runs it.  Binding happens once per batch size, running once per call.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import BackendError, L2CError, MissingExtra, UsageError
from ..program import Node

Arrays = Mapping[str, np.ndarray]
Run = Callable[[], None]
Nodes = tuple[Node, ...]

# Fastest first: this is the order in which "auto" tries them.
BACKENDS = ("openvino", "onnxruntime")
AUTO = "auto"
# What each can be asked for at all; whether this machine has it is found out when it is opened.
PRECISIONS = {"openvino": ("fp32", "bf16", "fp16"), "onnxruntime": ("fp32", "fp16")}


class Request(NamedTuple):
    """What is asked of a backend; None leaves the choice to it."""

    device: str | None = None
    threads: int | None = None
    precision: str = "fp32"


class SegmentFile(NamedTuple):
    """A compiled unit on disk: plain ONNX operators, with its inputs and outputs by name."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


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
        """One line for people: device, threads, precisions."""

    def load(self, segment: SegmentFile) -> Engine:
        """Compile a segment; its weights are inputs like any other."""

    def link(
        self,
        path: Path,
        nodes: tuple[Node, ...],
        segments: Mapping[str, SegmentFile],
        outputs: tuple[str, ...],
        weights: Arrays,
    ) -> Engine:
        """Compile a whole graph with its weights inside, all sharing the one copy given.

        `path` is the graph as one ONNX model; `nodes` say the same as calls of segments.
        """


class Opened(NamedTuple):
    backend: Backend
    why: str


def open_backend(name: str, request: Request = Request()) -> Opened:  # noqa: B008  (frozen)
    """The backend of that name, or with "auto" the fastest that works here.

    Raises BackendError if it is unknown or cannot do what is asked, MissingExtra if it is not installed.
    """
    if request.threads is not None and request.threads < 1:
        raise UsageError(f"--threads {request.threads}: must be at least 1")
    if name == AUTO:
        return _fastest(request)
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: known are {AUTO}, {', '.join(BACKENDS)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}_backend")
    return Opened(module.open_backend(request), "as asked")


def _fastest(request: Request) -> Opened:
    refused = []
    for name in BACKENDS:
        try:
            backend = open_backend(name, request).backend
        except L2CError as error:
            refused.append(str(error))  # which names the backend
        else:
            return Opened(backend, f"the fastest that works here{'; ' if refused else ''}{'; '.join(refused)}")
    raise BackendError(f"no backend can run this: {'; '.join(refused)}")


def needs(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == package.partition(".")[0]:
            raise MissingExtra(package, extra) from None
        raise
