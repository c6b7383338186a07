"""The decoder of a pipeline, which is loaded when the first picture is made, by whichever thread that does."""

from __future__ import annotations

import threading

import numpy as np

from ..artefact import store
from ..errors import RunError
from .decoder import Decoder
from .loaded import LoadedArtefact

CLOSED = "this pipeline is closed: load the artefact again"


class LazyDecoder:
    """The decoder of an artefact that has one, loaded with the first picture.  Threads take turns."""

    def __init__(self, loaded: LoadedArtefact, tile: int | None, threads: int | None) -> None:
        self._loaded: LoadedArtefact | None = loaded
        self._tile, self._threads = tile, threads
        self._decoder: Decoder | None = None
        self._turn = threading.Lock()

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        """As `Decoder`.  Raises RunError once it is closed, and ArtefactError for a file that was changed."""
        with self._turn:
            return self._ready()(latents)

    @property
    def on_host(self) -> bool:
        """Whether the processor decodes."""
        with self._turn:
            return self._ready().on_host

    def close(self) -> None:
        """Free it."""
        with self._turn:
            self._loaded = self._decoder = None

    def _ready(self) -> Decoder:
        if self._loaded is None:
            raise RunError(CLOSED)
        manifest, folder = self._loaded.manifest, self._loaded.folder
        if self._decoder is None:
            assert manifest.decoder
            info = manifest.files[manifest.decoder.file]
            store.check_same(folder, manifest.decoder.file, info)  # it is read now that it is needed
            self._decoder = Decoder(folder, manifest.decoder, self._loaded.backend, self._tile, info, self._threads)
        return self._decoder


def decoder_of(loaded: LoadedArtefact, tile: int | None, threads: int | None) -> LazyDecoder | None:
    """The decoder of an artefact, if it has one."""
    return LazyDecoder(loaded, tile, threads) if loaded.manifest.decoder else None
