"""Engines for GPUs, added to an artefact on the machine that has the library which builds them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..backends import builds, units
from ..backends.contract import BUILT
from ..backends.tensorrt.backend import library
from ..backends.tensorrt.builder import BuildSettings
from ..errors import UsageError
from ..runtime.artefact import Artefact
from ..support.files import Report
from ..support.log import logged
from ..support.progress import Progress, Watch, unseen, unwatched


def check(backend: str) -> None:
    """Refuse, before long work for it, a backend that builds nothing or whose library is missing.  Raises L2CError."""
    if backend not in BUILT:
        raise UsageError(f"--backend {backend}: nothing to build; use one of {', '.join(BUILT)}")
    library(backend)


def build(
    path: str | os.PathLike[str],
    backend: str,
    *,
    targets: str | Sequence[str] = (),
    batch: str | None = None,
    level: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    report: Report = logged,
    progress: Progress = unseen,
    watch: Watch = unwatched,
) -> Artefact:
    """Add engines to the artefact in `path`, for "tensorrt" on this GPU or for "tensorrt-rtx" on `targets`, such as "sm86".

    It needs neither torch nor onnx.  `batch` is "MIN:OPT:MAX" images, by default 1 to what the artefact was compiled for;
    `level` (0 to 5) how long the library may search for fast kernels, and `timing_cache` a file for what it measured.
    `version_compatible` engines run with later releases of the same major version, `hardware_compatible` ones on every GPU
    from Ampere on, more slowly.  `report`, `progress` and `watch` are those of `compile`.
    Raises ArtefactError, BackendError or UsageError; the artefact is complete, without the new build, after an error.
    """
    artefact = Artefact.read(path)
    chosen = (targets,) if isinstance(targets, str) else tuple(targets)
    settings = BuildSettings(
        targets=chosen, level=level, version_compatible=version_compatible, hardware_compatible=hardware_compatible
    )
    cache = None if timing_cache is None else Path(timing_cache)
    step = progress("building engines", units.count(artefact.manifest))
    manifest = builds.build(artefact.path, backend, settings, batch, cache, report, step, watch)
    return Artefact(artefact.path, manifest)
