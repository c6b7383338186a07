"""The models of a server by their names, each with an engine of its own, and how they are loaded and exchanged."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...artefact import store
from ...artefact.manifest import Manifest
from ...errors import ArtefactError, L2CError, UsageError
from ...runtime.pipeline import Pipeline, load
from ...support.log import LOG
from ..engine import ServingEngine
from .says import Said, what_prompts_say
from .settings import ServerSettings


@dataclass(frozen=True)
class ServedPlace:
    """Where a model is found, and how it is loaded: `choices` are those of `load`."""

    name: str
    folder: Path
    choices: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServedModel:
    """A model that runs.  What it makes may change with every reload: `pipe` is what it is now."""

    place: ServedPlace
    engine: ServingEngine
    loaded: int  # seconds since 1970, when it was first

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def pipe(self) -> Pipeline:
        return self.engine.pipe

    @property
    def said(self) -> Said:
        return what_prompts_say(self.name, self.pipe.manifest)


class Shelf:
    """All models, in the order in which they were given."""

    def __init__(self, places: Iterable[ServedPlace], settings: ServerSettings) -> None:
        """Look at the manifests alone.  Raises what reading them does, and UsageError for what cannot be served."""
        self.places, self._settings = tuple(places), settings
        self._models: dict[str, ServedModel] = {}
        self._reloading = threading.Lock()
        for place in self.places:
            what_prompts_say(place.folder, store.read(place.folder, verify=False))

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """Those that are loaded, by name."""
        return self._models

    @property
    def ready(self) -> bool:
        return len(self._models) == len(self.places)

    @property
    def connections(self) -> int:
        """How many clients may be connected."""
        return self._settings.connections

    def load(self) -> None:
        """Load all of them.  Raises what loading does."""
        set_up = self._settings
        for place in self.places:
            began = time.perf_counter()
            pipe = load(place.folder, **place.choices)
            what_prompts_say(place.folder, pipe.manifest)
            engine = ServingEngine(pipe, set_up.max_batch, set_up.max_wait, set_up.max_queue)
            self._models = {**self._models, place.name: ServedModel(place, engine, int(time.time()))}
            LOG.info("model %s is ready after %.2f s: %s", place.name, time.perf_counter() - began, pipe.backend)

    def reload(self) -> list[str]:
        """Load every model again from where it lies, beside the one that runs, and exchange them: the names.

        One that cannot be loaded stays as it is, and all others do so, too, that come behind it.  Raises UsageError where
        another reload runs, or for engines that nobody has said to trust, and what `load` raises.
        """
        if not self._reloading.acquire(blocking=False):
            raise UsageError("another reload is running: wait for it")
        try:
            for model in self._models.values():
                self._exchange(model)
            return list(self._models)
        finally:
            self._reloading.release()

    def _exchange(self, model: ServedModel) -> None:
        folder, manifest = model.place.folder, self._next_manifest(model)
        pipe = load(folder, **model.place.choices)
        if pipe.manifest.checksum != manifest.checksum:
            pipe.close()
            raise ArtefactError(f"{folder}: was changed while it was read: reload again")
        try:
            before = model.engine.replace(pipe)
        except L2CError:
            pipe.close()
            raise
        before.close()
        LOG.info("model %s was reloaded", model.name)

    def _next_manifest(self, model: ServedModel) -> Manifest:
        """Of what lies there.  Raises UsageError and what reading it does where a model must not become that."""
        folder, present = model.place.folder, model.pipe.manifest
        manifest = store.read(folder, verify=False)  # the files are checked when they are loaded
        if not self._settings.trust_engines and (other := new_engines(present, manifest)):
            raise UsageError(
                f"{folder}: {other} is an engine that did not run before, and an engine is a program: start the server with "
                "trust_engines=True to take it"
            )
        what_prompts_say(folder, manifest)
        return manifest

    def close(self, drain_seconds: float) -> bool:
        """Accept nothing more and finish what was accepted: whether that could be done in time."""
        until, models = time.monotonic() + drain_seconds, list(self._models.values())
        closing = [_Closing(model.engine, until) for model in models]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        for model, thread in zip(models, closing, strict=True):
            if thread.finished:  # or it may hang, and wait for ever
                model.pipe.close()
        return all(thread.finished for thread in closing)


class _Closing(threading.Thread):
    """All engines are closed at the same time."""

    def __init__(self, engine: ServingEngine, until: float) -> None:
        super().__init__(name="l2c-closing", daemon=True)
        self._engine, self._until, self.finished = engine, until, False

    def run(self) -> None:
        self.finished = self._engine.close(max(0.0, self._until - time.monotonic()))


def new_engines(present: Manifest, other: Manifest) -> str | None:
    """An engine file of an artefact that another one does not have, byte by byte; None if there is none."""
    known = {present.files[file].sha256 for build in present.builds.values() for file in build.engines.values()}
    return next((file for build in other.builds.values() for file in build.engines.values()
                 if other.files[file].sha256 not in known), None)  # fmt: skip
