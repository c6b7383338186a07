"""An artefact on disk becomes engines of a backend, checked before they are used."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from ..artefact import store, text
from ..artefact.manifest import LINKS, Manifest
from ..backends.choose import Opened, open_backend
from ..backends.contract import Request
from ..backends.descriptors import built
from ..errors import UsageError
from ..support import ending
from ..support.log import LOG
from ..support.neighbours import BUSY, Watch
from ..weights import layout
from . import decoder
from . import request as asked
from .loaded import LoadedArtefact, load_engines


class Choices(NamedTuple):
    """How an artefact is loaded; None leaves it to the artefact and the machine."""

    backend: str | None
    device: str | None = None
    threads: int | None = None
    link: str | None = None
    tile: int | None = None


class Opening(NamedTuple):
    """What is loaded, and by which backend."""

    loaded: LoadedArtefact
    opened: Opened


@ending.computing()
def open_artefact(path: str | os.PathLike[str], choices: Choices, verify: bool = True) -> Opening:
    """Load an artefact.  Raises what `load` raises."""
    started, folder, others = time.perf_counter(), asked.folder(path), Watch()
    manifest = store.read(folder, trusted=() if verify else (layout.WEIGHTS, *text.WEIGHTS))
    store.check_linked(folder, manifest)
    if choices.link not in (None, *LINKS):
        raise UsageError(f"link={choices.link!r}: use one of {', '.join(LINKS)}")
    if choices.link == "static" and manifest.denoiser.stored:
        stored = f"weights are stored in {manifest.denoiser.stored}, narrower than whole graphs take them"
        raise UsageError(f"link='static': {folder}: its {stored}: use link='shared'")
    decoder.check_tile(choices.tile, manifest.decoder or None)
    builds = tuple(manifest.builds.values())
    alone = not all(segment.primitives for segment in manifest.denoiser.segments.values())  # of format 1
    request = Request(choices.device, choices.threads, manifest.precision, folder, builds, manifest.files, alone)
    opened = open_backend(choices.backend or manifest.backend, request)
    name = opened.backend.name
    if choices.link not in (None, manifest.link) and name in built():
        raise UsageError(f"link={choices.link!r}: the engines of {name} were built for link={manifest.link!r}")
    loaded = load_engines(folder.absolute(), manifest, opened.backend, choices.link)  # the process may go elsewhere
    store.check_unchanged(folder, manifest)
    if choices.threads is None and opened.backend.spins:
        advise(others.share())
    LOG.info("%s: loaded in %.2f s, %s, %s", folder, time.perf_counter() - started, name, opened.why)
    return Opening(loaded, opened)


def advise(share: float | None) -> None:
    """Warn if others want so much of the processors that threads which spin wait for them."""
    if share is not None and share > BUSY:
        LOG.warning("other programs use %.0f%% of the processors: one thread instead of all may be faster here", 100 * share)


def check_same_requests(path: str | os.PathLike[str], present: Manifest, other: Manifest) -> None:
    """Refuse an artefact that is told, or makes, something else than the one whose place it is to take.  Raises UsageError."""
    if present.text and not other.text:
        raise UsageError(f"{path}: has no text encoders, which the one in its place has: compile it again with with_text=True")
    ours, theirs = _interface(present), _interface(other)
    for what in ours:
        if ours[what] != theirs[what]:
            raise UsageError(f"{path}: its {what} are {theirs[what]}, not {ours[what]}: load it as a pipeline of its own")


def _interface(manifest: Manifest) -> dict[str, object]:
    return {
        "inputs": {field.name: field.shape for field in manifest.inputs},
        "latents": manifest.program().latent,
        "images": "decoded" if manifest.decoder else "its latents",
    }


def described(manifest: Manifest, how: str) -> str:
    """What an artefact makes, and how it runs, in a line."""
    model, guidance = manifest.denoiser, f"guidance {manifest.guidance.mode} {manifest.guidance.scale:g}"
    programs = " or ".join(compiled.summary for compiled in manifest.all_programs())
    return f"{model.name or model.family}: {programs}, {manifest.precision}, {how}, batch {manifest.batch}, {guidance}"
