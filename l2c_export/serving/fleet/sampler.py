"""One process that draws: a pipeline and its engine, asked by the fronts for one image at a time.

What is wrong with a job is an answer, too: what is raised here is a fault of the replica, and another one is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ...errors import ArtefactError, L2CError, RunError
from ...runtime.pipeline import Pipeline, load
from ...support.words import first_line
from ..engine import ServingEngine
from ..job import Drawing, Job
from ..previews import Preview


class SamplerReplica:
    def __init__(self, folder: str, choices: dict[str, Any], max_batch: int | None, max_wait: float, room: int) -> None:
        """At most `room` jobs are asked at once.  Raises what loading does: then Ray tries it again elsewhere."""
        self._folder, self._choices = Path(folder), choices
        self._engine = ServingEngine(load(self._folder, **choices), max_batch, max_wait, room)
        self._next: Pipeline | None = None  # loaded beside the one that draws
        self._torn = False

    async def draw(self, job: Job) -> Drawing | L2CError:
        """Cancelling this takes the job out of its batch."""
        try:
            return await asyncio.wrap_future(self._engine.submit(job))
        except Exception as error:
            return known(error)

    async def stream(self, job: Job) -> AsyncIterator[Preview | Drawing | L2CError]:
        """What is shown on the way, and at last what `draw` answers."""
        loop, shown = asyncio.get_running_loop(), asyncio.Queue[Preview | None]()

        def put(preview: Preview | None) -> None:
            loop.call_soon_threadsafe(shown.put_nowait, preview)

        try:
            ticket = self._engine.submit(job, put)
        except Exception as error:
            yield known(error)
            return
        ticket.add_done_callback(lambda _: put(None))
        try:
            while preview := await shown.get():
                yield preview
            try:
                answer: Drawing | L2CError = ticket.result(0)
            except Exception as error:
                answer = known(error)
            yield answer
        finally:
            ticket.cancel()

    # exchange: all replicas load what lies there, and only when every one of them could, all take it

    async def load_beside(self, checksum: str) -> L2CError | None:
        """Load the artefact again, which must have this checksum: what was wrong."""
        return await asyncio.to_thread(self._load_beside, checksum)

    async def forget(self) -> None:
        """What was loaded beside is not wanted."""
        pipe, self._next = self._next, None
        if pipe is not None:
            pipe.close()

    async def exchange(self) -> L2CError | None:
        """Take what was loaded beside from the next batch on: what was wrong, after which Ray starts this replica again."""
        pipe, self._next = self._next, None
        if pipe is None:  # it was started in the meantime, with what lies there
            return None
        try:
            before = await asyncio.to_thread(self._engine.replace, pipe)
        except Exception as error:
            self._torn = True
            return known(error)
        before.close()
        return None

    def check_health(self) -> None:
        """Asked by Ray.  Raises RunError where the other replicas draw with another artefact."""
        if self._torn:
            raise RunError("the artefact could not be exchanged here: this replica is started again")

    def _load_beside(self, checksum: str) -> L2CError | None:
        try:
            pipe = load(self._folder, **self._choices)
        except Exception as error:
            return known(error)
        if pipe.manifest.checksum != checksum:
            pipe.close()
            return ArtefactError(f"{self._folder}: was changed while it was read: reload again")
        self._next = pipe
        return None


def known(error: Exception) -> L2CError:
    if isinstance(error, L2CError):
        return error
    return RunError(f"the generation failed: {type(error).__name__}: {first_line(error)}")
