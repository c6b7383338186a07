"""One pipeline for many who ask: their jobs wait in a bounded queue, and are made in batches.

A batch is put together when its loop starts, of jobs that the same program makes, whatever their labels, prompts, seeds and
guidance scales; nothing joins a loop that runs.  One thread computes; where a GPU has the loop and the processor the decoder,
another makes the pictures of a batch beside the loop of the next one.  Everything here may be called from any thread.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Cancelled, Draining, Full, L2CError, RunError, UsageError
from ..ir.inputs import NEGATIVE_PROMPT, PROMPT
from ..runtime import inputs, prompts, request
from ..support.log import LOG
from .batch import run_batch
from .beside import Beside
from .job import Drawing
from .pictures import EndedLoop, made_beside, picture
from .ticket import Checked, Ticket
from .waiting import Waiting

if TYPE_CHECKING:
    from ..artefact.manifest import Manifest
    from ..runtime.pipeline import Pipeline
    from .job import Job
    from .previews import OnPreview

GRACE = 30.0  # seconds for the step that runs when the time to drain is over


class ServingEngine:
    """Accepts jobs and answers every one of them once.

    `max_batch` is the artefact's by default; `max_wait` is in seconds how long the first of a batch waits for others; at most
    `max_queue` jobs wait.  `output_type` "latent" leaves pixels out; by default they are made where they can be.
    The pipeline belongs to the caller, who closes it after the engine.
    """

    def __init__(
        self, pipe: Pipeline, max_batch: int | None = None, max_wait: float = 0.005, max_queue: int = 64,
        output_type: str | None = None,
    ) -> None:  # fmt: skip
        """Run the artefact once for every batch size that it is to be warm for.  Raises UsageError for wrong values."""
        for name, value in (("max_batch", max_batch), ("max_queue", max_queue)):
            if value is not None and not (request.whole(value) and value > 0):
                raise UsageError(f"{name}={value!r}: must be a whole number of at least 1")
        if not 0 <= max_wait <= 60:
            raise UsageError(f"max_wait={max_wait!r}: must be a number of seconds from 0 to 60")
        if output_type not in (None, "latent", "np"):
            raise UsageError(f"output_type={output_type!r}: use one of latent, np")
        self._max_batch, self._output = max_batch, output_type
        self._waiting = Waiting(max_queue, max_wait)
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._exchanging = threading.Lock()
        self._batch_seconds = 0.0  # of the last one
        self._warm(pipe)
        self._pipe = pipe
        self._thread = threading.Thread(target=self._run, name="l2c-serving", daemon=True)
        self._thread.start()

    def __enter__(self) -> ServingEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # for those who ask

    def submit(self, job: Job, on_preview: OnPreview | None = None) -> Ticket:
        """Accept a job.  Raises UsageError for one that the artefact cannot meet, Full where too many wait, and Draining.

        `on_preview` is called with what `job.previews` asks for, by the thread that computes: it must be quick.
        """
        return self.submit_all([job], [on_preview])[0]

    def submit_all(self, jobs: Sequence[Job], on_preview: Sequence[OnPreview | None] | None = None) -> list[Ticket]:
        """Accept several jobs, or none of them."""
        hearers = on_preview or [None] * len(jobs)
        while (tickets := self._accepted(jobs, hearers)) is None:
            pass  # the pipeline was replaced in between
        return tickets

    def _accepted(self, jobs: Sequence[Job], hearers: Sequence[OnPreview | None]) -> list[Ticket] | None:
        pipe = self._pipe
        tickets = [ticket_of(pipe, job, heard) for job, heard in zip(jobs, hearers, strict=True)]
        for ticket in tickets:
            ticket.add_done_callback(self._answered)
        try:
            if not self._waiting.put(tickets, still=lambda: pipe is self._pipe):
                return None
        except (Full, Draining):
            self._count({"rejected": len(jobs)})
            raise
        self._count({"accepted": len(jobs)})
        return tickets

    @property
    def pipe(self) -> Pipeline:
        """What makes the jobs that are accepted now."""
        return self._pipe

    @property
    def max_queue(self) -> int:
        """So many jobs may wait."""
        return self._waiting.most

    @property
    def waiting(self) -> int:
        """Jobs that wait for their batch."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs of the batches that are computed."""
        return self._waiting.running

    @property
    def counts(self) -> Mapping[str, int]:
        """Of jobs: accepted, rejected; of those accepted, made, failed and cancelled; and batches, padding (images made for
        nobody)."""
        names = ("accepted", "rejected", "made", "failed", "cancelled", "batches", "padding")
        with self._counting:
            return {name: self._counts[name] for name in names}

    @property
    def expected_seconds(self) -> float:
        """About how long a job that is accepted now waits for its batch to end; 0 before the first batch has."""
        return self._batch_seconds * (len(self._waiting) // self._largest(self._pipe) + 1 + bool(self.running))

    # for who runs it

    def replace(self, pipe: Pipeline) -> Pipeline:
        """Make what is accepted from now on by another pipeline, which is made warm first.

        What was accepted before is made by the one that accepted it, which is returned when it has nothing left to do.
        """
        with self._exchanging:
            self._warm(pipe)
            before, self._pipe = self._pipe, pipe
            self._waiting.wait_until_gone(lambda ticket: ticket.pipe is not before)
            return before

    def close(self, drain_seconds: float = 30.0) -> bool:
        """Accept nothing more, and finish in at most so many seconds what was accepted: whether that could be done.

        What could not is answered with Draining.
        """
        self._waiting.close()
        self._thread.join(drain_seconds)
        left = self._waiting.all() if self._thread.is_alive() else ()
        for ticket in left:
            ticket.answer(Draining(f"this image was not made within drain_seconds={drain_seconds:.3g}: ask another engine"))
            self._waiting.leave(ticket)
        self._thread.join(GRACE)
        return not left

    # inside

    def _largest(self, pipe: Pipeline) -> int:
        return min(self._max_batch or pipe.manifest.batch, pipe.manifest.batch)

    def _sizes(self, pipe: Pipeline) -> list[int]:
        """The batch sizes that are run: on a processor, where an image costs as much in every one, as many as there are jobs.

        On a GPU a loop is captured for each: those that double, up to the largest.
        """
        most = self._largest(pipe)
        doubling = (2**n for n in range(most.bit_length()) if 2**n < most)
        return list(range(1, most + 1)) if _on_host(pipe) else [*doubling, most]

    def _warm(self, pipe: Pipeline) -> None:
        """Every program once, on a GPU in every size."""
        sizes = [1] if _on_host(pipe) else self._sizes(pipe)
        pixels = request.pixels_of(pipe.manifest)
        for program in pipe.manifest.all_programs():
            _, *axes = program.latent
            height, width = (pixels * side for side in axes) if len(axes) == 2 else (None, None)
            pipe.warm(sizes, None, program.steps, height, width)

    def _draws(self, pipe: Pipeline) -> bool:
        """Whether pictures are made of the latents."""
        return self._output == "np" or (self._output is None and request.makes_pixels(pipe.manifest))

    def _run(self) -> None:
        with Beside("l2c-pictures") as beside:
            while batch := self._waiting.take(lambda ticket: self._largest(ticket.pipe)):
                finish = functools.partial(self._finish, batch, ended := self._ended(batch))
                if ended and ended.to_draw:
                    beside(finish)
                else:
                    finish()

    def _ended(self, batch: Sequence[Ticket]) -> EndedLoop | None:
        """The loop of a batch; None where it failed, and was answered so."""
        try:
            return self._loop([ticket for ticket in batch if not ticket.done()])
        except BaseException as error:  # whatever it was, the next batch is another one
            self._fail(batch, error)
            return None

    def _loop(self, tickets: Sequence[Ticket]) -> EndedLoop | None:
        began = time.monotonic()
        told = dict[Ticket, Mapping[str, Any]]()
        for ticket in tickets:
            try:
                told[ticket] = ticket.arrays()
            except Exception as error:
                self._fail([ticket], error)
        if not told:
            return None
        batch, pipe = list(told), tickets[0].pipe
        size = next(size for size in self._sizes(pipe) if size >= len(batch))
        draws = self._draws(pipe)
        later = draws and made_beside(pipe)
        out = run_batch(pipe, batch, list(told.values()), size, "np" if draws and not later else "latent", draws)
        self._count({"batches": 1, "padding": size - len(batch)})
        return EndedLoop(batch, out.latents, out.images, began, later)

    def _finish(self, batch: Sequence[Ticket], ended: EndedLoop | None) -> None:
        """Answer a batch whose loop has ended."""
        try:
            if ended:
                self._answer(ended)
        except BaseException as error:
            self._fail(batch, error)
        finally:
            self._waiting.finished(batch)

    def _answer(self, ended: EndedLoop) -> None:
        for n, ticket in enumerate(ended.tickets):
            if ticket.done():
                continue
            if not np.isfinite(ended.latents[n]).all():
                ticket.answer(RunError("the latents hold NaN or infinite values: ask again, or check the artefact"))
                continue
            pixels = picture(ticket.pipe, ended, n)
            self._batch_seconds = seconds = time.monotonic() - ended.began
            ticket.answer(Drawing(ended.latents[n].copy(), pixels, ended.began - ticket.queued, seconds, len(ended.tickets)))

    def _fail(self, tickets: Sequence[Ticket], error: BaseException) -> None:
        """Answer what is left of these with one clear error."""
        if not isinstance(error, Cancelled):  # nobody waits for them
            LOG.error("a batch of %d failed: %s: %s", len(tickets), type(error).__name__, error, exc_info=error)
        known = isinstance(error, L2CError)
        for ticket in tickets:
            ticket.answer(error if known else RunError(f"the generation failed: {type(error).__name__}: {error}"))

    def _answered(self, ticket: Any) -> None:
        if ticket.cancelled():
            self._waiting.leave(ticket)
            self._count({"cancelled": 1})
        elif ticket.exception():
            self._count({"failed": 1})
        else:
            self._count({"made": 1})

    def _count(self, more: Mapping[str, int]) -> None:
        with self._counting:
            self._counts.update(more)


def ticket_of(pipe: Pipeline, job: Job, on_preview: OnPreview | None = None) -> Ticket:
    """A job, checked.  Raises UsageError for one that this pipeline cannot make."""
    return Ticket(pipe, job, checked(pipe.manifest, job), on_preview)


def checked(manifest: Manifest, job: Job) -> Checked:
    """Raises UsageError for a job that this artefact cannot make."""
    program = manifest.program(job.steps, request.axes(manifest, job.height, job.width))
    scale = float(request.scales(program, job.guidance_scale, 1)[0])
    (seed,) = request.seeds(1, [job.seed])
    said = {name: _batched(value) for name, value in job.inputs.items() if value is not None}
    return Checked(said, _told(manifest, said), program, scale, seed)


def _told(manifest: Manifest, said: Mapping[str, Any]) -> Hashable:
    """The names of what a request says."""
    texts = prompts.checked(manifest, said, 1)
    if texts.asked is None and texts.without is None:
        return frozenset(inputs.checked(manifest, said))
    values = {PROMPT: texts.asked, NEGATIVE_PROMPT: texts.without, **texts.others}
    return frozenset(name for name, value in values.items() if value is not None)


def _batched(value: Any) -> Any:
    """One image's value as a batch of one."""
    return value[None] if getattr(value, "ndim", 0) else [value]


def _on_host(pipe: Pipeline) -> bool:
    return pipe.device == "cpu"
