"""Which backend runs an artefact here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import BackendError, L2CError, UsageError
from ..support.machine import version
from .contract import Backend, Request
from .descriptor import GPU, Descriptor, Site
from .descriptors import AUTO, BACKENDS, named, sites


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
    return Opened(named(name).open(request), "as asked")


def reading_onnx(backend: Backend, threads: int | None = None) -> Backend:
    """The backend; or, where it knows nothing but primitives, the first here that runs what is ONNX alone.

    That one has so many `threads`, all cores by default: the ones of the pipeline that it belongs to.
    """
    if all(descriptor.reads_onnx for descriptor in BACKENDS if descriptor.name == backend.name):
        return backend
    return open_backend(AUTO, Request(threads=threads, onnx_alone=True)).backend


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
    for descriptor, site in sites(request.precision):
        if _fits(descriptor, site, request):
            yield descriptor.name, request.device or descriptor.asked(site)


def _fits(descriptor: Descriptor, site: Site, request: Request) -> bool:
    """Whether a site is on the device that is asked for; if none is, a GPU only where something is there for it."""
    on_gpu = (request.device or "").startswith(GPU)
    if request.onnx_alone and not descriptor.reads_onnx:
        return False
    if site.device != GPU:
        return not on_gpu
    if descriptor.builder:
        is_there = any(build.backend == descriptor.name for build in request.builds)
        return is_there and (on_gpu or request.device is None)
    return on_gpu or (request.device is None and version(site.package) is not None)
