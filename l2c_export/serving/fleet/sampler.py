"""One process that draws: a pipeline and its engine, asked by the fronts for one image at a time.

What is wrong with a job is an answer, too: what is raised here is a fault of the replica, and another one is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ...errors import L2CError, RunError
from ...runtime.pipeline import load
from ...support.words import first_line
from ..engine import ServingEngine
from ..job import Drawing, Job
from ..previews import Preview


class SamplerReplica:
    def __init__(self, folder: str, choices: dict[str, Any], max_batch: int | None, max_wait: float, room: int) -> None:
        """At most `room` jobs are asked at once.  Raises what loading does: then Ray tries it again elsewhere."""
        self._pipe = load(Path(folder), **choices)
        self._engine = ServingEngine(self._pipe, max_batch, max_wait, room)

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


def known(error: Exception) -> L2CError:
    if isinstance(error, L2CError):
        return error
    return RunError(f"the generation failed: {type(error).__name__}: {first_line(error)}")
