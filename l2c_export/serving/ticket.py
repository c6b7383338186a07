"""A job that was accepted: checked, and waiting for its one answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, NamedTuple

from .job import Drawing, Job

if TYPE_CHECKING:
    from ..artefact.compiled import Compiled
    from ..runtime.pipeline import Pipeline
    from .previews import OnPreview


class Checked(NamedTuple):
    """What a job asks of the artefact that makes it."""

    request: Mapping[str, Any]  # a batch of one image, by name
    told: Hashable  # what it says: requests that say the same things may share a batch
    program: Compiled
    scale: float
    seed: int


class Ticket(Future[Drawing]):
    """A `concurrent.futures.Future` of the image.

    It is answered once: with the image, with an error, or by `cancel()`, which works until then.  A batch ends before its next
    step once nobody waits for one of its images.
    """

    def __init__(self, pipe: Pipeline, job: Job, checked: Checked, on_preview: OnPreview | None = None) -> None:
        super().__init__()
        self.pipe, self.job, self.on_preview = pipe, job, on_preview
        self.request, _, self.program, self.scale, self.seed = checked
        one_for_all = None if self.program.guides_each_image else self.scale
        self.kind: Hashable = (id(pipe), self.program.name, checked.told, one_for_all)
        self.queued = time.monotonic()

    def arrays(self) -> dict[str, Any]:
        """The request as arrays (1, ..) by name; prompts are encoded now."""
        return self.pipe.inputs(**self.request)

    def answer(self, result: Drawing | BaseException) -> None:
        """Answer it, unless it has been answered."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(result, Drawing):
                self.set_result(result)
            else:
                self.set_exception(result)
