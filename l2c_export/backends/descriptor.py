"""What is known of a backend before its library is imported, and how it is opened."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BackendError
from ..ir.precisions import FP8
from ..support.extras import needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..artefact.manifest import Manifest
    from ..support.files import Report
    from ..support.progress import Watch
    from .building import BuildSettings, EngineBuilder, Range
    from .contract import Backend, Request

GPU, CPU = "cuda", "cpu"


class Site(NamedTuple):
    """A kind of device that a backend computes on, as "auto" and the doctor try it."""

    device: str  # GPU, an NVIDIA one; or CPU, which stands for all that works on the host's arrays
    package: str  # what pip calls the library there
    fastest: tuple[str, ...] = ()  # precisions in which it is tried before others on such a device (scripts/results)


@dataclass(frozen=True)
class Descriptor:
    """A backend as the others see it: names and what it can do.

    A home or a builder is the name of a module, with a dot in front if it is below `backends`.
    """

    name: str
    home: str  # has `open_backend(name, request)`, which returns a `contract.Backend`
    library: str  # what it imports; where that is found the backend is installed
    extra: str  # what pip installs it with
    precisions: tuple[str, ...]  # what it can be asked for at all; whether this machine has it is found out when it is opened
    sites: tuple[Site, ...]  # the last is where it goes when no device is asked for
    builder: str = ""  # has `open_builder(name, settings, watch)`, which returns a `building.EngineBuilder`; "": none is needed
    preparer: str = ""  # has `prepare(..)`, which makes what loading would make, in the user's cache
    reads_onnx: bool = True  # or only what is written in primitives
    targets: tuple[str, ...] = ()  # GPUs that engines are built for when none is named, whatever is here; (): the one that is

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.library) is not None

    def imported(self) -> ModuleType:
        """Its library.  Raises MissingExtra, or BackendError for one that does not load."""
        return needs(self.library, self.extra)

    def asked(self, site: Site) -> str | None:
        """The device to ask for, to get to a site; None where it goes by itself."""
        return None if site is self.sites[-1] else site.device

    def open(self, request: Request) -> Backend:
        """The backend itself.  Raises BackendError if it cannot do what is asked, MissingExtra if it is not installed."""
        self._check(request.precision)
        backend: Backend = importlib.import_module(self.home, __package__).open_backend(self.name, request)
        return backend

    def _check(self, precision: str) -> None:
        """Raises BackendError for an artefact in fp8, which others than those who have it would misread."""
        if precision == FP8 and FP8 not in self.precisions:
            raise BackendError(f"{self.name}: it has no {FP8}: use backend='cuda' or compile with precision='bf16'")

    def prepare(
        self, manifest: Manifest, settings: BuildSettings, sizes: Range, report: Report, progress: Callable[[], object]
    ) -> None:
        """Make what loading an artefact would make.  Raises BackendError or UsageError."""
        importlib.import_module(self.preparer, __package__).prepare(manifest, settings, sizes, report, progress)

    def open_builder(self, settings: BuildSettings, watch: Watch) -> EngineBuilder:
        """What builds its engines.  Raises BackendError or UsageError for settings that it does not have."""
        self._check(settings.precision)
        builder: EngineBuilder = importlib.import_module(self.builder, __package__).open_builder(self.name, settings, watch)
        return builder
