"""The samplers of a model as one engine, as the web application knows it: it accepts jobs and answers every one of them once.

A replica that dies takes what it computes with it; the same job has the same bits on every replica, so another one is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException, RequestCancelledError

from ...artefact import store
from ...artefact.manifest import Manifest
from ...errors import Draining, Full, L2CError, RunError
from ...support.log import LOG
from ...support.words import counted, first_line
from ..engine import ticket_of
from ..http.settings import ServerSettings
from ..http.shelf import ServedModel, ServedPlace, Shelf
from ..job import Drawing, Job
from ..previews import OnPreview, Preview
from ..ticket import Ticket

WAITS = (
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    4.0,
)  # seconds before a job is asked for again; a job that ends every replica ends itself

LOOK = 0.02  # seconds between two looks at whether all is answered
LOADING = 600.0  # seconds in which every replica has loaded an artefact
ENDING = 5.0  # seconds in which a reload ends that the end of the server meets
ASKING = 0.5  # seconds of a wait for answers, after which it is looked whether the server ends


class Described(NamedTuple):
    """What the application asks a pipeline about its artefact."""

    manifest: Manifest
    backend: str

    def close(self) -> None:
        """The replicas have what is loaded."""


class FleetEngine:
    """Asked by one event loop; `handle` is that of the deployment, of which `most` images may be unanswered."""

    def __init__(self, name: str, handle: Any, pipe: Described, most: int) -> None:
        self.pipe, self.max_queue = pipe, most
        self._name, self._handle = name, handle
        self._open = set[Ticket]()
        self._tasks = set[asyncio.Task[None]]()
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0
        self._accepting, self._closed = threading.Lock(), False

    def submit(self, job: Job, on_preview: OnPreview | None = None) -> Ticket:
        return self.submit_all([job], [on_preview])[0]

    def submit_all(self, jobs: Sequence[Job], on_preview: Sequence[OnPreview | None] | None = None) -> list[Ticket]:
        """Accept several jobs or none.  Raises UsageError, Full and Draining as an engine does."""
        hearers = on_preview or [None] * len(jobs)
        pipe = cast(Any, self.pipe)
        tickets = [ticket_of(pipe, job, heard) for job, heard in zip(jobs, hearers, strict=True)]
        with self._accepting:
            if self._closed:
                raise Draining("this server is being stopped, and accepts nothing more: ask another one")
            if len(self._open) + len(tickets) > self.max_queue:
                self._counts["rejected"] += len(tickets)
                raise Full(
                    f"{counted(len(self._open), 'image')} are asked for, and at most {self.max_queue} may be: ask again later"
                )
            self._counts["accepted"] += len(tickets)
            self._open.update(tickets)
        for ticket in tickets:
            self._begin(ticket)
        return tickets

    @property
    def waiting(self) -> int:
        return len(self._open)

    @property
    def running(self) -> int:
        """Not known here: those that wait are all that have no answer."""
        return 0

    @property
    def counts(self) -> Mapping[str, int]:
        """As those of an engine; "retried" are the jobs that had to be asked for again."""
        names = ("accepted", "rejected", "made", "failed", "cancelled", "retried", "batches", "padding")
        return {name: self._counts[name] for name in names}

    @property
    def expected_seconds(self) -> float:
        return self._seconds * (len(self._open) // self.pipe.manifest.batch + 1)

    def close(self, drain_seconds: float = 30.0) -> bool:
        """Accept nothing more, and finish in at most so many seconds what was accepted: whether that could be done.

        What could not is answered with Draining.  Not to be called in the event loop, as it waits for that.
        """
        with self._accepting:
            self._closed = True
        until = time.monotonic() + drain_seconds
        while self._open and time.monotonic() < until:
            time.sleep(LOOK)
        left = list(self._open)
        for ticket in left:
            ticket.answer(Draining(f"this image was not made within drain_seconds={drain_seconds:.3g}: ask another server"))
        return not left

    def exchange(self, manifest: Manifest) -> None:
        """Let every replica load the artefact of this manifest beside the one that it draws with, and then take it.

        Not to be called in the event loop, as it waits for them.  Raises the first thing that was wrong: where a replica
        could not load it, all go on as before; where one could not take it, Ray starts that one again.  Raises Draining
        where this is closed meanwhile: no replica is asked for anything then.
        """
        try:
            self._tell("load_beside", manifest.checksum)
        except Draining:
            raise
        except L2CError:
            with contextlib.suppress(L2CError):  # the first one says what is wrong
                self._tell("forget")
            raise
        self.pipe = Described(manifest, self.pipe.backend)
        self._tell("exchange")

    # inside

    def _tell(self, method: str, *args: Any) -> None:
        """Call a method of every replica.  Raises the first error that one answers, RunError where one does not answer, and
        Draining where this is closed."""
        try:
            answers = self._answers(self._handle.broadcast(method, *args)) if not self._closed else ()
        except (RayError, RayServeException, TimeoutError) as error:
            raise RunError(f"a sampler of {self._name} did not answer: {first_line(error)}: see its log") from None
        for answer in answers:
            if answer is not None:
                raise answer
        if self._closed:
            raise Draining("this server is being stopped, and its artefacts stay as they are: reload another one")

    def _answers(self, asked: Any) -> Sequence[L2CError | None]:
        """Of all replicas; none of them where this is closed before, as Ray ends soon after that."""
        late = time.monotonic() + LOADING
        while not self._closed:
            try:
                return cast("Sequence[L2CError | None]", asked.results(timeout_s=ASKING))
            except TimeoutError:
                if time.monotonic() > late:
                    raise
        return ()

    def _begin(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._answer(ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        ticket.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended, ticket, task))

    def _ended(self, ticket: Ticket, task: asyncio.Task[None]) -> None:
        self._open.discard(ticket)
        self._counts["cancelled" if ticket.cancelled() else "failed" if ticket.exception() else "made"] += 1
        task.cancel()  # nobody waits for it any more

    async def _answer(self, ticket: Ticket) -> None:
        try:
            ticket.answer(await self._image(ticket))
        except Exception as error:
            LOG.exception("asking a sampler of %s failed", self._name)
            ticket.answer(RunError(f"the generation failed: {type(error).__name__}: {first_line(error)}"))

    async def _image(self, ticket: Ticket) -> Drawing | L2CError:
        """An image, by the first replica that lives to make it."""
        shown = Shown(ticket)
        for ask, wait in enumerate((0.0, *WAITS)):
            if ask:
                self._counts["retried"] += 1
                await asyncio.sleep(wait)
            try:
                answer = await (self._stream(ticket.job, shown) if ticket.on_preview else self._draw(ticket.job))
            except (RayTaskError, RequestCancelledError):
                raise
            except (RayError, RayServeException) as error:
                LOG.warning("a sampler of %s was lost, another one is asked: %s", self._name, first_line(error))
            else:
                if not isinstance(answer, (Full, Draining)):  # it is about to end
                    self._seconds = answer.run_seconds if isinstance(answer, Drawing) else self._seconds
                    return answer
        asked = counted(len(WAITS) + 1, "replica")
        return RunError(f"the generation failed: {asked} that were asked were lost: see their logs")

    async def _draw(self, job: Job) -> Drawing | L2CError:
        asked = self._handle.draw.remote(job)
        try:
            return cast(Drawing, await asked)
        except asyncio.CancelledError:
            asked.cancel()
            raise

    async def _stream(self, job: Job, shown: Shown) -> Drawing | L2CError:
        asked = self._handle.options(stream=True).stream.remote(job)
        try:
            async for message in asked:
                if not isinstance(message, Preview):
                    return cast(Drawing, message)
                shown(message)
        except asyncio.CancelledError:
            asked.cancel()
            raise
        return Draining("the stream ended without its image")


class Shown:
    """Hands previews on, each step once, though a second replica shows the first steps again."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket, self._last = ticket, 0

    def __call__(self, preview: Preview) -> None:
        if preview.step > self._last and self._ticket.on_preview and not self._ticket.done():
            self._last = preview.step
            self._ticket.on_preview(preview)


class FleetShelf(Shelf):
    """Models that are drawn elsewhere: here their manifests alone are read."""

    def __init__(
        self, places: Sequence[ServedPlace], settings: ServerSettings, deployed: Callable[[], Mapping[str, Any]],
        most: Callable[[int], int],
    ) -> None:  # fmt: skip
        """`deployed` waits for the samplers, and answers the handles of their deployments by model.

        `most` says how many images may be unanswered of an artefact that makes so many at once.  Raises what reading the
        manifests does.
        """
        super().__init__(places, settings)
        self._deployed, self._most = deployed, most

    @property
    def connections(self) -> int:
        """And those who wait for an image of a replica."""
        batches = (store.read(place.folder, verify=False).batch for place in self.places)
        return super().connections + sum(map(self._most, batches))

    def load(self) -> None:
        """Wait for the replicas, each of which loads.  Raises what deploying them does, and reading the manifests."""
        handles = self._deployed()
        for place in self.places:
            manifest = store.read(place.folder, verify=False)
            described = Described(manifest, str(place.choices["backend"] or manifest.backend))
            engine = FleetEngine(place.name, handles[place.name], described, self._most(manifest.batch))
            self._models = {**self._models, place.name: ServedModel(place, cast(Any, engine), int(time.time()))}

    def close(self, drain_seconds: float) -> bool:
        """As every shelf does.  No reload asks a replica for anything when it returns: Ray may end."""
        finished = super().close(drain_seconds)
        self._reloading.acquire(timeout=ENDING)
        return finished

    def _exchange(self, model: ServedModel) -> None:
        """In all replicas or, where one of them cannot load it, in none."""
        manifest, engine = self._next_manifest(model), cast(FleetEngine, model.engine)
        engine.exchange(manifest)
        LOG.info("model %s was reloaded by its replicas", model.name)
