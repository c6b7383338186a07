"""What a file is, by its content: the list of importers, of which one may claim it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ...errors import ScheduleError, UsageError
from ...support import file_kind
from ..file import REMEDY, content
from . import cachedit, ecad, harmonica, l2p, lemica, magcache, mask, meancache, openvino, smoothcache
from .imported import Imported, Selection
from .text import decoded


class Importer(Protocol):
    """A module of this folder.  `claims` looks at the keys and types of a decoded text only; `read` raises ScheduleError."""

    FORM: str
    TAKES: tuple[str, ...]  # what of a selection it heeds

    def claims(self, content: Any) -> bool: ...
    def read(self, content: Any, chosen: Selection) -> Imported: ...


IMPORTERS: tuple[Importer, ...] = (smoothcache, ecad, lemica, magcache, cachedit, meancache, l2p, openvino, mask)


def read(path: Path, chosen: Selection) -> Imported | None:
    """What a file of another tool says; None for one of ours: a schedule.json, or a router of Learning-to-Cache.

    Raises ScheduleError in one line for what is none, or what two importers claim.
    """
    if not is_text(path):
        return harmonica.read(path, chosen) if chosen.router_kind == harmonica.KIND else None
    if chosen.router_kind == harmonica.KIND:
        raise UsageError(f"router_kind='harmonica': {path} is a text, and no router: leave it out")
    text = content(path)
    try:
        return of_content(decoded(text), chosen)
    except (ScheduleError, UsageError) as error:
        raise type(error)(f"{path}: {error}") from None


def is_text(path: Path) -> bool:
    """Whether a file is read here, and not as a file of torch.save; what is called one is refused there."""
    try:
        return file_kind.is_json(path) or (file_kind.of(path) == file_kind.TEXT and path.suffix not in (".pt", ".pth"))
    except OSError:
        return False


def of_content(content: Any, chosen: Selection) -> Imported | None:
    """The same of a decoded text; None for a schedule of ours."""
    if isinstance(content, Mapping) and ("calls" in content or "format" in content):
        return None
    own = [importer for importer in IMPORTERS if importer.claims(content)]
    if len(own) > 1:
        names = " and ".join(importer.FORM for importer in own)
        raise ScheduleError(f"it may be {names}: say which in a schedule.json")
    if not own:
        other = file_kind.of_json(content)
        forms = ", ".join(importer.FORM for importer in IMPORTERS)
        raise ScheduleError(f"no schedule: {other.instead(REMEDY) if other else f'use one of ours, {forms}'}")
    _check_selection(own[0], chosen)
    return own[0].read(content, chosen)


def _check_selection(importer: Importer, chosen: Selection) -> None:
    """Refuse what would have no effect."""
    for name in ("level", "budget", "full_calls", "threshold"):
        if (value := getattr(chosen, name)) is not None and name not in importer.TAKES:
            raise UsageError(f"{name}={value!r}: {importer.FORM} does not ask for it: leave it out")
