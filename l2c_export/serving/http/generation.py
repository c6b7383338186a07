"""A request for images on its way through an engine.  Whoever goes away takes his jobs with him."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from . import answers
from .logs import note

if TYPE_CHECKING:
    from ..job import Drawing, Job
    from ..previews import Preview
    from ..ticket import Ticket
    from .shelf import ServedModel

GONE = 499  # of nginx: the client has gone; nobody reads it but the log


async def whole(model: ServedModel, jobs: Sequence[Job], request: Request) -> Response:
    """All images in one answer.  Raises what the engine does."""
    tickets = model.engine.submit_all(jobs)
    future = asyncio.gather(*(asyncio.wrap_future(ticket) for ticket in tickets))
    gone = asyncio.ensure_future(_gone(request))
    both: set[asyncio.Future[Any]] = {future, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            return Response(status_code=GONE)
        images = future.result()
    finally:
        gone.cancel()
        future.cancel()
        for ticket in tickets:
            ticket.cancel()
    _note(images)
    body = await asyncio.to_thread(answers.images_body, jobs, images)
    return Response(body, media_type="application/json")


async def _gone(request: Request) -> None:
    """Until the client closes its connection; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _note(images: Sequence[Drawing]) -> None:
    note(batch=max(image.batch for image in images), run_seconds=round(max(image.run_seconds for image in images), 6),
         queued_seconds=round(max(image.queued_seconds for image in images), 6))  # fmt: skip


class EventStream(StreamingResponse):
    """Server-sent events of one image.  The engine has accepted its job before the first byte is sent."""

    def __init__(self, model: ServedModel, job: Job) -> None:
        """Raises what the engine does."""
        loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Preview | None] = asyncio.Queue()

        def put(preview: Preview | None) -> None:
            loop.call_soon_threadsafe(self._queue.put_nowait, preview)

        self._job = job
        self._ticket: Ticket = model.engine.submit(job, put)
        self._ticket.add_done_callback(lambda _: put(None))
        super().__init__(self._events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()

    async def _events(self) -> AsyncIterator[bytes]:
        index = 0
        while preview := await self._queue.get():
            yield await asyncio.to_thread(answers.partial_event, index, preview)
            index += 1
        try:
            image = self._ticket.result(0)
        except Exception as error:
            refused = answers.refusal(error)
            note(error=str(error))
            yield answers.error_event(refused)
            return
        _note([image])
        yield await asyncio.to_thread(answers.completed_event, self._job, image)
