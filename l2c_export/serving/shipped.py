"""Models that are part of the package: emoji is compiled already, the digits are on their first use, into the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import demo
from ..artefact import shipped, store
from ..errors import L2CError, UsageError
from ..support.cache import cache_folder
from ..support.files import Report
from ..support.log import logged
from ..support.source_hash import source_hash

BATCH = 8


def artefact_of(name: str, compile: Callable[..., object], report: Report = logged) -> Path:
    """The folder of a model that ships; `compile` is `l2c_export.compile`, for the first use.

    Raises UsageError for another model, and MissingExtra where it would have to be compiled.
    """
    if (ours := shipped.named(name)) is not None:
        return ours
    if name != demo.NAME:
        known = " and ".join([demo.NAME, *shipped.names()])
        raise UsageError(f"model={name!r}: only {known} can be served by name: compile others, and give the folder")
    made_by = source_hash("compiler", "models", "artefact", "demo", "schedules", "samplers", "ir", "weights")[:16]
    folder = cache_folder("models") / f"{name}-{made_by}"
    try:
        store.read(folder, verify=False)
    except L2CError:
        report(f"compiling {name}, once, to {folder}")
        compile(model=name, batch=BATCH, out=folder, report=logged)
    return folder
