"""Which backend runs an artefact here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import BackendError, L2CError, UsageError
from ..support.machine import version
from .contract import AUTO, BACKENDS, BUILT, Backend, Request

# where a backend is opened; a library is imported only when it is asked for
HOMES = {
    "tensorrt": "tensorrt.backend",
    "tensorrt-rtx": "tensorrt.backend",
    "openvino": "openvino.backend",
    "onnxruntime": "onnxruntime.cpu",
}


class Opened(NamedTuple):
    backend: Backend
    why: str


def open_backend(name: str, request: Request = Request()) -> Opened:  # noqa: B008  (frozen)
    """The backend of that name, or with "auto" the first that works here.

    Raises BackendError if it is unknown or cannot do what is asked, MissingExtra if it is not installed.
    """
    most = os.cpu_count() or 1
    if request.threads is not None and not 1 <= request.threads <= most:
        raise UsageError(f"threads={request.threads}: must be at least 1, and at most {most}, the processors of this machine")
    if name == AUTO:
        return _fastest(request)
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: known are {AUTO}, {', '.join(BACKENDS)}")
    module = importlib.import_module(f"{__package__}.{HOMES[name]}")
    return Opened(module.open_backend(name, request), "as asked")


def _fastest(request: Request) -> Opened:
    reasons = []
    for name, device in _candidates(request):
        try:
            backend = open_backend(name, request._replace(device=device)).backend
        except L2CError as error:
            reasons.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
        else:
            return Opened(backend, f"the first that works here{'; ' if reasons else ''}{'; '.join(reasons)}")
    raise BackendError(f"no backend can run this: {'; '.join(reasons) or f'none is for device {request.device}'}")


def _candidates(request: Request) -> Iterator[tuple[str, str | None]]:
    """What is worth a try, and a word if it fails, with the device to use."""
    backends = {build.backend for build in request.builds}
    on_gpu = (request.device or "").startswith("cuda")
    if on_gpu or request.device is None:
        yield from ((name, request.device) for name in BUILT if name in backends)
    if on_gpu or (request.device is None and version("onnxruntime-gpu")):
        yield "onnxruntime", request.device or "cuda"
    if not on_gpu:  # in float32 ONNX Runtime is the faster one (scripts/results/cpu_xeon.json, cpu_epyc.json)
        order = ("onnxruntime", "openvino") if request.precision == "fp32" else ("openvino", "onnxruntime")
        yield from ((name, request.device) for name in order)
